"""Whoever folds the stream has the same tables: in batches, over kills, or anew, at every place of it."""

import random
from pathlib import Path

import pytest

from services.registry.fold import Fold
from services.registry.store import TABLES, Store
from tests.controls import Stream
from tests.shared.test_registry_fold import a_busy_stream


class Rebuilt:
    """A file that is emptied and folded again."""

    def __init__(self, path: Path) -> None:
        self.store = Store(path)
        self.store.begin("EVENTS", "2026")

    def digest(self, stream: Stream, until: int) -> dict[str, str]:
        for table in TABLES:
            self.store._writer.execute(f"delete from {table}")
        fold = Fold()
        for message in stream.messages[:until]:
            fold.add(*message)
        self.store.write(fold.take())
        return self.store.digest()


def check_prefixes(folder: Path, stream: Stream, count: int, seed: int) -> None:
    """At `count` random places: the file that follows, now and then killed, is the one that is folded anew."""
    chance = random.Random(seed)
    following, rebuilt, fold = Store(folder / "following.duckdb"), Rebuilt(folder / "rebuilt.duckdb"), Fold()
    following.begin("EVENTS", "2026")
    for until in sorted(chance.sample(range(1, stream.last_seq + 1), count)):
        for message in stream.messages[fold.position : until]:
            fold.add(*message)
        following.write(fold.take())
        assert following.digest() == rebuilt.digest(stream, until), until
        if chance.random() < 0.3:
            fold = Fold()
            for row in following.active_events():
                fold.restore(*row)
            fold.restored(following.position()[1])
    following.close()
    rebuilt.store.close()


def test_a_file_that_follows_is_the_file_that_is_folded_anew(tmp_path: Path) -> None:
    """At fifty prefixes of a stream with junk, retries, questions and late results."""
    check_prefixes(tmp_path, a_busy_stream(5, runs=12), 50, 5)


@pytest.mark.chaos
def test_it_is_so_at_a_thousand_prefixes(tmp_path: Path) -> None:
    check_prefixes(tmp_path, a_busy_stream(6, runs=150), 1_000, 6)


def test_a_digest_tells_a_change_of_one_value(tmp_path: Path) -> None:
    """Or else it would prove nothing: each table, one value of one row."""
    stream = a_busy_stream(9, runs=12, junk=False)
    rebuilt = Rebuilt(tmp_path / "ledger.duckdb")
    before = rebuilt.digest(stream, stream.last_seq)
    for table, column in (
        ("events", "seq"), ("runs", "output_tokens"), ("plans", "token_budget"), ("steps", "place"),
        ("ended_attempts", "attempt"), ("approvals", "place"), ("artifacts", "size_bytes"), ("llm_calls", "seq"),
    ):  # fmt: skip
        rebuilt.store._writer.execute(
            f"update {table} set {column} = {column} + 1 where rowid = (select min(rowid) from {table})"
        )
        after = rebuilt.store.digest()
        assert after[table] != before[table], table
    assert {name for name in before if after[name] == before[name]} == {"ticked"}  # there are none in this stream
    rebuilt.store.close()

"""The file itself: where it may lie, and how its rows lie in it."""

from pathlib import Path

import duckdb
import pytest

from services.registry import store as store_module
from services.registry.fold import Fold
from services.registry.store import ROW_GROUP_ROWS, Store
from shared.errors import RemitError
from tests.controls import Stream


def test_a_file_may_lie_anywhere(tmp_path: Path) -> None:
    """Its place is a word of the statement that attaches it."""
    path = tmp_path / "Ann's ledgers; detach x" / "a 'ledger'.duckdb"
    made = Store(path)
    made.begin("EVENTS", "2026")
    made.close()
    again = Store(path)
    assert again.position() == ("2026", 0)
    again.close()
    assert [one.name for one in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize("name", ["sqlite:x", "https:x", ":memory:", "~", "x.duckdb"])
def test_a_name_is_a_file_s_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Other places begin like that: their extensions would be fetched from the network, or nothing would be kept."""
    monkeypatch.chdir(tmp_path)
    Store(Path(name)).close()
    assert [one.name for one in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize("name", ["is it?", "a\\b"])
def test_a_folder_that_the_engine_takes_for_another_is_refused(tmp_path: Path, name: str) -> None:
    """It would have a log without a file, or a file in the folder `a`."""
    with pytest.raises(RemitError, match="choose another folder"):
        Store(tmp_path / name / "x.duckdb")


def test_what_does_not_fit_into_memory_goes_beside_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And not to where somebody has started Remit, which may be read-only."""
    started, kept = tmp_path / "started", tmp_path / "kept"
    started.mkdir()
    monkeypatch.chdir(started)
    monkeypatch.setattr(store_module, "MEMORY", "60MB")
    made = Store(kept / "it's a ledger.duckdb")
    query = "select count(*) as numbers from (select distinct i * 7 from range(8000000) t(i))"
    assert made.select(query, rows_max=1, time_s=30)[1] == [{"numbers": 8_000_000}]
    assert (kept / "it's a ledger.duckdb.tmp").is_dir() and not list(started.iterdir())
    made.close()
    assert [one.name for one in kept.iterdir()] == ["it's a ledger.duckdb"]


def test_row_groups_are_small_also_of_a_file_that_is_opened_again(tmp_path: Path) -> None:
    """How long a checkpoint takes follows from it, and nothing in the file keeps it for the next one who opens it."""
    path = tmp_path / "ledger.duckdb"
    stream, fold = Stream(), Fold()
    for _ in range(2):
        made = Store(path)
        for _ in range(ROW_GROUP_ROWS + 1):
            stream.put("goal.submitted", b'{"tasks": ["noop"]}')
            fold.add(*stream.messages[-1])
        made.write(fold.take())
        made.close()
    query = "select max(count) from pragma_storage_info('events') where column_name = 'seq'"
    with duckdb.connect(str(path), read_only=True) as file:
        assert file.execute("select count(*) from events").fetchone() == (2 * (ROW_GROUP_ROWS + 1),)
        assert file.execute(query).fetchone() == (ROW_GROUP_ROWS,)


@pytest.mark.parametrize(
    ("goal", "asked"),
    [
        (b'{"playbook": "nightly", "directive": "night"}', (None, None, "night", "nightly", None)),
        (b'{"retry_of": 7}', (None, None, None, None, 7)),
        (b'{"goal": "check", "tasks": ["noop"]}', ("check", ["noop"], None, None, None)),
        (b'{"playbook": 7}', (None, None, None, None, None)),
        (b"\xff", (None, None, None, None, None)),
    ],
)
def test_a_run_that_was_never_planned_shows_what_was_asked(tmp_path: Path, goal: bytes, asked: tuple[object]) -> None:
    made, stream, fold = Store(tmp_path / "ledger.duckdb"), Stream(), Fold()
    stream.put("goal.submitted", goal)
    stream.put("goal.rejected.1", b'{"reason": "there is none"}')
    for message in stream.messages:
        fold.add(*message)
    made.write(fold.take())
    [row] = made.ask("run", {"run": 1})
    made.close()
    assert row["status"] == "rejected"
    assert tuple(row[name] for name in ("goal", "tasks", "directive", "playbook", "retry_of")) == asked

"""An archive in a bucket: the same days, the same check, the same tables. The server is moto's, over real HTTP."""

import asyncio
import os
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from services.registry.fold import Fold
from services.registry.rebuild import rebuild
from services.registry.store import Store
from shared.archive import parquet
from shared.archive.places import PART_BYTES, place
from shared.archive.store import Archive
from shared.errors import AlreadySaid, Malformed, NotFound, Unavailable
from shared.proof.keys import signer
from shared.streams import standing
from shared.subjects import EVENTS
from tests.archive.built import DAYS, KEY, MARGIN_S, Built
from tests.archive.test_rebuild import nothing
from tests.stack import Stack, free_port, until


@pytest.fixture(scope="module")
def endpoint(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """An S3-compatible server with an empty bucket, `attic`."""
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    with (tmp_path_factory.mktemp("s3") / "moto.log").open("wb") as log:
        server = subprocess.Popen(
            [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)], stdout=log, stderr=log
        )
    try:

        def made() -> bool:
            try:
                with urllib.request.urlopen(urllib.request.Request(f"{url}/attic", method="PUT"), timeout=5) as answer:
                    return bool(answer.status == 200)
            except OSError:
                return False

        until(made, "the bucket is made")
        yield url
    finally:
        server.terminate()
        server.wait()


@pytest.fixture
def bucket(endpoint: str, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> str:
    """A prefix of this test's own, and the environment in which it is found."""
    for name, value in (
        ("AWS_ENDPOINT_URL", endpoint),
        ("AWS_ACCESS_KEY_ID", "test"),
        ("AWS_SECRET_ACCESS_KEY", "test"),
        ("AWS_REGION", "eu-central-1"),
    ):
        monkeypatch.setenv(name, value)
    return f"s3://attic/{request.node.name[:40].replace('[', '-').strip(']')}"


async def test_days_in_a_bucket_are_those_in_a_folder(built: Built, bucket: str) -> None:
    """To the byte; and they are read back from the bucket before they count."""
    in_folder = Archive.at(str(built.archive)).manifests()
    now_ns = DAYS.begin_ns(DAYS.number(in_folder[-1].day) + 1)
    written = await built.write(bucket, now_ns=now_ns)
    assert written.days == in_folder
    archive = Archive.at(bucket)
    assert await asyncio.to_thread(archive.manifests) == in_folder
    assert (await asyncio.to_thread(archive.check, built.keys()))[1] == []
    assert (await built.write(bucket, now_ns=now_ns)).days == []


async def test_two_who_write_a_day_at_once_do_not_spoil_it(
    built: Built, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second looked before the first was done, and its pyarrow packs otherwise: its manifest is refused."""
    await built.write(bucket)
    days = Archive.at(bucket).manifests()
    archiver = built.archiver(bucket)
    monkeypatch.setattr(archiver._archive, "newest", lambda: None)
    monkeypatch.setattr(parquet, "COMPRESSION", "gzip")
    with pytest.raises(AlreadySaid):
        await archiver.write()
    archive = Archive.at(bucket)
    assert archive.manifests() == days
    assert (await asyncio.to_thread(archive.check, built.keys()))[1] == []
    names = [name for name in archive.place.names() if name.endswith(".parquet")]
    assert names == [one.file for one in days]


async def test_the_ledger_is_rebuilt_from_a_bucket(built: Built, bucket: str, tmp_path: Path) -> None:
    await built.write(bucket)
    created, end = await standing(built.bus)
    digests = []
    for name, archive in (("whole", None), ("archived", bucket)):
        if archive:
            assert (await built.archiver(built.archive).let_go(1, margin_s=MARGIN_S)).first_after > 1
        store = Store(tmp_path / f"{name}.duckdb")
        store.begin(EVENTS, created)
        await rebuild(built.bus, store, Fold(), end, nothing, archive)
        digests.append(store.digest())
        store.close()
    assert digests[0] == digests[1]


def test_a_large_file_comes_back_as_it_went(bucket: str, tmp_path: Path) -> None:
    """It goes in parts, and comes in pieces."""
    where = place(bucket)
    content = os.urandom(2 * PART_BYTES + 12_345)
    with where.staged("events/large.parquet") as path:
        path.write_bytes(content)
        where.put("events/large.parquet", path)
    with where.fetched("events/large.parquet") as path:
        assert path.read_bytes() == content
    assert where.names() == ["events/large.parquet"]
    where.delete("events/large.parquet")
    assert where.names() == []


@pytest.mark.parametrize("in_bucket", [True, False])
def test_what_is_created_is_created_once(bucket: str, tmp_path: Path, in_bucket: bool) -> None:
    """Of two who archive at once the second is told."""
    where = place(bucket if in_bucket else str(tmp_path))
    where.create("events/day.json", b"first")
    with pytest.raises(AlreadySaid):
        where.create("events/day.json", b"second")
    assert where.read("events/day.json") == b"first"


@pytest.mark.parametrize("in_bucket", [True, False])
def test_what_is_not_there_is_told_as_that(bucket: str, tmp_path: Path, in_bucket: bool) -> None:
    where = place(bucket if in_bucket else str(tmp_path))
    with pytest.raises(NotFound, match="there is no events/day"):
        where.read("events/day.json")
    with pytest.raises(NotFound), where.fetched("events/day.parquet"):
        pass
    where.delete("events/day.json")
    assert where.names() == []


def test_a_bucket_that_is_not_there_is_told(bucket: str) -> None:
    with pytest.raises(NotFound, match="there is no bucket for s3://nobodys/attic"):
        place("s3://nobodys/attic").names()


@pytest.mark.parametrize("where", ["", " ", "s3://", "s3:///attic", "gs://attic/x"])
def test_what_is_no_place_is_told_before_anybody_is_asked(where: str) -> None:
    with pytest.raises(Malformed, match=r"a folder, or s3://bucket/prefix|names no bucket") as told:
        place(where)
    assert told.value.field == "archive"


def test_a_store_that_is_away_is_told_within_its_patience(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{free_port()}")
    with pytest.raises(Unavailable, match="s3://attic"):
        place(bucket).names()


def test_remit_checks_a_bucket(lived: Stack, bucket: str) -> None:
    """As people run it, by the usual variables; an archive may be carried from one place to another."""
    where = place(bucket)
    for path in (lived.folder / "archive" / "events").iterdir():
        where.create(f"events/{path.name}", path.read_bytes())
    key = signer(lived.folder / KEY).public.hex()
    usual = {name: value for name, value in os.environ.items() if name.startswith("AWS_")}
    argv = [sys.executable, "-m", "cli", "archive", "check", bucket, "--key", key]
    done = subprocess.run(argv, env={**lived.environment, **usual}, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("proven: messages 1 to ")

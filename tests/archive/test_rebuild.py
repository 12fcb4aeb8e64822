"""A stream that has let its head go, and what is made of archive and tail: the same tables, the same verdicts."""

import asyncio
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from click.testing import CliRunner, Result

from cli.__main__ import main
from services.executor.schedules import Schedules
from services.executor.service import Executor
from services.registry.fold import Fold
from services.registry.rebuild import rebuild
from services.registry.store import Store
from shared.append import Appender
from shared.archive.store import Archive
from shared.bus import Bus
from shared.clock import now_ns
from shared.config import Config
from shared.errors import RemitError
from shared.events import read
from shared.ledger import Question
from shared.proof.keys import signer
from shared.pull import Gone, Reader
from shared.schedule import Schedule
from shared.status import EXIT_FAILED, EXIT_NOT_FOUND
from shared.streams import ensure, first_seq, last_seq, standing
from shared.subjects import EVENTS
from tests.archive.built import DAYS, KEY, MARGIN_S, Built, edit, streams
from tests.conftest import until
from tests.registry.conftest import ask, say_runs
from tests.stack import Stack, stack


async def nothing(**_: object) -> None:
    """Nobody waits for a progress here."""


async def folded(bus: Bus, path: Path, archive: Path | None = None) -> dict[str, str]:
    """The digests of tables that were folded from zero."""
    created, end = await standing(bus)
    store = Store(path)
    store.begin(EVENTS, created)
    try:
        await rebuild(bus, store, Fold(), end, nothing, str(archive) if archive else None)
        return store.digest()
    finally:
        store.close()


async def let_go(built: Built, keep_days: int = 1) -> Any:
    return await built.archiver(built.archive).let_go(keep_days, margin_s=MARGIN_S)


@pytest.fixture(scope="module")
def headless(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Stack, dict[str, str]]]:
    """A stack whose stream has let its first days go, and the digests of the tables that were folded from all of it."""

    async def make(remit: Stack) -> dict[str, str]:
        async with Built(remit) as built:
            await streams(built.bus)
            await built.live(3)
            whole = await folded(built.bus, built.folder / "whole.duckdb")
            assert (await built.write()).days
            gone = await let_go(built)
            assert gone.first_after > gone.first_before == 1 and gone.kept_by == ""
            return whole

    with stack(tmp_path_factory.mktemp("headless")) as made:
        yield made, asyncio.run(make(made))


@pytest.fixture
def remit(headless: tuple[Stack, dict[str, str]]) -> Stack:
    return headless[0]


@pytest.fixture
def whole(headless: tuple[Stack, dict[str, str]]) -> dict[str, str]:
    return headless[1]


@pytest.fixture
async def built(remit: Stack):  # type: ignore[no-untyped-def]
    async with Built(remit) as made:
        yield made


def command(remit: Stack, *argv: str) -> Result:
    return CliRunner().invoke(main, argv, env=remit.environment)


# -- the stream ----------------------------------------------------------------------------------------------


async def test_the_stream_holds_what_is_kept_and_has_no_limit_left(built: Built) -> None:
    """What was let go is in the archive; what is not in the archive was not let go."""
    begin = (await first_seq(built.bus))[0]
    newest = Archive.at(str(built.archive)).newest()
    assert newest is not None and 1 < begin <= newest.last_seq + 1
    assert (await built.config())["max_age"] == 0
    before = await last_seq(built.bus)
    await ensure(built.bus)
    assert ((await first_seq(built.bus))[0], await last_seq(built.bus)) == (begin, before)


# -- the ledger ----------------------------------------------------------------------------------------------


async def test_archive_and_tail_give_the_tables_of_the_whole_stream(
    built: Built, whole: dict[str, str], tmp_path: Path
) -> None:
    assert await folded(built.bus, tmp_path / "ledger.duckdb", built.archive) == whole


async def test_without_an_archive_nothing_is_folded_over_the_hole(built: Built, tmp_path: Path) -> None:
    begin = (await first_seq(built.bus))[0]
    with pytest.raises(Gone, match=f"messages 1 to {begin - 1} are not in EVENTS any more.*--archive TO"):
        await folded(built.bus, tmp_path / "ledger.duckdb")


async def test_the_archive_of_another_stream_is_not_folded(built: Built, tmp_path: Path) -> None:
    manifest = Archive.at(str(built.archive)).manifests()[0]
    other = tmp_path / "archive" / "events"
    other.mkdir(parents=True)
    text = (built.archive / "events" / f"{manifest.day}.json").read_text()
    (other / f"{manifest.day}.json").write_text(text.replace(manifest.stream, "2026-01-01T00:00:00Z"))
    with pytest.raises(RemitError, match="of another stream"):
        await folded(built.bus, tmp_path / "ledger.duckdb", tmp_path / "archive")


async def test_an_archive_that_lacks_a_day_is_not_folded_over(built: Built, tmp_path: Path) -> None:
    shutil.copytree(built.archive, tmp_path / "archive")
    manifest = Archive.at(str(built.archive)).manifests()[0]
    (tmp_path / "archive" / "events" / f"{manifest.day}.json").unlink()
    with pytest.raises(RemitError, match="has no messages 1 to"):
        await folded(built.bus, tmp_path / "ledger.duckdb", tmp_path / "archive")


async def test_the_registry_begins_with_the_archive(remit: Stack, built: Built, whole: dict[str, str]) -> None:
    """And says so, names the gap and ends where it has none; what it rebuilds and looks back on is the same."""
    remit.start("registry")
    assert await asyncio.to_thread(remit.processes["registry"].wait, 30) == 1
    remit.processes.pop("registry")
    assert "are not in EVENTS any more" in remit.log("registry") and "--archive TO" in remit.log("registry")
    remit.start("registry", REMIT_ARCHIVE=str(built.archive))
    try:
        end = await last_seq(built.bus)
        digests = (await ask(built.bus, "status", Question(min_seq=end))).position
        assert digests == end
        assert (await ask(built.bus, "digest")).more == whole
        rebuilt = await asyncio.to_thread(command, remit, "rebuild", "-o", "json")
        told = json.loads(rebuilt.stdout)
        assert (told["identical"], told["after"]) == (True, whole)
        looked = await ask(built.bus, "sql", Question(sql="select max(seq) as newest from events", as_of="5"))
        assert looked.error is None and looked.rows == [{"newest": 5}], looked
    finally:
        await asyncio.to_thread(remit.stop, "registry")
        (remit.folder / "ledger.duckdb").unlink()


def test_remit_rebuild_reads_the_archive(remit: Stack, whole: dict[str, str], tmp_path: Path) -> None:
    where = ("rebuild", "--data-dir", str(tmp_path), "-o", "json")
    bare = remit.remit(*where)
    assert bare.returncode == EXIT_FAILED and "are not in EVENTS any more" in bare.stderr, bare.stderr
    assert list(tmp_path.iterdir()) == []
    done = remit.remit(*where, "--archive", str(remit.folder / "archive"))
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["after"] == whole


# -- the audit and the proof ---------------------------------------------------------------------------------


def test_the_audit_reads_archive_and_tail(remit: Stack) -> None:
    bare = command(remit, "audit", "--all", "--no-artifacts")
    assert bare.exit_code == EXIT_FAILED and "--archive TO" in bare.stderr
    done = command(remit, "audit", "--all", "--no-artifacts", "-o", "json", "--archive", str(remit.folder / "archive"))
    told = json.loads(done.stdout)
    assert told["events"] == told["last_seq"]
    assert not [finding for finding in told["findings"] if finding["rule"] == "sequence"]


def test_the_proof_reads_archive_and_tail(remit: Stack, tmp_path: Path) -> None:
    key = signer_pem(remit, tmp_path)
    assert command(remit, "proof", "check", "--key", key).exit_code == EXIT_FAILED
    done = command(remit, "proof", "check", "--key", key, "--archive", str(remit.folder / "archive"))
    assert done.exit_code == 0, done.output


def signer_pem(remit: Stack, folder: Path) -> str:
    path = folder / "sealer.pem"
    path.write_text(command(remit, "proof", "key", "--data-dir", str(remit.folder / KEY)).stdout)
    return str(path)


def test_a_run_that_is_gone_is_said_to_be(remit: Stack) -> None:
    for verb in ("replay", "audit"):
        done = command(remit, verb, "1")
        assert done.exit_code == EXIT_NOT_FOUND and "is in the archive" in done.stderr, done.output


def test_a_run_that_is_gone_is_told_audited_and_proven_from_the_archive(remit: Stack, tmp_path: Path) -> None:
    where = ("--archive", str(remit.folder / "archive"))
    goals = [row for row in Archive.at(where[1]).rows(1, 12) if row[0] == "goal.submitted"]
    run = str(goals[0][1])
    replayed = command(remit, "replay", run, "-o", "json", *where)
    assert replayed.exit_code == 0, (replayed.output, replayed.exception)
    told = json.loads(replayed.stdout)
    assert (told["events"][0]["subject"], told["events"][-1]["run_after"]) == ("goal.submitted", "succeeded")
    audited = command(remit, "audit", run, "--no-artifacts", "-o", "json", *where)
    assert json.loads(audited.stdout)["events"] == len(told["events"])
    bundle = str(tmp_path / "run.json")
    exported = command(remit, "proof", "export", run, "--to", bundle, *where)
    assert exported.exit_code == 0, exported.output
    verified = command(remit, "proof", "verify", bundle, "--key", signer_pem(remit, tmp_path))
    assert verified.stdout.startswith(f"proven: every event of run {run} from its goal to its end"), verified.output


# -- those who go on -----------------------------------------------------------------------------------------


async def test_a_sealer_that_knows_where_it_was_goes_on(built: Built) -> None:
    sealer = await built.seal()
    await say_runs(built.appender, 1)
    await built.sealed()
    await sealer.stop()


async def test_a_sealer_that_has_lost_its_state_goes_on_from_the_archive(built: Built, remit: Stack) -> None:
    """Its seals are those of the whole stream; without the archive it names the gap."""
    (built.folder / KEY / "sealer.json").unlink()
    with pytest.raises(Gone, match="--archive TO"):
        await built.seal()
    sealer = await built.seal(archive=str(built.archive))
    await say_runs(built.appender, 1)
    await built.sealed()
    await sealer.stop()
    key = signer_pem(remit, built.folder)
    done = await asyncio.to_thread(
        command, remit, "proof", "check", "--key", key, "--archive", str(remit.folder / "archive")
    )
    assert done.exit_code == 0, done.output


async def test_a_sealer_believes_an_archive_only_by_its_own_seals(built: Built) -> None:
    with pytest.raises(RemitError, match="not proven by this sealer's own seals"):
        await built.seal("another", archive=str(built.archive))
    trusted = [signer(built.folder / KEY).public]
    heir = await built.seal("another", archive=str(built.archive), trusted=trusted)
    await say_runs(built.appender, 1)
    await built.sealed()
    await heir.stop()


@pytest.mark.parametrize("what", ["open", "planned", "hashes", "lost day"])
async def test_a_sealer_believes_nothing_that_no_seal_proves(built: Built, tmp_path: Path, what: str) -> None:
    """What a manifest says of the tree and of the runs behind its day: all of it is made anew of the messages."""
    archive = tmp_path / "archive"
    shutil.copytree(built.archive, archive)
    days = Archive.at(str(archive)).manifests()
    after = msgspec.to_builtins(days[-1].after)
    if what == "lost day":
        (archive / "events" / f"{days[0].day}.json").unlink()
    else:
        other = {"open": {"1": 9}, "planned": ["9"], "hashes": after["hashes"][1:]}
        edit(archive, days[-1].day, after={**after, what: other[what]})
    with pytest.raises(RemitError, match="not proven by this sealer's own seals"):
        await built.seal(f"heir-{what}", archive=str(archive), trusted=[signer(built.folder / KEY).public])


async def test_the_engine_goes_on_without_the_head(remit: Stack, built: Built) -> None:
    """No snapshot, no archive: what is active begins behind what was let go."""
    begin = (await first_seq(built.bus))[0]
    for service in ("planner", "executor"):
        remit.start(service)
    try:
        run = json.loads(
            (await asyncio.to_thread(remit.remit, "submit", "--task", "noop", "--wait", "-o", "json")).stdout
        )
        assert run["status"] == "succeeded"
        assert f"the stream begins with message {begin}" in remit.log("executor")
    finally:
        for service in ("executor", "planner"):
            await asyncio.to_thread(remit.stop, service)


async def test_a_snapshot_from_before_the_head_is_not_believed(built: Built) -> None:
    """How its runs have ended is among what was let go: they must not be taken up again."""
    executor = Executor(built.bus, built.appender, Config(built.bus))
    executor.engine.apply(read("goal.submitted", 4, 1, b'{"tasks":["noop"]}'))
    executor._pass_over(5, 10**18)
    assert list(executor.engine.runs) == [4], "it has read all that was let go"
    executor._pass_over(9, 10**18)
    assert (list(executor.engine.runs), executor.engine.position) == ([], 8)
    assert executor.engine.schedules.floor_s == 10**9


async def test_a_reader_that_needs_every_message_stops_where_they_were_let_go_before_it(tmp_path: Path) -> None:
    """One that is behind, and whose next message goes away meanwhile, must not go on with the one after it."""
    with stack(tmp_path) as made:
        async with Built(made) as own:
            await streams(own.bus)
            await own.live(3)
            await own.write()
            gate = asyncio.Event()
            seen: list[int] = []

            async def slow(_subject: str, seq: int, _at_ns: int, _data: bytes) -> None:
                seen.append(seq)
                await gate.wait()

            reader = await Reader(own.bus, EVENTS, slow, batch=2, whole=True).start()
            await until(lambda: seen == [1])
            await let_go(own)
            gate.set()
            with pytest.raises(Gone):
                await asyncio.wait_for(reader.failed(), 20)
            assert seen == list(range(1, len(seen) + 1))
            await reader.stop()


def test_a_schedules_ticks_from_before_the_stream_begins_are_not_decided_again() -> None:
    """The newest tick of a monthly schedule may be gone, and with it the word that it was decided."""
    monthly = Schedule(name="monthly", cron="0 2 1 * *", goal={"tasks": ["noop"]}, since="2026-01-01T00:00:00Z")
    now_s = DAYS.day_of(now_ns()) * DAYS.day_s
    bare, told = Schedules(), Schedules()
    told.floor_s = now_s
    assert bare.decide({"monthly": monthly}, now_s, 9) != []
    assert told.decide({"monthly": monthly}, now_s, 9) == []


async def test_a_fact_of_a_run_that_was_let_go_may_be_said_again_and_counts_for_nothing(
    built: Built, tmp_path: Path
) -> None:
    """Its create-only subject is free again: what a zombie says there is a row with a note, and changes no other."""
    before = await folded(built.bus, tmp_path / "before.duckdb", built.archive)
    appender = await Appender(built.bus).start()
    seq = await appender.append("run.started.1", b"{}")
    appender.stop()
    assert seq == await last_seq(built.bus)
    after = await folded(built.bus, tmp_path / "after.duckdb", built.archive)
    assert {table for table in after if after[table] != before[table]} == {"events"}

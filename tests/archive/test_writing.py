"""Days are written whole, proven before they count, once, and as the stream has them."""

import asyncio
import hashlib
import json
import os
import random
import shutil
import signal
import sys
from pathlib import Path

import pytest
from msgspec.structs import replace

from cli.archiving import Mismatch
from cli.reading import read_range
from shared.archive import parquet
from shared.archive.days import Calendar, Row, day_behind
from shared.archive.store import Archive
from shared.bus import connect
from shared.clock import rfc3339
from shared.errors import RemitError
from shared.events import encode
from shared.proof.keys import signer
from shared.proof.sealing import Sealing, signed_bytes
from shared.streams import last_seq, standing
from shared.subjects import audit_sealed
from tests.archive.built import DAYS, KEY, Built, manifest_of, streams
from tests.conftest import until
from tests.registry.conftest import say_runs
from tests.stack import ROOT, Stack


async def of_stream(built: Built, first: int, last: int) -> list[Row]:
    rows: list[Row] = []
    await read_range(built.bus, first, last, rows.append)
    return rows


async def test_the_files_hold_the_streams_messages_in_its_order(built: Built) -> None:
    """Headers, too: nearly every fact was appended create-only; some messages have an empty block, and some none."""
    archive = Archive.at(str(built.archive))
    manifests = archive.manifests()
    assert [one.first_seq for one in manifests] == [1, *(one.last_seq + 1 for one in manifests[:-1])]
    last = manifests[-1].last_seq
    rows = list(archive.rows(1, last))
    assert rows == await of_stream(built, 1, last)
    first = b"NATS/1.0\r\n"
    assert {row[4] for row in rows} == {
        None,
        first + b"\r\n",
        first + b"Nats-Expected-Last-Subject-Sequence: 0\r\n\r\n",
    }
    for manifest in manifests:
        days = {
            DAYS.name(DAYS.day_of(at_ns))
            for _, seq, at_ns, *_ in rows
            if manifest.first_seq <= seq <= manifest.last_seq
        }
        assert days == {manifest.day}


async def test_a_file_says_of_itself_what_it_holds(built: Built) -> None:
    manifest = Archive.at(str(built.archive)).manifests()[1]
    told = parquet.told(built.archive / manifest.file)
    rows = list(parquet.rows(built.archive / manifest.file))
    assert told["first_at"] == rfc3339(rows[0][2]) and told["last_at"] == rfc3339(rows[-1][2])
    assert (told["first_seq"], told["last_seq"]) == (str(rows[0][1]), str(rows[-1][1]))
    assert told["stream"] == (await standing(built.bus))[0]


async def test_part_of_a_range_is_read_from_the_days_that_have_it(built: Built) -> None:
    archive = Archive.at(str(built.archive))
    first, second = archive.manifests()[:2]
    wanted = list(range(first.last_seq - 2, second.first_seq + 3))
    assert [row[1] for row in archive.rows(wanted[0], wanted[-1])] == wanted
    with pytest.raises(RemitError, match="has no messages"):
        list(archive.rows(1, 100_000))


async def test_what_is_archived_is_not_written_again(built: Built) -> None:
    """Even when a day has gone by meanwhile: the next run begins where the last one ended."""
    before = {path: path.stat().st_mtime_ns for path in built.archive.rglob("*.*") if path.is_file()}
    await built.write()
    assert {path: path.stat().st_mtime_ns for path in before} == before


async def test_the_day_that_is_not_over_is_not_written(own: Built) -> None:
    await own.live(1)
    written = await own.write(calendar=Calendar())
    assert written.days == [] and written.waits == ""


async def test_a_stamp_that_has_not_come_yet_is_told(built: Built, tmp_path: Path) -> None:
    """The server's clock was ahead, or ours is behind: nothing is archived, and nobody wonders why."""
    first = Archive.at(str(built.archive)).manifests()[0]
    written = await built.write(tmp_path, now_ns=DAYS.begin_ns(DAYS.number(first.day) - 3))
    assert written.days == []
    assert written.waits == f"message 1 is stamped {first.day}, which has not come yet"


async def test_a_day_waits_for_the_seal_behind_its_last_message(own: Built) -> None:
    await say_runs(own.appender, 2)
    today = DAYS.day_of((await own.bus.stored("EVENTS", 1) or ("", 0, b""))[1])
    await own.past(today)
    written = await own.write()
    assert written.days == [] and not written.is_still
    assert "no seal covers more than 0" in written.waits
    assert list(own.archive.rglob("*.parquet")) == []
    sealer = await own.seal()
    await own.sealed()
    await sealer.stop()
    again = await own.write()
    assert [one.first_seq for one in again.days][:1] == [1]


async def test_nothing_but_seals_behind_the_last_seal_is_stillness(own: Built) -> None:
    """The sealer does not seal its own seals: on a quiet day the next event is waited for, and nothing is wrong."""
    await own.live(0)
    end = await last_seq(own.bus)
    stamp = (await own.bus.stored("EVENTS", end) or ("", 0, b""))[1]
    await own.past(DAYS.day_of(stamp))
    written = await own.write()
    assert written.is_still and written.waits


async def test_a_stream_that_is_not_what_was_sealed_is_not_archived(own: Built) -> None:
    """A seal of the sealer's own key over other messages: as if somebody had changed them behind it."""
    await own.live(2)
    end = await last_seq(own.bus)
    rows = await of_stream(own, 1, end)
    key = signer(own.folder / KEY)
    forged = Sealing()
    for subject, seq, at_ns, data, _ in rows[:9]:
        forged.add(subject, seq, at_ns, data if seq != 7 else data + b" ")
    seal = forged.seal(0, (await standing(own.bus))[0], rfc3339(rows[8][2]), key.name)
    seal = replace(seal, signature=key.sign(signed_bytes(seal)).hex())
    with pytest.raises(Mismatch) as found:
        await own.write(kept=[seal])
    (flaw,) = found.value.flaws
    assert flaw.what == "changed" and flaw.first <= 7 <= flaw.last <= 9
    assert [path for path in own.archive.rglob("*") if path.suffix in (".parquet", ".json")] == []


async def test_seals_of_others_do_not_count(own: Built) -> None:
    """Anybody may say a seal; one that is wrong must not stop the archive for ever."""
    stranger = signer(own.folder / "stranger")
    await say_runs(own.appender, 1)
    wrong = Sealing()
    wrong.add("goal.submitted", 1, 1, b"{}")
    seal = wrong.seal(0, (await standing(own.bus))[0], rfc3339(1), stranger.name)
    await own.appender.append(audit_sealed(1), encode(replace(seal, signature=stranger.sign(signed_bytes(seal)).hex())))
    ours = replace(seal, size=2, key=signer(own.folder / KEY).name, signature="00" * 64)
    await own.appender.append(audit_sealed(2), encode(ours))
    await own.live(1)
    written = await own.write()
    assert written.not_ours == 2
    assert written.days[0].first_seq == 1
    assert (await asyncio.to_thread(Archive.at(str(own.archive)).check, own.keys()))[1] == []


async def test_the_archive_of_another_stream_is_refused(built: Built, own: Built) -> None:
    await own.live(1)
    with pytest.raises(RemitError, match="archive of another stream"):
        await own.write(built.archive)


async def test_a_stream_without_its_first_messages_begins_no_archive(own: Built) -> None:
    await own.live(1)
    config = await own.config()
    await own.bus.api("STREAM.UPDATE.EVENTS", {**config, "max_age": 1_000_000_000})

    async def gone() -> bool:
        return int((await own.bus.api("STREAM.INFO.EVENTS"))["state"]["first_seq"]) > 1

    await until(gone)
    with pytest.raises(RemitError, match=r"neither in the stream nor in .*is empty"):
        await own.write()


def test_a_clock_that_is_set_back_opens_no_archived_day_again() -> None:
    calendar = Calendar()
    noon_ns = calendar.begin_ns(20_000) + calendar.day_s * 500_000_000
    newest = manifest_of(calendar.name(20_000))
    assert day_behind(calendar, None, noon_ns) == 20_000
    assert day_behind(calendar, newest, noon_ns) == 20_001
    assert day_behind(calendar, newest, noon_ns + 5 * 86_400 * 10**9) == 20_005
    assert calendar.number(calendar.name(20_000)) == 20_000


# -- as people run it ----------------------------------------------------------------------------------------


def test_the_command_archives_whole_days_of_utc(lived: Stack, tmp_path: Path) -> None:
    """None of the stream's is over (or one, at midnight); and the stream is not asked to drop anything."""
    key = signer(lived.folder / KEY).public.hex()
    for argv in (("archive", str(tmp_path / "a")), ("archive", "write", str(tmp_path / "b"), "--until", "2026-01-01")):
        done = lived.remit(*argv, "--key", key, "-o", "json")
        assert done.returncode == 0, done.stderr
        told = json.loads(done.stdout)
        assert (told["flaws"], told["let_go"]) == ([], None)
    assert told["days"] == []
    kept = lived.remit("archive", str(tmp_path / "c"), "--key", key, "--keep-days", "30", "-o", "json")
    assert json.loads(kept.stdout)["let_go"] == {"first_before": 1, "first_after": 1, "day": "", "kept_by": ""}
    assert lived.remit("archive", str(tmp_path / "c"), "--key", key, "--keep-days", "6").returncode == 2
    keyless = lived.remit("archive", str(tmp_path / "a"))
    assert keyless.returncode == 6 and "--key" in keyless.stderr


# -- killed in the middle ------------------------------------------------------------------------------------

SCRIPT = """
import asyncio, sys
from pathlib import Path
from shared.bus import connect
from tests.archive.built import Built
from tests.stack import Stack

async def go():
    built = Built.__new__(Built)
    built.folder = Path(sys.argv[1])
    built.bus = await connect(sys.argv[2], "archiver")
    archiver = built.archiver(sys.argv[3], now_ns=int(sys.argv[4]), tell=lambda text: print(text, flush=True))
    with archiver._archive.place.held():
        await archiver.write()

asyncio.run(go())
"""


def digests(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted((folder / "events").iterdir())}


async def test_a_run_that_is_killed_is_finished_by_the_next(built: Built, lived: Stack, tmp_path: Path) -> None:
    """Whenever it is killed, no day counts that is not whole; and in the end each file is the same, to the byte."""
    whole = digests(built.archive)
    newest = Archive.at(str(built.archive)).newest()
    assert newest is not None
    now = DAYS.begin_ns(DAYS.number(newest.day) + 1)
    chance, to = random.Random(4), tmp_path / "killed"
    argv = [sys.executable, "-c", SCRIPT, str(built.folder), lived.url, str(to), str(now)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    killed = 0
    for _ in range(6):
        process = await asyncio.create_subprocess_exec(*argv, env=environment)
        counted = len(list(to.glob("events/*.json")))

        def is_at_work(process: asyncio.subprocess.Process = process, counted: int = counted) -> bool:
            return process.returncode is not None or any(to.glob(".part/*")) or len(list(to.glob("events/*"))) > counted

        await until(is_at_work)
        await asyncio.sleep(chance.random() * 0.03)  # somewhere in its work
        if process.returncode is None:
            process.send_signal(signal.SIGKILL)
        killed += await process.wait() == -signal.SIGKILL
        _, flaws = await asyncio.to_thread(Archive.at(str(to), make=True).check, built.keys())
        assert flaws == []
    process = await asyncio.create_subprocess_exec(*argv, env=environment)
    assert await process.wait() == 0
    assert killed >= 2
    assert digests(to) == whole
    assert not list(to.glob(".part/*"))


async def test_two_at_once_do_not_write_to_one_folder(built: Built, tmp_path: Path) -> None:
    first, second = Archive.at(str(tmp_path)), Archive.at(str(tmp_path))
    with first.place.held(), pytest.raises(RemitError, match="another `remit archive`"), second.place.held():
        pass


async def test_the_stream_made_anew_is_another_one(remit: Stack) -> None:
    """Sequences of the new one mean other events."""
    async with Built(remit) as old:
        await streams(old.bus)
        await old.live(1)
        assert (await old.write()).days
    remit.kill("nats")
    shutil.rmtree(remit.folder / "jetstream")
    remit.start_nats()
    bus = await connect(remit.url, "test")
    await streams(bus)
    await bus.close()
    async with Built(remit) as new:
        with pytest.raises(RemitError, match="another stream"):
            await new.write()

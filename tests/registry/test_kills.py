"""The registry is killed, and its disk fails: no row is lost, none is there twice, and the stream folds to the same."""

import asyncio
import json
import random
import resource
import shutil
import time
from pathlib import Path

import duckdb
import pytest

from shared.append import Appender
from shared.bus import Bus, connect
from shared.ledger import Question
from shared.streams import ensure, standing
from tests.chaos.load import seed
from tests.conftest import until
from tests.registry.conftest import EVENTS_A_RUN, LEDGER, ask, last_seq, rows, say_runs
from tests.stack import Stack

KILLS = 4
RUNS = 1_000


def check_rows(folder: Path, last: int) -> None:
    """The tables hold each event once, and what follows from them once."""
    assert rows(folder, "select count(*), count(distinct seq), min(seq), max(seq) from events") == [
        (last, last, 1, last)
    ]
    assert rows(folder, "select seq from folded") == [(last,)]
    assert rows(folder, "select count(*) - count(distinct run) from runs") == [(0,)]
    assert rows(folder, "select count(*) - count(distinct (run, step)) from steps") == [(0,)]
    goals = rows(folder, "select count(*) from events where kind = 'goal.submitted'")
    assert rows(folder, "select count(*) from runs") == goals


async def wait_s(length_s: float) -> None:
    began = time.monotonic()
    await until(lambda: time.monotonic() > began + length_s)


async def test_kills_in_the_middle_of_batches_lose_and_double_no_row(
    remit: Stack, bus: Bus, appender: Appender
) -> None:
    """Killed at any moment of its catching up and following, it ends with what one that never died would have."""
    chance = random.Random(seed())
    filling = asyncio.create_task(say_runs(appender, RUNS, leave_open=0.1, chance=chance))
    for _ in range(KILLS):
        started = remit.log("registry").count("folding from") if "registry.log" in _names(remit) else 0
        remit.start("registry")
        await until(lambda seen=started: remit.log("registry").count("folding from") > seen)  # type: ignore[misc]
        await wait_s(chance.uniform(0.0, 0.8))
        remit.kill("registry")
    await filling
    last = await last_seq(bus)
    remit.start("registry")
    answer = await ask(bus, "digest", Question(min_seq=last))
    assert answer.error is None, answer.error
    assert remit.stop("registry") == 0
    check_rows(remit.folder, last)
    done = await asyncio.to_thread(remit.remit, "rebuild", "-o", "json")  # offline: no registry runs
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["before"] == json.loads(done.stdout)["after"] == answer.more


def _names(stack: Stack) -> set[str]:
    return {path.name for path in stack.folder.iterdir()}


async def test_the_file_of_another_stream_is_put_aside(remit: Stack, bus: Bus, appender: Appender) -> None:
    """A NATS that was set up anew: its events are not mixed with those of the old one, and the old file is kept."""
    await say_runs(appender, 30)
    remit.start("registry")
    await ask(bus, "digest", Question(min_seq=30 * EVENTS_A_RUN))
    remit.stop("registry")
    await bus.close()
    remit.stop("nats")
    shutil.rmtree(remit.folder / "jetstream")
    remit.start_nats()
    fresh = await connect(remit.url, "fresh")
    await ensure(fresh)
    await say_runs(await Appender(fresh).start(), 50)
    remit.start("registry")
    assert (await ask(fresh, "digest", Question(min_seq=50 * EVENTS_A_RUN))).error is None
    remit.stop("registry")
    await fresh.close()
    check_rows(remit.folder, 50 * EVENTS_A_RUN)
    aside = [path for path in remit.folder.iterdir() if path.name.startswith(LEDGER) and path.name.endswith(".old")]
    assert len(aside) == 1
    aside[0].rename(remit.folder / LEDGER)
    check_rows(remit.folder, 30 * EVENTS_A_RUN)


OLD_SHAPE = """
create table folded (stream varchar not null, created varchar not null, seq ubigint not null);
insert into folded values ('EVENTS', '{created}', 5);
create table events (seq ubigint not null, subject varchar not null);
create table runs (run ubigint not null, status varchar not null);
"""


async def test_a_file_of_another_shape_is_put_aside_and_folded_again(
    remit: Stack, bus: Bus, appender: Appender
) -> None:
    """The tables of an older Remit: no row could be written into them, so they are kept and new ones are made."""
    await say_runs(appender, 10)
    last = await last_seq(bus)
    with duckdb.connect(str(remit.folder / LEDGER)) as old:
        old.execute(OLD_SHAPE.format(created=(await standing(bus))[0]))
    remit.start("registry")
    answer = await ask(bus, "digest", Question(min_seq=last))
    assert answer.error is None, answer.error
    assert remit.stop("registry") == 0
    check_rows(remit.folder, last)
    [aside] = [path for path in remit.folder.iterdir() if path.name.endswith(".old")]
    aside.rename(remit.folder / LEDGER)
    assert rows(remit.folder, "select seq from folded") == [(5,)]
    rebuilt = await asyncio.to_thread(remit.remit, "rebuild", "-o", "json")  # offline, over the old shape
    assert rebuilt.returncode == 0, rebuilt.stderr
    told = json.loads(rebuilt.stdout)
    assert (told["before"], told["after"]) == (None, answer.more)
    remit.start("registry")
    assert (await ask(bus, "digest", Question(min_seq=last))).more == answer.more
    assert len([path for path in remit.folder.iterdir() if path.name.endswith(".old")]) == 0


async def test_a_disk_that_takes_no_more_ends_the_process(remit: Stack, bus: Bus, appender: Appender) -> None:
    """It ends with an error for its keeper to see; with room again it goes on where it was."""
    await say_runs(appender, 10)
    remit.start("registry")
    await ask(bus, "digest", Question(min_seq=10 * EVENTS_A_RUN))
    process = remit.processes["registry"]
    resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (1, resource.RLIM_INFINITY))
    await say_runs(appender, 10)
    await until(lambda: process.poll() is not None, within_s=15)
    assert process.returncode not in (0, None)
    remit.processes.pop("registry")
    remit.start("registry")
    assert (await ask(bus, "digest", Question(min_seq=20 * EVENTS_A_RUN))).error is None
    remit.stop("registry")
    check_rows(remit.folder, 20 * EVENTS_A_RUN)


async def test_a_disk_that_is_full_for_a_moment_leaves_no_hole(remit: Stack, bus: Bus, appender: Appender) -> None:
    """The batch that a question wanted written fails; what it held must still come into the tables."""
    await say_runs(appender, 10)
    remit.start("registry")
    await ask(bus, "digest", Question(min_seq=10 * EVENTS_A_RUN))
    process = remit.processes["registry"]
    resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (1, resource.RLIM_INFINITY))
    await say_runs(appender, 10)
    refused = await bus.request("registry.status", json.dumps({"min_seq": 20 * EVENTS_A_RUN}).encode(), timeout_s=10)
    if process.poll() is None:
        resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    assert b'"error":null' not in refused
    await say_runs(appender, 10)
    await wait_s(1.5)
    if process.poll() is not None:  # it ended, as it may: its keeper starts it again
        remit.processes.pop("registry")
        remit.start("registry")
    assert (await ask(bus, "digest", Question(min_seq=30 * EVENTS_A_RUN))).error is None
    remit.stop("registry")
    check_rows(remit.folder, 30 * EVENTS_A_RUN)


@pytest.mark.parametrize("content", [b"", b"no ledger" * 1_000], ids=["empty", "garbage"])
async def test_a_damaged_ledger_is_kept_beside_and_folded_anew(
    remit: Stack, bus: Bus, appender: Appender, content: bytes
) -> None:
    """A disk that was full as the file was made leaves such a one; the stream has all that was in it."""
    await say_runs(appender, 3)
    ledger = remit.folder / LEDGER
    ledger.write_bytes(content)
    rebuilt = remit.remit("rebuild", "-o", "json")
    assert rebuilt.returncode == 0, rebuilt.stderr
    for aside in remit.folder.glob(f"{LEDGER}.*.damaged"):
        assert aside.read_bytes() == content
        aside.unlink()
    ledger.write_bytes(content)
    remit.start("registry")
    answer = await ask(bus, "digest", Question(min_seq=await last_seq(bus)))
    assert answer.more == json.loads(rebuilt.stdout)["after"]
    [aside] = remit.folder.glob(f"{LEDGER}.*.damaged")
    assert aside.read_bytes() == content

"""`remit bench runs`: Remit beside the NATS floor, in one go, through the same server.

Rounds of floor and Remit alternate, so that a noisy neighbour meets both. Every Remit service is a real process, and
every event also lands in DuckDB before the measurement ends.
"""

import asyncio
import contextlib
import sys
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import msgspec

from bench.floor import STREAM, Sizes
from bench.load import Client, measured
from bench.stack import stack
from shared import asking
from shared.append import Appender
from shared.bus import Bus
from shared.ledger import Question
from shared.story import read_story
from shared.streams import last_seq
from shared.subjects import EVENTS, goal_submitted

SERVICES = ("planner", "executor", "registry")
GOAL = b'{"tasks":["noop","noop","noop"]}'
ROUNDS = 2
WARM_S = 1.0
ASK_S = 10.0
LOOK_S = 0.1  # how often the fold is looked at, and how exactly its lag is known


async def run(seconds: float, tell: Callable[[str], None]) -> dict[str, Any]:
    """Measure for about `seconds` each; the figures by name."""
    async with stack(SERVICES, tell) as made:
        bus, appender = made.bus, made.appender
        sizes = await lengths(bus, appender, GOAL)
        async with floor(bus, made.url, sizes):
            return await _measure(bus, appender, sizes, seconds, tell)


@contextlib.asynccontextmanager
async def floor(bus: Bus, url: str, sizes: Sizes) -> AsyncIterator[None]:
    """The floor's stream and its three processes."""
    subjects = ["floorgoal.>", "floorplan.>", "floorstep.>"]
    await bus.api(f"STREAM.CREATE.{STREAM}", {"name": STREAM, "subjects": subjects, "storage": "file"})
    roles: list[asyncio.subprocess.Process] = []
    try:
        for role in ("planner", "executor", "worker"):
            argv = (sys.executable, "-m", "bench.floor", url, role, msgspec.json.encode(sizes).decode())
            roles.append(await asyncio.create_subprocess_exec(*argv))
        yield
    finally:
        for process in roles:
            process.terminate()
            await process.wait()


async def lengths(bus: Bus, appender: Appender, goal: bytes) -> Sizes:
    """Run one goal and see how long Remit's payloads are, so that the floor's are as long."""
    run_id = await appender.append(goal_submitted(), goal, headers=None)
    while not (story := await read_story(bus, run_id)).run.ended:
        await asyncio.sleep(0.05)
    assert story.run.status == "succeeded", story.run.reason
    length = {told.event.kind: len(told.data) for told in story.told}
    return Sizes(length["goal.submitted"], length["plan.created"], length["step.dispatched"], length["step.completed"])


async def _measure(
    bus: Bus, appender: Appender, sizes: Sizes, seconds: float, tell: Callable[[str], None]
) -> dict[str, Any]:
    under = await Client.of_floor(bus, appender, sizes).start(1)
    remit = await Client(bus, appender, EVENTS, goal_submitted(), GOAL, "run.completed.>").start(
        await last_seq(bus) + 1
    )
    tell("warming up")
    warm_s = min(WARM_S, seconds / 4)
    await under.saturated(warm_s)
    await remit.saturated(warm_s)
    floor_rounds, remit_rounds, folded, fold_s, behind_s = [], [], 0, 0.0, 0.0
    for number in range(1, ROUNDS + 1):
        tell(f"round {number} of {ROUNDS}: the floor")
        floor_rounds.append(await under.saturated(seconds / ROUNDS))
        tell(f"round {number} of {ROUNDS}: Remit")
        await _folded(bus, await last_seq(bus))
        before, began_s = await last_seq(bus), time.perf_counter()
        watching = asyncio.create_task(_most_behind_s(bus, seconds / ROUNDS))
        remit_rounds.append(await remit.saturated(seconds / ROUNDS))
        behind_s = max(behind_s, await watching)
        end = await last_seq(bus)
        await _folded(bus, end)
        folded, fold_s = folded + end - before, fold_s + time.perf_counter() - began_s
    tell("one at a time")
    floor_ms, remit_ms = [], []
    for _ in range(4):  # alternating, for the same reason
        floor_ms += await under.alone(50)
        remit_ms += await remit.alone(50)
    a, b = measured(floor_rounds, floor_ms), measured(remit_rounds, remit_ms)
    await under.stop()
    await remit.stop()
    return {
        "floor_runs_s": round(a.runs_s, 1),
        "remit_runs_s": round(b.runs_s, 1),
        "ratio": round(b.runs_s / a.runs_s, 3),
        "floor_p50_ms": round(a.p50_ms, 3),
        "remit_p50_ms": round(b.p50_ms, 3),
        "p50_ratio": round(b.p50_ms / a.p50_ms, 3),
        "floor_p99_ms": round(a.p99_ms, 3),
        "remit_p99_ms": round(b.p99_ms, 3),
        "fold_events_s": round(folded / fold_s, 1),
        "fold_behind_s": round(behind_s, 2),
        "remit_runs": b.runs,
        "floor_runs": a.runs,
        "payload_bytes": msgspec.to_builtins(sizes),
    }


async def _most_behind_s(bus: Bus, seconds: float) -> float:
    """The longest that an event of the stream has waited to be in the tables, during these seconds."""
    most_s, told = 0.0, list[tuple[float, int]]()  # when the stream was seen to end where
    end_s = time.perf_counter() + seconds
    while time.perf_counter() < end_s:
        told.append((time.perf_counter(), await last_seq(bus)))
        position = await _folded(bus)
        told = [(at_s, seq) for at_s, seq in told if seq > position]
        if told:
            most_s = max(most_s, time.perf_counter() - told[0][0])
        await asyncio.sleep(LOOK_S)
    return most_s


async def _folded(bus: Bus, at_least: int = 0) -> int:
    """The event up to which the registry's tables go: as they stand, or when they go so far."""
    return (await asking.ask(bus, "status", Question(min_seq=at_least), timeout_s=ASK_S)).position

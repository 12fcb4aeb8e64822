"""A registry of a test's own over a real stream, which the tests fill as engine and strangers do."""

import random
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import duckdb
import msgspec
import pytest

from shared.append import Appender
from shared.bus import Bus, connect
from shared.errors import Unavailable
from shared.events import encode
from shared.ledger import Answer
from shared.streams import ensure
from shared.subjects import plan_created, run_completed, run_started, step_completed, step_dispatched
from tests import controls
from tests.conftest import until
from tests.stack import Stack, stack

LEDGER = "ledger.duckdb"
EVENTS_A_RUN = 10
RUN_STEPS = ("a", "b", "c")


@pytest.fixture
def remit(tmp_path: Path) -> Iterator[Stack]:
    """NATS alone; each test starts the registry when it wants it."""
    with stack(tmp_path) as made:
        yield made


@pytest.fixture
async def bus(remit: Stack) -> AsyncIterator[Bus]:
    made = await connect(remit.url, "test")
    await ensure(made)
    yield made
    await made.close()


@pytest.fixture
async def appender(bus: Bus) -> AsyncIterator[Appender]:
    made = await Appender(bus).start()
    yield made
    made.stop()


async def say_runs(
    appender: Appender, count: int, *, leave_open: float = 0.0, chance: random.Random | None = None
) -> None:
    """`count` whole runs as an engine says them, a share of them left without their end."""
    goal = b'{"tasks": ["noop", "noop", "noop"], "goal": "fill the tables"}'
    plan = encode(controls.plan(*(controls.step(name) for name in RUN_STEPS)))
    completed = encode(controls.completed())
    for _ in range(count):
        run = await appender.append("goal.submitted", goal, headers={})
        await appender.say(plan_created(run), plan)
        await appender.say(run_started(run), encode(controls.started()))
        for name in RUN_STEPS:
            await appender.say(step_dispatched(run, name, 1, "noop"), encode(controls.dispatched()))
            await appender.say(step_completed(run, name, 1), completed)
        if chance is None or chance.random() >= leave_open:
            await appender.say(
                run_completed(run), encode(controls.run_over(steps=dict.fromkeys(RUN_STEPS, "succeeded")))
            )
    await appender.drain(30)


async def ask(bus: Bus, question: str, body: Any = None, *, timeout_s: float = 10.0) -> Answer:
    """One question to the registry; waits while it is starting."""
    data = body if isinstance(body, bytes) else b"" if body is None else msgspec.json.encode(body)
    found: list[bytes] = []

    async def answered() -> bool:
        try:
            found.append(await bus.request(f"registry.{question}", data, timeout_s=timeout_s))
        except Unavailable:
            return False
        return True

    await until(answered)
    return msgspec.json.decode(found[0], type=Answer)


async def last_seq(bus: Bus) -> int:
    return int((await bus.api("STREAM.INFO.EVENTS"))["state"]["last_seq"])


def rows(folder: Path, sql: str) -> list[tuple[Any, ...]]:
    """What the file says, opened when its registry is gone."""
    with duckdb.connect(str(folder / LEDGER), read_only=True) as file:
        return list(file.execute(sql).fetchall())

"""The planner on a real NATS: a goal that repeats a run waits until that run can be read, and holds up nobody."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from services.planner import service
from services.planner.service import Planner
from shared.append import CREATE_ONLY, Appender
from shared.bus import Bus, connect
from shared.config import Config
from shared.errors import Unavailable
from shared.events import GoalRejected, PlanCreated, encode, read
from shared.run import Run
from shared.streams import ensure
from shared.subjects import EVENTS, goal_rejected, goal_submitted, plan_created, run_completed
from tests import controls
from tests.conftest import until
from tests.stack import stack


@pytest.fixture
async def bus(tmp_path: Path) -> AsyncIterator[Bus]:
    """A NATS with the streams, and a planner in this process."""
    with stack(tmp_path) as made:
        connected = await connect(made.url, "test")
        await ensure(connected)
        planner = Planner(connected, await Appender(connected).start(), await Config(connected).start())
        await planner.start()
        yield connected
        await planner.stop()
        await connected.close()


async def submit(bus: Bus, goal: bytes) -> int:
    return await (await Appender(bus).start()).append(goal_submitted(), goal, headers=None)


async def test_a_run_that_cannot_be_read_now_is_waited_for(bus: Bus, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is said of the goal and it is not acknowledged; the goal behind it is planned; then it is answered."""
    reachable = asyncio.Event()
    tried = []

    async def read_run(_bus: Bus, run: int) -> Run | None:
        tried.append(run)
        if not reachable.is_set():
            raise Unavailable("the stream has no leader")
        return None

    monkeypatch.setattr(service, "read_run", read_run)
    monkeypatch.setattr(service, "RETRY_S", 0.05)
    repeating = await submit(bus, b'{"retry_of": 7}')
    plain = await submit(bus, b'{"tasks": ["noop"]}')
    await until(lambda: bus.last_on(EVENTS, plan_created(plain)))
    await until(lambda: len(tried) > 3)
    assert await bus.last_on(EVENTS, goal_rejected(repeating)) is None
    assert (await bus.api(f"CONSUMER.INFO.{EVENTS}.planner"))["num_ack_pending"] == 1
    reachable.set()
    await until(lambda: bus.last_on(EVENTS, goal_rejected(repeating)))
    found = await bus.last_on(EVENTS, goal_rejected(repeating))
    assert found is not None
    event = read(goal_rejected(repeating), found[0], 1, found[1])
    assert isinstance(event.body, GoalRejected) and event.body.field == "retry_of" and set(tried) == {7}

    async def acked() -> bool:
        return not (await bus.api(f"CONSUMER.INFO.{EVENTS}.planner"))["num_ack_pending"]

    await until(acked)


async def test_a_run_that_is_read_is_planned_again(bus: Bus) -> None:
    """From the stream itself: what the planner said of the first goal and how its run ended."""
    first = await submit(bus, b'{"tasks": ["noop", "fail"]}')
    await until(lambda: bus.last_on(EVENTS, plan_created(first)))
    early = await submit(bus, b'{"retry_of": %d}' % first)
    await until(lambda: bus.last_on(EVENTS, goal_rejected(early)))
    appender = await Appender(bus).start()
    await appender.append(run_completed(first), encode(controls.run_over(status="cancelled")), headers=CREATE_ONLY)
    again = await submit(bus, b'{"retry_of": %d}' % first)
    await until(lambda: bus.last_on(EVENTS, plan_created(again)))
    found = await bus.last_on(EVENTS, plan_created(again))
    assert found is not None
    body = read(plan_created(again), found[0], 1, found[1]).body
    assert isinstance(body, PlanCreated)
    assert body.retry_of == first and [step.id for step in body.steps] == ["noop", "fail"]

"""A task's `max_concurrent` is its queue's, held by the server: set, changed and taken off by an executor at work."""

import json
from collections.abc import AsyncIterator

import msgspec
import pytest

from services.executor import service
from services.executor.service import Executor
from shared.append import Appender
from shared.bus import ApiError, Bus
from shared.config import Config
from shared.events import encode
from shared.streams import PENDING_MAX
from shared.subjects import CONFIG_BUCKET, TIMERS, goal_submitted, plan_created, timer_at
from tests import controls
from tests.conftest import until


@pytest.fixture
async def executor(bus: Bus, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Executor]:
    monkeypatch.setattr(service, "QUEUES_AGAIN_S", 1)  # it looks at every queue anew each second
    appender, config = await Appender(bus).start(), await Config(bus).start()
    made = Executor(bus, appender, config)
    await made.start()
    yield made
    await made.stop()
    await config.stop()
    appender.stop()


@pytest.mark.usefixtures("executor")
async def test_a_limit_that_is_taken_away_is_lifted(bus: Bus) -> None:
    """Also when the queues are looked at anew in that very second."""

    async def limit_is(wanted: int) -> bool:
        try:
            found = await bus.api("CONSUMER.INFO.EVENTS.worker-crunch")
        except ApiError:
            return False  # it is not there yet
        return bool(found["config"]["max_ack_pending"] == wanted)

    for limit in (3, 5, None, 4, None):
        await bus.kv_put(CONFIG_BUCKET, "task.crunch", msgspec.json.encode({"name": "crunch", "max_concurrent": limit}))
        await until(lambda limit=limit: limit_is(limit or PENDING_MAX), within_s=10)  # type: ignore[misc]


@pytest.mark.usefixtures("executor")
async def test_a_queue_that_cannot_be_set_keeps_no_other_duty(bus: Bus) -> None:
    """Somebody's own push consumer bears its name, and takes no limit: timers and the next task's queue are there."""
    own = {"name": "worker-a", "durable_name": "worker-a", "ack_policy": "none", "deliver_subject": "to.them"}
    await bus.api("CONSUMER.CREATE.EVENTS.worker-a", {"stream_name": "EVENTS", "config": own})
    for name in ("a", "b"):
        await bus.kv_put(CONFIG_BUCKET, f"task.{name}", msgspec.json.encode({"name": name, "max_concurrent": 3}))

    async def queued() -> bool:
        try:
            return bool(await bus.api("CONSUMER.INFO.EVENTS.worker-b"))
        except ApiError:
            return False

    await until(queued, within_s=10)
    run = json.loads(await bus.request(goal_submitted(), b"{}"))["seq"]
    await bus.request(plan_created(run), encode(controls.plan(controls.step("s", task="noop"))))

    async def timed() -> bool:
        return await bus.last_on(TIMERS, timer_at(run, "deadline")) is not None

    await until(timed, within_s=10)

"""What must not stop for ever: a worker that a stranger answers for, timers over an outage, a service without NATS."""

import json
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from shared.append import Appender
from shared.bus import Bus, connect
from tests.chaos import load
from tests.chaos.load import Load
from tests.conftest import until
from tests.stack import Stack, stack
from tests.stack import until as until_seen

NOBODYS_TASK = "nobodys"


@pytest.fixture
def remit(tmp_path: Path) -> Iterator[Stack]:
    """A nats-server of the test's own; each test starts what it needs."""
    with stack(tmp_path, environment=load.SHORT_LEASE) as made:
        yield made


@pytest.fixture
async def client(remit: Stack) -> AsyncIterator[Bus]:
    made = await connect(remit.url, "chaos")
    await load.prepare(made)
    yield made
    await made.close()


@pytest.fixture
async def runs(client: Bus) -> AsyncIterator[Load]:
    appender = await Appender(client).start()
    yield Load(client, appender)
    appender.stop()


def end(ends: dict[int, str], run: int) -> str:
    return ends.get(run, "none")


async def said(bus: Bus, subject: str) -> bool:
    return bool(await load.subjects(bus, subject))


async def test_a_result_said_by_a_stranger_before_its_step_stops_no_worker(
    remit: Stack, client: Bus, runs: Load
) -> None:
    """Between plan and dispatch a client occupies the result: that attempt is lost, the worker goes on."""
    remit.start("planner")
    run = await runs.submit(b'{"tasks": ["noop"]}')
    await until(lambda: said(client, f"plan.created.{run}"))
    await client.request(f"step.completed.{run}.noop.1", b'{"outputs": {"forged": true}}')
    remit.start("executor")
    await until(lambda: said(client, f"step.failed.{run}.noop.1"))
    after = await runs.submit(b'{"tasks": ["noop"]}')
    await until(runs.ended)
    ends = load.ends_of(await load.whole_stream(client))
    assert (end(ends, run), end(ends, after)) == ("succeeded", "succeeded")

    async def all_acked() -> bool:
        return (await client.api("CONSUMER.INFO.EVENTS.worker-noop"))["num_ack_pending"] == 0

    await until(all_acked, within_s=10)  # it hears its acks still


async def test_timers_are_set_after_a_server_that_stood_still(remit: Stack, client: Bus, runs: Load) -> None:
    """nats-server stands still when the executor makes its queues: that call fails, and the next one must follow."""
    remit.start("planner")
    first = await runs.submit(b'{"tasks": ["noop"]}')
    await until(lambda: said(client, f"plan.created.{first}"))
    remit.start("executor")
    await until(lambda: "facts are due" in remit.log("executor"))  # within a second it will make its queues
    remit.freeze("nats")
    try:
        await standing_still(8)
    finally:
        remit.thaw("nats")
    await load.add_task(client, NOBODYS_TASK, timeout_s=60)
    await runs.submit(b'{"tasks": ["noop"]}')
    run = await runs.submit(json.dumps({"tasks": [NOBODYS_TASK], "time_budget_s": 1}).encode())
    await until(runs.ended)
    assert end(load.ends_of(await load.whole_stream(client)), run) == "timed_out"


async def standing_still(for_s: float) -> None:
    """Let an outage last longer than a request's patience of 5 s."""
    began = time.monotonic()
    await until(lambda: time.monotonic() > began + for_s)


@pytest.mark.parametrize("service", ["planner", "registry"])
def test_a_service_that_waits_for_nats_ends_when_it_is_asked(service: str, tmp_path: Path) -> None:
    """SIGTERM while nothing listens: it ends within seconds, not after its patience."""
    waiting = Stack(tmp_path)
    waiting.start(service)
    until_seen(lambda: "waiting for NATS" in waiting.log(service))
    process = waiting.processes[service]
    process.terminate()
    try:
        process.wait(5)
    finally:
        process.kill()
        process.wait()

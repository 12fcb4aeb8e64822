"""What must not stop for ever: a worker that a stranger answers for, timers over an outage, a service without NATS."""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from shared.append import Appender
from shared.bus import Bus, connect
from shared.pull import Delivery, Puller
from tests.auditor import audit
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
        await standing_still(7)
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


async def test_a_run_that_nobody_works_on_times_out_although_the_executor_was_dead(
    remit: Stack, client: Bus, runs: Load
) -> None:
    """The server keeps the timer and fires it; the executor that comes later finds it in the stream."""
    await load.add_task(client, NOBODYS_TASK, timeout_s=60)
    remit.start("planner")
    remit.start("executor")
    run = await runs.submit(json.dumps({"tasks": [NOBODYS_TASK, "noop"], "time_budget_s": 4}).encode())

    async def timer_is_set() -> bool:
        return bool(
            (await client.api("STREAM.INFO.TIMERS", {"subjects_filter": f"timer.at.{run}.>"}))["state"]["messages"]
        )

    await until(timer_is_set)
    remit.kill("executor")
    await until(lambda: said(client, f"timer.fired.{run}.deadline"))
    remit.start("executor")
    await until(runs.ended)
    messages = await load.whole_stream(client)
    assert audit(messages, cancel_patience_s=load.CANCEL_PATIENCE_S) == []
    over = next(json.loads(data) for subject, _, _, data in messages if subject == f"run.completed.{run}")
    assert over["status"] == "timed_out"
    assert over["steps"] == {NOBODYS_TASK: "failed", "noop": "skipped"}
    assert 4 <= over["duration_s"] < 20


async def test_a_question_expires_with_every_service_dead(remit: Stack, client: Bus, runs: Load) -> None:
    """The server keeps the expiry; who comes later finds that the time is over, and a late yes changes nothing."""
    directive = {"name": "asks", "approval_required": True, "approval_expires_s": 2}
    await client.kv_put("config", "directive.asks", json.dumps(directive).encode())
    remit.start("planner")
    remit.start("executor")
    run = await runs.submit(b'{"tasks": ["noop"], "directive": "asks"}')
    await until(lambda: said(client, f"approval.requested.{run}.run"))
    remit.kill("executor")
    remit.kill("planner")
    await until(lambda: said(client, f"timer.fired.{run}.approval.run"))
    asked = next(data for subject, _, _, data in await load.whole_stream(client) if subject.startswith("approval.req"))
    answer = {"run": run, "step": "run", "plan_hash": json.loads(asked)["plan_hash"]}
    await client.request(f"approval.granted.{run}.run", json.dumps(answer).encode())
    remit.start("executor")
    await until(runs.ended)
    messages = await load.whole_stream(client)
    assert audit(messages) == []
    assert load.ends_of(messages)[run] == "rejected"
    assert await said(client, f"approval.expired.{run}.run")


async def test_a_run_whose_timer_was_never_set_times_out_when_an_executor_comes(
    remit: Stack, client: Bus, runs: Load
) -> None:
    """The executor dies before it has set the timer: the next one sets it in the past, and it fires at once."""
    await load.add_task(client, NOBODYS_TASK, timeout_s=60)
    remit.start("planner")
    remit.start("executor")
    run = await runs.submit(json.dumps({"tasks": [NOBODYS_TASK], "time_budget_s": 1}).encode())
    await until(lambda: said(client, f"step.dispatched.{run}.{NOBODYS_TASK}.1.{NOBODYS_TASK}"))
    remit.kill("executor")
    await standing_still(1.5)
    assert not await said(client, f"timer.fired.{run}.deadline")
    remit.start("executor")
    await until(runs.ended)
    messages = await load.whole_stream(client)
    assert audit(messages, cancel_patience_s=load.CANCEL_PATIENCE_S) == []
    assert load.ends_of(messages)[run] == "timed_out"


async def test_a_step_whose_worker_hangs_is_overtaken_and_tried_again(remit: Stack, client: Bus, runs: Load) -> None:
    """The first attempt's worker never answers; its timer ends the attempt, and another worker does the second."""
    await load.add_task(client, NOBODYS_TASK, timeout_s=1, max_attempts=2)
    taken: list[Delivery] = []

    async def hang_once(delivery: Delivery) -> None:
        taken.append(delivery)
        if ".2." in delivery.subject:
            run, step, attempt = delivery.subject.split(".")[2:5]
            await runs.say(f"step.completed.{run}.{step}.{attempt}", b'{"outputs": {}}')
            await puller.ack(delivery)

    puller = await Puller(client, "EVENTS", f"worker-{NOBODYS_TASK}", hang_once, batch=1).start()
    remit.start("planner")
    remit.start("executor")
    run = await runs.submit(json.dumps({"tasks": [NOBODYS_TASK]}).encode())
    await until(runs.ended)
    await puller.stop()
    late = taken[0].subject.split(".")[2:5]
    await runs.say("step.completed." + ".".join(late), b'{"outputs": {"late": true}}')  # it wakes at last
    messages = await load.whole_stream(client)
    assert audit(messages, cancel_patience_s=load.CANCEL_PATIENCE_S) == []
    assert load.ends_of(messages)[run] == "succeeded"
    subjects = [subject for subject, *_ in messages]
    assert subjects.index(f"timer.fired.{run}.step.{NOBODYS_TASK}.1") < subjects.index(
        f"step.dispatched.{run}.{NOBODYS_TASK}.2.{NOBODYS_TASK}"
    )


async def test_a_goal_that_is_planned_is_not_rejected_for_its_many_deliveries(
    remit: Stack, client: Bus, runs: Load
) -> None:
    """Planners died over the goal, the last one behind its plan: the next must not say that it cannot be planned."""
    run = await runs.submit(b'{"tasks": ["noop"]}')
    taken: list[int] = []

    async def die(delivery: Delivery) -> None:
        taken.append(delivery.delivered)
        await puller.give_back(delivery)

    puller = await Puller(client, "EVENTS", "planner", die, batch=1).start()
    await until(lambda: taken and taken[-1] >= 6)
    await puller.stop()
    plan = await asyncio.to_thread(remit.remit, "plan", "--task", "noop", "-o", "json")
    await runs.say(f"plan.created.{run}", plan.stdout.strip().encode())
    remit.start("planner")
    remit.start("executor")
    await until(lambda: said(client, f"run.completed.{run}"))

    async def all_acked() -> bool:
        state = await client.api("CONSUMER.INFO.EVENTS.planner")
        return state["num_ack_pending"] + state["num_pending"] == 0

    await until(all_acked)
    assert not await said(client, f"goal.rejected.{run}")


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

"""The worker on a real stream: whatever a handler does, its attempt ends once, and nothing stays unacknowledged."""

import asyncio
import itertools
import os
import re
import signal
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest

from services.executor import worker as worker_module
from services.executor.handlers import Handler, Outputs, Task, TaskFailed, numbered
from services.executor.lanes import DELIVERIES_MAX
from services.executor.processes import run_process
from services.executor.worker import Worker
from shared.append import Appender
from shared.bus import Bus, connect
from shared.clock import NS_PER_S, now_ns, rfc3339
from shared.errors import Malformed, Refused, Unavailable
from shared.events import OUTPUTS_BYTES_MAX, LlmCalled, RunCompleted, StepCompleted, encode
from shared.pull import Delivery, Puller
from shared.story import read_story
from shared.streams import ensure, worker_queue
from shared.subjects import (
    ARTIFACTS_BUCKET,
    EVENTS,
    MEMORY_BUCKET,
    artifact,
    goal_submitted,
    llm_called,
    plan_created,
    run_cancel_requested,
    run_completed,
    run_started,
    step_cancel_requested,
    step_cancelled,
    step_completed,
    step_dispatched,
    step_failed,
    worker_consumer,
)
from tests import controls
from tests.conftest import until
from tests.stack import Stack, stack

_numbers = itertools.count(1)


@pytest.fixture(scope="module")
def nats(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """A NATS server alone: the worker here is this process's."""
    with stack(tmp_path_factory.mktemp("nats")) as made:
        yield made


class Floor:
    """A place to work at: steps are dispatched by hand, and what came of them is read from the stream."""

    def __init__(self, bus: Bus, appender: Appender, task: str) -> None:
        self.task = task  # of this test alone: what one leaves behind does not reach the next
        self.bus = bus
        self.appender = appender

    async def dispatch(self, *, run: int = 0, step: str = "a", attempt: int = 1, **changes: Any) -> int:
        """Dispatch a step of a run (a new one, unless told); the run."""
        run = run or await self.goal(step)
        for earlier in range(1, attempt):  # used up by what is no dispatch
            await self.appender.append(step_dispatched(run, step, earlier, self.task), controls.ACK)
        body = controls.dispatched(**{"deadline": rfc3339(now_ns() + 60 * NS_PER_S), "timeout_s": 30, **changes})
        await self.appender.append(step_dispatched(run, step, attempt, self.task), encode(body))
        return run

    async def goal(self, *steps: str) -> int:
        """A run that has started, of steps of this floor's task: `a`, unless told."""
        run = await self.appender.append(goal_submitted(), b"{}", headers=None)
        made = controls.plan(*(controls.step(step, task=self.task, max_attempts=10) for step in steps or ("a",)))
        await self.appender.append(plan_created(run), encode(made))
        await self.appender.append(run_started(run), encode(controls.started()))
        return run

    async def said(self, run: int) -> list[tuple[str, dict[str, Any]]]:
        """What the worker has said of the run: subject and payload, in order."""
        kinds = ("step.completed", "step.failed", "step.cancelled", "llm.called")
        found = await self.bus.direct(EVENTS, {"multi_last": [f"{kind}.{run}.>" for kind in kinds]})
        return [(subject, msgspec.json.decode(data)) for subject, _, _, data in found]

    async def ended_steps(self, run: int, count: int) -> bool:
        return len(await self.said(run)) == count

    async def end(self, run: int, within_s: float = 15.0) -> tuple[str, dict[str, Any]]:
        """The one end of the run's one step."""

        async def ended() -> bool:
            return any(not subject.startswith("llm.") for subject, _ in await self.said(run))

        await until(ended, within_s)
        [one] = [said for said in await self.said(run) if not said[0].startswith("llm.")]
        return one

    async def unacked(self) -> int:
        info = await self.bus.api(f"CONSUMER.INFO.{EVENTS}.{worker_consumer(self.task)}")
        return int(info["num_ack_pending"]) + int(info["num_pending"])

    async def lease(self, ack_wait_s: float) -> None:
        """Set the queue's lease (a worker that starts sets it anew), so that a test need not wait for half a minute."""
        await worker_queue(self.bus, self.task)
        config = (await self.bus.api(f"CONSUMER.INFO.{EVENTS}.{worker_consumer(self.task)}"))["config"]
        config["ack_wait"] = int(ack_wait_s * NS_PER_S)
        body = {"stream_name": EVENTS, "config": config}
        await self.bus.api(f"CONSUMER.DURABLE.CREATE.{EVENTS}.{worker_consumer(self.task)}", body)

    @asynccontextmanager
    async def working(self, handler: Handler, *, slots: int = 4, check: bool = True) -> AsyncIterator[Worker]:
        """A worker that performs the task while the block runs; afterwards nothing may be left unacknowledged."""
        made = Worker(self.bus, self.appender, "here", {self.task: handler}, {self.task: slots}, {})
        await made.start()
        try:
            yield made
            if check:
                await until(self._idle, 5)
        finally:
            await made.stop()

    async def _idle(self) -> bool:
        return await self.unacked() == 0


@pytest.fixture
async def floor(nats: Stack) -> AsyncIterator[Floor]:
    bus = await connect(nats.url, "test")
    await ensure(bus)
    appender = await Appender(bus).start()
    made = Floor(bus, appender, f"task-{next(_numbers)}")
    await made.lease(30)
    yield made
    appender.stop()
    await bus.close()


def raising(error: BaseException) -> Handler:
    async def handler(_task: Task) -> Outputs:
        raise error

    return handler


def giving(outputs: Outputs) -> Handler:
    async def handler(_task: Task) -> Outputs:
        return outputs

    return handler


async def test_outputs_end_the_step(floor: Floor) -> None:
    async with floor.working(giving({"found": 3})):
        run = await floor.dispatch()
        subject, body = await floor.end(run)
    assert subject == step_completed(run, "a", 1)
    assert (body["outputs"], body["host"], body["artifacts"]) == ({"found": 3}, "here", [])
    assert body["started_at"] <= body["ended_at"]


async def test_a_handler_gets_what_was_dispatched(floor: Floor) -> None:
    got: list[Task] = []

    async def handler(task: Task) -> Outputs:
        got.append(task)
        return {}

    async with floor.working(handler):
        run = await floor.dispatch(step="b-2", attempt=4, inputs={"x": [1]}, goal="do it", token_grant=77)
        await floor.end(run)
    [task] = got
    assert (task.run, task.step, task.attempt) == (run, "b-2", 4)
    assert (task.inputs, task.goal, task.token_grant) == ({"x": [1]}, "do it", 77)


async def test_the_second_of_a_task_in_a_goal_leaves_what_the_first_has_announced(floor: Floor, tmp_path: Path) -> None:
    async def handler(task: Task) -> Outputs:
        await task.keep("report.md", task.step.encode(), "text/markdown")
        return {}

    names = {floor.task: "report.md", f"{floor.task}-2": "report-2.md"}
    run = await floor.goal(*names)
    async with floor.working(handler):
        for step in names:
            await floor.dispatch(run=run, step=step)
        await until(lambda: floor.ended_steps(run, 2))
    for subject, body in await floor.said(run):
        step = subject.split(".")[3]
        [announced] = body["artifacts"]
        assert announced["name"] == names[step]
        await floor.bus.object_get(ARTIFACTS_BUCKET, artifact(run, names[step]), tmp_path / "bytes")
        assert (tmp_path / "bytes").read_text() == step


@pytest.mark.parametrize("step", ["gpus", "gpu_report", "gpu_report-1", "gpu_report-x", "gpu_report-02", "2"])
def test_another_step_names_its_artifacts_as_its_task_does(step: str) -> None:
    assert numbered("gpu_report.json", step, "gpu_report") == "gpu_report.json"


@pytest.mark.parametrize(
    ("error", "word", "retryable"),
    [
        (TaskFailed("disk_full", "no room"), "disk_full", False),
        (TaskFailed("busy", "later", retryable=True), "busy", True),
        (Malformed("too many", field="params.x"), "malformed_input", False),
        (Unavailable("the agent is away"), "unavailable", True),
        (Refused("not allowed"), "refused", False),
        (ZeroDivisionError("division by zero"), "internal_error", True),
        (TimeoutError(), "timeout", False),
        (ExceptionGroup("many", [ValueError("one")]), "internal_error", True),
        (RecursionError("deep"), "internal_error", True),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else None,
)
async def test_an_error_ends_the_attempt_and_not_the_worker(
    floor: Floor, error: BaseException, word: str, retryable: bool
) -> None:
    async with floor.working(raising(error)):
        subject, body = await floor.end(run := await floor.dispatch())
        assert subject == step_failed(run, "a", 1)
        assert (body["error"], body["retryable"], body["host"]) == (word, retryable, "here")
        await floor.end(await floor.dispatch())  # it goes on


async def test_a_secret_in_an_error_is_redacted_and_a_long_one_cut(floor: Floor) -> None:
    async with floor.working(raising(TaskFailed("broken", "password=hunter2-Zq8vN3xT " + "x" * 5_000))):
        _, body = await floor.end(await floor.dispatch())
    assert "hunter2" not in body["message"]
    assert body["message"].startswith("password=[redacted:password] xxx")
    assert len(body["message"]) == 1_000


async def test_an_unexpected_error_is_told_by_kind_and_place(floor: Floor) -> None:
    """Its text may quote what the handler was reading: a line of a log, say."""
    async with floor.working(raising(RuntimeError("the line of a log that no event may hold"))):
        _, body = await floor.end(await floor.dispatch())
    assert re.fullmatch(r"RuntimeError in \w+, test_worker\.py line \d+", body["message"])


@pytest.mark.parametrize("text", ["a file \udc80 of other bytes", "\x00\x1b[31m", "\ud800"], ids=ascii)
async def test_an_error_whose_text_is_no_text_ends_the_attempt(floor: Floor, text: str) -> None:
    """File names that are no UTF-8 come as lone surrogates, which no JSON can hold."""
    async with floor.working(raising(OSError(text))):
        _, body = await floor.end(await floor.dispatch(), within_s=4)
    assert body["error"] == "internal_error"


@pytest.mark.parametrize(
    ("outputs", "word"),
    [
        ({"big": "x" * OUTPUTS_BYTES_MAX}, "outputs_too_large"),
        ({"no": object()}, "internal_error"),
        ({"no": "\udc80"}, "internal_error"),
        ({3.5j: 1}, "internal_error"),
    ],
    ids=["big", "object", "surrogate", "key"],
)
async def test_outputs_that_no_event_can_hold_fail_the_attempt(floor: Floor, outputs: Any, word: str) -> None:
    async with floor.working(giving(outputs)):
        subject, body = await floor.end(run := await floor.dispatch(), within_s=4)
    assert subject == step_failed(run, "a", 1)
    assert body["error"] == word


async def test_a_step_is_ended_at_its_timeout(floor: Floor) -> None:
    cancelled = asyncio.Event()

    async def handler(_task: Task) -> Outputs:
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()
        return {}

    async with floor.working(handler):
        _, body = await floor.end(await floor.dispatch(timeout_s=0.3), within_s=4)
    assert body["error"] == "timeout"
    assert cancelled.is_set()


@pytest.mark.parametrize(("timeout_s", "run_s", "told_s"), [(20, 3_600, 20), (600, 30, 30)])
async def test_a_handler_knows_when_its_own_time_is_over(floor: Floor, timeout_s: int, run_s: int, told_s: int) -> None:
    """The step's or the run's, whichever comes first: what it plans by this is not cut off."""
    left_s: list[float] = []

    async def handler(task: Task) -> Outputs:
        left_s.append((task.deadline_ns - now_ns()) / NS_PER_S)
        return {}

    async with floor.working(handler):
        await floor.end(await floor.dispatch(timeout_s=timeout_s, deadline=rfc3339(now_ns() + run_s * NS_PER_S)))
    assert told_s - 10 < left_s[0] <= told_s


@pytest.mark.parametrize("changes", [{"timeout_s": 0}, {"timeout_s": -5}, {"deadline": "2020-01-01T00:00:00Z"}])
async def test_a_step_that_comes_too_late_is_not_begun(floor: Floor, changes: dict[str, Any]) -> None:
    begun: list[Task] = []

    async def handler(task: Task) -> Outputs:
        begun.append(task)
        return {}

    async with floor.working(handler):
        _, body = await floor.end(await floor.dispatch(**changes))
    assert (body["error"], begun) == ("timeout", [])


async def test_a_deadline_that_is_none_ends_the_attempt(floor: Floor) -> None:
    """Only a stranger says such a thing; his step must not come back for ever."""
    async with floor.working(giving({})):
        subject, body = await floor.end(run := await floor.dispatch(deadline="tomorrow"), within_s=4)
    assert subject == step_failed(run, "a", 1)
    assert body["error"] == "malformed_input"


async def test_what_is_no_dispatch_is_acknowledged_and_left(floor: Floor) -> None:
    """Garbage on a dispatch's subject, a step of no run, an attempt that is none: none of it comes again."""
    run = await floor.goal()
    async with floor.working(giving({})):
        for subject, data in [
            (f"step.dispatched.{run}.a.1.{floor.task}", b"not json"),
            (f"step.dispatched.{run}.b.1.{floor.task}", b"{}"),
            (f"step.dispatched.{run}.c.0.{floor.task}", encode(controls.dispatched())),
            (f"step.dispatched.{run}.UPPER.1.{floor.task}", encode(controls.dispatched())),
            (f"step.dispatched.99999999.a.1.{floor.task}", encode(controls.dispatched())),
        ]:
            await floor.appender.append(subject, data)
        await floor.end(await floor.dispatch())
    assert [subject for subject, _ in await floor.said(run) if ".a." in subject or ".b." in subject] == []


async def test_an_attempt_that_has_ended_is_not_done_again(floor: Floor) -> None:
    """The ack of a finished step may be lost: its redelivery is acknowledged and nothing more."""
    begun: list[Task] = []

    async def handler(task: Task) -> Outputs:
        begun.append(task)
        return {}

    run = await floor.dispatch()
    await floor.appender.append(step_completed(run, "a", 1), encode(StepCompleted(outputs={"by": "another"})))
    over = await floor.dispatch()
    await floor.appender.append(run_completed(over), encode(RunCompleted(status="timed_out", reason="", steps={})))
    async with floor.working(handler):
        await floor.end(await floor.dispatch())
    assert len(begun) == 1
    assert await floor.said(over) == []


async def test_of_two_answers_the_first_counts(floor: Floor) -> None:
    """A zombie that wakes after another has finished its step is refused by the stream, and ends quietly."""

    async def handler(task: Task) -> Outputs:
        await floor.appender.append(
            step_completed(task.run, task.step, 1), encode(StepCompleted(outputs={"by": "other"}))
        )
        task.when_accepted.append(remember)
        return {"by": "zombie"}

    remembered = []

    async def remember() -> None:
        remembered.append(1)

    async with floor.working(handler):
        _, body = await floor.end(await floor.dispatch())
    assert body["outputs"] == {"by": "other"}
    assert remembered == []  # its result was not accepted


async def test_a_subject_that_a_stranger_took_fails_the_attempt(floor: Floor) -> None:
    """Said before the step was dispatched, it ends nothing: the attempt fails where that can still be said."""
    run = await floor.goal()
    await floor.appender.append(step_completed(run, "a", 1), b'{"outputs": {"by": "a stranger"}}')
    async with floor.working(giving({})):
        await floor.dispatch(run=run)

        async def failed() -> bool:
            return step_failed(run, "a", 1) in dict(await floor.said(run))

        await until(failed, 5)
    body = dict(await floor.said(run))[step_failed(run, "a", 1)]
    assert (body["error"], body["retryable"]) == ("result_occupied", True)


async def test_each_call_of_a_model_has_a_subject_of_its_own(floor: Floor) -> None:
    async def handler(task: Task) -> Outputs:
        for outcome in ("http_500", "ok"):
            await task.say_llm_called(LlmCalled(request_model="m", outcome=outcome))
        return {}

    async with floor.working(handler):
        run = await floor.dispatch(attempt=2)
        await floor.end(run)
    calls = [(subject, body["outcome"]) for subject, body in await floor.said(run) if subject.startswith("llm.")]
    assert calls == [(f"llm.called.{run}.a.2-1", "http_500"), (f"llm.called.{run}.a.2-2", "ok")]


async def test_a_call_of_a_delivery_that_lost_its_worker_is_not_in_the_way(floor: Floor) -> None:
    """kill -9 between the call and the step's end: the attempt is delivered again, calls again, and both count."""

    async def handler(task: Task) -> Outputs:
        await task.say_llm_called(LlmCalled(request_model="m", outcome="ok", duration_s=2.5))
        return {}

    run = await floor.goal()
    await floor.appender.append(llm_called(run, "a", "1-1"), encode(LlmCalled(request_model="m", outcome="ok")))
    async with floor.working(handler):
        await floor.dispatch(run=run)
        subject, body = await floor.end(run)
    assert subject == step_completed(run, "a", 1), body
    assert [one for one, _ in await floor.said(run) if one.startswith("llm.")] == [
        llm_called(run, "a", "1-1"),
        llm_called(run, "a", "1-2"),
    ]


async def test_a_step_that_lasts_keeps_its_lease(floor: Floor, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a lease of one second, a step of three is performed once."""
    monkeypatch.setattr(worker_module, "HEARTBEAT_S", 0.3)
    begun: list[int] = []

    async def handler(task: Task) -> Outputs:
        begun.append(task.run)
        await asyncio.wait([asyncio.create_task(asyncio.Event().wait())], timeout=3)
        return {}

    async with floor.working(handler):
        await floor.lease(1)
        subject, _ = await floor.end(run := await floor.dispatch())
    assert (subject, begun) == (step_completed(run, "a", 1), [run])


async def test_a_step_that_waits_for_a_slot_is_neither_lost_nor_done_twice(
    floor: Floor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two slots, a lease of one second, two steps of five: a third one waits for longer than any lease lasts."""
    monkeypatch.setattr(worker_module, "HEARTBEAT_S", 0.3)
    begun: list[int] = []

    async def handler(task: Task) -> Outputs:
        begun.append(task.run)
        await asyncio.wait([asyncio.create_task(asyncio.Event().wait())], timeout=task.inputs["lasts_s"])
        return {}

    async with floor.working(handler, slots=2):
        await floor.lease(1)
        first = [await floor.dispatch(inputs={"lasts_s": 5}) for _ in range(2)]
        await until(lambda: begun == first)
        third = await floor.dispatch(inputs={"lasts_s": 2})
        subject, body = await floor.end(third)
        assert subject == step_completed(third, "a", 1), body
    assert begun == [*first, third]


async def test_a_step_that_is_delivered_again_to_the_worker_that_has_it_is_not_begun_again(floor: Floor) -> None:
    """As after a NATS that was away for longer than the lease: the heartbeats were lost, and the worker was not."""
    begun: list[int] = []

    async def handler(task: Task) -> Outputs:
        begun.append(task.run)
        await asyncio.wait([asyncio.create_task(asyncio.Event().wait())], timeout=4)
        return {}

    async with floor.working(handler):
        await floor.lease(0.5)  # less than the first heartbeat takes, so it is delivered again, and again
        subject, body = await floor.end(run := await floor.dispatch())
    assert (subject, begun) == (step_completed(run, "a", 1), [run]), body


async def test_a_step_that_ends_its_worker_again_and_again_is_worker_lost(floor: Floor) -> None:
    """Each delivery that is not acknowledged counts: after the last one the attempt fails, unperformed."""
    begun: list[int] = []

    async def handler(task: Task) -> Outputs:
        begun.append(task.run)
        return {}

    run = await floor.dispatch()
    for _ in range(DELIVERIES_MAX):  # workers that die: each takes the step and gives it back unanswered
        await _taken_and_dropped(floor)
    async with floor.working(handler):
        subject, body = await floor.end(run)
    assert (subject, body["error"], begun) == (step_failed(run, "a", 1), "worker_lost", [])


async def _taken_and_dropped(floor: Floor) -> None:
    came: asyncio.Queue[str] = asyncio.Queue()

    def take(_subject: str, _data: bytes, reply: str, _headers: object) -> Awaitable[None] | None:
        came.put_nowait(reply)
        return None

    inbox = floor.bus.inbox()
    stop: Callable[[], Awaitable[None]] = await floor.bus.subscribe(inbox, take)
    await floor.bus.publish(f"$JS.API.CONSUMER.MSG.NEXT.{EVENTS}.{worker_consumer(floor.task)}", b"", inbox)
    await floor.bus.publish(await asyncio.wait_for(came.get(), 10), b"-NAK")
    await stop()


async def test_a_worker_that_is_stopped_lets_a_step_finish(floor: Floor) -> None:
    go, begun = asyncio.Event(), asyncio.Event()

    async def handler(_task: Task) -> Outputs:
        begun.set()
        await go.wait()
        return {"finished": True}

    async with floor.working(handler, check=False):
        run = await floor.dispatch()
        await begun.wait()
        asyncio.get_running_loop().call_later(0.3, go.set)  # while the worker is stopping
    [(_, body)] = await floor.said(run)
    assert body["outputs"] == {"finished": True}


async def test_a_worker_that_is_stopped_gives_back_what_does_not_finish(
    floor: Floor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The step is the next worker's at once: nobody waits for the lease of half a minute."""
    monkeypatch.setattr(worker_module, "DRAIN_S", 0.2)
    begun = asyncio.Event()

    async def hangs(_task: Task) -> Outputs:
        begun.set()
        await asyncio.Event().wait()
        return {}

    async with floor.working(hangs, check=False):
        run = await floor.dispatch()
        await begun.wait()
    assert await floor.said(run) == []
    async with floor.working(giving({"by": "the next"})):
        subject, body = await floor.end(run, within_s=4)
    assert (subject, body["outputs"]) == (step_completed(run, "a", 1), {"by": "the next"})


async def test_a_worker_that_is_stopped_gives_a_step_back_when_its_processes_are_gone(
    floor: Floor, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The next worker begins it at once: two of it would be at work side by side."""
    monkeypatch.setattr(worker_module, "DRAIN_S", 0.2)
    pid_file, given_back = tmp_path / "pid", list[bool]()
    back = Puller.give_back

    async def give_back(puller: Puller, delivery: Delivery, delay_s: float = 0.0) -> None:
        given_back.append(alive(int(pid_file.read_text())))
        await back(puller, delivery, delay_s)

    monkeypatch.setattr(Puller, "give_back", give_back)

    async def handler(_task: Task) -> Outputs:
        await run_process(["sh", "-c", "trap '' TERM; echo $$ > $0.part; mv $0.part $0; sleep 600", str(pid_file)])
        return {}

    async with floor.working(handler, check=False):
        await floor.dispatch()
        await until(pid_file.exists)
    assert given_back == [False]


# -- what is not to be run -------------------------------------------------------------------------------------


async def test_a_dispatch_that_the_fold_does_not_take_is_not_performed(floor: Floor) -> None:
    """A stranger's dispatch of a step that is not in the plan, or of a run that has not started, does nothing."""
    performed: list[int] = []

    async def handler(task: Task) -> Outputs:
        performed.append(task.run)
        return {}

    async with floor.working(handler):
        stranger = await floor.goal()
        await floor.dispatch(run=stranger, step="b")
        not_started = await floor.appender.append(goal_submitted(), b"{}", headers=None)
        await floor.dispatch(run=not_started)
        true = await floor.dispatch()
        await floor.end(true)
    assert performed == [true]


# -- cancelling ------------------------------------------------------------------------------------------------


async def cancel(floor: Floor, run: int) -> None:
    """What a person and the executor say, in that order."""
    await floor.appender.append(run_cancel_requested(run, "ann"), encode(controls.cancel_requested()))
    await floor.appender.append(step_cancel_requested(run, "a", 1), encode(controls.told_to_cancel()))


async def test_a_cancelled_step_ends_its_processes_before_it_says_so(floor: Floor) -> None:
    pids: list[int] = []

    async def handler(task: Task) -> Outputs:
        # A shell that takes no notice of SIGTERM, with a child of its own.
        script = "trap '' TERM; sleep 600 & echo $! > $0; wait"
        await run_process(["sh", "-c", script, str(pid_file)])
        return {}

    with tempfile.TemporaryDirectory() as folder:
        pid_file = Path(folder) / "pid"
        async with floor.working(handler):
            run = await floor.dispatch()
            await until(lambda: pid_file.exists() and pid_file.read_text().strip())
            pids.append(int(pid_file.read_text()))
            assert alive(pids[0])
            await cancel(floor, run)
            subject, body = await floor.end(run)
            assert subject == step_cancelled(run, "a", 1)
            assert not alive(pids[0])
    assert body["reason"] == "cancelled by ann: wrong host"


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


async def test_a_request_to_cancel_that_was_not_heard_is_found_at_the_next_heartbeat(
    floor: Floor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker_module, "HEARTBEAT_S", 0.2)
    monkeypatch.setattr(worker_module, "STEP_CANCEL_REQUESTS", "nobody.says.this")

    async def handler(_task: Task) -> Outputs:
        await asyncio.sleep(600)
        return {}

    async with floor.working(handler):
        run = await floor.dispatch()
        await cancel(floor, run)
        subject, _ = await floor.end(run)
    assert subject == step_cancelled(run, "a", 1)


async def test_a_step_that_was_cancelled_before_it_came_is_not_begun(floor: Floor) -> None:
    begun: list[int] = []

    async def handler(task: Task) -> Outputs:
        begun.append(task.run)
        return {}

    run = await floor.dispatch()
    await cancel(floor, run)
    async with floor.working(handler):
        subject, _ = await floor.end(run)
    assert subject == step_cancelled(run, "a", 1)
    assert begun == []


async def test_a_program_that_ends_leaves_nothing_of_its_group_behind() -> None:
    done = await run_process(["sh", "-c", "sleep 600 & echo $!"])
    assert done.status == 0
    assert not alive(int(done.output))


async def test_who_is_out_of_reach_and_holds_its_output_keeps_no_program_from_its_end() -> None:
    """A descendant with a session of its own is not ended; the step does not wait for it either."""
    async with asyncio.timeout(10):
        done = await run_process(["sh", "-c", "setsid sh -c 'echo $$; exec sleep 600' & sleep 0.3; exit 3"])
    try:
        assert done.status == 3
        assert alive(int(done.output))
    finally:
        os.kill(int(done.output), signal.SIGKILL)


async def test_the_end_of_what_a_program_writes_is_kept() -> None:
    done = await run_process(["sh", "-c", "yes 0123456789 | head -c 3000000; echo the end >&2"])
    assert len(done.output) == 1_000_000 and done.output.endswith(b"the end\n")


# -- tokens of a worker that was killed ------------------------------------------------------------------------


async def test_what_a_killed_worker_has_spent_is_gone_from_the_grant(floor: Floor) -> None:
    grants: list[int] = []

    async def handler(task: Task) -> Outputs:
        grants.append(task.token_grant)
        return {}

    run = await floor.dispatch(token_grant=100)
    call = LlmCalled(request_model="m", outcome="ok", input_tokens=30, output_tokens=12)
    await floor.appender.append(llm_called(run, "a", "1-1"), encode(call))
    async with floor.working(handler):
        await floor.end(run)
    assert grants == [58]


async def no_mark(floor: Floor) -> bool:
    """Whether the store of marks holds nothing of any call, not even that something was removed."""
    found = await floor.bus.api(f"STREAM.INFO.KV_{MEMORY_BUCKET}", {"subjects_filter": f"$KV.{MEMORY_BUCKET}.llm.>"})
    return not found["state"].get("subjects")


@pytest.mark.parametrize("outcome", ["completed", "failed"])
async def test_the_mark_of_a_call_goes_with_the_end_of_its_attempt(floor: Floor, outcome: str) -> None:
    marks: list[bool] = []

    async def handler(task: Task) -> Outputs:
        await task.begin_llm_call()
        await task.say_llm_called(LlmCalled(request_model="m", outcome="ok", input_tokens=1, output_tokens=1))
        marks.append(not await no_mark(floor))
        if outcome == "failed":
            raise Refused("not today")
        return {}

    async with floor.working(handler):
        subject, _ = await floor.end(await floor.dispatch(token_grant=100))
        assert subject.split(".")[1] == outcome and marks == [True]
        await until(lambda: no_mark(floor), 5)


async def test_a_call_that_a_killed_worker_was_in_is_unknown_and_costs_what_was_left(floor: Floor) -> None:
    """Nobody knows whether the server has answered: unknown usage counts as the whole grant, never as zero."""
    grants: list[int] = []

    async def handler(task: Task) -> Outputs:
        grants.append(task.token_grant)
        return {}

    run = await floor.dispatch(token_grant=100)
    await floor.bus.kv_put(MEMORY_BUCKET, f"llm.{run}.a.1", b"1")  # the mark that it leaves before a call
    async with floor.working(handler):
        await floor.end(run)
    assert grants == [0]
    [lost] = [body for subject, body in await floor.said(run) if subject.startswith("llm.")]
    assert (lost["outcome"], lost["input_tokens"], lost["output_tokens"]) == ("lost", None, None)
    await until(lambda: no_mark(floor), 5)
    assert (await read_story(floor.bus, run)).run.charged == 100

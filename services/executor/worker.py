"""The worker: pulls dispatched steps of the tasks that it knows, performs them, says how they ended.

Theory of operation. A delivery is a lease, renewed three times in it while the step runs; the worker acks only when the
stream holds the attempt's end. kill -9 therefore means another delivery, to this worker's successor or to another one.
Before a step runs, the worker folds its run: an attempt that has ended already (an ack may be lost although the result
is stored) is not repeated, and one that a budget does not cover, that nobody has approved or that a stranger has
dispatched is not begun. A zombie that wakes later is refused by the create-only append. A step that has ended its
worker `DELIVERIES_MAX` times ends as `worker_lost`.

A cancelled step is told by `step.cancel_requested`. Its handler is cancelled, ends what it has started (see
`services/executor/processes.py`) and sees it gone; only then is `step.cancelled` said.
"""

import asyncio
import contextlib
import logging
import traceback
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from pathlib import Path
from typing import Any

import msgspec

from services.executor.handlers import Handler, Instant, Outputs, Task, TaskFailed
from services.executor.lanes import Flash, Lane
from services.executor.processes import GRACE_S
from shared.append import Appender
from shared.bus import Bus
from shared.clock import NS_PER_S, now_ns, parse_ns, rfc3339
from shared.errors import AlreadySaid, Malformed, RemitError, Unavailable
from shared.events import (
    OUTPUTS_BYTES_MAX,
    Event,
    LlmCalled,
    StepCancelled,
    StepCancelRequested,
    StepCompleted,
    StepDispatched,
    StepFailed,
    encode,
    read,
)
from shared.pull import Delivery, Puller
from shared.redact import redact
from shared.story import Story, read_story
from shared.streams import OWN_ACK_WAIT_S, worker_queue
from shared.subjects import (
    EVENTS,
    STEP_CANCEL_REQUESTS,
    llm_called,
    step_cancel_requested,
    step_cancelled,
    step_completed,
    step_failed,
    worker_consumer,
)
from shared.text import as_text

log = logging.getLogger("remit.worker")

HEARTBEAT_S = OWN_ACK_WAIT_S / 3
MESSAGE_CHARS_MAX = 1_000
DRAIN_S = 10.0
END_S = GRACE_S + 2.0  # for a step's processes to be seen gone before it is given back
# Steps of one task at a time in this process; what is heavy is bounded by the machine, not by the fleet.
SLOTS_DEFAULT = 4
HANDS_DEFAULT = 16
INSTANT_BATCH = 256
STALE_READS_MAX = 20
STALE_S = 0.1
CORE_SEQ = 1 << 62  # a message that was heard and not read from the stream: its place is not known

Attempt = tuple[int, str, int]


class Worker:
    """Performs the tasks of `handlers`, each from its own queue `worker-<task>`.

    `instants` are tasks without any effect: they need no lease to be kept and may be done over, so they are answered
    on the spot. `slots` bounds the steps of one task at a time, `hands` those of all tasks together on this host.
    """

    def __init__(
        self,
        bus: Bus,
        appender: Appender,
        host: str,
        handlers: Mapping[str, Handler],
        slots: Mapping[str, int],
        instants: Mapping[str, Instant],
        *,
        hands: int = HANDS_DEFAULT,
    ) -> None:
        self._instants = instants
        self._bus = bus
        self._appender = appender
        self._host = host
        self._handlers = handlers
        self._slots = slots
        self._pullers: list[Puller] = []
        self._running: dict[asyncio.Task[None], tuple[Puller, Delivery]] = {}
        self._in_hand: dict[Attempt, _InHand] = {}
        self.hands = asyncio.Semaphore(hands)

    async def start(self) -> None:
        await self._bus.subscribe(STEP_CANCEL_REQUESTS, self._on_step_cancel_requested)
        for task, handler in self._handlers.items():
            slots = self._slots.get(task, SLOTS_DEFAULT)
            lane = Lane(self, handler, slots)
            for host in (None, self._host):  # what anybody may do, and what is for this host alone
                await worker_queue(self._bus, task, host)
                lane.add(await self._pull(worker_consumer(task, host), lane.on_step_dispatched, slots))
        for task, instant in self._instants.items():
            flash = Flash(self, instant)
            for host in (None, self._host):
                await worker_queue(self._bus, task, host)
                await self._pull(worker_consumer(task, host), flash.on_step_dispatched, INSTANT_BATCH)

    async def _pull(self, queue: str, handler: Callable[[Puller, Delivery], Awaitable[None]], batch: int) -> Puller:
        async def hear(delivery: Delivery) -> None:
            await handler(puller, delivery)

        puller = Puller(self._bus, EVENTS, queue, hear, batch=batch)
        self._pullers.append(puller)
        return await puller.start()

    async def stop(self) -> None:
        """Take no more, let what runs finish for a while, end the rest and give it back."""
        for puller in self._pullers:
            await puller.stop()
        if self._running:
            await asyncio.wait(self._running, timeout=DRAIN_S)
        left = dict(self._running)
        for running in left:
            running.cancel()
        if left:
            # What does not end in time has processes that are still there: its lease ends without us.
            ended, _ = await asyncio.wait(left, timeout=END_S)
            for running in ended:
                puller, delivery = left[running]
                await puller.give_back(delivery)
        await self._appender.drain()

    def begin(self, puller: Puller, delivery: Delivery, work: asyncio.Task[None]) -> None:
        self._running[work] = (puller, delivery)
        work.add_done_callback(lambda done: self._running.pop(done, None))

    # -- one step ------------------------------------------------------------------------------------------

    async def perform(self, puller: Puller, handler: Handler, delivery: Delivery, event: Event) -> None:
        """From lease to acknowledged end, if the fold says that this very attempt is to run."""
        story = await self._story(event)
        state = story.run.steps.get(event.step)
        current = state is not None and state.status == "running" and state.attempt == event.attempt
        if state is None or not current or (delivery.delivered > 1 and await self._has_ended(event)):
            # Ended before, and the ack was lost; or cancelled, over a budget, before its time, or a stranger's word.
            await puller.ack(delivery)
            return
        occupied = step_completed(event.run, event.step, event.attempt)
        if any(told.subject == occupied for told in story.told):
            await self._settle(puller, delivery, event, occupied)  # no result could be said: spend nothing on it
            return
        started = now_ns()
        task = self._task(event, spent=state.spent)
        in_hand = _InHand(event.seq)
        self._in_hand[_attempt(event)] = in_hand
        if state.cancel_ns:
            in_hand.end(story.run.stop.reason if story.run.stop else "")
        try:
            await self._count_lost_call(task, story)
            outcome = await self._outcome(handler, task, event, started, in_hand)
        finally:
            del self._in_hand[_attempt(event)]
        accepted = await self.say_end(puller, delivery, event, outcome)
        afterwards = task.when_accepted if accepted and isinstance(outcome, StepCompleted) else []
        for action in (*afterwards, task.forget_llm_calls):
            try:
                await action()
            except RemitError as error:
                log.warning("run %d step %s: after its end: %s", event.run, event.step, error)

    async def _story(self, event: Event) -> Story:
        """The run up to this dispatch at least: on a cluster a read may lag behind the delivery."""
        for _ in range(STALE_READS_MAX):
            story = await read_story(self._bus, event.run)
            if story.last_seq >= event.seq:
                return story
            await asyncio.sleep(STALE_S)
        raise Unavailable(f"the stream does not show event {event.seq} yet")

    async def _has_ended(self, event: Event) -> bool:
        """Whether the stream's leader knows an end of the attempt: a node that is behind would have it done again."""
        ends = (build(event.run, event.step, event.attempt) for build in _ENDS.values())
        found = await asyncio.gather(*(self._bus.last_on(EVENTS, subject) for subject in ends))
        return any(last is not None and last[0] > event.seq for last in found)

    def _on_step_cancel_requested(self, subject: str, data: bytes, _reply: str, _headers: object) -> None:
        event = read(subject, CORE_SEQ, 0, data)
        in_hand = self._in_hand.get(_attempt(event))
        if in_hand is not None and isinstance(event.body, StepCancelRequested):
            in_hand.end(event.body.reason)

    async def say_instantly(self, puller: Puller, delivery: Delivery, event: Event, instant: Instant) -> None:
        try:
            at = rfc3339(now_ns())
            outcome: StepCompleted | StepFailed = StepCompleted(
                outputs=instant(), host=self._host, started_at=at, ended_at=at
            )
        except TaskFailed as failed:
            outcome = self.failed(failed.error, failed.message)
        subject = _end_subject(event, outcome)

        def said(seq: int) -> Awaitable[None] | None:
            if seq:
                return puller.ack(delivery)
            # In a task of its own: it may append, and acks are heard one at a time, so the next one would never come.
            self.begin(puller, delivery, asyncio.create_task(self._settle_later(puller, delivery, event, subject)))
            return None

        await self._appender.say(subject, encode(outcome), said)

    async def _settle_later(self, puller: Puller, delivery: Delivery, event: Event, subject: str) -> None:
        try:
            await self._settle(puller, delivery, event, subject)
        except Unavailable as error:
            log.warning("run %d step %s is delivered again: %s", event.run, event.step, error)

    async def say_end(
        self, puller: Puller, delivery: Delivery, event: Event, outcome: StepCompleted | StepFailed | StepCancelled
    ) -> bool:
        """Say the attempt's end and ack; whether it is this one that the stream holds."""
        subject, data = _end_subject(event, outcome), encode(outcome)
        try:
            await self._appender.append(subject, data)
        except AlreadySaid:
            return await self._settle(puller, delivery, event, subject) == data
        await puller.ack(delivery)
        return True

    async def _settle(self, puller: Puller, delivery: Delivery, event: Event, subject: str) -> bytes | None:
        """The attempt's end was refused; what is stored in its place comes back.

        Said before by whoever had the step (or by us, and the ack was lost): all is well. Said before the step was
        dispatched, by a stranger: then it ends nothing, and the attempt has to fail where that can still be said.
        """
        stored = await self._bus.last_on(EVENTS, subject)
        if stored is not None and stored[0] < delivery.seq:
            other = step_failed(event.run, event.step, event.attempt)
            lost = self.failed("result_occupied", f"{subject} was said before the step was dispatched", retryable=True)
            with contextlib.suppress(AlreadySaid):  # both taken: the step's timer ends the attempt
                await self._appender.append(other, encode(lost))
        await puller.ack(delivery)
        return stored[1] if stored else None

    async def _outcome(
        self, handler: Handler, task: Task, event: Event, started_ns: int, in_hand: "_InHand"
    ) -> StepCompleted | StepFailed | StepCancelled:
        """Run the handler within its time; whatever it does, an outcome comes back.

        It comes back when the handler has: one that is cancelled ends its processes and sees them gone before.
        """
        left_s = (task.deadline_ns - now_ns()) / NS_PER_S
        error, message, retryable = "internal_error", "", False
        try:
            if left_s <= 0:
                raise TimeoutError
            async with asyncio.timeout(left_s):
                outputs = await in_hand.run(handler(task))
            _check(outputs)
            return StepCompleted(
                outputs=outputs,
                artifacts=task.artifacts,
                host=self._host,
                started_at=rfc3339(started_ns),
                ended_at=rfc3339(now_ns()),
            )
        except _Ended as asked:
            return StepCancelled(
                reason=as_text(str(asked)[:MESSAGE_CHARS_MAX]),
                host=self._host,
                started_at=rfc3339(started_ns),
                ended_at=rfc3339(now_ns()),
            )
        except TaskFailed as failed:
            error, message, retryable = failed.error, failed.message, failed.retryable
        except Malformed as malformed:
            error, message = "malformed_input", f"{malformed.field}: {malformed.message}"
        except Unavailable as away:
            error, message, retryable = "unavailable", away.message, True
        except TimeoutError:
            error, message = "timeout", f"the step was ended at its deadline, {max(0.0, left_s):.1f} s after it began"
        except RemitError as trouble:
            error, message = "refused", trouble.message
        except Exception as bug:
            # A handler's bug must end its attempt, not its worker. Its text stays here: it may quote what was read.
            log.exception("run %d step %s: the handler failed", event.run, event.step)
            message, retryable = _place(bug), True
        return StepFailed(
            error=error,
            message=as_text(redact(message)[:MESSAGE_CHARS_MAX]),
            retryable=retryable,
            host=self._host,
            started_at=rfc3339(started_ns),
            ended_at=rfc3339(now_ns()),
        )

    async def _count_lost_call(self, task: Task, story: Story) -> None:
        """A worker that was killed in the middle of a call of a model has left its mark, and nobody knows what the call
        used: it is said to be unknown, which charges all that was left of the grant.
        """
        begun = await task.llm_calls_begun()
        known = sum(
            isinstance(told.event.body, LlmCalled)
            and told.event.step == task.step
            and not told.note
            and told.event.tail.startswith(f"{task.attempt}-")
            for told in story.told
        )
        if begun > known:
            await task.say_llm_called(LlmCalled(request_model="unknown", outcome="lost"))
            task.token_grant = 0

    def _task(self, event: Event, *, spent: int) -> Task:
        body: StepDispatched = event.body
        calls = 0

        async def say_llm_called(call: LlmCalled) -> None:
            # The name holds the attempt: a call of the second attempt is another call. So is one of a second delivery:
            # a worker that was killed behind its call has taken that name, and this call has to be counted, too.
            nonlocal calls
            data = encode(call)
            while True:
                calls += 1
                subject = llm_called(event.run, event.step, f"{event.attempt}-{calls}")
                try:
                    await self._appender.append(subject, data)
                    return
                except AlreadySaid:
                    stored = await self._bus.last_on(EVENTS, subject)
                    if stored is not None and stored[1] == data:
                        return  # by us, and only the ack was lost

        return Task(
            self._bus,
            run=event.run,
            step=event.step,
            task=event.tail,
            attempt=event.attempt,
            inputs=body.inputs,
            goal=body.goal,
            deadline_ns=min(_deadline_ns(body), event.at_ns + int(body.timeout_s * NS_PER_S)),
            token_grant=max(0, body.token_grant - spent),
            said_llm=say_llm_called,
        )

    async def beat(self, puller: Puller, delivery: Delivery, event: Event) -> None:
        """Renew the lease, for ever; and look whether a request to cancel was missed."""
        asked = step_cancel_requested(event.run, event.step, event.attempt)
        while True:
            await asyncio.sleep(HEARTBEAT_S)
            with contextlib.suppress(RemitError):
                await puller.in_progress(delivery)
                if (stored := await self._bus.last_on(EVENTS, asked)) and stored[0] > event.seq:
                    self._on_step_cancel_requested(asked, stored[1], "", None)

    def failed(self, error: str, message: str, *, retryable: bool = False) -> StepFailed:
        at = rfc3339(now_ns())
        return StepFailed(
            error=error, message=message, retryable=retryable, host=self._host, started_at=at, ended_at=at
        )


class _Ended(Exception):
    """The step was asked to end."""


class _InHand:
    """A handler at work, which can be asked to end, also before it has begun."""

    def __init__(self, seq: int) -> None:
        self.seq = seq
        self._reason: str | None = None
        self._work: asyncio.Task[Outputs] | None = None

    def end(self, reason: str) -> None:
        if self._reason is None:
            self._reason = reason or "cancelled"
            if self._work is not None:
                self._work.cancel()

    async def run(self, handler: Coroutine[Any, Any, Outputs]) -> Outputs:
        if self._reason is not None:
            handler.close()
            raise _Ended(self._reason)
        self._work = asyncio.create_task(handler)
        try:
            return await self._work
        except asyncio.CancelledError:
            current = asyncio.current_task()
            if self._reason is None or (current is not None and current.cancelling()):
                raise  # the worker itself ends, or the step's time is over
            raise _Ended(self._reason) from None


def _place(bug: Exception) -> str:
    """What kind of error it is, and the line of code that it came from."""
    last = traceback.extract_tb(bug.__traceback__)[-1]
    return f"{type(bug).__name__} in {last.name}, {Path(last.filename).name} line {last.lineno}"


def _attempt(event: Event) -> Attempt:
    return event.run, event.step, event.attempt


_ENDS = {StepCompleted: step_completed, StepFailed: step_failed, StepCancelled: step_cancelled}


def _end_subject(event: Event, outcome: StepCompleted | StepFailed | StepCancelled) -> str:
    return _ENDS[type(outcome)](event.run, event.step, event.attempt)


def _deadline_ns(body: StepDispatched) -> int:
    try:
        return parse_ns(body.deadline)
    except ValueError as error:
        raise Malformed(str(error), field="deadline") from error


def _check(outputs: Outputs) -> None:
    size = len(msgspec.json.encode(outputs))
    if size > OUTPUTS_BYTES_MAX:
        raise TaskFailed("outputs_too_large", f"{size} bytes of outputs; at most {OUTPUTS_BYTES_MAX}: use an artifact")

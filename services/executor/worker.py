"""The worker: pulls dispatched steps of the tasks that it knows, performs them, says how they ended.

Theory of operation. A delivery is a lease, renewed three times in it while the step runs; the worker acks only when the
stream holds the attempt's end. kill -9 therefore means another delivery, to this worker's successor or to another one.
Before a step runs, the worker looks whether its attempt has ended already (an ack may be lost although the result is
stored), so no finished step is repeated; a zombie that wakes later is refused by the create-only append. A step that
has ended its worker `DELIVERIES_MAX` times ends as `worker_lost`.
"""

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Mapping

import msgspec

from services.executor.handlers import Handler, Instant, Outputs, Task, TaskFailed
from shared.append import Appender
from shared.bus import Bus
from shared.clock import NS_PER_S, now_ns, parse_ns, rfc3339
from shared.errors import AlreadySaid, Malformed, RemitError, Unavailable
from shared.events import OUTPUTS_BYTES_MAX, Event, LlmCalled, StepCompleted, StepDispatched, StepFailed, encode, read
from shared.pull import Delivery, Puller
from shared.redact import redact
from shared.streams import OWN_ACK_WAIT_S, worker_queue
from shared.subjects import (
    EVENTS,
    llm_called,
    run_completed,
    step_completed,
    step_failed,
    step_skipped,
    worker_consumer,
)

log = logging.getLogger("remit.worker")

DELIVERIES_MAX = 3
HEARTBEAT_S = OWN_ACK_WAIT_S / 3
MESSAGE_CHARS_MAX = 1_000
DRAIN_S = 10.0
# Steps of one task at a time in this process; what is heavy is bounded by the machine, not by the fleet.
SLOTS_DEFAULT = 4
INSTANT_BATCH = 256


class Worker:
    """Performs the tasks of `handlers`, each from its own queue `worker-<task>`.

    `instants` are tasks without any effect: they need no lease to be kept and may be done over, so they are answered
    on the spot.
    """

    def __init__(
        self,
        bus: Bus,
        appender: Appender,
        host: str,
        handlers: Mapping[str, Handler],
        slots: Mapping[str, int],
        instants: Mapping[str, Instant],
    ) -> None:
        self._instants = instants
        self._bus = bus
        self._appender = appender
        self._host = host
        self._handlers = handlers
        self._slots = slots
        self._pullers: dict[str, Puller] = {}
        self._running: dict[asyncio.Task[None], tuple[Puller, Delivery]] = {}

    async def start(self) -> None:
        for task, handler in self._handlers.items():
            await worker_queue(self._bus, task)
            slots = self._slots.get(task, SLOTS_DEFAULT)
            lane = _Lane(self, handler, slots)
            puller = Puller(self._bus, EVENTS, worker_consumer(task), lane.on_step_dispatched, batch=slots)
            lane.puller = self._pullers[task] = puller
            await puller.start()
        for task, instant in self._instants.items():
            await worker_queue(self._bus, task)
            flash = _Flash(self, instant)
            puller = Puller(self._bus, EVENTS, worker_consumer(task), flash.on_step_dispatched, batch=INSTANT_BATCH)
            flash.puller = self._pullers[task] = puller
            await puller.start()

    async def stop(self) -> None:
        """Take no more, let what runs finish for a while, give the rest back at once."""
        for puller in self._pullers.values():
            await puller.stop()
        if self._running:
            await asyncio.wait(self._running, timeout=DRAIN_S)
        for running, (puller, delivery) in list(self._running.items()):
            running.cancel()
            await puller.give_back(delivery)
        await self._appender.drain()

    def begin(self, puller: Puller, delivery: Delivery, work: asyncio.Task[None]) -> None:
        self._running[work] = (puller, delivery)
        work.add_done_callback(lambda done: self._running.pop(done, None))

    # -- one step ------------------------------------------------------------------------------------------

    async def perform(self, puller: Puller, handler: Handler, delivery: Delivery, event: Event) -> None:
        """From lease to acknowledged end."""
        said = await self._ends(event)
        if any(seq > event.seq or subject not in self._own_ends(event) for subject, seq in said.items()):
            await puller.ack(delivery)
            return
        if (occupied := step_completed(event.run, event.step, event.attempt)) in said:
            await self._settle(puller, delivery, event, occupied)  # no result could be said: spend nothing on it
            return
        started = now_ns()
        task = self._task(event)
        outcome = await self._outcome(handler, task, delivery, event, started)
        accepted = await self.say_end(puller, delivery, event, outcome)
        for action in task.when_accepted if accepted and isinstance(outcome, StepCompleted) else ():
            try:
                await action()
            except RemitError as error:
                log.warning("run %d step %s: after its end: %s", event.run, event.step, error)

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
        self, puller: Puller, delivery: Delivery, event: Event, outcome: StepCompleted | StepFailed
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
        self, handler: Handler, task: Task, delivery: Delivery, event: Event, started_ns: int
    ) -> StepCompleted | StepFailed:
        """Run the handler within its time; whatever it does, an outcome comes back."""
        body: StepDispatched = event.body
        left_s = (min(task.deadline_ns, delivery.at_ns + int(body.timeout_s * NS_PER_S)) - now_ns()) / NS_PER_S
        error, message, retryable = "internal_error", "", False
        try:
            if left_s <= 0:
                raise TimeoutError
            async with asyncio.timeout(left_s):
                outputs = await handler(task)
            _check(outputs)
            return StepCompleted(
                outputs=outputs,
                artifacts=task.artifacts,
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
            # A handler's bug must end its attempt, not its worker; the type and text are all that leaves here.
            log.exception("run %d step %s: the handler failed", event.run, event.step)
            message, retryable = f"{type(bug).__name__}: {bug}", True
        return StepFailed(
            error=error,
            message=_text(redact(message)[:MESSAGE_CHARS_MAX]),
            retryable=retryable,
            host=self._host,
            started_at=rfc3339(started_ns),
            ended_at=rfc3339(now_ns()),
        )

    def _task(self, event: Event) -> Task:
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
            attempt=event.attempt,
            inputs=body.inputs,
            goal=body.goal,
            deadline_ns=_deadline_ns(body),
            token_grant=body.token_grant,
            said_llm=say_llm_called,
        )

    async def _ends(self, event: Event) -> dict[str, int]:
        """What the stream holds as an end of the attempt, its step or its run: sequences by subject."""
        ends = [*self._own_ends(event), step_skipped(event.run, event.step), run_completed(event.run)]
        # Each from the leader: a node that is behind would have finished work done again.
        found = await asyncio.gather(*(self._bus.last_on(EVENTS, subject) for subject in ends))
        return {subject: last[0] for subject, last in zip(ends, found, strict=True) if last}

    def _own_ends(self, event: Event) -> tuple[str, str]:
        """Where the attempt itself may end. What was said there before its dispatch ends nothing."""
        of_attempt = (event.run, event.step, event.attempt)
        return step_completed(*of_attempt), step_failed(*of_attempt)

    async def beat(self, puller: Puller, delivery: Delivery) -> None:
        """Renew the lease, for ever."""
        while True:
            await asyncio.sleep(HEARTBEAT_S)
            with contextlib.suppress(Unavailable):
                await puller.in_progress(delivery)

    def failed(self, error: str, message: str, *, retryable: bool = False) -> StepFailed:
        at = rfc3339(now_ns())
        return StepFailed(
            error=error, message=message, retryable=retryable, host=self._host, started_at=at, ended_at=at
        )


class _Queue:
    """One task's queue: reads what is delivered, leaves out what is no dispatch."""

    puller: Puller

    async def _read(self, delivery: Delivery) -> Event | None:
        event = read(delivery.subject, delivery.seq, delivery.at_ns, delivery.data)
        if isinstance(event.body, StepDispatched):
            return event
        # Nothing that anybody can perform; the fold takes the attempt for lost, too.
        log.warning("%s cannot be read: %s", delivery.subject, event.body)
        await self.puller.ack(delivery)
        return None


class _Flash(_Queue):
    """The queue of a task without effects."""

    def __init__(self, worker: Worker, instant: Instant) -> None:
        self._worker = worker
        self._instant = instant

    async def on_step_dispatched(self, delivery: Delivery) -> None:
        event = await self._read(delivery)
        if event is not None:
            await self._worker.say_instantly(self.puller, delivery, event, self._instant)


class _Lane(_Queue):
    """The queue of a task that takes its time, so many at once.

    When all slots are taken no more is asked for: others may be idle. What was asked for before stands in line, and
    its lease is renewed there, too; it would be delivered again, here or elsewhere, and be taken for lost in the end.
    """

    def __init__(self, worker: Worker, handler: Handler, slots: int) -> None:
        self._worker = worker
        self._handler = handler
        self._most = slots
        self._slots = asyncio.Semaphore(slots)
        self._in_hand = 0

    async def on_step_dispatched(self, delivery: Delivery) -> None:
        event = await self._read(delivery)
        if event is not None:
            self._in_hand += 1
            await self.puller.pause(self._in_hand >= self._most)
            self._worker.begin(self.puller, delivery, asyncio.create_task(self._work(delivery, event)))

    async def _work(self, delivery: Delivery, event: Event) -> None:
        heart = asyncio.create_task(self._worker.beat(self.puller, delivery))
        try:
            async with self._slots:
                if delivery.delivered > DELIVERIES_MAX:
                    lost = f"the step ended its worker {DELIVERIES_MAX} times"
                    await self._worker.say_end(self.puller, delivery, event, self._worker.failed("worker_lost", lost))
                else:
                    await self._worker.perform(self.puller, self._handler, delivery, event)
        except Unavailable as error:
            # NATS is away: the lease ends by itself and the step is delivered again.
            log.warning("run %d step %s: %s", event.run, event.step, error)
        except Malformed as error:
            # What a dispatch of the executor never holds; nobody can perform it.
            said = self._worker.failed("malformed_input", f"{error.field}: {error.message}")
            await self._worker.say_end(self.puller, delivery, event, said)
        finally:
            heart.cancel()
            self._in_hand -= 1
            await self.puller.pause(self._in_hand >= self._most)


def _end_subject(event: Event, outcome: StepCompleted | StepFailed) -> str:
    build = step_completed if isinstance(outcome, StepCompleted) else step_failed
    return build(event.run, event.step, event.attempt)


def _text(message: str) -> str:
    """What an event can hold: the name of a file, say, may be bytes that are no text."""
    return message.encode(errors="replace").decode()


def _deadline_ns(body: StepDispatched) -> int:
    try:
        return parse_ns(body.deadline)
    except ValueError as error:
        raise Malformed(str(error), field="deadline") from error


def _check(outputs: Outputs) -> None:
    size = len(msgspec.json.encode(outputs))
    if size > OUTPUTS_BYTES_MAX:
        raise TaskFailed("outputs_too_large", f"{size} bytes of outputs; at most {OUTPUTS_BYTES_MAX}: use an artifact")

"""The queues of a worker: what is delivered is read, waits for a slot, and is handed to the worker."""

import asyncio
import logging
from typing import Protocol

from services.executor.handlers import Handler, Instant
from shared.errors import Malformed, Unavailable
from shared.events import Event, StepCompleted, StepDispatched, StepFailed, read
from shared.pull import Delivery, Puller

log = logging.getLogger("remit.worker")

DELIVERIES_MAX = 3


class Works(Protocol):
    """What a queue needs of its worker."""

    hands: asyncio.Semaphore

    def begin(self, puller: Puller, delivery: Delivery, work: asyncio.Task[None]) -> None: ...
    async def beat(self, puller: Puller, delivery: Delivery, event: Event) -> None: ...
    async def perform(self, puller: Puller, handler: Handler, delivery: Delivery, event: Event) -> None: ...
    async def say_instantly(self, puller: Puller, delivery: Delivery, event: Event, instant: Instant) -> None: ...
    async def say_end(
        self, puller: Puller, delivery: Delivery, event: Event, outcome: StepCompleted | StepFailed
    ) -> bool: ...
    def failed(self, error: str, message: str, *, retryable: bool = False) -> StepFailed: ...


async def _read(puller: Puller, delivery: Delivery) -> Event | None:
    event = read(delivery.subject, delivery.seq, delivery.at_ns, delivery.data)
    if isinstance(event.body, StepDispatched):
        return event
    # Nothing that anybody can perform; the fold takes the attempt for lost, too.
    log.warning("%s cannot be read: %s", delivery.subject, event.body)
    await puller.ack(delivery)
    return None


class Flash:
    """The queue of a task without effects."""

    def __init__(self, worker: Works, instant: Instant) -> None:
        self._worker = worker
        self._instant = instant

    async def on_step_dispatched(self, puller: Puller, delivery: Delivery) -> None:
        event = await _read(puller, delivery)
        if event is not None:
            await self._worker.say_instantly(puller, delivery, event, self._instant)


class Lane:
    """The queues of a task that takes its time, so many at once.

    When all slots are taken no more is asked for: others may be idle. What was asked for before stands in line, and
    its lease is renewed there, too; it would be delivered again, here or elsewhere, and be taken for lost in the end.

    A lease that ends all the same (NATS was away for longer) brings the step here again while it is in hand: that is
    left alone, as the heartbeats and the ack of the first delivery are those of the second, too.
    """

    def __init__(self, worker: Works, handler: Handler, slots: int) -> None:
        self._worker = worker
        self._handler = handler
        self._most = slots
        self._slots = asyncio.Semaphore(slots)
        self._in_hand: set[int] = set()  # dispatches, by their sequences
        self._pullers: list[Puller] = []

    def add(self, puller: Puller) -> None:
        """One more queue that this lane serves."""
        self._pullers.append(puller)

    async def on_step_dispatched(self, puller: Puller, delivery: Delivery) -> None:
        event = await _read(puller, delivery)
        if event is not None and event.seq not in self._in_hand:
            self._in_hand.add(event.seq)
            await self._pause()
            self._worker.begin(puller, delivery, asyncio.create_task(self._work(puller, delivery, event)))

    async def _pause(self) -> None:
        for puller in self._pullers:
            await puller.pause(len(self._in_hand) >= self._most)

    async def _work(self, puller: Puller, delivery: Delivery, event: Event) -> None:
        heart = asyncio.create_task(self._worker.beat(puller, delivery, event))
        try:
            async with self._slots, self._worker.hands:
                if delivery.delivered > DELIVERIES_MAX:
                    lost = f"the step ended its worker {DELIVERIES_MAX} times"
                    await self._worker.say_end(puller, delivery, event, self._worker.failed("worker_lost", lost))
                else:
                    await self._worker.perform(puller, self._handler, delivery, event)
        except Unavailable as error:
            # NATS is away: the lease ends by itself and the step is delivered again.
            log.warning("run %d step %s: %s", event.run, event.step, error)
        except Malformed as error:
            # What a dispatch of the executor never holds; nobody can perform it.
            said = self._worker.failed("malformed_input", f"{error.field}: {error.message}")
            await self._worker.say_end(puller, delivery, event, said)
        finally:
            heart.cancel()
            self._in_hand.remove(event.seq)
            await self._pause()

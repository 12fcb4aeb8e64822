"""The decider's shell: reads EVENTS in order, folds, says what follows.

Correctness rests on the create-only appends, not on who runs: any number of these may run on any hosts. While the
stream up to the start is read, nothing is said; then everything that is due is said at once, and most of it was said
before.
"""

import asyncio
import logging

from services.executor.decide import Fact
from services.executor.engine import Engine
from services.executor.timers import Timers
from shared.append import Appender
from shared.bus import Bus
from shared.config import Config
from shared.errors import RemitError
from shared.events import encode, read
from shared.pull import Reader
from shared.streams import last_seq, worker_queue
from shared.subjects import EVENTS

log = logging.getLogger("remit.executor")


class Executor:
    """Hears every event, says what follows from it."""

    def __init__(self, bus: Bus, appender: Appender, config: Config) -> None:
        self._bus = bus
        self._appender = appender
        self._config = config
        self._reader = Reader(bus, EVENTS, self.on_event)
        self._timers = Timers(bus, appender)
        self._known_end = 0
        self.engine = Engine()

    async def start(self) -> None:
        self._known_end = await last_seq(self._bus)
        if self._known_end == 0:
            self.engine.due()
        await self._reader.start()
        self._keeper = asyncio.create_task(self._keep())

    async def stop(self) -> None:
        self._keeper.cancel()
        await self._reader.stop()
        await self._appender.drain()

    async def failed(self) -> None:
        """Wait until the fold or its keeping cannot go on, and raise why."""
        done, _ = await asyncio.wait(
            [asyncio.create_task(self._reader.failed()), self._keeper], return_when=asyncio.FIRST_COMPLETED
        )
        for one in done:
            one.result()

    async def on_event(self, subject: str, seq: int, at_ns: int, data: bytes) -> None:
        event = read(subject, seq, at_ns, data)
        facts = self.engine.apply(event)
        if event.kind == "run.completed":
            await self._timers.run_ended(event.run)
        if not self.engine.deciding and seq >= self._known_end:
            facts = self.engine.due()
            log.info("read %d events; %d runs are active, %d facts are due", seq, len(self.engine.runs), len(facts))
        for fact in facts:
            await self._say(fact)

    async def _say(self, fact: Fact) -> None:
        await self._appender.say(fact[0], encode(fact[1]))

    async def _keep(self) -> None:
        """Once a second: queues for tasks that were added, timers for what has run for a while."""
        queues: set[str] = set()
        while True:
            await asyncio.sleep(1)
            if not self._bus.is_connected:
                continue
            try:
                for task in self._config.catalogue.tasks:
                    if task.name not in queues:
                        await worker_queue(self._bus, task.name)
                        queues.add(task.name)
                if self.engine.deciding:
                    await self._timers.keep(self.engine)
            except RemitError as error:
                log.warning("queues and timers wait for the next second: %s", error)

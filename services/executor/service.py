"""The decider's shell: reads EVENTS in order, folds, says what follows.

Correctness rests on the create-only appends, not on who runs: any number of these may run on any hosts. While the
stream up to the start is read, nothing is said; then everything that is due is said at once, and most of it was said
before.
"""

import asyncio
import itertools
import logging
import tempfile
from collections.abc import Awaitable
from pathlib import Path

from services.executor import snapshot
from services.executor.engine import Engine
from services.executor.performing import Fact
from services.executor.schedule_keeper import ScheduleKeeper
from services.executor.schedules import HEARD
from services.executor.timers import Timers
from shared.age_limit import take_off_expired
from shared.append import Appender
from shared.bus import Bus
from shared.clock import NS_PER_S, now_ns
from shared.config import Config
from shared.errors import RemitError
from shared.events import StepCompleted, encode, read
from shared.plan import TaskSpec
from shared.pull import Reader
from shared.settings import Count, setting
from shared.streams import PENDING_MAX, first_seq, planner_queue, standing, worker_queue
from shared.subjects import EVENTS, SNAPSHOTS_BUCKET, TIMER_AT

log = logging.getLogger("remit.executor")

QUEUES_AGAIN_S = 30
NOT_SET = -1  # as the limit of a queue: no task has such a one
SNAPSHOT_EVENTS = 50_000  # a new executor reads at most about so many: half a second


class Executor:
    """Hears every event, says what follows from it."""

    def __init__(self, bus: Bus, appender: Appender, config: Config) -> None:
        self._bus = bus
        self._appender = appender
        self._config = config
        self._timers = Timers(bus, appender)
        self._schedules = ScheduleKeeper(bus, appender, config)
        self._snapshot_events = setting("SNAPSHOT_EVENTS", Count, SNAPSHOT_EVENTS)
        self._limits: dict[str, int | None] = {}  # of the queues that are there, as this executor has set them
        self._known_end = 0
        self.engine = Engine()

    async def start(self) -> None:
        self._created, self._known_end = await standing(self._bus)
        begin, begin_ns = await first_seq(self._bus)
        await self._recall()
        self._pass_over(begin, begin_ns)
        self._kept_at = self.engine.position
        if self.engine.position >= self._known_end:
            await self._begin_to_decide()
        begin = self.engine.position + 1
        # Whole: who stood still while messages were let go would decide over runs whose ends it has not heard. It ends
        # instead, and begins anew where the stream does.
        self._reader = await Reader(self._bus, EVENTS, self.on_event, start_seq=begin, whole=True).start()
        self._keeper = asyncio.create_task(self._keep())
        self._scheduler = asyncio.create_task(self._schedules.keep(self.engine))

    def _pass_over(self, begin: int, begin_ns: int) -> None:
        """What the stream does not have any more (docs/archive.md): no run that is active, and ticks long decided."""
        if begin == 1:
            return
        if self.engine.position < begin - 1:
            # A memory from before that is not believed either: how its runs ended is among what is gone.
            log.info("the stream begins with message %d: nothing before it is active", begin)
            self.engine = Engine()
            self.engine.position = begin - 1
        # The newest tick of a schedule that seldom fires may be gone, and must not be decided again.
        self.engine.schedules.floor_s = (begin_ns or now_ns()) // NS_PER_S

    async def stop(self) -> None:
        self._keeper.cancel()
        self._scheduler.cancel()
        await self._reader.stop()
        await self._appender.drain()

    async def failed(self) -> None:
        """Wait until the fold or its keeping cannot go on, and raise why."""
        await asyncio.gather(self._reader.failed(), asyncio.shield(self._keeper), asyncio.shield(self._scheduler))

    def on_event(self, subject: str, seq: int, at_ns: int, data: bytes) -> Awaitable[None] | None:
        # Not a coroutine: it runs for every message, and after half of them there is nothing to be said.
        event = read(subject, seq, at_ns, data)
        facts = self.engine.apply(event)
        if event.kind in HEARD and self.engine.schedules.apply(event, self.engine.runs):
            self._schedules.alarm.set()
        ended = event.run if event.kind == "run.completed" and self._timers.has(event.run) else 0
        if facts or ended or not self.engine.deciding:
            return self._follow(seq, facts, ended)
        return None

    async def _follow(self, seq: int, facts: list[Fact], ended: int) -> None:
        if ended:
            await self._timers.run_ended(ended)
        for fact in facts:
            await self._say(fact)
        if not self.engine.deciding and seq >= self._known_end:
            await self._begin_to_decide()

    async def _begin_to_decide(self) -> None:
        facts = self.engine.due()
        runs = len(self.engine.runs)
        log.info("at event %d: %d runs are active, %d facts are due", self.engine.position, runs, len(facts))
        for fact in facts:
            await self._say(fact)

    async def _say(self, fact: Fact) -> None:
        subject, body = fact
        try:
            if subject.startswith(TIMER_AT):
                await self._timers.say(subject, body)
                return
            await self._appender.say(subject, encode(body))
        except RemitError as error:
            # One that no server takes: what it says is a stranger's, larger than it came. That run stands until its
            # time is over; the others must not stand with it.
            log.error("%s can never be said: %s", subject, error)
            return
        if isinstance(body, StepCompleted) and "severity" in body.outputs:
            log.warning("notice: %s: %s", subject, body.outputs.get("message"))

    async def _recall(self) -> None:
        """Begin with what an executor like this one has kept, if there is any."""
        with tempfile.TemporaryDirectory() as folder:
            into = Path(folder) / "snapshot"
            try:
                await self._bus.object_get(SNAPSHOTS_BUCKET, self._snapshot_name(), into)
            except RemitError as error:
                log.debug("no snapshot: %s", error)
                return
            data = into.read_bytes()
        engine = await asyncio.to_thread(snapshot.decode, data, self._created, self._known_end)
        if engine is not None:
            self.engine = engine
            log.info("began with the snapshot at event %d", engine.position)

    async def _remember(self) -> None:
        """Keep the engine's memory for the next executor, when the stream has gone on far enough."""
        if self.engine.position - self._kept_at < self._snapshot_events:
            return
        self._kept_at = self.engine.position
        taken = snapshot.take(self.engine, self._created)
        data = await asyncio.to_thread(snapshot.encode, taken)
        await self._bus.object_put(SNAPSHOTS_BUCKET, self._snapshot_name(), data)

    @staticmethod
    def _snapshot_name() -> str:
        return f"executor-{snapshot.fold_version()}"

    async def _keep(self) -> None:
        """Once a second: timers for what has run for a while, a snapshot, queues for tasks that were added."""
        for second in itertools.count():
            await asyncio.sleep(1)
            if not self._bus.is_connected:
                continue
            # First, and whatever becomes of the others: without its timers no run would ever be out of time.
            if self.engine.deciding:
                await _tried("timers", self._timers.keep(self.engine))
                await _tried("the snapshot", self._remember())
            again = second % QUEUES_AGAIN_S == 0  # a queue that somebody deleted leaves its work lying for ever
            if again:
                await _tried("the planner's queue", planner_queue(self._bus))
                await _tried("a limit that was left standing", take_off_expired(self._bus))
            for task in self._config.catalogue.tasks:
                if again or self._limits.get(task.name, NOT_SET) != task.max_concurrent:
                    await _tried(f"the queue of task {task.name}", self._keep_queue(task))

    async def _keep_queue(self, task: TaskSpec) -> None:
        # A limit that is there no more is taken off; a queue without one keeps an operator's own.
        lifted = PENDING_MAX if self._limits.get(task.name) else None
        await worker_queue(self._bus, task.name, at_once=task.max_concurrent or lifted)
        self._limits[task.name] = task.max_concurrent


async def _tried(what: str, duty: Awaitable[None]) -> None:
    """What cannot be done now is done later, and keeps nothing else from being done."""
    try:
        await duty
    except RemitError as error:
        log.warning("%s cannot be kept just now: %s", what, error)

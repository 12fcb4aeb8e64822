"""The shell of schedules: looks what is due when the server's alarm rings and once a second, says it, sets the alarms.

An alarm is a message in TIMERS that the NATS server fires by its own cron into EVENTS, where it wakes every executor.
Nothing rests on it: a tick whose alarm was lost, or that the server's cron knows nothing of, is a second late.
"""

import asyncio
import contextlib
import logging
from collections.abc import Mapping

import msgspec

from services.executor.engine import Engine
from services.executor.schedules import Saying
from shared.append import Appender, NotTaken, append_once
from shared.bus import Bus
from shared.clock import NS_PER_S, now_ns
from shared.config import Config
from shared.errors import AlreadySaid, RemitError, Unavailable
from shared.events import encode
from shared.schedule import Schedule, check_schedule, six_fields
from shared.streams import server_now_ns
from shared.subjects import EVENTS, SCHEDULE_ALARMS, TIMERS, schedule_alarm, schedule_alarm_fired, schedule_key

log = logging.getLogger("remit.schedules")

LOOK_S = 1.0
AGAIN_S = 30.0  # an alarm that somebody purged, or that an executor with an older view has set; a clock that drifts


class ScheduleKeeper:
    def __init__(self, bus: Bus, appender: Appender, config: Config) -> None:
        self._bus = bus
        self._appender = appender
        self._config = config
        self._revision = -1
        self._schedules: dict[str, Schedule] = {}
        self._alarms_s = self._clock_s = 0.0
        self._ahead_ns = 0  # of the server's clock before this host's
        self._refused: dict[str, bytes] = {}
        self.alarm = asyncio.Event()  # set when something may be due before the next second

    async def keep(self, engine: Engine) -> None:
        """Look, again and again; nothing is decided before `engine` decides."""
        while not engine.deciding:
            await asyncio.sleep(LOOK_S)
        # What was due at the start has been read back by then: a run that had only its end left is no active one.
        await asyncio.sleep(LOOK_S)
        while True:
            self.alarm.clear()
            if self._bus.is_connected:
                try:
                    await self._set_clock()
                    await self._look(engine)
                    await self._set_alarms(self._configured())
                except RemitError as error:
                    log.warning("schedules wait for the next second: %s", error)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self.alarm.wait(), LOOK_S)

    async def _look(self, engine: Engine) -> None:
        now_s = (now_ns() + self._ahead_ns) / NS_PER_S
        sayings = engine.schedules.decide(self._configured(), now_s, engine.position)
        refused: set[str] = set()
        for saying in sayings:
            if saying.schedule in refused:
                continue  # another executor has decided, and what follows is for the next look
            if not self._bus.is_connected:
                return  # when it is again, time has passed
            try:
                seq, own = await self._say(saying)
            except Unavailable:
                raise
            except RemitError as error:  # no server takes it; the other schedules do not wait for it
                log.error("%s can never be said: %s", saying.subject, error)
                refused.add(saying.schedule)
                continue
            engine.schedules.answered(saying, seq)
            if not own:
                refused.add(saying.schedule)
            elif not saying.is_goal:
                log.info("%s of %s: %s %s", saying.schedule, saying.body.local, saying.body.outcome, saying.body.reason)

    async def _set_clock(self) -> None:
        """Go by the clock of the server, which stamps the stream and rings the alarms: one for all executors."""
        now_s = asyncio.get_running_loop().time()
        if now_s < self._clock_s:
            return
        before_ns = now_ns()
        server_ns = await server_now_ns(self._bus)
        after_ns = now_ns()
        if after_ns - before_ns < NS_PER_S:  # a slow answer tells little
            self._ahead_ns = server_ns - (before_ns + after_ns) // 2
            self._clock_s = now_s + AGAIN_S

    async def _say(self, saying: Saying) -> tuple[int, bool]:
        """The sequence of what lies on the subject now, and whether it is ours. Acks are awaited: order matters."""
        try:
            return await self._appender.append(saying.subject, encode(saying.body)), True
        except AlreadySaid:
            stored = await self._bus.last_on(EVENTS, saying.subject)
            return (stored[0] if stored else 0), False

    def _configured(self) -> Mapping[str, Schedule]:
        """The schedules that can be ones; what cannot is told once for each change of the bucket."""
        if self._revision != self._config.revision:
            self._revision = self._config.revision
            self._alarms_s = 0.0
            self._schedules = {}
            for name, found in self._config.entries(schedule_key(""), Schedule).items():
                schedule = msgspec.structs.replace(found, name=name)
                problems = check_schedule(schedule, now_ns() // NS_PER_S)
                if problems:
                    said = "; ".join(f"{one.field}: {one.reason}" for one in problems)
                    log.warning("schedule %s is left out: %s", name[:80], said)
                else:
                    self._schedules[name] = schedule
        return self._schedules

    # -- alarms --------------------------------------------------------------------------------------------

    async def _set_alarms(self, schedules: Mapping[str, Schedule]) -> None:
        """Make the messages in TIMERS those of the schedules: after a change, and now and then."""
        now_s = asyncio.get_running_loop().time()
        if now_s < self._alarms_s:
            return
        self._alarms_s = now_s + AGAIN_S
        wanted = {schedule_alarm(name): (name, one, _body(one)) for name, one in schedules.items()}
        found = await self._bus.direct(TIMERS, {"multi_last": [SCHEDULE_ALARMS], "batch": 1000})
        stored = {subject: data for subject, _, _, data in found}
        for subject in stored:
            if subject not in wanted:
                await self._purge(subject)
        for subject, (name, schedule, body) in wanted.items():
            if stored.get(subject) != body and self._refused.get(subject) != body:
                await self._set(subject, name, schedule, body)

    async def _set(self, subject: str, name: str, schedule: Schedule, body: bytes) -> None:
        await self._purge(subject)  # one that is only written over may fire again after a kill of the server
        headers = {
            "Nats-Schedule": six_fields(schedule.cron),
            "Nats-Schedule-Time-Zone": schedule.zone,
            "Nats-Schedule-Target": schedule_alarm_fired(name),
        }
        try:
            await append_once(self._bus, TIMERS, subject, body, headers=headers)
        except NotTaken as error:
            # A server without zone data, say. It is told once; ticks are found by looking.
            self._refused[subject] = body
            log.warning("the server sets no alarm for schedule %s: %s", name, error)

    async def _purge(self, subject: str) -> None:
        await self._bus.api(f"STREAM.PURGE.{TIMERS}", {"filter": subject})


def _body(schedule: Schedule) -> bytes:
    """What fires: a `timer.fired` that reads as one, and by which an executor knows the alarm again."""
    return encode({"due": "", "cron": six_fields(schedule.cron), "zone": schedule.zone})

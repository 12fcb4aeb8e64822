"""Times that outlive every process: scheduled messages in TIMERS, fired by the NATS server into EVENTS.

What a run waits for (an expiry, a wait, a back-off, a cancelled step's patience) is said by `decide` like any other
fact. Deadlines are set lazily: a run that ends within a second never has one; every other run gets its own, and every
step that has run for a while, from whichever executor is alive. One that dies before it has set a timer leaves the run
to the next executor, which sets it, in the past if need be: it then fires at once.
"""

import logging

import msgspec

from services.executor.engine import Engine
from shared.append import CREATE_ONLY, Appender
from shared.bus import Bus
from shared.clock import NS_PER_S, now_ns, rfc3339
from shared.errors import Unavailable
from shared.events import TimerFired
from shared.run import Run
from shared.subjects import TIMERS, run_of_timer, timer_at, timer_target

log = logging.getLogger("remit.timers")

PATIENCE_NS = 1 * NS_PER_S
# A worker ends its own step at the deadline; the timer is for one that does not answer any more.
STEP_GRACE_NS = 5 * NS_PER_S


class Timers:
    def __init__(self, bus: Bus, appender: Appender) -> None:
        self._bus = bus
        self._appender = appender
        self._set: dict[int, set[str]] = {}

    async def keep(self, engine: Engine) -> None:
        """Set the timers of everything that has lasted for a while."""
        young_ns = now_ns() - PATIENCE_NS
        for run in list(engine.runs.values()):
            if run.status == "running" and run.started_ns < young_ns:
                for what, due_ns in _due(run, young_ns):
                    if run.id in engine.runs:  # it may end while another one's timer is said
                        await self.say(timer_at(run.id, what), TimerFired(due=rfc3339(due_ns)))

    async def say(self, subject: str, body: TimerFired) -> None:
        """Lay a timer down, once: a `timer.at.<run>.<what>` that fires as `timer.fired.<run>.<what>`."""
        known = self._set.setdefault(run_of_timer(subject), set())
        if subject in known:
            return
        known.add(subject)
        headers = {
            **CREATE_ONLY,
            "Nats-Schedule": f"@at {body.due}",
            "Nats-Schedule-Target": timer_target(subject),
        }
        await self._appender.say(subject, msgspec.json.encode(body), headers=headers)

    def has(self, run: int) -> bool:
        """Whether this process has laid one down for the run."""
        return run in self._set

    async def run_ended(self, run: int) -> None:
        """Take back what was set for a run that is over; a timer that fires all the same changes nothing."""
        if self._set.pop(run, None):
            # Nobody waits for the answer: the fold would stand still with it while a server is away.
            body = msgspec.json.encode({"filter": timer_at(run, ">")})
            try:
                await self._bus.publish(f"$JS.API.STREAM.PURGE.{TIMERS}", body, self._bus.inbox())
            except Unavailable as error:
                log.info("the timers of run %d stay until they fire: %s", run, error)


def _due(run: Run, young_ns: int) -> list[tuple[str, int]]:
    """Which timers this run should have: `(what, due)`."""
    found = [] if run.timed_out else [("deadline", run.deadline_ns)]
    for name, state in run.steps.items():
        if state.status == "running" and state.dispatched_ns < young_ns and (step := run.step_plan(name)).task:
            due_ns = state.dispatched_ns + step.timeout_s * NS_PER_S + STEP_GRACE_NS
            found.append((f"step.{name}.{state.attempt}", due_ns))
    return found

"""The planner's shell: one goal in, one fact out, acknowledged only when the fact is in the stream.

A planner that dies before the acknowledgement gets the goal again; its second answer meets the create-only subject
of the first and changes nothing. Any number of planners may run.
"""

import asyncio
import contextlib
import logging

from services.planner.planning import plan
from shared.append import Appender
from shared.bus import Bus
from shared.catalogue import Catalogue
from shared.config import Config
from shared.errors import NotFound, RemitError, Unavailable
from shared.events import Event, GoalRejected, PlanCreated, Unreadable, encode, read
from shared.plan import Goal, Problem, read_goal
from shared.pull import Delivery, Puller
from shared.run import Run
from shared.story import read_story
from shared.subjects import EVENTS, goal_rejected, plan_created

log = logging.getLogger("remit.planner")

# A goal that has ended so many planners is the planner's fault; the operator gets a word instead of silence.
DELIVERIES_MAX = 5

HEARTBEAT_S = 1.0  # of a goal that waits for the run that it repeats to be read; its lease is 5 s
RETRY_S = 1.0

KNOWN_MAX = 256
KNOWN_BYTES_MAX = 4_096

Answer = PlanCreated | list[Problem]


class _Known:
    """Plans as they were said of goals before. Planning is pure: under the same catalogue the bytes are the same."""

    def __init__(self) -> None:
        self._catalogue: Catalogue | None = None
        self._plans: dict[tuple[bytes, str], bytes] = {}

    def get(self, catalogue: Catalogue, goal: bytes, requester: str) -> bytes | None:
        if catalogue is not self._catalogue:
            self._catalogue = catalogue
            self._plans.clear()
        return self._plans.get((goal, requester))

    def keep(self, catalogue: Catalogue, goal: bytes, requester: str, said: bytes) -> None:
        if catalogue is self._catalogue and len(goal) <= KNOWN_BYTES_MAX:
            if len(self._plans) >= KNOWN_MAX:
                self._plans.clear()
            self._plans[goal, requester] = said


class Planner:
    """Hears `goal.submitted`, says `plan.created` or `goal.rejected`."""

    def __init__(self, bus: Bus, appender: Appender, config: Config) -> None:
        self._appender = appender
        self._config = config
        self._puller = Puller(bus, EVENTS, "planner", self.on_goal_submitted, batch=256)
        self._bus = bus
        self._known = _Known()
        self._reading: dict[int, asyncio.Task[None]] = {}  # goals that wait for the run that they repeat

    async def start(self) -> None:
        await self._puller.start()

    async def stop(self) -> None:
        await self._puller.stop()
        for reading in self._reading.values():
            reading.cancel()  # not acknowledged, so another planner gets the goal
        await self._appender.drain()
        await self._bus.flush()

    async def on_goal_submitted(self, delivery: Delivery) -> None:
        if delivery.seq in self._reading:
            return  # delivered again, because a heartbeat was lost
        event = read(delivery.subject, delivery.seq, delivery.at_ns, b"")
        if isinstance(event.body, Unreadable):
            await self._say(delivery, [Problem(event.body.reason, "subject")])
        elif delivery.delivered > DELIVERIES_MAX and await self._bus.last_on(EVENTS, plan_created(delivery.seq)):
            await self._puller.ack(delivery)  # planned; only the acknowledgements were lost
        elif delivery.delivered > DELIVERIES_MAX:
            await self._say(delivery, [Problem("planning this goal ended the planner each time", "goal")])
        elif (said := self._known.get(self._config.catalogue, delivery.data, event.tail)) is not None:
            await self._append(delivery, plan_created(delivery.seq), said)
        else:
            goal, problems = read_goal(delivery.data)
            if goal is None:
                await self._say(delivery, problems)
            elif goal.retry_of is None:
                catalogue, answer = self._config.catalogue, await self._answer(goal, event)
                if not isinstance(answer, list):
                    self._known.keep(catalogue, delivery.data, event.tail, encode(answer))
                await self._say(delivery, answer)
            else:
                # Reading a run may take seconds; the goals behind this one do not wait for it.
                reading = asyncio.create_task(self._repeat(delivery, goal, goal.retry_of, event))
                self._reading[delivery.seq] = reading
                reading.add_done_callback(lambda done: self._read(delivery.seq, done))

    def _read(self, goal: int, reading: asyncio.Task[None]) -> None:
        del self._reading[goal]
        if not reading.cancelled() and (error := reading.exception()) is not None:
            # Unacknowledged, so it is delivered again, and refused aloud when it ends so each time.
            log.error("goal %d could not be answered", goal, exc_info=error)

    async def _repeat(self, delivery: Delivery, goal: Goal, retry_of: int, event: Event) -> None:
        """Answer a goal that repeats a run. While NATS does not give the run, the goal stays unanswered and unacked."""
        heart = asyncio.create_task(self._beat(delivery))
        try:
            while True:
                try:
                    repeated = await read_run(self._bus, retry_of)
                    break
                except Unavailable as error:
                    log.warning("goal %d repeats run %d, which cannot be read now: %s", event.seq, retry_of, error)
                    await asyncio.sleep(RETRY_S)
            if isinstance(repeated, list):
                await self._say(delivery, repeated)
            else:
                await self._say(delivery, await self._answer(goal, event, repeated))
        finally:
            heart.cancel()

    async def _beat(self, delivery: Delivery) -> None:
        while True:
            await asyncio.sleep(HEARTBEAT_S)
            with contextlib.suppress(Unavailable):
                await self._puller.in_progress(delivery)

    async def _answer(self, goal: Goal, event: Event, repeated: Run | None = None) -> Answer:
        answer = plan(goal, self._config.catalogue, repeated, event.tail)
        if isinstance(answer, list) and any(_may_be_news(problem) for problem in answer):
            # The directive, task or playbook may have been added a moment ago: look again before saying no.
            await self._caught_up()
            answer = plan(goal, self._config.catalogue, repeated, event.tail)
        return answer

    async def _caught_up(self) -> None:
        while True:
            try:
                return await self._config.catch_up()
            except Unavailable as error:
                log.warning("a goal waits for the config: %s", error)
                await asyncio.sleep(RETRY_S)

    async def _say(self, delivery: Delivery, answer: Answer) -> None:
        if isinstance(answer, list):
            subject, body = goal_rejected(delivery.seq), encode(rejected(answer))
        else:
            subject, body = plan_created(delivery.seq), encode(answer)
        await self._append(delivery, subject, body)

    async def _append(self, delivery: Delivery, subject: str, body: bytes) -> None:
        await self._appender.say(subject, body, lambda _seq: self._puller.ack(delivery))


async def read_run(bus: Bus, run: int) -> Run | list[Problem] | None:
    """The run that a goal repeats, None where there is none, or why it can never be read. `Unavailable`: not now."""
    try:
        return (await read_story(bus, run)).run
    except NotFound:
        return None
    except Unavailable:
        raise
    except RemitError as error:
        return [Problem(error.message, "retry_of")]


def answer_to(data: bytes, catalogue: Catalogue, repeated: Run | None = None) -> Answer:
    """Bytes in, plan or problems out: what the planner says of a goal."""
    goal, problems = read_goal(data)
    return problems if goal is None else plan(goal, catalogue, repeated)


def rejected(problems: list[Problem]) -> GoalRejected:
    """The first reason in front, all of them behind it."""
    return GoalRejected(
        reason=problems[0].reason,
        field=problems[0].field,
        problems=[{"reason": problem.reason, "field": problem.field} for problem in problems],
    )


_NEWS = ("directive", "tasks", "playbook", "params", "steps", "hosts", "retry_of")


def _may_be_news(problem: Problem) -> bool:
    return problem.field.startswith(_NEWS)

"""The planner's shell: one goal in, one fact out, acknowledged only when the fact is in the stream.

A planner that dies before the acknowledgement gets the goal again; its second answer meets the create-only subject
of the first and changes nothing. Any number of planners may run.
"""

import logging

from services.planner.planning import plan
from shared.append import Appender
from shared.bus import Bus
from shared.catalogue import Catalogue
from shared.config import Config
from shared.events import GoalRejected, PlanCreated, Unreadable, encode, read
from shared.plan import Problem, read_goal
from shared.pull import Delivery, Puller
from shared.subjects import EVENTS, goal_rejected, plan_created

log = logging.getLogger("remit.planner")

# A goal that has ended so many planners is the planner's fault; the operator gets a word instead of silence.
DELIVERIES_MAX = 5


class Planner:
    """Hears `goal.submitted`, says `plan.created` or `goal.rejected`."""

    def __init__(self, bus: Bus, appender: Appender, config: Config) -> None:
        self._appender = appender
        self._config = config
        self._puller = Puller(bus, EVENTS, "planner", self.on_goal_submitted, batch=256)
        self._bus = bus

    async def start(self) -> None:
        await self._puller.start()

    async def stop(self) -> None:
        await self._puller.stop()
        await self._appender.drain()
        await self._bus.flush()

    async def on_goal_submitted(self, goal: Delivery) -> None:
        event = read(goal.subject, goal.seq, goal.at_ns, b"")
        answer: PlanCreated | list[Problem]
        if isinstance(event.body, Unreadable):
            answer = [Problem(event.body.reason, "subject")]
        elif goal.delivered > DELIVERIES_MAX and await self._bus.last_on(EVENTS, plan_created(goal.seq)):
            await self._puller.ack(goal)  # planned; only the acknowledgements were lost
            return
        elif goal.delivered > DELIVERIES_MAX:
            answer = [Problem("planning this goal ended the planner each time", "goal")]
        else:
            answer = answer_to(goal.data, self._config.catalogue)
            if isinstance(answer, list) and any(_may_be_news(problem) for problem in answer):
                # The directive or task may have been added a moment ago: look again before saying no.
                await self._config.catch_up()
                answer = answer_to(goal.data, self._config.catalogue)
        if isinstance(answer, list):
            subject, body = goal_rejected(goal.seq), encode(rejected(answer))
        else:
            subject, body = plan_created(goal.seq), encode(answer)
        await self._appender.say(subject, body, lambda _seq: self._puller.ack(goal))


def answer_to(data: bytes, catalogue: Catalogue) -> PlanCreated | list[Problem]:
    """Bytes in, plan or problems out: what the planner says of a goal."""
    goal, problems = read_goal(data)
    return problems if goal is None else plan(goal, catalogue)


def rejected(problems: list[Problem]) -> GoalRejected:
    """The first reason in front, all of them behind it."""
    return GoalRejected(
        reason=problems[0].reason,
        field=problems[0].field,
        problems=[{"reason": problem.reason, "field": problem.field} for problem in problems],
    )


def _may_be_news(problem: Problem) -> bool:
    return problem.field == "directive" or problem.field.startswith("tasks")

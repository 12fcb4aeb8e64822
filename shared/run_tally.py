"""A run's steps counted as its events come, so that nobody has to look at a thousand steps after each of them.

A set of steps is an int: bit `n` stands for the plan's step `n`, counted from 0. Such a set is immutable, costs a bit
a step, and is joined, cut and counted in one go. All of it follows from the plan and the steps' states: `counted`
says how, and `moved` gives the same after the change of one step.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import msgspec

from shared.events import Artifact
from shared.plan import Plan
from shared.status import STEP_ENDS, StepStatus

# The causes of a skip with which the run comes to its end: a budget that is over, a condition without an answer.
ENDING_CAUSES = frozenset(("steps", "tokens", "condition"))


class StepState(msgspec.Struct, frozen=True, gc=False):
    """Where one step stands. Stamps are nanoseconds of the stream; `attempt` counts those dispatched."""

    status: StepStatus = "pending"
    attempt: int = 0
    dispatched_ns: int = 0
    ended_ns: int = 0
    error: str = ""
    message: str = ""
    host: str | None = None
    outputs: dict[str, Any] = {}
    artifacts: list[Artifact] = []
    grant: int = 0  # tokens that the running attempt may spend
    spent: int = 0  # of its grant, as reported, or all of it when a call's usage was not
    taken: int = 0  # an attempt whose dispatch cannot be said any more, because a stranger has
    cause: str = ""  # why it was skipped, for programs
    not_before_ns: int = 0  # it rests until then before it is tried again
    is_due: bool = False  # the time that a wait step waits for has come
    cancel_ns: int = 0  # its worker was asked to end it
    reused_from: int = 0  # the run whose result stands for its own
    skip: tuple[str, str] | None = None  # reason and cause of a skip that was said while it ran


class Tally(msgspec.Struct, frozen=True, gc=False):
    """Sets of steps, and the tokens that running steps may still spend."""

    open: int = 0  # it has not ended
    running: int = 0
    tried: int = 0  # it was dispatched at least once
    due: int = 0  # it waits, and for no other step: those that it needs have ended, or one of them was skipped
    ending: int = 0  # it has ended so that no further step may start
    reserved: int = 0


def opening(plan: Plan) -> Tally:
    """As `counted`, when nothing has happened to any step."""
    return Tally(open=(1 << len(plan.steps)) - 1, due=plan.without_needs)


def counted(plan: Plan, steps: Mapping[str, StepState]) -> Tally:
    """The tally of steps in these states."""
    opened = running = tried = due = ending = reserved = skipped = 0
    for place, step in enumerate(plan.steps):
        state, bit = steps[step.id], 1 << place
        opened |= bit * (state.status not in STEP_ENDS)
        running |= bit * (state.status == "running")
        skipped |= bit * (state.status == "skipped")
        tried |= bit * (state.attempt > 0)
        ending |= bit * _is_ending(plan, place, state)
        reserved += _reserved(state)
    for place in places(opened & ~running):
        needs = plan.needs_of[place]
        due |= (not needs & opened or needs & skipped > 0) << place
    return Tally(opened, running, tried, due, ending, reserved)


def moved(tally: Tally, plan: Plan, name: str, before: StepState, after: StepState) -> Tally:
    """The tally after the step has come from one state into another."""
    place = plan.place_of[name]
    bit = 1 << place
    tried = tally.tried | bit if after.attempt else tally.tried
    reserved = tally.reserved
    if after.grant or before.grant:
        reserved += _reserved(after) - _reserved(before)
    status = after.status
    if status == "running":
        return Tally(tally.open, tally.running | bit, tried, tally.due & ~bit, tally.ending, reserved)
    opened, running, due, ending = tally.open, tally.running, tally.due, tally.ending
    if status in STEP_ENDS:
        opened &= ~bit
        running &= ~bit
        due &= ~bit
        if _is_ending(plan, place, after):
            ending |= bit
        for other in plan.needed_by[place]:
            if (opened & ~running) >> other & 1 and (status == "skipped" or not plan.needs_of[other] & opened):
                due |= 1 << other
    elif before.status == "running":
        running &= ~bit  # it is tried again
        due |= bit
    return Tally(opened, running, tried, due, ending, reserved)


def places(steps: int) -> Iterator[int]:
    """The places of a set of steps, in the plan's order."""
    while steps:
        bit = steps & -steps
        yield bit.bit_length() - 1
        steps ^= bit


def _reserved(state: StepState) -> int:
    return max(0, state.grant - state.spent) if state.status == "running" else 0


def _is_ending(plan: Plan, place: int, state: StepState) -> bool:
    if state.status == "failed":
        step = plan.steps[place]
        return step.on_failure != "continue" and step.id not in plan.compensations
    return state.cause in ENDING_CAUSES

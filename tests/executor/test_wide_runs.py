"""Runs of many steps: what is decided does not depend on who looks at how much, and nobody looks at all each time.

The work of the decider is counted in executed lines, which is the same on every machine.
"""

import itertools
import sys
from collections.abc import Callable
from types import FrameType
from typing import Any

import pytest

from services.executor import snapshot
from services.executor.decide import decide
from services.executor.engine import Engine
from shared.events import PlanCreated
from shared.plan import Budgets, Step
from shared.run_tally import counted
from shared.subjects import (
    TIMER_AT,
    run_cancel_requested,
    step_cancelled,
    step_completed,
    step_dispatched,
    step_failed,
)
from tests import controls
from tests.controls import Stream

CREATED = "2026-11-25T00:00:00Z"


def named(count: int) -> list[str]:
    return [f"s{number}" for number in range(count)]


def fan(count: int, parallel: int | None = None, budgets: dict[str, int] | None = None, **changes: Any) -> PlanCreated:
    steps = [controls.step(name, **changes) for name in named(count)]
    return wide(steps, parallel, budgets)


def chain(count: int, parallel: int | None = None) -> PlanCreated:
    names = named(count)
    steps = [controls.step(name, needs=[before]) for before, name in itertools.pairwise(names)]
    return wide([controls.step(names[0]), *steps], parallel)


def joined(count: int) -> PlanCreated:
    """Half of the steps, one that needs them all, and the other half behind it."""
    first, last = named(count // 2), [f"t{number}" for number in range(count // 2)]
    middle = controls.step("middle", needs=first)
    return wide([*(controls.step(n) for n in first), middle, *(controls.step(n, needs=["middle"]) for n in last)])


def half_asking(count: int) -> PlanCreated:
    return wide([controls.step(name, approval=place % 2 > 0) for place, name in enumerate(named(count))], 5)


def with_a_skip(count: int) -> PlanCreated:
    """The first step is skipped; those behind it need it and one that is still to run."""
    first, *others = named(count // 2)
    behind = [controls.step(f"t{name}", needs=[first, name]) for name in others]
    return wide([controls.step(first, when="1 == 2"), *map(controls.step, others), *behind], 5)


def wide(steps: list[Step], parallel: int | None = None, budgets: dict[str, int] | None = None) -> PlanCreated:
    directive = controls.directive("wide", max_parallel_steps=parallel or len(steps))
    return controls.plan(*steps, directive=directive, budgets=Budgets(**{"max_steps": len(steps), **(budgets or {})}))


Answer = Callable[[Stream, int, str, int], None]


def done(stream: Stream, run: int, step: str, attempt: int) -> None:
    stream.say(step_completed(run, step, attempt), controls.completed(artifacts=[]))


def lost_once(stream: Stream, run: int, step: str, attempt: int) -> None:
    if attempt == 1:
        stream.say(step_failed(run, step, attempt), controls.failed())
    else:
        done(stream, run, step, attempt)


def failed_in_the_middle(stream: Stream, run: int, step: str, attempt: int) -> None:
    if step == "s20":
        stream.say(step_failed(run, step, attempt), controls.failed(retryable=False))
    else:
        done(stream, run, step, attempt)


def cancelled_in_the_middle(stream: Stream, run: int, step: str, attempt: int) -> None:
    if step == "s20":
        stream.say(run_cancel_requested(run, "ann"), controls.cancel_requested())
    elif step < "s3":
        done(stream, run, step, attempt)


class Play:
    """A run played to its end by one engine; every decision is compared with the look at the whole run."""

    def __init__(self, plan: PlanCreated, answer: Answer, *, checked: bool = True) -> None:
        self.stream = Stream()
        self.engine = Engine()
        self.engine.due()
        self.run = self.stream.planned(plan)
        self.lines = 0
        self._checked = checked
        answered = 0
        while self.engine.position < self.stream.last_seq:
            self._read()
            while answered < self.stream.last_seq:
                answered += 1
                self._answer(answer, answered)
        self.end = self.stream.fold(self.run)

    def _read(self) -> None:
        event = self.stream.event(self.engine.position + 1)
        sys.settrace(None if self._checked else self._count)
        try:
            facts = self.engine.apply(event)
        finally:
            sys.settrace(None)
        for subject, body in facts:
            if not subject.startswith(TIMER_AT):  # none of them fires here
                self.stream.say(subject, body)
        run = self.engine.runs.get(self.run)
        if self._checked and run is not None and run.plan is not None:
            assert run.tally == counted(run.plan, run.steps)
            said = self.engine._said.get(run.id, set())
            assert [subject for subject, _ in decide(run, said) if subject not in said] == []

    def _answer(self, answer: Answer, seq: int) -> None:
        event = self.stream.event(seq)
        if event.kind == "step.dispatched":
            answer(self.stream, event.run, event.step, event.attempt)
        elif event.kind == "step.cancel_requested":
            self.stream.say(step_cancelled(event.run, event.step, event.attempt), controls.cancelled())

    def _count(self, _frame: FrameType, what: str, _argument: object) -> Any:
        self.lines += what == "line"
        return self._count

    @property
    def lines_an_event(self) -> float:
        return self.lines / self.stream.last_seq


PLAYS: dict[str, tuple[Callable[[int], PlanCreated], Answer, str]] = {
    "all at once": (fan, done, "succeeded"),
    "five at a time": (lambda count: fan(count, 5), done, "succeeded"),
    "one after the other": (chain, done, "succeeded"),
    "one after the other, with limits": (lambda count: chain(count, 5), done, "succeeded"),
    "joined in the middle": (joined, done, "succeeded"),
    "each tried twice": (fan, lost_once, "succeeded"),
    "each tried twice, five at a time": (lambda count: fan(count, 5), lost_once, "succeeded"),
    "one fails": (lambda count: fan(count, 5), failed_in_the_middle, "failed"),
    "one fails and may": (lambda count: fan(count, 5, on_failure="continue"), failed_in_the_middle, "failed"),
    "one fails while others ask": (half_asking, failed_in_the_middle, "failed"),
    "one is skipped": (with_a_skip, done, "succeeded"),
    "cancelled": (fan, cancelled_in_the_middle, "cancelled"),
    "more steps than may be": (lambda count: fan(count, budgets={"max_steps": 30}), done, "budget_exhausted"),
    "with tokens": (lambda count: fan(count, 5, {"token_budget": 1_000_000}, uses_tokens=True), done, "succeeded"),
    "with fewer tokens than steps": (
        lambda count: fan(count, 20, {"token_budget": 10}, uses_tokens=True), done, "succeeded",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", PLAYS)
def test_looking_only_at_what_may_have_changed_leaves_nothing_unsaid(name: str) -> None:
    plan, answer, status = PLAYS[name]
    assert Play(plan(60), answer).end.status == status


@pytest.mark.parametrize("name", PLAYS)
def test_the_work_for_an_event_does_not_grow_with_the_steps(name: str) -> None:
    """Four times as many steps: not half as much again for each event, where it was four times as much."""
    plan, answer, _ = PLAYS[name]
    few, many = (Play(plan(count), answer, checked=False).lines_an_event for count in (100, 400))
    assert many < 1.5 * few, (few, many)


def test_no_more_steps_run_at_a_time_than_may() -> None:
    play = Play(fan(60, 7), done)
    most = now = 0
    for seq in range(1, play.stream.last_seq + 1):
        kind = play.stream.event(seq).kind
        now += (kind == "step.dispatched") - (kind == "step.completed")
        most = max(most, now)
    assert most == 7


def test_a_snapshot_of_a_run_with_more_steps_than_an_int_has_bits() -> None:
    stream, engine = Stream(), Engine()
    engine.due()
    run = stream.planned(fan(200))
    while engine.position < stream.last_seq:
        for subject, body in engine.apply(stream.event(engine.position + 1)):
            stream.say(subject, body)
    stream.say(step_completed(run, "s150", 1), controls.completed())
    engine.apply(stream.event(stream.last_seq))
    data = snapshot.encode(snapshot.take(engine, CREATED))
    begun = snapshot.decode(data, CREATED, stream.last_seq)
    assert begun is not None and begun.runs == engine.runs
    assert step_dispatched(run, "s150", 1, "noop") in stream.subjects
    assert begun.runs[run].tally.open.bit_count() == 199

"""The engine in a world that goes wrong: hypothesis plays NATS, workers, timers, strangers and kill -9.

The stream is a list that stores create-only appends once. Up to three executors read it, each at a place of its own,
and each may die with facts that it had not yet appended. Workers answer, answer twice, answer late or never; timers
fire; a stranger publishes what is no event. When hypothesis has had its say, everything left is played out fairly, and
`audit` walks the stream and checks what must hold at every prefix of it.
"""

import os
import random
from collections import Counter
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule

from services.executor.decide import decide
from services.executor.engine import Engine
from services.executor.performing import Fact
from shared.clock import parse_ns
from shared.events import Event, PlanCreated, RunCompleted, StepDispatched, Unreadable, encode
from shared.plan import GATE, Budgets, Retry
from shared.run import Run, begin, evolve
from shared.run_approvals import is_asked
from shared.run_tally import counted
from shared.status import STEP_ENDS
from shared.subjects import (
    TIMER_AT,
    approval_expired,
    approval_granted,
    approval_rejected,
    approval_requested,
    goal_rejected,
    llm_called,
    plan_created,
    run_cancel_requested,
    run_completed,
    run_queued,
    run_started,
    step_cancel_requested,
    step_cancelled,
    step_completed,
    step_dispatched,
    step_failed,
    step_skipped,
    timer_fired,
)
from tests import controls
from tests.controls import ACK, Stream

EXECUTORS_MAX = 3
UNREADABLE_PER_ATTEMPT = 1


def plans() -> list[PlanCreated]:
    one, two = (controls.directive(f"limit-{n}", max_concurrent_runs=n) for n in (1, 2))
    chain = [controls.step("a", max_attempts=2), controls.step("b", needs=["a"]), controls.step("c", needs=["b"])]
    fan = [controls.step("a"), controls.step("b", max_attempts=1), controls.step("c", needs=["a", "b"])]
    patient = [controls.step("a", max_attempts=1, on_failure="continue"), controls.step("b", needs=["a"])]
    return [
        controls.plan(*chain, directive=one),
        controls.plan(*fan, directive=two),
        controls.plan(*patient, directive=one),
        controls.plan(controls.step("a", uses_tokens=True), directive=two),
    ]


def asking_plans() -> list[PlanCreated]:
    """Plans of every kind of step, and with limits that are met."""
    gate = controls.directive(
        "gate", approval_required=True, approvers=["ann", "bob", "cy"], approvals_needed=2, approval_expires_s=3600
    )
    asks = controls.directive("asks", requester_may_approve=True, approval_expires_s=3600, max_concurrent_runs=2)
    narrow = controls.directive("narrow", max_parallel_steps=1, max_concurrent_runs=2)
    wide = controls.directive("wide")
    small, scarce = Budgets(max_steps=2), Budgets(token_budget=100)
    decision = controls.step("b", kind="decision", inputs={"condition": "steps.a.outputs.n > 0"}, needs=["a"])
    notice = controls.step("d", kind="notify", inputs={"message": "n is ${steps.a.outputs.n}"}, needs=["c"])
    return [
        controls.plan(controls.step("a"), controls.step("b", needs=["a"]), directive=gate),
        controls.plan(controls.step("a"), controls.step("b", needs=["a"], approval=True), directive=asks),
        controls.plan(
            controls.step("a"), controls.step("b", kind="approval", inputs={"message": "go on?"}, needs=["a"]),
            controls.step("c", needs=["b"]), directive=asks,
        ),
        controls.plan(
            controls.step("a"), decision, controls.step("c", needs=["b"], when="decisions.b"),
            notice, directive=wide,
        ),
        controls.plan(
            controls.step("a", kind="wait", inputs={"seconds": 5}), controls.step("b", needs=["a"]), directive=wide
        ),
        controls.plan(
            controls.step("a", compensation="undo-a"), controls.step("undo-a"),
            controls.step("b", needs=["a"], on_failure="rollback", max_attempts=1), directive=wide,
        ),
        controls.plan(
            controls.step("a", retry=Retry(backoff_s=5, backoff_s_max=7)),
            controls.step("b", retry=Retry(backoff_s=1, errors=["busy"])), directive=wide,
        ),
        controls.plan(*(controls.step(name) for name in "abc"), directive=narrow),
        controls.plan(*(controls.step(name) for name in "abc"), directive=wide, budgets=small),
        controls.plan(
            *(controls.step(name, uses_tokens=True) for name in "abc"), directive=narrow, budgets=scarce
        ),
        controls.plan(
            *(controls.step(name, uses_tokens=True) for name in "abc"), directive=wide, budgets=scarce
        ),
    ]  # fmt: skip


# Those whose every attempt is the same, whoever decides; and those in which executors may get in each other's way.
PLAIN = plans()
PLANS = [*PLAIN, *asking_plans()]


class Executor:
    """A process: an engine, its place in the stream, and what it is about to append."""

    def __init__(self, stream: Stream) -> None:
        self.stream = stream
        self.engine = Engine()
        self.engine.deciding = False
        self.position = 0
        self.outbox: list[Fact] = []
        while self.position < stream.last_seq:  # as `service.Executor` starts: nothing is said until the end is reached
            self.position += 1
            assert self.engine.apply(stream.event(self.position)) == []
        self.outbox += self.engine.due()

    def read(self, count: int) -> None:
        for _ in range(min(count, self.stream.last_seq - self.position)):
            self.position += 1
            event = self.stream.event(self.position)
            self.outbox += self.engine.apply(event)
            if (run := self.engine.runs.get(event.run)) is not None:
                # What an event may change was looked at, and so nothing that the whole run calls for is left unsaid.
                said = self.engine._said.get(run.id, set())
                assert [subject for subject, _ in decide(run, said) if subject not in said] == []

    def send(self, count: int) -> None:
        for subject, body in self.outbox[:count]:
            if subject.startswith(TIMER_AT):
                self.stream.timers.setdefault(subject, parse_ns(body.due))
            else:
                self.stream.say(subject, body)
        del self.outbox[:count]


class World:
    """Everything outside the executors, and what a fair end looks like."""

    def __init__(self) -> None:
        self.stream = Stream()
        self.executors = [Executor(self.stream)]
        self.goals: dict[int, PlanCreated] = {}
        self.tainted = False
        self.fired: set[tuple[int, str]] = set()

    def submit(self, plan: PlanCreated) -> None:
        self.goals[self.stream.goal()] = plan

    def say_plan(self, run: int) -> None:
        self.stream.say(plan_created(run), self.goals[run])

    def fire(self, run: int, what: str) -> None:
        """The server fires a timer once, and stores it whatever lies on the subject already."""
        if (run, what) not in self.fired:
            self.fired.add((run, what))
            self.stream.put(timer_fired(run, what), controls.fired())

    def dispatches(self) -> list[Event]:
        """What workers have been given; what the executor performs itself is in nobody's queue."""
        return [
            event
            for seq in range(1, self.stream.last_seq + 1)
            if (event := self.stream.event(seq)).kind == "step.dispatched"
            and isinstance(event.body, StepDispatched)
            and event.tail in ("noop", "other")
        ]

    def fire_what_was_set(self) -> None:
        for subject in list(self.stream.timers):
            _, _, run, what = subject.split(".", 3)
            self.fire(int(run), what)

    def runs(self) -> dict[int, Run]:
        folded: dict[int, Run] = {}
        for seq in range(1, self.stream.last_seq + 1):
            event = self.stream.event(seq)
            if event.kind == "goal.submitted":
                folded[seq] = begin(event)
            elif event.run in folded:
                folded[event.run] = evolve(folded[event.run], event)
        return folded

    def settle(self) -> None:
        """All executors read and say everything, until nothing new is said."""
        before = -1
        while before != self.stream.last_seq:
            before = self.stream.last_seq
            for executor in self.executors:
                executor.read(10**9)
                executor.send(10**9)

    def play_out(self) -> None:
        """The planner plans, workers answer all that is open, timers fire for what nobody answers."""
        for run in self.goals:
            self.say_plan(run)
        for run in self.runs().keys() - self.goals.keys():  # goals under a subject that names nobody
            self.stream.say(goal_rejected(run), controls.goal_rejected_body())
        for _ in range(200):
            self.settle()
            before = self.stream.last_seq
            for event in self.dispatches():
                self.stream.say(step_completed(event.run, event.step, event.attempt), controls.completed())
            self.settle()
            if self.stream.last_seq != before:
                continue
            self.fire_what_was_set()
            self.settle()
            if self.stream.last_seq != before:
                continue
            for run in self.runs().values():
                if run.status == "running":
                    for name, state in run.steps.items():
                        if state.status == "running":
                            self.fire(run.id, f"step.{name}.{state.attempt}")
            self.settle()
            if self.stream.last_seq != before:
                continue
            for run in self.runs().values():
                if run.status == "running":
                    self.fire(run.id, "deadline")
            self.settle()
            if self.stream.last_seq == before:
                return
        raise AssertionError("the world does not come to rest")


def audit(stream: Stream) -> dict[int, Run]:
    """Walk the stream once; every rule is checked at every prefix. The runs at the end come back."""
    runs: dict[int, Run] = {}
    limits: dict[int, tuple[str, int]] = {}
    ends: Counter[tuple[int, str, int]] = Counter()
    tokens: Counter[tuple[int, str]] = Counter()
    for seq in range(1, stream.last_seq + 1):
        event = stream.event(seq)
        if event.kind == "goal.submitted":
            runs[seq] = begin(event)
            continue
        before = runs.get(event.run)
        if before is None:
            continue
        after = runs[event.run] = evolve(before, event)
        if after is before:
            continue
        assert not before.ended, f"{event.kind} changed run {event.run} after its end"
        assert after.plan is None or after.tally == counted(after.plan, after.steps)
        if event.kind == "plan.created" and after.plan is not None:
            limits[after.id] = (after.plan.directive.name, after.plan.directive.max_concurrent_runs)
        if event.kind == "run.started" and after.status == "running":
            directive, limit = limits[after.id]
            held = sum(run.status == "running" and limits[run.id][0] == directive for run in runs.values())
            assert held <= limit, f"{held} runs of {directive} at event {seq}"
        if event.kind == "step.dispatched" and not isinstance(event.body, Unreadable):
            plan = after.step_plan(event.step)
            assert all(after.steps[need].status in STEP_ENDS for need in plan.needs), f"{event.step} before its needs"
            assert after.steps[event.step].attempt <= plan.max_attempts
            assert event.at_ns >= before.steps[event.step].not_before_ns, f"{event.step} before its rest is over"
            assert not is_asked(after, event.step) or after.is_approved(event.step), f"{event.step} unapproved"
        if event.kind == "run.started" and after.status == "running" and after.plan is not None:
            assert not after.plan.is_gated or after.is_approved(GATE), "started unapproved"
        if after.plan is not None:
            budgets = after.plan.budgets
            assert after.charged + after.reserved <= budgets.token_budget, f"tokens at event {seq}"
            assert after.steps_used <= budgets.max_steps, f"steps at event {seq}"
            assert after.parallel <= after.plan.directive.max_parallel_steps, f"parallel steps at event {seq}"
        if event.kind in ("step.completed", "step.failed", "step.cancelled"):
            ends[event.run, event.step, event.attempt] += 1
        if event.kind == "llm.called":
            tokens[event.run, "input"] += event.body.input_tokens or 0
            tokens[event.run, "output"] += event.body.output_tokens or 0
        if event.kind == "run.completed" and isinstance(event.body, RunCompleted):
            running = [name for name, state in before.steps.items() if state.status == "running"]
            assert not running, f"run {event.run} was over while {running} ran"
            states = {name: state.status for name, state in after.steps.items()}
            assert event.body.steps == states
            assert (event.body.tokens.input, event.body.tokens.output) == (
                tokens[event.run, "input"],
                tokens[event.run, "output"],
            )
    assert not [attempt for attempt, count in ends.items() if count > 1], "an attempt ended twice"
    return runs


class Calm(RuleBasedStateMachine):
    """Executors at different places, workers of every kind, timers. Nobody dies, nobody lies."""

    def __init__(self) -> None:
        super().__init__()
        self.world = World()

    @rule(plan=st.sampled_from(PLANS), planned=st.booleans())
    def submit(self, plan: PlanCreated, planned: bool) -> None:
        self.world.submit(plan)
        if planned:
            self.world.say_plan(self.world.stream.last_seq)

    @precondition(lambda self: self.world.goals)
    @rule(data=st.data())
    def plan(self, data: st.DataObject) -> None:
        """Perhaps once more: a goal that is delivered again is planned again."""
        self.world.say_plan(data.draw(st.sampled_from(sorted(self.world.goals))))

    @rule(who=st.integers(0, EXECUTORS_MAX - 1), count=st.integers(1, 12))
    def read(self, who: int, count: int) -> None:
        executors = self.world.executors
        executors[who % len(executors)].read(count)

    @rule(who=st.integers(0, EXECUTORS_MAX - 1), count=st.integers(1, 6))
    def send(self, who: int, count: int) -> None:
        executors = self.world.executors
        executors[who % len(executors)].send(count)

    @precondition(lambda self: self.world.dispatches())
    @rule(data=st.data(), how=st.sampled_from(["done", "done", "again", "final", "both", "said twice"]))
    def work(self, data: st.DataObject, how: str) -> None:
        """Any dispatched attempt, also one that has ended long ago: a zombie answers, too."""
        event = data.draw(st.sampled_from(self.world.dispatches()))
        completed, failed = (build(event.run, event.step, event.attempt) for build in (step_completed, step_failed))
        say = self.world.stream.say
        if how in ("done", "both", "said twice"):
            say(completed, controls.completed())
        if how != "done":
            say(failed, controls.failed(retryable=how != "final"))
        if how == "said twice":
            say(completed, controls.completed(outputs={"n": 2}))

    @precondition(lambda self: self.world.dispatches())
    @rule(data=st.data(), call=st.integers(1, 3), used=st.none() | st.integers(0, 500))
    def call(self, data: st.DataObject, call: int, used: int | None) -> None:
        event = data.draw(st.sampled_from(self.world.dispatches()))
        subject = llm_called(event.run, event.step, f"{event.attempt}-{call}")
        self.world.stream.say(subject, controls.called(input_tokens=used, output_tokens=used))

    @precondition(lambda self: self.world.stream.timers)
    @rule(data=st.data())
    def fire_one(self, data: st.DataObject) -> None:
        _, _, run, what = data.draw(st.sampled_from(sorted(self.world.stream.timers))).split(".", 3)
        self.world.fire(int(run), what)

    @precondition(lambda self: self.world.goals)
    @rule(data=st.data(), who=st.sampled_from(["", "ann", "bob", "eve"]), yes=st.sampled_from([True] * 3 + [False]))
    def answer(self, data: st.DataObject, who: str, yes: bool) -> None:
        """To a question that was asked, or to none, bound to the run's own plan."""
        run = data.draw(st.sampled_from(sorted(self.world.goals)))
        step = data.draw(st.sampled_from([GATE, "b"]))
        named = {"plan_hash": self.world.goals[run].plan_hash}
        if yes:
            self.world.stream.say(approval_granted(run, step, who), controls.granted(run, step, **named))
        else:
            self.world.stream.say(approval_rejected(run, step, who), controls.refused(run, step, **named))

    @precondition(lambda self: self.world.goals)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        run = data.draw(st.sampled_from(sorted(self.world.goals)))
        self.world.stream.say(run_cancel_requested(run, "ann"), controls.cancel_requested())

    @precondition(lambda self: self.world.dispatches())
    @rule(data=st.data())
    def obey(self, data: st.DataObject) -> None:
        """A worker ends what it has, asked or not."""
        event = data.draw(st.sampled_from(self.world.dispatches()))
        self.world.stream.say(step_cancelled(event.run, event.step, event.attempt), controls.cancelled())

    @precondition(lambda self: self.world.dispatches())
    @rule(data=st.data(), whole_run=st.booleans())
    def fire(self, data: st.DataObject, whole_run: bool) -> None:
        event = data.draw(st.sampled_from(self.world.dispatches()))
        what = "deadline" if whole_run else f"step.{event.step}.{event.attempt}"
        self.world.fire(event.run, what)

    @precondition(lambda self: len(self.world.executors) < EXECUTORS_MAX)
    @rule()
    def one_more(self) -> None:
        self.world.executors.append(Executor(self.world.stream))

    def teardown(self) -> None:
        world = self.world
        world.play_out()
        runs = audit(world.stream)
        for run in world.goals:
            assert runs[run].ended, f"run {run} is {runs[run].status} for ever"
            ends = [subject for subject, *_ in world.stream.messages if subject == run_completed(run)]
            assert len(ends) == 1 or world.tainted or runs[run].status == "rejected"
        for executor in world.executors:
            assert executor.engine.runs == {}, "an ended run is kept in memory"
            assert (
                not executor.engine._said
                and not executor.engine._known
                and not executor.engine._waiting
                and not executor.engine._holding
            )
        assert Executor(world.stream).outbox == [], "a new executor finds something unsaid"


class Killed(Calm):
    """And executors die at any moment, with whatever they had not appended; a new one takes their place."""

    @rule(who=st.integers(0, EXECUTORS_MAX - 1), sent=st.integers(0, 3))
    def kill(self, who: int, sent: int) -> None:
        executors = self.world.executors
        at = who % len(executors)
        executors[at].send(sent)
        executors[at] = Executor(self.world.stream)


class Lied(Killed):
    """And a stranger publishes what is no event under subjects of runs that are there, or repeats what was said."""

    @precondition(lambda self: self.world.goals)
    @rule(data=st.data(), step=st.sampled_from("abc"), attempt=st.integers(1, 3), body=st.sampled_from([ACK, b"\xff"]))
    def lie(self, data: st.DataObject, step: str, attempt: int, body: bytes) -> None:
        run = data.draw(st.sampled_from(sorted(self.world.goals)))
        subject = data.draw(
            st.sampled_from(
                [
                    plan_created(run),
                    run_queued(run),
                    run_started(run),
                    step_dispatched(run, step, attempt, "noop"),
                    step_dispatched(run, step, attempt, "other"),
                    step_completed(run, step, attempt),
                    step_failed(run, step, attempt),
                    step_skipped(run, step),
                    llm_called(run, step, "x"),
                    timer_fired(run, "deadline"),
                    timer_fired(run, f"step.{step}.{attempt}"),
                    run_completed(run),
                    run_cancel_requested(run, "eve"),
                    approval_requested(run, GATE),
                    approval_requested(run, "b"),
                    approval_granted(run, step),
                    approval_expired(run, step),
                    step_cancel_requested(run, step, attempt),
                    step_cancelled(run, step, attempt),
                    timer_fired(run, f"wait.{step}.{attempt}"),
                    timer_fired(run, f"backoff.{step}.{attempt}"),
                    timer_fired(run, f"approval.{step}"),
                    f"goal.submitted.{run}",
                    f"audit.something.{run}",
                ]
            )
        )
        self.world.tainted = True
        self.world.stream.put(subject, body)

    @precondition(lambda self: self.world.stream.last_seq > 0)
    @rule(data=st.data())
    def repeat(self, data: st.DataObject) -> None:
        """A plain publish of a stored message: what was said counts once."""
        subject, _, _, body = data.draw(st.sampled_from(self.world.stream.messages))
        if not subject.startswith(("goal.submitted", "llm.called")):
            self.world.tainted = True
            self.world.stream.put(subject, body)


# No shrinking: a world takes long to shrink, and the audit says in words what is wrong.
_short = settings(
    max_examples=int(os.environ.get("REMIT_EXAMPLES", "150")),
    stateful_step_count=40,
    phases=[Phase.explicit, Phase.reuse, Phase.generate],
    suppress_health_check=[HealthCheck.too_slow],
    report_multiple_bugs=False,
)
TestCalm = Calm.TestCase
TestCalm.settings = _short
TestKilled = Killed.TestCase
TestKilled.settings = _short
TestLied = Lied.TestCase
TestLied.settings = _short


# -- one engine or three -------------------------------------------------------------------------------------


def outcome(run: int, step: str, attempt: int) -> tuple[str, Any]:
    """How this attempt ends, whoever performs it and whenever."""
    chance = random.Random(f"{run}/{step}/{attempt}").random()
    if chance < 0.6:
        return step_completed(run, step, attempt), controls.completed()
    return step_failed(run, step, attempt), controls.failed(retryable=chance < 0.9)


def results(executors: int, seed: int) -> dict[int, tuple[str, dict[str, tuple[str, int]]]]:
    """Six goals, `executors` of them deciding at paces given by the seed; the runs' ends."""
    chance = random.Random(seed)
    world = World()
    world.executors = [Executor(world.stream) for _ in range(executors)]
    for n in range(6):
        world.submit(PLAIN[n % len(PLAIN)])
    for run in world.goals:
        world.say_plan(run)
    for _ in range(2_000):
        executor = chance.choice(world.executors)
        executor.read(chance.randint(0, 5))
        executor.send(chance.randint(0, 5))
        if chance.random() < 0.3 and (open_ := world.dispatches()):
            event = chance.choice(open_)
            world.stream.say(*outcome(event.run, event.step, event.attempt))
        if all(run.ended for run in world.runs().values()):
            break
    return {
        run.id: (run.status, {name: (state.status, state.attempt) for name, state in run.steps.items()})
        for run in audit(world.stream).values()
    }


@pytest.mark.parametrize("seed", range(3))
def test_any_number_of_executors_comes_to_the_same_end(seed: int) -> None:
    """Which of them was first to say a fact leaves no trace in what came of the run."""
    alone = results(1, seed)
    assert all(status in ("succeeded", "failed") for status, _ in alone.values())
    assert results(2, seed + 100) == alone
    assert results(3, seed + 200) == alone


@settings(max_examples=40)
@given(data=st.data())
def test_an_engine_restarted_anywhere_says_what_the_living_one_says(data: st.DataObject) -> None:
    """At any place of a finished stream: what a new engine finds due is what is not said up to there, and it is not
    said otherwise.
    """
    world = World()
    for plan in PLANS:
        if not any(step.uses_tokens for step in plan.steps) or plan in PLAIN:  # grants follow from what was read
            world.submit(plan)
    world.play_out()
    at = data.draw(st.integers(0, world.stream.last_seq))
    prefix = world.stream.prefix(at)
    whole = {subject: body for subject, _, _, body in world.stream.messages}
    new = Executor(prefix)
    for subject, body in new.outbox:
        if subject.startswith(TIMER_AT):
            assert subject in world.stream.timers
            continue
        assert subject in whole
        if subject in prefix.subjects:
            continue
        assert encode(body) == whole[subject], (subject, encode(body), whole[subject])

"""The engine: admission, recovery, and what a client's messages can and cannot do to it."""

import json
from typing import Any

import msgspec
import pytest

from services.executor.decide import Fact
from services.executor.engine import Engine
from shared.events import RunCompleted, Unreadable, encode, read
from shared.plan import Budgets
from shared.run import evolve
from shared.subjects import (
    goal_rejected,
    llm_called,
    plan_created,
    run_cancel_requested,
    run_completed,
    run_queued,
    run_started,
    step_completed,
    step_dispatched,
    step_failed,
    step_skipped,
    timer_fired,
)
from tests import controls
from tests.controls import ACK, Stream


class Shell:
    """One executor without NATS: reads the stream in order, appends what follows, create-only.

    It lives since the stream's beginning; `restarted` is one that finds a past.
    """

    def __init__(self, stream: Stream) -> None:
        self.stream = stream
        self.engine = Engine()
        self.engine.deciding = True
        self.position = 0

    @classmethod
    def restarted(cls, stream: Stream) -> "Shell":
        """As `Executor.start` does: says nothing up to the end that it found, then everything that is due."""
        shell = cls(stream)
        shell.engine.deciding = False
        while shell.position < stream.last_seq:
            assert shell.read_one() == []
        shell.say(shell.engine.due())
        return shell

    def read_one(self) -> list[Fact]:
        self.position += 1
        return self.engine.apply(self.stream.event(self.position))

    def say(self, facts: list[Fact]) -> None:
        for subject, body in facts:
            self.stream.say(subject, body)

    def catch_up(self) -> list[str]:
        """Read to the end, answering nothing for workers; the subjects said."""
        said: list[str] = []
        while self.position < self.stream.last_seq:
            facts = self.read_one()
            said += [subject for subject, _ in facts]
            self.say(facts)
        return said

    def work(self) -> None:
        """As `catch_up`, with a worker that completes what is dispatched and readable."""
        done = 0
        while True:
            self.catch_up()
            for subject, _, _, data in self.stream.messages[done:]:
                event = read(subject, self.stream.last_seq + 1, 1, data)
                if event.kind == "step.dispatched" and not isinstance(event.body, Unreadable):
                    self.stream.say(step_completed(event.run, event.step, event.attempt), controls.completed())
            if done == self.stream.last_seq:
                return
            done = self.position


def status(stream: Stream, run: int) -> str:
    return stream.fold(run).status


# -- the straight way --------------------------------------------------------------------------------------


def test_a_planned_run_is_started_dispatched_and_completed() -> None:
    """The story of a run of one step, subject by subject."""
    stream = Stream()
    run = stream.planned()
    Shell(stream).work()
    assert [subject for subject, *_ in stream.messages] == [
        "goal.submitted",
        plan_created(run),
        run_started(run),
        step_dispatched(run, "a", 1, "noop"),
        step_completed(run, "a", 1),
        run_completed(run),
    ]
    assert status(stream, run) == "succeeded"


def test_an_ended_run_is_forgotten() -> None:
    """Memory grows with active runs only."""
    stream = Stream()
    shell = Shell(stream)
    for _ in range(5):
        stream.planned()
    shell.work()
    engine = shell.engine
    assert engine.runs == {} and engine._said == {} and not engine._waiting and not engine._holding


def test_a_rejected_goal_is_forgotten() -> None:
    stream = Stream()
    run = stream.goal()
    stream.put(goal_rejected(run), controls.goal_rejected_body())
    shell = Shell(stream)
    assert shell.catch_up() == []
    assert shell.engine.runs == {} and not shell.engine._said


def test_nothing_is_said_twice_while_it_is_not_read_back() -> None:
    """Another event of the run does not repeat a fact that is under way."""
    stream = Stream()
    run = stream.planned(controls.plan(controls.step("a"), controls.step("b")))
    stream.put(run_started(run), controls.started())
    shell = Shell(stream)
    said = shell.catch_up()
    assert sorted(said) == sorted(set(said))


# -- admission ---------------------------------------------------------------------------------------------


def limited(limit: int, name: str = "narrow") -> Any:
    return controls.plan(directive=controls.directive(name, max_concurrent_runs=limit))


def test_a_run_over_the_limit_is_queued_and_starts_when_a_slot_is_free() -> None:
    stream = Stream()
    first, second = stream.planned(limited(1)), stream.planned(limited(1))
    shell = Shell(stream)
    shell.catch_up()
    assert (status(stream, first), status(stream, second)) == ("running", "queued")
    stream.put(step_completed(first, "a", 1), controls.completed())
    shell.catch_up()
    assert (status(stream, first), status(stream, second)) == ("succeeded", "running")


def test_directives_do_not_wait_for_each_other() -> None:
    stream = Stream()
    stream.planned(limited(1, "narrow"))
    stream.planned(limited(1, "narrow"))
    other = stream.planned(limited(1, "other"))
    Shell(stream).catch_up()
    assert status(stream, other) == "running"


def test_a_waiting_run_that_ends_leaves_the_queue() -> None:
    """A run that is over before it began takes no slot and holds up nobody."""
    stream = Stream()
    first, second, third = (stream.planned(limited(1)) for _ in range(3))
    shell = Shell(stream)
    shell.catch_up()
    stream.put(run_completed(second), controls.run_over(status="cancelled", steps={}))
    stream.put(step_completed(first, "a", 1), controls.completed())
    shell.catch_up()
    assert status(stream, third) == "running"


def test_a_limit_of_no_runs_holds_up_nobody_else() -> None:
    """The head of the queue is judged by its own snapshot; one that can never start must not stop those behind it."""
    stream = Stream()
    never = stream.planned(limited(0, "default"))
    after = stream.planned(limited(5, "default"))
    Shell(stream).work()
    assert status(stream, after) == "succeeded"
    assert status(stream, never) != "running"


# -- recovery ----------------------------------------------------------------------------------------------


def test_a_run_planned_while_no_executor_lived_is_started() -> None:
    """Goal and plan lie in the stream, `run.started` was never said: the next executor says it."""
    stream = Stream()
    run = stream.planned()
    Shell.restarted(stream).work()
    assert status(stream, run) == "succeeded"


def test_a_run_admitted_but_not_said_to_be_before_the_kill_is_started() -> None:
    """The slot came free, the executor was killed before it could say who takes it."""
    stream = Stream()
    first, second = stream.planned(limited(1)), stream.planned(limited(1))
    shell = Shell(stream)
    shell.catch_up()
    stream.put(step_completed(first, "a", 1), controls.completed())
    shell.say(shell.read_one())  # says run.completed of the first and dies
    Shell.restarted(stream).work()
    assert (status(stream, first), status(stream, second)) == ("succeeded", "succeeded")


@pytest.mark.parametrize("killed_at", range(1, 30))
def test_a_kill_at_any_message_loses_nothing(killed_at: int) -> None:
    """Three runs, two slots; the executor dies with all that it had not said yet, after any message."""
    stream = Stream()
    made = controls.plan(
        controls.step("a"),
        controls.step("b", needs=["a"]),
        directive=controls.directive("narrow", max_concurrent_runs=2),
    )
    runs = [stream.planned(made) for _ in range(3)]
    shell = Shell(stream)
    for _ in range(killed_at):
        if shell.position == stream.last_seq:
            break
        facts = shell.read_one()
        if shell.position < killed_at:
            shell.say(facts)
    Shell.restarted(stream).work()
    assert [status(stream, run) for run in runs] == ["succeeded"] * 3
    ends = [subject for subject, *_ in stream.messages if subject.startswith("run.completed.")]
    assert sorted(ends) == sorted(run_completed(run) for run in runs)


def test_a_restart_says_nothing_new_when_everything_was_said() -> None:
    stream = Stream()
    stream.planned(limited(1)), stream.planned(limited(1))
    Shell(stream).catch_up()
    before = stream.last_seq
    Shell.restarted(stream)
    assert stream.last_seq == before


# -- messages that are no events ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "subject",
    [
        "goal.rejected.1",
        "plan.created.1",
        "run.queued.1",
        "run.started.1",
        "step.dispatched.1.a.1.noop",
        "step.completed.1.a.1",
        "step.failed.1.a.1",
        "step.skipped.1.a",
        "llm.called.1.a.1-1",
        "timer.fired.1.deadline",
        "timer.fired.1.step.a.1",
        "run.completed.1",
        "run.cancel_requested.1",
        "approval.granted.1.a",
        "audit.something.1",
    ],
)
@pytest.mark.parametrize("when", ["pending", "planned", "running"])
def test_the_run_ends_whatever_ack_lies_on_one_of_its_subjects(subject: str, when: str) -> None:
    """A server's ack stored under an engine subject, at any stage, costs an attempt or a run, never an answer."""
    stream = Stream()
    shell = Shell(stream)
    run = stream.goal()
    if when == "pending":
        stream.put(subject, ACK)
    stream.say(plan_created(run), controls.plan())
    if when == "planned":
        stream.put(subject, ACK)
    if when == "running":
        shell.catch_up()
        stream.put(subject, ACK)
    shell.work()
    # Whoever holds an attempt that cannot be answered any more is taken for lost by its timer, then by the run's.
    for attempt in (1, 2, 3):
        stream.put(timer_fired(run, f"step.a.{attempt}"), controls.fired())
        shell.work()
    stream.put(timer_fired(run, "deadline"), controls.fired())
    shell.work()
    assert stream.fold(run).ended, [subject for subject, *_ in stream.messages]
    assert run not in shell.engine.runs


@pytest.mark.parametrize("what", ["deadline", "step.a.1"])
def test_an_ack_under_a_timers_subject_fires_no_timer(what: str) -> None:
    """TIMERS takes `timer.fired.>`, so an ack can be stored there; only a readable `TimerFired` is a timer."""
    stream = Stream()
    run = stream.planned()
    shell = Shell(stream)
    shell.catch_up()
    before = stream.fold(run)
    stream.put(timer_fired(run, what), ACK)
    assert shell.catch_up() == []
    assert stream.fold(run) == before


def test_an_ack_under_run_queued_does_not_queue() -> None:
    stream = Stream()
    run = stream.planned()
    stream.put(run_queued(run), ACK)
    assert status(stream, run) == "pending"


@pytest.mark.parametrize("verb", ["completed", "failed"])
def test_an_attempt_whose_result_subject_was_taken_before_it_began_is_lost(verb: str) -> None:
    """The next attempt has subjects of its own, so the run succeeds."""
    stream = Stream()
    run = stream.planned()
    build = step_completed if verb == "completed" else step_failed
    stream.put(build(run, "a", 1), ACK)
    shell = Shell(stream)
    shell.catch_up()
    # The worker fails (or completes) into the taken subject: nothing is stored. Then its timer fires.
    assert stream.say(build(run, "a", 1), controls.failed()) == 0
    stream.put(timer_fired(run, "step.a.1"), controls.fired())
    shell.catch_up()
    assert step_dispatched(run, "a", 2, "noop") in stream.subjects
    stream.say(step_completed(run, "a", 2), controls.completed())
    shell.catch_up()
    assert status(stream, run) == "succeeded"


def test_a_run_whose_attempt_cannot_be_said_to_have_failed_ends_at_its_deadline() -> None:
    """`step.failed.1.a.1` was taken early and the worker is gone: the run's own timer must end it all the same."""
    stream = Stream()
    run = stream.planned()
    stream.put(step_failed(run, "a", 1), ACK)
    shell = Shell(stream)
    shell.catch_up()
    stream.put(timer_fired(run, "deadline"), controls.fired())
    shell.catch_up()
    assert status(stream, run) == "timed_out"


def test_nothing_is_dispatched_into_a_run_whose_time_is_over() -> None:
    """The step's timer and the run's fire one after the other; the dispatch that the first one called for is stored
    behind the second one. It must not hold up the end.
    """
    stream = Stream()
    run = stream.planned()
    shell = Shell(stream)
    shell.catch_up()
    stream.put(timer_fired(run, "step.a.1"), controls.fired())
    stream.put(timer_fired(run, "deadline"), controls.fired())
    shell.catch_up()
    assert status(stream, run) == "timed_out"


def test_a_step_that_cannot_be_said_to_be_skipped_does_not_hold_up_the_end() -> None:
    """An ack lies under `step.skipped.1.b`; a fails, so b is to be skipped, and nobody can ever say so."""
    stream = Stream()
    run = stream.planned(controls.plan(controls.step("a", max_attempts=1), controls.step("b", needs=["a"])))
    shell = Shell(stream)
    shell.catch_up()
    stream.put(step_skipped(run, "b"), ACK)
    stream.put(step_failed(run, "a", 1), controls.failed())
    shell.catch_up()
    stream.put(timer_fired(run, "deadline"), controls.fired())
    shell.catch_up()
    assert stream.fold(run).ended


def test_a_dispatch_whose_subject_was_taken_early_costs_an_attempt() -> None:
    """An ack under `step.dispatched.1.a.1.noop` from before the run was started must not hide the step."""
    stream = Stream()
    run = stream.planned()
    stream.put(step_dispatched(run, "a", 1, "noop"), ACK)
    Shell(stream).work()
    assert status(stream, run) == "succeeded"


def test_a_run_whose_end_was_taken_before_it_began_is_over() -> None:
    """`run.completed.2` stored before goal 2: nobody can ever say the end, so the run must not look alive for ever."""
    stream = Stream()
    stream.put(run_completed(2), ACK)
    run = stream.planned()
    assert run == 2
    shell = Shell(stream)
    shell.work()
    assert run not in shell.engine.runs


def test_a_plan_whose_subject_was_taken_before_its_goal_is_over() -> None:
    """`plan.created.2` stored before goal 2: the planner's plan is refused, so somebody has to end the run."""
    stream = Stream()
    stream.put(plan_created(2), ACK)
    run = stream.goal()
    stream.say(plan_created(run), controls.plan())
    Shell(stream).work()
    assert stream.fold(run).ended or run_completed(run) in stream.subjects


def test_a_broken_run_ends_with_its_steps_skipped() -> None:
    """`run.completed.steps` says what the fold says."""
    stream = Stream()
    run = stream.planned()
    stream.put(run_started(run), ACK)
    Shell(stream).work()
    state = stream.fold(run)
    end = next(msgspec.json.decode(data) for subject, _, _, data in stream.messages if subject == run_completed(run))
    assert state.status == "failed"
    assert end["steps"] == {name: one.status for name, one in state.steps.items()}


# -- readable forgeries: a client that may publish anything ------------------------------------------------


def poisoned(**changes: Any) -> bytes:
    """A plan as a stranger writes it, past every check of the struct; its hash is that of the forged fields."""
    fields = json.loads(encode(controls.plan()))
    fields.update(json.loads(encode(changes)))
    fields["plan_hash"] = controls.outsiders_hash(encode(fields))
    return encode(fields)


POISONED = {
    "a time budget beyond every calendar": lambda: poisoned(budgets=Budgets(time_budget_s=10**15)),
    "a need that is no step": lambda: poisoned(steps=[controls.step("a", needs=["ghost"])]),
    "steps that wait for each other": lambda: poisoned(
        steps=[controls.step("a", needs=["b"]), controls.step("b", needs=["a"])]
    ),
    "the same step twice": lambda: poisoned(steps=[controls.step("a"), controls.step("a")]),
    "a step id that is no token": lambda: poisoned(steps=[controls.step("a b.>")]),
    "a task that is no token": lambda: poisoned(steps=[controls.step("a", task="x.> y")]),
    "no steps": lambda: poisoned(steps=[]),
    "a limit below zero": lambda: poisoned(directive=controls.directive(max_concurrent_runs=-1)),
    "attempts without end": lambda: poisoned(steps=[controls.step("a", max_attempts=10**9)]),
    "a hash that is not its own": lambda: encode({**json.loads(encode(controls.plan())), "plan_hash": "0" * 64}),
}


@pytest.mark.parametrize("name", POISONED)
def test_a_forged_plan_stops_no_engine_and_says_no_forged_subject(name: str) -> None:
    """Nothing that a client can publish may stop a service; the run behind it runs as if nothing had been."""
    stream = Stream()
    stream.planned(POISONED[name]())
    after = stream.planned(controls.plan())
    shell = Shell(stream)
    shell.work()
    assert status(stream, after) == "succeeded"
    for subject, *_ in stream.messages:
        assert " " not in subject and "*" not in subject and ">" not in subject, subject


def test_a_forged_skip_does_not_leave_the_run_without_an_end() -> None:
    """The only step was skipped by a stranger: all steps have ended, so the run has."""
    stream = Stream()
    run = stream.planned()
    stream.put(run_started(run), controls.started())
    stream.put(step_skipped(run, "a"), controls.skipped(reason="a stranger says so"))
    Shell(stream).work()
    assert stream.fold(run).ended


def test_what_waits_for_a_skipped_step_is_skipped() -> None:
    stream = Stream()
    run = stream.planned(controls.plan(controls.step("a"), controls.step("b", needs=["a"])))
    stream.put(run_started(run), controls.started())
    stream.put(step_skipped(run, "a"), controls.skipped(reason="a stranger says so"))
    Shell(stream).work()
    assert stream.fold(run).ended


def test_a_forged_call_takes_no_tokens_back() -> None:
    """Negative usage would give a run more than its budget, and DuckDB's columns have no sign."""
    stream = Stream()
    run = stream.planned()
    shell = Shell(stream)
    shell.catch_up()
    stream.put(llm_called(run, "a", "x"), controls.called(input_tokens=-5, output_tokens=-5))
    shell.catch_up()
    tokens = stream.fold(run).tokens
    assert tokens.input >= 0 and tokens.output >= 0


def test_a_goal_under_a_number_is_no_event_of_that_run() -> None:
    stream = Stream()
    run = stream.planned()
    stream.put(f"goal.submitted.{run}", b'{"goal":"x"}')
    Shell(stream).work()
    assert status(stream, run) == "succeeded"


def test_a_cancelled_run_ends_as_cancelled_and_starts_nothing_more() -> None:
    stream = Stream()
    run = stream.planned()
    stream.put(run_cancel_requested(run, "ann"), b"{}")
    Shell(stream).work()
    assert status(stream, run) == "cancelled"
    assert stream.fold(run).reason == "cancelled by ann"


def test_a_run_completed_with_a_status_that_is_no_end_still_ends() -> None:
    stream = Stream()
    run = stream.planned()
    shell = Shell(stream)
    shell.catch_up()
    stream.put(run_completed(run), encode(RunCompleted(status="running", reason="?", steps={})))
    shell.catch_up()
    assert status(stream, run) == "failed"
    assert shell.engine.runs == {}


def test_a_result_after_the_end_changes_nothing() -> None:
    stream = Stream()
    run = stream.planned()
    Shell(stream).work()
    over = stream.fold(run)
    late = stream.put(step_failed(run, "a", 1), controls.failed())
    assert evolve(over, stream.event(late)) is over


# -- several executors -------------------------------------------------------------------------------------


def test_a_run_is_not_over_while_one_of_its_steps_runs() -> None:
    """The first executor is slow between its two dispatches; the second one sees a failed and b not yet dispatched.
    Whatever the second one then says of b, the run must not end with b in a worker's hands.
    """
    stream = Stream()
    run = stream.planned(controls.plan(controls.step("a", max_attempts=1), controls.step("b")))
    stream.put(run_started(run), controls.started())
    first, second = Shell(stream), Shell(stream)
    facts = [fact for _ in range(3) for fact in first.read_one()]
    to_b = next(fact for fact in facts if fact[0] == step_dispatched(run, "b", 1, "noop"))
    first.say([fact for fact in facts if fact is not to_b])
    stream.put(step_failed(run, "a", 1), controls.failed())
    late = [fact for _ in range(stream.last_seq) for fact in second.read_one()]
    first.say([to_b])
    second.say(late)
    for shell in (first, second, first, second):
        shell.catch_up()
    ends = [seq for subject, seq, *_ in stream.messages if subject == run_completed(run)]
    for seq in ends:
        assert stream.fold(run, until=seq - 1).steps["b"].status != "running"
    stream.say(step_completed(run, "b", 1), controls.completed())
    for shell in (first, second, first, second):
        shell.catch_up()
    assert status(stream, run) == "failed"

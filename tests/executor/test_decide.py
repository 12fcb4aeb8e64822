"""What follows from a run's state: given these events, these facts, and nothing else."""

from typing import Any

import pytest

from services.executor.decide import CONSEQUENTIAL, decide, token_grant
from shared.clock import NS_PER_S, rfc3339
from shared.events import KINDS, RunCompleted, StepDispatched, StepSkipped
from shared.plan import Budgets, Step
from shared.run import Run
from shared.subjects import (
    goal_rejected,
    llm_called,
    plan_created,
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
from tests.controls import ACK, T0_NS, TICK_NS, Stream

RUN = 1


def given(steps: list[Step], *more: tuple[str, Any], started: bool = True, **changes: Any) -> Run:
    """A planned run (started, unless told otherwise) after these messages."""
    stream = Stream()
    stream.planned(controls.plan(*steps, **changes))
    if started:
        stream.put(run_started(RUN), controls.started())
    for subject, body in more:
        stream.put(subject, body)
    return stream.fold(RUN)


def subjects(run: Run) -> list[str]:
    return [subject for subject, _ in decide(run)]


def to(step: str, attempt: int = 1, grant: int = 0) -> tuple[str, Any]:
    return step_dispatched(RUN, step, attempt, "noop"), controls.dispatched(token_grant=grant)


def done(step: str, attempt: int = 1) -> tuple[str, Any]:
    return step_completed(RUN, step, attempt), controls.completed()


def lost(step: str, attempt: int = 1, **changes: Any) -> tuple[str, Any]:
    return step_failed(RUN, step, attempt), controls.failed(**changes)


DEADLINE = (timer_fired(RUN, "deadline"), controls.fired())
A, B = controls.step("a"), controls.step("b", needs=["a"])


@pytest.mark.parametrize(
    "more",
    [
        [],
        [(run_queued(RUN), controls.queued())],
        [(goal_rejected(RUN), controls.goal_rejected_body())],
        [(run_completed(RUN), controls.run_over())],
    ],
    ids=["planned", "queued", "rejected", "over"],
)
def test_nothing_follows_before_the_start_or_after_the_end(more: list[tuple[str, Any]]) -> None:
    assert decide(given([A, B], *more, started=False)) == []


def test_steps_without_needs_are_dispatched_at_once() -> None:
    run = given([A, controls.step("c"), B])
    assert subjects(run) == [step_dispatched(RUN, "a", 1, "noop"), step_dispatched(RUN, "c", 1, "noop")]


def test_a_dispatch_says_what_the_worker_needs() -> None:
    """Inputs, deadline of the run, the plan that it belongs to, and its own limit."""
    run = given([controls.step("a", inputs={"x": 1}, timeout_s=7)], goal="do it", budgets=Budgets(time_budget_s=60))
    assert run.plan is not None
    [(_, body)] = decide(run)
    assert body == StepDispatched(
        inputs={"x": 1},
        deadline=rfc3339(T0_NS + 3 * TICK_NS + 60 * NS_PER_S),
        plan_hash=run.plan.plan_hash,
        timeout_s=7,
        token_grant=0,
        goal="do it",
    )


def test_step_completed_dispatches_what_became_ready() -> None:
    assert subjects(given([A, B], to("a"), done("a"))) == [step_dispatched(RUN, "b", 1, "noop")]


def test_nothing_follows_while_a_worker_is_at_it() -> None:
    assert decide(given([A, B], to("a"))) == []


def test_a_lost_attempt_is_followed_by_the_next_one() -> None:
    assert subjects(given([A, B], to("a"), lost("a"))) == [step_dispatched(RUN, "a", 2, "noop")]


def test_an_unreadable_answer_is_a_lost_attempt() -> None:
    run = given([A], to("a"), (step_completed(RUN, "a", 1), ACK))
    assert subjects(run) == [step_dispatched(RUN, "a", 2, "noop")]


def test_an_overdue_attempt_is_overtaken_and_may_be_tried_again() -> None:
    run = given([A], to("a"), (timer_fired(RUN, "step.a.1"), controls.fired()))
    assert subjects(run) == [step_dispatched(RUN, "a", 2, "noop")]


def test_a_failed_step_stops_the_run_and_the_rest_is_skipped_with_the_reason() -> None:
    facts = dict(decide(given([A, B], to("a"), lost("a", retryable=False))))
    skip = facts[step_skipped(RUN, "b")]
    assert isinstance(skip, StepSkipped) and "step a failed" in skip.reason


def test_a_stopped_run_waits_for_the_steps_that_run() -> None:
    run = given([A, controls.step("c")], to("a"), to("c"), lost("a", retryable=False))
    assert run_completed(RUN) not in subjects(run)


def test_a_step_that_may_fail_lets_the_next_one_go_on() -> None:
    patient = controls.step("a", on_failure="continue", max_attempts=1)
    assert subjects(given([patient, B], to("a"), lost("a"))) == [step_dispatched(RUN, "b", 1, "noop")]


def test_a_failure_that_was_let_pass_is_still_a_failure_in_the_end() -> None:
    patient = controls.step("a", on_failure="continue", max_attempts=1)
    [(subject, body)] = decide(given([patient, B], to("a"), lost("a"), to("b"), done("b")))
    assert subject == run_completed(RUN) and isinstance(body, RunCompleted)
    assert (body.status, body.steps) == ("failed", {"a": "failed", "b": "succeeded"})
    assert "unavailable" in body.reason


def test_the_last_step_completed_ends_the_run() -> None:
    run = given([A, B], to("a"), (llm_called(RUN, "a", "1-1"), controls.called()), done("a"), to("b"), done("b"))
    [(subject, body)] = decide(run)
    assert subject == run_completed(RUN) and isinstance(body, RunCompleted)
    assert (body.status, body.steps) == ("succeeded", {"a": "succeeded", "b": "succeeded"})
    assert (body.tokens.input, body.tokens.output) == (30, 12)
    assert body.duration_s == (run.at_ns - run.started_ns) / NS_PER_S


def test_when_the_time_is_over_running_steps_are_overtaken_and_no_new_one_starts() -> None:
    run = given([A, B], to("a"), DEADLINE)
    assert run.steps["a"].status == "failed"
    assert subjects(run) == [step_skipped(RUN, "b")]


def test_a_run_out_of_time_ends_as_timed_out() -> None:
    run = given([A], to("a"), DEADLINE)
    body = dict(decide(run))[run_completed(RUN)]
    assert isinstance(body, RunCompleted) and body.status == "timed_out" and "3600 s" in body.reason


def test_a_run_whose_plan_cannot_be_read_fails() -> None:
    stream = Stream()
    stream.goal()
    stream.put(plan_created(RUN), ACK)
    [(subject, body)] = decide(stream.fold(RUN))
    assert subject == run_completed(RUN)
    assert isinstance(body, RunCompleted) and body.status == "failed" and "plan.created" in body.reason


def test_asking_again_gives_the_same_facts() -> None:
    run = given([A, controls.step("c"), B], to("a"), lost("a"))
    assert decide(run) == decide(run) != []


def test_of_a_step_that_was_said_to_be_skipped_nothing_else_is_said() -> None:
    """Found by the properties: a stranger's word makes room in the budget, behind the skip that it called for."""
    steps = [controls.step(name) for name in "abc"]
    of_two = Budgets(max_steps=2)
    said = subjects(given(steps, budgets=of_two))
    assert said == [to("a")[0], to("b")[0], step_skipped(RUN, "c")]
    run = given(steps, (step_skipped(RUN, "a"), ACK), budgets=of_two)
    assert to("c")[0] in subjects(run)  # to whoever has not said it
    assert [subject for subject, _ in decide(run, said) if subject not in said] == []


def test_whatever_can_change_a_running_step_is_consequential() -> None:
    """After any event that may end a step or a run's time, somebody asks what follows."""
    silent = {"goal.rejected", "plan.created", "run.queued", "llm.called", "run.completed"}
    assert set(KINDS) - silent <= CONSEQUENTIAL


# -- tokens --------------------------------------------------------------------------------------------------

HUNGRY = [controls.step(name, uses_tokens=True) for name in "abc"]


def grants(run: Run) -> dict[str, int]:
    return {
        subject.split(".")[3]: body.token_grant for subject, body in decide(run) if isinstance(body, StepDispatched)
    }


def test_the_budget_is_shared_among_the_steps_that_may_want_some() -> None:
    run = given([*HUNGRY, controls.step("d")], budgets=Budgets(token_budget=100))
    assert grants(run) == {"a": 33, "b": 33, "c": 33, "d": 0}


def test_what_was_used_is_not_granted_again() -> None:
    steps = [controls.step("a", uses_tokens=True), controls.step("b", uses_tokens=True, needs=["a"])]
    call = (llm_called(RUN, "a", "1-1"), controls.called(input_tokens=30, output_tokens=10))
    run = given(steps, to("a"), call, done("a"), budgets=Budgets(token_budget=100))
    assert grants(run) == {"b": 60}


def test_unknown_usage_counts_as_the_whole_grant() -> None:
    steps = [controls.step("a", uses_tokens=True), controls.step("b", uses_tokens=True, needs=["a"])]
    call = (llm_called(RUN, "a", "1-1"), controls.called(input_tokens=None, output_tokens=1))
    assert grants(given(steps, to("a", grant=60), call, done("a"), budgets=Budgets(token_budget=100))) == {"b": 40}


def test_no_grant_is_below_zero() -> None:
    call = (llm_called(RUN, "a", "1-1"), controls.called(input_tokens=500, output_tokens=500))
    run = given(HUNGRY, to("a"), call, lost("a"), budgets=Budgets(token_budget=100))
    assert all(token_grant(run, step) == 0 for step in HUNGRY)


def test_grants_that_are_out_and_what_was_used_never_exceed_the_budget() -> None:
    """a used 30 of its 33 and is tried again while b and c still hold 33 each: 30 + 66 + the new grant <= 100."""
    call = (llm_called(RUN, "a", "1-1"), controls.called(input_tokens=30, output_tokens=0))
    run = given(
        HUNGRY,
        to("a", grant=33),
        to("b", grant=33),
        to("c", grant=33),
        call,
        lost("a"),
        budgets=Budgets(token_budget=100),
    )
    held = dict.fromkeys("bc", 33)
    assert 30 + sum(held.values()) + grants(run)["a"] <= 100

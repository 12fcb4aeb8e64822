"""Limits hold in the fold, whoever dispatches: what overshoots a budget at its place in the stream does not count."""

from typing import Any

import pytest

from services.executor.decide import decide
from shared.events import LlmCalled
from shared.plan import Budgets, Retry
from shared.run_state import Run
from shared.subjects import (
    llm_called,
    run_started,
    step_cancelled,
    step_completed,
    step_dispatched,
    step_failed,
    step_skipped,
    timer_fired,
)
from tests import controls
from tests.controls import Stream

ABC = [controls.step(name) for name in "abc"]
THIRSTY = [controls.step(name, uses_tokens=True) for name in "abc"]


def world(*steps: Any, directive: dict[str, Any] | None = None, **changes: Any) -> tuple[Stream, int]:
    """A stream in which a run of these steps has started."""
    stream = Stream()
    made = controls.plan(*steps, directive=controls.directive(**(directive or {})), **changes)
    run = stream.planned(made)
    stream.put(run_started(run), controls.started())
    return stream, run


def dispatch(stream: Stream, run: int, step: str, attempt: int = 1, **changes: Any) -> Run:
    stream.put(step_dispatched(run, step, attempt, "noop"), controls.dispatched(**changes))
    return stream.fold(run)


def said(stream: Stream, run: int) -> list[str]:
    """The facts that the run calls for now, by their subjects without the run."""
    return [subject.replace(f".{run}", "", 1) for subject, _ in decide(stream.fold(run))]


def test_a_step_over_max_parallel_steps_waits_for_its_turn() -> None:
    """Two executors at different places may both dispatch; the second dispatch in the stream does not count."""
    stream, run = world(*ABC, directive={"max_parallel_steps": 1})
    dispatch(stream, run, "a")
    after = dispatch(stream, run, "b")
    assert (after.steps["b"].status, after.parallel) == ("pending", 1)
    assert said(stream, run) == []
    stream.put(step_completed(run, "a", 1), controls.completed())
    assert said(stream, run) == ["step.dispatched.b.2.noop"]


def test_a_step_over_max_steps_does_not_count_and_ends_the_run() -> None:
    stream, run = world(*ABC, budgets=Budgets(max_steps=2))
    dispatch(stream, run, "a")
    dispatch(stream, run, "b")
    after = dispatch(stream, run, "c")
    assert (after.steps["c"].status, after.steps_used) == ("pending", 2)
    [(subject, body)] = decide(after)
    assert subject == step_skipped(run, "c") and body.cause == "steps"
    stream.put(subject, body)
    for step in "ab":
        stream.put(step_completed(run, step, 1), controls.completed())
    [(_, end)] = decide(stream.fold(run))
    assert (end.status, end.budget, end.used, end.allowed) == ("budget_exhausted", "steps", 2, 2)


def test_a_retry_is_no_further_step() -> None:
    stream, run = world(*ABC[:1], budgets=Budgets(max_steps=1))
    dispatch(stream, run, "a")
    stream.put(step_failed(run, "a", 1), controls.failed())
    assert said(stream, run) == ["step.dispatched.a.2.noop"]
    assert dispatch(stream, run, "a", 2).steps["a"].status == "running"


def test_a_grant_over_what_is_left_does_not_count() -> None:
    stream, run = world(*THIRSTY, budgets=Budgets(token_budget=100))
    dispatch(stream, run, "a", token_grant=60)
    after = dispatch(stream, run, "b", token_grant=50)
    assert (after.steps["b"].status, after.reserved, after.tokens_free) == ("pending", 60, 40)


def test_what_was_not_used_comes_back() -> None:
    stream, run = world(*THIRSTY, budgets=Budgets(token_budget=100))
    dispatch(stream, run, "a", token_grant=60)
    stream.put(llm_called(run, "a", "1-1"), controls.called(input_tokens=10, output_tokens=5))
    assert (stream.fold(run).charged, stream.fold(run).reserved) == (15, 45)
    stream.put(step_completed(run, "a", 1), controls.completed())
    assert (stream.fold(run).charged, stream.fold(run).tokens_free) == (15, 85)


def test_unknown_usage_is_the_whole_grant() -> None:
    stream, run = world(*THIRSTY, budgets=Budgets(token_budget=100))
    dispatch(stream, run, "a", token_grant=60)
    stream.put(llm_called(run, "a", "1-1"), LlmCalled(request_model="m", outcome="ok"))
    assert (stream.fold(run).charged, stream.fold(run).reserved) == (60, 0)


def test_a_worker_that_spends_more_than_there_is_ends_the_run() -> None:
    """The budget is never charged beyond itself; what was really reported stands in the run's tokens."""
    stream, run = world(*THIRSTY, budgets=Budgets(token_budget=100))
    dispatch(stream, run, "a", token_grant=60)
    stream.put(llm_called(run, "a", "1-1"), controls.called(input_tokens=500, output_tokens=1))
    after = stream.fold(run)
    assert (after.charged, after.tokens.input) == (100, 500)
    assert said(stream, run) == ["step.cancel_requested.a.1", "step.skipped.b", "step.skipped.c"]
    for subject, body in decide(after):
        stream.put(subject, body)
    stream.put(step_cancelled(run, "a", 1), controls.cancelled())
    [(_, end)] = decide(stream.fold(run))
    assert (end.status, end.budget, end.used, end.allowed) == ("budget_exhausted", "tokens", 501, 100)
    assert end.steps == {"a": "cancelled", "b": "skipped", "c": "skipped"}


def test_a_step_that_wants_tokens_where_none_are_left_ends_the_run() -> None:
    stream, run = world(*THIRSTY[:2], budgets=Budgets(token_budget=100), directive={"max_parallel_steps": 1})
    [(subject, body)] = decide(stream.fold(run))
    assert (subject, body.token_grant) == (step_dispatched(run, "a", 1, "noop"), 50)
    dispatch(stream, run, "a", token_grant=100)
    stream.put(llm_called(run, "a", "1-1"), LlmCalled(request_model="m", outcome="ok"))
    stream.put(step_completed(run, "a", 1), controls.completed())
    [(subject, body)] = decide(stream.fold(run))
    assert (subject, body.cause, body.reason) == (step_skipped(run, "b"), "tokens", "100 of 100 tokens are used")
    stream.put(subject, body)
    [(_, end)] = decide(stream.fold(run))
    assert (end.status, end.steps) == ("budget_exhausted", {"a": "succeeded", "b": "skipped"})


def test_who_was_given_no_tokens_runs_without() -> None:
    stream, run = world(*THIRSTY[:1], budgets=Budgets(token_budget=0))
    assert said(stream, run) == ["step.dispatched.a.1.noop"]


def test_a_dispatch_that_was_said_and_not_read_back_counts() -> None:
    """Else a step that becomes ready in between would be one too many."""
    stream, run = world(*ABC, directive={"max_parallel_steps": 1})
    run_state = stream.fold(run)
    assert decide(run_state, {step_dispatched(run, "b", 1, "noop")}) == []


@pytest.mark.parametrize(("attempt", "rest_s"), [(1, 5), (2, 10), (3, 12), (9, 12)])
def test_the_rest_between_two_tries_doubles_up_to_its_cap(attempt: int, rest_s: int) -> None:
    assert Retry(backoff_s=5, backoff_s_max=12).pause_s(attempt) == rest_s


def test_a_failed_step_rests_before_it_is_tried_again() -> None:
    stream, run = world(controls.step("a", retry=Retry(backoff_s=5)))
    dispatch(stream, run, "a")
    stream.put(step_failed(run, "a", 1), controls.failed())
    assert said(stream, run) == ["timer.at.backoff.a.1"]
    stream.put(timer_fired(run, "backoff.a.1"), controls.fired())
    assert said(stream, run) == ["step.dispatched.a.2.noop"]


def test_only_named_errors_are_tried_again() -> None:
    stream, run = world(controls.step("a", retry=Retry(errors=["busy"])))
    dispatch(stream, run, "a")
    stream.put(step_failed(run, "a", 1), controls.failed(error="unavailable"))
    assert stream.fold(run).steps["a"].status == "failed"

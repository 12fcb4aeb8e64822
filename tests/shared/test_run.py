"""The fold, pair by pair: in which states an event counts, and that it changes nothing where it does not."""

from typing import Any

import pytest

from shared.clock import NS_PER_S, parse_ns
from shared.events import KINDS, ApprovalExpired, Event, Unreadable, read
from shared.plan import GATE
from shared.run import LEGAL, Run, evolve, refusal
from shared.run_tally import counted
from shared.status import RUN_ENDS, STEP_ENDS
from shared.subjects import (
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

PLAN = controls.plan(controls.step("a", max_attempts=2), controls.step("b", needs=["a"]))
GATED = controls.plan(
    controls.step("a", max_attempts=2),
    controls.step("b", needs=["a"], approval=True),
    directive=controls.directive(approval_required=True, requester_may_approve=True, approval_expires_s=31_536_000),
)
FAR = {"plan_hash": GATED.plan_hash, "expires_at": "2027-01-01T00:00:00.000000Z"}
YES = {"plan_hash": GATED.plan_hash}
RUN = 1


def state(*more: tuple[str, Any]) -> Run:
    """The run after a goal and these messages."""
    stream = Stream()
    assert stream.goal() == RUN
    for subject, body in more:
        stream.put(subject, body)
    return stream.fold(RUN)


_planned = [(plan_created(RUN), PLAN)]
_running = [*_planned, (run_started(RUN), controls.started())]
_dispatched = [*_running, (step_dispatched(RUN, "a", 1, "noop"), controls.dispatched())]
_lost = [*_dispatched, (step_failed(RUN, "a", 1), controls.failed())]

_asked = [(plan_created(RUN), GATED), (approval_requested(RUN, GATE), controls.asked(RUN, GATE, **FAR))]
_approved = [*_asked, (approval_granted(RUN, GATE, "ann"), controls.granted(RUN, GATE, **YES))]
_asked_b = [
    *_approved,
    (run_started(RUN), controls.started()),
    (step_dispatched(RUN, "a", 1, "noop"), controls.dispatched()),
    (step_completed(RUN, "a", 1), controls.completed()),
    (approval_requested(RUN, "b"), controls.asked(RUN, "b", **FAR)),
]
_cancelling = [*_dispatched, (run_cancel_requested(RUN, "ann"), controls.cancel_requested())]

STATES: dict[str, Run] = {
    "pending": state(),
    "planned": state(*_planned),
    "queued": state(*_planned, (run_queued(RUN), controls.queued())),
    "running": state(*_running),
    "a runs": state(*_dispatched),
    "a is overdue": state(*_dispatched, (timer_fired(RUN, "step.a.1"), controls.fired())),
    "a was lost once": state(*_lost),
    "a succeeded": state(*_dispatched, (step_completed(RUN, "a", 1), controls.completed())),
    "a failed": state(*_dispatched, (step_failed(RUN, "a", 1), controls.failed(retryable=False))),
    "a skipped": state(*_running, (step_skipped(RUN, "a"), controls.skipped())),
    "timed out": state(*_dispatched, (timer_fired(RUN, "deadline"), controls.fired())),
    "plan unreadable": state((plan_created(RUN), ACK)),
    "start unreadable": state(*_planned, (run_started(RUN), ACK)),
    "gated": state((plan_created(RUN), GATED)),
    "run asked": state(*_asked),
    "run approved": state(*_approved),
    "run expired": state(*_asked, (timer_fired(RUN, f"approval.{GATE}"), controls.fired())),
    "stopped early": state(*_planned, (run_cancel_requested(RUN, "ann"), controls.cancel_requested())),
    "b asked": state(*_asked_b),
    "b refused": state(*_asked_b, (approval_rejected(RUN, "b", "ann"), controls.refused(RUN, "b", **YES))),
    "cancelling": state(*_cancelling),
    "a told to end": state(*_cancelling, (step_cancel_requested(RUN, "a", 1), controls.told_to_cancel())),
    "a cancelled": state(*_cancelling, (step_cancelled(RUN, "a", 1), controls.cancelled())),
    "rejected": state((goal_rejected(RUN), controls.goal_rejected_body())),
    "succeeded": state(*_dispatched, (run_completed(RUN), controls.run_over())),
    "failed": state(*_dispatched, (run_completed(RUN), controls.run_over(status="failed"))),
    "cancelled": state(*_planned, (run_completed(RUN), controls.run_over(status="cancelled"))),
}

EVENTS: dict[str, tuple[str, Any]] = {
    "goal.rejected": (goal_rejected(RUN), controls.goal_rejected_body()),
    "plan.created": (plan_created(RUN), PLAN),
    "run.queued": (run_queued(RUN), controls.queued()),
    "run.started": (run_started(RUN), controls.started()),
    "cancel": (run_cancel_requested(RUN, "ann"), controls.cancel_requested()),
    "ask run": (approval_requested(RUN, GATE), controls.asked(RUN, GATE, **FAR)),
    "ask b": (approval_requested(RUN, "b"), controls.asked(RUN, "b", **FAR)),
    "grant run": (approval_granted(RUN, GATE, "bob"), controls.granted(RUN, GATE, **YES)),
    "grant b": (approval_granted(RUN, "b", "bob"), controls.granted(RUN, "b", **YES)),
    "grant another plan's b": (approval_granted(RUN, "b", "bob"), controls.granted(RUN, "b")),
    "refuse run": (approval_rejected(RUN, GATE, "bob"), controls.refused(RUN, GATE, **YES)),
    "refuse b": (approval_rejected(RUN, "b", "bob"), controls.refused(RUN, "b", **YES)),
    "expire b": (approval_expired(RUN, "b"), ApprovalExpired(expired_at="2027-01-01T00:00:00.000000Z")),
    "dispatch a.1": (step_dispatched(RUN, "a", 1, "noop"), controls.dispatched()),
    "dispatch a.2": (step_dispatched(RUN, "a", 2, "noop"), controls.dispatched()),
    "dispatch a.3": (step_dispatched(RUN, "a", 3, "noop"), controls.dispatched()),
    "dispatch c.1": (step_dispatched(RUN, "c", 1, "noop"), controls.dispatched()),
    "complete a.1": (step_completed(RUN, "a", 1), controls.completed()),
    "complete a.2": (step_completed(RUN, "a", 2), controls.completed()),
    "complete b.1": (step_completed(RUN, "b", 1), controls.completed()),
    "fail a.1": (step_failed(RUN, "a", 1), controls.failed()),
    "fail a.2": (step_failed(RUN, "a", 2), controls.failed()),
    "tell a.1 to end": (step_cancel_requested(RUN, "a", 1), controls.told_to_cancel()),
    "a.1 was ended": (step_cancelled(RUN, "a", 1), controls.cancelled()),
    "skip a": (step_skipped(RUN, "a"), controls.skipped()),
    "skip b": (step_skipped(RUN, "b"), controls.skipped()),
    "skip c": (step_skipped(RUN, "c"), controls.skipped()),
    "call in a": (llm_called(RUN, "a", "1-1"), controls.called()),
    "call in c": (llm_called(RUN, "c", "1-1"), controls.called()),
    "deadline": (timer_fired(RUN, "deadline"), controls.fired()),
    "timer a.1": (timer_fired(RUN, "step.a.1"), controls.fired()),
    "timer a.2": (timer_fired(RUN, "step.a.2"), controls.fired()),
    "timer of b's approval": (timer_fired(RUN, "approval.b"), controls.fired()),
    "timer of nothing": (timer_fired(RUN, "step.c.1"), controls.fired()),
    "run.completed": (run_completed(RUN), controls.run_over()),
}

# What counts in each state; everything else leaves the run as it is, to the object.
OPEN = {"cancel", "run.completed"}
EARLY = {"skip a", "skip b"}  # nobody can say it again, so it stands
OF_A_PLAN = {"ask run", "ask b", "dispatch a.1", "dispatch a.2", "dispatch a.3", "dispatch c.1"}
STOPPING = {"skip b", "deadline", "run.completed"}
IN_STEPS = {*STOPPING, "call in a", "cancel"}
IN_ATTEMPT = {"dispatch a.2", "skip a", "complete a.1", "fail a.1", "a.1 was ended", "timer a.1"}
COUNTS: dict[str, set[str]] = {
    # What an executor says only later was said by a stranger: the run is broken, or the attempt lost.
    "pending": {"goal.rejected", "plan.created", "run.started", "skip c", *OF_A_PLAN, *EARLY, *OPEN},
    "planned": {"run.queued", "run.started", "dispatch a.1", *EARLY, *OPEN},
    "queued": {"run.started", "dispatch a.1", *EARLY, *OPEN},
    "running": {"dispatch a.1", "skip a", *IN_STEPS},
    "a runs": {*IN_ATTEMPT, *IN_STEPS},
    "a is overdue": {"dispatch a.2", "skip a", *IN_STEPS},
    "a was lost once": {"dispatch a.2", "skip a", *IN_STEPS},
    "a succeeded": IN_STEPS,
    "a failed": IN_STEPS,
    "a skipped": IN_STEPS,
    "timed out": {"skip b", "run.completed"},
    "plan unreadable": {"goal.rejected", *OPEN},
    "start unreadable": {"run.queued", *EARLY, *OPEN},  # it never starts, so no dispatch is early
    # Nobody may start the run before it is approved; a question that is asked early is a question all the same.
    "gated": {"ask run", "ask b", "dispatch a.1", "run.started", *EARLY, *OPEN},
    "run asked": {"ask b", "grant run", "refuse run", "dispatch a.1", *EARLY, *OPEN},
    "run approved": {"run.queued", "run.started", "ask b", "dispatch a.1", *EARLY, *OPEN},
    "run expired": {"ask b", "run.completed", *EARLY},
    "stopped early": {"run.queued", "run.completed", *EARLY},  # it never starts
    "b asked": {"grant b", "refuse b", *IN_STEPS},
    "b refused": STOPPING - {"deadline"},
    "cancelling": {"tell a.1 to end", *IN_ATTEMPT, *STOPPING, "call in a"},
    "a told to end": {*IN_ATTEMPT, *STOPPING, "call in a"},
    "a cancelled": STOPPING - {"deadline"},
    "rejected": set(),
    "succeeded": set(),
    "failed": set(),
    "cancelled": set(),
}

# An unreadable message takes the place of the event that can never be said there any more. Where nothing depends on
# the subject, it means nothing.
NOT_STARTED = {"pending", "planned", "queued", "start unreadable", "gated", "run asked", "run approved", "run expired",
               "stopped early"}  # fmt: skip
UNREADABLE_COUNTS: dict[str, set[str]] = {
    "goal.rejected": {"pending", "plan unreadable"},
    "plan.created": {"pending"},
    "run.started": {"pending", "planned", "queued", "gated", "run approved"},
    "ask run": {"pending", "gated"},
    "ask b": {"pending", "gated", "run asked", "run approved", "run expired"},
    "dispatch a.1": {
        "pending",
        "planned",
        "queued",
        "running",
        "gated",
        "run asked",
        "run approved",
    },
    "dispatch a.3": {"pending"},
    "dispatch c.1": {"pending"},
    "dispatch a.2": {"pending", "a runs", "a was lost once", "a is overdue", "cancelling", "a told to end"},
    "tell a.1 to end": {"cancelling"},
    "a.1 was ended": {"a runs", "cancelling", "a told to end"},
    # While it runs, too: nobody can say it again when the attempt is lost.
    "skip a": {*NOT_STARTED, "running", "a was lost once", "a is overdue", "a runs", "cancelling", "a told to end"},
    "skip b": {*NOT_STARTED, *(name for name, run in STATES.items() if run.status == "running")},
    "skip c": {"pending"},
    "complete a.1": {"a runs", "cancelling", "a told to end"},
    "fail a.1": {"a runs", "cancelling", "a told to end"},
    "run.completed": {name for name, run in STATES.items() if not run.ended},
}


def stored(event: str, body: Any = None) -> Event:
    subject, own = EVENTS[event]
    return read(subject, 100, controls.T0_NS + 10**6 * NS_PER_S, body if body is not None else controls.encode(own))


# Whether a call that was made in an attempt which has ended by now belongs to the run's account is decided by the
# world in tests/executor: the account in run.completed must be the fold's.
OPEN_QUESTION = {
    (one, "call in a")
    for one in STATES
    if not STATES[one].ended and one not in ("a runs", "cancelling", "a told to end")
}
PAIRS = [(in_state, event) for in_state in STATES for event in EVENTS if (in_state, event) not in OPEN_QUESTION]


def test_the_tables_of_this_file_name_every_kind() -> None:
    assert {".".join(subject.split(".")[:2]) for subject, _ in EVENTS.values()} == set(KINDS)
    assert set(LEGAL) == set(KINDS)
    assert set(COUNTS) == set(STATES)
    assert len(PAIRS) > 350


def events_in(in_state: str) -> list[str]:
    return [event for one, event in PAIRS if one == in_state]


@pytest.mark.parametrize("in_state", STATES)
def test_an_event_counts_in_its_states_only(in_state: str) -> None:
    """A legal event makes a new run stamped with it; an illegal one returns the very object and a reason."""
    before = STATES[in_state]
    for event in events_in(in_state):
        message = stored(event)
        assert not isinstance(message.body, Unreadable), event
        after = evolve(before, message)
        if event in COUNTS[in_state]:
            assert after is not before and after != before, event
            assert after.at_ns == message.at_ns or event.startswith("timer"), event
            assert before == STATES[in_state], event
        else:
            assert after is before, event
            assert refusal(before, message), event


@pytest.mark.parametrize("in_state", STATES)
def test_an_unreadable_message_only_takes_the_place_of_what_cannot_be_said_any_more(in_state: str) -> None:
    before = STATES[in_state]
    for event in events_in(in_state):
        message = stored(event, ACK)
        after = evolve(before, message)
        if in_state in UNREADABLE_COUNTS.get(event, ()):
            assert after is not before, event
        else:
            assert after is before, event
            assert refusal(before, message), event


@pytest.mark.parametrize("in_state", STATES)
def test_a_kind_that_is_no_event_changes_nothing(in_state: str) -> None:
    message = read(f"audit.said.{RUN}", 100, 1, b"{}")
    assert evolve(STATES[in_state], message) is STATES[in_state]
    assert refusal(STATES[in_state], message)


@pytest.mark.parametrize("in_state", STATES)
def test_saying_it_again_changes_nothing(in_state: str) -> None:
    """A plain publish may repeat a subject: the second message of the same event counts as nothing.

    Calls are counted by their subject, so the second one is a forgery, too; the fold keeps no list of them.
    """
    for event in EVENTS:
        once = evolve(STATES[in_state], stored(event))
        if event != "call in a":
            assert evolve(once, stored(event)) is once, event


def test_ended_runs_hold_only_ended_steps() -> None:
    for run in STATES.values():
        if run.ended:
            assert all(step.status in STEP_ENDS for step in run.steps.values())
            assert run.ended_ns


def test_a_lost_attempt_may_be_tried_again_until_the_plan_says_no() -> None:
    after = state(*_lost, (step_dispatched(RUN, "a", 2, "noop"), controls.dispatched()))
    assert (after.steps["a"].status, after.steps["a"].attempt) == ("running", 2)
    in_time = read(step_failed(RUN, "a", 2), 100, after.at_ns + 1, controls.encode(EVENTS["fail a.2"][1]))
    over = evolve(after, in_time)
    assert (over.steps["a"].status, over.steps["a"].error) == ("failed", "unavailable")


def test_a_timer_ends_the_attempt_that_it_was_set_for() -> None:
    """Nobody has to answer any more: no fact of an executor is needed, and none can be forestalled."""
    step = STATES["a is overdue"].steps["a"]
    assert (step.status, step.attempt, step.error) == ("pending", 1, "timeout")


def test_nothing_is_tried_again_when_the_time_is_over() -> None:
    step = STATES["timed out"].steps["a"]
    assert (step.status, step.error) == ("failed", "timeout")


@pytest.mark.parametrize("retryable", [True, False])
def test_a_step_that_fails_when_the_time_is_over_ends_as_by_the_deadline(retryable: bool) -> None:
    """A worker ends its step at the run's deadline, and its word may be stored before the timer's."""
    run = STATES["a runs"]
    body = controls.encode(controls.failed(error="timeout", retryable=retryable))
    after = evolve(run, read(step_failed(RUN, "a", 1), 100, run.deadline_ns, body))
    assert after.timed_out and after.steps["a"].status == "failed"
    before = evolve(run, read(step_failed(RUN, "a", 1), 100, run.deadline_ns - 1, body))
    assert before.stop is None


def test_a_completed_step_keeps_what_it_found() -> None:
    step = STATES["a succeeded"].steps["a"]
    assert (step.outputs, step.host, [one.name for one in step.artifacts]) == ({"n": 1}, "tower", ["report.md"])


def test_calls_add_up_and_unknown_usage_is_counted_as_unknown() -> None:
    """Null is never taken for zero: it is counted apart."""
    after = state(
        *_dispatched,
        (llm_called(RUN, "a", "1-1"), controls.called()),
        (llm_called(RUN, "a", "1-2"), controls.called(input_tokens=None)),
        (llm_called(RUN, "a", "1-3"), controls.called(input_tokens=1, output_tokens=2)),
    )
    assert (after.tokens.input, after.tokens.output, after.tokens.unknown_calls) == (31, 26, 1)


def test_a_skip_that_was_said_while_the_step_ran_counts_when_the_attempt_is_lost() -> None:
    """One executor skips what another, which has read less, has dispatched just before. The attempt may yet succeed."""
    running = STATES["a runs"]
    begun_ns = running.steps["a"].dispatched_ns

    def after(run: Run, event: str, at_ns: int) -> Run:
        subject, body = EVENTS[event]
        return evolve(run, read(subject, 100, at_ns, controls.encode(body)))

    told = after(running, "skip a", begun_ns + 1)
    assert told.steps["a"].status == "running"
    assert after(told, "skip a", begun_ns + 2) is told
    assert after(told, "complete a.1", begun_ns + 2).steps["a"].status == "succeeded"
    lost = after(told, "fail a.1", begun_ns + 2)
    state = lost.steps["a"]
    assert (state.status, state.message, state.ended_ns) == ("skipped", controls.skipped().reason, lost.at_ns)
    assert lost.plan is not None and lost.tally == counted(lost.plan, lost.steps)


def test_the_end_is_what_run_completed_says_and_open_steps_are_skipped() -> None:
    run = STATES["failed"]
    assert run.status == "failed" and run.status in RUN_ENDS
    assert {name: step.status for name, step in run.steps.items()} == {"a": "skipped", "b": "skipped"}


def late(state_name: str, event: str) -> Run:
    """The run after the event, said when the questions of this file have expired."""
    subject, body = EVENTS[event]
    message = read(subject, 100, parse_ns(FAR["expires_at"]), controls.encode(body))
    return evolve(STATES[state_name], message)


@pytest.mark.parametrize("event", ["grant b", "refuse b"])
def test_an_answer_after_the_expiry_counts_as_nothing(event: str) -> None:
    assert late("b asked", event) is STATES["b asked"]


@pytest.mark.parametrize("event", ["expire b", "timer of b's approval"])
def test_a_question_that_nobody_answered_ends_the_run(event: str) -> None:
    after = late("b asked", event)
    assert after.approvals["b"].status == "expired"
    assert after.stop is not None and after.stop.status == "rejected"


@pytest.mark.parametrize("body", [ACK, controls.asked(RUN, GATE, **{**FAR, "expires_at": "2099-01-01T00:00:00Z"})])
def test_a_strangers_question_does_not_outlast_the_timer_of_ours(body: Any) -> None:
    """The executor's timer was laid down for the time at which its own question would have expired."""
    year_ns = 31_536_000 * NS_PER_S
    run = state((plan_created(RUN), GATED), (approval_requested(RUN, GATE), body))
    assert run.approvals[GATE].expires_ns == run.planned_ns + year_ns < run.at_ns + year_ns
    done = [
        *_approved,
        (run_started(RUN), controls.started()),
        (step_dispatched(RUN, "a", 1, "noop"), controls.dispatched()),
    ]
    ended = [*done, (step_completed(RUN, "a", 1), controls.completed())]
    ready = state(*ended, (approval_requested(RUN, "b"), body))
    assert ready.approvals["b"].expires_ns == ready.steps["a"].ended_ns + year_ns
    early = state(*done, (approval_requested(RUN, "b"), body))  # nobody has laid a timer for it yet
    assert early.approvals["b"].expires_ns == early.at_ns + year_ns


@pytest.mark.parametrize("due_later", ["deadline", "step.a.1"])
def test_a_timer_counts_only_when_its_time_has_come(due_later: str) -> None:
    """Anybody who may publish to TIMERS could else end every run: the stamp of the message is what cannot be forged."""
    run = STATES["a runs"]
    early = read(timer_fired(RUN, due_later), 100, run.at_ns + 1, controls.encode(controls.fired()))
    assert evolve(run, early) is run

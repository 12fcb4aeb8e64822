"""What the executor does itself: decisions, waits, notices, approvals; and how a run is undone, cancelled, resumed."""

from typing import Any

from services.executor.decide import REASON_CHARS_MAX, decide
from services.executor.performing import Fact
from shared.events import OUTPUTS_BYTES_MAX
from shared.plan import GATE, Reused
from shared.subjects import (
    TIMER_AT,
    approval_granted,
    approval_rejected,
    plan_created,
    run_cancel_requested,
    run_started,
    step_completed,
    step_failed,
    timer_fired,
)
from tests import controls
from tests.controls import Stream


class Played:
    """A run whose executor says all that follows, and whose workers answer when they are told to."""

    def __init__(self, *steps: Any, directive: dict[str, Any] | None = None, **changes: Any) -> None:
        self.stream = Stream()
        self.plan = controls.plan(*steps, directive=controls.directive(**(directive or {})), **changes)
        self.run = self.stream.planned(self.plan)
        self.timers: list[str] = []
        self.decide()
        if not self.plan.is_gated:
            self.start()

    def start(self) -> None:
        self.stream.put(run_started(self.run), controls.started())
        self.decide()

    def decide(self) -> None:
        """Say what follows until nothing new does."""
        while True:
            new = [fact for fact in self.facts() if fact[0] not in {*self.stream.subjects, *self.timers}]
            for subject, body in new:
                if subject.startswith(TIMER_AT):
                    self.timers.append(subject)
                else:
                    self.stream.say(subject, body)
            if not new:
                return

    def facts(self) -> list[Fact]:
        return decide(self.state)

    def put(self, subject: str, body: Any) -> None:
        self.stream.put(subject, body)
        self.decide()

    def done(self, step: str, attempt: int = 1, **outputs: Any) -> None:
        self.put(step_completed(self.run, step, attempt), controls.completed(outputs=outputs, artifacts=[]))

    def lost(self, step: str) -> None:
        self.put(step_failed(self.run, step, 1), controls.failed(retryable=False, error="broken", message="no disk"))

    def fire(self, what: str) -> None:
        self.put(timer_fired(self.run, what), controls.fired())

    @property
    def state(self) -> Any:
        return self.stream.fold(self.run)

    @property
    def steps(self) -> dict[str, str]:
        return {name: state.status for name, state in self.state.steps.items()}


def step(name: str, **changes: Any) -> Any:
    return controls.step(name, **changes)


# -- decisions and conditions --------------------------------------------------------------------------------


def deciding(condition: str = "steps.a.outputs.n > 2", when: str = "decisions.b") -> Played:
    decision = step("b", kind="decision", inputs={"condition": condition}, needs=["a"])
    return Played(step("a"), decision, step("c", needs=["b"], when=when), step("d", needs=["c"]), params={"most": 2})


def test_a_step_whose_condition_holds_runs() -> None:
    run = deciding()
    run.done("a", n=3)
    assert run.state.steps["b"].outputs == {"result": True}
    assert run.steps == {"a": "succeeded", "b": "succeeded", "c": "running", "d": "pending"}


def test_a_step_whose_condition_does_not_hold_is_skipped_and_says_why() -> None:
    run = deciding()
    run.done("a", n=2)
    assert run.steps == {"a": "succeeded", "b": "succeeded", "c": "skipped", "d": "skipped"}
    assert run.state.steps["c"].message == "decisions.b is false"
    assert run.state.steps["d"].message == "it needs c, which was skipped"
    assert (run.state.status, run.state.reason) == ("succeeded", "2 of 4 steps succeeded, 2 skipped")


def test_a_condition_may_ask_for_the_parameters() -> None:
    run = deciding("steps.a.outputs.n > params.most", when="decisions.b && params.most == 2")
    run.done("a", n=3)
    assert run.steps["c"] == "running"


def test_a_decision_that_cannot_be_made_fails_its_step() -> None:
    run = deciding()
    run.done("a", found="nothing")
    assert (run.steps["b"], run.state.steps["b"].error) == ("failed", "condition_error")
    assert run.state.status == "failed"


def test_a_decision_that_is_larger_than_outputs_may_be_fails_its_step() -> None:
    """It would be said to later steps, and to a server that takes no message of such a size."""
    run = deciding("steps.a.outputs.text + steps.a.outputs.text")
    run.done("a", text="x" * (OUTPUTS_BYTES_MAX // 2))
    assert (run.steps["b"], run.state.steps["b"].error) == ("failed", "condition_error")
    assert f"at most {OUTPUTS_BYTES_MAX}" in run.state.steps["b"].message


def test_why_a_step_is_skipped_is_told_in_so_many_words() -> None:
    run = deciding(when="steps.a.outputs.text")
    run.done("a", n=3, text="x" * 60_000)
    assert run.steps["c"] == "skipped" and len(run.state.steps["c"].message) == REASON_CHARS_MAX


def test_a_condition_that_cannot_be_asked_ends_the_run_as_failed() -> None:
    """Skipping the step in silence would be an answer that nobody has given."""
    run = deciding(when="steps.a.outputs.missing > 1")
    run.done("a", n=3)
    assert (run.steps["c"], run.state.status) == ("skipped", "failed")
    assert "step c: its condition" in run.state.reason


# -- waits and notices ---------------------------------------------------------------------------------------


def test_a_wait_is_over_when_its_timer_fires() -> None:
    run = Played(step("a", kind="wait", inputs={"seconds": 5}), step("b", needs=["a"]))
    assert run.timers == [f"timer.at.{run.run}.wait.a.1"]
    assert run.steps == {"a": "running", "b": "pending"}
    run.fire("wait.a.1")
    assert run.state.steps["a"].outputs == {"waited_s": 5.0}
    assert run.steps["b"] == "running"


def test_a_wait_until_a_time_that_has_passed_is_over_at_once() -> None:
    run = Played(step("a", kind="wait", inputs={"until": "2020-01-01T00:00:00Z"}))
    run.fire("wait.a.1")
    assert run.state.steps["a"].outputs == {"waited_s": 0.0}


def test_a_notice_is_an_event_with_its_message_filled_in() -> None:
    notice = step(
        "b", kind="notify", inputs={"message": "n is ${steps.a.outputs.n}, x is ${steps.a.outputs.x}"}, needs=["a"]
    )
    run = Played(step("a"), notice, directive={"channels": ["ops"]})
    run.done("a", n=3)
    assert run.state.steps["b"].outputs == {
        "message": "n is 3, x is (unknown)",
        "severity": "info",
        "channels": ["ops"],
    }
    assert run.state.status == "succeeded"


# -- approvals -----------------------------------------------------------------------------------------------


def granted(run: Played, step: str, who: str = "ann") -> None:
    body = controls.granted(run.run, step, plan_hash=run.plan.plan_hash)
    run.put(approval_granted(run.run, step, who), body)


def test_a_run_waits_for_its_approval_and_nothing_of_it_starts() -> None:
    run = Played(step("a"), directive={"approval_required": True})
    assert run.state.status == "awaiting_approval"
    assert run.timers == [f"timer.at.{run.run}.approval.{GATE}"]
    granted(run, GATE)
    assert run.state.status == "pending"
    run.start()
    assert run.steps == {"a": "running"}


def test_a_step_waits_for_its_approval_while_others_run() -> None:
    run = Played(step("a", approval=True), step("b"))
    assert run.steps == {"a": "awaiting_approval", "b": "running"}
    granted(run, "a")
    assert run.steps == {"a": "running", "b": "running"}


def test_an_approval_may_be_a_step_of_its_own() -> None:
    run = Played(step("a", kind="approval", inputs={"message": "restart web?"}), step("b", needs=["a"]))
    assert run.steps == {"a": "awaiting_approval", "b": "pending"}
    granted(run, "a")
    assert run.state.steps["a"].outputs["approved_by"] == ["ann"]
    assert run.steps["b"] == "running"


def test_a_no_ends_the_run_as_rejected_with_its_reason() -> None:
    run = Played(step("a", approval=True), step("b"))
    run.put(
        approval_rejected(run.run, "a", "bob"),
        controls.refused(run.run, "a", plan_hash=run.plan.plan_hash, reason="not tonight"),
    )
    assert run.steps == {"a": "skipped", "b": "running"}  # b was told to end
    run.put(f"step.cancelled.{run.run}.b.1", controls.cancelled())
    assert (run.state.status, run.state.reason) == ("rejected", "step a was rejected by bob: not tonight")


def test_a_question_that_nobody_answers_expires_and_ends_the_run() -> None:
    run = Played(step("a", approval=True))
    run.fire("approval.a")
    assert (run.state.status, run.state.reason) == ("rejected", "step a was not approved in time")
    assert f"approval.expired.{run.run}.a" in run.stream.subjects


# -- rollback ------------------------------------------------------------------------------------------------


def undoing(**last: Any) -> Played:
    return Played(
        step("a", compensation="undo-a"),
        step("b", needs=["a"], compensation="undo-b"),
        step("c", needs=["b"], on_failure="rollback", max_attempts=1, **last),
        step("undo-a"),
        step("undo-b"),
    )


def test_what_was_done_is_undone_newest_first() -> None:
    run = undoing()
    run.done("a")
    run.done("b")
    run.lost("c")
    assert (run.steps["undo-b"], run.steps["undo-a"]) == ("running", "pending")
    run.done("undo-b")
    assert run.steps["undo-a"] == "running"
    run.done("undo-a")
    assert run.state.status == "rolled_back"
    assert run.state.reason == "step c failed: broken: no disk; rolled back by undo-a, undo-b"


def test_what_was_not_done_is_not_undone() -> None:
    run = Played(
        step("a", compensation="undo-a", on_failure="rollback", max_attempts=1),
        step("b", needs=["a"], compensation="undo-b"),
        step("undo-a"),
        step("undo-b"),
    )
    run.lost("a")
    assert run.steps == {"a": "failed", "b": "skipped", "undo-a": "running", "undo-b": "skipped"}


def test_where_nothing_failed_nothing_is_undone() -> None:
    run = undoing()
    for name in "abc":
        run.done(name)
    assert run.steps == {"a": "succeeded", "b": "succeeded", "c": "succeeded", "undo-a": "skipped", "undo-b": "skipped"}
    assert run.state.status == "succeeded"


def test_a_rollback_that_fails_is_a_failure() -> None:
    run = undoing()
    run.done("a")
    run.done("b")
    run.lost("c")
    run.lost("undo-b")
    run.done("undo-a")
    assert run.state.status == "failed"
    assert run.state.reason.endswith("the rollback failed, too: undo-b")


# -- cancel and resume ---------------------------------------------------------------------------------------


def test_a_cancelled_run_tells_what_runs_and_ends_when_it_has_ended() -> None:
    run = Played(step("a"), step("b", needs=["a"]))
    run.put(run_cancel_requested(run.run, "ann"), controls.cancel_requested())
    assert f"step.cancel_requested.{run.run}.a.1" in run.stream.subjects
    assert run.state.status == "running"
    run.put(f"step.cancelled.{run.run}.a.1", controls.cancelled())
    assert run.steps == {"a": "cancelled", "b": "skipped"}
    assert (run.state.status, run.state.reason) == ("cancelled", "cancelled by ann: wrong host")


def test_a_worker_that_does_not_answer_is_overtaken() -> None:
    run = Played(step("a"))
    run.put(run_cancel_requested(run.run), controls.cancel_requested())
    assert run.timers == [f"timer.at.{run.run}.cancel.a.1"]
    run.fire("cancel.a.1")
    assert (run.steps, run.state.status) == ({"a": "cancelled"}, "cancelled")


def test_a_result_that_comes_first_stands() -> None:
    """Cancel against complete: the order of the stream says who was first."""
    run = Played(step("a"))
    run.put(run_cancel_requested(run.run), controls.cancel_requested())
    run.done("a")
    assert (run.steps, run.state.status) == ({"a": "succeeded"}, "cancelled")


def test_a_waiting_run_is_cancelled_at_once() -> None:
    run = Played(step("a"), directive={"approval_required": True})
    run.put(run_cancel_requested(run.run), controls.cancel_requested())
    assert (run.state.status, run.steps) == ("cancelled", {"a": "skipped"})


def test_a_run_that_is_cancelled_before_it_is_planned_waits_for_the_planners_word() -> None:
    """Else the planner's own end could stand behind the executor's, and a goal would have two."""
    stream = Stream()
    run = stream.goal()
    stream.put(run_cancel_requested(run), controls.cancel_requested())
    assert decide(stream.fold(run)) == []
    stream.put(plan_created(run), controls.plan())
    [(_, end)] = decide(stream.fold(run))
    assert (end.status, end.steps) == ("cancelled", {"a": "skipped"})


def test_a_wait_step_is_cancelled_at_once() -> None:
    run = Played(step("a", kind="wait", inputs={"seconds": 500}))
    run.put(run_cancel_requested(run.run), controls.cancel_requested())
    assert (run.state.status, run.steps) == ("cancelled", {"a": "cancelled"})


def test_what_is_reused_is_not_run_again() -> None:
    left = Reused(outputs={"n": 5}, artifacts=[], host="tower")
    run = Played(step("a"), step("b", needs=["a"]), reused={"a": left}, retry_of=1)
    assert run.steps == {"a": "succeeded", "b": "running"}
    assert (run.state.steps["a"].outputs, run.state.steps["a"].reused_from) == ({"n": 5}, 1)


def test_a_step_for_a_host_is_dispatched_to_it() -> None:
    run = Played(step("a", host="tower"))
    assert f"step.dispatched.{run.run}.a.1.noop.tower" in run.stream.subjects
    assert run.steps == {"a": "running"}

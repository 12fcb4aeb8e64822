"""What follows: `decide(run)` is pure and says which facts a run's state calls for. No clock, no chance, no I/O.

It may be asked again and again: it names facts by their subjects, and whoever says them says each once. Two executors
that both decide therefore do no harm; the create-only stream keeps the first.
"""

from typing import Any

from shared.clock import NS_PER_S, rfc3339
from shared.events import RunCompleted, StepDispatched, StepSkipped
from shared.plan import Step
from shared.run import Run, StepState
from shared.status import STEP_ENDS, RunStatus, StepStatus
from shared.subjects import run_completed, step_dispatched, step_skipped

Fact = tuple[str, Any]  # subject and body

# After these the state of a running run can call for something new.
CONSEQUENTIAL = frozenset(
    ("run.started", "step.dispatched", "step.completed", "step.failed", "step.skipped", "timer.fired")
)


def decide(run: Run) -> list[Fact]:
    """The facts that this run calls for, in the order in which they are to be said."""
    if run.broken and not run.ended:
        return [_end(run, "failed", run.broken, dict.fromkeys(run.steps, "skipped"))]
    if run.status != "running" or run.plan is None:
        return []
    if all(state.status in STEP_ENDS for state in run.steps.values()):
        # Only what the stream holds counts: a step that is still to be skipped may have been dispatched meanwhile.
        return [_finish(run)]
    stopped = _why_stopped(run)
    facts: list[Fact] = []
    for step in run.plan.steps:
        state = run.steps[step.id]
        if state.status != "pending":
            continue
        if why := stopped or _why_skipped(run, step):
            facts.append((step_skipped(run.id, step.id), StepSkipped(reason=why)))
        elif all(run.steps[need].status in ("succeeded", "failed") for need in step.needs):
            facts.append(_dispatch(run, step, state))
    return facts


def _why_stopped(run: Run) -> str:
    """Why no further step may start; "" while steps may."""
    if run.timed_out:
        return "the run's time budget is over"
    assert run.plan is not None
    for step in run.plan.steps:
        if run.steps[step.id].status == "failed" and step.on_failure == "stop":
            return f"step {step.id} failed"
    return ""


def _why_skipped(run: Run, step: Step) -> str:
    """A step that needs a skipped one cannot run. (A failed need that was let pass counts as done.)"""
    for need in step.needs:
        if run.steps[need].status == "skipped":
            return f"it needs {need}, which was skipped"
    return ""


def _dispatch(run: Run, step: Step, state: StepState) -> Fact:
    assert run.plan is not None
    body = StepDispatched(
        inputs=step.inputs,
        deadline=rfc3339(run.deadline_ns),
        timeout_s=step.timeout_s,
        token_grant=token_grant(run, step),
        plan_hash=run.plan.plan_hash,
        goal=run.plan.goal,
    )
    return step_dispatched(run.id, step.id, state.attempt + 1, step.task), body


def token_grant(run: Run, step: Step) -> int:
    """What is left of the token budget, shared among the steps that may still want some.

    What running steps hold is reserved; what was charged is gone, known or not.
    """
    assert run.plan is not None
    if not step.uses_tokens:
        return 0
    states = run.steps.values()
    reserved = sum(max(0, state.grant - state.spent) for state in states if state.status == "running")
    left = run.plan.budgets.token_budget - run.charged - reserved
    sharers = sum(1 for other in run.plan.steps if other.uses_tokens and run.steps[other.id].status == "pending")
    return max(0, left // max(1, sharers))


def _finish(run: Run) -> Fact:
    statuses: dict[str, StepStatus] = {name: state.status for name, state in run.steps.items()}
    failed = [name for name, status in statuses.items() if status == "failed"]
    done = sum(status == "succeeded" for status in statuses.values())
    if run.timed_out:
        assert run.plan is not None
        return _end(run, "timed_out", f"the time budget of {run.plan.budgets.time_budget_s} s is over", statuses)
    if failed:
        first = run.steps[failed[0]]
        what = f"{first.error}: {first.message}" if first.message else first.error
        more = f" (and {len(failed) - 1} more)" if len(failed) > 1 else ""
        return _end(run, "failed", f"step {failed[0]} failed: {what}{more}", statuses)
    return _end(run, "succeeded", f"{done} of {len(statuses)} steps succeeded", statuses)


def _end(run: Run, status: RunStatus, reason: str, statuses: dict[str, StepStatus]) -> Fact:
    began_ns = run.started_ns or run.submitted_ns
    body = RunCompleted(
        status=status,
        reason=reason,
        steps=statuses,
        tokens=run.tokens,
        duration_s=round((run.at_ns - began_ns) / NS_PER_S, 6),
    )
    return run_completed(run.id), body

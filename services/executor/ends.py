"""How a run ends: its one status, the reason for a person, and what was used of the budget that ended it."""

from services.executor.performing import Fact
from shared.clock import NS_PER_S
from shared.events import RunCompleted
from shared.run_state import Run
from shared.status import STEP_ENDS, RunStatus, StepStatus
from shared.subjects import run_completed

States = dict[str, StepStatus]


def skipped_states(run: Run) -> States:
    """The steps as they stand, what has not ended as skipped."""
    return {name: state.status if state.status in STEP_ENDS else "skipped" for name, state in run.steps.items()}


def end(
    run: Run, status: RunStatus, reason: str, states: States, budget: tuple[str, float, float] | None = None
) -> Fact:
    began_ns = run.started_ns or run.submitted_ns
    name, used, allowed = budget or (None, None, None)
    body = RunCompleted(
        status=status,
        reason=reason,
        steps=states,
        tokens=run.tokens,
        duration_s=round((run.at_ns - began_ns) / NS_PER_S, 6),
        budget=name,
        used=used,
        allowed=allowed,
    )
    return run_completed(run.id), body


def end_stopped(run: Run) -> Fact:
    """The end of a run that was stopped: cancelled, rejected, out of time or of tokens."""
    assert run.stop is not None
    budget = None
    if run.plan is not None and run.stop.status == "timed_out":
        used_s = round((run.at_ns - run.started_ns) / NS_PER_S, 3)
        budget = ("time_s", used_s, float(run.plan.budgets.time_budget_s))
    elif run.plan is not None and run.stop.status == "budget_exhausted":
        used = run.tokens.input + run.tokens.output
        budget = ("tokens", float(used), float(run.plan.budgets.token_budget))
    return end(run, run.stop.status, run.stop.reason, skipped_states(run), budget)


def end_of_all(run: Run) -> Fact:
    """The end of a run whose every step has ended."""
    if run.stop is not None:
        return end_stopped(run)
    states = skipped_states(run)
    assert run.plan is not None
    plan = run.plan
    for state in run.steps.values():
        if state.cause == "steps":
            used = (float(run.steps_used), float(plan.budgets.max_steps))
            return end(run, "budget_exhausted", f"max_steps is over: {state.message}", states, ("steps", *used))
        if state.cause == "tokens":
            tokens = (float(run.charged), float(plan.budgets.token_budget))
            reason = f"the token budget is over: {state.message}"
            return end(run, "budget_exhausted", reason, states, ("tokens", *tokens))
    for name, state in run.steps.items():
        if state.cause == "condition":
            return end(run, "failed", f"step {name}: {state.message}", states)
    failed = [name for name, status in states.items() if status == "failed" and name not in plan.compensations]
    if not failed:
        done = sum(status == "succeeded" for status in states.values())
        skipped = sum(status == "skipped" for status in states.values())
        more = f", {skipped} skipped" if skipped else ""
        return end(run, "succeeded", f"{done} of {len(states)} steps succeeded{more}", states)
    first = run.steps[failed[0]]
    what = f"{first.error}: {first.message}" if first.message else first.error
    more = f" (and {len(failed) - 1} more)" if len(failed) > 1 else ""
    reason = f"step {failed[0]} failed: {what}{more}"
    if any(plan.by_id[name].on_failure == "rollback" for name in failed):
        broken = [name for name in plan.compensations if states[name] == "failed"]
        undone = [name for name in plan.compensations if states[name] == "succeeded"]
        if broken:
            return end(run, "failed", f"{reason}; the rollback failed, too: {', '.join(sorted(broken))}", states)
        if undone:
            return end(run, "rolled_back", f"{reason}; rolled back by {', '.join(sorted(undone))}", states)
    return end(run, "failed", reason, states)

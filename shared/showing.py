"""What is shown of a run beyond its plain fields: the same in the registry's rows, the gateway's views and the CLI.

Pure. The plan says what was asked and of whom, never the question's own message, which anybody may have said.
"""

from typing import Any

import msgspec

from shared.clock import rfc3339_if_any
from shared.events import Tokens
from shared.plan import GATE, Plan
from shared.run import Run, StepState
from shared.run_steps import wait_ends_ns
from shared.status import STEP_ENDS, ApprovalStatus

STEPS_NAMED_MAX = 20


class Asked(msgspec.Struct, frozen=True, kw_only=True):
    """One question and how it stands; `place` is 0 for the whole run's, a step's place in the plan, from 1, otherwise.

    `is_open`: an answer can still count. One that nobody answered before its run ended stays `pending`, and is not.
    """

    run: int
    place: int
    step: str
    what: str
    plan_hash: str
    status: ApprovalStatus
    is_open: bool
    requested_ns: int
    expires_ns: int
    decided_ns: int
    approvers: list[str]
    approvals_needed: int
    approved_by: list[str]
    rejected_by: str | None
    requester: str | None
    reason: str | None

    def told(self) -> dict[str, Any]:
        """For programs, times as RFC 3339 text."""
        fields = msgspec.structs.asdict(self)
        for name in ("requested", "expires", "decided"):
            fields[f"{name}_at"] = rfc3339_if_any(fields.pop(f"{name}_ns"))
        del fields["place"]
        return fields


def asked(run: Run) -> list[Asked]:
    """Every question of the run so far, in the plan's order."""
    if run.plan is None:
        return []
    plan, directive = run.plan, run.plan.directive
    places = {step.id: place for place, step in enumerate(plan.steps, 1)}
    found = [
        Asked(
            run=run.id,
            place=places.get(step, 0),
            step=step,
            what=what_is_asked(plan, step),
            plan_hash=plan.plan_hash,
            status=one.status,
            is_open=one.status == "pending" and not run.ended and run.stop is None,
            requested_ns=one.requested_ns,
            expires_ns=one.expires_ns,
            decided_ns=one.decided_ns,
            approvers=directive.approvers,
            approvals_needed=directive.approvals_needed,
            approved_by=one.approved_by,
            rejected_by=one.rejected_by if one.status == "rejected" else None,
            requester=run.principal or None,
            reason=one.reason or None,
        )
        for step, one in run.approvals.items()
    ]
    return sorted(found, key=lambda one: one.place)


def what_is_asked(plan: Plan, step: str) -> str:
    """What a yes lets happen, for a person."""
    if step == GATE:
        named = ", ".join(f"{one.id} ({one.performs})" for one in plan.steps[:STEPS_NAMED_MAX])
        more = ", …" if len(plan.steps) > STEPS_NAMED_MAX else ""
        steps = "1 step" if len(plan.steps) == 1 else f"{len(plan.steps)} steps"
        return f"run {steps}: {named}{more}"
    planned = plan.by_id[step]
    message = planned.inputs.get("message") if planned.kind == "approval" else None
    where = f" on {planned.host}" if planned.host else ""
    return str(message) if message else f"run step {planned.id} ({planned.performs}){where}"


def tokens_told(tokens: Tokens) -> str:
    """A run's tokens, for a person: a sum of nothing is unknown where a usage was not reported, never 0."""
    read, written = (n or ("unknown" if tokens.unknown_calls else 0) for n in (tokens.input, tokens.output))
    unknown = f", {tokens.unknown_calls} calls of unknown usage" if tokens.unknown_calls else ""
    return f"tokens: {read} in, {written} out{unknown}"


def waits_until_ns(run: Run, step: str, state: StepState) -> int:
    """Until when the step rests, waits, or may be approved; 0 where it waits for no time."""
    if state.status in STEP_ENDS:
        return 0
    if state.status == "awaiting_approval":
        return run.approvals[step].expires_ns
    if state.status == "running":
        return wait_ends_ns(run, step, state) if run.step_plan(step).kind == "wait" else 0
    return state.not_before_ns

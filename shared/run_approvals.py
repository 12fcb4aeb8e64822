"""What answers mean: who may answer what, until when, and how many it takes.

An answer is bound to its question by run, step and plan hash, and counts by its place in the stream: before the expiry,
before the run is stopped, from one who may approve, once. Who that is says the subject's last token, which a server
with accounts vouches for; the payload says nothing of it. Nobody knows who has sent a bare subject: it is one anonymous
voice, which counts where the directive names no approvers, and which may be anybody's, so also that of a requester who
may not approve.
"""

import contextlib

from msgspec.structs import replace

from shared.clock import NS_PER_S, parse_ns
from shared.events import ApprovalGranted, ApprovalRejected, ApprovalRequested, Event, Unreadable
from shared.plan import GATE
from shared.run_state import Approval, Run, Stop, with_step
from shared.subjects import BY_SCHEDULE

ANONYMOUS = "somebody"  # how a reason names who used the bare subject


def is_asked(run: Run, step: str) -> bool:
    """Whether the plan wants an answer for this step, or for the run where `step` is `run`."""
    if run.plan is None:
        return False
    if step == GATE:
        return run.plan.is_gated
    planned = run.plan.by_id.get(step)
    return planned is not None and (planned.approval or planned.kind == "approval")


def requested(run: Run, event: Event) -> Run:
    """The question stands from its message on, whoever has said it: the plan says what it is and how long it stands."""
    if not is_asked(run, event.step) or event.step in run.approvals:
        return run
    assert run.plan is not None
    # Reckoned as the executor does, whose timer may lie there already: one said later must not outlast it.
    since_ns = run.ready_ns(event.step) if _is_ready(run, event.step) else event.at_ns
    expires_ns = since_ns + run.plan.directive.approval_expires_s * NS_PER_S
    if isinstance(event.body, ApprovalRequested):
        with contextlib.suppress(ValueError):  # a stranger's: the plan's own time holds
            expires_ns = min(expires_ns, parse_ns(event.body.expires_at))
    if event.at_ns >= expires_ns:
        # Its timer has fired before: whoever was to say the question was away for so long.
        late = Approval(event.at_ns, expires_ns, status="expired", decided_ns=event.at_ns)
        return _stopped(run, event, late, Stop("rejected", f"{_name(event.step)} was not approved in time"))
    asked = {**run.approvals, event.step: Approval(event.at_ns, expires_ns)}
    run = replace(run, approvals=asked, at_ns=event.at_ns)
    if event.step == GATE:
        return replace(run, status="awaiting_approval") if run.status == "pending" else run
    state = run.steps[event.step]
    if state.status != "pending":
        return run
    return with_step(run, event, event.step, replace(state, status="awaiting_approval"))


def _is_ready(run: Run, step: str) -> bool:
    """Whether only an answer is wanted: of the run, that it is planned; of a step, that its needs are done."""
    return step == GATE or (run.started_ns > 0 and run.needs_are_done(step))


def refusal(run: Run, event: Event) -> str:
    """Why an answer does not count, for a person; "" when it does."""
    body = event.body
    if isinstance(body, Unreadable):
        return body.reason
    assert isinstance(body, ApprovalGranted | ApprovalRejected)
    approval = run.approvals.get(event.step)
    if approval is None or run.plan is None:
        return "nothing was asked here"
    if approval.status != "pending":
        return f"it was {approval.status} before"
    if run.stop is not None:
        return f"the run is ending: {run.stop.reason}"
    if body.run != run.id or body.step != event.step or body.plan_hash != run.plan.plan_hash:
        return "the answer is to another question: its run, step and plan_hash must be those of the request"
    if event.at_ns >= approval.expires_ns:
        return "the answer came after the expiry"
    directive, who = run.plan.directive, event.tail
    if directive.approvers and who not in directive.approvers:
        return f"{who or ANONYMOUS} is not among the approvers ({', '.join(directive.approvers)})"
    if isinstance(body, ApprovalRejected):
        return ""
    named = run.principal and not run.principal.startswith(BY_SCHEDULE)  # a schedule does not approve
    if not directive.requester_may_approve and named and who in ("", run.principal):
        return f"who asked ({run.principal}) may not approve" + ("" if who else ", and a bare subject may be theirs")
    if who in approval.approved_by:
        return f"{who or ANONYMOUS} has approved before"
    return ""


def answered(run: Run, event: Event) -> Run:
    """The run after a yes or a no, or the same object when it does not count."""
    if refusal(run, event):
        return run
    assert run.plan is not None
    approval = run.approvals[event.step]
    if isinstance(event.body, ApprovalRejected):
        who = event.tail or ANONYMOUS
        why = f": {event.body.reason}" if event.body.reason else ""
        no = replace(
            approval, status="rejected", rejected_by=event.tail, reason=event.body.reason, decided_ns=event.at_ns
        )
        return _stopped(run, event, no, Stop("rejected", f"{_name(event.step)} was rejected by {who}{why}"))
    by = [*approval.approved_by, event.tail]
    if len(by) < run.plan.directive.approvals_needed:
        more = replace(approval, approved_by=by, reason=event.body.reason)
        return replace(run, approvals={**run.approvals, event.step: more}, at_ns=event.at_ns)
    yes = replace(approval, status="approved", approved_by=by, reason=event.body.reason, decided_ns=event.at_ns)
    run = replace(run, approvals={**run.approvals, event.step: yes}, at_ns=event.at_ns)
    if event.step == GATE:
        return replace(run, status="pending")
    state = run.steps[event.step]
    if state.status != "awaiting_approval":
        return run
    return with_step(run, event, event.step, replace(state, status="pending"))


def expired(run: Run, event: Event, step: str) -> Run:
    """A timer, or the executor's word, says that the time is over; it counts only when it is."""
    approval = run.approvals.get(step)
    if approval is None or approval.status != "pending" or event.at_ns < approval.expires_ns:
        return run
    over = replace(approval, status="expired", decided_ns=event.at_ns)
    return _stopped(run, event, over, Stop("rejected", f"{_name(step)} was not approved in time"), step)


def _stopped(run: Run, event: Event, approval: Approval, stop: Stop, step: str = "") -> Run:
    approvals = {**run.approvals, step or event.step: approval}
    return replace(run, approvals=approvals, stop=run.stop or stop, at_ns=event.at_ns)


def _name(step: str) -> str:
    return "the run" if step == GATE else f"step {step}"

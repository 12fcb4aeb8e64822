"""Questions and answers by the audit's own rules: what may be asked where, who may answer, and until when."""

from shared.audit.lines import QuestionLine, RunLine
from shared.audit.reading import GATE, NS, WRITTEN_NS, Answer, Question, body_of, is_name, time_ns


def _asks(run: RunLine, step: str) -> bool:
    if step == GATE:
        return run.planned.gated
    planned = run.planned.by_id.get(step)
    return planned is not None and planned.asks


def requested(run: RunLine, tokens: list[str], seq: int, at_ns: int, data: bytes) -> str:
    if run.plan is None and len(tokens) == 4:
        return run.unplanned(seq, f"{tokens[3]} is to be approved")
    if len(tokens) != 4 or not _asks(run, step := tokens[3]):
        run.find("question", [run.plan_seq, seq], "it is asked where the plan asks nothing", tokens[3])
        return "nothing is to be asked here"
    if step in run.asked:
        return "it was asked before"
    directive = run.plan.directive
    early = [] if step == GATE else [need for need in run.planned.by_id[step].needs if not run.has_ended(need)]
    since_ns = at_ns if early else _wanted_since(run, step, at_ns)
    expires_ns = since_ns + directive.approval_expires_s * NS
    body: Question | None = body_of("approval.requested", data)
    if body is None:
        run.find("question", [seq], "the question holds another message", step)
    else:
        said_ns, planned_ns = time_ns(body.expires_at), expires_ns
        expires_ns = expires_ns if said_ns is None else min(expires_ns, said_ns)
        wrong = [
            name
            for name, differs in (
                ("run", body.run != run.id),
                ("step", body.step != step),
                ("approvers", body.approvers != directive.approvers),
                ("approvals_needed", body.approvals_needed != directive.approvals_needed),
                ("requester_may_approve", body.requester_may_approve != directive.requester_may_approve),
                ("expires_at", said_ns is None or (not early and abs(said_ns - planned_ns) > WRITTEN_NS)),
            )
            if differs
        ]
        if wrong:
            run.find(
                "question", [run.plan_seq, seq], f"the question says another {', '.join(wrong)} than the plan", step
            )
        if body.plan_hash != run.plan.plan_hash:
            run.find("plan_hash", [run.plan_seq, seq], "the question names the hash of another plan", step)
    if early:
        run.find("question", [seq], f"it is asked before {', '.join(early)} has ended", step)
    asked = run.asked[step] = QuestionLine(seq, expires_ns)
    if at_ns >= expires_ns:
        asked.status = "expired"
        run.halt("rejected", seq)
    return ""


def _wanted_since(run: RunLine, step: str, at_ns: int) -> int:
    """Since when only an answer is wanted of a step whose needs are over; before the run starts, since it is asked."""
    if step == GATE:
        return run.planned_ns
    needs = run.planned.by_id[step].needs
    return max(run.started_ns, *(run.lines[need].ended_ns for need in needs), 0) if run.started else at_ns


def granted(run: RunLine, tokens: list[str], seq: int, at_ns: int, data: bytes) -> str:
    return _answered(run, tokens, seq, at_ns, data, yes=True)


def refused(run: RunLine, tokens: list[str], seq: int, at_ns: int, data: bytes) -> str:
    return _answered(run, tokens, seq, at_ns, data, yes=False)


def _answered(run: RunLine, tokens: list[str], seq: int, at_ns: int, data: bytes, *, yes: bool) -> str:
    if not 4 <= len(tokens) <= 5:
        return "the subject has the wrong tokens for its kind"
    step, who = tokens[3], tokens[4] if len(tokens) == 5 else ""
    asked = run.asked.get(step)
    if asked is None:
        return "nothing was asked here"
    rule, why = _unanswered(run, asked, step, who, at_ns, data, yes=yes)
    if rule:
        if rule != "late":
            asked.voids.append((rule, seq, why))
        return why
    if not yes:
        asked.status = "rejected"
        run.halt("rejected", seq)
        return ""
    asked.by.append(who)
    if len(asked.by) >= run.plan.directive.approvals_needed:
        asked.status = "approved"
    return ""


def _unanswered(
    run: RunLine, asked: QuestionLine, step: str, who: str, at_ns: int, data: bytes, *, yes: bool
) -> tuple[str, str]:
    """The rule for which an answer does not count, and why; ("", "") when it counts."""
    name = who or "somebody on the bare subject"
    if who and not is_name(who):
        return "approver", "no principal can be read from the subject"
    body: Answer | None = body_of("approval.granted", data)
    if body is None or body.what is not None or body.expires_at is not None:
        return "answer", "it cannot be read as an answer"
    if body.answer not in (None, "granted" if yes else "rejected"):
        return "answer", "it is an answer of the other kind"
    if asked.status in ("approved", "rejected"):
        return "late", f"the question was {asked.status} before"
    if body.run != run.id or body.step != step or body.plan_hash != run.plan.plan_hash:
        return "answer", f"the answer of {name} is to another question"
    if asked.status == "expired" or at_ns >= asked.expires_ns:
        return "expiry", f"the answer of {name} came after the expiry"
    if run.stop:
        return "late", "the run is ending"
    directive = run.plan.directive
    if directive.approvers and who not in directive.approvers:
        return "approver", f"{name} is not among the approvers"
    if not yes:
        return "", ""
    asker = "" if run.requester.startswith("schedule_") else run.requester
    if asker and not directive.requester_may_approve and who in ("", asker):
        return "requester", f"{asker} asked for the run and may not approve it"
    if who in asked.by:
        return "quorum", f"{name} had said yes before"
    return "", ""


def expired(run: RunLine, tokens: list[str], seq: int, at_ns: int, _data: bytes) -> str:
    step = tokens[3] if len(tokens) == 4 else ""
    asked = run.asked.get(step)
    if asked is None:
        return "nothing was asked here"
    if at_ns < asked.expires_ns:
        run.find("expiry", [asked.seq, seq], "the question is said to have expired before its time", step)
        return "its time had not come"
    if asked.status != "pending":
        return "" if asked.status == "expired" else f"the question was {asked.status} before"
    asked.status = "expired"
    run.halt("rejected", seq)
    return ""

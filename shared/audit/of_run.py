"""One run by the audit's own rules, message by message: what counts, what does not, and what no rule lets stand.

Theory of operation. Each message is judged where it stands. What counts for nothing by the rules (a worker's late word,
the second of two executors, an answer of somebody who may not) is a note, as long as nothing rests on it. It becomes a
finding when something does: a start without the yes, an end that gives a step a state that the record does not. The
finding then bears the name of the rule for which the message did not count. What executors say is held to more: they
decide from the stream alone, so a word of theirs that no moment of the stream calls for is a finding even where it
counts for nothing. Races between executors are no findings: each may have read less than is written here.
"""

from shared.audit import of_questions, of_steps
from shared.audit.lines import Hear, RunLine, StepLine
from shared.audit.reading import GATE, NS, Over, Started, body_of, cancel_of, is_name, read_plan


def _plan_created(run: RunLine, _tokens: list[str], seq: int, at_ns: int, data: bytes) -> str:
    if run.plan is not None:
        return "the run has a plan"
    if run.started:
        return "the run was started without it"
    if run.broken:
        return "the run is broken"
    planned = read_plan(data)
    if planned.unreadable:
        rule, text = planned.unreadable
        run.find(rule, [seq], text)
        run.broken = ("its plan is none", seq)
        return ""
    run.planned, run.plan, run.plan_seq, run.planned_ns = planned, planned.plan, seq, at_ns
    for rule, text in planned.problems:
        run.find(rule, [seq], text)
    lines = run.lines
    for step in planned.by_id:
        lines[step] = StepLine()
    run.unended = len(lines)
    for step, left in run.plan.reused.items():
        run.end_step(lines[step], "succeeded", seq, at_ns)
        for kept in left.artifacts:
            run.says.keep(run.id, step, seq, kept)
    return ""


def _goal_rejected(run: RunLine, _tokens: list[str], seq: int, _at_ns: int, data: bytes) -> str:
    if run.plan is not None:
        return "the run has a plan"
    if body_of("goal.rejected", data) is None:
        run.find("end", [seq], "goal.rejected holds another message, which ends the run")
    run.over = seq
    return ""


def _run_queued(run: RunLine, _tokens: list[str], seq: int, _at_ns: int, data: bytes) -> str:
    if run.started:
        return "the run was started before"
    if run.plan is None:
        run.find("transition", [seq], "the run is queued before it has a plan")
        return "the run has no plan"
    if run.planned.gated and not run.approved(GATE):
        rule, seqs, why = run.unapproved(GATE)
        run.find(rule, [*seqs, seq], f"the run is queued without its approval: {why}")
        return "the run is not approved"
    if body_of("run.queued", data) is None:
        return "it cannot be read as what its subject says"
    return ""


def _run_started(run: RunLine, _tokens: list[str], seq: int, at_ns: int, data: bytes) -> str:
    if run.started:
        return "the run was started before"
    if run.broken:
        return "the run is broken"
    if run.stop:
        return "the run is ending already"
    if run.plan is None:
        return run.unplanned(seq, "the run is started")
    body: Started | None = body_of("run.started", data)
    if body is None:
        run.find("transition", [seq], "run.started holds another message, which ends the run")
        run.broken = ("run.started holds another message", seq)
        return ""
    if run.planned.gated and not run.approved(GATE):
        rule, seqs, why = run.unapproved(GATE)
        run.find(rule, [*seqs, seq], f"the run is started without its approval: {why}")
        run.broken = ("it was started without its approval", seq)
        return ""
    if body.plan_hash != run.plan.plan_hash:
        run.find("plan_hash", [run.plan_seq, seq], "the run is started under the hash of another plan")
    run.started, run.started_ns = seq, at_ns
    run.deadline_ns = at_ns + run.plan.budgets.time_budget_s * NS
    return ""


def _cancel_requested(run: RunLine, tokens: list[str], seq: int, _at_ns: int, data: bytes) -> str:
    if len(tokens) > 4 or (len(tokens) == 4 and not is_name(tokens[3])):
        return "no principal can be read from the subject"
    if run.stop:
        return "the run is ending already"
    if cancel_of(data) is None:
        return "it cannot be read as what its subject says"
    run.halt("cancelled", seq)
    return ""


# -- the end -----------------------------------------------------------------------------------------------


def _run_completed(run: RunLine, _tokens: list[str], seq: int, _at_ns: int, data: bytes) -> str:
    body: Over | None = body_of("run.completed", data)
    run.over = seq
    if body is None:
        run.find("end", [seq], "run.completed holds another message, which ends the run")
        return ""
    if run.broken:
        if body.status not in ("failed", run.stop):
            run.find("end", [run.broken[1], seq], f"it ends as {body.status}, and {run.broken[0]}")
        return ""
    if run.stop and not run.started:
        if body.status != run.stop:
            run.find("end", [run.stop_seq, seq], f"it ends as {body.status}, and was to end as {run.stop}")
        return ""
    if not run.started:
        seqs: list[int] = []
        rule, why = "end", "nothing had stopped it"
        if any(asked.voids for asked in run.asked.values()):
            rule, seqs, why = run.unapproved(next(step for step, asked in run.asked.items() if asked.voids))
        run.find(rule, [*seqs, seq], f"it ends as {body.status} before it was started: {why}")
        return ""
    if not _check_states(run, body, seq):
        _check_status(run, body, seq)
    tokens = body.tokens
    if [tokens.input, tokens.output, tokens.unknown_calls] != run.tokens:
        counted = f"{run.tokens[0]} in, {run.tokens[1]} out, {run.tokens[2]} unknown"
        said = f"{tokens.input} in, {tokens.output} out, {tokens.unknown_calls} unknown"
        run.find("tokens", [seq], f"the end says {said}; the calls are {counted}")
    return ""


def _check_states(run: RunLine, body: Over, seq: int) -> bool:
    """Whether the end gives a step another state than the record."""
    wrong = False
    for name, line in run.lines.items():
        said = body.steps.get(name)
        if said == line.status:
            continue
        wrong = True
        known = "waiting" if line.status == "waiting" else line.status
        rule, seqs, why = "end_steps", [line.seq, seq], f"the end says {name} is {said or 'unknown'}; it is {known}"
        if line.void and line.status == "waiting":
            rule, seqs, why = line.void[0], [line.void[1], seq], f"{why}: {line.void[2]}"
        run.find(rule, seqs, why, name)
    for name in body.steps:
        if name not in run.lines:
            wrong = True
            run.find("end_steps", [run.plan_seq, seq], f"the end names {name}, which the plan does not have", name)
    return wrong


def _check_status(run: RunLine, body: Over, seq: int) -> None:
    if run.stop and body.status == run.stop:
        return
    status = _status_of_steps(run)
    # Whoever said the end may not have read a stop that came behind the last step's end.
    if body.status == status and (not run.stop or run.stop_seq > run.settled):
        return
    meant = run.stop or status
    events = [run.stop_seq if run.stop else run.settled, seq]
    rule, why = "end", f"it ends as {body.status}, and what happened ends as {meant}"
    if (voids := run.voids) and body.status == "rejected":
        rule, events, why = voids[-1][0], [voids[-1][1], seq], f"{why}: {voids[-1][2]}"
    run.find(rule, events, why)


def _status_of_steps(run: RunLine) -> str:
    """How a run ends whose every step has ended, when nobody has stopped it."""
    planned = run.planned
    if all(line.status == "succeeded" for line in run.lines.values()):
        return "succeeded"
    causes = {line.cause for line in run.lines.values()}
    if causes & {"steps", "tokens"}:
        return "budget_exhausted"
    if "condition" in causes:
        return "failed"
    failed = [one for name, one in planned.by_id.items() if run.lines[name].status == "failed"]
    normal = [one for one in failed if one.id not in planned.undoing]
    if not normal:
        return "succeeded"
    if any(one.on_failure == "rollback" for one in normal):
        undone = any(run.lines[name].status == "succeeded" for name in planned.undoing)
        if undone and len(failed) == len(normal):
            return "rolled_back"
    return "failed"


# kind -> (what hears it, whether its subject may hold several messages)
HEARD: dict[str, tuple[Hear, bool]] = {
    "plan.created": (_plan_created, False),
    "goal.rejected": (_goal_rejected, False),
    "run.queued": (_run_queued, False),
    "run.started": (_run_started, False),
    "run.cancel_requested": (_cancel_requested, True),
    "run.completed": (_run_completed, False),
    "approval.requested": (of_questions.requested, False),
    "approval.granted": (of_questions.granted, True),
    "approval.rejected": (of_questions.refused, True),
    "approval.expired": (of_questions.expired, False),
    "step.dispatched": (of_steps.dispatched, False),
    "step.completed": (of_steps.completed, False),
    "step.failed": (of_steps.failed, False),
    "step.cancel_requested": (of_steps.told_to_end, False),
    "step.cancelled": (of_steps.cancelled, False),
    "step.skipped": (of_steps.skipped, False),
    "llm.called": (of_steps.called, False),
    "timer.fired": (of_steps.fired, True),
}

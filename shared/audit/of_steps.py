"""Steps by the audit's own rules: dispatches, ends, model calls, and the timers that end what nobody ends."""

from shared.audit.lines import ENDED, RunLine, StepLine
from shared.audit.reading import (
    NS,
    WRITTEN_NS,
    Call,
    Completed,
    Dispatched,
    Failed,
    Skipped,
    Step,
    attempt_of,
    body_of,
    time_ns,
)

SLACK_NS = 60 * NS  # a deadline's timer may be late by that much: a server that was away
PATIENCE_NS = 30 * NS  # how long a worker that was told to end its step may be silent


def dispatched(run: RunLine, tokens: list[str], seq: int, at_ns: int, data: bytes) -> str:
    if not 6 <= len(tokens) <= 7:
        return "the subject has the wrong tokens for its kind"
    name, attempt = tokens[3], attempt_of(tokens[4])
    if run.plan is None:
        return run.unplanned(seq, f"step {name} is dispatched")
    line = run.lines.get(name)
    if line is None:
        run.find("transition", [run.plan_seq, seq], f"step {name} is dispatched, and no plan has it", name)
        return "the plan has no such step"
    step = run.planned.by_id[name]
    aim = tokens[5] if len(tokens) == 6 else f"{tokens[5]}.{tokens[6]}"
    if aim != step.aim:
        run.find("dispatch", [run.plan_seq, seq], f"it is dispatched to {aim}; the plan says {step.aim}", name)
        return "it is for another task or host than the plan's"
    due = max(line.attempt, line.taken) + 1
    if attempt != due:
        run.find("attempts", [line.seq, seq], f"attempt {attempt} is dispatched, and {due} comes next", name)
        return f"attempt {due} comes next"
    if run.stop == "timed_out":
        line.void = ("time_budget", seq, "the run's time is over")  # whoever said it counts it as used
        return line.void[2]
    if not run.started and (run.stop or run.broken):
        run.find("transition", [seq], "it is dispatched in a run that never starts", name)
        return "the run never starts"
    if line.status == "running":
        run.find("attempts", [line.seq, seq], f"attempt {attempt} is dispatched while the one before runs", name)
        line.taken = attempt
        return "the attempt before it runs"
    if line.status != "waiting":
        if line.status == "skipped":  # two executors can be of two minds about that
            line.void = ("attempts", seq, "the step was skipped before")
        else:
            run.find("attempts", [line.seq, seq], f"attempt {attempt} follows one that has {line.status}", name)
        return f"the step has ended: {line.status}"
    body: Dispatched | None = body_of("step.dispatched", data)
    if body is None:
        run.find("dispatch", [seq], "the dispatch holds another message, and the attempt is lost", name)
        _lost(run, step, line, attempt, seq, at_ns, "unreadable_dispatch", retryable=True)
        return ""
    if early := _too_early(run, step):
        rule, seqs, why = early
        run.find(rule, [*seqs, seq], f"step {name} is dispatched {why}", name)
        _lost(run, step, line, attempt, seq, at_ns, "early_dispatch", retryable=True)
        return ""
    if not run.planned.lighter and (over := _over(run, step, line, body.token_grant)):
        line.taken = attempt
        line.void = (over[0], seq, over[1])
        return over[1]
    if line.rest_ns:
        run.find("backoff", [line.seq, seq], "it is tried again before its rest was over", name)
    _check_dispatch(run, step, body, seq, at_ns)
    line.status, line.attempt, line.dispatched_ns, line.seq = "running", attempt, at_ns, seq
    line.grant, line.spent, line.taken = max(0, body.token_grant), 0, 0
    line.rest_ns = line.cancel_ns = 0
    line.is_due, line.void = False, None
    return ""


def _too_early(run: RunLine, step: Step) -> tuple[str, list[int], str] | None:
    """Why the plan does not let a step run yet: the rule, the messages, and words."""
    if not run.started:
        return "transition", [], "before the run is started"
    for need in step.needs:
        line = run.lines[need]
        if line.status not in ENDED:
            rule, seqs, why = "needs", [line.seq], f"before {need} has ended"
            if line.void:
                rule, seq, text = line.void
                seqs, why = [seq], f"after {need}, whose own dispatch did not count: {text}"
            return rule, seqs, why
    if step.asks and not run.approved(step.id):
        rule, seqs, why = run.unapproved(step.id)
        return rule, seqs, f"without its approval: {why}"
    return None


def _over(run: RunLine, step: Step, line: StepLine, grant: int) -> tuple[str, str] | None:
    """Which budget a dispatch goes beyond."""
    plan, undoing = run.plan, run.planned.undoing
    by_id = run.planned.by_id
    most = plan.directive.max_parallel_steps
    if step.task and sum(1 for name, one in run.lines.items() if one.status == "running" and by_id[name].task) >= most:
        return "max_parallel_steps", f"{most} steps run already, as many as may"
    most = plan.budgets.max_steps
    if not line.attempt and step.id not in undoing and _used(run) >= most:
        return "max_steps", f"{most} steps were dispatched already, as many as may"
    if max(0, grant) > run.free:
        return "token_budget", f"{grant} tokens are more than the {run.free} that are left"
    return None


def _used(run: RunLine) -> int:
    undoing = run.planned.undoing
    return sum(1 for name, line in run.lines.items() if line.attempt and name not in undoing)


def _check_dispatch(run: RunLine, step: Step, body: Dispatched, seq: int, at_ns: int) -> None:
    """What a dispatch that counts has to say."""
    if body.plan_hash != run.plan.plan_hash:
        run.find("plan_hash", [run.plan_seq, seq], "it is dispatched under the hash of another plan", step.id)
    if body.deadline != run.deadline:
        said_ns = time_ns(body.deadline)
        if said_ns is None or abs(said_ns - run.deadline_ns) > WRITTEN_NS:
            run.find("dispatch", [run.started, seq], f"its deadline {body.deadline} is not the run's", step.id)
        else:
            run.deadline = body.deadline
    if body.inputs != step.inputs:
        run.find("dispatch", [run.plan_seq, seq], "its inputs are not the plan's", step.id)
    if body.timeout_s != step.timeout_s:
        run.find("dispatch", [run.plan_seq, seq], f"its timeout is {body.timeout_s} s, not the plan's", step.id)
    if body.token_grant and not (step.uses_tokens and body.token_grant > 0):
        run.find("dispatch", [run.plan_seq, seq], f"it is granted {body.token_grant} tokens, and uses none", step.id)
    if at_ns > run.deadline_ns + SLACK_NS:
        late_s = (at_ns - run.deadline_ns) // NS
        run.find("time_budget", [run.started, seq], f"it is dispatched {late_s} s after the run's deadline", step.id)
    for need in step.needs:
        line = run.lines[need]
        if line.status in ("skipped", "cancelled") or (
            line.status == "failed" and run.planned.by_id[need].on_failure != "continue"
        ):
            run.find(
                "needs", [line.seq, seq], f"it is dispatched although {need}, which it needs, {line.status}", step.id
            )
    if step.id in run.planned.undoing:
        _check_undoing(run, step, seq)


def _check_undoing(run: RunLine, step: Step, seq: int) -> None:
    planned = run.planned
    failed = [run.lines[name] for name, one in planned.by_id.items() if one.on_failure == "rollback"]
    undone = [run.lines[name] for name, one in planned.by_id.items() if one.compensation == step.id]
    if not any(line.status == "failed" for line in failed):
        run.find("transition", [seq], f"{step.id} undoes, and nothing that failed is rolled back", step.id)
    elif not any(line.status in ("succeeded", "failed") for line in undone):
        run.find("transition", [seq], f"{step.id} undoes what was not done", step.id)
    elif other := [name for name in planned.undoing if run.lines[name].status == "running"]:
        run.find("transition", [run.lines[other[0]].seq, seq], f"{step.id} undoes while {other[0]} does", step.id)


def _running(run: RunLine, tokens: list[str]) -> tuple[StepLine | None, str]:
    """The line of the attempt that runs, if this message is about it; else why not."""
    if len(tokens) != 5:
        return None, "the subject has the wrong tokens for its kind"
    line = run.lines.get(tokens[3])
    if line is None:
        return None, "the plan has no such step"
    attempt = attempt_of(tokens[4])
    if line.status == "running" and attempt == line.attempt:
        return line, ""
    if not attempt or attempt > max(line.attempt, line.taken):
        return None, f"attempt {tokens[4]} was never dispatched"
    return None, f"attempt {tokens[4]} does not run any more: the step is {line.status}"


def completed(run: RunLine, tokens: list[str], seq: int, at_ns: int, data: bytes) -> str:
    line, why = _running(run, tokens)
    if line is None:
        return why
    name = tokens[3]
    step = run.planned.by_id[name]
    body: Completed | None = body_of("step.completed", data)
    if body is None:
        _lost(run, step, line, line.attempt, seq, at_ns, "unreadable_result", retryable=True)
        return ""
    if step.kind == "wait" and not line.is_due:
        run.find("transition", [line.seq, seq], f"the wait {name} is said to be over before its timer", name)
    for kept in body.artifacts:
        run.says.keep(run.id, name, seq, kept)
    run.end_step(line, "succeeded", seq, at_ns)
    return ""


def failed(run: RunLine, tokens: list[str], seq: int, at_ns: int, data: bytes) -> str:
    line, why = _running(run, tokens)
    if line is None:
        return why
    step = run.planned.by_id[tokens[3]]
    body: Failed | None = body_of("step.failed", data)
    if body is None:
        _lost(run, step, line, line.attempt, seq, at_ns, "unreadable_result", retryable=True)
    elif not run.stop and at_ns >= run.deadline_ns:
        return _deadline(run, seq, at_ns)  # its worker has ended it with the run's time, and was heard before the timer
    else:
        _lost(run, step, line, line.attempt, seq, at_ns, body.error, retryable=body.retryable)
    return ""


def _lost(
    run: RunLine, step: Step, line: StepLine, attempt: int, seq: int, at_ns: int, error: str, *, retryable: bool
) -> None:
    """The attempt is over without a result: the step is tried again, or has failed."""
    attempt = max(attempt, line.taken)
    covered = step.retry.errors is None or error in step.retry.errors
    line.attempt, line.taken, line.seq = attempt, 0, seq
    line.cancel_ns, line.is_due = 0, False
    again = retryable and covered and not run.stop and attempt < step.max_attempts
    if again and line.skip:
        skip_seq, cause, problem = line.skip
        line.rest_ns = 0
        if problem:
            text = f"step {step.id} is skipped ({cause or 'no cause'}): {problem}"
            run.find("skip", [skip_seq, seq], text, step.id)
        run.end_step(line, "skipped", seq, at_ns, cause)
    elif again:
        line.status, line.grant, line.spent = "waiting", 0, 0
        rest_s = min(step.retry.backoff_s << min(attempt - 1, 32), step.retry.backoff_s_max)
        line.rest_ns = at_ns + rest_s * NS if rest_s else 0
    else:
        line.rest_ns = 0
        run.end_step(line, "failed", seq, at_ns)


def told_to_end(run: RunLine, tokens: list[str], seq: int, at_ns: int, _data: bytes) -> str:
    line, why = _running(run, tokens)
    if line is None:
        if why.endswith("was never dispatched"):
            run.find("transition", [seq], f"the step is told to end, and {why}", tokens[3])
        return why
    if not run.stop:
        run.find("transition", [line.seq, seq], "the step is told to end, and nobody has stopped the run", tokens[3])
        return "the run is not ending"
    if not line.cancel_ns:
        line.cancel_ns = at_ns
    return ""


def cancelled(run: RunLine, tokens: list[str], seq: int, at_ns: int, data: bytes) -> str:
    line, why = _running(run, tokens)
    if line is None:
        return why
    if not run.stop or body_of("step.cancelled", data) is None:
        step = run.planned.by_id[tokens[3]]
        _lost(run, step, line, line.attempt, seq, at_ns, "cancelled", retryable=True)
    else:
        run.end_step(line, "cancelled", seq, at_ns)
    return ""


def skipped(run: RunLine, tokens: list[str], seq: int, at_ns: int, data: bytes) -> str:
    if run.plan is None and len(tokens) == 4:
        return run.unplanned(seq, f"step {tokens[3]} is skipped")
    line = run.lines.get(tokens[3]) if len(tokens) == 4 else None
    if line is None:
        run.find("transition", [seq], "a step is skipped that the plan does not have")
        return "the plan has no such step"
    name = tokens[3]
    if line.status == "running" and line.skip is None:
        said: Skipped | None = body_of("step.skipped", data)
        why = _unskippable(run, name, said.cause) if said else "step.skipped holds another message"
        line.skip = (seq, said.cause if said else "stopped", why)
    if line.status != "waiting":
        said = body_of("step.skipped", data) if line.status != "running" else None
        # What calls for a skip does not go away again: where nothing does now, no executor can have read of it.
        if said and (why := _unskippable(run, name, said.cause)):
            run.find("skip", [line.seq, seq], f"step {name}, which {line.status}, is skipped: {why}", name)
        return f"the step is {line.status}"
    if not run.started:
        run.find("transition", [seq], f"step {name} is skipped before the run is started", name)
        return "the run is not started"
    body: Skipped | None = body_of("step.skipped", data)
    cause = body.cause if body else "stopped"
    if body is None:
        run.find("skip", [seq], "step.skipped holds another message, which skips the step", name)
    elif why := _unskippable(run, name, cause):
        rule, seqs = "skip", [seq]
        if cause == "stopped" and (voids := run.voids):
            rule, seqs, why = voids[-1][0], [voids[-1][1], seq], f"{why}: {voids[-1][2]}"
        run.find(rule, seqs, f"step {name} is skipped ({cause or 'no cause'}): {why}", name)
    run.end_step(line, "skipped", seq, at_ns, cause)
    return ""


def _unskippable(run: RunLine, name: str, cause: str) -> str:
    """Why the record does not bear out that a step is skipped for this cause; "" when it does."""
    planned = run.planned
    step, lines = planned.by_id[name], run.lines
    by_need = any(lines[need].status == "skipped" for need in step.needs)
    failed = [
        one for one in planned.by_id.values() if lines[one.id].status == "failed" and one.id not in planned.undoing
    ]
    by_stop = bool(run.stop) or any(one.on_failure != "continue" for one in failed)
    by_stop = by_stop or any(line.cause in ("steps", "tokens", "condition") for line in lines.values())
    if cause == "need":
        return "" if by_need else "none of its needs was skipped"
    if cause == "stopped":
        return "" if by_stop else "nothing has stopped the run"
    if cause == "rollback":
        return "" if any(one.on_failure == "rollback" for one in failed) else "nothing that failed is rolled back"
    if cause in ("when", "condition"):
        return "" if step.when else "the plan gives it no condition"
    if cause == "unneeded":
        return "" if name in planned.undoing else "it undoes nothing"
    if cause == "steps":
        asked_for = sum(1 for line in lines.values() if line.void and not line.attempt)
        most = run.plan.budgets.max_steps
        return "" if _used(run) + asked_for >= most else f"{_used(run)} of {most} steps were used"
    if cause == "tokens":
        budget = run.plan.budgets.token_budget
        return "" if run.charged >= budget else f"{run.charged} of {budget} tokens were used"
    return "" if by_need or by_stop or step.when or name in planned.undoing else "nothing calls for it"


def called(run: RunLine, tokens: list[str], seq: int, _at_ns: int, data: bytes) -> str:
    line = run.lines.get(tokens[3]) if len(tokens) == 5 else None
    if line is None:
        return "the plan has no such step"
    if line.status != "running":
        if line.void and line.status == "waiting":
            return f"the step does not run: {line.void[2]}"
        return f"the step does not run: it is {line.status}"
    body: Call | None = body_of("llm.called", data)
    if body is None:
        return "it cannot be read as what its subject says"
    unknown = body.input_tokens is None or body.output_tokens is None
    used = (body.input_tokens or 0) + (body.output_tokens or 0)
    left = max(0, line.grant - line.spent)
    wanted = max(used, left) if unknown else used
    charge = min(wanted, left + max(0, run.free))
    run.tokens[0] += body.input_tokens or 0
    run.tokens[1] += body.output_tokens or 0
    run.tokens[2] += unknown
    line.spent += charge
    run.charged += charge
    if wanted > charge:
        run.halt("budget_exhausted", seq)
    return ""


# -- time --------------------------------------------------------------------------------------------------


def _charge_rest(run: RunLine, line: StepLine) -> None:
    """Nobody can say what the attempt has spent of its grant: all of it counts."""
    run.charged += max(0, line.grant - line.spent)


def fired(run: RunLine, tokens: list[str], seq: int, at_ns: int, data: bytes) -> str:
    if body_of("timer.fired", data) is None:
        return "it cannot be read as what its subject says"
    what = tokens[3] if len(tokens) > 3 else ""
    if what == "approval" and len(tokens) == 5:
        asked = run.asked.get(tokens[4])
        if asked is None or asked.status != "pending":
            return "nothing waits for it any more"
        if at_ns < asked.expires_ns:
            return "its time has not come"
        asked.status = "expired"
        run.halt("rejected", seq)
        return ""
    if not run.started:
        return "the run does not run"
    if what == "deadline" and len(tokens) == 4:
        return _deadline(run, seq, at_ns)
    line = run.lines.get(tokens[4]) if len(tokens) == 6 else None
    if line is None or tokens[5] != str(line.attempt):
        return "nothing waits for it any more"
    step = run.planned.by_id[tokens[4]]
    if what == "backoff" and line.status == "waiting" and 0 < line.rest_ns <= at_ns:
        line.rest_ns = 0
        return ""
    if line.status != "running":
        return "nothing waits for it any more"
    if what == "step" and at_ns >= line.dispatched_ns + step.timeout_s * NS:
        _charge_rest(run, line)
        _lost(run, step, line, line.attempt, seq, at_ns, "timeout", retryable=True)
        return ""
    if what == "wait" and step.kind == "wait" and not line.is_due and at_ns >= _wait_ends_ns(step, line):
        line.is_due = True
        return ""
    if what == "cancel" and line.cancel_ns and at_ns >= line.cancel_ns + PATIENCE_NS:
        _charge_rest(run, line)
        run.end_step(line, "cancelled", seq, at_ns)
        return ""
    return "its time has not come"


def _wait_ends_ns(step: Step, line: StepLine) -> int:
    if "until" in step.inputs:
        return time_ns(step.inputs["until"]) or 0
    seconds = step.inputs.get("seconds", 0)
    return line.dispatched_ns + int(seconds * NS) if isinstance(seconds, int | float) else 0


def _deadline(run: RunLine, seq: int, at_ns: int) -> str:
    if at_ns < run.deadline_ns:
        return "its time has not come"
    running = [(run.planned.by_id[name], line) for name, line in run.lines.items() if line.status == "running"]
    stopped = bool(run.stop)
    if run.stop == "timed_out" or (stopped and not running):
        return "nothing waits for it any more"
    run.halt("timed_out", seq)
    for step, line in running:
        _charge_rest(run, line)
        if stopped:
            run.end_step(line, "cancelled", seq, at_ns)
        else:
            _lost(run, step, line, line.attempt, seq, at_ns, "timeout", retryable=True)
    return ""

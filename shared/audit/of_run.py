"""One run by the audit's own rules, message by message: what counts, what does not, and what no rule lets stand.

Theory of operation. Each message is judged where it stands. What counts for nothing by the rules (a worker's late word,
the second of two executors, an answer of somebody who may not) is a note, as long as nothing rests on it. It becomes a
finding when something does: a start without the yes, an end that gives a step a state that the record does not. The
finding then bears the name of the rule for which the message did not count. What executors say is held to more: they
decide from the stream alone, so a word of theirs that no moment of the stream calls for is a finding even where it
counts for nothing. Races between executors are no findings: each may have read less than is written here.
"""

from collections.abc import Callable
from typing import Any, Protocol

from shared.audit.reading import (
    GATE,
    NS,
    Answer,
    Call,
    Completed,
    Dispatched,
    Failed,
    Kept,
    Over,
    Planned,
    Question,
    Reasoned,
    Started,
    Step,
    attempt_of,
    body_of,
    cancel_of,
    is_name,
    read_plan,
    time_ns,
)

UNPLANNED = Planned(None, None, [])
ENDED = frozenset(("succeeded", "failed", "skipped", "cancelled"))
SLACK_NS = 60 * NS  # a deadline's timer may be late by that much: a server that was away
PATIENCE_NS = 30 * NS  # how long a worker that was told to end its step may be silent
DEADLINE_NS = 2_000  # stamps are written in microseconds


class Says(Protocol):
    """Where a run's findings and notes go."""

    def find(self, rule: str, run: int, step: str, events: list[int], text: str) -> None: ...
    def note(self, run: int, seq: int, subject: str, text: str) -> None: ...
    def keep(self, run: int, step: str, seq: int, kept: Kept) -> None: ...


class StepLine:
    """Where one step stands, and the messages that brought it there."""

    __slots__ = (
        "attempt", "cancel_ns", "cause", "dispatched_ns", "ended_ns", "grant", "is_due", "rest_ns", "seq", "spent",
        "status", "taken", "void",
    )  # fmt: skip

    def __init__(self) -> None:
        self.status = "waiting"
        self.attempt = self.taken = 0
        self.dispatched_ns = self.ended_ns = self.rest_ns = self.cancel_ns = 0
        self.grant = self.spent = 0
        self.is_due = False
        self.cause = ""
        self.seq = 0  # the message that brought it where it is
        self.void: tuple[str, int, str] | None = None  # (rule, seq, text): why its last dispatch did not count


class QuestionLine:
    """One question and what was answered."""

    __slots__ = ("by", "expires_ns", "seq", "status", "voids")

    def __init__(self, seq: int, expires_ns: int) -> None:
        self.seq = seq
        self.expires_ns = expires_ns
        self.status = "pending"
        self.by: list[str] = []
        self.voids: list[tuple[str, int, str]] = []  # answers that did not count: (rule, seq, text)


class RunLine:
    """One run, from its goal on."""

    __slots__ = (
        "asked", "at_goal_ns", "broken", "charged", "deadline", "deadline_ns", "id", "lines", "over", "plan",
        "plan_seq", "planned", "planned_ns", "requester", "said", "says", "settled", "started", "started_ns",
        "stop", "stop_seq", "tokens", "unended",
    )  # fmt: skip

    def __init__(self, seq: int, at_ns: int, requester: str, says: Says) -> None:
        self.id = seq
        self.at_goal_ns = at_ns
        self.requester = requester
        self.says = says
        self.said: set[str] = set()
        self.planned = UNPLANNED
        self.plan: Any = None
        self.plan_seq = self.planned_ns = 0
        self.lines: dict[str, StepLine] = {}
        self.unended = 0
        self.asked: dict[str, QuestionLine] = {}
        self.started = 0  # seq
        self.started_ns = 0
        self.deadline = ""
        self.deadline_ns = 0
        self.stop = ""
        self.stop_seq = 0
        self.broken: tuple[str, int] | None = None
        self.tokens = [0, 0, 0]  # in, out, calls of unknown usage
        self.charged = 0
        self.settled = 0  # the message with which its last step ended
        self.over = 0

    # -- words ---------------------------------------------------------------------------------------------

    def find(self, rule: str, seqs: list[int], text: str, step: str = "") -> None:
        self.says.find(rule, self.id, step, [seq for seq in seqs if seq], text)

    def _halt(self, status: str, seq: int) -> None:
        """Nothing more may start; the first reason stands."""
        if not self.stop:
            self.stop, self.stop_seq = status, seq

    def _ended(self, line: StepLine, status: str, seq: int, at_ns: int, cause: str = "") -> None:
        line.status, line.seq, line.ended_ns, line.cause = status, seq, at_ns, cause
        line.grant = line.spent = 0
        self.unended -= 1
        if not self.unended:
            self.settled = seq

    @property
    def reserved(self) -> int:
        return sum(max(0, line.grant - line.spent) for line in self.lines.values() if line.status == "running")

    @property
    def free(self) -> int:
        return int(self.plan.budgets.token_budget) - self.charged - self.reserved

    @property
    def voids(self) -> list[tuple[str, int, str]]:
        """Answers that did not count."""
        return [void for asked in self.asked.values() for void in asked.voids]

    def approved(self, step: str) -> bool:
        asked = self.asked.get(step)
        return asked is not None and asked.status == "approved"

    def unapproved(self, step: str) -> tuple[str, list[int], str]:
        """Why what is asked here has no yes: the rule, the messages, and words."""
        asked = self.asked.get(step)
        if asked is None:
            return "approval", [], "nobody was asked"
        if asked.voids:
            rule, seq, why = asked.voids[-1]
            return rule, [asked.seq, seq], why
        if asked.by and asked.status == "pending":
            needed = self.plan.directive.approvals_needed
            return "quorum", [asked.seq], f"{len(asked.by)} of {needed} have said yes"
        return (
            "approval",
            [asked.seq],
            "the question is " + ("unanswered" if asked.status == "pending" else asked.status),
        )


Hear = Callable[[RunLine, list[str], int, int, bytes], str]  # run, tokens, seq, stamp, data -> why it does not count


# -- before it runs ----------------------------------------------------------------------------------------


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
        run._ended(lines[step], "succeeded", seq, at_ns)
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


def _before_the_plan(run: RunLine, seq: int, what: str) -> str:
    """What an executor says of a plan, where there is none: it cannot be said there again, and the run has to end."""
    if run.broken:
        return "the run is broken"
    run.find("transition", [seq], f"{what} before the run has a plan")
    run.broken = (f"{what} before it had a plan", seq)
    return ""


def _run_started(run: RunLine, _tokens: list[str], seq: int, at_ns: int, data: bytes) -> str:
    if run.started:
        return "the run was started before"
    if run.broken:
        return "the run is broken"
    if run.stop:
        return "the run is ending already"
    if run.plan is None:
        return _before_the_plan(run, seq, "the run is started")
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
    run._halt("cancelled", seq)
    return ""


# -- people ------------------------------------------------------------------------------------------------


def _asks(run: RunLine, step: str) -> bool:
    if step == GATE:
        return run.planned.gated
    planned = run.planned.by_id.get(step)
    return planned is not None and planned.asks


def _requested(run: RunLine, tokens: list[str], seq: int, at_ns: int, data: bytes) -> str:
    if run.plan is None and len(tokens) == 4:
        return _before_the_plan(run, seq, f"{tokens[3]} is to be approved")
    if len(tokens) != 4 or not _asks(run, step := tokens[3]):
        return "nothing is to be asked here"
    if step in run.asked:
        return "it was asked before"
    directive = run.plan.directive
    early = [] if step == GATE else [need for need in run.planned.by_id[step].needs if not _is_over(run, need)]
    since_ns = at_ns if early else _wanted_since(run, step, at_ns)
    expires_ns = since_ns + directive.approval_expires_s * NS
    body: Question | None = body_of("approval.requested", data)
    if body is None:
        run.find("question", [seq], "the question holds another message", step)
    else:
        said_ns = time_ns(body.expires_at)
        expires_ns = expires_ns if said_ns is None else min(expires_ns, said_ns)
        wrong = [
            name
            for name, differs in (
                ("run", body.run != run.id),
                ("step", body.step != step),
                ("approvers", body.approvers != directive.approvers),
                ("approvals_needed", body.approvals_needed != directive.approvals_needed),
                ("requester_may_approve", body.requester_may_approve != directive.requester_may_approve),
                ("expires_at", said_ns is None),
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
        run._halt("rejected", seq)
    return ""


def _wanted_since(run: RunLine, step: str, at_ns: int) -> int:
    """Since when only an answer is wanted of a step whose needs are over; before the run starts, since it is asked."""
    if step == GATE:
        return run.planned_ns
    needs = run.planned.by_id[step].needs
    return max(run.started_ns, *(run.lines[need].ended_ns for need in needs), 0) if run.started else at_ns


def _is_over(run: RunLine, step: str) -> bool:
    return run.lines[step].status in ENDED


def _granted(run: RunLine, tokens: list[str], seq: int, at_ns: int, data: bytes) -> str:
    return _answered(run, tokens, seq, at_ns, data, yes=True)


def _refused(run: RunLine, tokens: list[str], seq: int, at_ns: int, data: bytes) -> str:
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
        run._halt("rejected", seq)
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


def _expired(run: RunLine, tokens: list[str], seq: int, at_ns: int, _data: bytes) -> str:
    step = tokens[3] if len(tokens) == 4 else ""
    asked = run.asked.get(step)
    if asked is None:
        return "nothing was asked here"
    if asked.status != "pending":
        return "" if asked.status == "expired" else f"the question was {asked.status} before"
    if at_ns < asked.expires_ns:
        run.find("expiry", [asked.seq, seq], "the question is said to have expired before its time", step)
        return "its time had not come"
    asked.status = "expired"
    run._halt("rejected", seq)
    return ""


# -- steps -------------------------------------------------------------------------------------------------


def _dispatched(run: RunLine, tokens: list[str], seq: int, at_ns: int, data: bytes) -> str:
    if not 6 <= len(tokens) <= 7:
        return "the subject has the wrong tokens for its kind"
    name, attempt = tokens[3], attempt_of(tokens[4])
    if run.plan is None:
        return _before_the_plan(run, seq, f"step {name} is dispatched")
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
        return "the run's time is over"
    if not run.started and (run.stop or run.broken):
        run.find("transition", [seq], "it is dispatched in a run that never starts", name)
        return "the run never starts"
    if line.status == "running":
        run.find("attempts", [line.seq, seq], f"attempt {attempt} is dispatched while the one before runs", name)
        line.taken = attempt
        return "the attempt before it runs"
    if line.status != "waiting":
        if line.status != "skipped":  # two executors can be of two minds about that
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
        if said_ns is None or abs(said_ns - run.deadline_ns) > DEADLINE_NS:
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


def _completed(run: RunLine, tokens: list[str], seq: int, at_ns: int, data: bytes) -> str:
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
    run._ended(line, "succeeded", seq, at_ns)
    return ""


def _failed(run: RunLine, tokens: list[str], seq: int, at_ns: int, data: bytes) -> str:
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
    if retryable and covered and not run.stop and attempt < step.max_attempts:
        line.status, line.grant, line.spent = "waiting", 0, 0
        rest_s = min(step.retry.backoff_s << min(attempt - 1, 32), step.retry.backoff_s_max)
        line.rest_ns = at_ns + rest_s * NS if rest_s else 0
    else:
        line.rest_ns = 0
        run._ended(line, "failed", seq, at_ns)


def _told_to_end(run: RunLine, tokens: list[str], seq: int, at_ns: int, _data: bytes) -> str:
    line, why = _running(run, tokens)
    if line is None:
        return why
    if not run.stop:
        run.find("transition", [line.seq, seq], "the step is told to end, and nobody has stopped the run", tokens[3])
        return "the run is not ending"
    if not line.cancel_ns:
        line.cancel_ns = at_ns
    return ""


def _cancelled(run: RunLine, tokens: list[str], seq: int, at_ns: int, data: bytes) -> str:
    line, why = _running(run, tokens)
    if line is None:
        return why
    if not run.stop or body_of("step.cancelled", data) is None:
        step = run.planned.by_id[tokens[3]]
        _lost(run, step, line, line.attempt, seq, at_ns, "cancelled", retryable=True)
    else:
        run._ended(line, "cancelled", seq, at_ns)
    return ""


def _skipped(run: RunLine, tokens: list[str], seq: int, at_ns: int, data: bytes) -> str:
    if run.plan is None and len(tokens) == 4:
        return _before_the_plan(run, seq, f"step {tokens[3]} is skipped")
    line = run.lines.get(tokens[3]) if len(tokens) == 4 else None
    if line is None:
        run.find("transition", [seq], "a step is skipped that the plan does not have")
        return "the plan has no such step"
    if line.status != "waiting":
        return f"the step is {line.status}"
    name = tokens[3]
    if not run.started:
        run.find("transition", [seq], f"step {name} is skipped before the run is started", name)
        return "the run is not started"
    body: Reasoned | None = body_of("step.skipped", data)
    cause = body.cause if body else "stopped"
    if body is None:
        run.find("skip", [seq], "step.skipped holds another message, which skips the step", name)
    elif why := _unskippable(run, name, cause):
        rule, seqs = "skip", [seq]
        if cause == "stopped" and (voids := run.voids):
            rule, seqs, why = voids[-1][0], [voids[-1][1], seq], f"{why}: {voids[-1][2]}"
        run.find(rule, seqs, f"step {name} is skipped ({cause or 'no cause'}): {why}", name)
    run._ended(line, "skipped", seq, at_ns, cause)
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


def _called(run: RunLine, tokens: list[str], seq: int, _at_ns: int, data: bytes) -> str:
    line = run.lines.get(tokens[3]) if len(tokens) == 5 else None
    if line is None:
        return "the plan has no such step"
    if line.status != "running":
        if line.void and line.status == "waiting":
            return f"the step does not run: {line.void[2]}"
        return f"the step does not run: it is {line.status}"
    body: Call | None = body_of("llm.called", data)
    if body is None or min(body.input_tokens or 0, body.output_tokens or 0) < 0:
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
        run._halt("budget_exhausted", seq)
    return ""


# -- time --------------------------------------------------------------------------------------------------


def _charge_rest(run: RunLine, line: StepLine) -> None:
    """Nobody can say what the attempt has spent of its grant: all of it counts."""
    run.charged += max(0, line.grant - line.spent)


def _fired(run: RunLine, tokens: list[str], seq: int, at_ns: int, data: bytes) -> str:
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
        run._halt("rejected", seq)
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
        run._ended(line, "cancelled", seq, at_ns)
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
    run._halt("timed_out", seq)
    for step, line in running:
        _charge_rest(run, line)
        if stopped:
            run._ended(line, "cancelled", seq, at_ns)
        else:
            _lost(run, step, line, line.attempt, seq, at_ns, "timeout", retryable=True)
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
    "approval.requested": (_requested, False),
    "approval.granted": (_granted, True),
    "approval.rejected": (_refused, True),
    "approval.expired": (_expired, False),
    "step.dispatched": (_dispatched, False),
    "step.completed": (_completed, False),
    "step.failed": (_failed, False),
    "step.cancel_requested": (_told_to_end, False),
    "step.cancelled": (_cancelled, False),
    "step.skipped": (_skipped, False),
    "llm.called": (_called, False),
    "timer.fired": (_fired, True),
}

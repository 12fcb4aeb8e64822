"""Every event: one struct for each `noun.verb`, and how a stored message is read as one.

Readers are tolerant: unknown fields are ignored, so old readers survive new writers. What must be there is
what tells an event from another message: a server's ack that a client had stored under `step.completed.7.a.1`
has no `outputs`, cannot be read, and counts as nothing.
"""

from collections.abc import Callable
from functools import lru_cache
from typing import Annotated, Any, Literal

import msgspec

from shared.errors import UNREADABLE
from shared.nesting import SHALLOW_BYTES, check_levels
from shared.plan import GATE, PLAN_STEPS_MAX, Count, Plan, hash_of, wait_problem
from shared.plan import Artifact as Artifact
from shared.status import RunStatus, StepStatus
from shared.subjects import RUN_DIGITS_MAX, is_principal, is_schedule_name, is_step_id, size_of_seal

OUTPUTS_BYTES_MAX = 65_536  # what a step hands to later steps; anything big is an artifact
# Tokens of one call. No model reads or writes as many, and no sum of them leaves what a store can hold.
USAGE_MAX = 1_000_000_000
Usage = Annotated[int, msgspec.Meta(ge=0, le=USAGE_MAX)]


class Tokens(msgspec.Struct, frozen=True, kw_only=True):
    """What the reported calls of a run used; `unknown_calls` counts those whose server reported nothing."""

    input: Count = 0
    output: Count = 0
    unknown_calls: Count = 0


class GoalRejected(msgspec.Struct, frozen=True, kw_only=True):
    """The goal cannot be planned: the first reason and its field, and all of them."""

    reason: str
    field: str = ""
    problems: list[dict[str, str]] = []


class RunQueued(msgspec.Struct, frozen=True, kw_only=True):
    """The run waits for one of its directive's `max_concurrent_runs`."""

    directive: str
    max_concurrent_runs: int


class RunStarted(msgspec.Struct, frozen=True, kw_only=True):
    """The run was admitted; its time budget counts from this message's stamp."""

    directive: str
    plan_hash: str


class RunCancelRequested(msgspec.Struct, frozen=True, kw_only=True):
    """Somebody wants the run to end. Queued and waiting runs end at once, running steps are told first."""

    reason: str = ""


class StepDispatched(msgspec.Struct, frozen=True, kw_only=True):
    """A step may run now, until `deadline`, and may spend `token_grant` tokens."""

    inputs: dict[str, Any]
    deadline: str
    plan_hash: str
    timeout_s: float = 600
    token_grant: int = 0
    goal: str | None = None


class StepCompleted(msgspec.Struct, frozen=True, kw_only=True):
    """What a step found, and the artifacts that are in the store by now."""

    outputs: dict[str, Any]
    artifacts: list[Artifact] = []
    host: str | None = None
    started_at: str | None = None
    ended_at: str | None = None


class StepFailed(msgspec.Struct, frozen=True, kw_only=True):
    """Why an attempt failed, redacted, and whether another may succeed."""

    error: str
    message: str = ""
    retryable: bool = False
    host: str | None = None
    started_at: str | None = None
    ended_at: str | None = None


class StepCancelRequested(msgspec.Struct, frozen=True, kw_only=True):
    """The worker that has this attempt is to end it, and to say `step.cancelled` when nothing of it is left."""

    reason: str


class StepCancelled(msgspec.Struct, frozen=True, kw_only=True):
    """The attempt was ended on request: its processes are gone."""

    reason: str
    host: str | None = None
    started_at: str | None = None
    ended_at: str | None = None


class StepSkipped(msgspec.Struct, frozen=True, kw_only=True):
    """The step will not run, and why: for a person, and as `cause` for programs.

    `cause`: when, need, stopped, steps or tokens (a budget that is used up), rollback, unneeded.
    """

    reason: str
    cause: str = ""


class ApprovalRequested(msgspec.Struct, frozen=True, kw_only=True):
    """Somebody has to say yes: to what exactly, who may, how many have to, and until when.

    `step` is `run` where the whole run waits. An answer carries `run`, `step` and `plan_hash` of its question.
    """

    run: int
    step: str
    what: str
    plan_hash: str
    expires_at: str
    approvers: list[str] = []
    approvals_needed: int = 1
    requester: str = ""
    requester_may_approve: bool = False
    goal: str | None = None
    tasks: list[str] = []
    hosts: list[str] | None = None
    inputs: dict[str, Any] = {}


class _Answer(msgspec.Struct, frozen=True, kw_only=True):
    """An answer, bound to its question by run, step and plan hash. `answer` says which; Remit's own clients say it.

    The question itself, or an answer of the other kind, that was stored here by way of a reply subject, is none.
    """

    run: int
    step: str
    plan_hash: str
    reason: str = ""
    answer: str | None = None
    what: str | None = None
    expires_at: str | None = None

    def _is(self, answer: str) -> None:
        if self.what is not None or self.expires_at is not None or self.answer not in (None, answer):
            raise ValueError(f"this is no answer of the kind {answer}")


class ApprovalGranted(_Answer, frozen=True, kw_only=True):
    """A yes."""

    def __post_init__(self) -> None:
        self._is("granted")


class ApprovalRejected(_Answer, frozen=True, kw_only=True):
    """A no; it ends the run."""

    def __post_init__(self) -> None:
        self._is("rejected")


class ApprovalExpired(msgspec.Struct, frozen=True, kw_only=True):
    """Nobody has answered in time."""

    expired_at: str


class LlmCalled(msgspec.Struct, frozen=True, kw_only=True):
    """One call's model and the usage that its server reported: null where it reported none. Never content."""

    request_model: str
    outcome: str
    response_model: str | None = None
    input_tokens: Usage | None = None
    output_tokens: Usage | None = None
    cached_tokens: Usage | None = None
    reasoning_tokens: Usage | None = None
    duration_s: float | None = None


class TimerFired(msgspec.Struct, frozen=True, kw_only=True):
    """The server says that a time has come; which one stands in the subject."""

    due: str


class RunCompleted(msgspec.Struct, frozen=True, kw_only=True):
    """The one terminal event of a run."""

    status: RunStatus
    reason: str
    steps: dict[str, StepStatus]
    tokens: Tokens = Tokens()
    duration_s: float = 0.0
    # Where a budget has ended it: `steps`, `tokens` or `time_s`, what was used, and what was allowed.
    budget: str | None = None
    used: float | None = None
    allowed: float | None = None


class PlanCreated(Plan, frozen=True, kw_only=True):
    """The whole plan, as `plan.created` carries it. Steps need only earlier ones, so none waits for itself."""

    def __post_init__(self) -> None:
        known: set[str] = set()
        if not 1 <= len(self.steps) <= PLAN_STEPS_MAX:
            raise ValueError(f"a plan has 1 to {PLAN_STEPS_MAX} steps")
        for step in self.steps:
            if step.id in known:
                raise ValueError(f"step {step.id} is there twice")
            if not known.issuperset(step.needs):
                raise ValueError(f"step {step.id} needs a step that does not stand before it")
            if (step.task is None) == (step.kind == "task") or step.id == GATE:
                raise ValueError(f"step {step.id} is no step of kind {step.kind}")
            if step.kind == "wait" and (why := wait_problem(step.inputs)):
                raise ValueError(f"step {step.id}: {why}")
            known.add(step.id)
        if not known.issuperset(self.compensations) or not known.issuperset(self.reused):
            raise ValueError("the plan names a step that it does not have")


class ScheduleTicked(msgspec.Struct, frozen=True, kw_only=True):
    """What became of one nominal tick. When it is to run, its goal is here: whatever is changed meanwhile."""

    due: str
    outcome: Literal["ran", "late", "caught_up", "coalesced", "skipped"]
    reason: str = ""
    schedule_version: Count = 0
    zone: str = "UTC"
    local: str = ""
    goal: dict[str, Any] | None = None


class AuditSealed(msgspec.Struct, frozen=True, kw_only=True):
    """A signed head of the stream's Merkle tree: the first `size` messages, and where each run stood (docs/audit.md).

    Hashes, key and signature are in hex; `previous` is the size of the head before, `at` the stamp of message `size`.
    """

    size: Count
    root: str
    heads: str
    runs: Count
    previous: Count
    at: str
    stream: str
    key: str
    signature: str


class Unreadable(msgspec.Struct, frozen=True):
    """What lies on an engine subject and is not that event; it is kept, counted, and means nothing."""

    reason: str


# kind -> struct, and how many tokens follow <noun>.<verb>.<run>: (least, most).
KINDS: dict[str, tuple[type, int, int]] = {
    "goal.rejected": (GoalRejected, 0, 0),
    "plan.created": (PlanCreated, 0, 0),
    "run.queued": (RunQueued, 0, 0),
    "run.started": (RunStarted, 0, 0),
    "run.cancel_requested": (RunCancelRequested, 0, 1),
    "approval.requested": (ApprovalRequested, 1, 1),
    "approval.granted": (ApprovalGranted, 1, 2),
    "approval.rejected": (ApprovalRejected, 1, 2),
    "approval.expired": (ApprovalExpired, 1, 1),
    "step.dispatched": (StepDispatched, 3, 4),
    "step.completed": (StepCompleted, 2, 2),
    "step.failed": (StepFailed, 2, 2),
    "step.cancel_requested": (StepCancelRequested, 2, 2),
    "step.cancelled": (StepCancelled, 2, 2),
    "step.skipped": (StepSkipped, 1, 1),
    "llm.called": (LlmCalled, 2, 2),
    "timer.fired": (TimerFired, 1, 3),
    "run.completed": (RunCompleted, 0, 0),
}
_DECODERS: dict[str, tuple[Callable[[bytes], Any], int, int]] = {
    kind: (msgspec.json.Decoder(struct).decode, least, most) for kind, (struct, least, most) in KINDS.items()
}
# What belongs to a schedule and to no run: the third token is a name, `Event.run` is 0.
OF_SCHEDULES: dict[str, type] = {"schedule.ticked": ScheduleTicked, "timer.fired": TimerFired}
# What is said of the stream itself; the third token is no run's.
OF_THE_STREAM: dict[str, type] = {"audit.sealed": AuditSealed}
_DECODERS_OF_NO_RUN: dict[str, Callable[[bytes], Any]] = {
    kind: msgspec.json.Decoder(struct).decode for kind, struct in (OF_SCHEDULES | OF_THE_STREAM).items()
}
TICK_DIGITS_MAX = 11
PLAN_CACHED_BYTES_MAX = 16_384
SUBJECT_CACHED_CHARS_MAX = 200
_WRONG_TOKENS = "the subject has the wrong tokens for its kind"


def _new_plan(data: bytes) -> PlanCreated:
    """The plan, if its hash is its own: over all that was said, so that a newer writer's fields count, too."""
    check_levels(data)
    plan = msgspec.json.decode(data, type=PlanCreated)
    said = msgspec.json.decode(data)
    del said["plan_hash"]
    if hash_of(said) != plan.plan_hash:
        raise ValueError("the plan's hash is not its own")
    return plan


# A goal that is asked again gives the same bytes, and one immutable plan serves all of its runs.
_same_plan = lru_cache(maxsize=256)(_new_plan)


def _plan(data: bytes) -> PlanCreated:
    return _same_plan(data) if len(data) <= PLAN_CACHED_BYTES_MAX else _new_plan(data)


_DECODERS["plan.created"] = (_plan, 0, 0)
_CANCEL_WORDS = frozenset(("reason", "run", "by", "requested_by"))


def _cancel_request(data: bytes) -> RunCancelRequested:
    """Nothing, `{}`, or an object with one of the words: whoever cancels by hand need not give a reason.

    Anything else (a server's ack, another event) was not meant so.
    """
    said = msgspec.json.decode(data) if data.strip() else {}
    if not isinstance(said, dict) or (said and not _CANCEL_WORDS & said.keys()):
        raise ValueError("this is no request to cancel: it has no `reason`")
    return msgspec.convert(said, RunCancelRequested)


_DECODERS["run.cancel_requested"] = (_cancel_request, 0, 1)
# Behind the run: a step and its attempt; a step and something else (a call, a principal); a principal alone.
_ATTEMPT_KINDS = frozenset(
    ("step.dispatched", "step.completed", "step.failed", "step.cancel_requested", "step.cancelled")
)
_STEP_KINDS = frozenset(
    ("step.skipped", "llm.called", "approval.requested", "approval.granted", "approval.rejected", "approval.expired")
)
_WITH_STEP = _ATTEMPT_KINDS | _STEP_KINDS
_BY_PRINCIPAL = frozenset(("run.cancel_requested", "approval.granted", "approval.rejected"))


class Event(msgspec.Struct, gc=False):
    """One stored message: its place in the order, the server's stamp, and what it says.

    `kind` is `noun.verb`; `run` is 0 when the subject names none; `attempt` is 0 where there is none; `tail`
    is the last token where the kind has one: a task, a principal, a call; a schedule's name, and its tick behind a dot.
    """

    seq: int
    at_ns: int
    kind: str
    run: int
    body: Any
    step: str = ""
    attempt: int = 0
    tail: str = ""


encode = msgspec.json.Encoder().encode


class _Meant(msgspec.Struct, frozen=True, gc=False):
    """What a subject says of its event, whatever its run: how its data is read, or why it is none."""

    kind: str
    decode: Callable[[bytes], Any] | None = None
    step: str = ""
    attempt: int = 0
    tail: str = ""
    problem: str = ""


def read(subject: str, seq: int, at_ns: int, data: bytes) -> Event:
    """The event in a stored message. Never raises: what cannot be read comes back with an `Unreadable` body."""
    parts = subject.split(".", 3)
    if len(parts) == 4:
        noun, verb, number, rest = parts
    elif len(parts) == 3:
        (noun, verb, number), rest = parts, None
    else:
        return _without_run(subject, seq, at_ns, data)
    if noun == "goal" and verb == "submitted":
        return _without_run(subject, seq, at_ns, data)
    run = _number(number, RUN_DIGITS_MAX)
    meant = _meant(noun, verb, rest) if len(subject) <= SUBJECT_CACHED_CHARS_MAX else _newly_meant(noun, verb, rest)
    if run == 0 or meant is None:
        return _of_no_run(subject.split("."), Event(seq, at_ns, f"{noun}.{verb}", run, None), data)
    if run >= seq:
        return Event(seq, at_ns, meant.kind, run, Unreadable(_WRONG_TOKENS))
    decode, body = meant.decode, None
    if decode is None:
        body = Unreadable(meant.problem)
    else:
        try:
            if not data.isascii():
                data.decode()  # msgspec passes over broken text in fields that it skips, and not every store would
            if len(data) > SHALLOW_BYTES and decode is not _plan:  # a plan is looked at where it is read anew
                check_levels(data)
            body = decode(data)
        except UNREADABLE as error:
            body = Unreadable(str(error)[:300])
    return Event(seq, at_ns, meant.kind, run, body, meant.step, meant.attempt, meant.tail)


def _newly_meant(noun: str, verb: str, rest: str | None) -> _Meant | None:
    """What `<noun>.<verb>.<run>.<rest>` says; None where no event of a run has such a subject."""
    kind = f"{noun}.{verb}"
    known = _DECODERS.get(kind)
    if known is None:
        return None
    decode, least, most = known
    tokens = rest.split(".") if rest is not None else []
    step, attempt, tail = "", 0, ""
    if not least <= len(tokens) <= most:
        return _Meant(kind, problem=_WRONG_TOKENS)
    if kind in _WITH_STEP:
        step, *behind = tokens
        if not is_step_id(step):
            return _Meant(kind, step=step, problem="the subject's step is none")
        if kind in _ATTEMPT_KINDS:
            attempt = _number(behind.pop(0), 4)
        tail = ".".join(behind)
    else:
        tail = ".".join(tokens)
    if tail and kind in _BY_PRINCIPAL and not is_principal(tail):
        return _Meant(kind, step=step, attempt=attempt, tail=tail, problem="no principal can be read from the subject")
    return _Meant(kind, decode, step, attempt, tail)


_meant = lru_cache(maxsize=4096)(_newly_meant)  # steps, attempts and tasks have few names, said again and again


def _without_run(subject: str, seq: int, at_ns: int, data: bytes) -> Event:
    """A goal, whose run is named by its sequence; or a subject that is too short for any other event."""
    parts = subject.split(".")
    event = Event(seq, at_ns, ".".join(parts[:2]), 0, None)
    if event.kind != "goal.submitted":
        return _of_no_run(parts, event, data)
    # The goal itself is read by `read_goal` where it matters; a fold needs only to know that there is one.
    event.run, principal = seq, ".".join(parts[2:])
    if principal and not is_principal(principal):
        # A run all the same: the planner rejects it, so that whoever asked is told.
        event.body = Unreadable("no principal can be read from the subject")
    else:
        event.tail = principal
    return event


def _of_no_run(parts: list[str], event: Event, data: bytes) -> Event:
    """A schedule's tick or alarm, or a seal; every other subject without a run is nobody's."""
    if event.kind == "timer.fired" and len(parts) == 4 and parts[2] == "schedule" and is_schedule_name(parts[3]):
        event.tail = parts[3]
    elif (
        event.kind == "schedule.ticked"
        and len(parts) == 4
        and is_schedule_name(parts[2])
        and _number(parts[3], TICK_DIGITS_MAX)
    ):
        event.tail = f"{parts[2]}.{parts[3]}"
    elif event.kind == "audit.sealed" and len(parts) == 3 and size_of_seal(parts[2]):
        event.tail = parts[2]
    else:
        event.body = Unreadable("no event of Remit has this subject")
        return event
    try:
        data.decode()
        check_levels(data)
        event.body = _DECODERS_OF_NO_RUN[event.kind](data)
    except UNREADABLE as error:
        event.body = Unreadable(str(error)[:300])
    return event


@lru_cache(maxsize=4096)  # the events of a run follow each other closely, and most attempts are the first
def _number(text: str, digits_max: int) -> int:
    """A positive number in its only spelling (no sign, no leading zero), or 0."""
    if len(text) > digits_max or not text.isascii() or not text.isdigit() or text[0] == "0":
        return 0
    return int(text)

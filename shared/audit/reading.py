"""How the audit reads messages: with shapes of its own.

They hold every field that the wire gives a meaning to, also those that no rule looks at: a message with a field of
another type cannot be read, and what cannot be read counts for nothing.
"""

import hashlib
import json
import re
from functools import lru_cache
from typing import Annotated, Any, Literal

import msgspec

Count = Annotated[int, msgspec.Meta(ge=0, le=9_007_199_254_740_992)]
Usage = Annotated[int, msgspec.Meta(ge=0, le=1_000_000_000)]
STEPS_MAX = 10_000
Steps = Annotated[int, msgspec.Meta(ge=1, le=STEPS_MAX)]
Seconds = Annotated[int, msgspec.Meta(ge=1, le=86_400)]
Pause = Annotated[int, msgspec.Meta(ge=0, le=86_400)]
Expiry = Annotated[int, msgspec.Meta(ge=1, le=31_536_000)]
TokenBudget = Annotated[int, msgspec.Meta(ge=0, le=1_000_000)]
Tries = Annotated[int, msgspec.Meta(ge=1, le=100)]
Slots = Annotated[int, msgspec.Meta(ge=1, le=1_000_000)]
Name = Annotated[str, msgspec.Meta(pattern=r"\A[A-Za-z0-9_-]{1,64}\Z")]
StepName = Annotated[str, msgspec.Meta(pattern=r"\A[a-z0-9_-]{1,64}\Z")]
OnFailure = Literal["stop", "continue", "rollback"]
End = Literal["succeeded", "failed", "cancelled", "rejected", "timed_out", "budget_exhausted", "rolled_back"]
StepEnd = Literal["pending", "awaiting_approval", "running", "succeeded", "failed", "skipped", "cancelled"]

WAIT_S_MAX = 2_592_000
LEVELS_MAX = 500
QUOTE, BACKSLASH, OPENS, CLOSES = ord('"'), ord("\\"), frozenset(b"[{"), frozenset(b"]}")
NS = 1_000_000_000
WRITTEN_NS = 2_000  # stamps are written in microseconds
GATE = "run"
_TOKEN = re.compile(r"[A-Za-z0-9_-]{1,64}")
_RFC3339 = re.compile(r"\d{4}-\d\d-\d\d[Tt ]\d\d:\d\d:\d\d(?:\.(\d{1,9}))?\d*(?:[Zz]|([+-])(\d\d):(\d\d))")
_ATTEMPT = re.compile(r"[1-9][0-9]{0,3}")


class Kept(msgspec.Struct, frozen=True):
    name: str
    sha256: str
    size_bytes: Count
    media_type: str = ""
    from_run: Count | None = None


class Dispatched(msgspec.Struct, frozen=True, gc=False):
    inputs: dict[str, Any]
    deadline: str
    plan_hash: str
    timeout_s: float = 600
    token_grant: int = 0
    goal: str | None = None


class Completed(msgspec.Struct, frozen=True, gc=False):
    outputs: dict[str, Any]
    artifacts: list[Kept] = []
    host: str | None = None
    started_at: str | None = None
    ended_at: str | None = None


class Failed(msgspec.Struct, frozen=True):
    error: str
    message: str = ""
    retryable: bool = False
    host: str | None = None
    started_at: str | None = None
    ended_at: str | None = None


class Skipped(msgspec.Struct, frozen=True):
    reason: str
    cause: str = ""


class CancelRequested(msgspec.Struct, frozen=True):
    reason: str


class Cancelled(msgspec.Struct, frozen=True):
    reason: str
    host: str | None = None
    started_at: str | None = None
    ended_at: str | None = None


class Rejected(msgspec.Struct, frozen=True):
    reason: str
    field: str = ""
    problems: list[dict[str, str]] = []


class Question(msgspec.Struct, frozen=True):
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


class Answer(msgspec.Struct, frozen=True):
    run: int
    step: str
    plan_hash: str
    reason: str = ""
    answer: str | None = None
    what: str | None = None
    expires_at: str | None = None


class Call(msgspec.Struct, frozen=True):
    request_model: str
    outcome: str
    response_model: str | None = None
    input_tokens: Usage | None = None
    output_tokens: Usage | None = None
    cached_tokens: Usage | None = None
    reasoning_tokens: Usage | None = None
    duration_s: float | None = None


class Fired(msgspec.Struct, frozen=True):
    due: str


class Started(msgspec.Struct, frozen=True, gc=False):
    directive: str
    plan_hash: str


class Queued(msgspec.Struct, frozen=True):
    directive: str
    max_concurrent_runs: int


class Expired(msgspec.Struct, frozen=True):
    expired_at: str


class Total(msgspec.Struct, frozen=True, gc=False):
    input: Count = 0
    output: Count = 0
    unknown_calls: Count = 0


class Over(msgspec.Struct, frozen=True, gc=False):
    status: End
    reason: str
    steps: dict[str, StepEnd]
    tokens: Total = Total()
    duration_s: float = 0.0
    budget: str | None = None
    used: float | None = None
    allowed: float | None = None


class Ticked(msgspec.Struct, frozen=True):
    due: str
    outcome: Literal["ran", "late", "caught_up", "coalesced", "skipped"]
    reason: str = ""
    schedule_version: Count = 0
    zone: str = "UTC"
    local: str = ""
    goal: dict[str, Any] | None = None


class Limits(msgspec.Struct, frozen=True):
    max_steps: Steps = 10
    time_budget_s: Seconds = 3600
    token_budget: TokenBudget = 10_000


class Allowed(msgspec.Struct, frozen=True):
    name: str
    version: int = 0
    description: str = ""
    task_list: list[str] = msgspec.field(default_factory=lambda: ["*"])
    approval_required: bool | list[str] = False
    approvers: list[str] = []
    approvals_needed: Tries = 1
    requester_may_approve: bool = False
    approval_expires_s: Expiry = 86_400
    max_concurrent_runs: Slots = 500
    max_parallel_steps: Slots = 100
    on_failure: OnFailure = "stop"
    hosts: list[str] | None = None
    channels: list[str] = []
    defaults: Limits = Limits()
    maximum: Limits = Limits(max_steps=100, time_budget_s=86_400, token_budget=1_000_000)


class Rest(msgspec.Struct, frozen=True):
    backoff_s: Pause = 0
    backoff_s_max: Pause = 60
    errors: list[str] | None = None


class Step(msgspec.Struct, frozen=True):
    id: StepName
    why: str
    kind: Literal["task", "decision", "wait", "notify", "approval"] = "task"
    task: Name | None = None
    inputs: dict[str, Any] = {}
    needs: list[str] = []
    when: str | None = None
    matched: list[str] = []
    host: Name | None = None
    approval: bool = False
    timeout_s: Seconds = 600
    max_attempts: Tries = 3
    retry: Rest = Rest()
    on_failure: OnFailure = "stop"
    compensation: StepName | None = None
    uses_tokens: bool = False

    @property
    def asks(self) -> bool:
        return self.approval or self.kind == "approval"

    @property
    def aim(self) -> str:
        """What the dispatch's subject ends with."""
        performed = self.task or self.kind
        return f"{performed}.{self.host}" if self.host else performed


class Left(msgspec.Struct, frozen=True):
    outputs: dict[str, Any] = {}
    artifacts: list[Kept] = []
    host: str | None = None


class Plan(msgspec.Struct, frozen=True):
    steps: list[Step]
    directive: Allowed
    budgets: Limits
    catalogue_version: str
    rules_version: str
    plan_hash: str
    goal: str | None = None
    tasks: list[str] | None = None
    playbook: str | None = None
    playbook_version: str | None = None
    retry_of: Count | None = None
    from_step: str | None = None
    reused: dict[str, Left] = {}
    params: dict[str, Any] = {}
    hosts: list[str] | None = None
    notes: list[str] = []


class Planned:
    """A plan, what is wrong with it, and what the rules ask of it again and again."""

    __slots__ = ("asks", "by_id", "gated", "lighter", "plan", "problems", "undoing", "unreadable")

    def __init__(self, plan: Plan | None, unreadable: tuple[str, str] | None, problems: list[tuple[str, str]]) -> None:
        self.plan = plan
        self.unreadable = unreadable  # (rule, text): such a plan counts as none, and ends its run
        self.problems = problems  # it counts, and breaks these
        self.by_id: dict[str, Step] = {step.id: step for step in plan.steps} if plan else {}
        self.undoing = frozenset(step.compensation for step in self.by_id.values() if step.compensation)
        self.gated = plan is not None and plan.directive.approval_required is True
        self.lighter = plan is not None and not (
            len(self.by_id) > min(plan.budgets.max_steps, plan.directive.max_parallel_steps)
            or any(one.asks or one.uses_tokens or one.when for one in self.by_id.values())
            or self.undoing
        )


def _said(data: bytes) -> Any:
    """The JSON that this is; `json.loads` would take UTF-16, NaN and 1e400, too, which are none."""
    data.decode()
    _check_levels(data)
    return msgspec.json.decode(data)


def _read_plan(data: bytes) -> Planned:
    try:
        said = _said(data)
        plan = msgspec.convert(said, Plan)
    except (ValueError, RecursionError) as error:  # msgspec's own errors are ValueErrors
        return Planned(None, ("plan", f"the plan cannot be read: {str(error)[:200]}"), [])
    hashed = said.pop("plan_hash")
    text = json.dumps(said, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    true_hash = hashlib.sha256(text.encode()).hexdigest()
    if true_hash != hashed:
        return Planned(
            None, ("plan_hash", f"the plan's hash is {true_hash[:12]}…, and it says {str(hashed)[:12]}…"), []
        )
    if why := _no_plan(plan):
        return Planned(None, ("plan", why), [])
    return Planned(plan, None, _not_allowed(plan))


def _no_plan(plan: Plan) -> str:
    known: set[str] = set()
    if not 1 <= len(plan.steps) <= STEPS_MAX:
        return "the plan has no step, or more than any plan"
    for step in plan.steps:
        if step.id in known:
            return f"step {step.id} is in the plan twice"
        if not known.issuperset(step.needs):
            return f"step {step.id} needs a step that does not stand before it"
        if (step.task is None) == (step.kind == "task") or step.id == GATE:
            return f"step {step.id} is no step of kind {step.kind}"
        if step.kind == "wait" and not _says_a_time(step.inputs):
            return f"step {step.id} waits, and its inputs say no time"
        known.add(step.id)
    named = {step.compensation for step in plan.steps if step.compensation} | plan.reused.keys()
    return "" if named <= known else "the plan names a step that it does not have"


def _says_a_time(inputs: dict[str, Any]) -> bool:
    seconds, until = inputs.get("seconds"), inputs.get("until")
    if until is None:
        return isinstance(seconds, int | float) and not isinstance(seconds, bool) and 0 <= seconds <= WAIT_S_MAX
    return seconds is None and time_ns(until) is not None


def _not_allowed(plan: Plan) -> list[tuple[str, str]]:
    """Where a readable plan goes beyond the directive that it carries."""
    directive, found = plan.directive, []
    for step in plan.steps:
        if step.task and "*" not in directive.task_list and step.task not in directive.task_list:
            found.append(f"task {step.task} of step {step.id} is not in the directive's task_list")
        if step.host and directive.hosts is not None and step.host not in directive.hosts:
            found.append(f"host {step.host} of step {step.id} is not among the directive's hosts")
        asked = directive.approval_required
        if isinstance(asked, list) and not step.asks and (step.id in asked or step.task in asked):
            found.append(f"step {step.id} is to be approved by the directive, and the plan does not ask for it")
    for field in ("max_steps", "time_budget_s", "token_budget"):
        value, most = getattr(plan.budgets, field), getattr(directive.maximum, field)
        if value > most:
            found.append(f"{field} is {value}, and the directive allows {most}")
    return [("allowed", text) for text in found]


read_plan = lru_cache(maxsize=256)(_read_plan)  # a goal that is asked again gives the same bytes

_BODIES: dict[str, type[msgspec.Struct]] = {
    "step.dispatched": Dispatched,
    "step.completed": Completed,
    "step.failed": Failed,
    "step.skipped": Skipped,
    "step.cancel_requested": CancelRequested,
    "step.cancelled": Cancelled,
    "run.started": Started,
    "run.queued": Queued,
    "run.completed": Over,
    "goal.rejected": Rejected,
    "approval.requested": Question,
    "approval.granted": Answer,
    "approval.rejected": Answer,
    "approval.expired": Expired,
    "llm.called": Call,
    "timer.fired": Fired,
    "schedule.ticked": Ticked,
}
DECODE = {kind: msgspec.json.Decoder(shape).decode for kind, shape in _BODIES.items()}


def body_of(kind: str, data: bytes) -> Any:
    """The message's body, or None when it cannot be read as what its subject says."""
    try:
        data.decode()
        _check_levels(data)
        return DECODE[kind](data)
    except (ValueError, RecursionError):
        return None


def _check_levels(data: bytes) -> None:
    """ValueError where the JSON is nested deeper than a message may be (docs/wire.md)."""
    # What opens has to close, so that few messages are long enough to be looked through.
    if len(data) <= 2 * LEVELS_MAX or data.count(b"[") + data.count(b"{") <= LEVELS_MAX:
        return
    level, in_text, escaped = 0, False, False
    for byte in data:
        if in_text:
            in_text, escaped = escaped or byte != QUOTE, not escaped and byte == BACKSLASH
        elif byte == QUOTE:
            in_text = True
        elif byte in OPENS:
            level += 1
            if level > LEVELS_MAX:
                raise ValueError("nested too deeply")
        elif byte in CLOSES:
            level -= 1


def cancel_of(data: bytes) -> str | None:
    """The reason of a request to cancel ("" for none); None when the message is no such request."""
    if not data.strip():
        return ""
    try:
        said = _said(data)
    except (ValueError, RecursionError):
        return None
    if not isinstance(said, dict) or (said and not {"reason", "run", "by", "requested_by"} & said.keys()):
        return None
    reason = said.get("reason", "")
    return reason if isinstance(reason, str) else None


def is_name(text: str) -> bool:
    """Whether a principal can be called so."""
    return _TOKEN.fullmatch(text) is not None and not text.isdigit()


def attempt_of(text: str) -> int:
    """The attempt that a token names; 0 for none."""
    if text == "1":
        return 1  # nearly always
    return int(text) if _ATTEMPT.fullmatch(text) else 0


YEAR_1_S, YEAR_10000_S = -62_135_596_800, 253_402_300_800


def time_ns(text: Any) -> int | None:
    """Nanoseconds of an RFC 3339 time, by the calendar's own arithmetic; None when it is none."""
    found = _RFC3339.fullmatch(text) if isinstance(text, str) and text.isascii() else None
    if found is None:
        return None
    seconds = _seconds(text[:19])
    if seconds is None:
        return None
    if found[2]:
        offset_s = int(found[3]) * 3600 + int(found[4]) * 60
        seconds -= offset_s if found[2] == "+" else -offset_s
        if not YEAR_1_S <= seconds < YEAR_10000_S:
            return None
    return seconds * NS + int((found[1] or "").ljust(9, "0"))


@lru_cache(maxsize=1024)
def _seconds(text: str) -> int | None:
    """Seconds since 1970 of `2026-11-21T09:30:00`, as if it were UTC: thousands of stamps share one."""
    year, month, day = int(text[:4]), int(text[5:7]), int(text[8:10])
    hour, minute, second = int(text[11:13]), int(text[14:16]), int(text[17:19])
    if not (1 <= month <= 12 and 1 <= day <= 31 and hour < 24 and minute < 60 and second < 60):
        return None
    # Days since 1970 in the Gregorian calendar, with the year beginning in March.
    years = year - (month <= 2)
    era, of_era = divmod(years, 400)
    of_year = (153 * (month + (-3 if month > 2 else 9)) + 2) // 5 + day - 1
    days = era * 146_097 + of_era * 365 + of_era // 4 - of_era // 100 + of_year - 719_468
    return days * 86_400 + hour * 3600 + minute * 60 + second

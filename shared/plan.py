"""The words of planning: a goal, what may be asked, what is allowed, and the plan that comes of them.

`read_goal` is the one place where a goal is checked, whoever brings it: NATS, CLI or HTTP.
"""

import hashlib
import json
import re
from typing import Annotated, Any, Literal

import msgspec

from shared.errors import Malformed
from shared.subjects import is_token

GOAL_BYTES_MAX = 65_536  # a goal is 2,000 characters and a few parameters; what is bigger belongs into an artifact
GOAL_CHARS_MAX = 2_000
PARAMS_BYTES_MAX = 16_384
TASKS_MAX = 100
HOSTS_MAX = 1_000

PARAMS_DEPTH_MAX = 32
PLAN_BYTES_MAX = 524_288  # half of what one NATS message may hold: a plan over it could never be said
PLAN_STEPS_MAX = 10_000

OnFailure = Literal["stop", "continue"]

# The outermost limits, whatever a directive says: (least, most).
BUDGET_LIMITS: dict[str, tuple[int, int]] = {
    "max_steps": (1, 100),
    "time_budget_s": (1, 86_400),
    "token_budget": (0, 1_000_000),
}
# The same limits where a plan or a directive is read, so that a forged one is no plan.
Token = Annotated[str, msgspec.Meta(pattern=r"\A[A-Za-z0-9_-]{1,64}\Z")]
StepName = Annotated[str, msgspec.Meta(pattern=r"\A[a-z0-9_-]{1,64}\Z")]
Steps = Annotated[int, msgspec.Meta(ge=1, le=100)]
Seconds = Annotated[int, msgspec.Meta(ge=1, le=86_400)]
TokenBudget = Annotated[int, msgspec.Meta(ge=0, le=1_000_000)]
Attempts = Annotated[int, msgspec.Meta(ge=1, le=100)]
Slots = Annotated[int, msgspec.Meta(ge=1, le=1_000_000)]


class Budgets(msgspec.Struct, frozen=True, kw_only=True):
    """What one run may use at most: steps, wall time and tokens."""

    max_steps: Steps = 10
    time_budget_s: Seconds = 3600
    token_budget: TokenBudget = 10_000


class Goal(msgspec.Struct, frozen=True, kw_only=True):
    """What an operator asks for: words, or task names to run in that order; null means the directive's default."""

    goal: str | None = None
    tasks: list[str] | None = None
    directive: str | None = None
    params: dict[str, Any] | None = None
    hosts: list[str] | None = None
    max_steps: int | None = None
    time_budget_s: int | None = None
    token_budget: int | None = None


class TaskSpec(msgspec.Struct, frozen=True, kw_only=True):
    """One entry of the catalogue: what can be asked of a worker, and the words that lead to it."""

    name: Token
    description: str = ""
    keywords: list[str] = []
    timeout_s: Seconds = 600
    max_attempts: Attempts = 3
    uses_tokens: bool = False


class Directive(msgspec.Struct, frozen=True, kw_only=True):
    """What the operator allows. A plan carries the snapshot that governs its run, whatever is changed later."""

    name: str
    version: int = 0
    description: str = ""
    task_list: list[str] = msgspec.field(default_factory=lambda: ["*"])
    max_concurrent_runs: Slots = 500
    on_failure: OnFailure = "stop"
    defaults: Budgets = Budgets()
    maximum: Budgets = Budgets(max_steps=100, time_budget_s=86_400, token_budget=1_000_000)


class Step(msgspec.Struct, frozen=True, kw_only=True):
    """One step of a plan; `why` says for a person why it was chosen, `matched` the goal's words that led to it."""

    id: StepName
    task: Token
    why: str
    kind: Literal["task"] = "task"
    inputs: dict[str, Any] = {}
    needs: list[str] = []
    matched: list[str] = []
    timeout_s: Seconds = 600
    max_attempts: Attempts = 3
    on_failure: OnFailure = "stop"
    uses_tokens: bool = False


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that determines a run; `plan_hash` is the SHA-256 over the canonical JSON of all other fields."""

    steps: list[Step]
    directive: Directive
    budgets: Budgets
    catalogue_version: str
    rules_version: str
    goal: str | None = None
    tasks: list[str] | None = None
    params: dict[str, Any] = {}
    hosts: list[str] | None = None
    notes: list[str] = []
    plan_hash: str = ""


class Problem(msgspec.Struct, frozen=True):
    """One reason why a goal cannot be planned, and the field that it is about."""

    reason: str
    field: str


def canonical(value: Any) -> bytes:
    """Canonical JSON: keys sorted, no white space, UTF-8 unescaped, numbers as Python's `json` writes them."""
    written = msgspec.json.encode(value, order="sorted")
    if _EXPONENT.search(written):  # 1e22 is 1e+22 elsewhere; only then is the slower writer worth its time
        return json.dumps(
            msgspec.to_builtins(value), sort_keys=True, separators=(",", ":"), ensure_ascii=False
        ).encode()
    return written


def plan_hash(plan: Plan) -> str:
    """SHA-256, in hex, over the canonical JSON of the plan without its own `plan_hash`."""
    fields = msgspec.to_builtins(plan)
    del fields["plan_hash"]
    return hash_of(fields)


def hash_of(fields: dict[str, Any]) -> str:
    """SHA-256, in hex, over the canonical JSON of a plan's fields."""
    return hashlib.sha256(canonical(fields)).hexdigest()


_EXPONENT = re.compile(rb"[0-9]e-?[0-9]")
_goal_decoder = msgspec.json.Decoder(Goal)
_AT = re.compile(r" - at `(?:key in )?\$\.?([^`]*)`$")


def malformed(error: Exception) -> Malformed:
    """msgspec's complaint with the field's path taken out of the text and named."""
    text = str(error)
    match = _AT.search(text)
    field = match.group(1) if match else ""
    return Malformed(_AT.sub("", text) or type(error).__name__, field=field)


def read_goal(data: bytes) -> tuple[Goal | None, list[Problem]]:
    """The goal in `data`, or every reason why it is none. Never raises, whatever the bytes are."""
    if len(data) > GOAL_BYTES_MAX:
        return None, [Problem(f"the payload has {len(data)} bytes; a goal has at most {GOAL_BYTES_MAX}", "payload")]
    try:
        data.decode()
    except UnicodeDecodeError as error:
        return None, [Problem(f"the payload is not UTF-8 (byte {error.start})", "payload")]
    try:
        goal = _goal_decoder.decode(data)
    except msgspec.ValidationError as error:
        named = malformed(error)
        return None, [Problem(named.message, named.field or "payload")]
    except (msgspec.DecodeError, RecursionError, ValueError) as error:
        return None, [Problem(f"the payload is not JSON: {str(error)[:200]}", "payload")]
    return (None, problems) if (problems := check_goal(goal)) else (goal, [])


def check_goal(goal: Goal) -> list[Problem]:
    """Every limit of a goal that needs no catalogue and no directive."""
    problems: list[Problem] = []
    text = goal.goal
    if text is not None:
        if not text.strip():
            problems.append(Problem("the goal is blank", "goal"))
        elif len(text) > GOAL_CHARS_MAX:
            problems.append(Problem(f"the goal has {len(text)} characters; at most {GOAL_CHARS_MAX}", "goal"))
        elif not _is_utf8(text):
            problems.append(Problem("the goal holds a lone surrogate, which is not text", "goal"))
    if goal.tasks:
        if len(goal.tasks) > TASKS_MAX:
            problems.append(Problem(f"{len(goal.tasks)} tasks; at most {TASKS_MAX}", "tasks"))
        problems.extend(
            Problem(f"task name {name[:80]!r} must be 1 to 64 letters, digits, '_' or '-'", f"tasks[{i}]")
            for i, name in enumerate(goal.tasks[:TASKS_MAX])
            if not is_token(name)
        )
    elif text is None:
        problems.append(Problem("a goal needs `goal` (words) or `tasks` (task names)", "goal"))
    if goal.directive is not None and not is_token(goal.directive):
        problems.append(Problem(f"directive name {goal.directive[:80]!r} cannot be one", "directive"))
    if goal.hosts is not None:
        if not goal.hosts or len(goal.hosts) > HOSTS_MAX:
            problems.append(Problem(f"hosts needs 1 to {HOSTS_MAX} names, or null for all", "hosts"))
        problems.extend(
            Problem(f"host name {name[:80]!r} must be 1 to 64 letters, digits, '_' or '-'", f"hosts[{i}]")
            for i, name in enumerate(goal.hosts[:HOSTS_MAX])
            if not is_token(name)
        )
    if goal.params and _deeper_than(goal.params, PARAMS_DEPTH_MAX):
        problems.append(Problem(f"params are nested more than {PARAMS_DEPTH_MAX} deep", "params"))
    elif goal.params:
        try:
            size = len(canonical(goal.params))
        except (UnicodeEncodeError, RecursionError):
            problems.append(Problem("params cannot be written as JSON", "params"))
        else:
            if size > PARAMS_BYTES_MAX:
                problems.append(Problem(f"params have {size} bytes; at most {PARAMS_BYTES_MAX}", "params"))
    for field, (least, most) in BUDGET_LIMITS.items():
        value = getattr(goal, field)
        if value is not None and not least <= value <= most:
            problems.append(Problem(f"{field} is {value}; it must be {least} to {most}", field))
    return problems


def _deeper_than(value: Any, most: int) -> bool:
    """Whether lists and objects are nested deeper; without recursion, which has a limit of its own."""
    level = [value]
    for _ in range(most):
        level = [
            inner
            for outer in level
            if isinstance(outer, dict | list)
            for inner in (outer.values() if isinstance(outer, dict) else outer)
        ]
        if not level:
            return False
    return any(isinstance(one, dict | list) for one in level)


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True

"""The words of planning: a goal, what may be asked, what is allowed, and the plan that comes of them.

`read_goal` is the one place where a goal is checked, whoever brings it: NATS, CLI or HTTP.
"""

import hashlib
import json
import re
import unicodedata
from collections.abc import Iterable
from functools import cached_property
from typing import Annotated, Any, Literal

import msgspec

from shared.clock import parse_ns
from shared.errors import UNREADABLE, malformed
from shared.nesting import check_levels
from shared.subjects import is_principal, is_step_id, is_token
from shared.text import is_text

GOAL_BYTES_MAX = 65_536  # a goal is 2,000 characters and a few parameters; what is bigger belongs into an artifact
GOAL_CHARS_MAX = 2_000
PARAMS_BYTES_MAX = 16_384
TASKS_MAX = 100
HOSTS_MAX = 1_000

PARAMS_DEPTH_MAX = 32
PLAN_BYTES_MAX = 524_288  # half of what one NATS message may hold: a plan over it could never be said
PLAN_STEPS_MAX = 10_000

GATE = "run"  # the approval of a whole run stands where a step's would; no step of a plan may be called so

Kind = Literal["task", "decision", "wait", "notify", "approval"]
OnFailure = Literal["stop", "continue", "rollback"]

# The outermost limits, whatever a directive says: (least, most).
BUDGET_LIMITS: dict[str, tuple[int, int]] = {
    "max_steps": (1, 100),
    "time_budget_s": (1, 86_400),
    "token_budget": (0, 1_000_000),
}
# The same limits where a plan or a directive is read, so that a forged one is no plan.
Token = Annotated[str, msgspec.Meta(pattern=r"\A[A-Za-z0-9_-]{1,64}\Z")]
StepName = Annotated[str, msgspec.Meta(pattern=r"\A[a-z0-9_-]{1,64}\Z")]
Steps = Annotated[int, msgspec.Meta(ge=1, le=PLAN_STEPS_MAX)]  # a goal asks for 100 at most; a directive may give more
Seconds = Annotated[int, msgspec.Meta(ge=1, le=86_400)]
TokenBudget = Annotated[int, msgspec.Meta(ge=0, le=1_000_000)]
Attempts = Annotated[int, msgspec.Meta(ge=1, le=100)]
Slots = Annotated[int, msgspec.Meta(ge=1, le=1_000_000)]
# Whole numbers that every store and language can hold exactly.
Count = Annotated[int, msgspec.Meta(ge=0, le=1 << 53)]
Pause = Annotated[int, msgspec.Meta(ge=0, le=86_400)]  # whole: a float has more than one spelling in a hash
Expiry = Annotated[int, msgspec.Meta(ge=1, le=31_536_000)]


class Budgets(msgspec.Struct, frozen=True, kw_only=True):
    """What one run may use at most: steps, wall time and tokens."""

    max_steps: Steps = 10
    time_budget_s: Seconds = 3600
    token_budget: TokenBudget = 10_000


class Artifact(msgspec.Struct, frozen=True, kw_only=True):
    """Bytes in the object store `artifacts`, under `run_<run>/<name>`; `sha256` in hex.

    `from_run` names the run that left them where a later run reuses its step.
    """

    name: str
    sha256: str
    size_bytes: Count
    media_type: str = "application/octet-stream"
    from_run: Count | None = None


class Goal(msgspec.Struct, frozen=True, kw_only=True):
    """What an operator asks for: words, task names to run in that order, a playbook, or a run to repeat.

    Null means the directive's default.
    """

    goal: str | None = None
    tasks: list[str] | None = None
    playbook: str | None = None
    retry_of: int | None = None
    from_step: str | None = None
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
    backoff_s: Pause = 1
    uses_tokens: bool = False
    max_concurrent: Slots | None = None  # steps of this task at a time, in the whole fleet; null: no limit


class Directive(msgspec.Struct, frozen=True, kw_only=True):
    """What the operator allows. A plan carries the snapshot that governs its run, whatever is changed later.

    `approval_required`: true asks once, before the run; a list of task or step names asks before each of those steps.
    `approvers` are principals; an empty list lets anybody answer.
    """

    name: str
    version: int = 0
    description: str = ""
    task_list: list[str] = msgspec.field(default_factory=lambda: ["*"])
    approval_required: bool | list[str] = False
    approvers: list[str] = []
    approvals_needed: Attempts = 1
    requester_may_approve: bool = False
    approval_expires_s: Expiry = 86_400
    max_concurrent_runs: Slots = 500
    max_parallel_steps: Slots = 100
    on_failure: OnFailure = "stop"
    hosts: list[str] | None = None  # the only ones that goals may name; null: every one
    channels: list[str] = []  # where a notify step's message is for
    defaults: Budgets = Budgets()
    maximum: Budgets = Budgets(max_steps=100, time_budget_s=86_400, token_budget=1_000_000)


class Retry(msgspec.Struct, frozen=True, kw_only=True):
    """What lies between two tries of a step: a rest of `backoff_s`, doubled each time, capped.

    `errors`: only failures of these types are tried again; null: all that say they are retryable.
    """

    backoff_s: Pause = 0
    backoff_s_max: Pause = 60
    errors: list[str] | None = None

    def pause_s(self, attempt: int) -> int:
        """The rest after the given attempt (from 1)."""
        return min(self.backoff_s << min(attempt - 1, 32), self.backoff_s_max)

    def covers(self, error: str) -> bool:
        """Whether a failure of this type may be tried again."""
        return self.errors is None or error in self.errors


class Step(msgspec.Struct, frozen=True, kw_only=True):
    """One step of a plan; `why` says for a person why it was chosen, `matched` the goal's words that led to it.

    Only a step of kind `task` has a task, and a worker; the executor itself performs the other kinds. `when` is a
    condition (shared/conditions.py) that is asked once the needs are done. A step that another one names as its
    `compensation` runs only when a failure rolls the run back.
    """

    id: StepName
    why: str
    kind: Kind = "task"
    task: Token | None = None
    inputs: dict[str, Any] = {}
    needs: list[str] = []
    when: str | None = None
    matched: list[str] = []
    host: Token | None = None
    approval: bool = False
    timeout_s: Seconds = 600
    max_attempts: Attempts = 3
    retry: Retry = Retry()
    on_failure: OnFailure = "stop"
    compensation: StepName | None = None
    uses_tokens: bool = False

    @property
    def performs(self) -> str:
        """What its dispatch asks for: the task, or the kind of what the executor does itself."""
        return self.task or self.kind


WAIT_S_MAX = 2_592_000  # a month; the run's time budget ends it long before


def wait_problem(inputs: dict[str, Any]) -> str:
    """Why these inputs of a wait step say no time; "" when they do: `seconds`, or `until` as RFC 3339."""
    seconds, until = inputs.get("seconds"), inputs.get("until")
    if (seconds is None) == (until is None):
        return "a wait step needs `seconds` or `until`"
    if until is None:
        if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not 0 <= seconds <= WAIT_S_MAX:
            return f"seconds is {seconds!r}; it must be a number from 0 to {WAIT_S_MAX}"
        return ""
    try:
        parse_ns(until if isinstance(until, str) else "")
    except (ValueError, OverflowError):
        return f"until is {until!r}; it must be an RFC 3339 time"
    return ""


class Reused(msgspec.Struct, frozen=True, kw_only=True):
    """What a step of the run that is repeated has left: it stands for the step in the new run."""

    outputs: dict[str, Any] = {}
    artifacts: list[Artifact] = []
    host: str | None = None


class Plan(msgspec.Struct, frozen=True, kw_only=True, dict=True):
    """Everything that determines a run; `plan_hash` is the SHA-256 over the canonical JSON of all other fields."""

    steps: list[Step]
    directive: Directive
    budgets: Budgets
    catalogue_version: str
    rules_version: str
    goal: str | None = None
    tasks: list[str] | None = None
    playbook: str | None = None
    playbook_version: str | None = None
    retry_of: Count | None = None
    from_step: str | None = None
    reused: dict[str, Reused] = {}
    params: dict[str, Any] = {}
    hosts: list[str] | None = None
    notes: list[str] = []
    plan_hash: str = ""

    @cached_property
    def by_id(self) -> dict[str, Step]:
        return {step.id: step for step in self.steps}

    @cached_property
    def compensations(self) -> frozenset[str]:
        """The steps that run only when the run is rolled back."""
        return frozenset(step.compensation for step in self.steps if step.compensation)

    @cached_property
    def is_plain(self) -> bool:
        """Whether no limit can be met and nobody is asked: every step may be dispatched when its needs are done."""
        limits = (self.budgets.max_steps, self.directive.max_parallel_steps)
        return len(self.steps) <= min(limits) and not any(
            step.approval or step.uses_tokens or step.compensation or step.when for step in self.steps
        )

    # What follows is for `run_tally`: a step is named by its place in the plan, a set of steps is an int.

    @cached_property
    def place_of(self) -> dict[str, int]:
        return {step.id: place for place, step in enumerate(self.steps)}

    @cached_property
    def needs_of(self) -> list[int]:
        """By place: the steps that the one there needs."""
        return [self._set(step.needs) for step in self.steps]

    @cached_property
    def without_needs(self) -> int:
        """The steps that wait for no other."""
        return sum(1 << place for place, needs in enumerate(self.needs_of) if not needs)

    @cached_property
    def needed_by(self) -> list[list[int]]:
        """By place: the places of those that need the one there."""
        found: list[list[int]] = [[] for _ in self.steps]
        for place, step in enumerate(self.steps):
            for need in set(step.needs):
                found[self.place_of[need]].append(place)
        return found

    @cached_property
    def undoing(self) -> int:
        """`compensations`, as a set of places."""
        return self._set(self.compensations)

    @cached_property
    def for_workers(self) -> int:
        return self._set(step.id for step in self.steps if step.task)

    @cached_property
    def using_tokens(self) -> int:
        return self._set(step.id for step in self.steps if step.uses_tokens)

    def _set(self, names: Iterable[str]) -> int:
        bits = 0
        for name in names:
            bits |= 1 << self.place_of[name]
        return bits

    @property
    def is_gated(self) -> bool:
        """Whether somebody has to approve the run before it starts."""
        return self.directive.approval_required is True


class Problem(msgspec.Struct, frozen=True):
    """One reason why a goal cannot be planned, and the field that it is about."""

    reason: str
    field: str


def directive_problems(directive: Directive) -> list[Problem]:
    """What no directive can mean, by its fields; whoever sets one and whoever plans under it asks here."""
    asked = directive.approval_required
    problems: list[Problem] = []
    for field, names, is_name in (
        ("approval_required", [] if isinstance(asked, bool) else asked, is_token),
        ("approvers", directive.approvers, is_principal),
        ("hosts", directive.hosts or [], is_token),
        ("channels", directive.channels, is_token),
    ):
        hint = ", not all digits" if is_name is is_principal else ""
        problems += [
            Problem(f"{name[:80]!r} must be 1 to 64 letters, digits, '_' or '-'{hint}", field)
            for name in names
            if not is_name(name)
        ]
    if directive.hosts is not None and not directive.hosts:
        problems.append(Problem("no host is left; null stands for every one", "hosts"))
    if why := approval_problem(directive):
        problems.append(Problem(why, "approvals_needed"))
    return problems


def approval_problem(directive: Directive, requester: str = "") -> str:
    """Why nobody could give the approvals that are needed; "" when somebody can. An empty list lets anybody answer."""
    named, needed = set(directive.approvers), directive.approvals_needed
    if not named:
        return ""
    if needed > len(named):
        return f"{needed} approvals are needed, and {len(named)} may approve ({', '.join(sorted(named))})"
    left = named if directive.requester_may_approve else named - {requester}
    if needed > len(left):
        return f"{needed} approvals are needed; besides {requester}, who may not approve their own, {len(left)} may"
    return ""


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
_UNSEEN = frozenset(("Zs", "Zl", "Zp", "Cc", "Cf"))


def read_goal(data: bytes) -> tuple[Goal | None, list[Problem]]:
    """The goal in `data`, or every reason why it is none. Never raises, whatever the bytes are."""
    if len(data) > GOAL_BYTES_MAX:
        return None, [Problem(f"the payload has {len(data)} bytes; a goal has at most {GOAL_BYTES_MAX}", "payload")]
    try:
        data.decode()
    except UnicodeDecodeError as error:
        return None, [Problem(f"the payload is not UTF-8 (byte {error.start})", "payload")]
    try:
        check_levels(data)
        goal = _goal_decoder.decode(data)
    except msgspec.ValidationError as error:
        named = malformed(error)
        return None, [Problem(named.message, named.field or "payload")]
    except UNREADABLE as error:
        return None, [Problem(f"the payload is not JSON: {str(error)[:200]}", "payload")]
    return (None, problems) if (problems := check_goal(goal)) else (goal, [])


def check_goal(goal: Goal) -> list[Problem]:
    """Every limit of a goal that needs no catalogue and no directive."""
    problems: list[Problem] = []
    text = goal.goal
    if text is not None:
        if not _says_something(text):
            problems.append(Problem("the goal is blank", "goal"))
        elif len(text) > GOAL_CHARS_MAX:
            problems.append(Problem(f"the goal has {len(text)} characters; at most {GOAL_CHARS_MAX}", "goal"))
        elif not is_text(text):
            problems.append(Problem("the goal holds a lone surrogate, which is not text", "goal"))
    if goal.tasks:
        if len(goal.tasks) > TASKS_MAX:
            problems.append(Problem(f"{len(goal.tasks)} tasks; at most {TASKS_MAX}", "tasks"))
        problems.extend(
            Problem(f"task name {name[:80]!r} must be 1 to 64 letters, digits, '_' or '-'", f"tasks[{i}]")
            for i, name in enumerate(goal.tasks[:TASKS_MAX])
            if not is_token(name)
        )
    elif text is None and goal.playbook is None and goal.retry_of is None:
        needed = "a goal needs `goal` (words), `tasks` (task names), `playbook` or `retry_of`"
        problems.append(Problem(needed, "goal"))
    problems += _check_what(goal)
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


def _says_something(text: str) -> bool:
    """Whether there is a character to be seen: not spaces alone, nor what has no width, nor controls."""
    return any(unicodedata.category(one) not in _UNSEEN for one in text)


def _check_what(goal: Goal) -> list[Problem]:
    """What is to be run is said in one way: tasks, a playbook, or a run to repeat."""
    problems: list[Problem] = []
    ways = [name for name in ("tasks", "playbook", "retry_of") if getattr(goal, name)]
    if len(ways) > 1:
        problems.append(Problem(f"a goal names one of {' and '.join(ways)}, not both", ways[1]))
    if goal.playbook is not None and not is_token(goal.playbook):
        problems.append(Problem(f"playbook name {goal.playbook[:80]!r} cannot be one", "playbook"))
    if goal.retry_of is not None and not 0 < goal.retry_of < 1 << 62:
        problems.append(Problem(f"retry_of is {goal.retry_of}; it must be the number of a run", "retry_of"))
    if goal.from_step is not None and goal.retry_of is None:
        problems.append(Problem("from_step needs retry_of, the run that has the step", "from_step"))
    elif goal.from_step is not None and not is_step_id(goal.from_step):
        problems.append(Problem(f"step {goal.from_step[:80]!r} cannot be one", "from_step"))
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

"""Playbooks: plans as data, with parameters. A TOML text is read, its parameters get values, its steps are filled in.

Theory of operation. A playbook keeps its steps as they stand in the TOML: what a step is can be said only when
`${params.NAME}` has been replaced, as a text that is one placeholder takes the value with its type. So `read_playbook`
checks what does not depend on values, `resolve` gives every parameter its value, and `expand` makes the steps. Each
tells all the reasons at once, with the field that each is about (`params.NAME`, `steps.ID.WHAT`). What the steps are
together (cycles, unknown needs, conditions) is the planner's to check.

Conditions and the messages of `notify` steps are not filled in: they are evaluated while the run goes on and name
`params.NAME` themselves, so that no parameter's text is ever read as an expression.
"""

import hashlib
import math
import re
import tomllib
from datetime import date, datetime, time
from functools import cache
from typing import Annotated, Any, Literal

import msgspec

from shared.errors import UNREADABLE, malformed
from shared.plan import Attempts, Kind, OnFailure, Pause, Problem, Seconds, StepName, Token, canonical

PLAYBOOK_BYTES_MAX = 65_536
DEPTH_MAX = 16
WORDS_MAX = 100

ParamType = Literal["string", "integer", "number", "boolean", "list"]
Severity = Literal["info", "warning", "error", "critical"]
Message = Annotated[str, msgspec.Meta(min_length=1, max_length=2_000)]

_PYTHON: dict[str, tuple[type, ...]] = {
    "string": (str,),
    "integer": (int,),
    "number": (int, float),
    "boolean": (bool,),
    "list": (list,),
}
_A = {"string": "a string", "integer": "an integer", "number": "a number", "boolean": "a boolean", "list": "a list"}
_NAME = re.compile(r"[a-z_][a-z0-9_]{0,63}")  # what a condition can write as `params.NAME`
_PLACE = re.compile(r"\$\{\s*params\.([A-Za-z0-9_-]*)\s*\}")
_NO_PLACE = re.compile(r"\$\{\s*(?:params|steps|decisions)\b")
_ASKED = re.compile(r"\$\{([^{}]{1,200})\}")
_PARAM_IN_CONDITION = re.compile(r"(?<![\w.\"'])params\.([A-Za-z_][A-Za-z0-9_]*)")


class Param(msgspec.Struct, frozen=True, kw_only=True):
    """What a goal may say to a playbook. `min` and `max` limit a number, or the length of a text or a list."""

    type: ParamType = "string"
    default: Any = None
    required: bool = False
    min: int | float | None = None
    max: int | float | None = None
    choices: list[Any] | None = None
    description: str = ""


class RetrySpec(msgspec.Struct, frozen=True, kw_only=True):
    """A step's `retry`; null: as the task's entry in the catalogue says."""

    max_attempts: Attempts | None = None
    backoff_s: Pause | None = None
    backoff_s_max: Pause | None = None
    errors: list[str] | None = None


class PlaybookStep(msgspec.Struct, frozen=True, kw_only=True):
    """A step with its parameters filled in; null: as the playbook, the catalogue or the directive says."""

    id: StepName
    kind: Kind = "task"
    task: Token | None = None
    needs: list[StepName] = []
    when: str | None = None
    condition: str | None = None
    message: Message | None = None
    severity: Severity | None = None
    seconds: int | float | None = None
    until: str | None = None
    inputs: dict[str, Any] = {}
    host: Token | None = None
    hosts: list[Token] | None = None
    approval: bool = False
    timeout_s: Seconds | None = None
    retry: RetrySpec = RetrySpec()
    on_failure: OnFailure | None = None
    compensation: StepName | None = None
    why: str = ""


class Playbook(msgspec.Struct, frozen=True, kw_only=True):
    """A named plan template. `words`: it is chosen for a goal that affirms every word of one of these groups."""

    name: Token
    description: str = ""
    params: dict[str, Param] = {}
    words: list[list[str]] = []
    on_failure: OnFailure | None = None
    steps: list[dict[str, Any]] = []

    @property
    def version(self) -> str:
        """Twelve hex digits of the SHA-256 over all of it: equal playbooks have equal versions, anywhere."""
        return hashlib.sha256(canonical(self)).hexdigest()[:12]


# Which kinds of step a field means something for; a field that is not here fits every kind.
_OF_KIND: dict[str, tuple[Kind, ...]] = {
    "task": ("task",),
    "condition": ("decision",),
    "message": ("notify", "approval"),
    "severity": ("notify",),
    "seconds": ("wait",),
    "until": ("wait",),
    "inputs": ("task",),
    "host": ("task",),
    "hosts": ("task",),
    "timeout_s": ("task",),
    "retry": ("task",),
    "compensation": ("task",),
}


def read_playbook(data: bytes, name: str) -> tuple[Playbook | None, list[Problem]]:
    """The playbook in this TOML, called `name`, and what is wrong with it. None when it is no table of its fields."""
    if len(data) > PLAYBOOK_BYTES_MAX:
        return None, [Problem(f"the playbook has {len(data)} bytes; at most {PLAYBOOK_BYTES_MAX}", "toml")]
    try:
        raw = tomllib.loads(data.decode())
    except UnicodeDecodeError as error:
        return None, [Problem(f"the playbook is not UTF-8 (byte {error.start})", "toml")]
    except UNREADABLE as error:  # TOML that is none, or a number that Python does not read
        return None, [Problem(f"the playbook is not TOML: {str(error)[:200]}", "toml")]
    problems: list[Problem] = []
    raw = _plain(raw, "", problems, DEPTH_MAX)
    raw["name"] = name
    params = raw.pop("params", {})
    fields = _converted(raw, Playbook, "", problems)
    if isinstance(params, dict):
        fields["params"] = {
            key: Param(**_converted(value, Param, f"params.{key}", problems)) for key, value in params.items()
        }
    else:
        problems.append(Problem("expected a table for each parameter", "params"))
    if "name" not in fields:
        return None, problems
    playbook = Playbook(**fields)
    known = {problem.field.split("[")[0] for problem in problems}  # unreadable steps are not also missing ones
    return playbook, problems + [one for one in definition_problems(playbook) if one.field not in known]


def unmeant(text: bytes, name: str) -> list[Problem]:
    """What readable TOML says that means nothing here: a reader lets it pass, whoever writes it is told."""
    raw = tomllib.loads(text.decode())
    found = _unknown(raw, Playbook, "")
    if raw.get("name", name) != name:
        found.append(Problem(f"it calls itself {_short(raw['name'])}, and is to be {name}", "name"))
    params, steps = raw.get("params"), raw.get("steps")
    for key, value in params.items() if isinstance(params, dict) else ():
        found += _unknown(value, Param, f"params.{key}")
    for number, step in enumerate(steps if isinstance(steps, list) else ()):
        where = f"steps.{_label(step, number)}" if isinstance(step, dict) else ""
        found += _unknown(step, PlaybookStep, where)
        found += _unknown(step.get("retry"), RetrySpec, f"{where}.retry") if isinstance(step, dict) else []
    return found


def _unknown(raw: Any, struct: type[msgspec.Struct], where: str) -> list[Problem]:
    known = struct.__struct_fields__
    return [
        Problem(f"there is no such field; known: {', '.join(known)}", _path(where, key))
        for key in (raw if isinstance(raw, dict) else ())
        if key not in known
    ]


def definition_problems(playbook: Playbook) -> list[Problem]:
    """What is wrong with the playbook itself, whatever its parameters are."""
    problems = [problem for name, param in playbook.params.items() for problem in _param_problems(name, param)]
    if sum(map(len, playbook.words)) > WORDS_MAX:
        problems.append(Problem(f"there are more than {WORDS_MAX} words", "words"))
    for i, group in enumerate(playbook.words):
        if not group:
            problems.append(Problem("a group without words would be chosen for every goal", f"words[{i}]"))
        problems += [Problem(f"{word[:80]!r} is not one word", f"words[{i}]") for word in group if not word.isalnum()]
    if not playbook.steps:
        problems.append(Problem("a playbook needs steps", "steps"))
    for number, raw in enumerate(playbook.steps):
        for key, value in raw.items():
            where = f"steps.{_label(raw, number)}.{key}"
            problems += _placeholder_problems(playbook, raw.get("kind", "task"), key, value, where)
    return problems


def _param_problems(name: str, param: Param) -> list[Problem]:
    where = f"params.{name}"
    problems: list[Problem] = []
    if not _NAME.fullmatch(name):
        problems.append(Problem("a parameter's name is 1 to 64 of a-z, 0-9 and '_', no digit first", where))
    if param.type == "boolean" and (param.min is not None or param.max is not None):
        problems.append(Problem("a boolean has no min and no max", where))
    if param.min is not None and param.max is not None and param.min > param.max:
        problems.append(Problem(f"min {param.min} is over max {param.max}", where))
    if param.choices is not None and not param.choices:
        problems.append(Problem("no choice is left", f"{where}.choices"))
    if param.type != "list":
        plain = msgspec.structs.replace(param, choices=None)
        whys = [why for choice in param.choices or () if (why := value_problem(choice, plain))]
        problems += [Problem(f"a choice {why}", f"{where}.choices") for why in whys]
    if param.default is not None and param.required:
        problems.append(Problem("it is required, so its default means nothing", f"{where}.default"))
    elif param.default is not None and (why := value_problem(param.default, param)):
        problems.append(Problem(f"the default {why}", f"{where}.default"))
    return problems


def _placeholder_problems(playbook: Playbook, kind: Any, key: str, value: Any, where: str) -> list[Problem]:
    known = ", ".join(playbook.params) or "none"
    texts = list(_texts(value))
    if key in ("when", "condition"):
        problems = [
            Problem("a condition names params.NAME itself, without ${…}", where) for text in texts if "${" in text
        ]
        asked = texts
    elif key == "message" and kind == "notify":
        problems, asked = [], [found for text in texts for found in _ASKED.findall(text)]
    else:
        problems = [
            Problem("only ${params.NAME} can stand here; conditions and a notify's message may name more", where)
            for text in texts
            if _NO_PLACE.search(_PLACE.sub("", text))
        ]
        names = [name for text in texts for name in _PLACE.findall(text)]
        return problems + [
            Problem(f"there is no parameter {name!r}; known: {known}", where)
            for name in dict.fromkeys(names)
            if name not in playbook.params
        ]
    names = [name for text in asked for name in _PARAM_IN_CONDITION.findall(text)]
    return problems + [
        Problem(f"there is no parameter {name!r}; known: {known}", where)
        for name in dict.fromkeys(names)
        if name not in playbook.params
    ]


def _texts(value: Any) -> list[str]:
    if isinstance(value, str):
        return [value]
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return [text for one in inner for text in _texts(one)]


def value_problem(value: Any, param: Param) -> str:
    """Why a parameter cannot have this value; "" when it can."""
    if not _is(value, param.type):
        return f"is {_short(value)}; it must be {_A[param.type]}"
    if isinstance(value, float) and not math.isfinite(value):
        return f"is {value}; it must be finite"
    size = len(value) if isinstance(value, str | list) else value
    of = " characters long" if isinstance(value, str) else " items long" if isinstance(value, list) else ""
    said = size if of else _short(value)
    if param.min is not None and size < param.min:
        return f"is {said}{of}; at least {param.min}"
    if param.max is not None and size > param.max:
        return f"is {said}{of}; at most {param.max}"
    if param.choices is not None:
        for one in value if isinstance(value, list) else [value]:
            if not any(one == choice and type(one) is type(choice) for choice in param.choices):
                return f"is {_short(value)}; {_short(one)} is none of {_short(param.choices)}"
    return ""


def _is(value: Any, kind: str) -> bool:
    return isinstance(value, _PYTHON[kind]) and (kind == "boolean" or not isinstance(value, bool))


def _short(value: Any) -> str:
    text = msgspec.json.encode(value).decode()
    return text if len(text) <= 80 else f"{text[:80]}…"


def resolve(playbook: Playbook, given: dict[str, Any]) -> tuple[dict[str, Any], list[Problem]]:
    """Every parameter with its value: the goal's, or else the default, or else null."""
    known = ", ".join(playbook.params) or "none"
    problems = [
        Problem(f"playbook {playbook.name} has no parameter {name[:80]!r}; known: {known}", f"params.{name[:80]}")
        for name in given
        if name not in playbook.params
    ]
    values: dict[str, Any] = {}
    for name, param in playbook.params.items():
        value = given.get(name)
        if value is None and param.required:
            what = f" ({param.description})" if param.description else ""
            problems.append(Problem(f"playbook {playbook.name} needs it{what}: {_A[param.type]}", f"params.{name}"))
        elif value is not None and (why := value_problem(value, param)):
            problems.append(Problem(f"{name} {why}", f"params.{name}"))
        values[name] = param.default if value is None else value
    return values, problems


def expand(playbook: Playbook, params: dict[str, Any]) -> tuple[list[PlaybookStep], list[Problem]]:
    """The steps with these values filled in, in the order of the TOML."""
    steps: list[PlaybookStep] = []
    problems: list[Problem] = []
    for number, raw in enumerate(playbook.steps):
        where = f"steps.{_label(raw, number)}"
        filled = {}
        for key, value in raw.items():
            if _is_asked(key, raw):
                filled[key] = value.strip() if isinstance(value, str) else value
            elif (value := _filled(value, params)) is not _ABSENT:
                filled[key] = value
        fields = _converted(filled, PlaybookStep, where, problems)
        if "id" in fields:
            step = PlaybookStep(**fields)
            problems += _misfits(step, filled, where)
            steps.append(step)
    return steps, problems


def _is_asked(field: str, raw: dict[str, Any]) -> bool:
    """Whether this field of a step is evaluated while the run goes on, and so is not filled in."""
    return field in ("when", "condition") or (field == "message" and raw.get("kind") == "notify")


def _misfits(step: PlaybookStep, said: dict[str, Any], where: str) -> list[Problem]:
    """Fields that mean nothing for a step of this kind, and those that it cannot do without."""
    problems = [
        Problem(f"a {step.kind} step has no {field}", f"{where}.{field}")
        for field, kinds in _OF_KIND.items()
        if field in said and step.kind not in kinds
    ]
    needed = {"task": "task", "decision": "condition", "notify": "message"}.get(step.kind)
    if needed and needed not in said:
        problems.append(Problem(f"a {step.kind} step needs `{needed}`", f"{where}.{needed}"))
    rest = step.retry
    if rest.backoff_s is not None and rest.backoff_s_max is not None and rest.backoff_s > rest.backoff_s_max:
        problems.append(
            Problem(f"backoff_s {rest.backoff_s} is over backoff_s_max {rest.backoff_s_max}", f"{where}.retry")
        )
    return problems


_ABSENT: Any = object()


def _filled(value: Any, params: dict[str, Any]) -> Any:
    """The value with its placeholders replaced; what is one placeholder of a parameter without a value is absent."""
    if isinstance(value, str):
        if whole := _PLACE.fullmatch(value):
            given = params.get(whole[1])
            return _ABSENT if given is None else given
        return _PLACE.sub(lambda found: _spoken(params.get(found[1])), value)
    if isinstance(value, list):
        return [one for inner in value if (one := _filled(inner, params)) is not _ABSENT]
    if isinstance(value, dict):
        return {key: one for key, inner in value.items() if (one := _filled(inner, params)) is not _ABSENT}
    return value


def _spoken(value: Any) -> str:
    """A value within a text."""
    if isinstance(value, bool):
        return str(value).lower()
    return "" if value is None else ", ".join(map(_spoken, value)) if isinstance(value, list) else str(value)


def samples(playbook: Playbook) -> tuple[dict[str, Any], set[str]]:
    """Values that the parameters may have, to try the steps with, and which of them are made up."""
    values: dict[str, Any] = {}
    for name, param in playbook.params.items():
        least = param.min if param.min is not None and math.isfinite(param.min) else None
        made: Any = {
            "string": "x" * min(64, max(1, int(least or 1))),
            "integer": math.ceil(least if least is not None else min(1, param.max if param.max is not None else 1)),
            "number": least if least is not None else min(1, param.max if param.max is not None else 1),
            "boolean": True,
            "list": ["x"],
        }[param.type]
        if param.choices:
            made = [param.choices[0]] if param.type == "list" else param.choices[0]
        values[name] = made if param.default is None else param.default
    return values, {name for name, param in playbook.params.items() if param.default is None}


def rests_on(playbook: Playbook, field: str, params: set[str]) -> bool:
    """Whether what stands in this field (`steps.ID.WHAT…`) is made of one of these parameters."""
    for number, raw in enumerate(playbook.steps):
        where = f"steps.{_label(raw, number)}."
        if field.startswith(where):
            key = field.removeprefix(where).split(".")[0].split("[")[0]
            value = None if _is_asked(key, raw) else raw.get(key)
            return any(name in params for text in _texts(value) for name in _PLACE.findall(text))
    return False


def _label(raw: dict[str, Any], number: int) -> str:
    """How problems name a step: by its id, or by its place from 1 where it has none."""
    given = raw.get("id")
    return given[:64] if isinstance(given, str) and given else str(number + 1)


def _path(where: str, key: str) -> str:
    return f"{where}.{key}" if where else key


_fields = cache(msgspec.structs.fields)  # it reads annotations anew each time, which takes longer than all the rest


def _converted(raw: Any, struct: type[msgspec.Struct], where: str, problems: list[Problem]) -> dict[str, Any]:
    """The fields of `struct` that `raw` has and that are of their types; every other one is a problem."""
    if not isinstance(raw, dict):
        problems.append(Problem("expected a table", where))
        return {}
    found: dict[str, Any] = {}
    for field in _fields(struct):
        if field.name not in raw:
            if field.required:
                problems.append(Problem("it is missing", _path(where, field.name)))
            continue
        try:
            found[field.name] = msgspec.convert(raw[field.name], field.type)
        except msgspec.ValidationError as error:
            told = malformed(error)
            inner = "" if not told.field else told.field if told.field.startswith("[") else f".{told.field}"
            problems.append(Problem(told.message, _path(where, field.name) + inner))
    return found


def _plain(value: Any, where: str, problems: list[Problem], depth: int) -> Any:
    """TOML as JSON data: times as RFC 3339 text; what JSON cannot hold is a problem."""
    if depth == 0 or (isinstance(value, float) and not math.isfinite(value)):
        problems.append(Problem("it is nested too deep" if depth == 0 else f"it is {value}, no number in JSON", where))
        return None
    if isinstance(value, dict):
        return {key: _plain(inner, _path(where, key), problems, depth - 1) for key, inner in value.items()}
    if isinstance(value, list):
        return [_plain(inner, f"{where}[{i}]", problems, depth - 1) for i, inner in enumerate(value)]
    if isinstance(value, datetime | date | time):
        return value.isoformat()
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) > 1 << 53:
        bits = value.bit_length()  # to write out thousands of digits is an error of its own
        problems.append(Problem(f"it has {bits} bits, which is beyond what every reader can hold exactly", where))
        return 0
    return value

"""Conditions: the expressions of `when` and of `decision` steps, in CEL, the Common Expression Language.

The library evaluates; this module decides what may be asked of it. It reads the library's syntax tree (a
`cel.expr.CheckedExpr`, a published protobuf) to learn which values an expression looks at and how often, gives the
library those values and no others, and refuses beforehand whatever would be long. A limit in seconds would not do: two
executors that replay the same event must come to the same answer, so everything here depends on text and data alone.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache, lru_cache
from typing import Any

CONDITION_CHARS_MAX = 1_000
ROOTS = ("params", "steps", "decisions")
NESTING_MAX = 2  # a macro in a macro: "some item of one list is in another"; deeper is a program
PATTERN_CHARS_MAX = 100  # of a regular expression; the library compiles it anew at each call
LOOKED_AT_MAX = 250_000  # values, four bytes of text counting as one: the outputs (64 KiB) of fifteen steps
WORK_MAX = 20_000_000  # values touched; the slowest touch measured is 33 ns, so 0.7 s
ITERATIONS_MAX = 9_000  # the library stops at 10,000; in a map, which it shuffles, that would be chance
RESULT_VALUES_MAX = 10_000
DEPTH_MAX = 64  # of the data: the library converts by recursion

_STEP_ID = re.compile(r"[a-z0-9_-]{1,64}")
_INT_MIN, _INT_MAX = -(2**63), 2**63 - 1
_PATTERN_WORK = 5_000  # compiling a pattern of PATTERN_CHARS_MAX, in values touched
_LOGIC = frozenset(("_&&_", "_||_", "!_", "_?_:_", "-_", "_[_]", "@not_strictly_false"))
_COMPARISONS = frozenset(("_==_", "_!=_", "_<_", "_<=_", "_>_", "_>=_", "startsWith", "endsWith"))
_ARITHMETIC = frozenset(("_+_", "_-_", "_*_", "_/_", "_%_"))
# `map` multiplies data; the parts of a timestamp are read from the host's own time zone files.
_WITHOUT = """
stdlib:
  exclude_macros: ["map"]
  exclude_functions:
""" + "".join(
    f'    - name: "get{part}"\n'
    for part in "Date DayOfMonth DayOfWeek DayOfYear FullYear Hours Milliseconds Minutes Month Seconds".split()
)

Node = tuple[Any, ...]
Path = tuple[str, ...]


class ConditionError(Exception):
    """A condition that cannot be evaluated; its text is the whole message for a person."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message


def check(text: str) -> str:
    """Why `text` is no condition; "" when it is one. Never raises."""
    read = _read(text)
    return read if isinstance(read, str) else ""


def references(text: str) -> set[str]:
    """The ids of the steps and decisions that the expression names; none when it is no condition."""
    read = _read(text)
    if isinstance(read, str):
        return set()
    named = {path[1] for path in read.paths if path[0] in ("steps", "decisions") and len(path) > 1}
    return {name for name in named if _STEP_ID.fullmatch(name)}


def evaluate(text: str, context: dict[str, Any]) -> Any:
    """The value of the expression as JSON data; `context` maps `params`, `steps` and `decisions` to JSON data.

    Raises ConditionError, and nothing else.
    """
    read = _read(text)
    if isinstance(read, str):
        raise ConditionError(read)
    if not isinstance(context, dict):
        raise ConditionError("the data of a condition must be an object")
    seen = _Seen()
    wanted = _tree_of(read.paths)
    data = {root: _narrowed(context.get(root, {}), wanted.get(root, {}), root, seen) for root in ROOTS}
    _refuse_if_long(read, seen, len(text))
    try:
        return _json(read.program.eval(data=data), [0])
    except ConditionError:
        raise
    except Exception as error:  # the library's errors have no type of their own; the answer to each is the same
        raise ConditionError(_plainly(str(error))) from error


# What an expression is, read once for each text.


@dataclass
class _Read:
    """A condition that may be evaluated: the program, what it looks at, and how often it does what."""

    program: Any
    paths: set[Path] = field(default_factory=set)
    light: list[int] = field(default_factory=lambda: [0] * (NESTING_MAX + 1))  # by depth of macros: of fixed cost
    heavy: list[int] = field(default_factory=lambda: [0] * (NESTING_MAX + 1))  # may touch everything looked at
    patterns: list[int] = field(default_factory=lambda: [0] * (NESTING_MAX + 1))
    loops: list[int] = field(default_factory=lambda: [0] * (NESTING_MAX + 1))
    joins: int = 0  # additions that may join texts or lists
    longest: int = 0  # of the lists written in the expression
    gathers: bool = False  # a list or map of more than one computed value


class _RefusedError(Exception):
    """Why the expression is refused, on the way out of the tree."""


def _read(text: str) -> _Read | str:
    if not text.strip():
        return "the condition is blank"
    if len(text) > CONDITION_CHARS_MAX:
        return f"the condition has {len(text)} characters; at most {CONDITION_CHARS_MAX}"
    try:
        text.encode()
    except UnicodeEncodeError:
        return "the condition holds a lone surrogate, which is not text"
    return _compiled(text)


@lru_cache(maxsize=256)
def _compiled(text: str) -> _Read | str:
    try:
        program = _environment().compile(text)
        read = _Read(program)
        message = _field(program.serialize(), 2)  # the message of a google.protobuf.Any
        _walk(_node(_field(message, 4)), 0, frozenset(), read)
    except _RefusedError as error:
        return str(error)
    except Exception as error:  # the library's errors have no type of their own; the answer to each is the same
        return _plainly(str(error))
    if read.gathers and any(read.loops):
        return "beside exists, all and filter a list holds constants only, and a map is not written at all"
    return read


@cache
def _environment() -> Any:
    """The language; imported here, because most programs that read a plan evaluate none of it."""
    from cel_expr_python import cel

    return cel.NewEnv(config=cel.NewEnvConfigFromYaml(_WITHOUT), variables=dict.fromkeys(ROOTS, cel.Type.DYN))


def _fields(data: bytes) -> Iterator[tuple[int, Any]]:
    """Number and value of each field of a protobuf message."""
    at = 0

    def varint() -> int:
        nonlocal at
        value = shift = 0
        while True:
            byte = data[at]
            at += 1
            value |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return value

    while at < len(data):
        number, kind = divmod(varint(), 8)
        if kind == 0:
            yield number, varint()
            continue
        size = varint() if kind == 2 else {1: 8, 5: 4}[kind]
        yield number, data[at : at + size]
        at += size


def _field(data: bytes, wanted: int) -> Any:
    return next(value for number, value in _fields(data) if number == wanted)


def _node(data: bytes) -> Node:
    """A `cel.expr.Expr` as a tuple that begins with what it is."""
    number, inner = next((number, value) for number, value in _fields(data) if number != 2)
    parts = list(_fields(inner))
    of = dict(parts)
    match number:
        case 3:
            kind, value = parts[0]
            return ("const", value.decode() if kind == 6 else value, kind)
        case 4:
            return ("name", of[1].decode().removeprefix("."))
        case 5:
            return ("select", _node(of[1]), of[2].decode())
        case 6:
            return ("call", of[2].decode(), [_node(value) for kind, value in parts if kind in (1, 3)])
        case 7:
            return ("list", [_node(value) for kind, value in parts if kind == 1])
        case 8 if 1 in of:
            return ("message", of[1].decode())
        case 8:
            entries = [_fields(value) for kind, value in parts if kind == 2]
            return ("map", [_node(value) for entry in entries for kind, value in entry if kind in (3, 4)])
        case 9:
            names = {of[number].decode() for number in (1, 3, 8) if number in of}
            # Whether it yields a list, the range, what is done once, what is done for each item.
            starts, result = _node(of[4]), _node(of[7])
            return ("loop", starts[0] == "list", _node(of[2]), [starts, result], [_node(of[5]), _node(of[6])], names)
    raise _RefusedError(f"part {number} of the expression is unknown")


def _path(node: Node, bound: frozenset[str]) -> Path:
    """`steps.a.outputs` as its names, when the node is such a chain from a root; else ()."""
    match node:
        case ("name", name) if name in ROOTS and name not in bound:
            return (name,)
        case ("select", operand, name) | ("call", "_[_]", [operand, ("const", str() as name, 6)]):
            return (*path, name) if (path := _path(operand, bound)) else ()
    return ()


def _constant(node: Node) -> bool:
    return node[0] == "const" or (node[0] == "list" and all(map(_constant, node[1])))


def _walk(node: Node, depth: int, bound: frozenset[str], read: _Read, unordered: bool = False) -> None:
    """Adds what the node looks at and does; `unordered`: whoever uses its value cares for no order."""
    read.light[depth] += 1
    if path := _path(node, bound):
        read.paths.add(path)
        return
    match node:
        case ("select", operand, _):
            _walk(operand, depth, bound, read)
        case ("call", name, arguments):
            _weigh(name, arguments, depth, read)
            for argument in arguments:
                _walk(argument, depth, bound, read, unordered=name == "size")
        case ("list" | "map", elements):
            read.longest = max(read.longest, len(elements))
            read.gathers |= sum(not _constant(element) for element in elements) > 1
            for element in elements:
                _walk(element, depth, bound, read)
        case ("message", name):
            raise _RefusedError(f"`{name}` is not known: a condition builds no messages")
        case ("loop", yields_list, over, once, each, names):
            if yields_list and not unordered:
                raise _RefusedError("the value of filter() may be counted (size) or searched, as a map has no order")
            if depth == NESTING_MAX:
                raise _RefusedError(f"exists, all and filter are nested more than {NESTING_MAX} deep")
            _walk(over, depth, bound, read, unordered=True)
            read.loops[depth + 1] += 1
            if yields_list:  # its step `list + [item]` joins, yet makes nothing longer than the range
                read.joins -= 1
            for part in once:
                _walk(part, depth, bound | names, read)
            for part in each:
                _walk(part, depth + 1, bound | names, read)


def _weigh(name: str, arguments: list[Node], depth: int, read: _Read) -> None:
    numbers = any(argument[0] == "const" and argument[2] in (3, 4, 5) for argument in arguments)
    if name in _LOGIC:
        return
    if name == "matches":
        _check_pattern(arguments[-1])
        read.patterns[depth] += 1
    if name == "_+_" and not numbers:
        read.joins += 1
    light = (
        (name in _COMPARISONS and any(argument[0] == "const" for argument in arguments))
        or (name in _ARITHMETIC and numbers)
        or (name == "@in" and arguments[1][0] == "list" and _constant(arguments[1]))
    )
    read.heavy[depth] += not light


def _check_pattern(node: Node) -> None:
    if node[0] != "const" or node[2] != 6:
        raise _RefusedError("matches() takes a pattern written in the condition itself")
    pattern = node[1]
    if len(pattern) > PATTERN_CHARS_MAX:
        raise _RefusedError(f"the pattern of matches() has {len(pattern)} characters; at most {PATTERN_CHARS_MAX}")
    if "{" in pattern or re.search(r"\\[pP]", pattern):
        raise _RefusedError(r"the pattern of matches() may hold neither { nor \p, which make it long")
    tried = _environment().compile("params.matches(steps)").eval(data={"params": "", "steps": pattern})
    if tried.type().name() != "BOOL":
        raise _RefusedError(_plainly(tried.value()))


# What it looks at.


@dataclass
class _Seen:
    """How much is looked at: values (four bytes of text counting as one), and the longest list or map."""

    size: int = 0
    longest: int = 0


def _tree_of(paths: set[Path]) -> dict[str, Any]:
    """The paths as nested dicts; None where the whole value is wanted."""
    tree: dict[str, Any] = {}
    for path in sorted(paths, key=len):  # the whole of `steps` comes before the parts of it
        branch = tree
        for name in path[:-1]:
            inner = branch.setdefault(name, {})
            if inner is None:
                break
            branch = inner
        else:
            branch.setdefault(path[-1], None)
    return tree


def _narrowed(value: Any, wanted: dict[str, Any] | None, where: str, seen: _Seen) -> Any:
    """The parts of the value that are wanted, as data that the library takes."""
    if wanted is None or not isinstance(value, dict):
        return _plain(value, where, seen, DEPTH_MAX) if wanted != {} else {}
    return {name: _narrowed(value[name], inner, f"{where}.{name}", seen) for name, inner in wanted.items()
            if name in value}  # fmt: skip


def _plain(value: Any, where: str, seen: _Seen, depth: int) -> Any:
    """The same JSON data, checked: the library crashes on what is too deep, and ends a text at a NUL."""
    seen.size += 1
    if depth == 0:
        raise ConditionError(f"`{where}` is nested more than {DEPTH_MAX} deep")
    if isinstance(value, str):
        try:
            seen.size += len(value.encode()) // 4
        except UnicodeEncodeError:
            raise ConditionError(f"`{where}` holds a lone surrogate, which is not text") from None
        if "\0" in value:
            raise ConditionError(f"`{where}` holds a NUL character, which a condition cannot look at")
    if seen.size > LOOKED_AT_MAX:
        raise ConditionError(f"the condition looks at too much data, up to `{where}`")
    if value is None or isinstance(value, bool | float | str):
        return value
    if isinstance(value, int):
        return value if _INT_MIN <= value <= _INT_MAX else _float(value, where)
    if isinstance(value, list):
        seen.longest = max(seen.longest, len(value))
        return [_plain(item, where, seen, depth - 1) for item in value]
    if isinstance(value, dict):
        seen.longest = max(seen.longest, len(value))
        plain = {}
        for name, inner in value.items():
            if not isinstance(name, str):
                raise ConditionError(f"`{where}` has a key that is no text")
            plain[_plain(name, where, seen, depth)] = _plain(inner, f"{where}.{name}"[:200], seen, depth - 1)
        return plain
    raise ConditionError(f"`{where}` is {type(value).__name__}, which is no JSON")


def _float(value: int, where: str) -> float:
    try:
        return float(value)
    except OverflowError:
        raise ConditionError(f"`{where}` is too big a number") from None


def _refuse_if_long(read: _Read, seen: _Seen, chars: int) -> None:
    """An upper bound, from the tree and the data: each macro runs over the longest list that can be made."""
    deepest = max((depth for depth, loops in enumerate(read.loops) if loops), default=0)
    growth = (1 + read.joins) ** (deepest + 1) if deepest else 1
    size = (seen.size + chars) * growth
    longest = max(seen.longest, read.longest) * growth
    turns = [longest**depth for depth in range(NESTING_MAX + 1)]
    iterations = sum(turn * loops for turn, loops in zip(turns, read.loops, strict=True))
    work = sum(
        turn * (light + heavy * size + patterns * _PATTERN_WORK)
        for turn, light, heavy, patterns in zip(turns, read.light, read.heavy, read.patterns, strict=True)
    )
    if iterations > ITERATIONS_MAX or work > WORK_MAX:
        raise ConditionError(
            f"the condition may go over too much data: {seen.size} values, the longest list or map of {seen.longest},"
            f" macros {deepest} deep: up to {iterations} turns (at most {ITERATIONS_MAX})"
            f" and {work} steps (at most {WORK_MAX})"
        )


# What comes back.


def _json(value: Any, counted: list[int]) -> Any:
    """The library's value as JSON data, item by item. It never asks for a null: the library (0.1.3) forgets to count
    the reference that it gives out, and Python before 3.12 ends when the last one to None is gone."""
    counted[0] += 1
    if counted[0] > RESULT_VALUES_MAX:
        raise ConditionError(f"the value holds more than {RESULT_VALUES_MAX} values")
    kind = value.type().name()
    if kind == "NULL":
        return None
    python = value.value()
    if kind == "ERROR":
        raise ConditionError(_plainly(python))
    if isinstance(python, float) and not abs(python) < float("inf"):
        raise ConditionError(f"the value is {python}, which is no JSON number")
    if isinstance(python, bool | int | float | str):
        return python
    if isinstance(python, list):
        return [_json(item, counted) for item in python]
    if isinstance(python, dict):
        if not all(isinstance(name, str) for name in python):
            raise ConditionError("the value is a map with keys that are no text")
        return {name: _json(python[name], counted) for name in sorted(python)}  # the library's order is random
    raise ConditionError(f"the value is of type {kind.lower()}, which is no JSON; string(…) makes it one")


_SIGNS = {"<jump_condition>": "?:", "@in": "in", "@not_strictly_false": "exists or all"}


def _plainly(message: str) -> str:
    """The library's first complaint, in words for a person."""
    if "undeclared reference to 'map'" in message:
        return "there is no map(): use exists, all, exists_one or filter(…).size()"
    found = re.search(r"ERROR: <input>:(-?\d+):(-?\d+): (.*)", message)
    said, column = (found.group(3), int(found.group(2))) if found else (message, -1)
    said = re.sub(r"^[A-Z_]+: | \[[A-Z_]+\]$| \(in container ''\)", "", said.splitlines()[0] if said else "")
    place = f" (character {column})" if column > 0 else ""
    if match := re.match(r"undeclared reference to '([^']*)'", said):
        return (
            f"`{match.group(1)}` is not known: a condition reads params, steps and decisions"
            f' (a name with a dash is written steps["a-b"]){place}'
        )
    if match := re.match(r"No matching overloads found : ([^(]*)(?:\((.*)\))?", said):
        name, types = match.group(1), match.group(2)
        sign = _SIGNS.get(name, name.strip("_"))
        mixed = types is not None and {"double", "int64"} <= set(types.split(", "))
        hint = "; double(…) and int(…) convert numbers" if mixed else ""
        given = f" to {types.replace('int64', 'int')}" if types else " to a value of this type"
        return f"`{sign}` cannot be applied{given}{hint}"
    if match := re.match(r"found no matching overload for '([^']*)' applied to '\((.*)\)'", said):
        name = match.group(1)
        return f"`{_SIGNS.get(name, name.strip('_'))}` cannot be applied to {match.group(2)}{place}"
    if match := re.match(r"Key not found in map : (.*)", said):
        return f"there is no {match.group(1)}; has(…) asks whether there is"
    if "Applying SELECT" in said:
        return "a name is asked of what is no object"
    if "recursion" in said:
        return "the condition is nested too deep (at most 32)"
    return f"{said[:300]}{place}" or "the condition cannot be evaluated"

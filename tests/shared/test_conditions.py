"""Conditions: what they say, what is refused and why, and that nothing in them can hurt who evaluates them."""

import json
import math
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shared.conditions import (
    CONDITION_CHARS_MAX,
    ITERATIONS_MAX,
    LOOKED_AT_MAX,
    PATTERN_CHARS_MAX,
    ConditionError,
    check,
    evaluate,
    references,
)

CONTEXT: dict[str, Any] = {
    "params": {
        "limit": 3, "ratio": 2.5, "name": "ann", "none": None, "hosts": ["a", "b"], "huge": 2**70, "most": 2**63 - 1,
        "dry-run": False, "empty": [], "numbers": list(range(50)), "deep": {"list": [[1, [2]], {"x": None}]},
    },
    "steps": {
        "log_triage": {
            "status": "succeeded",
            "outputs": {
                "findings": 3, "score": 3.0, "text": "out of memory",
                "items": [{"severity": "critical", "n": 1}, {"severity": "low", "n": 2.5}],
            },
        },
        "gpu-report": {"status": "failed", "outputs": {}},
    },
    "decisions": {"critical": True, "how-many": 4},
}  # fmt: skip
OUT = "steps.log_triage.outputs"

VALUES: dict[str, Any] = {
    # what plans ask
    f"{OUT}.findings > 0": True,
    'steps.log_triage.status == "succeeded"': True,
    "steps['gpu-report'].status != 'failed'": False,
    'steps.`gpu-report`.status == "failed"': True,
    "decisions.critical && params.limit >= 3": True,
    '!decisions.critical || decisions["how-many"] == 4': True,
    f'{OUT}.findings > 2 ? "many" : "few"': "many",
    f'{OUT}.text.contains("memory")': True,
    f'{OUT}.text.startsWith("out") && {OUT}.text.endsWith("y")': True,
    'params.name.matches("^a.n$")': True,
    'params.name.matches(r"^\\w+$")': True,
    'params.name.matches("n")': True,
    'params.name in ["ann", "bob"]': True,
    '"b" in params.hosts': True,
    f"size({OUT}.items)": 2,
    "size('äö')": 2,
    # what is there and what is not
    "has(steps.nope)": False,
    f"has({OUT}.nope)": False,
    f"has({OUT}.findings)": True,
    '"gpu-report" in steps': True,
    '"nope" in steps': False,
    "params.none == null": True,
    "params.nope || true": True,
    "true || params.nope": True,
    "params.nope > 1 && false": False,
    # numbers: an int and a float compare; JSON does not say which it meant
    f"{OUT}.score > 0": True,
    f"{OUT}.score == 3": True,
    f"{OUT}.findings == 3.0": True,
    f"{OUT}.findings == {OUT}.score": True,
    f"{OUT}.findings >= 2.5": True,
    "params.ratio < 3": True,
    "params.limit in [3.0]": True,
    "params.limit + 1": 4,
    "double(params.limit) + params.ratio": 5.5,
    "int(params.ratio)": 2,
    "-7 / 2": -3,
    "-7 % 2": -1,
    "params.huge > 1": True,
    "params.huge": float(2**70),
    "params.most": 2**63 - 1,
    "18446744073709551615u": 2**64 - 1,
    "params.limit == '3'": False,
    "int('5')": 5,
    # lists
    f'{OUT}.items.exists(i, i.severity == "critical")': True,
    f"{OUT}.items.all(i, i.n > 0)": True,
    f"{OUT}.items.filter(i, i.n > 1).size()": 1,
    f"size({OUT}.items.filter(i, i.n > 1))": 1,
    f"{OUT}.items.filter(i, i.n > 0).exists(i, i.severity in ['low'])": True,
    "params.numbers.exists_one(n, n == 7)": True,
    "params.hosts.all(h, params.hosts.exists(g, g == h))": True,
    "steps.exists(id, steps[id].status == 'failed')": True,
    "params.empty.all(x, false)": True,
    "[1, 2].exists(params, params == 2)": True,
    # values of every kind of JSON
    "params.hosts": ["a", "b"],
    "params.hosts + ['c']": ["a", "b", "c"],
    "params.deep": {"list": [[1, [2]], {"x": None}]},
    "'host ' + params.name": "host ann",
    "null": None,
    "params.none": None,
    '{"b": params.limit, "a": [null, 1.5]}': {"a": [None, 1.5], "b": 3},
    "params['dry-run']": False,
    "[params, steps, decisions] == []": False,
    ".params.limit // a root with a dot, and a comment": 3,
    "type(params.limit) == int": True,
    "timestamp('2026-01-01T00:00:00Z') < timestamp('2026-01-02T00:00:00+01:00')": True,
    "string(duration('90s'))": "90s",
}


@pytest.mark.parametrize("text", VALUES)
def test_a_condition_has_its_value(text: str) -> None:
    assert check(text) == ""
    value = evaluate(text, CONTEXT)
    assert value == VALUES[text]
    assert type(value) is type(VALUES[text])


PAGE = (Path(__file__).parents[2] / "docs" / "conditions.md").read_text()


def test_the_examples_for_people_are_conditions() -> None:
    examples = PAGE.split("```")[1].strip().splitlines()
    assert len(examples) > 5
    assert [why for why in map(check, examples) if why] == []
    for limit in (CONDITION_CHARS_MAX, LOOKED_AT_MAX, ITERATIONS_MAX, PATTERN_CHARS_MAX):
        assert f"{limit:,}" in PAGE


MACROS = "beside exists, all and filter a list holds constants only"
NO_ORDER = "the value of filter() may be counted"
REFUSED: dict[str, str] = {
    "": "blank",
    " \n ": "blank",
    "1 +": "Syntax error",
    "'open": "Syntax error",
    "\x00": "Syntax error",
    "\ud800": "lone surrogate",
    "steps.": "Syntax error",
    "if": "reserved identifier",
    "1" * (CONDITION_CHARS_MAX + 1): f"{CONDITION_CHARS_MAX + 1} characters; at most {CONDITION_CHARS_MAX}",
    "findings > 0": "`findings` is not known: a condition reads params, steps and decisions",
    "step.a.status": "`step.a.status` is not known",
    "steps.gpu-report.status": 'a name with a dash is written steps["a-b"]',
    "true && env.HOME == ''": "`env.HOME` is not known",
    "[1].exists(x, x > 0) && x > 0": "`x` is not known",
    "__import__('os')": "`__import__` is not known",
    "open('/etc/passwd')": "`open` is not known",
    "'a' + 1": "`+` cannot be applied to string, int",
    "true && 'x'": "`&&` cannot be applied to bool, string",
    "1 < 2.5": "`<` cannot be applied to int, double",
    "has(params)": "has() argument must be a field selection",
    "params.hosts.map(h, h)": "there is no map()",
    "timestamp('2026-01-01T00:00:00Z').getHours('Europe/Berlin')": "`getHours` is not known",
    "google.protobuf.Int64Value{value: 3}": "a condition builds no messages",
    "(" * 60 + "1" + ")" * 60: "nested too deep",
    "+".join("1" * 500): "nested too deep",
    "params" + ".a" * 450: "nested too deep",
    "params.hosts.all(a, params.hosts.all(b, params.hosts.all(c, true)))": "nested more than 2 deep",
    "[params.hosts, params.hosts].exists(x, x == [])": MACROS,
    "params.hosts.exists(h, {'a': h, 'b': h} == {})": MACROS,
    "params.hosts.filter(h, true)": NO_ORDER,
    "params.filter(k, true)[0] == 'limit'": NO_ORDER,
    "params.name.matches(params.hosts[0])": "a pattern written in the condition itself",
    "params.name.matches('a' + 'b')": "a pattern written in the condition itself",
    "params.name.matches('(')": "invalid regular expression",
    "params.name.matches('a{1000}')": "neither { nor \\p",
    "params.name.matches('\\x7b')": "neither { nor \\p",
    "params.name.matches(r'\\pL')": "neither { nor \\p",
    f"params.name.matches('{'a' * (PATTERN_CHARS_MAX + 1)}')": f"at most {PATTERN_CHARS_MAX}",
}


@pytest.mark.parametrize("text", REFUSED)
def test_what_is_no_condition_is_refused_with_the_reason(text: str) -> None:
    assert REFUSED[text] in check(text)
    with pytest.raises(ConditionError) as raised:
        evaluate(text, CONTEXT)
    assert raised.value.message == str(raised.value) == check(text)
    assert references(text) == set()


FAILS: dict[str, str] = {
    "steps.nope.status": 'there is no "nope"; has(…) asks whether there is',
    "params.hosts[9]": "Index error: index=9 size=2",
    "params.limit.foo": "a name is asked of what is no object",
    "params.limit + 0.5": "`+` cannot be applied to int, double; double(…) and int(…) convert numbers",
    f"{OUT}.score + 1": "double(…) and int(…) convert numbers",
    "params.name > 1": "`>` cannot be applied to string, int",
    "params.name && true": "`&&` cannot be applied",
    "params.limit ? 1 : 2": "`?:` cannot be applied",
    "size(params.limit)": "`size` cannot be applied to int",
    "params.limit / 0": "divide by zero",
    "params.limit % 0": "modulus by zero",
    "params.most + 1": "integer overflow",
    "int('x')": "cannot convert string to int",
    "string(b'\\xff')": "malformed UTF-8",
    "1.0 / 0.0": "no JSON number",
    "double('nan')": "no JSON number",
    "timestamp('2026-01-01T00:00:00Z')": "of type timestamp, which is no JSON; string(…) makes it one",
    "duration('1s')": "of type duration",
    "b'x'": "of type bytes",
    "[type(1)]": "of type type",
    "{1: 2}": "keys that are no text",
}


@pytest.mark.parametrize("text", FAILS)
def test_what_cannot_be_evaluated_says_why(text: str) -> None:
    assert check(text) == ""
    with pytest.raises(ConditionError) as raised:
        evaluate(text, CONTEXT)
    assert FAILS[text] in raised.value.message


NAMED: dict[str, set[str]] = {
    "steps.a.status == 'x' && steps['b-c'].outputs.n > 0": {"a", "b-c"},
    'steps.`d-e`.status == "" || steps["f"] == null': {"d-e", "f"},
    "decisions.critical || decisions['g-h']": {"critical", "g-h"},
    "has(steps.i.outputs.steps.j)": {"i"},
    "params.steps.k == 1 && params['steps']['l'] == 2": set(),
    "'steps.m' == \"steps['n']\" // steps.o": set(),
    "steps['\\x70'].status == r'q'": {"p"},
    "steps[params.id].status == 'x' && size(steps) > 0": set(),
    "steps['No Id'].status == ''": set(),
    "[{'x': 1}].exists(steps, steps.x == 1)": set(),
    "params.hosts.exists(h, h == steps.r.outputs.host)": {"r"},
    ".steps.s.status == ''": {"s"},
    "true": set(),
}


@pytest.mark.parametrize("text", NAMED)
def test_the_steps_that_a_condition_names_are_known(text: str) -> None:
    assert check(text) == ""
    assert references(text) == NAMED[text]


@pytest.mark.parametrize("text", ["size(steps) + size(steps.a)", "size(steps.a) + size(steps)", "steps == {} ? 0 : 3"])
def test_a_root_that_is_named_whole_and_in_part_is_whole(text: str) -> None:
    assert evaluate(text, {"steps": {"a": {"x": 1}, "b": {}}}) == 3


def test_what_is_not_looked_at_is_not_read() -> None:
    context = {"params": {"a": 1, "b": object()}, "steps": {"s": {"outputs": ["\ud800"], "status": "failed"}}}
    assert evaluate("params.a == 1 && steps.s.status == 'failed' && !has(decisions.x)", context) is True


def nested(depth: int) -> Any:
    return [] if depth == 0 else [nested(depth - 1)]


def endless() -> Any:
    around: list[Any] = []
    around.extend([around, {"again": around}, around])
    return around


STRANGE = {
    "object, which is no JSON": object(),
    "set, which is no JSON": {1},
    "tuple, which is no JSON": (1,),
    "key that is no text": {1: 2},
    "lone surrogate": ["\ud800"],
    "`params.x` holds a lone": {"\ud800": 1},
    "NUL character": "a\0b",
    "`params.x` holds a NUL": {"a\0b": 1},
    "nested more than 64 deep": nested(900),
    "deep": endless(),
    "too big a number": 10**400,
    "too much data": [0] * (LOOKED_AT_MAX + 1),
}


@pytest.mark.parametrize("why", STRANGE)
def test_data_that_is_no_json_is_refused_and_not_given_to_the_library(why: str) -> None:
    with pytest.raises(ConditionError, match=why):
        evaluate("params.x == 1", {"params": {"x": STRANGE[why]}})


@pytest.mark.parametrize("context", [None, [], "", {"params": None}, {"params": 1}, {"steps": [], "decisions": 5}, {}])
def test_data_of_another_shape_is_an_error_of_the_condition(context: Any) -> None:
    with pytest.raises(ConditionError):
        evaluate("params.a.b == steps.c || decisions.d", context)


def test_ten_thousand_nulls_do_not_end_python() -> None:
    """The library loses a reference to None at each null that it hands out; Python 3.11 has some thousands."""
    before = sys.getrefcount(None)
    for _ in range(100):
        assert evaluate("params.x", {"params": {"x": [None] * 100}}) == [None] * 100
    assert sys.getrefcount(None) > before - 500


LONG = list(range(5_000))
HOSTILE = {
    "a list against itself": ("params.l.all(a, a in params.l)", {"l": LONG}),
    "nested macros": ("params.l.all(a, params.l.all(b, a == b || true))", {"l": LONG}),
    "literals": (f"[{'1,' * 50}1].all(a, [{'1,' * 50}1].all(b, params.l == params.l))", {"l": LONG}),
    "many macros": (" && ".join(["params.l.all(a, a > -1)"] * 30), {"l": LONG}),
    "copies": ("params.l.filter(a, a > -1).size() > 0", {"l": LONG}),
    "texts that grow": ("[(params.s + params.s)].all(a, [(a + a + a)].all(b, params.l.all(c, b + b == b + b)))",
                        {"l": LONG, "s": "a" * 60_000}),
    "texts that are searched": ("params.l.all(a, !params.s.contains('aaab'))", {"l": LONG, "s": "a" * 60_000}),
    "patterns": ("params.l.all(a, !params.s.matches('(a|b|ab|ba)*c'))", {"l": LONG, "s": "a" * 60_000}),
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_what_would_be_long_is_refused_before_it_begins(name: str) -> None:
    text, params = HOSTILE[name]
    assert check(text) == "" or "nested more than" in check(text)
    began = time.process_time()
    with pytest.raises(ConditionError, match=r"too much data|nested more"):
        evaluate(text, {"params": params})
    assert time.process_time() - began < 1


WORST = {
    "comparisons": ("params.l.all(a, " + " && ".join(["params.l == params.l"] * 10) + ")", {"l": list(range(1_200))}),
    "copies": ("params.l.filter(a, a > -1).size() > 0", {"l": list(range(1_500))}),
    "patterns": (
        "params.l.all(a, !params.s.matches('" + "[^a]" * 25 + "'))",
        {"l": list(range(1_000)), "s": "a" * 20_000},
    ),
    "backtracking": ("params.s.matches('(a|aa)*(a*)*(a+)+c')", {"s": "a" * 60_000}),
    "searches": (" || ".join(["params.s.contains('aaab')"] * 30), {"s": "a" * 60_000}),
}


@pytest.mark.parametrize("name", WORST)
def test_what_is_let_through_is_over_soon(name: str) -> None:
    """Shrunk until the bound lets it pass, each of the worst shapes that we know ends in seconds of the processor."""
    text, params = WORST[name]
    while True:
        began = time.process_time()
        try:
            evaluate(text, {"params": params})
        except ConditionError as error:
            assert "too much data" in error.message
            params = {key: value[: len(value) * 9 // 10] for key, value in params.items()}
        else:
            break
    assert time.process_time() - began < 5


def test_a_common_condition_is_far_from_the_bounds() -> None:
    items = [{"severity": "low", "source": f"container-{n}", "lines": n, "text": "x" * 300} for n in range(100)]
    context = {"steps": {"t": {"outputs": {"items": items, "hosts": [f"container-{n}" for n in range(60)]}}}}
    condition = "steps.t.outputs.items.exists(i, i.severity == 'critical' || i.text.matches('OOM|killed'))"
    assert evaluate(condition, context) is False
    assert evaluate("steps.t.outputs.hosts.all(h, steps.t.outputs.hosts.exists(g, g == h))", context) is True


def test_every_process_comes_to_the_same_value() -> None:
    """The library shuffles maps in each process anew; what comes back must not show it."""
    program = """
import json
from shared.conditions import evaluate
data = {"params": {f"k{n}": n for n in range(40)}}
texts = ["params", "size(params.filter(k, params[k] > 7))", "{'b': 1, 'a': 2, 'c': 3}", "params.exists(k, k == 'k1')"]
print(json.dumps([evaluate(text, data) for text in texts]))
"""
    said = {subprocess.run([sys.executable, "-c", program], capture_output=True, check=True).stdout for _ in range(4)}
    assert len(said) == 1


def test_threads_do_not_disturb_each_other() -> None:
    def one(n: int) -> bool:
        found: bool = evaluate("params.n == int(params.text) && params.l.exists(x, x == params.n)",
                               {"params": {"n": n, "text": str(n), "l": [n, None]}})  # fmt: skip
        return found

    with ThreadPoolExecutor(8) as threads:
        assert all(threads.map(one, range(2_000)))


def test_reading_conditions_does_not_load_the_library() -> None:
    """The command line imports plans, and is quick."""
    program = "import sys, shared.conditions; print('cel_expr_python' in sys.modules)"
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True, text=True)
    assert found.stdout.strip() == "False"


# Words of the language, so that random texts are often nearly right, and sometimes right.
WORDS = st.sampled_from(
    [
        *"params steps decisions .a .log_triage .outputs .items ['b'] [0] [ ] ( ) { } : , . ? ! - + * / %".split(),
        *"== != < >= && || in 1 2.5 0 1u 'x' b'z' null true size( has( x y dyn( r' '' \\ // ` ' \"".split(),
        *".all(x, .exists(y, .filter(z, .exists_one(w, .map(v, .matches('a') .contains( \n".split(" "),
        *"int( double( string( timestamp( duration( type( 9223372036854775807".split(),
    ]
)
TEXTS = st.one_of(
    st.text(max_size=60),
    st.lists(WORDS, max_size=40).map("".join),
    st.lists(WORDS, max_size=40).map(" ".join),
    st.lists(st.sampled_from("[]{}()!-?:,.'1a"), max_size=1_000).map("".join),
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(["a", "b", "items"]), inner),
    max_leaves=12,
)


@settings(max_examples=1_000)
@given(TEXTS, JSON, JSON)
def test_only_a_condition_error_comes_out_whatever_goes_in(text: str, params: Any, step: Any) -> None:
    why = check(text)
    assert isinstance(why, str)
    assert isinstance(references(text), set)
    context = {"params": params, "steps": {"log_triage": step}, "decisions": {"a": True}}
    try:
        value = evaluate(text, context)
    except ConditionError as error:
        assert error.message
        assert not why or error.message == why
    else:
        assert why == ""
        assert is_json(value)


@settings(max_examples=300)
@given(JSON)
def test_data_comes_back_as_it_went_in(data: Any) -> None:
    def finite(value: Any) -> bool:
        if isinstance(value, list | dict):
            return all(finite(one) for one in (value.values() if isinstance(value, dict) else value))
        return not isinstance(value, float) or math.isfinite(value)

    def kept(value: Any) -> Any:
        """Whole numbers beyond 64 bits become floats; no other value changes."""
        if isinstance(value, list):
            return [kept(one) for one in value]
        if isinstance(value, dict):
            return {name: kept(one) for name, one in value.items()}
        big = isinstance(value, int) and not isinstance(value, bool) and not -(2**63) <= value < 2**63
        return float(value) if big else value

    if finite(data) and "\\u0000" not in json.dumps(data):
        assert evaluate("params.x", {"params": {"x": data}}) == kept(data)


def is_json(value: Any) -> bool:
    if isinstance(value, list):
        return all(is_json(one) for one in value)
    if isinstance(value, dict):
        return all(isinstance(name, str) and is_json(one) for name, one in value.items())
    return value is None or isinstance(value, bool | int | str) or math.isfinite(value)

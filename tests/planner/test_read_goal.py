"""Payloads that are no goals: each is refused by its field, none raises, and whatever is accepted can be planned."""

import json
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from services.planner.service import answer_to, rejected
from shared.catalogue import BUILT_IN
from shared.events import PlanCreated, encode
from shared.plan import BUDGET_LIMITS, GOAL_BYTES_MAX, GOAL_CHARS_MAX, read_goal
from tests import controls

# What the server takes as one message at its default; a plan that is larger can be neither said nor refused.
PAYLOAD_BYTES_MAX = 1_048_576


def goal(**fields: Any) -> bytes:
    return json.dumps(fields).encode()


HOSTILE: dict[str, tuple[bytes, str]] = {
    "nothing": (b"", "payload"),
    "white space": (b"  \n", "payload"),
    "not JSON": (b"check logs", "payload"),
    "half of it": (b'{"goal": "check', "payload"),
    "two of them": (b'{"goal":"a"}{"goal":"b"}', "payload"),
    "a trailing comma": (b'{"goal":"a",}', "payload"),
    "single quotes": (b"{'goal':'a'}", "payload"),
    "a comment": (b'{"goal":"a"} // hi', "payload"),
    "a byte order mark": (b'\xef\xbb\xbf{"goal":"a"}', "payload"),
    "UTF-16": ('{"goal":"a"}'.encode("utf-16"), "payload"),
    "Latin-1": ('{"goal":"Größe"}'.encode("latin-1"), "payload"),
    "a byte that is no UTF-8": (b'{"goal":"\xff"}', "payload"),
    "a surrogate in UTF-8": (b'{"goal":"\xed\xa0\x80"}', "payload"),
    "overlong UTF-8": (b'{"goal":"\xc0\xaf"}', "payload"),
    "not UTF-8 where nobody looks": (b'{"goal":"a","zz":"\xff"}', "payload"),
    "NUL bytes": (b"\0" * 10, "payload"),
    "NaN": (b'{"goal":"a","params":{"x":NaN}}', "payload"),
    "infinity": (b'{"goal":"a","params":{"x":-Infinity}}', "payload"),
    "a list": (b"[]", "payload"),
    "a text": (b'"check logs"', "payload"),
    "a number": (b"42", "payload"),
    "null": (b"null", "payload"),
    "true": (b"true", "payload"),
    "a server's ack": (controls.ACK, "goal"),
    "an empty object": (b"{}", "goal"),
    "nested 100,000 deep": (b"[" * 100_000, "payload"),
    "objects 10,000 deep": (b'{"params":' * 6_000, "payload"),
    "one megabyte": (goal(goal="a" * 1_000_000), "payload"),
    "one byte too many": (b'{"goal":"a"' + b" " * (GOAL_BYTES_MAX - 11) + b"}", "payload"),
    "a lone surrogate": (rb'{"goal":"\ud800 logs"}', "payload"),
    "a lone surrogate in a task": (rb'{"tasks":["\udfff"]}', "payload"),
    "goal: null": (goal(goal=None), "goal"),
    "goal: number": (goal(goal=42), "goal"),
    "goal: true": (goal(goal=True), "goal"),
    "goal: list": (goal(goal=["check logs"]), "goal"),
    "goal: object": (goal(goal={}), "goal"),
    "goal: empty": (goal(goal=""), "goal"),
    "goal: blank": (goal(goal=" \t\r\n"), "goal"),
    "goal: blank in Unicode": (goal(goal="\u00a0\u2003\u3000"), "goal"),
    "goal: nothing to be seen": (goal(goal="\u200b\u2060\ufeff \u00ad"), "goal"),
    "goal: controls": (goal(goal="\0\x1b\x7f"), "goal"),
    "goal: one character too long": (goal(goal="a" * (GOAL_CHARS_MAX + 1)), "goal"),
    "goal: blank beside tasks": (goal(goal=" ", tasks=["noop"]), "goal"),
    "goal twice, the last one blank": (b'{"goal":"check logs","goal":""}', "goal"),
    "goal twice, the last one a number": (b'{"goal":"check logs","goal":7}', "goal"),
    "tasks: text": (goal(tasks="noop"), "tasks"),
    "tasks: object": (goal(tasks={"noop": 1}), "tasks"),
    "tasks: number in it": (goal(tasks=["noop", 1]), "tasks[1]"),
    "tasks: null in it": (goal(tasks=[None]), "tasks[0]"),
    "tasks: empty alone": (goal(tasks=[]), "goal"),
    "tasks: too many": (goal(tasks=["noop"] * 101, max_steps=100), "tasks"),
    "tasks: empty name": (goal(tasks=["noop", ""]), "tasks[1]"),
    "tasks: dots": (goal(tasks=["a.b"]), "tasks[0]"),
    "tasks: star": (goal(tasks=["*"]), "tasks[0]"),
    "tasks: everything": (goal(tasks=[">"]), "tasks[0]"),
    "tasks: space": (goal(tasks=["no op"]), "tasks[0]"),
    "tasks: newline at the end": (goal(tasks=["noop\n"]), "tasks[0]"),
    "tasks: NUL": (goal(tasks=["no\0op"]), "tasks[0]"),
    "tasks: unicode": (goal(tasks=["nöop"]), "tasks[0]"),
    "tasks: other digits": (goal(tasks=["noop٣"]), "tasks[0]"),
    "tasks: 65 characters": (goal(tasks=["a" * 65]), "tasks[0]"),
    "tasks: unknown": (goal(tasks=["nope"]), "tasks[0]"),
    "directive: number": (goal(goal="a", directive=1), "directive"),
    "directive: list": (goal(goal="a", directive=["default"]), "directive"),
    "directive: empty": (goal(goal="a", directive=""), "directive"),
    "directive: star": (goal(goal="a", directive="*"), "directive"),
    "directive: dots": (goal(goal="a", directive="a.b"), "directive"),
    "directive: unknown": (goal(goal="a", directive="D9"), "directive"),
    "params: list": (goal(goal="a", params=[]), "params"),
    "params: text": (goal(goal="a", params="x=1"), "params"),
    "params: 20 kB": (goal(goal="a", params={"x": "y" * 20_000}), "params"),
    "hosts: text": (goal(goal="a", hosts="tower"), "hosts"),
    "hosts: empty": (goal(goal="a", hosts=[]), "hosts"),
    "hosts: number in it": (goal(goal="a", hosts=[1]), "hosts[0]"),
    "hosts: dots": (goal(goal="a", hosts=["ok", "tower.local"]), "hosts[1]"),
    "hosts: star": (goal(goal="a", hosts=["*"]), "hosts[0]"),
    "hosts: too many": (goal(goal="a", hosts=["h"] * 1_001), "hosts"),
}
for _field, (_least, _most) in BUDGET_LIMITS.items():
    for _name, _value in {
        "below": _least - 1, "above": _most + 1, "far below": -(10**18), "far above": 10**18, "huge": 10**400,
        "text": str(_least), "true": True, "a fraction": _least + 0.5, "a list": [_least],
    }.items():  # fmt: skip
        HOSTILE[f"{_field}: {_name}"] = (goal(goal="check logs", **{_field: _value}), _field)
    HOSTILE[f"{_field}: beyond every float"] = (b'{"goal":"a","%s":1e400}' % _field.encode(), "payload|" + _field)
    HOSTILE[f"{_field}: 5,000 digits"] = (b'{"goal":"a","%s":%s}' % (_field.encode(), b"9" * 5000), _field)


@pytest.mark.parametrize("name", HOSTILE)
def test_what_cannot_be_planned_is_refused_by_its_field(name: str) -> None:
    """A reason for a person and the field at fault, and it can be said on the wire."""
    data, field = HOSTILE[name]
    answer = answer_to(data, BUILT_IN)
    assert isinstance(answer, list), f"accepted as {answer.goal!r} {answer.budgets}"
    assert answer[0].field in field.split("|"), answer
    assert answer[0].reason
    assert len(encode(rejected(answer))) < PAYLOAD_BYTES_MAX / 4


@pytest.mark.parametrize("field", ["tasks", "directive", "params", "hosts", *BUDGET_LIMITS])
def test_null_means_the_default(field: str) -> None:
    read, problems = read_goal(goal(goal="check logs", **{field: None}))
    assert problems == [] and read is not None and getattr(read, field) is None


@pytest.mark.parametrize("field", BUDGET_LIMITS)
@pytest.mark.parametrize("end", [0, 1])
def test_a_budget_at_its_limit_is_taken(field: str, end: int) -> None:
    made = answer_to(goal(goal="check logs", **{field: BUDGET_LIMITS[field][end]}), BUILT_IN)
    assert isinstance(made, PlanCreated)
    assert getattr(made.budgets, field) == BUDGET_LIMITS[field][end]


def test_the_longest_goal_is_taken_and_characters_are_counted_not_bytes() -> None:
    read, problems = read_goal(json.dumps({"goal": "🔥" * GOAL_CHARS_MAX}, ensure_ascii=False).encode())
    assert problems == [] and read is not None


def test_all_reasons_are_told_at_once() -> None:
    _, problems = read_goal(goal(goal=" ", tasks=["a.b", "*"], directive="x y", hosts=[], max_steps=0, token_budget=-1))
    assert [problem.field for problem in problems] == [
        "goal", "tasks[0]", "tasks[1]", "directive", "hosts", "max_steps", "token_budget",
    ]  # fmt: skip


def test_a_key_that_stands_twice_means_its_last_value() -> None:
    read, _ = read_goal(b'{"goal":"one","goal":"two"}')
    assert read is not None and read.goal == "two"


@pytest.mark.parametrize("left,right", [("[", "]"), ('{"a":', "}")], ids=["lists", "objects"])
def test_params_of_any_depth_are_planned_or_refused(left: str, right: str) -> None:
    """What passes the check must pass the planner, too. Python's recursion limit counts the caller's frames, so the
    depth at which the two part is not known beforehand: all of them are tried.
    """
    for depth in [*range(1, 1100), 5000]:
        data = b'{"goal":"check logs","params":{"x":%s}}' % (left * depth + "1" + right * depth).encode()
        try:
            answer = answer_to(data, BUILT_IN)
            encode(rejected(answer) if isinstance(answer, list) else answer)
        except RecursionError:
            pytest.fail(f"depth {depth} passes the check of a goal and ends the planner")
        if isinstance(answer, list):
            assert answer[0].field in ("params", "payload")


@pytest.mark.parametrize(
    "data",
    [
        goal(tasks=["noop"] * 100, max_steps=100, params={"x": "y" * 16_000}),
        goal(tasks=["noop"] * 100, max_steps=100, params={"x": "\x01" * 2_600}),
        goal(tasks=["noop"] * 100, max_steps=100, hosts=["h" * 60] * 950),
        goal(tasks=["noop"] * 10, hosts=["h" * 60] * 700, params={"x": "y" * 15_000}),
    ],
    ids=["100 steps with 16 kB of params", "escapes", "100 steps on 950 hosts", "10 steps, much of both"],
)
def test_the_largest_accepted_goals_are_answered_within_one_message(data: bytes) -> None:
    """A plan over the server's limit is neither `plan.created` nor `goal.rejected`: the goal would hang for ever."""
    answer = answer_to(data, BUILT_IN)
    assert len(encode(answer if isinstance(answer, PlanCreated) else rejected(answer))) < PAYLOAD_BYTES_MAX


# -- whatever it is ------------------------------------------------------------------------------------------

json_values: st.SearchStrategy[Any] = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=20)
    | st.sampled_from(["noop", "default", "check logs", "*", "", "a.b", " "]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=6), inner, max_size=4),
    max_leaves=8,
)
likely = st.fixed_dictionaries(
    {},
    optional={
        "goal": st.text(max_size=80) | json_values,
        "tasks": st.lists(st.sampled_from(["noop", "fail", "gpu_report", "x", "a.b"]) | st.text(max_size=3), max_size=4)
        | json_values,
        "directive": st.sampled_from(["default", "D1", ""]) | json_values,
        "params": st.dictionaries(st.text(max_size=6), json_values, max_size=4) | json_values,
        "hosts": st.lists(st.sampled_from(["tower", "mini"]) | st.text(max_size=3), max_size=3) | json_values,
        "max_steps": st.integers(-1, 102) | json_values,
        "time_budget_s": st.integers(-1, 86_402) | json_values,
        "token_budget": st.integers(-1, 1_000_002) | json_values,
    },
)


def holds(data: bytes) -> None:
    read, problems = read_goal(data)
    assert (read is None) == bool(problems)
    answer = answer_to(data, BUILT_IN)
    if isinstance(answer, PlanCreated):
        assert read is not None
        assert controls.outsiders_hash(encode(answer)) == answer.plan_hash or _floats(answer.params)
        ids = [step.id for step in answer.steps]
        assert ids and len(set(ids)) == len(ids) <= answer.budgets.max_steps
        for field, (least, most) in BUDGET_LIMITS.items():
            assert least <= getattr(answer.budgets, field) <= most
    else:
        assert answer
        assert all(problem.reason and problem.field for problem in answer)
        json.loads(encode(rejected(answer)))


def _floats(value: Any) -> bool:
    """Whether a number is in it whose spelling two JSON writers may choose; test_plan_hash.py names those."""
    if isinstance(value, dict):
        return any(_floats(one) for one in value.values())
    if isinstance(value, list):
        return any(_floats(one) for one in value)
    return isinstance(value, float)


@settings(max_examples=250)
@given(st.binary(max_size=200))
@example(b"\xff")
@example(b'{"goal":"\\ud800"}')
def test_any_bytes_are_answered(data: bytes) -> None:
    holds(data)


@settings(max_examples=250)
@given(likely)
def test_any_likely_goal_is_answered(fields: dict[str, Any]) -> None:
    holds(json.dumps(fields).encode())

"""The plan's hash: the same everywhere, and anybody can recompute it from the plan's JSON."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.planner.service import answer_to
from shared.catalogue import BUILT_IN
from shared.events import PlanCreated, encode
from shared.plan import plan_hash
from tests.controls import outsiders_hash

ROOT = Path(__file__).resolve().parents[2]

# The hash changes whenever what determines a plan does: rules, catalogue, directive, shape of a step. Whoever changes
# one of these on purpose pins the new value here, and knows that plans made before are other plans.
PINNED = json.loads(Path(__file__).with_name("pinned_hashes.json").read_text())
GOALS = {name: json.dumps(one["goal"]).encode() for name, one in PINNED.items()}


def made(data: bytes) -> PlanCreated:
    answer = answer_to(data, BUILT_IN)
    assert isinstance(answer, PlanCreated), answer
    return answer


@pytest.mark.parametrize("name", PINNED)
def test_the_hash_is_the_pinned_one(name: str) -> None:
    assert made(GOALS[name]).plan_hash == PINNED[name]["plan_hash"]


@pytest.mark.parametrize("name", PINNED)
def test_an_outsider_computes_the_same_hash_from_the_wire(name: str) -> None:
    """json and hashlib of the standard library are enough: sorted keys, no white space, UTF-8 unescaped."""
    plan = made(GOALS[name])
    assert outsiders_hash(encode(plan)) == plan.plan_hash


@pytest.mark.parametrize(
    "params",
    [
        {"x": 1e22},
        {"x": 1e16},
        {"x": 1e-7},
        {"x": -0.0},
        {"x": 5e-324},
        {"x": 0.1, "y": 1.0, "z": 123456789.125},
        {"\u007f\u2028/\\\b\f\u0001": '"\u0000\ufffd🔥'},
        {"é": 1, "e\u0301": 2, "z": 3, "Z": 4, "": 5, "\U00010000": 6, "\uffff": 7},
        {"n": 2**64, "m": -(2**63), "b": True, "nil": None, "l": [[], {}, [{}]]},
    ],
    ids=repr,
)
def test_an_outsider_computes_the_same_hash_whatever_the_params(params: dict[str, object]) -> None:
    """Numbers and letters that two JSON writers might spell differently."""
    plan = made(json.dumps({"goal": "check logs", "params": params}).encode())
    assert outsiders_hash(encode(plan)) == plan.plan_hash


def test_the_hash_is_the_same_in_every_process_under_any_hash_seed() -> None:
    """Three processes, three PYTHONHASHSEEDs, one plan to the byte."""
    code = (
        "import json,sys\n"
        "from services.planner.service import answer_to\n"
        "from shared.catalogue import BUILT_IN\n"
        "from shared.events import encode\n"
        "for goal in json.load(sys.stdin):\n"
        "    print(encode(answer_to(goal.encode(), BUILT_IN)).decode())\n"
    )
    goals = json.dumps([goal.decode() for goal in GOALS.values()])
    said = set()
    for seed in ("0", "1", "4242"):
        env = {**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": str(ROOT)}
        done = subprocess.run(
            [sys.executable, "-c", code], input=goals, env=env, cwd=ROOT, capture_output=True, text=True, check=True
        )
        said.add(done.stdout)
    assert len(said) == 1
    plans = [json.loads(line) for line in said.pop().split("\n") if line]
    assert [plan["plan_hash"] for plan in plans] == [one["plan_hash"] for one in PINNED.values()]


@pytest.mark.parametrize(
    "other",
    [
        {"goal": "check the logs"},
        {"goal": "check logs", "params": {"a": 1}},
        {"goal": "check logs", "hosts": ["tower"]},
        {"goal": "check logs", "token_budget": 9999},
        {"goal": "check logs", "time_budget_s": 3599},
        {"goal": "check logs", "max_steps": 9},
        {"tasks": ["log_triage"]},
    ],
    ids=json.dumps,
)
def test_whatever_determines_the_run_changes_the_hash(other: dict[str, object]) -> None:
    assert made(json.dumps(other).encode()).plan_hash != made(b'{"goal":"check logs"}').plan_hash


def test_what_a_goal_leaves_out_or_says_as_null_is_the_same_plan() -> None:
    nulls = b'{"goal":"check logs","tasks":null,"directive":null,"params":null,"hosts":null,"max_steps":null}'
    spelled = b'{"goal":"check logs","tasks":null,"directive":"default","params":{},"hosts":null,"max_steps":10,' \
        b'"time_budget_s":3600,"token_budget":10000}'  # fmt: skip
    assert made(nulls) == made(b'{"goal":"check logs"}') == made(spelled)


anything = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)
seen = st.characters(categories=["L", "M", "N", "P", "S"])
words = st.tuples(anything, seen, anything).map("".join)  # a goal that shows nothing is blank


@settings(max_examples=60)
@given(goal=words, params=st.dictionaries(st.text(max_size=5), st.integers() | st.text(max_size=9), max_size=3))
def test_the_same_goal_gives_the_same_bytes_and_a_hash_that_anybody_verifies(goal: str, params: dict[str, int]) -> None:
    try:
        data = json.dumps({"goal": goal, "params": params}, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return
    first, second = made(data), made(data)
    assert encode(first) == encode(second)
    assert plan_hash(first) == first.plan_hash == outsiders_hash(encode(first))

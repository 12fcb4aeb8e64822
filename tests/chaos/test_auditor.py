"""The auditor can find: a good stream passes, and every damage to it is named."""

import json
from typing import Any

import pytest

from tests.auditor import NS, Message, audit

HASH = "h"


def plan(*names: str, **more: Any) -> dict[str, Any]:
    steps = [
        {"id": name, "task": "noop", "needs": list(names[i - 1 : i]), "max_attempts": 2, "timeout_s": 5, **more}
        for i, name in enumerate(names)
    ]
    return {"plan_hash": HASH, "steps": steps, "budgets": {"time_budget_s": 60}}


def end(status: str = "succeeded", **steps: str) -> dict[str, Any]:
    tokens = {"input": 0, "output": 0, "unknown_calls": 0}
    return {"status": status, "reason": "so it is", "steps": steps, "tokens": tokens, "duration_s": 5.0}


GOOD: list[tuple[str, Any]] = [
    ("goal.submitted", {"tasks": ["noop", "noop"]}),
    ("plan.created.1", plan("a", "b")),
    ("run.started.1", {"plan_hash": HASH}),
    ("step.dispatched.1.a.1.noop", {"plan_hash": HASH}),
    ("step.failed.1.a.1", {"error": "e", "retryable": True}),
    ("step.dispatched.1.a.2.noop", {"plan_hash": HASH}),
    ("step.completed.1.a.2", {"outputs": {}}),
    ("step.dispatched.1.b.1.noop", {"plan_hash": HASH}),
    ("step.completed.1.b.1", {"outputs": {}}),
    ("run.completed.1", end(a="succeeded", b="succeeded")),
]


def stream(said: list[tuple[str, Any]]) -> list[Message]:
    """A message a second."""
    return [(subject, i, i * NS, json.dumps(body).encode()) for i, (subject, body) in enumerate(said, 1)]


def changed(at: int, *instead: tuple[str, Any]) -> list[tuple[str, Any]]:
    return [*GOOD[:at], *instead, *GOOD[at + 1 :]]


def test_a_good_stream_has_no_findings() -> None:
    assert audit(stream([*GOOD[:9], ("run.completed.1", {**GOOD[9][1], "duration_s": 6.0})])) == []


def test_a_rejected_goal_is_a_whole_story() -> None:
    assert audit(stream([GOOD[0], ("goal.rejected.1", {"reason": "no such task", "field": "tasks[0]"})])) == []


def test_a_late_word_of_a_zombie_is_no_finding() -> None:
    good = [*GOOD[:9], ("run.completed.1", {**GOOD[9][1], "duration_s": 6.0})]
    assert audit(stream([*good, ("step.failed.1.b.1", {"error": "worker_lost", "retryable": False})])) == []


TICK, ITS_GOAL = "schedule.ticked.nightly.60", ("goal.submitted.schedule_nightly_60", {"tasks": ["noop"]})
REJECTED = ("goal.rejected.2", {"reason": "no such task", "field": "tasks[0]"})


def test_a_tick_with_its_goal_is_no_finding() -> None:
    alarm = ("timer.fired.schedule.nightly", {"due": ""})
    assert audit(stream([(TICK, {"outcome": "ran"}), ITS_GOAL, REJECTED, alarm, alarm])) == []


DAMAGE: dict[str, tuple[list[tuple[str, Any]], str]] = {
    "lost": (GOOD[:9], "has no end"),
    "never planned": (GOOD[:1], "has no end"),
    "ended twice": ([*GOOD, GOOD[9]], "said at 10 and again at 11"),
    "done twice": ([*GOOD[:7], ("step.dispatched.1.a.3.noop", {"plan_hash": HASH})], "follows one that is completed"),
    "two at once": ([*GOOD[:4], ("step.dispatched.1.a.2.noop", {"plan_hash": HASH})], "follows one that is running"),
    "too soon": (changed(4, ("step.dispatched.1.b.1.noop", {"plan_hash": HASH})), "before a had ended"),
    "an end of nothing": (changed(3), "it was never dispatched"),
    "behind its end": ([*GOOD, ("step.skipped.1.b", {"reason": "?"})], "comes behind its end"),
    "rejected and planned": (changed(2, ("goal.rejected.1", {"reason": "?"})), "although it has a plan"),
    "another task": (changed(3, ("step.dispatched.1.a.1.fail", {"plan_hash": HASH})), "no step a with the task fail"),
    "another plan": (changed(2, ("run.started.1", {"plan_hash": "x"})), "without its plan"),
    "wrong steps": (changed(9, ("run.completed.1", end(a="succeeded", b="skipped"))), "its end says {'a'"),
    "wrong status": (changed(9, ("run.completed.1", end("failed", a="succeeded", b="succeeded"))), "stream says succ"),
    "still open": (changed(8), "still open"),
    "wrong duration": (changed(9, ("run.completed.1", {**GOOD[9][1], "duration_s": 99.0})), "says 99.0 s"),
    "nobody's": ([*GOOD, ("run.started.7", {"plan_hash": HASH})], "belongs to no goal"),
    "a tick without its goal": ([(TICK, {"outcome": "caught_up"})], "has 0 goals"),
    "a tick that ran twice": ([(TICK, {"outcome": "ran"}), ITS_GOAL, ITS_GOAL], "has 2 goals"),
    "a skipped tick that ran": ([(TICK, {"outcome": "skipped"}), ITS_GOAL, REJECTED], "has 1 goals"),
    "a goal before its tick": ([ITS_GOAL, (TICK, {"outcome": "late"})], "comes before its tick"),
    "a goal of no tick": ([ITS_GOAL], "belongs to no tick"),
    "before its time": (changed(7, ("timer.fired.1.deadline", {"due": "?"})), "before its time"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_damage_is_named(name: str) -> None:
    said, words = DAMAGE[name]
    found = audit(stream(said))
    assert any(words in one for one in found), found


def test_a_hole_in_the_stream_is_named() -> None:
    messages = stream(GOOD)
    assert "1 messages are missing, the first is 5" in audit(messages[:4] + messages[5:])

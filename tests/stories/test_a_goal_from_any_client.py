"""A goal from a program that knows nothing of Remit: one request to NATS, and the reply is the run's number."""

import base64
import json
from collections.abc import Iterator
from typing import Any

import pytest

from tests.stack import Stack, until
from tests.stories.wire import Wire


@pytest.fixture
def wire(remit: Stack) -> Iterator[Wire]:
    """A socket to the stack's NATS; its stream is there when this is given."""
    made = Wire(remit.nats_port)
    until(lambda: "error" not in made.request("$JS.API.STREAM.INFO.EVENTS", b""), "the stream EVENTS is there")
    yield made
    made.close()


def events(wire: Wire, run: int) -> list[tuple[str, dict[str, Any]]]:
    """Subject and payload of every event of a run after its goal, in the stream's order."""
    found = []
    after = run
    while True:
        asked = json.dumps({"seq": after + 1, "next_by_subj": f"*.*.{run}.>"}).encode()
        deeper = wire.request("$JS.API.STREAM.MSG.GET.EVENTS", asked)
        asked = json.dumps({"seq": after + 1, "next_by_subj": f"*.*.{run}"}).encode()
        flat = wire.request("$JS.API.STREAM.MSG.GET.EVENTS", asked)
        next_ones = [one["message"] for one in (deeper, flat) if "error" not in one]
        if not next_ones:
            return found
        message = min(next_ones, key=lambda one: one["seq"])
        after = message["seq"]
        found.append((message["subject"], json.loads(base64.b64decode(message["data"]))))


def ended(wire: Wire, run: int) -> list[tuple[str, dict[str, Any]]]:
    """The run's events, once it has its end."""
    until(lambda: any(subject == f"run.completed.{run}" for subject, _ in events(wire, run)), f"run {run} ends")
    return events(wire, run)


def test_a_raw_request_starts_a_run_and_its_reply_is_the_ack(wire: Wire) -> None:
    """One PUB with a reply subject: the answer is JetStream's own ack, and its sequence is the run's number."""
    ack = wire.request("goal.submitted", b'{"tasks": ["noop", "noop"]}')
    assert ack["stream"] == "EVENTS"
    run = ack["seq"]
    told = ended(wire, run)
    assert [subject for subject, _ in told] == [
        f"plan.created.{run}",
        f"run.started.{run}",
        f"step.dispatched.{run}.noop.1.noop",
        f"step.completed.{run}.noop.1",
        f"step.dispatched.{run}.noop-2.1.noop",
        f"step.completed.{run}.noop-2.1",
        f"run.completed.{run}",
    ]
    by_subject = dict(told)
    plan = by_subject[f"plan.created.{run}"]
    assert [step["task"] for step in plan["steps"]] == ["noop", "noop"]
    assert all({"id", "kind", "task", "inputs", "needs", "why"} <= step.keys() for step in plan["steps"])
    assert plan["directive"]["name"] == "default"
    assert plan["budgets"] == {"max_steps": 10, "time_budget_s": 3600, "token_budget": 10000}
    step = by_subject[f"step.completed.{run}.noop.1"]
    assert step["outputs"] == {}
    assert step["artifacts"] == []
    assert step["host"] == "testhost"
    assert step["started_at"] <= step["ended_at"]
    end = by_subject[f"run.completed.{run}"]
    assert end["status"] == "succeeded"
    assert end["steps"] == {"noop": "succeeded", "noop-2": "succeeded"}
    assert (end["tokens"]["input"], end["tokens"]["output"]) == (0, 0)
    assert end["duration_s"] > 0


def test_words_lead_to_a_plan(wire: Wire) -> None:
    """A goal in words is planned by its words, and the plan says why."""
    run = wire.request("goal.submitted", b'{"goal": "check logs and GPU"}')["seq"]
    told = dict(ended(wire, run))
    steps = told[f"plan.created.{run}"]["steps"]
    assert [step["task"] for step in steps] == ["log_triage", "gpu_report"]
    assert all(step["why"] for step in steps)
    assert told[f"run.completed.{run}"]["status"] == "succeeded"


def test_a_goal_under_a_name_of_its_own_is_a_goal(wire: Wire) -> None:
    """`goal.submitted.ann` is ann's goal."""
    run = wire.request("goal.submitted.ann", b'{"tasks": ["noop"]}')["seq"]
    assert dict(ended(wire, run))[f"run.completed.{run}"]["status"] == "succeeded"


@pytest.mark.parametrize(
    ("goal", "field"),
    [
        (b"check logs", "payload"),
        (b'{"goal": "\xff"}', "payload"),
        (b'{"goal": 7}', "goal"),
        (b'{"goal": "   "}', "goal"),
        (b'{"tasks": ["brew_coffee"]}', "tasks[0]"),
        (b'{"goal": "check logs", "directive": "nobody"}', "directive"),
        (b'{"goal": "check logs", "max_steps": 0}', "max_steps"),
        (b'{"goal": "check logs", "time_budget_s": 86401}', "time_budget_s"),
        (b'{"goal": "check logs", "token_budget": -1}', "token_budget"),
        (b"{}", "goal"),
        (b"", "payload"),
    ],
)
def test_what_cannot_be_planned_is_rejected_with_its_field(wire: Wire, goal: bytes, field: str) -> None:
    run = wire.request("goal.submitted", goal)["seq"]
    subject = f"goal.rejected.{run}"
    until(lambda: any(said == subject for said, _ in events(wire, run)), f"{subject} is said")
    told = events(wire, run)
    assert [said for said, _ in told] == [subject]
    assert told[0][1]["reason"]
    assert told[0][1]["field"] == field

"""`remit playbooks`, and runs of them on a real stack: set, planned, run, repeated from a step, and taken away."""

import json
from pathlib import Path
from typing import Any

import pytest

from shared.bus import Bus
from tests.stack import ROOT, Stack

pytestmark = pytest.mark.usefixtures("client")

TWO_STEPS = """
description = "Does nothing, decides, and fails when it is told to"
words = [["spring", "cleaning"]]

[params.fails]
type = "boolean"
default = false

[[steps]]
id = "last"
task = "fail"
needs = ["choice"]
when = "decisions.choice"

[[steps]]
id = "first"
task = "noop"

[[steps]]
id = "choice"
kind = "decision"
needs = ["first"]
condition = "params.fails"

[[steps]]
id = "word"
kind = "notify"
needs = ["choice"]
message = "first is ${steps.first.status}, choice ${decisions.choice}"
"""


def ran(remit: Stack, *argv: str, code: int = 0) -> Any:
    done = remit.remit(*argv, "-o", "json")
    assert done.returncode == code, done.stderr
    return json.loads(done.stdout) if done.stdout.strip() else done.stderr


def put(remit: Stack, name: str, text: str) -> None:
    path = remit.folder / f"{name}.toml"
    path.write_text(text)
    ran(remit, "playbooks", "set", name, "--file", str(path))


def test_the_built_in_ones_are_there_and_shown_as_they_are_written(remit: Stack) -> None:
    rows = {row["name"]: row for row in ran(remit, "playbooks", "ls")}
    assert rows["fleet_health"]["built_in"] and rows["fleet_health"]["steps"] == 5
    shown = remit.remit("playbooks", "show", "fleet_health").stdout
    assert shown == (ROOT / "playbooks" / "fleet_health.toml").read_text()


def test_a_playbook_is_set_run_by_its_words_and_repeated(remit: Stack) -> None:
    """One run that succeeds, one that fails, and that one again from the step that failed."""
    put(remit, "spring", TWO_STEPS)
    fine = ran(remit, "submit", "spring cleaning", "--wait")
    assert fine["status"] == "succeeded"
    states = {step["id"]: step for step in fine["steps"]}
    assert {name: state["status"] for name, state in states.items()} == {
        "first": "succeeded", "choice": "succeeded", "last": "skipped", "word": "succeeded",
    }  # fmt: skip
    assert states["word"]["outputs"]["message"] == "first is succeeded, choice false"
    failed = ran(remit, "submit", "--playbook", "spring", "--param", "fails=true", "--wait", code=1)
    assert {step["id"]: step["status"] for step in failed["steps"]}["last"] == "failed"
    again = ran(remit, "submit", "--retry-of", str(failed["run"]), "--from-step", "last", "--wait", code=1)
    attempts = {step["id"]: step["attempts"] for step in again["steps"]}
    assert attempts["last"] == 1 and attempts["first"] == attempts["choice"] == 0
    assert "step last failed" in again["reason"]


@pytest.mark.parametrize(
    "argv,field",
    [
        (["--retry-of", "1000000"], "retry_of"),
        (["--playbook", "nowhere"], "playbook"),
        (["--playbook", "fleet_health", "--param", "window_s=soon"], "params.window_s"),
    ],
)
def test_what_cannot_be_run_is_rejected_by_its_field(remit: Stack, argv: list[str], field: str) -> None:
    done = remit.remit("submit", *argv, "--wait")
    assert done.returncode == 3 and field in done.stderr, done.stderr
    planned = remit.remit("plan", *argv)
    assert planned.returncode == 3 and f"rejected: {field}:" in planned.stderr, planned.stderr


def test_a_plan_is_shown_with_what_each_step_waits_for(remit: Stack) -> None:
    put(remit, "shown", TWO_STEPS.replace('id = "first"', 'id = "first"\napproval = true'))
    said = remit.remit("plan", "--playbook", "shown").stdout
    assert "2. choice (decision): a step of playbook shown, after first" in said
    assert "after choice, when decisions.choice" in said
    assert "1. first: a step of playbook shown, asks for approval" in said


def test_a_broken_one_is_refused_with_every_reason_and_changes_nothing(remit: Stack, tmp_path: Path) -> None:
    path = tmp_path / "broken.toml"
    path.write_text(TWO_STEPS.replace('"noop"', '"nope"').replace("decisions.choice", "decisions.last"))
    done = remit.remit("playbooks", "set", "broken", "--file", str(path))
    assert done.returncode == 2, done.stderr
    assert "steps.first.task: there is no task 'nope'" in done.stderr
    assert "steps.last.when: " in done.stderr and "steps.word.message: " in done.stderr
    assert ran(remit, "playbooks", "show", "broken", code=6)


def test_a_built_in_one_is_replaced_until_it_is_taken_back(remit: Stack, client: Bus) -> None:
    put(remit, "fleet_health", '[[steps]]\nid = "only"\ntask = "noop"\n')
    assert not {row["name"]: row for row in ran(remit, "playbooks", "ls")}["fleet_health"]["built_in"]
    assert [step["id"] for step in ran(remit, "submit", "--playbook", "fleet_health", "--wait")["steps"]] == ["only"]
    ran(remit, "playbooks", "rm", "fleet_health")
    assert len(ran(remit, "plan", "--playbook", "fleet_health")["steps"]) == 5
    assert "built in" in ran(remit, "playbooks", "rm", "fleet_health", code=6)
    assert ran(remit, "playbooks", "rm", "nothing", code=6)

"""What is done as it was asked, and has a consequence that nobody sees just then: a warning on stderr."""

import json

import pytest

from tests.stack import Stack

pytestmark = pytest.mark.usefixtures("client")

AT_NIGHT = ("--cron", "0 2 * * *")


def test_a_task_that_replaces_one_says_what_that_one_had(remit: Stack) -> None:
    first = remit.remit("tasks", "add", "greet", "--keyword", "hello", "--timeout", "300")
    assert (first.returncode, "warning" in first.stderr) == (0, False)
    again = remit.remit("tasks", "add", "greet", "--description", "Greets", "-o", "json")
    assert again.returncode == 0
    assert json.loads(again.stdout)["timeout_s"] == 600
    said = next(line for line in again.stderr.splitlines() if line.startswith("warning: there was a task greet"))
    assert 'it had description "", keywords ["hello"], timeout_s 300' in said
    same = remit.remit("tasks", "add", "greet", "--description", "Greets")
    assert "which was the same" in same.stderr


@pytest.mark.parametrize(
    ("goal", "field", "unknown"),
    [
        (["--goal", "check logs", "--directive", "nowhere"], "directive", "nowhere"),
        (["--task", "nothing"], "tasks", "nothing"),
        (["--playbook", "never"], "playbook", "never"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_schedule_whose_ticks_would_be_rejected_says_so(
    remit: Stack, goal: list[str], field: str, unknown: str
) -> None:
    """It is made all the same: what it names may come later."""
    made = remit.remit("schedules", "add", f"for_{field}", *AT_NIGHT, *goal, "-o", "json")
    assert made.returncode == 0
    assert json.loads(made.stdout)["name"] == f"for_{field}"
    warnings = [line for line in made.stderr.splitlines() if line.startswith("warning: as things stand")]
    assert [line for line in warnings if field in line and unknown in line], made.stderr


def test_a_schedule_that_can_be_planned_warns_of_nothing(remit: Stack) -> None:
    made = remit.remit("schedules", "add", "fine", *AT_NIGHT, "--goal", "check logs")
    assert made.returncode == 0
    assert "warning" not in made.stderr

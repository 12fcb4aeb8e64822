"""`remit directives`: versions, limits, and that nobody changes one under another's hands."""

import json
from typing import Any

import pytest

from shared.bus import Bus
from shared.subjects import CONFIG_BUCKET, directive_key
from tests.stack import Stack

pytestmark = pytest.mark.usefixtures("client")


def ran(remit: Stack, *argv: str, code: int = 0) -> Any:
    done = remit.remit("directives", *argv, "-o", "json")
    assert done.returncode == code, done.stderr
    return json.loads(done.stdout) if done.stdout.strip() else done.stderr


def test_the_built_in_ones_are_there(remit: Stack) -> None:
    assert {"D1", "D2", "D3", "D4", "default"} <= {row["name"] for row in ran(remit, "ls")}
    assert ran(remit, "show", "D2")["task_list"] == ["gpu_report"]


def test_a_directive_governs_what_a_goal_may_do(remit: Stack, client: Bus) -> None:
    """Set, used, refused by it, changed, and its history told."""
    made = ran(remit, "set", "narrow", "--task", "noop", "--maximum", "max_steps=2", "--default", "max_steps=1")
    assert (made["version"], made["task_list"], made["maximum"]["max_steps"]) == (1, ["noop"], 2)
    fine = remit.remit("submit", "--task", "noop", "--directive", "narrow", "--wait")
    assert fine.returncode == 0, fine.stderr
    refused = remit.remit("submit", "--task", "fail", "--directive", "narrow", "--wait")
    assert refused.returncode == 3 and "does not allow task 'fail'" in refused.stderr
    over = remit.remit("submit", "--task", "noop", "--directive", "narrow", "--max-steps", "3", "--wait")
    assert over.returncode == 3 and "max_steps" in over.stderr
    assert ran(remit, "set", "narrow", "--max-concurrent-runs", "1")["version"] == 2
    ran(remit, "rm", "narrow")
    history = [row["directive"] and row["directive"]["version"] for row in ran(remit, "history", "narrow")]
    assert history == [1, 2, None]
    gone = remit.remit("submit", "--task", "noop", "--directive", "narrow", "--wait")
    assert gone.returncode == 3 and "no directive 'narrow'" in gone.stderr
    again = ran(remit, "set", "narrow", "--task", "fail", "--if-version", "0")
    assert again["version"] == 3, "two that differ bear no version alike"
    assert ran(remit, "set", "narrow", "--max-concurrent-runs", "2")["version"] == 4


async def test_a_history_tells_what_somebody_has_put_there_by_hand(remit: Stack, client: Bus) -> None:
    """Fields that are left out mean what they mean to a planner; what is none is told, and the rest with it."""
    for value in (b'{"name":"hand"}', b"no JSON", b'{"name":"hand","version":"two"}'):
        await client.kv_put(CONFIG_BUCKET, directive_key("hand"), value)
    assert [row["directive"] for row in ran(remit, "history", "hand")] == [
        {"name": "hand"}, "no JSON", {"name": "hand", "version": "two"},
    ]  # fmt: skip
    done = remit.remit("directives", "history", "hand")
    assert done.returncode == 0, done.stderr
    first, *others = done.stdout.splitlines()
    assert first.endswith("version 0: *")
    assert ["cannot be read" in one for one in others] == [True, True]


def test_a_change_over_a_version_that_is_gone_is_refused(remit: Stack) -> None:
    ran(remit, "set", "shared", "--task", "noop", "--if-version", "0")
    ran(remit, "set", "shared", "--on-failure", "continue", "--if-version", "1")
    assert "at version 2" in ran(remit, "set", "shared", "--on-failure", "stop", "--if-version", "1", code=1)
    assert ran(remit, "show", "shared")["on_failure"] == "continue"


@pytest.mark.parametrize(
    "argv,field",
    [
        (["set", "a.b", "--task", "noop"], "name"),
        (["set", "x", "--task", "nope"], "task_list"),
        (["set", "x", "--default", "max_steps=101"], "max_steps"),
        (["set", "x", "--default", "max_steps=9", "--maximum", "max_steps=3"], "defaults.max_steps"),
        (["set", "x", "--default", "steps=3"], "budget"),
        (["set", "x", "--approver", "ann", "--approvals-needed", "2"], "approvals_needed"),
        (["set", "x", "--approver", "42"], "approvers"),
        (["set", "x", "--approval-required", "a.b,noop"], "approval_required"),
        (["set", "x", "--host", "a.b"], "hosts"),
        (["set", "x", "--channel", "#ops"], "channels"),
    ],
)
def test_what_cannot_be_a_directive_is_refused_by_its_field(remit: Stack, argv: list[str], field: str) -> None:
    assert field in ran(remit, *argv, code=2)
    assert ran(remit, "show", "x", code=6)


def test_all_that_is_wrong_is_told_at_once(remit: Stack) -> None:
    said = ran(remit, "set", "x", "--task", "nope", "--host", "a.b", "--approver", "1", "--default", "max_steps=100",
               "--maximum", "max_steps=2", code=2)  # fmt: skip
    assert [field for field in ("task_list", "hosts", "approvers", "defaults.max_steps") if field not in said] == []


def test_every_field_can_be_set_and_taken_back(remit: Stack) -> None:
    full = ["--approval-required", "noop, deploy", "--approver", "ann", "--approver", "bob", "--approvals-needed", "2",
            "--requester-may-approve", "--approval-expires-s", "60", "--max-parallel-steps", "3", "--host", "tower",
            "--host", "mini", "--channel", "ops", "--on-failure", "rollback"]  # fmt: skip
    made = ran(remit, "set", "full", *full)
    assert (made["approval_required"], made["approvers"], made["approvals_needed"]) == (
        ["noop", "deploy"], ["ann", "bob"], 2,
    )  # fmt: skip
    assert (made["requester_may_approve"], made["approval_expires_s"], made["max_parallel_steps"]) == (True, 60, 3)
    assert (made["hosts"], made["channels"], made["on_failure"]) == (["tower", "mini"], ["ops"], "rollback")
    assert ran(remit, "show", "full") == made
    less = ran(remit, "set", "full", "--approval-required", "true", "--approver", "", "--no-requester-may-approve",
               "--host", "", "--channel", "")  # fmt: skip
    assert less["approval_required"] is True and less["requester_may_approve"] is False
    assert (less["approvers"], less["hosts"], less["channels"]) == ([], None, [])
    assert less["approval_expires_s"] == 60
    assert ran(remit, "set", "full", "--approval-required", "false")["approval_required"] is False


def test_a_directives_hosts_hold_for_every_goal(remit: Stack, client: Bus) -> None:
    ran(remit, "set", "fenced", "--host", "tower")
    refused = remit.remit("plan", "--task", "noop", "--directive", "fenced", "--host", "mini")
    assert refused.returncode == 3 and "hosts: directive fenced does not allow mini" in refused.stderr
    made = remit.remit("plan", "--task", "noop", "--directive", "fenced", "-o", "json")
    assert json.loads(made.stdout)["steps"][0]["inputs"] == {"hosts": ["tower"]}


def test_what_was_never_set_is_not_found(remit: Stack) -> None:
    assert "built in" in ran(remit, "rm", "D1", code=6)
    assert ran(remit, "rm", "nothing", code=6)
    assert ran(remit, "history", "D1", code=6)


def test_a_schedule_under_a_directive_that_goes_is_named(remit: Stack) -> None:
    """Removed all the same; a built-in one is only as it was at first, so nothing is rejected for it."""
    at_night = ["--cron", "0 2 * * *", "--goal", "check logs"]
    for name in ("gone", "D4"):
        ran(remit, "set", name, "--task", "log_triage")
        assert remit.remit("schedules", "add", f"under_{name}", *at_night, "--directive", name).returncode == 0
    gone, restored = remit.remit("directives", "rm", "gone"), remit.remit("directives", "rm", "D4")
    assert (gone.returncode, restored.returncode) == (0, 0)
    assert "warning: schedule under_gone" in gone.stderr
    assert "warning" not in restored.stderr

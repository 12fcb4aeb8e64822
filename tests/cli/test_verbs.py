"""Every verb against a running stack: data on stdout, talk on stderr, an exit code that scripts can branch on."""

import json
import os
import subprocess
import sys
from typing import Any

import pytest

from shared.bus import Bus
from shared.subjects import CONFIG_BUCKET, allow_key
from tests import forking
from tests.stack import ROOT, Stack, free_port, until

NEVER = str((1 << 53) - 1)  # a run that there is not


def cli(*argv: str, url: str | None = None) -> subprocess.CompletedProcess[str]:
    """The command with nobody at its NATS, or with `url`."""
    environment = {**os.environ, "REMIT_NATS_URL": url or f"nats://127.0.0.1:{free_port()}", "PYTHONPATH": str(ROOT)}
    return forking.run([sys.executable, "-m", "cli", *argv], environment, 60)


def parsed(done: subprocess.CompletedProcess[str]) -> Any:
    """Stdout as JSON and nothing else; the command succeeded."""
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def stack(remit: Stack) -> Stack:
    until(lambda: remit.remit("runs").returncode == 0, "the registry answers")
    return remit


@pytest.fixture(scope="module")
def done(stack: Stack) -> int:
    """A run that has succeeded and is in the registry."""
    run = parsed(stack.remit("submit", "check logs and GPU", "--wait", "-o", "json"))["run"]
    until(lambda: any(row["run"] == run and row["status"] == "succeeded" for row in listed(stack)), "it is listed")
    return int(run)


def listed(stack: Stack) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = parsed(stack.remit("runs", "-o", "json"))["runs"]
    return rows


VERBS_THAT_SPEAK = [
    ["submit", "check logs"],
    ["runs"],
    ["schedules", "ls"],
    ["show", "1"],
    ["watch", "1"],
    ["report", "1"],
    ["artifacts", "1"],
    ["artifacts", "1", "report.md"],
    ["events", "1"],
    ["approvals"],
    ["approve", "1"],
    ["reject", "1", "a"],
    ["cancel", "1"],
    ["retry", "1"],
    ["replay", "1"],
    ["audit", "1"],
    ["audit", "--all"],
    ["proof", "seals"],
    ["proof", "export", "1"],
    ["proof", "check"],
    ["tokens"],
    ["hosts"],
    ["allow", "ls"],
    ["allow", "add", "web"],
    ["allow", "rm", "web"],
    ["allow", "disable", "web"],
    ["tasks", "ls"],
    ["tasks", "add", "mine"],
    ["tasks", "rm", "mine"],
    ["rebuild"],
]


@pytest.mark.parametrize("argv", VERBS_THAT_SPEAK, ids=" ".join)
def test_nobody_there_is_unreachable(argv: list[str]) -> None:
    """Exit 5 and one line that names the address."""
    url = f"nats://127.0.0.1:{free_port()}"
    answered = cli(*argv, url=url)
    assert answered.returncode == 5, answered.stderr
    assert answered.stdout == ""
    assert url.removeprefix("nats://") in answered.stderr
    assert len(answered.stderr.splitlines()) == 1


def test_a_secret_in_the_url_is_not_repeated() -> None:
    answered = cli("runs", "--nats", f"nats://ann:hunter2@127.0.0.1:{free_port()}")
    assert answered.returncode == 5
    assert "hunter2" not in answered.stderr + answered.stdout


@pytest.mark.parametrize(
    "argv",
    [[verb, NEVER] for verb in ("show", "watch", "report", "artifacts", "events", "replay", "audit")],
    ids=" ".join,
)
def test_a_run_that_there_is_not_is_not_found(stack: Stack, argv: list[str]) -> None:
    answered = stack.remit(*argv)
    assert answered.returncode == 6, answered.stderr
    assert answered.stdout == ""
    assert NEVER in answered.stderr


def test_a_message_that_is_no_goal_is_no_run(stack: Stack, done: int) -> None:
    """The number of a plan's message is a number of the stream and of no run."""
    assert stack.remit("show", str(done + 1)).returncode == 6


def test_an_artifact_or_entry_that_there_is_not_is_not_found(stack: Stack, done: int) -> None:
    missing = stack.remit("artifacts", str(done), "nothing.txt")
    assert missing.returncode == 6
    assert "report.md" in missing.stderr  # it says what there is
    for argv in (["allow", "rm", "nothing"], ["allow", "enable", "nothing"], ["tasks", "rm", "nothing"]):
        assert stack.remit(*argv).returncode == 6


def test_a_plan_is_printed_without_a_stack() -> None:
    """Built-in directives, and a notice on stderr; two processes print the same bytes."""
    first, second = cli("plan", "check logs and GPU", "-o", "json"), cli("plan", "check logs and GPU", "-o", "json")
    plan = parsed(first)
    assert [step["task"] for step in plan["steps"]] == ["log_triage", "gpu_report"]
    assert len(plan["plan_hash"]) == 64
    assert "built-in" in first.stderr
    assert first.stdout == second.stdout


def test_a_plan_for_people_has_its_steps_reasons_and_hash() -> None:
    answered = cli("plan", "check logs and GPU", "--max-steps", "7")
    assert answered.returncode == 0
    lines = answered.stdout.splitlines()
    assert lines[0].startswith("1. log_triage: ")
    assert lines[1].startswith("2. gpu_report: ")
    assert any("7 steps" in line for line in lines)
    assert lines[-1].startswith("plan hash ")


def test_the_plan_that_is_printed_is_the_plan_that_runs(stack: Stack) -> None:
    plan = parsed(stack.remit("plan", "report GPU usage", "-o", "json"))
    run = parsed(stack.remit("submit", "report GPU usage", "--wait", "-o", "json"))
    assert run["plan_hash"] == plan["plan_hash"]


@pytest.mark.parametrize("verb", ["plan", "submit"])
def test_what_cannot_be_planned_is_rejected(stack: Stack, verb: str) -> None:
    argv = [verb, "--task", "brew_coffee", *(["--wait"] if verb == "submit" else [])]
    answered = stack.remit(*argv)
    assert answered.returncode == 3, answered.stderr
    assert answered.stdout == "" or verb == "submit"
    assert "brew_coffee" in answered.stderr
    rejected = json.loads(stack.remit(*argv, "-o", "json").stdout)
    assert "brew_coffee" in rejected["reason"]


def test_submit_prints_the_run_s_number(stack: Stack) -> None:
    answered = stack.remit("submit", "--task", "noop")
    assert answered.returncode == 0
    word, number = answered.stdout.split()
    assert word == "run"
    assert int(number) > 0
    assert f"remit watch {number}" in answered.stderr


def test_the_run_s_number_is_data_also_for_who_waits(stack: Stack) -> None:
    answered = stack.remit("submit", "--task", "noop", "--wait")
    word, number = answered.stdout.split()
    assert word == "run"
    assert f"run {number} succeeded" in answered.stderr


@pytest.mark.parametrize(
    ("argv", "code", "status"),
    [
        (["--task", "noop"], 0, "succeeded"),
        (["--task", "noop", "--task", "fail", "--task", "noop"], 1, "failed"),
        (["--task", "brew_coffee"], 3, "rejected"),
        (["check logs", "--directive", "nobody"], 3, "rejected"),
    ],
)
def test_submit_and_watch_end_with_the_run_s_status(stack: Stack, argv: list[str], code: int, status: str) -> None:
    answered = stack.remit("submit", *argv, "--wait", "-o", "json")
    assert answered.returncode == code, answered.stderr
    run = json.loads(answered.stdout)
    assert run["status"] == status
    watched = stack.remit("watch", str(run["run"]))
    assert watched.returncode == code
    assert status in watched.stderr
    again = stack.remit("watch", str(run["run"]), "-o", "json")
    assert again.returncode == code
    assert json.loads(again.stdout)["status"] == status


def test_a_time_budget_that_ends_is_exit_7(stack: Stack) -> None:
    """A task that nobody works on, and one second: the run ends by itself within a few."""
    assert stack.remit("tasks", "add", "nobody-s").returncode == 0
    answered = stack.remit("submit", "--task", "nobody-s", "--time-budget", "1", "--wait", "-o", "json", timeout_s=20)
    assert answered.returncode == 7, answered.stderr
    run = json.loads(answered.stdout)
    assert run["status"] == "timed_out"
    assert "1 s" in run["reason"]


def test_show_tells_the_whole_run(stack: Stack, done: int) -> None:
    shown = parsed(stack.remit("show", str(done), "-o", "json"))
    assert (shown["run"], shown["status"], shown["goal"]) == (done, "succeeded", "check logs and GPU")
    assert [step["status"] for step in shown["steps"]] == ["succeeded", "succeeded"]
    assert {one["name"] for one in shown["artifacts"]} == {"report.md", "triage.json", "gpu_report.json"}
    assert shown["tokens"] == {"input": 0, "output": 0, "unknown_calls": 0}
    text = stack.remit("show", str(done)).stdout
    assert text.startswith(f"run {done} succeeded")
    assert "artifact report.md" in text


def test_runs_are_listed_by_status_and_page(stack: Stack, done: int) -> None:
    for _ in range(2):
        parsed(stack.remit("submit", "--task", "fail", "-o", "json"))
    until(lambda: len(parsed(stack.remit("runs", "--status", "failed", "-o", "json"))["runs"]) >= 2, "both failed")
    one = parsed(stack.remit("runs", "--limit", "1", "-o", "json"))
    [newest] = one["runs"]
    older = parsed(stack.remit("runs", "--before", str(newest["run"]), "-o", "json"))["runs"]
    assert all(row["run"] < newest["run"] for row in older)
    assert done in [row["run"] for row in older]
    text = stack.remit("runs")
    assert "check logs and GPU" in text.stdout
    assert all(
        row["status"] == "failed" for row in parsed(stack.remit("runs", "--status", "failed", "-o", "json"))["runs"]
    )


def test_the_report_is_the_artifact(stack: Stack, done: int) -> None:
    report = stack.remit("report", str(done))
    assert report.returncode == 0
    assert report.stdout == stack.remit("artifacts", str(done), "report.md").stdout
    names = {one["name"] for one in parsed(stack.remit("artifacts", str(done), "-o", "json"))["artifacts"]}
    assert "gpu_report.json" in names
    assert "report.md" in stack.remit("artifacts", str(done)).stdout


def test_a_run_without_a_report_says_so(stack: Stack) -> None:
    run = parsed(stack.remit("submit", "--task", "noop", "--wait", "-o", "json"))["run"]
    answered = stack.remit("report", str(run))
    assert answered.returncode == 6
    assert answered.stdout == ""
    assert parsed(stack.remit("artifacts", str(run), "-o", "json"))["artifacts"] == []


def test_an_artifact_is_written_to_a_file(stack: Stack, done: int, tmp_path: Any) -> None:
    to = tmp_path / "triage.json"
    answered = stack.remit("artifacts", str(done), "triage.json", "--to", str(to))
    assert answered.returncode == 0, answered.stderr
    assert answered.stdout == ""
    assert json.loads(to.read_bytes())["run"] == str(done)


def test_events_are_the_run_s_in_order(stack: Stack, done: int) -> None:
    events = parsed(stack.remit("events", str(done), "-o", "json"))
    assert [one["seq"] for one in events] == sorted(one["seq"] for one in events)
    assert events[0]["subject"] == "goal.submitted"
    assert events[-1]["subject"] == f"run.completed.{done}"
    assert all(one["applied"] for one in events)


@pytest.mark.parametrize("more", ["", "-o json"])
def test_a_reader_who_leaves_early_is_no_error(stack: Stack, done: int, more: str) -> None:
    """`remit events 1 | head -1`."""
    piped = subprocess.run(
        ["sh", "-c", f"{sys.executable} -m cli events {done} {more} | head -n 1"],
        env=stack.environment,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert piped.stdout.count("\n") == 1
    assert piped.stderr == ""


def test_hosts_tokens_and_tasks_are_data(stack: Stack, done: int) -> None:
    hosts = parsed(stack.remit("hosts", "-o", "json"))
    assert [(one["host"], one["agents"]) for one in hosts] == [("testhost", [])]
    assert parsed(stack.remit("tokens", "-o", "json"))["total"]["calls"] == 0
    tasks = {one["name"] for one in parsed(stack.remit("tasks", "ls", "-o", "json"))}
    assert {"log_triage", "gpu_report", "service_map", "noop", "fail"} <= tasks
    assert parsed(stack.remit("tasks", "add", "greet", "-o", "json"))["name"] == "greet"
    assert parsed(stack.remit("tasks", "rm", "greet", "-o", "json")) == {"removed": "greet"}
    for verb in ("hosts", "tokens"):
        assert stack.remit(verb).returncode == 0


def test_the_allow_list_is_written_and_read(stack: Stack) -> None:
    """The same source twice is one entry; it is switched by its id or by its source."""
    first = stack.remit("allow", "add", "web", "--tag", "shop")
    assert stack.remit("allow", "add", "web").stdout == first.stdout
    [entry] = [one for one in parsed(stack.remit("allow", "ls", "-o", "json")) if one["source"] == "docker:web"]
    assert (entry["id"], entry["host"], entry["enabled"]) == (first.stdout.strip(), "*", True)
    assert stack.remit("allow", "disable", "web").returncode == 0
    [entry] = [one for one in parsed(stack.remit("allow", "ls", "-o", "json")) if one["id"] == entry["id"]]
    assert entry["enabled"] is False
    assert "docker:web" in stack.remit("allow", "ls").stdout
    assert stack.remit("allow", "rm", entry["id"]).returncode == 0
    assert all(one["id"] != entry["id"] for one in parsed(stack.remit("allow", "ls", "-o", "json")))


async def test_an_entry_that_was_written_by_hand_goes_by_its_key(stack: Stack, client: Bus) -> None:
    """It says another id of itself: one that was told as removed, by that id, would have gone on allowing."""
    await client.kv_put(CONFIG_BUCKET, allow_key("by-hand"), b'{"id":"x","source":"docker:web"}')
    assert [row["id"] for row in parsed(stack.remit("allow", "ls", "-o", "json"))] == ["by-hand"]
    assert stack.remit("allow", "rm", "x").returncode == 6
    assert stack.remit("allow", "disable", "by-hand").returncode == 0
    assert [row["enabled"] for row in parsed(stack.remit("allow", "ls", "-o", "json"))] == [False]
    assert stack.remit("allow", "rm", "by-hand").returncode == 0
    assert await client.kv_get(CONFIG_BUCKET, allow_key("by-hand")) is None


def test_rebuild_says_that_the_tables_are_identical(stack: Stack, done: int) -> None:
    result = parsed(stack.remit("rebuild", "-o", "json"))
    assert result["identical"] is True
    assert result["before"] == result["after"]
    assert set(result["after"]) >= {"runs", "steps", "events"}
    assert "identical" in stack.remit("rebuild").stdout


def test_doctor_names_what_is_missing(stack: Stack) -> None:
    """No agents run here, so the doctor says so and ends with 1; without NATS it still looks at the machine."""
    answered = stack.remit("doctor", "-o", "json")
    assert answered.returncode == 1
    state = {one["what"]: one["state"] for one in json.loads(answered.stdout)}
    assert (state["NATS"], state["registry"], state["log agents"]) == ("ok", "ok", "failing")
    alone = cli("doctor", "-o", "json")
    assert alone.returncode == 0
    assert {one["what"]: one["state"] for one in json.loads(alone.stdout)}["NATS"] == "missing"


def test_what_strangers_write_cannot_drive_the_terminal(stack: Stack) -> None:
    """A goal may hold any text: no escape sequence of it comes out, in a list, a run, or while it is watched."""
    evil = "check logs \x1b]0;owned\x07\x1b[2J\x9b1A \u202e"
    run = str(parsed(stack.remit("submit", evil, "-o", "json"))["run"])
    until(lambda: any(str(row["run"]) == run for row in listed(stack)), "it is listed")
    for argv in (["runs"], ["show", run], ["watch", run], ["events", run]):
        answered = stack.remit(*argv)
        assert answered.returncode == 0, answered.stderr
        assert not set("\x1b\x07\x9b\u202e") & set(answered.stdout + answered.stderr), argv
    assert parsed(stack.remit("show", run, "-o", "json"))["goal"] == evil  # programs get it as it is

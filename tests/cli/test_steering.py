"""`remit approve`, `cancel` and `retry` against runs whose plans the test has made: no planner is needed for them."""

import asyncio
import hashlib
import json
from collections.abc import Iterator
from typing import Any

import pytest
from click.testing import CliRunner

from cli.__main__ import main
from shared.append import Appender
from shared.bus import Bus
from shared.clock import NS_PER_S, now_ns, rfc3339
from shared.events import Artifact, PlanCreated, encode
from shared.plan import Reused
from shared.run import Run
from shared.story import read_story
from shared.subjects import (
    ARTIFACTS_BUCKET,
    artifact,
    goal_submitted,
    plan_created,
    run_cancel_requested,
)
from tests import controls
from tests.conftest import ready, until
from tests.stack import Stack, stack


@pytest.fixture(scope="module")
def remit(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """NATS, executor and registry: plans come from the tests."""
    with stack(tmp_path_factory.mktemp("stack"), "executor", "registry") as made:
        asyncio.run(ready(made, ("executor", "registry")))
        yield made


@pytest.fixture
def bus(client: Bus) -> Bus:
    return client


async def planned(bus: Bus, plan: PlanCreated, principal: str = "") -> int:
    appender = await Appender(bus).start()
    run = await appender.append(goal_submitted(principal), b'{"tasks": ["noop"]}', headers={})
    await appender.append(plan_created(run), encode(plan))
    appender.stop()
    return run


async def reaches(bus: Bus, run: int, status: str) -> Run:
    found: list[Run] = []

    async def is_so() -> bool:
        found[:] = [(await read_story(bus, run)).run]
        return found[0].status == status

    await until(is_so)
    return found[0]


def waiting(**changes: Any) -> PlanCreated:
    """A plan that waits for an hour."""
    return controls.plan(controls.step("rest", kind="wait", inputs={"seconds": 3600}), **changes)


def parsed(remit: Stack, *argv: str, code: int = 0) -> Any:
    done = remit.remit(*argv, "-o", "json")
    assert done.returncode == code, done.stderr
    return json.loads(done.stdout)


async def test_two_open_questions_have_to_be_told_apart(remit: Stack, bus: Bus) -> None:
    """Exit 2 names them; each is answered by its step, and a list of steps says what waits."""
    gated = controls.plan(controls.step("a", approval=True), controls.step("b", approval=True))
    run = await planned(bus, gated)

    async def both_ask() -> bool:
        return len((await read_story(bus, run)).run.approvals) == 2

    await until(both_ask)
    unclear = remit.remit("approve", str(run))
    assert unclear.returncode == 2 and "a, b" in unclear.stderr
    steps = {step["id"]: step for step in parsed(remit, "show", str(run))["steps"]}
    assert steps["a"]["status"] == "awaiting_approval" and steps["a"]["waits_until"] is not None
    page = parsed(remit, "approvals", str(run), "--limit", "1")
    assert [row["step"] for row in page["approvals"]] == ["b"]
    rest = parsed(remit, "approvals", str(run), "--before", str(page["next"]))
    assert [row["step"] for row in rest["approvals"]] == ["a"]
    assert parsed(remit, "approve", str(run), "a")["counts"] is True
    assert remit.remit("approve", str(run), "--reason", "only b is left").returncode == 0
    assert (await reaches(bus, run, "succeeded")).approvals["b"].reason == "only b is left"


async def test_an_approval_step_says_who_has_approved(remit: Stack, bus: Bus) -> None:
    ask = controls.step("sign", kind="approval", inputs={"message": "restart the shop?"})
    run = await planned(bus, controls.plan(ask, controls.step("go", needs=["sign"])))

    async def asks() -> bool:
        return "sign" in (await read_story(bus, run)).run.approvals

    await until(asks)
    assert "restart the shop?" in remit.remit("show", str(run)).stdout
    assert remit.remit("approve", str(run), "--as", "ann").returncode == 0
    ended = await reaches(bus, run, "succeeded")
    assert ended.steps["sign"].outputs["approved_by"] == ["ann"]


async def test_a_waiting_run_is_cancelled_and_says_by_whom(remit: Stack, bus: Bus) -> None:
    run = await planned(bus, waiting())
    await reaches(bus, run, "running")
    shown = parsed(remit, "show", str(run))["steps"][0]
    assert (shown["kind"], shown["status"]) == ("wait", "running")
    told = parsed(remit, "cancel", str(run), "--as", "ann", "--reason", "enough", "--wait", code=3)
    assert (told["status"], told["reason"]) == ("cancelled", "cancelled by ann: enough")
    assert told["steps"][0]["status"] == "cancelled"
    again = remit.remit("cancel", str(run))
    assert again.returncode == 1 and f"run {run} has ended already: cancelled" in again.stderr


async def test_a_queued_run_is_cancelled_without_having_begun(remit: Stack, bus: Bus) -> None:
    """One slot: the second run waits for it, is cancelled, and the slot goes to the third."""
    one_slot = controls.directive("one-slot", max_concurrent_runs=1)
    first, second, third = [await planned(bus, waiting(directive=one_slot)) for _ in range(3)]
    await reaches(bus, second, "queued")
    assert remit.remit("cancel", str(second)).returncode == 0
    cancelled = await reaches(bus, second, "cancelled")
    assert (cancelled.started_ns, cancelled.steps["rest"].status) == (0, "skipped")
    assert remit.remit("cancel", str(first)).returncode == 0
    await reaches(bus, third, "running")
    assert remit.remit("cancel", str(third), "--wait").returncode == 3


async def test_a_request_that_means_nothing_keeps_nobody_from_cancelling(remit: Stack, bus: Bus) -> None:
    """The bare subject holds a server's ack: the request is said beside it."""
    run = await planned(bus, waiting())
    await bus.request(run_cancel_requested(run), controls.ACK)
    assert remit.remit("cancel", str(run), "--wait").returncode == 3
    assert (await reaches(bus, run, "cancelled")).reason == "cancelled by somebody"


async def test_what_is_no_run_is_not_found(remit: Stack, bus: Bus) -> None:
    for argv in (["cancel"], ["retry"], ["approve"], ["reject"]):
        assert remit.remit(*argv, str(10**15)).returncode == 6, argv


async def test_a_retry_is_a_goal_that_names_its_run(remit: Stack, bus: Bus) -> None:
    run = await planned(bus, controls.plan())
    await reaches(bus, run, "succeeded")
    again = parsed(remit, "retry", str(run), "--from", "a", "--as", "ann")["run"]
    goal = (await read_story(bus, again)).told[0]
    assert json.loads(goal.data) == {"retry_of": run, "from_step": "a"}
    assert goal.subject == goal_submitted("ann")
    assert remit.remit("retry", str(run), "--from", "No Step").returncode == 2


async def test_what_was_reused_is_shown_and_fetched_from_where_it_lies(remit: Stack, bus: Bus) -> None:
    """The new run announces the old one's report; its bytes are the old run's."""
    content = b"# all is well\n"
    await bus.object_put(ARTIFACTS_BUCKET, artifact(1, "report.md"), content)
    sha256 = hashlib.sha256(content).hexdigest()
    kept = Artifact(name="report.md", sha256=sha256, size_bytes=len(content), media_type="text/markdown", from_run=1)
    plan = controls.plan(
        controls.step("a"),
        controls.step("b", needs=["a"]),
        retry_of=1,
        from_step="b",
        reused={"a": Reused(outputs={"n": 1}, artifacts=[kept], host="tower")},
    )
    run = await planned(bus, plan)
    await reaches(bus, run, "succeeded")
    shown = parsed(remit, "show", str(run))
    assert (shown["retry_of"], [step["reused_from"] for step in shown["steps"]]) == (1, [1, None])
    assert "reused from run 1" in remit.remit("show", str(run)).stdout
    assert "reused from run 1: a" in remit.remit("watch", str(run)).stderr
    report = remit.remit("report", str(run))
    assert (report.returncode, report.stdout) == (0, content.decode())
    [row] = parsed(remit, "artifacts", str(run))["artifacts"]
    assert (row["step"], row["from_run"]) == ("a", 1)


async def test_decisions_notices_and_waits_are_told_as_they_happen(remit: Stack, bus: Bus) -> None:
    notice = {"message": "disk is full", "severity": "critical"}
    rest = controls.step("rest", kind="wait", inputs={"seconds": 0.1})
    run = await planned(bus, controls.plan(rest, controls.step("tell", kind="notify", needs=["rest"], inputs=notice)))
    told = remit.remit("watch", str(run))
    assert told.returncode == 0, told.stderr
    assert "rest waits for 0.1 s" in told.stderr
    assert "notice (critical): disk is full" in told.stderr


def test_a_schedule_begins_by_the_server_s_clock(remit: Stack, client: Bus, monkeypatch: pytest.MonkeyPatch) -> None:
    """Executors compare it with the stream's stamps: a host that is behind would have ticks of the past made up for."""
    monkeypatch.setattr("cli.schedules.now", lambda: "2000-01-01T00:00:00Z")
    said = rfc3339(now_ns() - 60 * NS_PER_S)
    runner = CliRunner(env={"REMIT_NATS_URL": remit.url})
    for argv, field in ((["add", "mine", "--cron", "0 2 * * *", "--task", "noop"], "since"),
                        (["pause", "mine"], "since"), (["resume", "mine"], "resumed")):  # fmt: skip
        done = runner.invoke(main, ["schedules", *argv, "-o", "json"])
        assert done.exit_code == 0, done.output
        assert said < json.loads(done.stdout)[field] < rfc3339(now_ns() + 60 * NS_PER_S)

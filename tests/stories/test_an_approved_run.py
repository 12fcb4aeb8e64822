"""A run that waits for a yes: asked, answered by who may, and begun or ended by it."""

import json
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest

from cli.follow import summary
from shared.bus import Bus
from shared.plan import Directive
from shared.story import read_story
from shared.subjects import CONFIG_BUCKET, approval_granted, directive_key, goal_submitted
from tests import conftest
from tests.stack import Stack, until
from tests.stories.wire import Wire

pytestmark = pytest.mark.usefixtures("client")


async def directive(client: Bus, name: str, **what: Any) -> None:
    """Lay down a directive that asks before the run."""
    made = Directive(name=name, task_list=["noop"], approval_required=True, **what)
    await client.kv_put(CONFIG_BUCKET, directive_key(name), msgspec.json.encode(made))


@pytest.fixture
def wire(remit: Stack) -> Iterator[Wire]:
    made = Wire(remit.nats_port)
    yield made
    made.close()


async def submitted(remit: Stack, client: Bus, name: str, *argv: str) -> int:
    """A run under the directive, once it asks."""
    done = remit.remit("submit", "--task", "noop", "--directive", name, "-o", "json", *argv)
    assert done.returncode == 0, done.stderr
    run = int(json.loads(done.stdout)["run"])

    async def asks() -> bool:
        return bool((await read_story(client, run)).run.approvals)

    await conftest.until(asks)
    return run


async def shown(client: Bus, run: int) -> dict[str, Any]:
    """The run as `remit show` says it."""
    found: dict[str, Any] = msgspec.to_builtins(summary(await read_story(client, run)))
    return found


async def ended(client: Bus, run: int) -> dict[str, Any]:
    """The run once it is over."""

    async def over() -> bool:
        return (await read_story(client, run)).run.ended

    await conftest.until(over)
    return await shown(client, run)


def listed(remit: Stack, *argv: str) -> list[dict[str, Any]]:
    done = remit.remit("approvals", "-o", "json", *argv)
    assert done.returncode == 0, done.stderr
    rows: list[dict[str, Any]] = json.loads(done.stdout)["approvals"]
    return rows


async def notes(client: Bus, run: int, subject: str) -> list[str]:
    """Why each message on a subject of the run changed nothing; "" when it did."""
    return [told.note for told in (await read_story(client, run)).told if told.subject == subject]


async def test_a_yes_lets_the_run_begin(remit: Stack, client: Bus) -> None:
    """It waits, is listed, is approved, runs, and its record says by whom and why."""
    await directive(client, "asks")
    run = await submitted(remit, client, "asks")
    waiting = await shown(client, run)
    assert (waiting["status"], waiting["started_at"]) == ("awaiting_approval", None)
    until(lambda: [row for row in listed(remit) if row["run"] == run], "the registry lists it")
    [row] = listed(remit, str(run))
    assert (row["step"], row["status"], row["is_open"], row["approvals_needed"]) == ("run", "pending", True, 1)
    assert "noop" in row["what"] and row["plan_hash"] == waiting["plan_hash"]
    assert f"remit approve {run}" in remit.remit("show", str(run)).stdout

    said = remit.remit("approve", str(run), "--as", "ann", "--reason", "looked at it")
    assert said.returncode == 0, said.stderr
    assert "approved" in said.stdout
    watched = remit.remit("watch", str(run))
    assert watched.returncode == 0
    assert "approved by ann (1 of 1): looked at it" in watched.stderr
    [approval] = (await shown(client, run))["approvals"]
    assert (approval["status"], approval["approved_by"], approval["reason"]) == ("approved", ["ann"], "looked at it")
    until(lambda: [row["status"] for row in listed(remit, str(run), "--all")] == ["approved"], "the registry knows")
    assert listed(remit, str(run)) == []


async def test_a_no_ends_the_run_with_its_reason(remit: Stack, client: Bus) -> None:
    await directive(client, "asks")
    run = await submitted(remit, client, "asks")
    assert remit.remit("reject", str(run), "--as", "bob", "--reason", "not tonight").returncode == 0
    watched = remit.remit("watch", str(run))
    assert watched.returncode == 3
    found = await shown(client, run)
    assert (found["status"], found["reason"]) == ("rejected", "the run was rejected by bob: not tonight")
    assert found["started_at"] is None
    late = remit.remit("approve", str(run), "--as", "ann")
    assert late.returncode == 3 and "has ended already: rejected" in late.stderr


async def test_nobody_answers_and_the_question_expires(remit: Stack, client: Bus) -> None:
    """The NATS server ends it; an answer that comes later finds it decided."""
    await directive(client, "hasty", approval_expires_s=1)
    run = await submitted(remit, client, "hasty")
    watched = remit.remit("watch", str(run))
    assert watched.returncode == 3
    assert "not approved in time" in watched.stderr
    [approval] = (await shown(client, run))["approvals"]
    assert (approval["status"], approval["approved_by"], approval["is_open"]) == ("expired", [], False)
    late = remit.remit("approve", str(run), "run", "--as", "ann")
    assert late.returncode == 3 and "expired before" in late.stderr
    until(lambda: [row["status"] for row in listed(remit, str(run), "--all")] == ["expired"], "the registry knows")


async def test_two_of_three_have_to_say_yes(remit: Stack, client: Bus) -> None:
    """One yes is one; the same person's second is none; a stranger's does not count."""
    await directive(client, "careful", approvers=["ann", "bob", "cy"], approvals_needed=2)
    run = await submitted(remit, client, "careful")
    first = remit.remit("approve", str(run), "--as", "ann", "-o", "json")
    told = json.loads(first.stdout)
    assert (first.returncode, told["counts"], told["status"], told["approved_by"]) == (0, True, "pending", ["ann"])
    again = remit.remit("approve", str(run), "--as", "ann")
    assert again.returncode == 0 and "1 of 2" in again.stdout and "had said so before" in again.stdout
    stranger = remit.remit("approve", str(run), "--as", "eve")
    assert stranger.returncode == 3
    assert "recorded, but it does not count: eve is not among the approvers (ann, bob, cy)" in stranger.stderr
    nobody = remit.remit("approve", str(run))
    assert nobody.returncode == 3 and "somebody is not among the approvers" in nobody.stderr
    assert (await shown(client, run))["status"] == "awaiting_approval"
    assert remit.remit("approve", str(run), "--as", "cy").returncode == 0
    assert (await ended(client, run))["status"] == "succeeded"
    assert (await shown(client, run))["approvals"][0]["approved_by"] == ["ann", "cy"]


async def test_who_asked_may_not_approve(remit: Stack, client: Bus) -> None:
    """Nor may somebody without a name, who may be the same; with `requester_may_approve` both may."""
    await directive(client, "asks")
    run = await submitted(remit, client, "asks", "--as", "ann")
    own = remit.remit("approve", str(run), "--as", "ann")
    assert own.returncode == 3 and "who asked (ann) may not approve" in own.stderr
    assert remit.remit("approve", str(run)).returncode == 3
    assert (await shown(client, run))["approvals"][0]["requester"] == "ann"
    assert remit.remit("approve", str(run), "--as", "bob").returncode == 0
    assert (await ended(client, run))["status"] == "succeeded"

    await directive(client, "trusts", requester_may_approve=True)
    trusted = await submitted(remit, client, "trusts", "--as", "ann")
    assert remit.remit("approve", str(trusted), "--as", "ann").returncode == 0
    assert (await ended(client, trusted))["status"] == "succeeded"


async def test_an_answer_to_another_question_does_not_count_and_is_in_nobody_s_way(
    remit: Stack, client: Bus, wire: Wire
) -> None:
    """A yes that names another plan is recorded and means nothing; the true one is said on the same subject."""
    await directive(client, "asks")
    run = await submitted(remit, client, "asks")
    forged = {"run": run, "step": "run", "plan_hash": "0" * 64, "answer": "granted"}
    wire.request(approval_granted(run, "run", "ann"), json.dumps(forged).encode())
    wire.request(approval_granted(run, "run"), b'{"stream":"EVENTS","seq":7}')
    assert (await shown(client, run))["status"] == "awaiting_approval"
    [note] = await notes(client, run, approval_granted(run, "run", "ann"))
    assert "another question" in note
    said = remit.remit("approve", str(run), "--as", "ann")
    assert said.returncode == 0, said.stderr
    assert (await notes(client, run, approval_granted(run, "run", "ann")))[1] == ""
    assert (await ended(client, run))["status"] == "succeeded"


async def test_a_yes_from_any_client_counts_when_it_is_to_the_question(remit: Stack, client: Bus, wire: Wire) -> None:
    """A program that knows nothing of Remit reads the question and answers it, with what stands in it."""
    await directive(client, "asks")
    run = await submitted(remit, client, "asks")
    events = json.loads(remit.remit("events", str(run), "-o", "json").stdout)
    [asked] = [one["data"] for one in events if one["subject"] == f"approval.requested.{run}.run"]
    yes = {name: asked[name] for name in ("run", "step", "plan_hash")}
    wire.request(approval_granted(run, "run", "ann"), json.dumps(yes).encode())
    assert (await ended(client, run))["status"] == "succeeded"


async def test_what_is_not_asked_cannot_be_answered(remit: Stack, client: Bus, wire: Wire) -> None:
    await directive(client, "asks")
    run = await submitted(remit, client, "asks")
    missing = remit.remit("approve", str(run), "noop")
    assert missing.returncode == 6 and "asks nothing for step noop; it asks for run" in missing.stderr
    free = wire.request(goal_submitted(), b'{"tasks": ["noop"]}')["seq"]
    assert (await ended(client, free))["status"] == "succeeded"
    assert "has ended already" in remit.remit("approve", str(free)).stderr
    assert remit.remit("approve", str(10**15)).returncode == 6


async def test_a_run_that_waits_for_a_yes_is_cancelled_at_once(remit: Stack, client: Bus) -> None:
    await directive(client, "asks")
    run = await submitted(remit, client, "asks")
    ended = remit.remit("cancel", str(run), "--as", "ann", "--reason", "wrong host", "--wait", "-o", "json")
    assert ended.returncode == 3, ended.stderr
    told = json.loads(ended.stdout)
    assert (told["status"], told["reason"]) == ("cancelled", "cancelled by ann: wrong host")
    until(lambda: [row["is_open"] for row in listed(remit, str(run), "--all")] == [False], "the registry knows")
    assert listed(remit, str(run)) == []
    assert remit.remit("approve", str(run)).returncode == 3

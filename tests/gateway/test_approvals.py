"""Approvals, cancel and retry over HTTP: what counts is what the stream says, and every refusal says why."""

import asyncio
from typing import Any

import aiohttp
import msgspec
import pytest

from shared.bus import Bus
from shared.plan import Directive
from shared.streams import last_seq
from shared.subjects import CONFIG_BUCKET, approval_rejected, directive_key, registry
from tests.gateway.conftest import Outsider, ended, problem, submitted


async def directive(bus: Bus, name: str, **what: Any) -> None:
    made = Directive(name=name, task_list=["noop", "elsewhere"], **{"approval_required": True, **what})
    await bus.kv_put(CONFIG_BUCKET, directive_key(name), msgspec.json.encode(made))


async def asking(web: aiohttp.ClientSession, bus: Bus, name: str = "asks", **what: Any) -> dict[str, Any]:
    """A run under a directive of its own that asks before it starts, once it does."""
    await directive(bus, name, **what)
    run = await submitted(web, {"tasks": ["noop"], "directive": name})
    async with asyncio.timeout(20):
        while True:
            async with web.get(f"/api/runs/{run}") as answer:
                view: dict[str, Any] = await answer.json()
            if view["approvals"]:
                return view
            await asyncio.sleep(0.02)


def yes(view: dict[str, Any], **changes: Any) -> dict[str, Any]:
    return {"answer": "approved", "plan_hash": view["plan_hash"], **changes}


async def test_a_question_is_listed_answered_and_remembered(web: aiohttp.ClientSession, bus: Bus) -> None:
    view = await asking(web, bus)
    run = view["run"]
    assert (view["status"], view["started_at"]) == ("awaiting_approval", None)
    query = {"run": run, "status": "pending", "min_seq": view["last_seq"]}
    async with web.get("/api/approvals", params=query) as answer:
        listed = await answer.json()
    assert listed["approvals"] == view["approvals"]
    assert listed["approvals"][0]["plan_hash"] == view["plan_hash"]
    async with web.post(f"/api/runs/{run}/approvals/run", json=yes(view, reason="looked at it")) as answer:
        told = await answer.json()
        assert answer.status == 200, told
    assert (told["status"], told["approved_by"], told["reason"]) == ("approved", [""], "looked at it")
    view = await ended(web, run)
    assert view["status"] == "succeeded"
    async with web.get("/api/approvals", params={"run": run, "min_seq": view["last_seq"]}) as answer:
        assert [row["status"] for row in (await answer.json())["approvals"]] == ["approved"]
    async with web.post(f"/api/runs/{run}/approvals/run", json=yes(view)) as answer:
        assert "approved before" in (await problem(answer, 409, "conflict"))["detail"]


async def test_a_no_ends_the_run(web: aiohttp.ClientSession, bus: Bus) -> None:
    view = await asking(web, bus)
    no = yes(view, answer="rejected", reason="not tonight")
    async with web.post(f"/api/runs/{view['run']}/approvals/run", json=no) as answer:
        assert answer.status == 200, await answer.text()
    over = await ended(web, view["run"])
    assert (over["status"], over["reason"]) == ("rejected", "the run was rejected by somebody: not tonight")


async def test_an_answer_to_another_plan_is_not_said(web: aiohttp.ClientSession, bus: Bus) -> None:
    view = await asking(web, bus)
    before = await last_seq(bus)
    async with web.post(f"/api/runs/{view['run']}/approvals/run", json=yes(view, plan_hash="0" * 64)) as answer:
        assert (await problem(answer, 409, "conflict"))["field"] == "plan_hash"
    assert await last_seq(bus) == before


async def test_nobody_by_name_is_refused_where_names_are_wanted(web: aiohttp.ClientSession, bus: Bus) -> None:
    view = await asking(web, bus, "named", approvers=["ann"])
    before = await last_seq(bus)
    async with web.post(f"/api/runs/{view['run']}/approvals/run", json=yes(view)) as answer:
        assert "not among the approvers (ann)" in (await problem(answer, 403, "refused"))["detail"]
    assert await last_seq(bus) == before
    await bus.request(
        approval_rejected(view["run"], "run", "ann"),
        msgspec.json.encode({"run": view["run"], "step": "run", "plan_hash": view["plan_hash"]}),
    )
    over = await ended(web, view["run"])
    assert over["approvals"][0]["rejected_by"] == "ann"
    question = msgspec.json.encode({"run": view["run"], "min_seq": over["last_seq"]})
    answer = msgspec.json.decode(await bus.request(registry("run"), question))
    assert answer["more"]["approvals"] == over["approvals"]


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (b"", "answer"),
        (b"{", "not JSON"),
        (b"\xff", "not JSON"),
        (b'{"answer":"approved"}', "plan_hash"),
        (b'{"answer":"maybe","plan_hash":"x"}', "maybe"),
        (b'{"answer":"approved","plan_hash":7}', "str"),
        (b'{"answer":"approved","plan_hash":"x","reason":[]}', "str"),
    ],
)
async def test_what_is_no_answer_is_refused(web: aiohttp.ClientSession, body: bytes, says: str) -> None:
    async with web.post("/api/runs/1/approvals/run", data=body) as answer:
        assert says in (await problem(answer, 400, "malformed"))["detail"]


async def test_a_reason_has_an_end(web: aiohttp.ClientSession, bus: Bus) -> None:
    view = await asking(web, bus)
    for path, body in (("approvals/run", yes(view, reason="x" * 2_001)), ("cancel", {"reason": "x" * 2_001})):
        async with web.post(f"/api/runs/{view['run']}/{path}", json=body) as answer:
            assert (await problem(answer, 400, "malformed"))["field"] == "reason"
    async with web.post(f"/api/runs/{view['run']}/cancel") as answer:
        assert answer.status == 202


async def test_what_is_not_asked_is_not_found(web: aiohttp.ClientSession, bus: Bus) -> None:
    view = await asking(web, bus)
    for path in (f"{view['run']}/approvals/noop", f"{view['run']}/approvals/%2e%2e", f"{10**15}/approvals/run"):
        async with web.post(f"/api/runs/{path}", json=yes(view)) as answer:
            assert answer.status == 404, path
    for what in ("cancel", "retry"):
        async with web.post(f"/api/runs/{10**15}/{what}", json={}) as answer:
            await problem(answer, 404, "not-found")
    async with web.post(f"/api/runs/{view['run']}/cancel", json={}) as answer:
        assert answer.status == 202


async def test_a_run_is_cancelled_once(web: aiohttp.ClientSession, bus: Bus) -> None:
    view = await asking(web, bus)
    async with web.post(f"/api/runs/{view['run']}/cancel", json={"reason": "wrong host"}) as answer:
        assert answer.status == 202
        assert (await answer.json())["stop_reason"] == "cancelled by somebody: wrong host"
    over = await ended(web, view["run"])
    assert (over["status"], over["approvals"][0]["is_open"]) == ("cancelled", False)
    async with web.post(f"/api/runs/{view['run']}/cancel") as answer:
        assert "has ended already: cancelled" in (await problem(answer, 409, "conflict"))["detail"]
    query = {"run": view["run"], "status": "pending", "min_seq": over["last_seq"]}
    async with web.get("/api/approvals", params=query) as answer:
        assert (await answer.json())["approvals"] == []


async def test_a_running_step_is_shown_as_it_is_told_to_end(
    web: aiohttp.ClientSession, bus: Bus, outsider: Outsider
) -> None:
    """Its worker does not know of cancelling and completes: the run is cancelled, and nothing follows the step."""
    await directive(bus, "free", approval_required=False)
    outsider.artifacts, outsider.run = [], 0
    outsider.gate.clear()
    run = await submitted(web, {"tasks": ["elsewhere", "noop"], "directive": "free"})
    async with asyncio.timeout(20):
        while outsider.run != run:
            await asyncio.sleep(0.02)
    async with web.post(f"/api/runs/{run}/cancel") as answer:
        told = await answer.json()
        assert (answer.status, told["status"]) == (202, "running")
    async with web.get(f"/api/runs/{run}") as answer:
        assert (await answer.json())["stop_reason"] == "cancelled by somebody"
    outsider.gate.set()
    over = await ended(web, run)
    assert over["status"] == "cancelled"
    assert [step["status"] for step in over["steps"]] == ["succeeded", "skipped"]
    assert over["steps"][1]["cause"] == "stopped"


async def test_a_retry_is_a_run_of_its_own(web: aiohttp.ClientSession) -> None:
    run = await submitted(web, {"tasks": ["noop"]})
    await ended(web, run)
    async with web.post(f"/api/runs/{run}/retry", json={"from_step": "noop"}) as answer:
        assert answer.status == 202, await answer.text()
        told = await answer.json()
        assert answer.headers["Location"] == f"/api/runs/{told['run']}"
    async with web.get(f"/api/runs/{told['run']}/events", params={"limit": 1}) as answer:
        assert (await answer.json())["events"][0]["body"] == {"retry_of": run, "from_step": "noop"}
    async with web.post(f"/api/runs/{run}/retry", json={"from_step": "No Step"}) as answer:
        assert (await problem(answer, 422, "invalid-goal"))["field"] == "from_step"


@pytest.mark.parametrize("path", ["approvals/run", "cancel", "retry"])
@pytest.mark.parametrize(
    ("headers", "status", "kind"),
    [
        ({"Sec-Fetch-Site": "cross-site"}, 403, "refused"),
        ({"Origin": "http://evil.example"}, 403, "refused"),
        ({"Host": "evil.example"}, 421, "misdirected"),
        ({"Content-Type": "text/plain", "Sec-Fetch-Site": "same-origin"}, 415, "media-type"),
    ],
    ids=["another site", "another origin", "a rebound name", "a form"],
)
async def test_another_sites_page_can_change_nothing(
    web: aiohttp.ClientSession, bus: Bus, path: str, headers: dict[str, str], status: int, kind: str
) -> None:
    run = await submitted(web, {"tasks": ["noop"]})
    await ended(web, run)
    before = await last_seq(bus)
    async with web.post(f"/api/runs/{run}/{path}", data=b"{}", headers=headers) as answer:
        await problem(answer, status, kind)
    assert await last_seq(bus) == before


@pytest.mark.parametrize(("query", "field"), [("status=open", "status"), ("run=x", "run"), ("limit=0", "limit")])
async def test_a_question_about_nothing_says_which_part(web: aiohttp.ClientSession, query: str, field: str) -> None:
    async with web.get(f"/api/approvals?{query}") as answer:
        assert (await problem(answer, 400, "malformed"))["field"] == field

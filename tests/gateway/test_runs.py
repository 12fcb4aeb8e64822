"""Goals in over HTTP, and what is shown of their runs."""

import asyncio
import hashlib
from typing import Any

import aiohttp
import msgspec
import pytest

from shared.bus import Bus
from shared.plan import canonical
from shared.streams import last_seq
from shared.subjects import plan_created, registry, run_completed, step_completed
from tests.conftest import until
from tests.gateway.conftest import WebStack, ended, problem, submitted


async def test_a_goal_is_accepted_with_the_number_of_its_run(web: aiohttp.ClientSession) -> None:
    async with web.post("/api/runs", json={"tasks": ["noop"]}) as answer:
        body = await answer.json()
        assert answer.status == 202
        assert answer.headers["Location"] == f"/api/runs/{body['run']}"
        assert body["url"] == answer.headers["Location"]
    assert (await ended(web, body["run"]))["status"] == "succeeded"


async def test_a_run_can_be_read_right_after_its_202(web: aiohttp.ClientSession) -> None:
    for _ in range(20):
        run = await submitted(web, {"tasks": ["noop"], "directive": "default"})
        async with web.get(f"/api/runs/{run}") as answer:
            assert answer.status == 200
            body = await answer.json()
            assert (body["run"], body["tasks"], body["directive"]) == (run, ["noop"], "default")


async def test_the_view_of_a_run_says_what_the_registry_says(web: aiohttp.ClientSession, bus: Bus) -> None:
    run = await submitted(web, {"tasks": ["noop", "fail", "noop"]})
    view = await ended(web, run)
    question = msgspec.json.encode({"run": run, "min_seq": view["last_seq"]})
    answer = msgspec.json.decode(await bus.request(registry("run"), question))
    assert answer["error"] is None, answer
    row = answer["rows"][0]
    assert {name: view[name] for name in row} == row
    assert [{name: step[name] for name in answer["more"]["steps"][0]} for step in view["steps"]] == answer["more"][
        "steps"
    ]
    assert view["status"] == "failed"
    assert [step["status"] for step in view["steps"]] == ["succeeded", "failed", "skipped"]


async def test_a_rejected_goal_is_a_run_that_says_why(web: aiohttp.ClientSession) -> None:
    run = await submitted(web, {"tasks": ["no_such_task"]})
    view = await ended(web, run)
    assert view["status"] == "rejected"
    assert "no_such_task" in view["reason"]
    async with web.get(f"/api/runs/{run}/plan") as answer:
        assert "was rejected" in (await problem(answer, 404, "not-found"))["detail"]
    async with web.get(f"/api/runs/{run}/report") as answer:
        assert "was rejected" in (await problem(answer, 404, "not-found"))["detail"]


async def test_the_plan_comes_as_it_was_said_so_that_its_hash_holds(web: aiohttp.ClientSession) -> None:
    run = await submitted(web, {"tasks": ["noop", "noop"]})
    await ended(web, run)
    async with web.get(f"/api/runs/{run}/plan") as answer:
        assert answer.headers["Content-Type"] == "application/json"
        plan = await answer.json()
    said = plan.pop("plan_hash")
    assert hashlib.sha256(canonical(plan)).hexdigest() == said
    assert [step["id"] for step in plan["steps"]] == ["noop", "noop-2"]


async def test_runs_come_newest_first_a_page_at_a_time(web: aiohttp.ClientSession) -> None:
    runs = [await submitted(web, {"tasks": ["noop"]}) for _ in range(5)]
    found: list[int] = []
    query: dict[str, Any] = {"limit": 2, "min_seq": runs[-1]}
    while not set(runs) <= set(found):
        async with web.get("/api/runs", params=query) as answer:
            page = await answer.json()
        assert len(page["runs"]) == 2
        found += [row["run"] for row in page["runs"]]
        query["before"] = page["next"]
    assert found == sorted(found, reverse=True)
    assert len(found) == len(set(found))


async def test_runs_can_be_asked_for_by_status(web: aiohttp.ClientSession) -> None:
    run = await submitted(web, {"tasks": ["fail"]})
    view = await ended(web, run)
    async with web.get("/api/runs", params={"status": "failed", "min_seq": view["last_seq"]}) as answer:
        page = await answer.json()
    assert page["runs"][0]["run"] == run
    assert {row["status"] for row in page["runs"]} == {"failed"}


async def test_events_come_in_order_with_their_bodies(web: aiohttp.ClientSession) -> None:
    run = await submitted(web, {"tasks": ["noop"], "goal": "check é"})
    view = await ended(web, run)
    async with web.get(f"/api/runs/{run}/events") as answer:
        body = await answer.json()
    kinds = [event["kind"] for event in body["events"]]
    assert kinds == [
        "goal.submitted", "plan.created", "run.started", "step.dispatched", "step.completed", "run.completed",
    ]  # fmt: skip
    assert body["events"][0]["body"] == {"tasks": ["noop"], "goal": "check é"}
    assert all(event["applied"] for event in body["events"])
    assert body["events"][-1]["seq"] == view["last_seq"]
    assert body["next"] is None


async def test_events_page_by_after_and_limit(web: aiohttp.ClientSession) -> None:
    run = await submitted(web, {"tasks": ["noop"]})
    await ended(web, run)
    found: list[str] = []
    after = 0
    while after is not None:
        async with web.get(f"/api/runs/{run}/events", params={"limit": 4, "after": after}) as answer:
            page = await answer.json()
        found += [event["kind"] for event in page["events"]]
        after = page["next"]
    assert len(found) == 6


async def test_what_a_stranger_says_twice_does_not_change_what_was_said_first(
    web: aiohttp.ClientSession, bus: Bus
) -> None:
    """The newest message of a subject is not the one that counts: the run is then read in full."""
    run = await submitted(web, {"tasks": ["noop"]})
    before = await ended(web, run)
    forged = b'{"status":"rolled_back","reason":"forged","steps":{}}'
    await bus.request(run_completed(run), forged)
    await bus.request(step_completed(run, "noop", 1), b'{"outputs":{"forged":true}}')
    async with web.get(f"/api/runs/{run}") as answer:
        after = await answer.json()
    assert after.pop("last_seq") == before.pop("last_seq") + 2
    assert after == before
    async with web.get(f"/api/runs/{run}/events") as answer:
        events = (await answer.json())["events"]
    assert [event["applied"] for event in events[-2:]] == [False, False]
    assert "takes no" in events[-1]["note"]


async def test_a_run_with_more_subjects_than_one_request_brings_is_read_in_full(
    web: aiohttp.ClientSession, bus: Bus
) -> None:
    run = await submitted(web, {"tasks": ["noop"]})
    before = await ended(web, run)
    for number in range(1_100):
        await bus.publish(step_completed(run, f"x{number}", 1), b'{"outputs":{}}')
    await bus.flush()

    async def stored() -> bool:
        return await last_seq(bus) >= before["last_seq"] + 1_100

    await until(stored)
    async with web.get(f"/api/runs/{run}/events", params={"limit": 1000, "after": before["last_seq"]}) as answer:
        first = await answer.json()
    async with web.get(f"/api/runs/{run}/events", params={"after": first["next"]}) as answer:
        second = await answer.json()
    assert len(first["events"]) + len(second["events"]) == 1_100
    async with web.get(f"/api/runs/{run}") as answer:
        assert (await answer.json())["status"] == "succeeded"


@pytest.mark.parametrize(
    "said",
    [b"\xff\xfe", b"", b"[" * 50_000, b'{"a":"\\ud800"}', b'{"n":NaN}', b'{"\n":1,\n"x":123456789012345678901234}'],
    ids=["not utf-8", "empty", "deep", "surrogate", "nan", "odd json"],
)
async def test_whatever_lies_on_a_runs_subjects_can_be_shown(web: aiohttp.ClientSession, bus: Bus, said: bytes) -> None:
    run = await submitted(web, {"tasks": ["noop"]})
    await ended(web, run)
    await bus.request(plan_created(run), said)
    await bus.request(f"run.boasted.{run}", said)
    async with web.get(f"/api/runs/{run}/events") as answer:
        assert answer.status == 200
        events = (await answer.json())["events"]
    assert [event["applied"] for event in events[-2:]] == [False, False]
    async with web.get(f"/api/runs/{run}/events", headers={"Accept": "text/event-stream"}) as answer:
        text = await answer.text()
    assert len([line for line in text.splitlines() if line.startswith("data: ")]) == len(events)


async def test_a_goal_that_is_no_json_is_shown_as_a_rejected_run(web: aiohttp.ClientSession, bus: Bus) -> None:
    ack = msgspec.json.decode(await bus.request("goal.submitted", b"\xff not json"))
    view = await ended(web, ack["seq"])
    assert (view["status"], view["goal"]) == ("rejected", None)
    async with web.get(f"/api/runs/{ack['seq']}/events") as answer:
        assert "not json" in (await answer.json())["events"][0]["body"]


async def test_a_hundred_goals_at_once_are_a_hundred_runs(web: aiohttp.ClientSession) -> None:
    runs = await asyncio.gather(*(submitted(web, {"tasks": ["noop"]}) for _ in range(100)))
    assert len(set(runs)) == 100
    assert all([(await ended(web, run))["status"] == "succeeded" for run in runs])


async def test_tokens_have_a_total_even_when_nothing_was_called(web: aiohttp.ClientSession) -> None:
    async with web.get("/api/tokens") as answer:
        body = await answer.json()
    assert set(body["total"]) == {"calls", "unknown_calls", "input_tokens", "output_tokens"}
    assert isinstance(body["tokens"], list)


async def test_hosts_are_agents_that_answer_and_hosts_that_have_worked(
    web: aiohttp.ClientSession, bus: Bus, stack: WebStack
) -> None:
    async def never(_data: bytes, _reply: str) -> None:
        raise AssertionError("discovery asks no endpoint")

    await bus.serve("gpu", "0.1.0", {"gpu.tower.report": never}, metadata={"host": "tower"})
    await bus.serve("logs", "0.1.0", {"logs.tower.sources": never}, metadata={"host": "tower"})
    await bus.serve("logs", "0.1.0", {"logs.x.sources": never}, metadata={"host": "../x y"})
    run = await submitted(web, {"tasks": ["noop"]})
    view = await ended(web, run)
    async with web.get("/api/runs", params={"min_seq": view["last_seq"]}) as answer:
        assert answer.status == 200
    async with web.get("/api/hosts") as answer:
        body = await answer.json()
    hosts = {row["host"]: row for row in body["hosts"]}
    assert [agent["name"] for agent in hosts["tower"]["agents"]] == ["gpu", "logs"]
    assert hosts["tower"]["steps"] == 0
    worked = hosts[view["steps"][0]["host"]]
    assert worked["steps"] > 0
    assert worked["agents"] == []
    assert "../x y" not in hosts
    assert body["notes"] == [] and body["next"] is None
    # A page at a time they are the same, each once, whether they have worked or only answer.
    await bus.serve("logs", "0.1.0", {"logs.a.sources": never}, metadata={"host": "a"})
    async with web.get("/api/hosts") as answer:
        whole = [row["host"] for row in (await answer.json())["hosts"]]
    told: list[str] = []
    page = ""
    while page is not None:
        async with web.get("/api/hosts", params={"limit": 1, "page": page}) as answer:
            body = await answer.json()
        assert len(body["hosts"]) == 1
        told, page = told + [row["host"] for row in body["hosts"]], body["next"]
    assert told == whole == sorted(whole) and len(whole) > 2


async def test_the_ledger_is_asked_over_http_too(web: aiohttp.ClientSession) -> None:
    """By model, usage, a day's page and a query; a bad word is told with its field."""
    run = await submitted(web, {"tasks": ["noop"]})
    await ended(web, run)
    async with web.get("/api/tokens?by=model") as answer:
        assert (await answer.json())["next"] is None
    async with web.get("/api/usage") as answer:
        assert "succeeded" in {row["status"] for row in (await answer.json())["runs"]}
    async with web.get("/api/daily") as answer:
        page = await answer.json()
    assert set(page) >= {"day", "runs", "failures", "approvals", "ticks", "tokens", "total", "next", "position"}
    async with web.post("/api/sql", json={"sql": "select count(*) as n from runs", "as_of": run}) as answer:
        told = await answer.json()
    assert told["rows"][0]["n"] >= 1 and told["cut"] is None and told["as_of"] == run
    for path, field in (
        ("/api/tokens?by=colour", "by"),
        ("/api/tokens?since=yesterday", "since"),
        ("/api/usage?since=2026-11-20&until=2026-11-19", "until"),
        ("/api/daily?day=soon", "day"),
        ("/api/tokens?by=run&page=x", "page"),
    ):
        async with web.get(path) as answer:
            assert (answer.status, (await answer.json())["field"]) == (400, field), path
    for body, field in (
        ({"sql": "copy runs to '/tmp/stolen.csv'"}, "sql"),
        ({}, "sql"),
        ({"sql": "select 1", "limit": 0}, "limit"),
        ({"sql": "select 1", "as_of": 1 << 60}, "as_of"),
    ):
        async with web.post("/api/sql", json=body) as answer:
            assert (answer.status, (await answer.json())["field"]) == (400, field), body

"""Following a run: server-sent events from its goal to its end, wherever one comes in."""

import asyncio
from typing import Any

import aiohttp
import msgspec
import pytest

from services.gateway.following import FOLLOWERS_MAX
from shared.bus import Bus
from shared.streams import last_seq
from shared.subjects import EVENTS
from tests.gateway.conftest import WITHIN_S, Outsider, ended, problem, submitted

STREAM = {"Accept": "text/event-stream"}


class Watched:
    """What a client hears, message by message; comments and `retry` are kept apart."""

    def __init__(self, answer: aiohttp.ClientResponse) -> None:
        assert answer.status == 200
        assert answer.headers["Content-Type"] == "text/event-stream; charset=utf-8"
        self._answer = answer
        self.comments = 0
        self.retry_ms = 0

    async def next(self) -> dict[str, Any] | None:
        """The next event's data, or None at the end of the stream."""
        fields: dict[str, str] = {}
        async with asyncio.timeout(WITHIN_S):
            async for raw in self._answer.content:
                line = raw.decode().rstrip("\n")
                if line.startswith(":"):
                    self.comments += 1
                elif line.startswith("retry: "):
                    self.retry_ms = int(line.removeprefix("retry: "))
                elif line:
                    name, _, value = line.partition(": ")
                    assert name not in fields, "an event must not be cut by a line break"
                    fields[name] = value
                elif fields:
                    data: dict[str, Any] = msgspec.json.decode(fields["data"])
                    assert fields["id"] == str(data["seq"])
                    assert fields["event"] == data["kind"]
                    return data
        return None

    async def until(self, kind: str) -> dict[str, Any]:
        while (event := await self.next()) is not None:
            if event["kind"] == kind:
                return event
        raise AssertionError(f"the stream ended without {kind}")

    async def rest(self) -> list[dict[str, Any]]:
        found = []
        while (event := await self.next()) is not None:
            found.append(event)
        return found


async def test_a_run_is_followed_live_to_its_end(web: aiohttp.ClientSession, outsider: Outsider) -> None:
    outsider.gate.clear()
    run = await submitted(web, {"tasks": ["elsewhere"]})
    async with web.get(f"/api/runs/{run}/events", headers=STREAM) as answer:
        watched = Watched(answer)
        first = await watched.next()
        assert first is not None
        assert (first["kind"], first["seq"]) == ("goal.submitted", run)
        await watched.until("step.dispatched")
        outsider.gate.set()
        rest = await watched.rest()
    assert [event["kind"] for event in rest] == ["step.completed", "run.completed"]
    assert rest[0]["body"]["outputs"] == {"by": "an outsider"}
    assert all(event["applied"] for event in rest)
    assert watched.retry_ms > 0


async def test_a_quiet_run_is_kept_alive_by_comments(web: aiohttp.ClientSession, outsider: Outsider) -> None:
    outsider.gate.clear()
    run = await submitted(web, {"tasks": ["elsewhere"]})
    async with web.get(f"/api/runs/{run}/events", headers=STREAM) as answer:
        watched = Watched(answer)
        await watched.until("step.dispatched")
        following = asyncio.create_task(watched.until("run.completed"))
        async with asyncio.timeout(WITHIN_S):
            while watched.comments < 2:
                await asyncio.sleep(0.01)
        outsider.gate.set()
        await following


@pytest.mark.parametrize("by", ["header", "query"])
async def test_who_comes_back_goes_on_behind_the_last_event(
    web: aiohttp.ClientSession, outsider: Outsider, by: str
) -> None:
    outsider.gate.clear()
    run = await submitted(web, {"tasks": ["elsewhere"]})
    async with web.get(f"/api/runs/{run}/events", headers=STREAM) as answer:
        seen = await Watched(answer).until("run.started")
    headers = {**STREAM, "Last-Event-ID": str(seen["seq"])} if by == "header" else STREAM
    params = {"after": str(seen["seq"])} if by == "query" else {}
    async with web.get(f"/api/runs/{run}/events", headers=headers, params=params) as answer:
        watched = Watched(answer)
        event = await watched.next()
        assert event is not None
        assert event["kind"] == "step.dispatched"
        outsider.gate.set()
        rest = await watched.rest()
    assert [event["kind"] for event in rest] == ["step.completed", "run.completed"]
    assert all(event["applied"] for event in rest), "what was not sent again was folded all the same"


async def test_a_run_that_is_over_is_told_whole_and_then_no_more(web: aiohttp.ClientSession) -> None:
    run = await submitted(web, {"tasks": ["noop"]})
    view = await ended(web, run)
    async with web.get(f"/api/runs/{run}/events", headers=STREAM) as answer:
        told = await Watched(answer).rest()
    async with web.get(f"/api/runs/{run}/events") as answer:
        assert told == (await answer.json())["events"]
    headers = {**STREAM, "Last-Event-ID": str(view["last_seq"])}
    async with web.get(f"/api/runs/{run}/events", headers=headers) as answer:
        assert answer.status == 204, "204 is what tells a browser to stay away"


async def test_a_rejected_goal_ends_its_stream(web: aiohttp.ClientSession) -> None:
    run = await submitted(web, {"tasks": ["no_such_task"]})
    async with web.get(f"/api/runs/{run}/events", headers=STREAM) as answer:
        told = await Watched(answer).rest()
    assert [event["kind"] for event in told] == ["goal.submitted", "goal.rejected"]


async def test_other_runs_are_not_heard(web: aiohttp.ClientSession, outsider: Outsider) -> None:
    outsider.gate.clear()
    run = await submitted(web, {"tasks": ["elsewhere"]})
    async with web.get(f"/api/runs/{run}/events", headers=STREAM) as answer:
        watched = Watched(answer)
        await watched.until("step.dispatched")
        other = await submitted(web, {"tasks": ["noop"]})
        await ended(web, other)
        outsider.gate.set()
        rest = await watched.rest()
    assert {event["subject"].split(".")[2] for event in rest} == {str(run)}


@pytest.mark.parametrize("text", ["x", "-1", "1e3", "1" * 30])
async def test_a_last_event_id_that_is_none_is_refused(web: aiohttp.ClientSession, text: str) -> None:
    run = await submitted(web, {"tasks": ["noop"]})
    async with web.get(f"/api/runs/{run}/events", headers={**STREAM, "Last-Event-ID": text}) as answer:
        assert (await problem(answer, 400, "malformed"))["field"] == "Last-Event-ID"


async def test_a_run_that_is_not_there_is_404_for_a_stream_too(web: aiohttp.ClientSession, bus: Bus) -> None:
    async with web.get(f"/api/runs/{await last_seq(bus) + 1000}/events", headers=STREAM) as answer:
        await problem(answer, 404, "not-found")


async def test_no_more_than_so_many_follow_at_once(web: aiohttp.ClientSession, outsider: Outsider) -> None:
    """Each has a consumer on the server; who comes in the same moment as others is counted, too."""
    outsider.gate.clear()
    run = await submitted(web, {"tasks": ["elsewhere"]})

    async def status() -> int:
        answer = await web.get(f"/api/runs/{run}/events", headers=STREAM)
        answers.append(answer)
        return answer.status

    answers: list[aiohttp.ClientResponse] = []
    statuses = await asyncio.gather(*(status() for _ in range(FOLLOWERS_MAX + 6)))
    for answer in answers:
        answer.close()
    assert (statuses.count(200), statuses.count(503)) == (FOLLOWERS_MAX, 6)
    outsider.gate.set()
    await ended(web, run)


async def test_who_hangs_up_leaves_no_consumer_behind(web: aiohttp.ClientSession, bus: Bus, outsider: Outsider) -> None:
    async def readers() -> int:
        found = (await bus.api(f"CONSUMER.NAMES.{EVENTS}"))["consumers"]
        return len([name for name in found if name.startswith("reader-")])

    before = await readers()
    outsider.gate.clear()
    run = await submitted(web, {"tasks": ["elsewhere"]})
    for _ in range(5):
        async with web.get(f"/api/runs/{run}/events", headers=STREAM) as answer:
            await Watched(answer).until("step.dispatched")
            answer.close()
    outsider.gate.set()
    async with asyncio.timeout(WITHIN_S):
        while await readers() > before:
            await asyncio.sleep(0.02)

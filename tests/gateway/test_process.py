"""The gateway as a process: what it stands on may go and come back, and it ends when it is told to."""

import asyncio
import subprocess
import sys

import aiohttp
import pytest

from services.gateway.guards import is_loopback
from services.gateway.shell import address
from shared.errors import Malformed
from tests.gateway.conftest import WITHIN_S, WebStack, ended, problem, submitted
from tests.stack import ROOT, until


async def test_a_ready_stack_says_how_far_each_part_is(web: aiohttp.ClientSession) -> None:
    run = await submitted(web, {"tasks": ["noop"]})
    await ended(web, run)
    async with web.get("/readyz") as answer:
        assert answer.status == 200
        body = await answer.json()
    assert body["ready"] is True
    assert body["checks"]["nats"]["ok"]
    assert body["checks"]["events"]["last_seq"] > run
    registry = body["checks"]["registry"]
    assert registry["behind_events"] >= 0
    assert registry["unreadable"] >= 0
    assert "file" not in registry
    async with web.get("/livez") as answer:
        assert (answer.status, await answer.json()) == (200, {"live": True})


async def test_where_it_listens_is_logged_and_written(stack: WebStack) -> None:
    assert f"listening on http://127.0.0.1:{stack.port}" in stack.log("gateway")


async def test_without_a_registry_runs_can_still_be_started_and_read(alone: WebStack) -> None:
    async with aiohttp.ClientSession(alone.web) as web:
        run = await submitted(web, {"tasks": ["noop"]})
        async with web.get(f"/api/runs/{run}") as answer:
            assert (await answer.json())["status"] == "pending"
        async with web.get(f"/api/runs/{run}/plan") as answer:
            assert "not planned yet" in (await problem(answer, 404, "not-found"))["detail"]
        for path in ("/api/runs", "/api/tokens"):
            async with web.get(path) as answer:
                assert "registry" in (await problem(answer, 503, "unavailable"))["detail"]
                assert int(answer.headers["Retry-After"]) > 0
        async with web.get("/api/hosts") as answer:
            body = await answer.json()
        assert body["hosts"] == []
        assert "registry.hosts" in body["notes"][0]
        async with web.get("/readyz") as answer:
            told = await problem(answer, 503, "unavailable")
        assert [name for name, check in told["checks"].items() if not check["ok"]] == ["registry"]


async def test_without_nats_it_lives_and_says_so_and_comes_back(alone: WebStack) -> None:
    async with aiohttp.ClientSession(alone.web) as web:
        run = await submitted(web, {"tasks": ["noop"]})
        stream = await web.get(f"/api/runs/{run}/events", headers={"Accept": "text/event-stream"})
        alone.stop("nats")
        async with asyncio.timeout(WITHIN_S):
            while True:
                async with web.get("/readyz") as answer:
                    told = await problem(answer, 503, "unavailable")
                    if not told["checks"]["nats"]["ok"]:
                        break
        async with web.get("/livez") as answer:
            assert answer.status == 200
        async with web.get(f"/api/runs/{run}") as answer:
            await problem(answer, 503, "unavailable")
        async with web.post("/api/runs", json={"tasks": ["noop"]}) as answer:
            assert "Retry-After" in answer.headers
            await problem(answer, 503, "unavailable")
        alone.start_nats()
        for service in ("planner", "executor"):
            alone.start(service)
        async with asyncio.timeout(WITHIN_S):
            while True:
                async with web.get(f"/api/runs/{run}") as answer:
                    if answer.status == 200:
                        break
                await asyncio.sleep(0.02)
            text = await stream.text()  # it was open all the time, and ends with the run
        assert "event: run.completed" in text
        async with web.get("/api/runs/2") as answer:
            assert answer.status == 404, "what was refused with 503 was not started later"


async def test_a_subject_that_is_no_text_stops_nobody(alone: WebStack) -> None:
    """The server stores any bytes as a subject, so every reader of the stream meets them, and again after a restart."""
    for service in ("executor", "registry", "planner"):
        alone.start(service)
    await asyncio.to_thread(until, alone.is_ready, "all of it is ready")
    async with aiohttp.ClientSession(alone.web) as web:
        first = await submitted(web, {"tasks": ["noop"]})
        await ended(web, first)
        reader, writer = await asyncio.open_connection("127.0.0.1", alone.nats_port)
        writer.write(b'CONNECT {"verbose":false}\r\nPUB run.boast\xff.%d 2\r\n{}\r\nPING\r\n' % first)
        async with asyncio.timeout(WITHIN_S):
            assert b"PONG" in await reader.readuntil(b"PONG")
        writer.close()
        run = await submitted(web, {"tasks": ["noop"]})
        assert (await ended(web, run))["status"] == "succeeded"
        async with web.get("/api/runs", params={"min_seq": run}) as answer:
            assert answer.status == 200, "the registry has read past it"
        async with web.get(f"/api/runs/{first}/events") as answer:
            assert (await answer.json())["events"][-1]["applied"] is False


async def test_it_ends_at_once_with_followers_and_idle_connections(alone: WebStack) -> None:
    async with aiohttp.ClientSession(alone.web) as web:
        run = await submitted(web, {"tasks": ["noop"]})
        stream = await web.get(f"/api/runs/{run}/events", headers={"Accept": "text/event-stream"})
        idle = await asyncio.open_connection("127.0.0.1", alone.port)
        assert await stream.content.readline() == b"retry: 2000\n"
        started = asyncio.get_running_loop().time()
        assert await asyncio.to_thread(alone.stop, "gateway") == 0
        assert asyncio.get_running_loop().time() - started < 5
        assert b"goal.submitted" in await stream.content.read(), "the stream ended in order, not by a reset"
        idle[1].close()


async def test_a_port_that_is_taken_is_told_in_one_line(stack: WebStack) -> None:
    done = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-m", "services.gateway"],
        env={**stack.environment, "REMIT_HTTP": f"127.0.0.1:{stack.port}"},
        cwd=ROOT,
        capture_output=True,
        timeout=WITHIN_S,
        check=False,
    )
    assert done.returncode == 1
    assert f"cannot listen on 127.0.0.1:{stack.port}" in done.stderr.decode()


@pytest.mark.parametrize(
    ("text", "meant"),
    [("127.0.0.1:9595", ("127.0.0.1", 9595)), ("[::1]:0", ("::1", 0)), (":80", ("0.0.0.0", 80))],
)
def test_an_address_is_host_and_port(text: str, meant: tuple[str, int]) -> None:
    assert address(text) == meant


@pytest.mark.parametrize("text", ["", "localhost", "localhost:", "localhost:x", "localhost:65536", "localhost:-1"])
def test_an_address_that_is_none_names_its_variable(text: str) -> None:
    with pytest.raises(Malformed, match="REMIT_HTTP"):
        address(text)


@pytest.mark.parametrize(
    ("name", "is_one"),
    [
        ("localhost", True), ("a.localhost", True), ("127.0.0.1", True), ("127.9.9.9", True), ("[::1]", True),
        ("localhost.evil.example", False), ("127.0.0.1.nip.io", False), ("0.0.0.0", False), ("192.168.0.1", False),
        ("[::]", False), ("2130706433", False), ("localhost.", False),
    ],
)  # fmt: skip
def test_loopback_names_can_mean_nothing_else(name: str, is_one: bool) -> None:
    assert is_loopback(name) is is_one

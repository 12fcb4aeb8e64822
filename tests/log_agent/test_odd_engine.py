"""Whatever the engine says or does not say, the agent answers in time, and the files can be read."""

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest

from services.log_agent import docker_engine, docker_logs, engine_threads
from services.log_agent.allow_list import AllowList
from services.log_agent.docker_engine import DockerEngine
from services.log_agent.docker_logs import EngineLogs
from services.log_agent.engine_address import engine_address
from services.log_agent.frames import PART_BYTES
from services.log_agent.service import Agent
from shared.bus import Bus
from shared.config import Config
from shared.errors import NotFound, RemitError, Unavailable
from shared.log_reading import all_services, all_sources
from shared.logs import ANSWER_WAIT_S
from tests.log_agent.test_service import HOST, ROOT, allow, texts
from tests.standins.container_engine import CONTAINER, StandIn, framed, stand_in

LOGS = f"/containers/{CONTAINER}/logs"


@pytest.fixture
async def odd(tmp_path: Path) -> AsyncIterator[StandIn]:
    async with stand_in(tmp_path) as made:
        yield made


@pytest.fixture
async def docker(odd: StandIn) -> AsyncIterator[DockerEngine]:
    made = DockerEngine(engine_address(odd.address))
    yield made
    made.close()


@pytest.fixture
async def agent(bus: Bus, odd: StandIn, docker: DockerEngine, tmp_path: Path) -> AsyncIterator[Agent]:
    """An agent that may read `web` and `a.log`."""
    (tmp_path / "a.log").write_text("one\n")
    await allow(bus, f"{tmp_path}/a.log")
    await allow(bus, "web", name="e2")
    logs = EngineLogs(engine_address(odd.address))
    config = await Config(bus).start()
    made = Agent(bus, HOST, AllowList(config, HOST), docker, logs)
    await made.serve()
    yield made
    await config.stop()
    await logs.close()


@pytest.mark.usefixtures("agent")
async def test_what_is_in_order_is_told(bus: Bus) -> None:
    reply = await all_sources(bus, HOST)
    assert reply.engine is not None and (reply.engine.name, reply.engine.containers) == ("Stand-in", 1)
    assert [(each.kind, each.allowed) for each in reply.sources] == [("docker", True), ("file", True)]
    assert [each.name for each in (await all_services(bus, HOST)).services] == ["web"]
    assert (await texts(bus, "docker:web"))[0] == ["hello"]


ODD = [
    (200, b"null"),
    (200, b"{}"),
    (200, b"7"),
    (200, b"[null]"),
    (200, b'[{"Names":["/web"]}]'),
    (200, b'[{"Id":7,"Names":["/web"]}]'),
    (200, b'[{"Id":"\\ud800","Names":["/\\ud800"]}]'),
    (200, b"[" * 100_000),
    (200, b"not json"),
    (200, b"\xff\xfe"),
    (200, b""),
    (404, b'{"message":"page not found"}'),
    (404, b"null"),
    (500, b'{"message":7}'),
    (500, b'{"message":"\\ud800"}'),
    (302, b""),
]


@pytest.mark.usefixtures("agent")
@pytest.mark.parametrize(("status", "body"), ODD)
async def test_an_odd_list_of_containers_is_told_and_files_still_serve(
    bus: Bus, odd: StandIn, tmp_path: Path, status: int, body: bytes
) -> None:
    odd.answers["/containers/json"] = (status, body)
    reply = await all_sources(bus, HOST)
    assert reply.engine is None and "the container engine" in (reply.engine_error or "")
    assert [each.name for each in reply.sources] == [f"{tmp_path}/a.log"]
    assert "the container engine" in ((await all_services(bus, HOST)).engine_error or "")
    assert (await texts(bus, f"{tmp_path}/a.log"))[0] == ["one"]


async def test_the_fault_is_named(odd: StandIn, docker: DockerEngine) -> None:
    odd.answers["/containers/json"] = (200, b'[{"Names":["/web"]}]')
    with pytest.raises(Unavailable, match=r"missing required field `Id` - at `\$\[0\]`"):
        await docker.names()


@pytest.mark.parametrize("path", ["/version", "/containers/web/json"])
@pytest.mark.parametrize(("status", "body"), [each for each in ODD if each[0] != 404])
async def test_any_odd_answer_is_unavailable(
    odd: StandIn, docker: DockerEngine, path: str, status: int, body: bytes
) -> None:
    odd.answers[path] = (status, body)
    with pytest.raises(Unavailable, match="the container engine"):
        await docker.container("web")


async def test_a_container_that_is_not_there_is_not_found_and_an_id_that_is_none_is_no_id(
    odd: StandIn, docker: DockerEngine
) -> None:
    with pytest.raises(NotFound):
        await docker.container("other")
    odd.answers["/containers/web/json"] = (200, b'{"Id":"../../version","Name":"/web"}')
    with pytest.raises(Unavailable, match="cannot be read"):
        await docker.container("web")


@pytest.mark.usefixtures("agent")
@pytest.mark.parametrize(
    ("status", "body", "told"),
    [(200, b"[{}]", ["web"]), (200, b"null", []), (200, b'[{"Name":[]}]', []), (404, b"", [])],
)
async def test_odd_networks_silence_no_services(
    bus: Bus, odd: StandIn, status: int, body: bytes, told: list[str]
) -> None:
    """A network without a name is nobody's, and left out; anything else is told."""
    odd.answers["/networks"] = (status, body)
    reply = await all_services(bus, HOST)
    assert [each.name for each in reply.services] == told
    assert (reply.engine_error is None) == bool(told)


@pytest.mark.usefixtures("agent")
async def test_a_container_with_a_label_that_cannot_be_said_is_told(bus: Bus, odd: StandIn) -> None:
    odd.answers[f"/containers/{CONTAINER}/json"] = (200, b'{"Name":"/web","Config":{"Labels":{"a":"\\ud800"}}}')
    assert "cannot be said" in ((await all_services(bus, HOST)).engine_error or "")


@pytest.mark.usefixtures("agent")
@pytest.mark.parametrize("stamp", ["2026-99-99T09:52:02.315025555Z", "0000-01-01T00:00:00.000000000Z"])
async def test_a_stamp_that_is_no_time_is_none_and_its_line_is_read(bus: Bus, odd: StandIn, stamp: str) -> None:
    odd.answers[LOGS] = (200, framed(f"{stamp} odd\n", "0001-01-01T00:00:00.000000000Z ancient\n"))
    lines, last = await texts(bus, "docker:web")
    assert lines == ["odd", "ancient"]
    assert (await texts(bus, "docker:web", cursor=last.cursor))[0] == []


@pytest.mark.usefixtures("agent")
@pytest.mark.parametrize("tty", [False, True])
async def test_a_long_line_that_is_being_written_is_left_for_the_next_read(bus: Bus, odd: StandIn, tty: bool) -> None:
    """Its head handed over now, its rest would be none of the next read's: it has the same stamp."""
    stamp = "2026-11-21T09:52:02.315025555Z"
    inspect = {"Id": CONTAINER, "Name": "/web", "Config": {"Tty": tty}, "State": {"Running": True}}
    for name in ("web", CONTAINER):
        odd.answers[f"/containers/{name}/json"] = (200, msgspec.json.encode(inspect))

    def log(*parts: str) -> tuple[int, bytes]:
        said = [f"{stamp} {part}" for part in ("before\n", *parts)]
        return 200, "".join(said).encode() if tty else framed(*said)

    odd.answers[LOGS] = log("z" * PART_BYTES)
    lines, last = await texts(bus, "docker:web")
    assert lines == ["before"] and "unfinished" in last.notes[0]
    odd.answers[LOGS] = log("z" * PART_BYTES, "end\n", "after\n")
    lines, last = await texts(bus, "docker:web", cursor=last.cursor)
    assert (lines, last.notes) == (["z" * PART_BYTES + "end", "after"], [])


@pytest.mark.usefixtures("agent")
async def test_what_nobody_foresaw_is_answered_too(
    bus: Bus, docker: DockerEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fails() -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(docker, "overview", fails)
    with pytest.raises(RemitError, match="the log agent failed"):
        await all_sources(bus, HOST)


@pytest.mark.usefixtures("agent")
@pytest.mark.parametrize("hangs", ["/version", "/containers/json"])
async def test_an_engine_that_trickles_takes_nothing_from_the_files(
    bus: Bus, odd: StandIn, tmp_path: Path, hangs: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More requests than there are threads, and each is answered as if it were the only one."""
    monkeypatch.setattr(docker_engine, "CALL_S", 0.3)
    odd.trickles.add(hangs)
    many = engine_threads.THREADS_MAX + 4
    async with asyncio.timeout(3):
        replies = await asyncio.gather(*(all_sources(bus, HOST) for _ in range(many)))
        assert (await texts(bus, f"{tmp_path}/a.log"))[0] == ["one"]
    assert ["did not answer within" in (reply.engine_error or "") for reply in replies] == [True] * many
    assert all([each.kind for each in reply.sources] == ["file"] for reply in replies)
    await asyncio.gather(*(all_sources(bus, HOST) for _ in range(engine_threads.WAITING_MAX)))
    assert "asked before" in ((await all_sources(bus, HOST)).engine_error or "")


@pytest.mark.usefixtures("agent")
async def test_a_log_that_trickles_is_given_up_and_what_came_is_kept(
    bus: Bus, odd: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(docker_logs, "SILENCE_S", 0.3)
    odd.trickles.add(LOGS)
    async with asyncio.timeout(5):
        lines, last = await texts(bus, "docker:web")
    assert lines == ["hello"] and "broke off" in last.notes[0]


def test_the_agent_gives_an_engine_up_before_its_reader_gives_up_the_agent() -> None:
    asked = docker_engine.CALL_S + docker_logs.HEAD_S + docker_logs.SILENCE_S + docker_engine.CALL_S
    assert asked < ANSWER_WAIT_S


async def test_the_process_ends_though_its_engine_trickles(bus: Bus, nats_url: str, odd: StandIn) -> None:
    odd.trickles.add("/version")
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-m", "cli", "log-agent", "--host", "hung", "--nats", nats_url),
        cwd=ROOT,
        env={**os.environ, **odd.address, "PYTHONPATH": str(ROOT)},
        stderr=asyncio.subprocess.DEVNULL,
    )
    try:
        async with asyncio.timeout(20):
            while not any(info.metadata == {"host": "hung"} for info in await bus.discover("logs")):
                pass
        asked = [asyncio.ensure_future(all_sources(bus, "hung")) for _ in range(8)]
        assert (await asked[0]).engine_error
        process.send_signal(signal.SIGTERM)
        assert await asyncio.wait_for(process.wait(), 5) == 0
        await asyncio.gather(*asked, return_exceptions=True)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()

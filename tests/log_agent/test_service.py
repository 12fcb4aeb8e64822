"""The agent on a real NATS: what is allowed is read, what is not is refused, and a slow reader costs
nothing.
"""

import asyncio
import logging
import os
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from pathlib import Path

import msgspec
import pytest

from services.log_agent import file_read
from services.log_agent.allow_list import AllowList
from services.log_agent.docker_engine import DockerEngine
from services.log_agent.docker_logs import EngineLogs
from services.log_agent.engine_address import engine_address
from services.log_agent.service import READS_MAX, Agent
from shared.allow import AllowEntry
from shared.bus import Bus
from shared.config import Config
from shared.errors import Malformed, NotFound, Refused, Unavailable
from shared.log_reading import all_services, all_sources, read_log
from shared.logs import UNANSWERED_CHUNKS_MAX, LogChunk, ReadRequest
from shared.subjects import CONFIG_BUCKET
from tests.engine import engine

ROOT = Path(__file__).parents[2]
HOST = "tower"


async def until(is_so: Callable[[], bool], within_s: float = 5.0) -> None:
    async with asyncio.timeout(within_s):
        while not is_so():  # what is waited for is told by nobody
            await asyncio.sleep(0.01)


async def allow(bus: Bus, source: str, *, name: str = "e1", host: str = "*", enabled: bool = True) -> None:
    entry = AllowEntry(id=name, host=host, source=source, enabled=enabled)
    await bus.kv_put(CONFIG_BUCKET, f"allow.{name}", msgspec.json.encode(entry))


@pytest.fixture
async def agent(bus: Bus, tmp_path: Path) -> AsyncIterator[Agent]:
    """An agent on its own connection, whose engine is the one of this machine, or none."""
    address = engine_address(os.environ)
    docker, logs = DockerEngine(address), EngineLogs(address)
    config = await Config(bus).start()
    made = Agent(bus, HOST, AllowList(config, HOST), docker, logs, answer_wait_s=1.0)
    await made.serve()
    await bus.flush()
    yield made
    for key in ("e1", "e2"):
        if await bus.kv_get(CONFIG_BUCKET, f"allow.{key}"):
            await bus.kv_delete(CONFIG_BUCKET, f"allow.{key}")
    await config.stop()
    await logs.close()
    docker.close()


async def texts(bus: Bus, source: str, **request: object) -> tuple[list[str], LogChunk]:
    lines: list[str] = []
    async with aclosing(read_log(bus, HOST, msgspec.convert({"source": source, **request}, ReadRequest))) as chunks:
        async for chunk in chunks:
            lines += chunk.text
    return lines, chunk


@pytest.mark.usefixtures("agent")
async def test_nothing_is_read_until_an_entry_allows_it(bus: Bus, tmp_path: Path) -> None:
    (tmp_path / "a.log").write_text("one\ntwo\n")
    with pytest.raises(Refused) as caught:
        await texts(bus, f"file:{tmp_path}/a.log")
    assert caught.value.field == "source"
    await allow(bus, f"{tmp_path}/*.log")
    assert (await texts(bus, f"file:{tmp_path}/a.log"))[0] == ["one", "two"]


@pytest.mark.usefixtures("agent")
async def test_an_entry_taken_back_counts_at_once(bus: Bus, tmp_path: Path) -> None:
    (tmp_path / "a.log").write_text("one\n")
    for _ in range(10):
        await allow(bus, f"{tmp_path}/*.log")
        assert (await texts(bus, f"{tmp_path}/a.log"))[0] == ["one"]
        await allow(bus, f"{tmp_path}/*.log", enabled=False)
        with pytest.raises(Refused):
            await texts(bus, f"{tmp_path}/a.log")


@pytest.mark.usefixtures("agent")
async def test_a_refusal_is_plain_json_with_its_field(bus: Bus) -> None:
    answer = msgspec.json.decode(await bus.request(f"logs.{HOST}.read", b'{"source": "docker:web"}'))
    assert (answer["error"], answer["field"]) == ("refused", "source")


@pytest.mark.usefixtures("agent")
@pytest.mark.parametrize(
    ("data", "field"),
    [
        (b"", ""),
        (b"not json", ""),
        (b"\xff\xfe", ""),
        (b"[" * 100_000, ""),
        (b"{}", "source"),
        (b'{"source": 7}', "source"),
        (b'{"source": "docker:../x"}', "source"),
        (b'{"source": "file:relative"}', "source"),
        (b'{"source": "x", "max_lines": 0}', "max_lines"),
        (b'{"source": "x", "max_bytes": 1e99}', "max_bytes"),
        (b'{"source": "x", "since": "yesterday"}', "since"),
    ],
)
async def test_a_request_that_cannot_be_read_is_told_its_fault(bus: Bus, data: bytes, field: str) -> None:
    answer = msgspec.json.decode(await bus.request(f"logs.{HOST}.read", data))
    assert (answer["error"], answer["field"]) == ("malformed", field)


@pytest.mark.usefixtures("agent")
async def test_a_broken_entry_allows_nothing_and_the_others_still_count(bus: Bus, tmp_path: Path) -> None:
    (tmp_path / "a.log").write_text("one\n")
    await bus.kv_put(CONFIG_BUCKET, "allow.e2", b'{"id": "e2", "source": "/**/../*"}')
    await allow(bus, f"{tmp_path}/a.log")
    assert (await texts(bus, f"{tmp_path}/a.log"))[0] == ["one"]
    with pytest.raises(Refused):
        await texts(bus, "/etc/passwd")


@pytest.mark.usefixtures("agent")
async def test_a_file_that_is_allowed_and_absent_is_not_found(bus: Bus, tmp_path: Path) -> None:
    await allow(bus, f"{tmp_path}/*")
    with pytest.raises(NotFound):
        await texts(bus, f"{tmp_path}/none.log")


@pytest.mark.usefixtures("agent")
async def test_a_cursor_of_another_kind_is_malformed(bus: Bus, tmp_path: Path) -> None:
    (tmp_path / "a.log").write_text("one\n")
    await allow(bus, f"{tmp_path}/*")
    with pytest.raises(Malformed) as caught:
        await texts(bus, f"{tmp_path}/a.log", cursor="d0|0123456789ab")
    assert caught.value.field == "cursor"


@pytest.mark.usefixtures("agent")
async def test_a_long_log_comes_in_chunks_that_fit_a_message(bus: Bus, tmp_path: Path) -> None:
    """Control characters grow sixfold in JSON and quotes double; every chunk still fits."""
    lines = [f"{i} " + '"\x01' * 200 for i in range(20_000)]
    (tmp_path / "a.log").write_text("\n".join(lines) + "\n")
    await allow(bus, f"{tmp_path}/*")
    got: list[str] = []
    async for chunk in read_log(bus, HOST, ReadRequest(source=f"{tmp_path}/a.log")):
        assert len(msgspec.json.encode(chunk)) < 300 * 1024
        got += chunk.text
    assert got == lines


@pytest.mark.usefixtures("agent")
async def test_a_reader_that_does_not_answer_gets_four_chunks_and_no_more(bus: Bus, tmp_path: Path) -> None:
    (tmp_path / "a.log").write_text("x" * 99 + "\n" * 1 + ("y" * 99 + "\n") * 50_000)
    await allow(bus, f"{tmp_path}/*")
    came: list[tuple[bytes, str]] = []
    inbox = bus.inbox()
    stop = await bus.subscribe(inbox, lambda _s, data, reply, _h: came.append((data, reply)))
    await bus.publish(f"logs.{HOST}.read", msgspec.json.encode({"source": f"{tmp_path}/a.log"}), inbox)
    await until(lambda: len(came) == UNANSWERED_CHUNKS_MAX)
    await bus.publish(came[0][1], b"+")
    await until(lambda: len(came) == UNANSWERED_CHUNKS_MAX + 1)
    await bus.publish(came[0][1], b"stop")
    # the four turns are free again: as many reads as there are turns end at once
    await asyncio.gather(*(texts(bus, f"{tmp_path}/a.log", max_lines=1) for _ in range(READS_MAX)))
    assert len(came) == UNANSWERED_CHUNKS_MAX + 1
    await stop()


@pytest.mark.usefixtures("agent")
async def test_readers_that_fall_silent_are_given_up_and_their_turns_come_free(bus: Bus, tmp_path: Path) -> None:
    (tmp_path / "a.log").write_text(("y" * 99 + "\n") * 50_000)
    await allow(bus, f"{tmp_path}/*")
    stops = []
    for _ in range(READS_MAX):
        inbox = bus.inbox()
        stops.append(await bus.subscribe(inbox, lambda *_: None))
        await bus.publish(f"logs.{HOST}.read", msgspec.json.encode({"source": f"{tmp_path}/a.log"}), inbox)
    assert (await texts(bus, f"{tmp_path}/a.log", max_lines=1))[0] == ["y" * 99]
    for stop in stops:
        await stop()


@pytest.mark.usefixtures("agent")
async def test_a_reader_that_has_enough_stops_the_read(bus: Bus, tmp_path: Path) -> None:
    (tmp_path / "a.log").write_text(("y" * 99 + "\n") * 50_000)
    await allow(bus, f"{tmp_path}/*")
    for _ in range(READS_MAX * 2):
        async with aclosing(read_log(bus, HOST, ReadRequest(source=f"{tmp_path}/a.log"))) as chunks:
            async for _chunk in chunks:
                break
    assert (await texts(bus, f"{tmp_path}/a.log", max_lines=1))[0] == ["y" * 99]


@pytest.mark.usefixtures("agent")
async def test_a_reader_that_leaves_before_the_first_line_ends_the_read(
    bus: Bus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It had nothing to answer, so it said nothing: only the next chunk shows that nobody listens."""
    monkeypatch.setattr(file_read, "SIGN_OF_LIFE_S", 0.0)
    caplog.set_level(logging.INFO, "remit.log_agent")
    (tmp_path / "a.log").write_bytes(b"z" * 8 * 2**20)
    await allow(bus, f"{tmp_path}/*")
    await bus.publish(f"logs.{HOST}.read", msgspec.json.encode({"source": f"{tmp_path}/a.log"}), bus.inbox())
    await until(lambda: "the reader is gone" in caplog.text)


@pytest.mark.docker
@pytest.mark.usefixtures("agent")
async def test_what_is_taken_back_in_the_middle_of_a_container_s_read_ends_there(bus: Bus) -> None:
    with engine() as made:
        container = made.run("yes 0123456789012345678901234567890123456789 | head -n 60000")
        await allow(bus, container.name)
        count = 0
        with pytest.raises(Refused):
            async for chunk in read_log(bus, HOST, ReadRequest(source=container.name)):
                if count == 0:
                    await allow(bus, container.name, enabled=False)
                count += len(chunk.text)
        assert 0 < count < 60_000


@pytest.mark.docker
@pytest.mark.usefixtures("agent")
async def test_containers_are_named_whether_allowed_or_not_and_only_the_allowed_are_read(bus: Bus) -> None:
    with engine() as made:
        open_, closed = made.run("echo hello"), made.run("echo secret")
        await allow(bus, f"docker:{open_.name}")
        reply = await all_sources(bus, HOST)
        assert reply.engine is not None and reply.engine.containers >= 2
        known = {each.name: each for each in reply.sources}
        assert known[open_.name].allowed and not known[closed.name].allowed
        assert (await texts(bus, open_.name))[0] == ["hello"]
        for source in (closed.name, f"docker:{closed.id}", f"docker:{closed.id[:12]}"):
            with pytest.raises(Refused):
                await texts(bus, source)
        services = await all_services(bus, HOST)
        assert [each.name for each in services.services] == [open_.name]


@pytest.mark.usefixtures("agent")
async def test_files_are_listed_only_where_an_entry_names_them(bus: Bus, tmp_path: Path) -> None:
    (tmp_path / "a.log").write_text("12345")
    (tmp_path / "b.txt").write_text("")
    await allow(bus, f"{tmp_path}/*.log")
    files = [each for each in (await all_sources(bus, HOST)).sources if each.kind == "file"]
    assert [(each.name, each.size_bytes, each.allowed) for each in files] == [(f"{tmp_path}/a.log", 5, True)]


async def test_without_an_agent_a_read_says_so(bus: Bus) -> None:
    with pytest.raises(Unavailable):
        await texts(bus, "web")


async def test_an_engine_that_is_not_there_is_told_and_files_still_serve(bus: Bus, tmp_path: Path) -> None:
    address = engine_address({"DOCKER_HOST": f"unix://{tmp_path}/none.sock"})
    docker, logs = DockerEngine(address), EngineLogs(address)
    config = await Config(bus).start()
    await Agent(bus, HOST, AllowList(config, HOST), docker, logs).serve()
    (tmp_path / "a.log").write_text("one\n")
    await allow(bus, f"{tmp_path}/a.log")
    await allow(bus, "web", name="e2")
    reply = await all_sources(bus, HOST)
    assert reply.engine is None and "No such file" in (reply.engine_error or "")
    assert [each.name for each in reply.sources] == [f"{tmp_path}/a.log"]
    assert (await all_services(bus, HOST)).engine_error
    with pytest.raises(Unavailable):
        await texts(bus, "docker:web")
    await config.stop()
    await logs.close()

"""Reading containers of a real engine: every line once, stdout and stderr told apart, whatever they write."""

import asyncio
import os
import uuid
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from services.log_agent.docker_engine import DockerEngine
from services.log_agent.docker_logs import EngineLogs
from services.log_agent.docker_read import read_container
from services.log_agent.engine_address import engine_address
from shared.clock import now
from shared.errors import Malformed, NotFound, Unavailable
from shared.logs import LINE_BYTES_MAX, LogChunk, ReadRequest
from tests.engine import Engine, engine

pytestmark = pytest.mark.docker


@pytest.fixture(scope="module")
def containers() -> Iterator[Engine]:
    with engine() as made:
        yield made


class Reader:
    """The agent's reading of one engine, gathered whole."""

    def __init__(self) -> None:
        address = engine_address({})
        self.engine, self.logs = DockerEngine(address), EngineLogs(address)

    def chunks(self, name: str, **request: Any) -> AsyncIterator[LogChunk]:
        return read_container(self.engine, self.logs, name, ReadRequest(source=name, **request), now())

    async def read(self, name: str, **request: Any) -> tuple[list[tuple[str, str]], LogChunk]:
        """Return (stream, text) of every line, and the last chunk."""
        lines: list[tuple[str, str]] = []
        last = None
        async for chunk in self.chunks(name, **request):
            assert last is None, "a chunk came after the last one"
            assert len(chunk.at) == len(chunk.stream) == len(chunk.text) <= 2_000
            lines += zip(chunk.stream, chunk.text, strict=True)
            last = chunk if chunk.last else None
        assert last is not None and last.cursor is not None
        return lines, last

    async def close(self) -> None:
        await self.logs.close()
        self.engine.close()


@pytest.fixture
async def reader() -> AsyncIterator[Reader]:
    made = Reader()
    yield made
    await made.close()


async def test_stdout_and_stderr_are_told_apart_and_the_last_line_is_kept(containers: Engine, reader: Reader) -> None:
    made = containers.run("echo out; sleep 0.1; echo err >&2; sleep 0.1; printf 'no newline'")
    lines, last = await reader.read(made.name)
    assert lines == [("stdout", "out"), ("stderr", "err"), ("stdout", "no newline")]
    assert last.truncated is None and not last.older_skipped and last.notes == []


async def test_every_line_has_the_engine_s_stamp(containers: Engine, reader: Reader) -> None:
    made = containers.run("echo a; echo b")
    stamps = [at async for chunk in reader.chunks(made.name) for at in chunk.at]
    assert len(stamps) == 2
    assert all(at is not None and at.endswith("Z") and len(at) == 30 for at in stamps)


async def test_a_tty_s_lines_come_without_carriage_returns(containers: Engine, reader: Reader) -> None:
    made = containers.run("echo one; echo two", tty=True)
    assert (await reader.read(made.name))[0] == [("stdout", "one"), ("stdout", "two")]


async def test_a_silent_container_has_no_lines_and_its_cursor_stands_before_the_first(
    containers: Engine, reader: Reader
) -> None:
    made = containers.run("sleep 0.3; echo late", wait=False)
    lines, last = await reader.read(made.name)
    made.wait(timeout=30)
    later, _ = await reader.read(made.name, cursor=last.cursor)
    assert lines + later == [("stdout", "late")]


@pytest.mark.parametrize("tty", [False, True])
async def test_a_line_over_16_kib_is_one_line(containers: Engine, reader: Reader, tty: bool) -> None:
    made = containers.run("head -c 40000 /dev/zero | tr '\\0' z; echo; echo end", tty=tty)
    lines, _ = await reader.read(made.name)
    assert [text for _, text in lines] == ["z" * 40000, "end"]


async def test_output_without_a_newline_is_cut_and_the_rest_counted(containers: Engine, reader: Reader) -> None:
    made = containers.run("head -c 3000000 /dev/zero | tr '\\0' z")
    chunks = [chunk async for chunk in reader.chunks(made.name)]
    (text,) = [text for chunk in chunks for text in chunk.text]
    assert text == "z" * LINE_BYTES_MAX + f" [cut: {3_000_000 - LINE_BYTES_MAX} more bytes]"
    assert sum(chunk.cut_bytes for chunk in chunks) == 3_000_000 - LINE_BYTES_MAX


@pytest.mark.parametrize("tty", [False, True])
async def test_binary_noise_is_read_and_never_fails(containers: Engine, reader: Reader, tty: bool) -> None:
    made = containers.run("head -c 300000 /dev/urandom; echo; echo after", tty=tty)
    lines, last = await reader.read(made.name)
    assert lines[-1] == ("stdout", "after")
    assert len(lines) > 100 and last.notes == []


async def test_a_restart_s_partial_line_is_not_glued_to_the_next_start(containers: Engine, reader: Reader) -> None:
    made = containers.run("printf x")
    made.start()
    made.wait(timeout=30)
    lines, _ = await reader.read(made.name)
    assert [text for _, text in lines] == ["x", "x"]


async def test_reading_on_from_the_cursor_gives_each_line_once(containers: Engine, reader: Reader) -> None:
    """Seven lines at a time, while the container goes on writing to both streams as fast as it can."""
    made = containers.run("i=0; while [ $i -lt 400 ]; do echo o$i; echo e$i >&2; i=$((i+1)); done", wait=False)
    lines: list[tuple[str, str]] = []
    cursor = f"d0|{made.id[:12]}"
    ended = False
    for _ in range(500):
        some, last = await reader.read(made.name, cursor=cursor, max_lines=7)
        assert last.cursor is not None
        lines, cursor = lines + some, last.cursor
        if ended and not some:
            break
        if not some:
            await asyncio.to_thread(made.wait, timeout=30)
            ended = True
    assert [text for stream, text in lines if stream == "stdout"] == [f"o{i}" for i in range(400)]
    assert [text for stream, text in lines if stream == "stderr"] == [f"e{i}" for i in range(400)]


async def test_a_first_read_gives_the_newest_lines_and_says_that_there_are_older_ones(
    containers: Engine, reader: Reader
) -> None:
    made = containers.run("for i in 1 2 3 4 5; do echo $i; done")
    lines, last = await reader.read(made.name, max_lines=2)
    assert [text for _, text in lines] == ["4", "5"]
    assert last.older_skipped and last.truncated is None


async def test_a_bound_in_bytes_leaves_the_rest_to_the_next_read(containers: Engine, reader: Reader) -> None:
    made = containers.run("for i in 1 2 3 4 5; do echo 12345$i; done")
    lines, last = await reader.read(made.name, max_bytes=13)
    assert (len(lines), last.truncated) == (2, "bytes")
    rest, last = await reader.read(made.name, cursor=last.cursor)
    assert [text for _, text in lines + rest] == [f"12345{i}" for i in range(1, 6)]
    assert (await reader.read(made.name, cursor=last.cursor))[0] == []


async def test_since_is_inclusive(containers: Engine, reader: Reader) -> None:
    made = containers.run("echo a; sleep 0.05; echo b; sleep 0.05; echo c")
    stamps = [at async for chunk in reader.chunks(made.name) for at in chunk.at]
    assert [text for _, text in (await reader.read(made.name, since=stamps[1]))[0]] == ["b", "c"]


async def test_a_cursor_whose_line_is_gone_goes_on_after_its_time_and_says_so(
    containers: Engine, reader: Reader
) -> None:
    made = containers.run("echo a; sleep 0.05; echo b")
    _, last = await reader.read(made.name)
    stamps = [at async for chunk in reader.chunks(made.name) for at in chunk.at]
    forged = f"d1|{made.id[:12]}|{stamps[0]}|{stamps[0]}|1|{'0' * 16}|{stamps[0]}"
    lines, last = await reader.read(made.name, cursor=forged)
    assert [text for _, text in lines] == ["b"]
    assert "dropped" in last.notes[0]


async def test_another_container_of_the_same_name_is_read_from_its_beginning(
    containers: Engine, reader: Reader
) -> None:
    name = f"remit-again-{uuid.uuid4().hex[:8]}"
    first = containers.run("echo first", name=name)
    _, last = await reader.read(name)
    first.remove(force=True)
    containers.run("echo second", name=name)
    lines, last = await reader.read(name, cursor=last.cursor)
    assert lines == [("stdout", "second")]
    assert "another container" in last.notes[0]


async def test_a_container_is_found_by_its_name_only(containers: Engine, reader: Reader) -> None:
    """An id, or a part of one, leads nowhere: the allow-list speaks of names."""
    made = containers.run("echo secret")
    for other in (made.id, made.id[:12], "no-such-container"):
        with pytest.raises(NotFound):
            await reader.read(other)


async def test_a_cursor_that_is_none_is_malformed(containers: Engine, reader: Reader) -> None:
    made = containers.run("echo a")
    for cursor in ("", "x", "f1|1:2|3|0123456789abcdef", "d1|" + "0" * 12 + "|" + "9" * 25 + "|a|b|c|d"):
        if cursor:
            with pytest.raises(Malformed):
                await reader.read(made.name, cursor=cursor)


async def test_a_log_that_its_driver_cannot_give_is_unavailable_in_the_engine_s_words(
    containers: Engine, reader: Reader
) -> None:
    made = containers.run("echo a", log_config={"type": "none", "config": {}})
    with pytest.raises(Unavailable, match="does not support reading"):
        await reader.read(made.name)


async def test_a_container_removed_while_it_is_read_gives_what_there_was_and_a_note(
    containers: Engine, reader: Reader
) -> None:
    made = containers.run("yes 0123456789012345678901234567890123456789 | head -n 150000")
    count, last = 0, None
    async for chunk in reader.chunks(made.name):
        if count == 0:
            await asyncio.to_thread(made.remove, force=True)
        count += len(chunk.text)
        last = chunk
    assert last is not None and last.last and count > 0
    assert any("removed while it was read" in note for note in last.notes)


@pytest.mark.slow
async def test_a_100_mb_log_is_read_in_bounded_memory(containers: Engine, reader: Reader) -> None:
    """At no moment is the process larger by a fifth of what passes through. Long lines: the engine pays by the line."""
    made = containers.run(f"yes {'0123456789' * 79}012345678 | head -c 100000000")
    before = largest = resident_bytes()
    size = count = 0
    async for chunk in reader.chunks(made.name, cursor=f"d0|{made.id[:12]}", max_lines=2_000_000, max_bytes=2**30):
        count += len(chunk.text)
        size += sum(map(len, chunk.text)) + len(chunk.text)
        largest = max(largest, resident_bytes())
    assert (count, size) == (125_000, 100_000_000)
    assert largest - before < 20_000_000


def resident_bytes() -> int:
    """Return the memory that this process holds now; its high-water mark may be another test's."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

"""One read of one container: where it begins, what is passed over, where it ends, and what is to be said.

The container is found by its exact name and read by the id found with it, so a rename in between cannot
lead to another container's log.
"""

from collections.abc import AsyncGenerator
from contextlib import aclosing

from services.log_agent.chunks import Chunks
from services.log_agent.cursor import DockerCursor, Tracker, docker_cursor, engine_time
from services.log_agent.docker_engine import Container, DockerEngine
from services.log_agent.docker_logs import EngineLogs, LogReading
from services.log_agent.frames import utc
from shared.clock import NS_PER_S, parse_ns
from shared.errors import NotFound, Unavailable
from shared.logs import LogChunk, ReadRequest

ID_CHARS = 12  # of a container's id in a cursor: what `docker ps` shows


class _Start:
    """How a read begins."""

    def __init__(self, request: ReadRequest, container: Container) -> None:
        given = docker_cursor(request.cursor) if request.cursor else None
        self.notes: list[str] = []
        self.previous: DockerCursor | None = given
        self.since = engine_time(request.since) if request.since else None
        self.tail: int | None = None
        if given is not None and given.container != container.id[:ID_CHARS]:
            self.notes.append("another container has this name now; it is read from its beginning")
            self.previous = given = None
        if given is not None and given.last:
            if request.since and parse_ns(request.since) > parse_ns(given.newest):
                self.previous = None  # the caller asks for what is newer than all that was read
            else:
                self.since = engine_time(given.start)
        elif given is None and self.since is None:
            self.tail = request.max_lines


async def read_container(
    engine: DockerEngine, logs: EngineLogs, name: str, request: ReadRequest, now: str
) -> AsyncGenerator[LogChunk, None]:
    """Yield the container's lines after the cursor as chunks, the last one with the cursor to go on from.

    NotFound when there is no container of exactly this name, Unavailable when the engine cannot be read.
    """
    container = await engine.container(name)
    start = _Start(request, container)
    tracker = Tracker(container.id[:ID_CHARS], start.previous)
    chunks = Chunks(request.max_lines, request.max_bytes)
    notes, older_skipped, since, tail = start.notes, False, start.since, start.tail
    waiting_for: str | None = None
    while True:
        async with logs.open(container.id, tty=container.tty, since=since, tail=tail) as reading:
            async with aclosing(reading.batches()) as batches:
                async for batch in batches:
                    taken = chunks.take(tracker.fresh(batch))
                    tracker.passed(taken)
                    for chunk in chunks.add(taken):
                        yield chunk
                    if chunks.truncated or tracker.lost:
                        break
            older_skipped = tail is not None and reading.walk.entries >= tail
            if not chunks.truncated and not tracker.lost:
                waiting_for = _wait_for(reading, tracker, container)
                if waiting_for is None:
                    rest = chunks.take(tracker.fresh(reading.walk.flush()))
                    tracker.passed(rest)
                    for chunk in chunks.add(rest):
                        yield chunk
                else:
                    notes.append("an unfinished line over 16 KiB is left for the next read")
            notes += [reading.broke_off] if reading.broke_off else []
            notes += reading.walk.notes
        if tracker.anchor is None or reading.broke_off:
            break
        # The anchor never came. What is newer than everything handed over is still owed to the reader.
        notes.append("the engine has dropped the line read last; reading goes on after its time")
        since = _just_after(tracker.anchor.newest)
        tracker.restart_after_loss()
    notes += await _gone(engine, container)
    stamp = tracker.cursor(waiting_for)
    for chunk in chunks.finish(
        older_skipped=older_skipped,
        until=(stamp.newest or None) if chunks.truncated else now,
        cursor=stamp.encode(),
        notes=notes,
    ):
        yield chunk


def _wait_for(reading: LogReading, tracker: Tracker, container: Container) -> str | None:
    """Return the stamp of an unfinished line that a running container is still writing, or None.

    Handing over its head now would make its rest a line of its own at the next read.
    """
    if not container.running or reading.broke_off:
        return None
    lines = [(line.may_go_on, stamp) for line in reading.walk.unfinished() if (stamp := utc(line.stamp))]
    if any(goes_on and tracker.is_recent(stamp) for goes_on, stamp in lines):
        return min(stamp for _, stamp in lines)
    return None


def _just_after(stamp: str) -> str:
    second, rest_ns = divmod(parse_ns(stamp) + 1, NS_PER_S)
    return f"{second}.{rest_ns:09d}"


async def _gone(engine: DockerEngine, container: Container) -> list[str]:
    """Say so when the container was removed or replaced while it was read: its log may have ended early."""
    try:
        after = await engine.container(container.name)
    except NotFound:
        return ["the container was removed while it was read; its log may be incomplete"]
    except Unavailable as error:
        return [error.message]
    if after.id != container.id:
        return ["the container was replaced while it was read; its log may be incomplete"]
    return []

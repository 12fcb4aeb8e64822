"""The reader's side of the log agents' words: which sources there are, and the lines of one, chunk by chunk."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from typing import TypeVar

import msgspec

from services.executor.tasks.agents import AGENT_DEADLINE_S
from shared.bus import Bus
from shared.errors import RemitError, Unavailable
from shared.logs import GO_ON, STOP, LogChunk, ReadRequest, SourceInfo, SourcesReply, SourcesRequest
from shared.subjects import logs

PAGES_MAX = 1_000
CHUNK_PATIENCE_S = 30.0

T = TypeVar("T")


async def sources_of(bus: Bus, host: str) -> tuple[list[SourceInfo], SourcesReply]:
    """Every source of the host, and the last page for what it says of the engine."""
    found: list[SourceInfo] = []
    after = ""
    for _ in range(PAGES_MAX):
        question = msgspec.json.encode(SourcesRequest(after=after))
        answer = await bus.request(logs(host, "sources"), question, timeout_s=AGENT_DEADLINE_S)
        reply = _decoded(answer, SourcesReply, host)
        found.extend(reply.sources)
        if reply.next is None:
            return found, reply
        after = reply.next
    raise RemitError(f"{host} sent more than {PAGES_MAX} pages of sources")


async def chunks_of(bus: Bus, host: str, request: ReadRequest) -> AsyncIterator[LogChunk]:
    """The chunks of one read, in order; each is answered when the caller asks for the next one.

    RemitError when the agent refuses or says nothing for a while.
    """
    came: asyncio.Queue[tuple[bytes, str]] = asyncio.Queue()  # bounded by the agent, which waits for answers

    def collect(_subject: str, data: bytes, reply: str, headers: Mapping[str, str] | None) -> None:
        came.put_nowait((b"" if headers and headers.get("Status") == "503" else data, reply))

    inbox = bus.inbox()
    stop = await bus.subscribe(inbox, collect)
    answer_to = ""
    ended = False
    expected = None
    try:
        await bus.publish(logs(host, "read"), msgspec.json.encode(request), inbox)
        while not ended:
            try:
                data, answer_to = await asyncio.wait_for(came.get(), CHUNK_PATIENCE_S)
            except TimeoutError:
                raise Unavailable(f"{host} said nothing for {CHUNK_PATIENCE_S:g} s") from None
            if not data:
                raise Unavailable(f"nobody answers for the logs of {host}")
            chunk = _decoded(data, LogChunk, host)
            if expected is not None and chunk.n != expected and chunk.error is None:
                raise Unavailable(f"a part of what {host} sent was lost")
            expected = chunk.n + 1
            ended = chunk.last or chunk.error is not None
            if chunk.error is not None:
                raise RemitError(chunk.message or chunk.error, field=chunk.field)
            yield chunk
            if not ended and answer_to:
                await bus.publish(answer_to, GO_ON)
    finally:
        if not ended and answer_to:
            await bus.publish(answer_to, STOP)
        await stop()


def _decoded(data: bytes, struct: type[T], host: str) -> T:
    try:
        return msgspec.json.decode(data, type=struct)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise RemitError(f"what the agent of {host} sent cannot be read: {str(error)[:200]}") from error

"""The asker's side of the log agents: whole lists from their pages, and a read as an async iterator of
chunks.
"""

import asyncio
from collections.abc import AsyncGenerator, Mapping
from typing import TypeVar

import msgspec

from shared import subjects
from shared.bus import REQUEST_TIMEOUT_S, Bus
from shared.errors import UNREADABLE, Malformed, NotFound, Refused, RemitError, Unavailable
from shared.logs import (
    ANSWER_WAIT_S,
    CHUNK_BYTES_MAX,
    CHUNK_LINES_MAX,
    CURSOR_CHARS_MAX,
    GO_ON,
    STOP,
    UNANSWERED_CHUNKS_MAX,
    LogChunk,
    LogRefusal,
    ReadRequest,
    ServicesReply,
    ServicesRequest,
    SourcesReply,
    SourcesRequest,
)

T = TypeVar("T")
Page = TypeVar("Page", SourcesReply, ServicesReply)

# An agent that always promises another page, or another chunk, is broken or lies.
ENTRIES_MAX = 50_000
PATIENCE = 6  # times what one page may take: all of them
WORDS_CHARS_MAX = 500
NOTES_MAX = 20

_ERRORS: dict[str, type[RemitError]] = {"malformed": Malformed, "refused": Refused, "not_found": NotFound}


class _MaybeRefusal(msgspec.Struct):
    error: str | None = None


async def all_sources(bus: Bus, host: str, *, timeout_s: float = REQUEST_TIMEOUT_S) -> SourcesReply:
    """Return everything that a host could have read; RemitError when its agent refuses or does not answer."""
    pages = await _pages(bus, host, "sources", SourcesRequest, SourcesReply, timeout_s)
    return msgspec.structs.replace(pages[-1], sources=[one for page in pages for one in page.sources], next=None)


async def all_services(bus: Bus, host: str, *, timeout_s: float = REQUEST_TIMEOUT_S) -> ServicesReply:
    """Return every allow-listed container of a host; RemitError when its agent refuses or does not answer."""
    pages = await _pages(bus, host, "services", ServicesRequest, ServicesReply, timeout_s)
    return msgspec.structs.replace(pages[-1], services=[one for page in pages for one in page.services], next=None)


async def _pages(
    bus: Bus,
    host: str,
    what: str,
    request: type[SourcesRequest] | type[ServicesRequest],
    kind: type[Page],
    timeout_s: float,
) -> list[Page]:
    """Ask for one page after the other, as long as each promises a later one."""
    pages: list[Page] = []
    after, entries = "", 0
    try:
        async with asyncio.timeout(PATIENCE * timeout_s):
            while True:
                question = msgspec.json.encode(request(after=after))
                answer = await bus.request(subjects.logs(host, what), question, timeout_s=timeout_s)
                reply = _short(_read(answer, kind, host))
                pages.append(reply)
                entries += 1 + len(reply.sources if isinstance(reply, SourcesReply) else reply.services)
                if reply.next is None or reply.next <= after:
                    return pages
                if entries > ENTRIES_MAX:
                    raise Unavailable(f"the log agent of {host} lists more than {ENTRIES_MAX} {what}")
                after = reply.next
    except TimeoutError as error:
        raise Unavailable(f"the log agent of {host} went on listing {what} for {PATIENCE * timeout_s:g} s") from error


async def read_log(
    bus: Bus, host: str, request: ReadRequest, *, silence_s: float = ANSWER_WAIT_S
) -> AsyncGenerator[LogChunk, None]:
    """Yield the chunks of one read; each next one is asked for when the caller comes back for it.

    Close it (`contextlib.aclosing`) to stop early: the agent is told. Malformed, Refused or NotFound as the
    agent says; Unavailable when it is busy, silent for `silence_s`, a chunk was lost, or it sends more than was asked.
    """
    lines_left, chars_left = request.max_lines + CHUNK_LINES_MAX, request.max_bytes + CHUNK_BYTES_MAX
    # The agent sends a few chunks ahead; more than twice that is not its protocol, and is not kept.
    came: asyncio.Queue[tuple[bytes, str, bool]] = asyncio.Queue(2 * UNANSWERED_CHUNKS_MAX)

    def take(_subject: str, data: bytes, reply: str, headers: Mapping[str, str] | None) -> None:
        if not came.full():
            came.put_nowait((data, reply, bool(headers and headers.get("Status") == "503")))

    inbox = bus.inbox()
    unsubscribe = await bus.subscribe(inbox, take)
    answer_to = ""
    try:
        await bus.publish(subjects.logs(subjects.token(host, "host"), "read"), msgspec.json.encode(request), inbox)
        expected = 0
        while True:
            try:
                data, answer_to, nobody = await asyncio.wait_for(came.get(), silence_s)
            except TimeoutError as error:
                raise Unavailable(f"the log agent of {host} said nothing for {silence_s:g} s") from error
            if nobody:
                raise Unavailable(f"no log agent answers for {host}")
            chunk = _chunk(data, host)
            if chunk.n != expected or not len(chunk.at) == len(chunk.stream) == len(chunk.text):
                raise Unavailable(f"the log agent of {host} sent chunk {chunk.n} where {expected} was due")
            expected += 1
            lines_left -= max(1, len(chunk.text))
            chars_left -= sum(map(len, chunk.text))
            if lines_left < 0 or chars_left < 0:
                raise Unavailable(f"the log agent of {host} sent more than the limits of the read")
            if chunk.last:
                answer_to = ""
            elif not answer_to:
                raise Unavailable(f"the log agent of {host} takes no answers")
            yield chunk
            if chunk.last:
                return
            await bus.publish(answer_to, GO_ON)
    finally:
        await unsubscribe()
        if answer_to:
            await bus.publish(answer_to, STOP)


def _chunk(data: bytes, host: str) -> LogChunk:
    chunk = _decoded(data, LogChunk, host)
    if chunk.error is not None:
        raise _error(chunk.error, chunk.message, chunk.field)
    if len(chunk.cursor or "") > CURSOR_CHARS_MAX or len(chunk.until or "") > CURSOR_CHARS_MAX:
        raise Unavailable(f"the log agent of {host} sent a cursor that no agent takes back")
    return msgspec.structs.replace(chunk, notes=_words(chunk.notes)) if chunk.notes else chunk


def _words(notes: list[str]) -> list[str]:
    """What an agent notes for people; of any agent, so of any length."""
    return [note[:WORDS_CHARS_MAX] for note in notes[:NOTES_MAX]]


def _short(page: Page) -> Page:
    if page.engine_error:
        page = msgspec.structs.replace(page, engine_error=page.engine_error[:WORDS_CHARS_MAX])
    if isinstance(page, SourcesReply):
        page = msgspec.structs.replace(page, notes=_words(page.notes))
    return page


def _read(data: bytes, kind: type[T], host: str) -> T:
    if _decoded(data, _MaybeRefusal, host).error is not None:
        said = _decoded(data, LogRefusal, host)
        raise _error(said.error, said.message, said.field)
    return _decoded(data, kind, host)


def _error(kind: str, message: str, field: str) -> RemitError:
    return _ERRORS.get(kind, Unavailable)(message[:WORDS_CHARS_MAX], field=field[:WORDS_CHARS_MAX])


def _decoded(data: bytes, kind: type[T], host: str) -> T:
    try:
        return msgspec.json.decode(data, type=kind)
    except UNREADABLE as error:
        told = str(error)[:WORDS_CHARS_MAX]
        raise Unavailable(f"the log agent of {host} sent what cannot be read: {told}") from error

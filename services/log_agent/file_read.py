"""One read of one file: from the cursor, or at first its last lines, up to where the file ended when asked.

A last line without a newline may be a line that is just being written. If the file changed a moment ago it is
left for the next read; in a file that rests it is a line like any other.
"""

import asyncio
import os
from collections.abc import AsyncGenerator

from msgspec import Struct

from services.log_agent.chunks import Chunks
from services.log_agent.cursor import FileCursor, digest, file_cursor
from services.log_agent.lines import Batch, Cut
from services.log_agent.safe_open import Permits, open_allowed
from shared.clock import NS_PER_S, parse_ns
from shared.logs import LogChunk, ReadRequest

BLOCK_BYTES = 256 * 1024
FINGERPRINT_BYTES = 64  # of what stands before the cursor: enough to tell a rewritten file
RESTING_S = 5  # a writer that stops in the middle of a line for longer has stopped


class _Place(Struct):
    """Where a read begins, and what is to be said about it."""

    offset: int
    older_skipped: bool = False
    notes: list[str] = []


class LineCutter:
    """Cut blocks into lines, remembering the offset after each."""

    def __init__(self, offset: int) -> None:
        self.offset = offset
        self._open = Cut(parts=[])

    def feed(self, data: bytes) -> Batch:
        """Take the next block and return the lines that it completes."""
        out = Batch([], [], [], [])
        *ended, rest = data.split(b"\n")
        for piece in ended:
            self._open.add(piece)
            self.offset += len(piece) + 1
            self._close(out)
        if rest:
            self._open.add(rest)
            self.offset += len(rest)
        return out

    def flush(self) -> Batch:
        """Return the last line, which has no newline, if there is one."""
        out = Batch([], [], [], [])
        if self._open.parts:
            self._close(out)
        return out

    def _close(self, out: Batch) -> None:
        line, self._open = self._open, Cut(parts=[])
        out.at.append(None)
        out.stream.append("")
        out.text.append(line.text())
        out.ends.append(self.offset)
        out.cut_bytes += line.cut_bytes


async def read_file(path: str, request: ReadRequest, permits: Permits, now: str) -> AsyncGenerator[LogChunk, None]:
    """Yield the file's lines after the cursor as chunks, the last one with the cursor to go on from.

    Refused, NotFound or Unavailable when the file may not or cannot be read.
    """
    given = file_cursor(request.cursor) if request.cursor else None
    descriptor = await asyncio.to_thread(open_allowed, path, permits)
    try:
        status = os.fstat(descriptor)
        end = status.st_size
        place = await asyncio.to_thread(_begin, descriptor, status, given, request)
        cutter, chunks, reached = LineCutter(place.offset), Chunks(request.max_lines, request.max_bytes), place.offset
        position = place.offset
        while position < end and not chunks.truncated:
            data = await asyncio.to_thread(os.pread, descriptor, min(BLOCK_BYTES, end - position), position)
            if not data:
                place.notes.append("the file became shorter while it was read")
                break
            position += len(data)
            taken = chunks.take(cutter.feed(data))
            reached = taken.ends[-1] if taken.ends else reached
            for chunk in chunks.add(taken):
                yield chunk
        if not chunks.truncated and reached < cutter.offset:
            if parse_ns(now) - status.st_mtime_ns < RESTING_S * NS_PER_S:
                place.notes.append("an unfinished last line is left for the next read")
            else:
                taken = chunks.take(cutter.flush())
                reached = taken.ends[-1] if taken.ends else reached
                for chunk in chunks.add(taken):
                    yield chunk
        mark = await asyncio.to_thread(_fingerprint, descriptor, reached)
        for chunk in chunks.finish(
            older_skipped=place.older_skipped,
            until=None if chunks.truncated else now,
            cursor=FileCursor(status.st_dev, status.st_ino, reached, mark).encode(),
            notes=place.notes,
        ):
            yield chunk
    finally:
        os.close(descriptor)


def _begin(descriptor: int, status: os.stat_result, given: FileCursor | None, request: ReadRequest) -> _Place:
    if given is None:
        offset = tail_start(descriptor, status.st_size, request.max_lines, request.max_bytes)
        return _Place(offset, older_skipped=offset > 0, notes=[])
    if (given.device, given.inode) != (status.st_dev, status.st_ino):
        return _Place(0, notes=["the file was rotated; what its predecessor got after the last read is not read"])
    if given.offset > status.st_size:
        return _Place(0, notes=["the file was truncated; it is read from its beginning"])
    if _fingerprint(descriptor, given.offset) != given.digest:
        return _Place(0, notes=["the file was rewritten; it is read from its beginning"])
    return _Place(given.offset, notes=[])


def tail_start(descriptor: int, size: int, max_lines: int, max_bytes: int) -> int:
    """Return the offset of the line from which at most `max_lines` lines and `max_bytes` bytes follow."""
    floor = max(size - max_bytes, 0)
    position, newlines, start = size, 0, size
    while position > floor:
        begin = max(position - BLOCK_BYTES, floor)
        block = os.pread(descriptor, position - begin, begin)
        at = len(block)
        if position == size and block.endswith(b"\n"):
            at -= 1  # the newline that ends the last line begins no other
        newest = block.count(b"\n", 0, at)
        if newlines + newest >= max_lines:
            for _ in range(max_lines - newlines):
                at = block.rfind(b"\n", 0, at)
            return begin + at + 1
        newlines += newest
        position = begin
    if floor == 0:
        return 0
    # cut by bytes: begin after the next newline, unless the floor stands at a line's start already
    before = os.pread(descriptor, 1, floor - 1)
    if before == b"\n":
        return floor
    start = floor
    while start < size:
        block = os.pread(descriptor, BLOCK_BYTES, start)
        found = block.find(b"\n")
        if found >= 0:
            return start + found + 1
        if not block:
            break
        start += len(block)
    return floor  # one line larger than the bound: its end is better than nothing


def _fingerprint(descriptor: int, offset: int) -> str:
    begin = max(offset - FINGERPRINT_BYTES, 0)
    return digest(os.pread(descriptor, offset - begin, begin))

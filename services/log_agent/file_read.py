"""One read of one file: from the cursor, or at first its last lines, up to where the file ended when asked.

A last line without a newline may be a line that is just being written. If the file changed a moment ago it is
left for the next read; in a file that rests it is a line like any other.

What is looked at is bounded, and not only what is handed over: a line that is longer than the bound comes in parts,
a read each. Holes are passed over, the one at the end excepted: a file that is made to its full size at first is
written there later. Where little is found, chunks without lines tell the reader that it is being served, and the
agent when the reader is gone.
"""

import asyncio
import os
from collections.abc import AsyncGenerator

from msgspec import Struct

from services.log_agent.chunks import Chunks
from services.log_agent.cursor import FileCursor, digest, file_cursor
from services.log_agent.holes import written
from services.log_agent.lines import Batch, Cut
from services.log_agent.safe_open import Permits, open_allowed
from shared.clock import NS_PER_S, parse_ns
from shared.logs import LogChunk, ReadRequest

BLOCK_BYTES = 256 * 1024
FINGERPRINT_BYTES = 64  # of what stands before the cursor: enough to tell a rewritten file
SCAN_BYTES_MIN = 1024 * 1024  # looked at also where a reader wants less text: few lines are longer
SIGN_OF_LIFE_S = 1.0  # a reader waits for ANSWER_WAIT_S, and one that is gone costs no more than this
RESTING_S = 5  # a writer that stops in the middle of a line for longer has stopped


class _Place(Struct):
    """Where a read begins, and what is to be said about it."""

    offset: int
    older_skipped: bool = False
    notes: list[str] = []


class _Scan(Struct):
    """How far one read has looked, and how much it may look at yet."""

    position: int
    end: int
    left_bytes: int
    stop: int = 0  # of the stretch that is known to be written
    hole_bytes: int = 0

    def block(self, descriptor: int) -> bytes:
        """Return the next block, which ends at `position`; nothing when only a hole, or nothing, is left. Blocks."""
        if self.position >= self.stop:
            start, self.stop = written(descriptor, self.position, self.end)
            if start == self.end:
                self.position = self.end
                return b""
            self.hole_bytes += start - self.position
            self.position = start
        data = os.pread(descriptor, min(BLOCK_BYTES, self.left_bytes, self.stop - self.position), self.position)
        self.position += len(data)
        self.left_bytes -= len(data)
        return data


class LineCutter:
    """Cut blocks into lines, remembering the offset after each, and where the line that is open `begun`."""

    def __init__(self, offset: int) -> None:
        self.offset = self.begun = offset
        self._open = Cut(parts=[])
        self._after_hole = False

    def feed(self, data: bytes, at: int) -> Batch:
        """Take the block that stands at `at` and return the lines that it completes, or that a hole before it ended."""
        out = Batch([], [], [], [])
        if at > self.offset:
            self._pass_over(out, at)
        if self._after_hole:
            text = data.lstrip(b"\0")
            self.offset += len(data) - len(text)
            data, self.begun, self._after_hole = text, self.offset, not text
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
        """Return the last line, which has no newline, if there is one: NULs alone are what a hole's edge left."""
        out = Batch([], [], [], [])
        if self._open.cut_bytes or any(part.strip(b"\0") for part in self._open.parts):
            self._close(out)
        return out

    def _pass_over(self, out: Batch, stop: int) -> None:
        if not self._open.cut_bytes:
            text = b"".join(self._open.parts).rstrip(b"\0")
            self._open = Cut(parts=[text] if text else [])
        if self._open.parts:
            self._close(out)
        self.offset = self.begun = stop
        self._after_hole = True

    def _close(self, out: Batch) -> None:
        line, self._open = self._open, Cut(parts=[])
        self.begun = self.offset
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
    loop = asyncio.get_running_loop()
    descriptor = await asyncio.to_thread(open_allowed, path, permits)
    try:
        status = os.fstat(descriptor)
        place = await asyncio.to_thread(_begin, descriptor, status, given, request)
        cutter, chunks, reached = LineCutter(place.offset), Chunks(request.max_lines, request.max_bytes), place.offset
        scan = _Scan(place.offset, status.st_size, max(request.max_bytes, SCAN_BYTES_MIN))
        said_s = loop.time()
        while scan.position < scan.end and not chunks.truncated:
            if scan.left_bytes == 0:
                chunks.truncated = "bytes"
                break
            data = await asyncio.to_thread(scan.block, descriptor)
            if not data:
                if scan.position < scan.end:
                    place.notes.append("the file became shorter while it was read")
                break
            taken = chunks.take(cutter.feed(data, scan.position - len(data)))
            if not chunks.truncated:
                reached = cutter.begun
            elif taken.ends:
                reached = taken.ends[-1]
            ready = chunks.add(taken)
            if not ready and loop.time() - said_s >= SIGN_OF_LIFE_S:
                ready = chunks.so_far()
            for chunk in ready:
                yield chunk
                said_s = loop.time()
        unfinished = reached < cutter.offset and not chunks.truncated
        endless = reached == place.offset and chunks.truncated
        if endless:
            place.notes.append("a line is longer than what one read looks at; it is read in parts")
        if unfinished and parse_ns(now) - status.st_mtime_ns < RESTING_S * NS_PER_S:
            place.notes.append("an unfinished last line is left for the next read")
        elif unfinished or endless:
            taken = chunks.take(cutter.flush())
            reached = taken.ends[-1] if taken.ends else reached
            for chunk in chunks.add(taken):
                yield chunk
        if scan.hole_bytes:
            place.notes.append(f"{scan.hole_bytes} bytes that were never written are passed over")
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
    data, _ = written(descriptor, floor, size)
    if data == size:
        return 0  # nothing but a hole: what there is stands before it
    position, newlines, oldest = size, 0, -1
    while position > data:
        begin = max(position - BLOCK_BYTES, data)
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
        oldest = begin + block.find(b"\n", 0, at) if newest else oldest
        position = begin
    # cut by bytes: begin after the oldest newline, unless the floor stands at a line's start, or in a hole before one
    if floor == 0 or data > floor or os.pread(descriptor, 1, floor - 1) == b"\n":
        return floor
    return oldest + 1 if oldest >= 0 else floor  # one line larger than the bound: its end is better than nothing


def _fingerprint(descriptor: int, offset: int) -> str:
    begin = max(offset - FINGERPRINT_BYTES, 0)
    return digest(os.pread(descriptor, offset - begin, begin))

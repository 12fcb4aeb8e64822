"""From batches to chunks that fit a message, within the bounds of one read. Pure.

A bound is met at a line, never inside one: what is not taken is left to the next read, so the caller moves
its cursor over exactly the lines that `take` returned.
"""

import msgspec

from services.log_agent.lines import Batch, size_bytes
from shared.logs import CHUNK_BYTES_MAX, CHUNK_LINES_MAX, LogChunk

_LINE_OVERHEAD_BYTES = 52  # stamp, stream, quotes and commas of a line in JSON


class Chunks:
    """Cut a read of at most `max_lines` lines and `max_bytes` bytes of text into numbered chunks."""

    def __init__(self, max_lines: int, max_bytes: int) -> None:
        self.truncated: str | None = None
        self._lines_left = max_lines
        self._bytes_left = max_bytes
        self._n = 0
        self._nothing_yet = True
        self._held = Batch([], [], [], [])
        self._held_bytes = 0

    def take(self, batch: Batch) -> Batch:
        """Return the first lines that are within the bounds; `truncated` names the bound when some are not.

        The first line of a read is always taken: one that is larger than `max_bytes` would stop every read.
        """
        taken = 0
        for text in batch.text:
            size = size_bytes(text)
            if self._lines_left == 0:
                self.truncated = "lines"
                break
            if size > self._bytes_left and not self._nothing_yet:
                self.truncated = "bytes"
                break
            self._lines_left -= 1
            self._bytes_left -= size
            self._nothing_yet = False
            taken += 1
        return batch if taken == len(batch) else batch.part(0, taken)

    def add(self, batch: Batch) -> list[LogChunk]:
        """Return the chunks that these lines complete; the rest waits for more."""
        out: list[LogChunk] = []
        start = 0
        held = len(self._held)
        for index, text in enumerate(batch.text):
            size = size_bytes(text) + _LINE_OVERHEAD_BYTES
            full = held + index - start >= CHUNK_LINES_MAX or self._held_bytes + size > CHUNK_BYTES_MAX
            if full and held + index - start:
                self._hold(batch.part(start, index))
                out += self._chunks()
                start, held = index, 0
            self._held_bytes += size
        self._hold(batch.part(start, len(batch)))
        return out

    def so_far(self) -> list[LogChunk]:
        """Return what waits for more, or a chunk without lines: the reader hears that it is being served."""
        return self._chunks() or [LogChunk(n=self._next())]

    def finish(self, **last: object) -> list[LogChunk]:
        """Return what is left, the end marked with `last` and the fields given."""
        *before, end = self.so_far()
        return [*before, msgspec.structs.replace(end, last=True, truncated=self.truncated, **last)]

    def _hold(self, batch: Batch) -> None:
        self._held.at += batch.at
        self._held.stream += batch.stream
        self._held.text += batch.text
        self._held.cut_bytes += batch.cut_bytes

    def _chunks(self) -> list[LogChunk]:
        held, self._held, self._held_bytes = self._held, Batch([], [], [], []), 0
        return [self._chunk(part) for part in _fitting(held)] if held.text else []

    def _chunk(self, lines: Batch) -> LogChunk:
        return LogChunk(n=self._next(), at=lines.at, stream=lines.stream, text=lines.text, cut_bytes=lines.cut_bytes)

    def _next(self) -> int:
        self._n += 1
        return self._n - 1


def _fitting(lines: Batch) -> list[Batch]:
    """Halve until each part fits: only text full of control characters grows enough in JSON to need it."""
    if len(lines) < 2 or len(msgspec.json.encode(lines.text)) <= CHUNK_BYTES_MAX:
        return [lines]
    middle = len(lines) // 2
    return _fitting(lines.part(0, middle)) + _fitting(lines.part(middle, len(lines)))

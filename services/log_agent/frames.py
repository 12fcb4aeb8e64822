"""The bytes of Docker's log endpoint, walked into lines. Pure: bytes in, batches out, no I/O.

Asked with `timestamps=1`, the engine sends

- for a container without a TTY: frames of 8 bytes header (stream, 0, 0, 0, size as big-endian u32) and a
  payload `STAMP TEXT`, the newline being part of TEXT. A line over 16 KiB comes as several frames of exactly
  16 KiB text, each repeating the first one's stamp, the newline only on the last;
- for a container with a TTY: no frames, just `STAMP TEXT`, and a long line repeats `STAMP ` every 16 KiB.

What is ugly: a process that ends without a newline leaves a frame without one. Its successor after a restart
writes the next frame, which is a new line and not a continuation. The stamp tells them apart, and where a
driver stamps each part anew (journald), the length does: only a full 16 KiB part has a continuation.
"""

import re
from datetime import UTC, datetime
from functools import lru_cache

from services.log_agent.lines import Batch, Cut, readable
from shared.logs import LINE_BYTES_MAX

PART_BYTES = 16 * 1024  # the engine's copy buffer: a part of this length is followed by the line's rest
FRAME_BYTES_MAX = 4 * 1024 * 1024  # no engine sends one; a larger size means that these are no frames

_STREAMS = {0: "stdout", 1: "stdout", 2: "stderr"}  # 0 is stdin's echo, which engines never log
_SYSTEM_ERROR = 3
_STAMP = re.compile(rb"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(?:\.\d{1,9})?)(Z|[+-]\d\d:\d\d) ?")


class NotFrames(Exception):
    """The engine's answer cannot be read as log frames."""


class Unfinished(Cut):
    """A line of which the engine has sent no end yet."""

    stamp: bytes = b""
    last_part_bytes: int = 0

    @property
    def may_go_on(self) -> bool:
        return self.last_part_bytes >= PART_BYTES


class FrameWalk:
    """Walk the frames of a container without a TTY; `entries` counts what the engine counts in `tail`."""

    def __init__(self) -> None:
        self.entries = 0
        self.notes: list[str] = []
        self._rest = b""
        self._open: dict[int, Unfinished] = {}

    def feed(self, data: bytes) -> Batch:
        """Take the next bytes, wherever they were split, and return the lines that they complete."""
        out = Batch([], [], [], [])
        buffer = self._rest + data if self._rest else data
        position, end = 0, len(buffer)
        while end - position >= 8:
            size = int.from_bytes(buffer[position + 4 : position + 8], "big")
            kind = buffer[position]
            if kind > _SYSTEM_ERROR or size > FRAME_BYTES_MAX:
                raise NotFrames(f"a frame of kind {kind} and {size} bytes")
            stop = position + 8 + size
            if stop > end:
                break
            self._frame(out, kind, buffer[position + 8 : stop])
            position = stop
        self._rest = buffer[position:]
        return out

    def unfinished(self) -> list[Unfinished]:
        """Return the lines that still lack their end."""
        return list(self._open.values())

    def flush(self) -> Batch:
        """Return what is left as lines: nothing more will come."""
        out = Batch([], [], [], [])
        for kind in sorted(self._open):
            self._close(out, kind)
        if self._rest:
            self.notes.append(f"the engine's answer broke off inside a frame: {len(self._rest)} bytes dropped")
            self._rest = b""
        return out

    def _frame(self, out: Batch, kind: int, payload: bytes) -> None:
        if kind == _SYSTEM_ERROR:
            self.notes.append(f"the engine says: {readable(payload[:500].strip())}")
            return
        self.entries += 1
        match = _STAMP.match(payload)
        stamp = match.group() if match else b""
        text = payload[len(stamp) :]
        waiting = self._open.get(kind)
        if waiting is not None and not (waiting.stamp == stamp or waiting.may_go_on):
            self._close(out, kind)
            waiting = None
        ended = text.endswith(b"\n")
        if waiting is None and ended and len(text) <= LINE_BYTES_MAX:  # nearly every line comes this way
            _emit(out, kind, stamp, readable(text[:-1]), 0)
            return
        if waiting is None:
            waiting = self._open[kind] = Unfinished(parts=[], stamp=stamp)
        waiting.add(text[:-1] if ended else text)
        waiting.last_part_bytes = len(text)
        if ended:
            self._close(out, kind)

    def _close(self, out: Batch, kind: int) -> None:
        line = self._open.pop(kind)
        _emit(out, kind, line.stamp, line.text(), line.cut_bytes)


class TtyWalk:
    """Walk the plain bytes of a container with a TTY; there is one stream, and it is called stdout."""

    def __init__(self) -> None:
        self.entries = 0
        self.notes: list[str] = []
        self._open: Unfinished | None = None

    def feed(self, data: bytes) -> Batch:
        """Take the next bytes and return the lines that they complete."""
        out = Batch([], [], [], [])
        *ended, rest = data.split(b"\n")
        for piece in ended:
            self._add(piece)
            self._close(out)
        if rest:
            self._add(rest)
        return out

    def unfinished(self) -> list[Unfinished]:
        """Return the line that still lacks its end."""
        if self._open is None:
            return []
        match = _STAMP.match(b"".join(self._open.parts))  # it may have come in pieces
        self._open.stamp = match.group() if match else b""
        return [self._open]

    def flush(self) -> Batch:
        """Return what is left as a line: nothing more will come."""
        out = Batch([], [], [], [])
        if self._open:
            self._close(out)
        return out

    def _add(self, piece: bytes) -> None:
        line = self._open = self._open or Unfinished(parts=[])
        line.add(piece)
        line.last_part_bytes += len(piece)

    def _close(self, out: Batch) -> None:
        line = self._open or Unfinished(parts=[])
        self._open = None
        raw = b"".join(line.parts)
        match = _STAMP.match(raw)
        stamp = match.group() if match else b""
        text = raw[len(stamp) :]
        self.entries += 1
        if stamp and len(text) > PART_BYTES:
            self.entries += text.count(stamp)
            text = text.replace(stamp, b"")
        _emit(out, 1, stamp, readable(text, line.cut_bytes), line.cut_bytes)


def utc(stamp: bytes) -> str | None:
    """Return the stamp that a line began with as RFC 3339 UTC with nine digits, so that text order is time order;
    None for no stamp, or for one that is no time.
    """
    if len(stamp) == 31 and stamp[29:30] == b"Z":  # as every engine writes it
        return stamp[:30].decode("ascii") if _is_moment(stamp[:19]) else None
    match = _STAMP.match(stamp)
    if match is None:
        return None
    clock, zone = match.group(1).decode("ascii"), match.group(2).decode("ascii")
    seconds, _, fraction = clock.partition(".")
    try:
        moment = datetime.fromisoformat(seconds + ("+00:00" if zone == "Z" else zone)).astimezone(UTC)
    except (ValueError, OverflowError):  # digits that are no date: the container's own text, not a stamp
        return None
    return f"{moment.replace(tzinfo=None).isoformat()}.{fraction:0<9}Z"


@lru_cache(maxsize=1024)
def _is_moment(text: bytes) -> bool:
    """Say whether these digits are a time; where there are many lines, many share a second."""
    try:
        datetime.fromisoformat(text.decode("ascii"))
    except ValueError:
        return False
    return True


def _emit(out: Batch, kind: int, stamp: bytes, text: str, cut_bytes: int) -> None:
    out.at.append(utc(stamp))
    out.stream.append(_STREAMS[kind])
    out.text.append(text)
    out.cut_bytes += cut_bytes

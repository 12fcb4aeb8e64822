"""Lines on their way through the agent: a batch is three lists of one length, cheap to cut and to encode.

Text is what people read: undecodable bytes become U+FFFD, one trailing carriage return is dropped (a TTY ends
its lines with CR LF), and a line over LINE_BYTES_MAX is cut with a mark that says how much is missing.
"""

from msgspec import Struct

from shared.logs import LINE_BYTES_MAX


class Batch(Struct):
    """Some lines in order. `ends` is the file offset after each line, empty for containers."""

    at: list[str | None] = []
    stream: list[str] = []
    text: list[str] = []
    ends: list[int] = []
    cut_bytes: int = 0

    def __len__(self) -> int:
        return len(self.text)

    def part(self, start: int, stop: int) -> "Batch":
        """Return the lines from `start` up to `stop`; the bytes cut are counted with the first part."""
        return Batch(
            self.at[start:stop],
            self.stream[start:stop],
            self.text[start:stop],
            self.ends[start:stop],
            self.cut_bytes if start == 0 else 0,
        )


class Cut(Struct):
    """A line in the making: its head of at most LINE_BYTES_MAX bytes, and a count of what came after."""

    parts: list[bytes] = []
    kept_bytes: int = 0
    cut_bytes: int = 0

    def add(self, data: bytes) -> None:
        """Take what still fits and count the rest, so that output without a newline needs no memory."""
        room = LINE_BYTES_MAX - self.kept_bytes
        if room >= len(data):
            self.parts.append(data)
            self.kept_bytes += len(data)
            return
        if room > 0:
            self.parts.append(data[:room])
            self.kept_bytes += room
        self.cut_bytes += len(data) - max(room, 0)

    def text(self) -> str:
        """Return the line for people."""
        return readable(b"".join(self.parts), self.cut_bytes)


def readable(raw: bytes, cut_bytes: int = 0) -> str:
    """Decode a line's bytes without its newline; never fails, whatever the bytes are."""
    if raw.endswith(b"\r"):
        raw = raw[:-1]
    text = raw.decode("utf-8", "replace")
    return f"{text} [cut: {cut_bytes} more bytes]" if cut_bytes else text


def size_bytes(text: str) -> int:
    """Return the UTF-8 size of a text; `isascii` is a flag of the string, so most lines cost nothing."""
    return len(text) if text.isascii() else len(text.encode("utf-8", "replace"))

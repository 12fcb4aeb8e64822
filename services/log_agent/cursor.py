"""Where a read ended, as an opaque text that only this agent understands. Pure.

**Containers.** A stamp alone is no position: stdout and stderr are stamped apart, so their stamps may stand
out of order in the log, and two lines can share one. The log's own order is fixed, though, and the engine's
`since` filters it line by line. So the cursor names the last line handed over (stamp, digest, how many
equal ones stood beside it) and a moment safely before it; the next read starts at that moment and passes
over everything up to and including that line. Where the line is gone (the engine rotated its log), the read
goes on after the newest stamp seen, and says so.

**Files.** Device, inode and offset, and a digest of the bytes just before the offset: another inode is a
rotated file, fewer bytes or other bytes are a truncated one. Both start again at 0, and say so.
"""

import hashlib
import re

from msgspec import Struct

from services.log_agent.lines import Batch
from shared.clock import NS_PER_S, parse_ns, rfc3339
from shared.errors import Malformed

OVERLAP_NS = NS_PER_S  # how far stamps may stand out of order: the engine's two copiers differ by milliseconds
RECENT_LINES = 1_024  # like lines that share stream, stamp and text stand side by side, or nearly so
LOST_AFTER_NS = 10 * NS_PER_S  # a line this much newer than the anchor proves that the anchor is gone

_DOCKER = re.compile(r"d1\|([0-9a-f]{12})\|([^|]{20,35})\|([^|]{20,35})\|(\d{1,9})\|([0-9a-f]{16})\|([^|]{20,35})")
_DOCKER_EMPTY = re.compile(r"d0\|([0-9a-f]{12})")
_FILE = re.compile(r"f1\|(\d{1,20}):(\d{1,20})\|(\d{1,19})\|([0-9a-f]{16})")


class DockerCursor(Struct, frozen=True):
    """The last line handed over of one container; without one (`last` empty) the read begins at the start."""

    container: str
    last: str = ""
    newest: str = ""
    same: int = 0
    digest: str = ""
    start: str = ""

    def encode(self) -> str:
        if not self.last:
            return f"d0|{self.container}"
        return f"d1|{self.container}|{self.last}|{self.newest}|{self.same}|{self.digest}|{self.start}"


class FileCursor(Struct, frozen=True):
    """A place in one file, known again by the bytes that stand before it."""

    device: int
    inode: int
    offset: int
    digest: str

    def encode(self) -> str:
        return f"f1|{self.device}:{self.inode}|{self.offset}|{self.digest}"


def docker_cursor(text: str) -> DockerCursor:
    """Read a container's cursor; Malformed when it is none of this agent's making."""
    if empty := _DOCKER_EMPTY.fullmatch(text):
        return DockerCursor(empty.group(1))
    match = _DOCKER.fullmatch(text)
    if match is None:
        raise Malformed("not a cursor of a container", field="cursor")
    container, last, newest, same, digest, start = match.groups()
    try:
        for stamp in (last, newest, start):
            parse_ns(stamp)
    except (ValueError, OverflowError) as error:
        raise Malformed("not a cursor of a container", field="cursor") from error
    return DockerCursor(container, last, newest, int(same), digest, start)


def file_cursor(text: str) -> FileCursor:
    """Read a file's cursor; Malformed when it is none of this agent's making."""
    match = _FILE.fullmatch(text)
    if match is None:
        raise Malformed("not a cursor of a file", field="cursor")
    device, inode, offset, digest = match.groups()
    return FileCursor(int(device), int(inode), int(offset), digest)


def digest(*parts: bytes) -> str:
    """Return 16 hex digits that tell lines apart; not a secret and not a proof."""
    state = hashlib.blake2b(digest_size=8)
    for part in parts:
        state.update(len(part).to_bytes(8, "big") + part)
    return state.hexdigest()


class Tracker:
    """Follow one read of a container: pass over what the cursor has handed over before, remember what
    comes.
    """

    def __init__(self, container: str, previous: DockerCursor | None) -> None:
        self.container = container
        self.anchor = previous if previous and previous.last else None
        self.lost = False
        self._last = ("", "", "")
        self._newest = self.anchor.newest if self.anchor else ""
        self._recent: dict[tuple[str, str, int], int] = {}
        self._before: dict[tuple[str, str, int], int] = {}
        self._previous = previous

    def fresh(self, batch: Batch) -> Batch:
        """Return the lines after the anchor; `lost` when the anchor can no longer come."""
        if self.anchor is None:
            return batch
        for index in range(len(batch)):
            at = batch.at[index]
            if at is None:
                continue
            same = self._count(at, batch.stream[index], batch.text[index])
            if at == self.anchor.last:
                line = digest(batch.stream[index].encode(), batch.text[index].encode())
                if line == self.anchor.digest and same == self.anchor.same:
                    self._last = (at, batch.stream[index], batch.text[index])
                    self.anchor = None
                    return batch.part(index + 1, len(batch))
            elif at > self.anchor.newest and parse_ns(at) > parse_ns(self.anchor.newest) + LOST_AFTER_NS:
                self.lost = True
                break
        return Batch([], [], [], [])

    def passed(self, batch: Batch) -> None:
        """Remember these lines as handed over."""
        for index, at in enumerate(batch.at):
            if at is None:
                continue
            self._count(at, batch.stream[index], batch.text[index])
            if at > self._newest:
                self._newest = at
            self._last = (at, batch.stream[index], batch.text[index])

    def restart_after_loss(self) -> None:
        """Begin again without an anchor: the read that follows starts after the newest stamp."""
        self.anchor, self.lost = None, False
        self._recent, self._before = {}, {}

    def is_recent(self, stamp: str) -> bool:
        """Say whether an unfinished line of this stamp is still worth waiting for."""
        return not self._newest or parse_ns(self._newest) - parse_ns(stamp) < LOST_AFTER_NS

    def cursor(self, waiting_for: str | None = None) -> DockerCursor:
        """Return where this read ended; `waiting_for` is the stamp of a line that was left unfinished."""
        at, stream, text = self._last
        if not at:
            return self._previous or DockerCursor(self.container)
        start = min(at, earlier(self._newest, OVERLAP_NS), waiting_for or at)
        key = (at, stream, hash(text))
        same = self._recent.get(key) or self._before.get(key) or 1
        return DockerCursor(self.container, at, self._newest, same, digest(stream.encode(), text.encode()), start)

    def _count(self, at: str, stream: str, text: str) -> int:
        """Return how many lines like this one the read has come by, among the last thousand or two."""
        key = (at, stream, hash(text))  # not the text: thousands of long lines are not to be kept
        count = (self._recent.get(key) or self._before.get(key) or 0) + 1
        self._recent[key] = count
        if len(self._recent) >= RECENT_LINES:
            self._before, self._recent = self._recent, {}
        return count


def earlier(stamp: str, by_ns: int) -> str:
    """Return the stamp moved back; rfc3339 rounds down to microseconds, which is earlier still."""
    return rfc3339(max(parse_ns(stamp) - by_ns, 0))


def engine_time(stamp: str) -> str:
    """Return `seconds.nanoseconds`, the one form of `since` that every engine takes (RFC 3339 is a 500 on
    20.10).
    """
    second, rest_ns = divmod(max(parse_ns(stamp), 0), NS_PER_S)  # a stamp of the year 1 is a clock that was not set
    return f"{second}.{rest_ns:09d}"

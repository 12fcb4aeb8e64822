"""What lies in an archive: a day's file, and its manifest. Pure.

A day's file holds messages of one range of sequences, in the order of the stream. It ends before the first message
whose stamp is of a later day; so a message whose stamp is earlier than the one before it (a clock was set back) stays
where the stream has it, in a later day's file, and no file is ever opened again.
"""

import re
from datetime import UTC, datetime, timedelta

import msgspec

from shared.clock import NS_PER_S
from shared.errors import Malformed
from shared.events import AuditSealed
from shared.proof.sealing import State

FORMAT = 1
_is_digest = re.compile(r"[0-9a-f]{64}").fullmatch
_is_number = re.compile(r"[1-9]\d{0,18}", re.ASCII).fullmatch
_is_day = re.compile(r"[12]\d{3}-\d\d-\d\d(T\d{6})?", re.ASCII).fullmatch
FOLDER = "events"
DAY_S = 86_400
DIGITS = 12  # of the file's digest, in its name

# subject, sequence, stamp in nanoseconds, data, the header block as it was stored (None: there was none)
Row = tuple[str, int, int, bytes, bytes | None]


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """One day of an archive; written when its file lies there and has been checked, so a day without one is none.

    `before` and `after` are the sealing as it stood at `first_seq - 1` and at `last_seq`: each day can be checked
    without the others, and the next one begins with the last one's `after`. `seals` are all that were checked within
    the day. `covered_by` is the first one behind its last message, `consistency` the proof (RFC 9162, 2.1.4, in hex)
    that the tree of `last_seq` leaves is the beginning of the one that it signs.
    """

    day: str
    stream: str  # when the stream was made: another one's days do not fit
    first_seq: int
    last_seq: int
    events: int
    first_at: str
    last_at: str
    file: str
    size_bytes: int
    sha256: str
    root: str
    before: State
    after: State
    seals: list[AuditSealed]
    covered_by: AuditSealed
    consistency: list[str]
    format: int = FORMAT


class Calendar(msgspec.Struct, frozen=True):
    """Days by number since 1970, UTC. Only the tests have shorter ones."""

    day_s: int = DAY_S

    def day_of(self, at_ns: int) -> int:
        return at_ns // (self.day_s * NS_PER_S)

    def begin_ns(self, day: int) -> int:
        return day * self.day_s * NS_PER_S

    def name(self, day: int) -> str:
        """`2026-11-24`; names sort as their days do."""
        begin = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(seconds=day * self.day_s)
        return begin.strftime("%Y-%m-%d" if self.day_s == DAY_S else "%Y-%m-%dT%H%M%S")

    def number(self, name: str) -> int:
        """The day of this name; ValueError when it is none."""
        begin = datetime.strptime(name, "%Y-%m-%d" if self.day_s == DAY_S else "%Y-%m-%dT%H%M%S").replace(tzinfo=UTC)
        return int(begin.timestamp()) // self.day_s


def day_behind(calendar: Calendar, newest: Manifest | None, at_ns: int) -> int:
    """The day into whose file the message goes that lies right behind the `newest` one's; its stamp is `at_ns`.

    Where a clock was set back over midnight, that is the next day's: an archived day is never opened again.
    """
    day = calendar.day_of(at_ns)
    try:
        return day if newest is None else max(day, calendar.number(newest.day) + 1)
    except ValueError as error:
        raise Malformed(f"{newest.day if newest else ''} is no day of this archive", field="archive") from error


def is_day(name: str) -> bool:
    """Whether this is the name of a day, as `Calendar.name` gives them."""
    if not _is_day(name):
        return False
    try:
        datetime.strptime(name, "%Y-%m-%dT%H%M%S" if "T" in name else "%Y-%m-%d").replace(tzinfo=UTC)
    except ValueError:
        return False
    return True


def is_whole_day(name: str) -> bool:
    """A day of 24 hours, as all are but those of the tests."""
    return len(name) == len("2026-11-24")


def _is_state(state: State) -> bool:
    """Whether these are numbers of messages of a stream, and of runs."""
    numbers = (state.size, state.at_ns, *state.open.values(), *state.closed.values())
    runs = (*state.open, *state.planned, *state.closed)
    return all(0 <= number < 1 << 63 for number in numbers) and all(_is_number(run) for run in runs)


def file_name(day: str, sha256: str = "") -> str:
    """Where the day's file lies. With a part of its digest in its name, two who write a day at once write two files."""
    return f"{FOLDER}/{day}.{sha256[:DIGITS]}.parquet" if sha256 else f"{FOLDER}/{day}.parquet"


def manifest_name(day: str) -> str:
    return f"{FOLDER}/{day}.json"


def encode(manifest: Manifest) -> bytes:
    return msgspec.json.format(msgspec.json.encode(manifest), indent=1) + b"\n"


def decode(data: bytes, day: str) -> Manifest:
    """ValueError when these bytes are not this day's manifest, or one of a format that this Remit does not know."""
    manifest = msgspec.json.decode(data, type=Manifest)
    if manifest.format != FORMAT:
        raise ValueError(f"its format is {manifest.format}, and this Remit reads {FORMAT}")
    if manifest.day != day:
        raise ValueError(f"it is that of {manifest.day[:40]!r}")
    if not (_is_state(manifest.before) and _is_state(manifest.after)):
        raise ValueError("its trees have numbers that are none of a stream's")
    if not _is_digest(manifest.sha256):
        raise ValueError(f"{manifest.sha256[:100]!r} is no digest of a file")
    if manifest.file not in (file_name(day), file_name(day, manifest.sha256)):
        raise ValueError(f"its file is {manifest.file[:100]!r}, and that is no name of a day's file")
    return manifest

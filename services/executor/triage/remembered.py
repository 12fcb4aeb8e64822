"""Readings that are remembered: a line that differs from an earlier one in digits only is read as that one was.

Theory of operation. Reading a line is mostly looking for its header, and a header's patterns take every digit for any
other; so of two lines that are the same but for their digits the fields lie in the same places. A line is remembered
with all its digits made one: where its stamp, its component and its message lie, and what its level said. Two patterns
name a digit, a compact stamp (20…) and an epoch (1…): what may be one of them is remembered with its first two digits.
Where more than the header had a say (JSON, logfmt, a request's status), or a level has a number, or a field stands
twice in its header, or the line opens a trace, it is read anew each time. That nothing else hangs on a digit is shown
in tests/executor/triage/test_remembered.py.

Such lines are of one form. They have one shape, too, so `counting` writes into the form where it has counted one of
them, and counts the others there without asking what they say.
"""

import re
from typing import Final, final

from msgspec import Struct

from services.executor.triage import times
from services.executor.triage.fold import opens
from services.executor.triage.mask import normal_bytes
from services.executor.triage.reading import Places, Reading, read, read_as
from services.executor.triage.tally import Tally

REMEMBERED_MAX: Final = 20_000
REMEMBERED_CHARS_MAX: Final = 1_000

# What may be a stamp whose pattern in fields.py names a digit; a whole run, as stamps are looked for where words begin.
_telling = re.compile(r"(?<!0)(?:0{8}[-T ]|0{10}(?:0{3}|\.0+)?(?![\w:]))")
_has_digit = re.compile(r"[0-9]").search


@final
class Form(Struct, gc=False):
    """Lines that are the same but for their digits: where each field lies, and where such a line counts."""

    stamp_from: int
    stamp_to: int
    component_from: int
    component_to: int
    message_from: int
    severity: str | None
    kind: str
    parsed: bool
    normal: str  # the message with its digits made one
    begins: bool  # it has a header of its own, so it never belongs to the event before
    minute_at: int  # where minute and second of its stamp stand; 0 where there is more to read
    second_at: int
    # Written by `counting`, and good as long as its tallies are of this round.
    round: int = 0
    tally: Tally | None = None
    state: str = ""

    def reading(self, text: str) -> Reading:
        """The reading of one of these lines."""
        stamp, component = text[self.stamp_from : self.stamp_to], text[self.component_from : self.component_to]
        message = text[self.message_from :]
        return Reading(message, self.severity, stamp, self.kind, component, self.parsed, "", False, self.normal)


_ANEW: Final = "anew"  # to be read anew each time
_Telling = list[int]  # where those digits stand that tell: see `_told`


class Readings:
    """Reads lines; bounded."""

    def __init__(self) -> None:
        self._known: dict[bytes, Form | _Telling | str] = {}

    def form(self, text: str) -> Form | None:
        """The form of this line, if an earlier one was of it; then this one is as clean as that was."""
        if len(text) > REMEMBERED_CHARS_MAX:
            return None
        normal = normal_bytes(text)
        known = self._known.get(normal)
        if type(known) is list:
            known = self._known.get(_told(text, normal, known))
        return known if type(known) is Form else None

    def read(self, text: str) -> Form | Reading:
        """The form of one cleaned line, which gives its reading; or its reading, where the next one is read anew."""
        if len(text) > REMEMBERED_CHARS_MAX:
            return read(text)
        key = whole = normal_bytes(text)
        known = self._known.get(key)
        if type(known) is list:
            key = _told(text, whole, known)
            known = self._known.get(key)
        if known is not None:
            return known if type(known) is Form else read(text)
        reading, places = read_as(text)
        if len(self._known) >= REMEMBERED_MAX:
            self._known.clear()
        normal = whole.decode("utf-8", "surrogatepass")
        if key is whole and places is not None and "00000000" in normal:
            telling = [found.start() for found in _telling.finditer(normal)]
            if telling:
                self._known[whole] = telling
                key = _told(text, whole, telling)
        form = None if places is None else _form(text, normal, reading, places)
        self._known[key] = form or _ANEW
        return form or reading


def _told(text: str, whole: bytes, telling: _Telling) -> bytes:
    """The line with its digits made one, and those digits that tell."""
    return b"\n".join([whole, *[text[at : at + 2].encode() for at in telling]])


def _form(text: str, normal: str, reading: Reading, places: Places) -> Form | None:
    """Where the parts of this line lie; None when in another one they may lie elsewhere."""
    at = places.message_from
    if text[0] == "<" or _has_digit(places.level) or (not reading.parsed and opens(reading.message)):
        return None
    stamp, component = reading.stamp, reading.component
    if (stamp and text.count(stamp, 0, at) != 1) or (component and text.count(component, 0, at) != 1):
        return None
    stamp_from = text.find(stamp, 0, at) if stamp else 0
    component_from = text.find(component, 0, at) if component else 0
    stamp_to = stamp_from + len(stamp)
    minute, second = times.clock_at(reading.kind, normal[stamp_from:stamp_to])
    return Form(
        stamp_from,
        stamp_to,
        component_from,
        component_from + len(component),
        at,
        reading.severity,
        reading.kind,
        reading.parsed,
        normal[at:],
        reading.parsed and stamp != "",
        stamp_from + minute if minute else 0,
        stamp_from + second,
    )

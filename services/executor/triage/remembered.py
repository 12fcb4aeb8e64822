"""Readings that are remembered: a line that differs from an earlier one in digits only is read as that one was.

Theory of operation. Reading a line is mostly looking for its header, and a header's patterns take every digit for any
other; so of two lines that are the same but for their digits the fields lie in the same places. A line is remembered
with all its digits made one: where its stamp, its component and its message lie, and what its level said. Two patterns
name a digit, a compact stamp (20…) and an epoch (1…): what may be one of them is remembered with its first two digits.
Where more than the header had a say (JSON, logfmt, a request's status), or a level has a number, or a field stands
twice in its header, the line is read anew each time. That nothing else hangs on a digit is shown in
tests/executor/triage/test_remembered.py.
"""

import re
from typing import Final, NamedTuple

from services.executor.triage.mask import digits_as_one
from services.executor.triage.reading import Places, Reading, read, read_as

REMEMBERED_MAX: Final = 20_000
REMEMBERED_CHARS_MAX: Final = 1_000

# What may be a stamp whose pattern in fields.py names a digit; a whole run, as stamps are looked for where words begin.
_telling = re.compile(r"(?<!0)(?:0{8}[-T ]|0{10}(?:0{3}|\.0+)?(?![\w:]))")
_has_digit = re.compile(r"[0-9]").search


class _Known(NamedTuple):
    stamp_from: int
    stamp_to: int
    component_from: int
    component_to: int
    message_from: int
    severity: str | None
    kind: str
    parsed: bool


_ANEW: Final = "anew"  # to be read anew each time
_Telling = list[int]  # where those digits stand that tell: see `_told`


class Readings:
    """Reads lines; bounded."""

    def __init__(self) -> None:
        self._known: dict[str, _Known | _Telling | str] = {}

    def read(self, text: str) -> Reading:
        """The reading of one cleaned line, as `reading.read` gives it."""
        if len(text) > REMEMBERED_CHARS_MAX:
            return read(text)
        key = normal = digits_as_one(text)
        known = self._known.get(key)
        if type(known) is list:
            key = _told(text, normal, known)
            known = self._known.get(key)
        if type(known) is _Known:
            stamp_from, stamp_to, component_from, component_to, at, severity, kind, parsed = known
            stamp, component = text[stamp_from:stamp_to], text[component_from:component_to]
            return Reading(text[at:], severity, stamp, kind, component, parsed, "", False, normal[at:])
        return read(text) if known is _ANEW else self._learn(text, normal, key)

    def _learn(self, text: str, normal: str, key: str) -> Reading:
        reading, places = read_as(text)
        if len(self._known) >= REMEMBERED_MAX:
            self._known.clear()
        if key is normal and places is not None and "00000000" in normal:
            telling = [found.start() for found in _telling.finditer(normal)]
            if telling:
                self._known[normal] = telling
                key = _told(text, normal, telling)
        self._known[key] = _ANEW if places is None else _known(text, reading, places) or _ANEW
        return reading


def _told(text: str, normal: str, telling: _Telling) -> str:
    """The line with its digits made one, and those digits that tell."""
    return "\n".join([normal, *[text[at : at + 2] for at in telling]])


def _known(text: str, reading: Reading, places: Places) -> _Known | None:
    """Where the parts of this line lie; None when in another one they may lie elsewhere."""
    at = places.message_from
    if text[0] == "<" or _has_digit(places.level):
        return None
    spans: list[int] = []
    for part in (reading.stamp, reading.component):
        if part and text.count(part, 0, at) != 1:
            return None
        first = text.find(part, 0, at) if part else 0
        spans += (first, first + len(part))
    return _Known(spans[0], spans[1], spans[2], spans[3], at, reading.severity, reading.kind, reading.parsed)

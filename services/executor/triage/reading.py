"""Reads one line that starts an event: header, structure, and the severity that it states itself."""

from typing import NamedTuple, final

from msgspec import Struct

from services.executor.triage import severity, structured
from services.executor.triage.header import parse_header


@final
class Reading(Struct, frozen=True, gc=False):
    """One line understood; `severity` is None where the line states none, `parsed` False where nothing was known."""

    message: str
    severity: str | None
    stamp: str
    kind: str
    component: str
    parsed: bool
    stack: str = ""
    literal: bool = False  # the message is a template already: nothing in it is to be masked or merged
    normal: str = ""  # the message with its digits made one, where that is known already


class Places(NamedTuple):
    """Where a line's message begins and which level it states: told where only the header has been read."""

    message_from: int
    level: str


def read(text: str) -> Reading:
    """The reading of one cleaned line."""
    return read_as(text)[0]


def read_as(text: str) -> tuple[Reading, Places | None]:
    """The reading of one cleaned line, and its places; None where more than the header had a say."""
    told = True
    if text[:1] == "{":
        told = False
        fields = structured.parse_json(text)
        if fields is not None:
            return _structured(fields), None
    stamp, kind, level, component, at = parse_header(text)
    message = text[at:] if at else text
    if not level and "=" in message:
        if structured.may_be_logfmt(message):
            told = False
            fields = structured.parse_logfmt(message)
            if fields is not None:
                return _structured(fields, stamp, kind, component), None
    elif message[:2] == '{"' and not level:
        told = False
        fields = structured.parse_json(message)
        if fields is not None:
            return _structured(fields, stamp, kind, component), None
    stated = severity.LEVELS.get(level.lower()) or severity.of_level(level) if level else None
    parsed = at > 0 or stamp != ""
    if '" ' in message:
        told = False
        request = severity.access(message)
        if request is not None:
            status = request["status"]
            if status[0] == "5":
                stated = "error"
            elif stated is None:
                stated = "info"
            if kind == "clf" or request.end() < 200:
                return Reading(_request(*request.groups()), stated, stamp, kind, component, True, literal=True), None
    return Reading(message, stated, stamp, kind, component, parsed), Places(at, level) if told else None


def _structured(fields: structured.Fields, stamp: str = "", kind: str = "", component: str = "") -> Reading:
    return Reading(
        fields.message,
        severity.of_level(fields.level),
        fields.time or stamp,
        fields.kind if fields.time else kind,
        fields.logger or component,
        True,
        fields.stack,
    )


def _request(method: str, path: str, status: str) -> str:
    """A request as a statement: its method, the first part of its path, its status."""
    path = path.partition("?")[0]
    front, slash, rest = path.lstrip("/").partition("/")
    if any(c.isdigit() for c in front) or len(front) > 40:
        front = "<*>"
    return f'"{method} /{front}{"/<*>" if slash and rest else slash}" {status}'

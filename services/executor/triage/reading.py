"""Reads one line that starts an event: header, structure, and the severity that it states itself."""

from typing import Final, NamedTuple

from services.executor.triage import severity, structured
from services.executor.triage.header import parse_header

NAMED_LEVEL_ONLY: Final = "."  # "info: Microsoft.Hosting.Lifetime[14]": the message is on the next line


class Reading(NamedTuple):
    """One line understood; `severity` is None where the line states none, `parsed` False where nothing was known."""

    message: str
    severity: str | None
    stamp: str
    kind: str
    component: str
    parsed: bool
    stack: str = ""
    literal: bool = False  # the message is a template already: nothing in it is to be masked or merged


def read(text: str) -> Reading:
    """The reading of one cleaned line."""
    first = text[:1]
    if first == "{":
        fields = structured.parse_json(text)
        if fields is not None:
            return _structured(fields)
    stamp, kind, level, component, at = parse_header(text)
    message = text[at:] if at else text
    if not level and "=" in message:
        fields = structured.parse_logfmt(message)
        if fields is not None:
            return _structured(fields, stamp, kind, component)
    elif message[:2] == '{"' and not level:
        fields = structured.parse_json(message)
        if fields is not None:
            return _structured(fields, stamp, kind, component)
    stated = severity.LEVELS.get(level.lower()) or severity.of_level(level) if level else None
    parsed = at > 0 or stamp != ""
    if '" ' in message:
        request = severity.access(message)
        if request is not None:
            status = request["status"]
            if status[0] == "5":
                stated = "error"
            elif stated is None:
                stated = "info"
            if kind == "clf" or request.end() < 200:
                return Reading(_request(*request.groups()), stated, stamp, kind, component, True, literal=True)
    return Reading(message, stated, stamp, kind, component, parsed)


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

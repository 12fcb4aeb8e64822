"""Recognises the header of a log line: time, level, host, process, logger; the rest is the message.

Theory of operation. Nearly every log line is `HEADER MESSAGE`, and the header is made of few kinds of field in any
order: a stamp, a level word, a host, `process[pid]:`, a bracketed thread, a dotted logger. So no format is known by
name. A stamp is looked for at the front (or after a few field-like words, as in cluster logs and access logs); from
there a loop eats one recognised field after the other and stops at the first thing that reads like prose. A line
without a stamp may still open with a level (`ERROR:root:…`, `info: Kestrel[14]`). Everything is plain position
arithmetic over compiled patterns without nested repetition, so a hostile line costs linear time: only the first
`HEADER_CHARS_MAX` characters are ever looked at.

A wrong cut is worse than no cut: a word that may be prose ("Failed: …", "java.lang.Error: …") is left in the message.
"""

import re
from typing import Final, NamedTuple

from services.executor.triage.fields import (
    AFTER_LEVEL,
    BRACKET,
    COLUMN,
    CRI,
    FILE_LINE,
    HOST_PROC,
    LEVEL_ANY,
    LEVEL_FAR,
    LEVEL_LETTER,
    LEVEL_PLAIN,
    LEVEL_UPPER,
    LEVEL_WORDS,
    LOGGER,
    LOGGER_BARE,
    LOGGER_DASH,
    NET_LEVEL,
    NOT_LOGGER,
    PAREN,
    PID,
    PID_DASHES,
    PIPES,
    PRI,
    PRI_LEVELS,
    PROSE,
    PY_LEVEL,
    RFC5424,
    SKIP,
    SKIPPED,
    START_LEVEL,
    TIME_AT,
    TIME_DEEP,
    TIME_NEXT,
)

# Longer headers were not seen; the bound keeps the cost of a 10 MB line that of a short one.
HEADER_CHARS_MAX: Final = 400
FIELDS_MAX: Final = 14


class Header(NamedTuple):
    """What stands before the message; `message_at` is the offset where the message starts."""

    time: str  # the stamp as written, "" if none
    kind: str  # which stamp pattern matched: see times.py
    level: str  # the level word as written, "" if none
    component: str  # process or logger, "" if none
    message_at: int


NO_HEADER: Final = Header("", "", "", "", 0)


def parse_header(text: str) -> Header:
    """The header of one cleaned line; `NO_HEADER` (message_at 0) when nothing is recognised."""
    head = text if len(text) <= HEADER_CHARS_MAX else text[:HEADER_CHARS_MAX]
    level = ""
    if head.startswith("<"):
        match = RFC5424.match(head)
        if match is not None:
            level = PRI_LEVELS[int(match["pri"]) & 7]
            return Header(match["iso"], "iso", level, match["app"], match.end())
        match = PRI.match(head)
        if match is not None:
            level = PRI_LEVELS[int(match["pri"]) & 7]
    match = TIME_AT.match(head)
    if match is None:
        match = _deep_time(head)
        if match is None:
            return _without_time(head)
    kind = match.lastgroup or ""
    stamp = match.group(kind)
    return _fields(head, match.end(), stamp, kind, level)


def _deep_time(head: str) -> re.Match[str] | None:
    match = TIME_DEEP.search(head, 0, 120)
    if match is None:
        return None
    words = head[: match.start()].split()
    if not words or len(words) > 5 or (words[0].isalpha() and not words[0].isupper()):
        return None
    if match.lastgroup == "clock" and len(words) > 1:
        return None
    for word in words:
        if word[-1] in ",;" or word.lower() in PROSE:
            return None
    return match


def _without_time(head: str) -> Header:
    match = PY_LEVEL.match(head)
    if match is not None:
        return Header("", "", match["level"], match["name"], _after_spaces(head, match.end()))
    match = NET_LEVEL.match(head)
    if match is not None:
        return Header("", "", match["level"], match["name"], match.start("name"))
    match = START_LEVEL.match(head)
    if match is None:
        return NO_HEADER
    level = match["b"] or match["c"] or match["d"]
    if match["d"] and head[match.end() : match.end() + 4].lstrip()[:1].isupper() and head.isupper():
        return NO_HEADER  # a shouted sentence: "ERROR IN CONTACTING RM."
    return _fields(head, match.end(), "", "", level)


def _after_spaces(head: str, at: int) -> int:
    while at < len(head) and head[at] == " ":
        at += 1
    return at


def _fields(head: str, at: int, stamp: str, kind: str, level: str = "") -> Header:
    component = ""
    if kind == "klog":
        level = stamp[0]
    if head[at : at + 1] in ("]", ")"):
        at += 1
    size = len(head)
    if head[at : at + 1] == "|":
        piped = PIPES.match(head, at + 1)
        if piped is not None:
            component, at = piped[0].partition("|")[0], piped.end()
            return Header(stamp, kind, level, component, at)
    host_open = kind in ("syslog", "iso")
    padded = False
    brackets = 0
    for _ in range(FIELDS_MAX):
        if at < size and head[at] in SKIPPED:
            skip = SKIP.match(head, at)
            at = skip.end() if skip is not None else at
        if at >= size:
            break
        char = head[at]
        if char == "s" and not level and head.startswith("std", at):
            found = CRI.match(head, at)  # containerd's own prefix: "stdout F "
            if found is not None:
                at = found.end()
                continue
        if char in "[<{(":
            if not level:
                found = LEVEL_UPPER.match(head, at) or LEVEL_ANY.match(head, at)
                if found is not None:
                    level, at = found[found.lastgroup or 0], found.end()
                    continue
            inner = BRACKET.match(head, at)
            if inner is not None and brackets < 4:
                brackets, at = brackets + 1, inner.end()
                continue
            if level and not component and char == "(":
                inner = PAREN.match(head, at)
                if inner is not None:
                    at = inner.end()
                    continue
            break
        if not level and char.isalpha():
            found = LEVEL_UPPER.match(head, at) or LEVEL_ANY.match(head, at)
            if found is not None:
                level, at = found[found.lastgroup or 0], found.end()
                padded = head.startswith("  ", at)
                found = AFTER_LEVEL.match(head, at)
                at = found.end() if found is not None else at
                continue
            if kind in ("short", "clock", "iso"):
                found = LEVEL_LETTER.match(head, at) or (LEVEL_PLAIN.match(head, at) if kind == "iso" else None)
                if found is not None:
                    level, at = found["level"], found.end()
                    continue
        if not component and (char.isdigit() or char in "#-"):
            again = TIME_NEXT.match(head, at) if char != "-" else None
            date_only = kind == "iso" and len(stamp) < 11
            if again is not None and (date_only or again.lastgroup not in ("clock", "digits")):
                at, host_open = again.end(), True
                if len(stamp) < 11 or kind == "epoch":
                    kind = again.lastgroup or kind
                    stamp = again[kind]
                continue
            found = PID.match(head, at) if not level or kind == "klog" else PID_DASHES.match(head, at)
            if found is not None:
                at = found.end()
                continue
        elif not component and not level and kind in ("epoch", "iso"):
            again = TIME_NEXT.match(head, at)
            if again is not None:
                kind = again.lastgroup or kind
                stamp, at, host_open = again[kind], again.end(), True
                continue
        if not component:
            if not level:
                found = LEVEL_FAR.match(head, at)
                if found is not None:
                    level, at = found["level"], found.end()
                    continue
            if host_open and (not level or kind == "syslog"):
                found = HOST_PROC.match(head, at)
                if found is not None and found["proc"] in LEVEL_WORDS:
                    level, at = found["proc"], found.end()
                    break
                if found is not None:
                    component, at = found["proc"], found.end()
                    break
            if padded:
                found = COLUMN.match(head, at)
                if found is not None:
                    at, component = found.end(), found[0].strip()
                    break
            found = LOGGER_DASH.match(head, at) if not (level and brackets) else None
            if found is not None:
                component, at = found["name"], found.end()
                if level:
                    break
                continue
            found = _logger(head, at, level, kind)
            if found is not None:
                component, at = found[found.lastgroup or 0], found.end()
                if not level:
                    continue
                if found.re is LOGGER_BARE:  # "logger [request] message", "logger - message"
                    skip = SKIP.match(head, at)
                    at = skip.end() if skip else at
                    inner = BRACKET.match(head, at)
                    at = inner.end() + 1 if inner is not None else at
                break
        break
    return Header(stamp, kind, level, component, min(at, size))


def _logger(head: str, at: int, level: str, kind: str) -> re.Match[str] | None:
    found = LOGGER.match(head, at)
    if found is not None and _is_logger(found, level, kind):
        return found
    found = FILE_LINE.match(head, at)
    if found is not None:
        return found
    if level:
        found = LOGGER_BARE.match(head, at)
        if found is not None and not NOT_LOGGER.search(found["name"]):
            return found
    return None


def _is_logger(found: re.Match[str], level: str, kind: str) -> bool:
    name = found["name"]
    if NOT_LOGGER.search(name):
        return False
    if "." in name or "$" in name or kind == "short":
        return True
    if found[0][-1] == ":":
        return False  # `a:b` glued: only a dotted name is surely a logger
    return level != "" and any(c in "_/" or c.isupper() for c in name[1:])

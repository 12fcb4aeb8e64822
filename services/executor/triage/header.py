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

_MON: Final = r"(?:Jan|Feb|Mar|Apr|May|Jun|Jul|Aug|Sep|Oct|Nov|Dec)"
_DAY: Final = r"(?:Mon|Tue|Wed|Thu|Fri|Sat|Sun)"
_ZONE: Final = r"(?:\s?(?:Z|[+-]\d\d:?\d\d)\b|\s(?:UTC|GMT|CES?T|[ECMP][SD]T))?"
_TIME: Final = (
    rf"(?P<iso>\d{{4}}[-/.]\d\d[-/.]\d\d(?:,?[T _:-]\s?\d\d[:.]\d\d[:.]\d\d(?:[.,:]\d{{1,9}})?{_ZONE})?)"
    r"|(?P<compact>20\d{6}[-T ](?:\d\d:?\d\d:?\d\d|\d{1,2}:\d{1,2}:\d{1,2})(?:[:.,]\d{1,6})?)"
    rf"|(?P<syslog>(?:{_DAY},? )?{_MON} +\d{{1,2}}(?: \d{{4}})?,? \d\d:\d\d:\d\d(?:\.\d+)?(?: \d{{4}})?)"
    rf"|(?P<clf>(?:{_DAY}, )?\d{{1,2}}[/ -]{_MON}[/ -]\d{{4}}[: ]\d\d:\d\d:\d\d(?:[.,]\d+)?(?: [+-]\d{{4}})?)"
    r"|(?P<short>\d\d[-/.]\d\d(?:[-/.]\d\d(?:\d\d)?)?,? \d\d:\d\d:\d\d(?:[.,]\d+)?)"
    r"|(?P<klog>[IWEFD]\d{4} \d\d:\d\d:\d\d\.\d+)"
    r"|(?P<digits>\d{6} \d{6})"
    r"|(?P<epoch>1\d{9}(?:\d{3}|\.\d+)?)"
    r"|(?P<clock>\d\d:\d\d:\d\d(?:[.,]\d+)?|\d{1,2}:\d\d[AP]M)"
    r"|(?P<uptime>\[ *\d+\.\d{6}\])"
)
_TIME_AT = re.compile(rf"(?:<\d{{1,3}}>(?:1 )?|- |[A-Z], )?[\[(]?(?:{_TIME})(?![\w:])")
# A stamp deeper in the line: after one to five words that look like fields. The words themselves are checked below.
_TIME_DEEP = re.compile(rf"(?:(?<=[ \[])(?:{_TIME})(?![\w.:/-]))")
_TIME_NEXT = re.compile(rf"(?:(?=\S*\d)[\w./:#@-]+ )?(?:{_TIME})(?![\w:])")
_PROSE: Final = frozenset(
    "a an and as at before by for from had has have if in is it job of on or since started than that the this time to "
    "until was were when will with".split()
)
_SKIP = re.compile(r"[\s|,:\]\-]*")
_SKIPPED: Final = frozenset(" \t|,:]-")
_LEVELS: Final = (
    r"EMERGENCY|EMERG|ALERT|CRITICAL|CRIT|FATAL|PANIC|SEVERE|ERROR|ERR|WARNING|WARN|WRN|NOTICE|INFORMATION|INFO|INF"
    r"|CONFIG|LOG|STATEMENT|DETAIL|HINT|DEBUG\d?|DBG|DBUG|FINEST|FINER|FINE|VERBOSE|TRACE|TRC|FTL"
)
_LEVEL_WORDS: Final = frozenset(_LEVELS.replace("\\d?", "").split("|"))
PRI_LEVELS: Final = ("EMERG", "ALERT", "CRIT", "ERR", "WARNING", "NOTICE", "INFO", "DEBUG")
_LEVEL_UPPER = re.compile(rf"[\[(<*]?\s?(?P<level>{_LEVELS})\s?(?:[\])>*]|(?=[\s:|,/\-]))(?!\s*=)")
_LEVEL_ANY = re.compile(
    rf"(?:\[\s?(?P<b>{_LEVELS}|EROR|FAIL)\s?\]|(?P<c>{_LEVELS}|FAIL)(?=:|,|\s?\||\s{{2,}}|/[A-Z]))", re.IGNORECASE
)
_LEVEL_PLAIN = re.compile(rf"(?P<level>{_LEVELS})\s(?=[a-z\[])", re.IGNORECASE)
_LEVEL_FAR = re.compile(rf"(?:[A-Z0-9_.:/\-]+ ){{1,4}}?(?P<level>{_LEVELS}) ")
_LEVEL_LETTER = re.compile(r"(?P<level>[VDIWEF])(?:/|\s)")
_BRACKET = re.compile(r"\[[^\[\]]{0,300}(?:\[[^\[\]]{0,80}\][^\[\]]{0,120}){0,3}\]|<\d+\.\d+\.\d+>|\{[\w./-]+:\d+\}")
_PAREN = re.compile(r"\([A-Za-z][\w.-]*\)(?=\s)")
_PID = re.compile(r"#?\d{1,7}(?:#\d+)?(?=[\s:|\]])|--+")
_PROC = re.compile(r"(?P<name>[A-Za-z_][\w./()@-]*)\[[\w.-]{1,24}\]:?(?=\s)|(?P<name2>[A-Za-z_][\w./()@-]*):(?=\s)")
_HOST_PROC = re.compile(
    r"(?P<host>[\w.:/@#-]+) +(?:-- )?(?P<proc>[A-Za-z_/][\w./()@-]*(?: [\d.]+)?)"
    r"(?:\[[\w.-]{1,24}\])?(?:\s?\([\w.]+(?:\[\d+\])?\))?:\s?"
)
_LOGGER = re.compile(r"(?P<name>[A-Za-z_][\w./$@#-]{1,160})(?:\s*:\s|:(?=[^\s\d/]))")
_LOGGER_DASH = re.compile(r"(?P<name>(?=\d*[A-Za-z_])[\w./$:@-]{0,120}(?: \*?\w{1,3})?) - ")
_LOGGER_BARE = re.compile(r"(?P<name>[a-z_]\w*(?:\.[A-Za-z_$]\w*){1,12})\s+(?=\[|- |[A-Z(])")
_COLUMN = re.compile(r"[A-Z][A-Za-z.]{1,24} {2,}")
_PIPES = re.compile(r"(?:[A-Za-z0-9_.-]{1,60}\|){1,4}")
_PID_DASHES = re.compile(r"\d{1,7} -{2,3}(?= )")
_AFTER_LEVEL = re.compile(r"/[\w-]+(?:\]|(?=\s))")
_RFC5424 = re.compile(
    r"<(?P<pri>\d{1,3})>1 (?P<iso>\S{10,40}) (?P<host>\S{1,255}) (?P<app>\S{1,48}) \S{1,128} \S{1,32} "
    r"(?:-|\[[^\]]{0,200}\])\s?"
)
_CRI = re.compile(r"std(?:out|err) [FP] ")
_PRI = re.compile(r"<(?P<pri>\d{1,3})>")
_FILE_LINE = re.compile(r"(?P<name>[\w./-]+\.[a-z]\w{0,4}:\d+)[\]:]?\s|(?P<name2>\w+(?:::\w+)+)[\]:]\s")
_PY_LEVEL = re.compile(r"(?P<level>CRITICAL|ERROR|WARNING|INFO|DEBUG):(?P<name>[\w.]+):")
_NET_LEVEL = re.compile(r"(?P<level>trce|dbug|info|warn|fail|crit): (?P<name>[\w.]+)\[\d+\]$")
_START_LEVEL = re.compile(
    rf"(?:\[\s?(?P<b>(?i:{_LEVELS}))\s?\]|(?P<c>{_LEVELS})(?=:\s|\s?\|\s|\s-\s|\s\[)|(?P<d>{_LEVELS})(?=\s+[A-Za-z\[(]))"
)
_NOT_LOGGER = re.compile(r"(?:Exception|Error|Throwable|Failure)$|^(?:java|javax|kotlin|System)\.|^https?$")


def parse_header(text: str) -> Header:
    """The header of one cleaned line; `NO_HEADER` (message_at 0) when nothing is recognised."""
    head = text if len(text) <= HEADER_CHARS_MAX else text[:HEADER_CHARS_MAX]
    level = ""
    if head.startswith("<"):
        match = _RFC5424.match(head)
        if match is not None:
            level = PRI_LEVELS[int(match["pri"]) & 7]
            return Header(match["iso"], "iso", level, match["app"], match.end())
        match = _PRI.match(head)
        if match is not None:
            level = PRI_LEVELS[int(match["pri"]) & 7]
    match = _TIME_AT.match(head)
    if match is None:
        match = _deep_time(head)
        if match is None:
            return _without_time(head)
    kind = match.lastgroup or ""
    stamp = match.group(kind)
    return _fields(head, match.end(), stamp, kind, level)


def _deep_time(head: str) -> re.Match[str] | None:
    match = _TIME_DEEP.search(head, 0, 120)
    if match is None:
        return None
    words = head[: match.start()].split()
    if not words or len(words) > 5 or (words[0].isalpha() and not words[0].isupper()):
        return None
    if match.lastgroup == "clock" and len(words) > 1:
        return None
    for word in words:
        if word[-1] in ",;" or word.lower() in _PROSE:
            return None
    return match


def _without_time(head: str) -> Header:
    match = _PY_LEVEL.match(head)
    if match is not None:
        return Header("", "", match["level"], match["name"], _after_spaces(head, match.end()))
    match = _NET_LEVEL.match(head)
    if match is not None:
        return Header("", "", match["level"], match["name"], match.start("name"))
    match = _START_LEVEL.match(head)
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
        piped = _PIPES.match(head, at + 1)
        if piped is not None:
            component, at = piped[0].partition("|")[0], piped.end()
            return Header(stamp, kind, level, component, at)
    host_open = kind in ("syslog", "iso")
    padded = False
    brackets = 0
    for _ in range(FIELDS_MAX):
        if at < size and head[at] in _SKIPPED:
            skip = _SKIP.match(head, at)
            at = skip.end() if skip is not None else at
        if at >= size:
            break
        char = head[at]
        if char == "s" and not level and head.startswith("std", at):
            found = _CRI.match(head, at)  # containerd's own prefix: "stdout F "
            if found is not None:
                at = found.end()
                continue
        if char in "[<{(":
            if not level:
                found = _LEVEL_UPPER.match(head, at) or _LEVEL_ANY.match(head, at)
                if found is not None:
                    level, at = found[found.lastgroup or 0], found.end()
                    continue
            inner = _BRACKET.match(head, at)
            if inner is not None and brackets < 4:
                brackets, at = brackets + 1, inner.end()
                continue
            if level and not component and char == "(":
                inner = _PAREN.match(head, at)
                if inner is not None:
                    at = inner.end()
                    continue
            break
        if not level and char.isalpha():
            found = _LEVEL_UPPER.match(head, at) or _LEVEL_ANY.match(head, at)
            if found is not None:
                level, at = found[found.lastgroup or 0], found.end()
                padded = head.startswith("  ", at)
                found = _AFTER_LEVEL.match(head, at)
                at = found.end() if found is not None else at
                continue
            if kind in ("short", "clock", "iso"):
                found = _LEVEL_LETTER.match(head, at) or (_LEVEL_PLAIN.match(head, at) if kind == "iso" else None)
                if found is not None:
                    level, at = found["level"], found.end()
                    continue
        if not component and (char.isdigit() or char in "#-"):
            again = _TIME_NEXT.match(head, at) if char != "-" else None
            date_only = kind == "iso" and len(stamp) < 11
            if again is not None and (date_only or again.lastgroup not in ("clock", "digits")):
                at, host_open = again.end(), True
                if len(stamp) < 11 or kind == "epoch":
                    kind = again.lastgroup or kind
                    stamp = again[kind]
                continue
            found = _PID.match(head, at) if not level or kind == "klog" else _PID_DASHES.match(head, at)
            if found is not None:
                at = found.end()
                continue
        elif not component and not level and kind in ("epoch", "iso"):
            again = _TIME_NEXT.match(head, at)
            if again is not None:
                kind = again.lastgroup or kind
                stamp, at, host_open = again[kind], again.end(), True
                continue
        if not component:
            if not level:
                found = _LEVEL_FAR.match(head, at)
                if found is not None:
                    level, at = found["level"], found.end()
                    continue
            if host_open and (not level or kind == "syslog"):
                found = _HOST_PROC.match(head, at)
                if found is not None and found["proc"] in _LEVEL_WORDS:
                    level, at = found["proc"], found.end()
                    break
                if found is not None:
                    component, at = found["proc"], found.end()
                    break
            if padded:
                found = _COLUMN.match(head, at)
                if found is not None:
                    at, component = found.end(), found[0].strip()
                    break
            found = _LOGGER_DASH.match(head, at) if not (level and brackets) else None
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
                if found.re is _LOGGER_BARE:  # "logger [request] message", "logger - message"
                    skip = _SKIP.match(head, at)
                    at = skip.end() if skip else at
                    inner = _BRACKET.match(head, at)
                    at = inner.end() + 1 if inner is not None else at
                break
        break
    return Header(stamp, kind, level, component, min(at, size))


def _logger(head: str, at: int, level: str, kind: str) -> re.Match[str] | None:
    found = _LOGGER.match(head, at)
    if found is not None and _is_logger(found, level, kind):
        return found
    found = _FILE_LINE.match(head, at)
    if found is not None:
        return found
    if level:
        found = _LOGGER_BARE.match(head, at)
        if found is not None and not _NOT_LOGGER.search(found["name"]):
            return found
    return None


def _is_logger(found: re.Match[str], level: str, kind: str) -> bool:
    name = found["name"]
    if _NOT_LOGGER.search(name):
        return False
    if "." in name or "$" in name or kind == "short":
        return True
    if found[0][-1] == ":":
        return False  # `a:b` glued: only a dotted name is surely a logger
    return level != "" and any(c in "_/" or c.isupper() for c in name[1:])

"""How bad a line is.

Rules, the first that speaks wins:
1. the level that the program itself wrote: in the header, or the `level` field of JSON and logfmt (also pino numbers)
2. … except that an access log's 5xx is an error whatever the level of the line that carries it
3. an uncaught end: `panic:`, `fatal error:`, "Out of memory", "segfault", "core dumped" is critical
4. a phrase that says there was none ("0 errors", "no error", "failed=0", "error: null") is struck out, then
5. words that say something broke: error, failed, exception, refused, cannot … is error
6. words that say something is not as it should be: warn, deprecated, retrying, timeout, denied … is warning
7. a line with a header but no such word is info; a line of which nothing is recognised is unknown
The stream never counts: many programs log everything to stderr.
"""

import re
from typing import Final

LEVELS: Final[dict[str, str]] = {
    **dict.fromkeys(["emergency", "emerg", "alert", "critical", "crit", "fatal", "ftl", "panic", "dpanic"], "critical"),
    **dict.fromkeys(["error", "err", "eror", "severe", "fail", "failure", "e"], "error"),
    **dict.fromkeys(["warning", "warn", "wrn", "w"], "warning"),
    **dict.fromkeys(
        ["notice", "information", "informational", "info", "inf", "i", "log", "statement", "detail", "hint", "config"],
        "info",
    ),
    **dict.fromkeys(
        ["debug", "dbg", "dbug", "fine", "finer", "finest", "verbose", "trace", "trce", "trc", "d", "v", "t"], "debug"
    ),
    "f": "critical",
    "c": "critical",
}
_PINO: Final = ((60, "critical"), (50, "error"), (40, "warning"), (30, "info"), (0, "debug"))

_ACCESS = re.compile(r'"(?P<method>[A-Z]{3,10}) (?P<path>[^\s"]{1,2000})[^"]{0,40}" (?P<status>[1-5]\d\d)(?=[\s,]|$)')
_MAYBE = re.compile(
    r"error|fail|fatal|panic|exception|traceback|refused|denied|unreachable|cannot|can't|could not|unable"
    r"|abnormal|broken"
    r"|warn|deprecat|retry|time[d ]?\s?out|out of memory|oom|segfault|segmentation|core dumped|killed"
    r"|crash|corrupt|abort"
    r"|unavailable|unhealthy|lost connection|disk full|no space|exceeded|invalid|illegal|kernel bug"
    r"|reset by peer|not responding"
    r"|critical|emergency|slow "
)
_NONE = re.compile(
    r"(?:\b(?:no|0|zero|without(?: any)?|not an?|never|free of)[ \t](?:\w{1,20}[ \t])?"
    r"(?:errors?|failures?|failed|warnings?|exceptions?|panics?|crashes|timeouts?|problems)\b)"
    r""
    r"|\b\w{0,40}?(?:errors?|failures?|failed|warnings?|exceptions?|panics?|timeouts?)(?:[_-]?(?:count|total|s))?\\?[\"']?"
    r"[ \t]?[=:][ \t]?\\?[\"']?(?:0(?:\.0+)?|none|null|false|nil|no|ok|\[\]|\{\})(?![\w.])"
    r"|\b(?:errors?|failures?)[-_ ](?:free|rate|log|page|handler|handling|budget|code[ =:]{1,2}0\b|level)\b"
    r"|\bfail(?:-?over|-?safe|-?fast|2ban)\b|\b(?:timeout|retry|retries)[_=: ]{1,2}\d[\w.]*"
    r"|\b\w{1,40}_(?:errors?|failures?|failed|warnings?|timeouts?)\b"
    r"|\b(?:errors?|failures?|failed|timeouts?)_\w{1,40}\b",
    re.IGNORECASE,
)
_CRITICAL = re.compile(
    r"\bpanic\b|\bfatal\b|\bout of memory\b|\boom[- _]?kill|\bsegfault\b|\bsegmentation fault\b"
    r"|\bcore dumped\b|\bkernel bug\b"
    r"|\bkilled process\b|\bemergency\b|\bno space left\b",
    re.IGNORECASE,
)
_ERROR = re.compile(
    r"\berrors?\b|\bexceptions?\b|\bfail(?:ed|ure|ures|s|ing)?\b|\btraceback\b|\brefused\b"
    r"|\bunreachable\b|\bcannot\b|\bcan't\b|\bcould not\b|\bunable to\b|\babnormal(?:ly)?\b"
    r"|\bbroken pipe\b|\bcrash(?:ed|es|ing)?\b"
    r"|\bcorrupt(?:ed|ion)?\b|\babort(?:ed|ing)\b|\bunavailable\b|\billegal\b|\breset by peer\b"
    r"|\bnot responding\b|\bcritical\b",
    re.IGNORECASE,
)
_CAMEL_ERROR = re.compile(r"[a-z](?:Error|Exception|Failure)\b")
_WARNING = re.compile(
    r"\bwarn(?:ing|ings)?\b|\bdeprecat|\bretry(?:ing)?\b|\btimed? ?out\b|\btimeouts?\b|\bdenied\b"
    r"|\bunhealthy\b|\bexceeded\b"
    r"|\binvalid\b|\blost connection\b|\bslow (?:query|request|log)\b|\bkilled\b",
    re.IGNORECASE,
)


def of_level(level: object) -> str | None:
    """The severity that a level word or number stands for; None when it stands for none."""
    if isinstance(level, str):
        word = level.strip().rstrip("0123456789").lower()
        return LEVELS.get(word) or (of_level(int(level)) if level.isdigit() and len(level) < 4 else None)
    if isinstance(level, int | float) and not isinstance(level, bool) and level >= 10:
        return next(name for least, name in _PINO if level >= least)
    return None


def access(message: str) -> re.Match[str] | None:
    """The request and status of an access log's line: groups `method`, `path`, `status`."""
    return _ACCESS.search(message, 0, 4_000)


def of_words(message: str) -> str | None:
    """What the words of a message without a level say: critical, error, warning, or None."""
    if _MAYBE.search(message.lower()) is None:
        return None
    rest = _NONE.sub(" ", message)
    if _CRITICAL.search(rest):
        return "critical"
    if _ERROR.search(rest) or _CAMEL_ERROR.search(rest):
        return "error"
    if _WARNING.search(rest):
        return "warning"
    return None

"""Times on the wire: RFC 3339 UTC text from the stream's nanoseconds, and back."""

import re
import time
from datetime import UTC, datetime

NS_PER_S = 1_000_000_000

_RFC3339 = re.compile(r"(\d{4}-\d\d-\d\d)[Tt ](\d\d:\d\d:\d\d)(?:\.(\d{1,9}))?\d*([Zz]|[+-]\d\d:\d\d)", re.ASCII)
_last_second = (-1, "")
# What can be written again: the years 1 to 9999, in UTC. A zone may carry a text of such a year beyond them.
_FIRST_S, _LAST_S = -62_135_596_800, 253_402_300_799


def rfc3339(at_ns: int) -> str:
    """`1700000000123456789` is `2023-11-14T22:13:20.123456Z`: microseconds, always the same width."""
    global _last_second  # the date part is asked for thousands of times a second and changes once
    second, rest_ns = divmod(at_ns, NS_PER_S)
    if second != _last_second[0]:
        _last_second = (second, datetime.fromtimestamp(second, UTC).isoformat()[:19])
    return f"{_last_second[1]}.{rest_ns // 1000:06d}Z"


def rfc3339_if_any(at_ns: int) -> str | None:
    """None for 0, which is a moment that has not come."""
    return rfc3339(at_ns) if at_ns else None


def seconds_between(from_ns: int, to_ns: int) -> float | None:
    """Seconds, to the microsecond; None where one of the two is 0, a moment that has not come."""
    return (to_ns - from_ns) // 1_000 / 1_000_000 if from_ns and to_ns else None


def parse_ns(text: str) -> int:
    """Nanoseconds since the epoch of an RFC 3339 time; ValueError when it is none."""
    match = _RFC3339.fullmatch(text)
    if match is None:
        raise ValueError(f"{text!r} is not an RFC 3339 time such as 2026-11-21T09:30:00Z")
    day, clock, fraction, zone = match.groups()
    whole = datetime.fromisoformat(f"{day}T{clock}{'+00:00' if zone in 'Zz' else zone}")
    second = int(whole.timestamp())
    if not _FIRST_S <= second <= _LAST_S:
        raise ValueError(f"{text!r} is not within the years 1 to 9999 in UTC")
    return second * NS_PER_S + int((fraction or "").ljust(9, "0"))


def now_ns() -> int:
    """The host's clock; for shells only, never for pure code."""
    return time.time_ns()


def now() -> str:
    """The host's clock as RFC 3339 text; for shells only."""
    return rfc3339(time.time_ns())

"""Turns stamps into seconds since the epoch, as far as they say enough.

A stamp without a zone is taken as UTC. One without a year (syslog) is placed in a leap year that serves for
distances only, and is shown as it was written; a bare clock likewise. Each style is its own scale: `Scale`.
"""

import re
from datetime import UTC, datetime, timedelta, timezone
from typing import Final

_MONTHS: Final = {m: i for i, m in enumerate("Jan Feb Mar Apr May Jun Jul Aug Sep Oct Nov Dec".split(), 1)}
_NOMINAL_YEAR: Final = 2000
_ISO = re.compile(
    r"(\d{4})[-/.]?(\d\d)[-/.]?(\d\d),?[T _:-]?\s?(\d{1,2})[:.]?(\d{1,2})[:.]?(\d{1,2})"
    r"(?:[.,:]\d+)?\s?(Z|[+-]\d\d:?\d\d|[A-Z]{3,4})?"
)
_SYSLOG = re.compile(r"(?:\w{3},? )?(\w{3}) +(\d{1,2})(?: (\d{4}))?,? (\d\d):(\d\d):(\d\d)(?:\.\d+)?(?: (\d{4}))?")
_CLF = re.compile(r"(?:\w{3}, )?(\d{1,2})[/ -](\w{3})[/ -](\d{4})[: ](\d\d):(\d\d):(\d\d)(?:[.,]\d+)?(?: ([+-]\d{4}))?")
_SHORT = re.compile(r"(\d\d)[-/.](\d\d)(?:[-/.](\d{2,4}))?,? (\d\d):(\d\d):(\d\d)")
_KLOG = re.compile(r"[A-Z](\d\d)(\d\d) (\d\d):(\d\d):(\d\d)")
_CLOCK = re.compile(r"(\d{1,2}):(\d\d)(?::(\d\d))?\D*?([AP]M)?$")

# What minutes and seconds add to the hour; a leap second counts as the one before.
MINUTES: Final = {f"{minute:02}": minute * 60 for minute in range(60)}
SECONDS: Final = {f"{second:02}": min(second, 59) for second in range(100)}

FULL: Final = "full"
YEARLESS: Final = "yearless"
CLOCK: Final = "clock"


def seconds_of(kind: str, stamp: str) -> tuple[int, str] | None:
    """Seconds since the epoch and the scale (FULL, YEARLESS or CLOCK) of a stamp; None when it is no time."""
    try:
        return _seconds(kind, stamp)
    except (ValueError, OverflowError):
        return None  # "2024-99-99": looked like a stamp, is none


def clock_at(kind: str, stamp: str) -> tuple[int, int]:
    """Where the two digits of minute and second stand, if what is before them says all the rest; 0 and 0 if not."""
    if kind == "iso" and len(stamp) > 19:
        second = 17 if len(stamp) <= 23 else 0  # behind a fraction of three digits there may be a zone
    else:
        second = len(stamp) - 2
    if kind == "digits":
        minute, is_clock = second - 2, True
    else:
        minute = second - 3
        is_clock = minute > 0 and kind != "clock" and stamp[minute - 1] == ":" == stamp[second - 1]
    if is_clock and stamp[minute : minute + 2] in MINUTES and stamp[second : second + 2] in SECONDS:
        return minute, second
    return 0, 0


def _seconds(kind: str, stamp: str) -> tuple[int, str] | None:
    if kind in ("iso", "compact"):
        m = _ISO.match(stamp)
        if m is None:
            return None
        year, month, day, hour, minute, second = (int(g) for g in m.groups()[:6])
        return _at(year, month, day, hour, minute, second, m[7]), FULL
    if kind == "syslog":
        m = _SYSLOG.match(stamp)
        if m is None or m[1] not in _MONTHS:
            return None
        year = int(m[3] or m[7] or _NOMINAL_YEAR)
        at = _at(year, _MONTHS[m[1]], int(m[2]), int(m[4]), int(m[5]), int(m[6]), None)
        return at, FULL if m[3] or m[7] else YEARLESS
    if kind == "clf":
        m = _CLF.match(stamp)
        if m is None or m[2] not in _MONTHS:
            return None
        return _at(int(m[3]), _MONTHS[m[2]], int(m[1]), int(m[4]), int(m[5]), int(m[6]), m[7]), FULL
    if kind == "epoch":
        value = float(stamp)
        return int(value / 1000 if value > 1e12 else value), FULL
    if kind == "short":
        m = _SHORT.match(stamp)
        if m is None:
            return None
        one, two = int(m[1]), int(m[2])
        if m[3] is None:  # month and day, as in logcat
            return _at(_NOMINAL_YEAR, one, two, int(m[4]), int(m[5]), int(m[6]), None), YEARLESS
        if len(m[3]) == 4:  # 31/12/2024 or 12/31/2024: whichever can be
            day, month = (two, one) if two > 12 else (one, two)
            return _at(int(m[3]), month, day, int(m[4]), int(m[5]), int(m[6]), None), FULL
        return _at(2000 + one, two, int(m[3]), int(m[4]), int(m[5]), int(m[6]), None), FULL
    if kind == "klog":
        m = _KLOG.match(stamp)
        if m is None:
            return None
        return _at(_NOMINAL_YEAR, int(m[1]), int(m[2]), int(m[3]), int(m[4]), int(m[5]), None), YEARLESS
    if kind == "digits":
        year, month, day, hour, minute, second = (int(stamp[i : i + 2]) for i in (0, 2, 4, 7, 9, 11))
        return _at(2000 + year, month, day, hour, minute, second, None), FULL
    if kind == "clock":
        m = _CLOCK.match(stamp)
        if m is None:
            return None
        hour = int(m[1]) % 12 + (12 if m[4] == "PM" else 0) if m[4] else int(m[1])
        return _at(_NOMINAL_YEAR, 1, 1, hour, int(m[2]), int(m[3] or 0), None), CLOCK
    return None


def _at(year: int, month: int, day: int, hour: int, minute: int, second: int, zone: str | None) -> int:
    offset = UTC
    if zone and zone[0] in "+-":
        minutes = int(zone[1:3]) * 60 + int(zone[-2:])
        offset = timezone(timedelta(minutes=-minutes if zone[0] == "-" else minutes))
    return int(datetime(year, month, day, hour, minute, min(second, 59), tzinfo=offset).timestamp())


def shown(at_s: int, scale: str) -> str:
    """The time for people and programs: RFC 3339 where the year is known, else only what is known."""
    when = datetime.fromtimestamp(at_s, UTC)
    if scale == YEARLESS:
        return when.strftime("%b %d %H:%M:%S")
    if scale == CLOCK:
        return when.strftime("%H:%M:%S")
    return when.strftime("%Y-%m-%dT%H:%M:%SZ")

"""Finds stretches where something came far oftener than in its own rest.

Counts are kept in buckets of equal width per source. The stretch grows from the fullest bucket to both sides while a
bucket holds at least a quarter of it; it is a burst when its rate is `RATE_RATIO_MIN` times that of everything
outside, with one line added to the outside so that a template which only ever came in the stretch is judged by the
length of the source's window, not divided by zero.
"""

from collections.abc import Mapping
from typing import Final, NamedTuple

LINES_MIN: Final = 10  # fewer say nothing about a rate
RATE_RATIO_MIN: Final = 8.0
SHARE_MAX: Final = 0.3  # of the window: what goes on longer is how the source is, not a burst
BURSTS_MAX: Final = 3
WINDOW_BUCKETS_MIN: Final = 8


class Stretch(NamedTuple):
    """Buckets `first` to `last` inclusive, their lines, and the rates per bucket inside and outside."""

    first: int
    last: int
    lines: int
    rate: float
    rest: float


def stretches(buckets: Mapping[int, int], window_first: int, window_last: int) -> list[Stretch]:
    """The bursts of one template within its source's window, in the order of time."""
    window = window_last - window_first + 1
    total = sum(buckets.values())
    if window < WINDOW_BUCKETS_MIN or total < LINES_MIN:
        return []
    left = dict(buckets)
    found: list[Stretch] = []
    for _ in range(BURSTS_MAX):
        if not left:
            break
        peak = max(left, key=lambda b: (left[b], -b))
        first = last = peak
        floor = max(1, left[peak] // 4)
        while left.get(first - 1, 0) >= floor:
            first -= 1
        while left.get(last + 1, 0) >= floor:
            last += 1
        lines = sum(left.pop(b) for b in range(first, last + 1))
        length = last - first + 1
        others = sum(s.last - s.first + 1 for s in found)
        if lines < LINES_MIN or length > window * SHARE_MAX:
            break
        outside = max(1, window - length - others)
        rest = sum(left.values()) / outside
        rate = lines / length
        if rate < RATE_RATIO_MIN * ((sum(left.values()) + 1) / outside):
            break
        found.append(Stretch(first, last, lines, rate, rest))
    return sorted(found)

"""The last minutes of one GPU, and the statistics over them. Pure: time comes in with the readings.

NVML's utilization covers only the last sixth of a second to a second, so one poll is close to a coin toss:
all judgements rest on a window. A percentile here is the nearest rank, that is the smallest value that at
least 95 % of the samples do not exceed: always a value that was observed, and defined for one sample as for
nine hundred. Nulls (not supported, or one failed call) take no part: `samples` counts the values that did.
"""

import math
from collections import Counter, deque
from collections.abc import Iterable, Sequence

from services.gpu_agent.reading import Facts, GpuSample, Reading
from shared.gpu import (
    THROTTLE_REASONS,
    GpuReport,
    GpuReportRequest,
    Stat,
    Throttle,
    ThrottleSeen,
    XidCount,
    throttle_kind,
)

XIDS_KEPT = 1024
"""A dying card can report thousands; the newest say enough."""

_BITS = 64


def percentile(ordered: Sequence[float], share: float) -> float:
    """Return the nearest-rank percentile of ascending, non-empty values; `share` is above 0 and at most 1."""
    return ordered[math.ceil(share * len(ordered)) - 1]


def stat(values: Sequence[float | None], *, fresh: bool = True, above: float | None = None) -> Stat:
    """Describe values that are in order of time; `now` is the last one, or null when that is not `fresh`."""
    known = sorted(value for value in values if value is not None)
    if not known:
        return Stat(above=above)
    return Stat(
        now=values[-1] if fresh else None,
        mean=math.fsum(known) / len(known),
        p95=percentile(known, 0.95),
        max=known[-1],
        samples=len(known),
        above=above,
        share_above=None if above is None else sum(value > above for value in known) / len(known),
    )


def reason_names(bits: int) -> list[str]:
    """Name each set bit of NVML's throttle mask, lowest first."""
    return [THROTTLE_REASONS.get(1 << n, f"bit_{n}") for n in range(_BITS) if bits >> n & 1]


def throttle(masks: Sequence[int | None], *, fresh: bool = True) -> Throttle | None:
    """Count each reason over the window; null where the card never told."""
    known = [mask for mask in masks if mask is not None]
    if not known:
        return None
    by_mask = Counter(known)  # a window holds few different masks, so each is taken apart once
    seen: Counter[str] = Counter()
    for mask, times in by_mask.items():
        for name in reason_names(mask):
            seen[name] += times
    newest = masks[-1] if fresh else None
    return Throttle(
        now=reason_names(newest or 0),
        seen=[
            ThrottleSeen(reason=name, kind=throttle_kind(name), samples=times, share=times / len(known))
            for name, times in sorted(seen.items(), key=lambda item: (-item[1], item[0]))
        ],
        samples=len(known),
    )


def percent(part: float | None, whole: float | None) -> float | None:
    """Return part of whole in percent; null when either is unknown or the whole is not positive."""
    return None if part is None or whole is None or whole <= 0 else 100.0 * part / whole


class GpuWindow:
    """One GPU's readings of the last `length_s` seconds, its last facts and its XIDs."""

    def __init__(self, length_s: float, capacity: int) -> None:
        self._length_s = length_s
        self._readings: deque[Reading] = deque(maxlen=capacity)
        self._xids: deque[tuple[float, int]] = deque(maxlen=XIDS_KEPT)
        self._xids_supported = False
        self._facts = Facts()
        self._last: GpuSample | None = None

    def add(self, t_s: float, sample: GpuSample) -> None:
        """Take in one tick and let go of what is older than the window."""
        self._last = sample
        self._xids_supported = self._xids_supported or sample.xids_supported
        self._xids.extend((t_s, xid) for xid in sample.xids)
        if sample.facts is not None:
            self._facts = sample.facts
        if sample.reading is not None:
            self._readings.append(sample.reading)
        self.forget_until(t_s - self._length_s)

    def forget_until(self, t_s: float) -> None:
        """Drop what was taken at or before `t_s`: 900 seconds at 1 Hz are 900 readings, not 901."""
        while self._readings and self._readings[0].t_s <= t_s:
            self._readings.popleft()
        while self._xids and self._xids[0][0] <= t_s:
            self._xids.popleft()

    def times_since(self, t_s: float) -> list[float]:
        """Return when the readings after `t_s` were taken."""
        return [reading.t_s for reading in self._readings if reading.t_s > t_s]

    def report(self, now_s: float, request: GpuReportRequest, *, present: bool) -> GpuReport | None:
        """Describe the seconds before `now_s`; when not `present` (lost, stalled), each `now` is null."""
        last = self._last
        if last is None:
            return None
        since_s = now_s - request.window_s
        readings = [reading for reading in self._readings if reading.t_s > since_s]

        def over(values: Iterable[float | None], above: float | None = None) -> Stat:
            return stat(list(values), fresh=present, above=above)

        totals = [r.memory_total_bytes for r in readings if r.memory_total_bytes is not None]
        facts = self._facts
        return GpuReport(
            index=last.index,
            uuid=last.uuid,
            name=last.name,
            pci_bus_id=last.pci_bus_id,
            lost=last.lost,
            mig=facts.mig,
            utilization_pct=over((r.utilization_pct for r in readings), request.utilization_above_pct),
            memory_used_bytes=over(r.memory_used_bytes for r in readings),
            memory_pct=over(
                (percent(r.memory_used_bytes, r.memory_total_bytes) for r in readings),
                request.memory_above_pct,
            ),
            memory_total_bytes=int(totals[-1]) if totals else None,
            temperature_c=over(r.temperature_c for r in readings),
            power_w=over(r.power_w for r in readings),
            power_limit_w=facts.power_limit_w,
            graphics_clock_mhz=over(r.graphics_clock_mhz for r in readings),
            sm_clock_mhz=over(r.sm_clock_mhz for r in readings),
            memory_clock_mhz=over(r.memory_clock_mhz for r in readings),
            throttle=throttle([r.throttle_bits for r in readings], fresh=present),
            ecc=facts.ecc,
            xids=self._xid_counts(since_s),
            processes=facts.processes if present else None,
        )

    def _xid_counts(self, since_s: float) -> list[XidCount] | None:
        counts = Counter(xid for t_s, xid in self._xids if t_s > since_s)
        if not self._xids_supported and not counts:
            return None
        return [XidCount(xid=xid, count=count) for xid, count in sorted(counts.items())]

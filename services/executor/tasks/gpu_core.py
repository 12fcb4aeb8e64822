"""The agents' answers in, one report out. Pure: no clock, no bus, and the order of arrival does not matter.

A hotspot is something that an operator should look at, and has one of four kinds:

- `utilization`: the MEAN over the window is strictly above the threshold. One poll is close to a coin toss, a
  mean is not.
- `memory`: what is used now, or was on the mean of the window, is strictly above the threshold, in percent of
  the card's memory. Memory is a level: a card that filled up a minute ago is full.
- `thermal_throttle`, `power_throttle`: the driver held the clocks down for heat or for power in at least one
  sample; the value is the percentage of samples. Idle and the clocks that somebody set are no hotspots.
  `hw_slowdown` alone is heat or power and old drivers do not say which; it counts as heat, the more
  dangerous, and says so.
"""

from collections.abc import Sequence

import msgspec

from services.executor.tasks.gpu_checks import checked, clean
from services.executor.tasks.gpu_words import (
    GpuReportDocument,
    HostGpuReport,
    HostSummary,
    Hotspot,
    HotspotKind,
    ReportStatus,
)
from shared.gpu import MEMORY_ABOVE_PCT, UTILIZATION_ABOVE_PCT, GpuHostReport, ThrottleKind

NOTES_MAX = 100
"""A lying agent can be wrong in thousands of places; a hundred say it all."""

THROTTLED_KINDS: dict[ThrottleKind, HotspotKind] = {
    "thermal": "thermal_throttle",
    "power": "power_throttle",
    "unknown_cause": "thermal_throttle",
}


def assemble(
    reports: Sequence[GpuHostReport],
    missing_hosts: Sequence[str],
    *,
    at: str,
    utilization_threshold_pct: float = UTILIZATION_ABOVE_PCT,
    memory_threshold_pct: float = MEMORY_ABOVE_PCT,
) -> GpuReportDocument:
    """Make the report of all hosts; `at` is its timestamp (RFC 3339 UTC)."""
    notes: list[str] = []
    by_host: dict[str, GpuHostReport] = {}
    # duplicates are put in an order of their own first, so that arrival does not decide which one counts
    for report in sorted(reports, key=lambda report: (report.host, msgspec.json.encode(report))):
        host = clean(report.host)
        if host in by_host:
            notes.append(f"{host}: more than one agent answered, one answer is used")
            continue
        by_host[host] = checked(report, notes.append)

    ordered = [by_host[host] for host in sorted(by_host)]
    gpus = [
        HostGpuReport(host=report.host, **{name: getattr(gpu, name) for name in gpu.__struct_fields__})
        for report in ordered
        for gpu in sorted(report.gpus, key=lambda gpu: (gpu.index, gpu.uuid))
    ]
    missing = sorted({clean(host) for host in missing_hosts} - set(by_host))
    notes += [f"{report.host}: {report.nvml}" for report in ordered if report.state in ("failing", "stalled")]
    if len(notes) > NOTES_MAX:
        notes = [*notes[:NOTES_MAX], f"and {len(notes) - NOTES_MAX} more"]
    return GpuReportDocument(
        status=_status(ordered, gpus, missing),
        timestamp=at,
        gpu_count=len(gpus),
        gpus=gpus,
        hotspots=[spot for gpu in gpus for spot in hotspots(gpu, utilization_threshold_pct, memory_threshold_pct)],
        missing_hosts=missing,
        hosts=[_summary(report) for report in ordered],
        utilization_threshold_pct=utilization_threshold_pct,
        memory_threshold_pct=memory_threshold_pct,
        notes=notes,
    )


def hotspots(gpu: HostGpuReport, utilization_pct: float, memory_pct: float) -> list[Hotspot]:
    """Judge one GPU."""
    found: list[Hotspot] = []

    def add(kind: HotspotKind, value: float, threshold: float, why: str) -> None:
        tail = "; the GPU is lost now" if gpu.lost else ""
        found.append(Hotspot(gpu.host, gpu.index, gpu.uuid, gpu.name, kind, value, threshold, why + tail))

    busy = gpu.utilization_pct
    if busy.mean is not None and busy.mean > utilization_pct:
        add(
            "utilization",
            busy.mean,
            utilization_pct,
            f"mean utilization {busy.mean:.1f} % over {_samples(busy.samples)}, above {utilization_pct:g} %",
        )
    memory = gpu.memory_pct
    level = max((value for value in (memory.now, memory.mean) if value is not None), default=None)
    if level is not None and level > memory_pct:
        when = "now" if memory.now is not None and memory.now >= level else "on the mean of the window"
        add("memory", level, memory_pct, f"{level:.1f} % of the memory used {when}, above {memory_pct:g} %")
    for kind in ("thermal_throttle", "power_throttle"):
        share, why = _throttled(gpu, kind)
        if share > 0:
            add(kind, 100.0 * share, 0.0, why)
    return found


def _throttled(gpu: HostGpuReport, kind: HotspotKind) -> tuple[float, str]:
    """Return the share of samples held down for this cause, and the sentence; the most frequent reason counts."""
    seen = gpu.throttle.seen if gpu.throttle is not None else []
    if any(one.kind in ("thermal", "power") and one.share > 0 for one in seen):
        seen = [one for one in seen if one.kind != "unknown_cause"]  # the driver said which
    mine = [one for one in seen if THROTTLED_KINDS.get(one.kind) == kind and one.share > 0]
    if not mine:
        return 0.0, ""
    worst = max(mine, key=lambda one: (one.share, one.reason))
    names = ", ".join(sorted(one.reason for one in mine))
    unsure = " (for heat or power: the driver does not say which)" if worst.kind == "unknown_cause" else ""
    samples = _samples(worst.samples)
    return worst.share, f"clocks held down by {names}{unsure} in {samples}, {100 * worst.share:.1f} %"


def _samples(count: int) -> str:
    return "1 sample" if count == 1 else f"{count} samples"


def _status(reports: Sequence[GpuHostReport], gpus: Sequence[HostGpuReport], missing: Sequence[str]) -> ReportStatus:
    if missing or any(gpu.lost for gpu in gpus) or any(r.state in ("failing", "stalled") for r in reports):
        return "partial"
    return "success" if gpus else "no_gpus_available"


def _summary(report: GpuHostReport) -> HostSummary:
    return HostSummary(
        host=report.host,
        at=report.at,
        state=report.state,
        nvml=report.nvml,
        driver_version=report.driver_version,
        cuda_version=report.cuda_version,
        gpu_count=len(report.gpus),
        window_s=report.window_s,
        sampled_s=report.sampled_s,
        newest_sample_age_s=report.newest_sample_age_s,
    )

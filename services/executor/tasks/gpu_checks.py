"""What an agent may claim. Pure: a report in, the same report without impossible values out, with notes.

Decoding has refused wrong types already. What is left is what a type cannot say: 400 % busy, minus three
samples, a name of a megabyte with an escape sequence in it. Such a value becomes null (a text is shortened
and cleaned) and a note says so: one broken agent must neither end the report nor be believed.
"""

from collections.abc import Callable

from msgspec.structs import replace

from shared.gpu import (
    EccCounts,
    GpuHostReport,
    GpuProcess,
    GpuReport,
    Stat,
    Throttle,
    ThrottleSeen,
    XidCount,
    throttle_kind,
)

TEXT_LENGTH_MAX = 200
GPUS_A_HOST_MAX = 64
PROCESSES_A_GPU_MAX = 256
REASONS_MAX = 64
XIDS_MAX = 256
COUNT_MAX = 2**63

LIMITS: dict[str, tuple[float, float]] = {
    "utilization_pct": (0.0, 100.0),
    "memory_used_bytes": (0.0, 2.0**50),
    "memory_pct": (0.0, 100.0),
    "temperature_c": (-60.0, 250.0),
    "power_w": (0.0, 20_000.0),
    "graphics_clock_mhz": (0.0, 20_000.0),
    "sm_clock_mhz": (0.0, 20_000.0),
    "memory_clock_mhz": (0.0, 50_000.0),
}
"""What a GPU of this decade can be, with room; anything else is a fault of the agent or of its driver."""

Note = Callable[[str], None]


def checked(report: GpuHostReport, note: Note) -> GpuHostReport:
    """Return the report with what cannot be taken out; `note` hears of each thing taken out."""
    host = clean(report.host)
    if len(report.gpus) > GPUS_A_HOST_MAX:
        note(f"{host}: {len(report.gpus)} GPUs claimed, the first {GPUS_A_HOST_MAX} are kept")

    def hears(part: str) -> Note:
        return lambda text: note(f"{host}{part}: {text}")

    return replace(
        report,
        host=host,
        at=clean(report.at),
        nvml=clean(report.nvml),
        driver_version=_clean_or_none(report.driver_version),
        cuda_version=_clean_or_none(report.cuda_version),
        window_s=_in(report.window_s, 0.0, 1e9, "window_s", hears("")) or 0.0,
        sampled_s=_in(report.sampled_s, 0.0, 1e9, "sampled_s", hears("")) or 0.0,
        newest_sample_age_s=_in(report.newest_sample_age_s, 0.0, 1e9, "newest_sample_age_s", hears("")),
        gpus=[_gpu(gpu, hears(f" GPU {gpu.index}")) for gpu in report.gpus[:GPUS_A_HOST_MAX]],
    )


def clean(text: str) -> str:
    """Return text that is safe in a page and on a terminal: printable, one line, bounded."""
    head = text[:TEXT_LENGTH_MAX]
    return "".join(sign if sign.isprintable() else "�" for sign in head)


def _clean_or_none(text: str | None) -> str | None:
    return None if text is None else clean(text)


def _gpu(gpu: GpuReport, note: Note) -> GpuReport:
    stats = {field: _stat(getattr(gpu, field), field, note) for field in LIMITS}
    total = _count(gpu.memory_total_bytes, 2**50, "memory_total_bytes", note)
    return replace(
        gpu,
        index=_count(gpu.index, 2**31, "index", note) or 0,
        uuid=clean(gpu.uuid),
        name=_clean_or_none(gpu.name),
        pci_bus_id=_clean_or_none(gpu.pci_bus_id),
        memory_total_bytes=total,
        power_limit_w=_in(gpu.power_limit_w, *LIMITS["power_w"], "power_limit_w", note),
        throttle=None if gpu.throttle is None else _throttle(gpu.throttle, note),
        ecc=None if gpu.ecc is None else _ecc(gpu.ecc, note),
        xids=None if gpu.xids is None else _xids(gpu.xids, note),
        processes=None if gpu.processes is None else _processes(gpu.processes, note),
        **stats,
    )


def _stat(stat: Stat, field: str, note: Note) -> Stat:
    low, high = LIMITS[field]
    return Stat(
        now=_in(stat.now, low, high, f"{field}.now", note),
        mean=_in(stat.mean, low, high, f"{field}.mean", note),
        p95=_in(stat.p95, low, high, f"{field}.p95", note),
        max=_in(stat.max, low, high, f"{field}.max", note),
        samples=_count(stat.samples, COUNT_MAX, f"{field}.samples", note) or 0,
        above=_in(stat.above, low, high, f"{field}.above", note),
        share_above=_in(stat.share_above, 0.0, 1.0, f"{field}.share_above", note),
    )


def _throttle(throttle: Throttle, note: Note) -> Throttle:
    seen: list[ThrottleSeen] = []
    for one in throttle.seen[:REASONS_MAX]:
        reason = clean(one.reason)
        share = _in(one.share, 0.0, 1.0, f"throttle {reason} share", note)
        samples = _count(one.samples, COUNT_MAX, f"throttle {reason} samples", note)
        if share is not None and samples is not None:  # our own word for what the reason means, not the agent's
            seen.append(ThrottleSeen(reason, throttle_kind(reason), samples, share))
    now = [clean(reason) for reason in throttle.now[:REASONS_MAX]]
    return Throttle(now, seen, _count(throttle.samples, COUNT_MAX, "throttle.samples", note) or 0)


def _ecc(ecc: EccCounts, note: Note) -> EccCounts:
    return EccCounts(
        corrected=_count(ecc.corrected, COUNT_MAX, "ecc.corrected", note),
        uncorrected=_count(ecc.uncorrected, COUNT_MAX, "ecc.uncorrected", note),
    )


def _xids(xids: list[XidCount], note: Note) -> list[XidCount]:
    kept: list[XidCount] = []
    for one in xids[:XIDS_MAX]:
        xid = _count(one.xid, COUNT_MAX, "xid", note)
        count = _count(one.count, COUNT_MAX, "xid count", note)
        if xid is not None and count is not None:
            kept.append(XidCount(xid, count))
    return kept


def _processes(processes: list[GpuProcess], note: Note) -> list[GpuProcess]:
    if len(processes) > PROCESSES_A_GPU_MAX:
        note(f"{len(processes)} processes claimed, the first {PROCESSES_A_GPU_MAX} are kept")
    kept: list[GpuProcess] = []
    for process in processes[:PROCESSES_A_GPU_MAX]:
        pid = _count(process.pid, 2**31, "pid", note)
        if pid:
            used = _count(process.used_memory_bytes, 2**50, f"process {pid} used_memory_bytes", note)
            kinds = [clean(kind) for kind in process.kinds[:8]]
            kept.append(GpuProcess(pid, _clean_or_none(process.name), used, kinds))
    return kept


def _in(value: float | None, low: float, high: float, field: str, note: Note) -> float | None:
    if value is None or low <= value <= high:  # which no NaN is
        return value
    note(f"{field} is {value:g}, which cannot be: left out")
    return None


def _count(value: int | None, high: int, field: str, note: Note) -> int | None:
    if value is None or 0 <= value <= high:
        return value
    note(f"{field} is {value}, which cannot be: left out")
    return None

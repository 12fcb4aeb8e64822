"""The words that a GPU agent and the task `gpu_report` speak to each other.

An agent answers `gpu.<host>.report` (a `GpuReportRequest`) with one `GpuHostReport`. A value that the card,
the driver or the agent's permissions do not give is null, never zero and never an error. Units stand in the
names. Numbers describe the samples of one window: `now` is the newest sample, `p95` is the nearest-rank
percentile (an observed value, never an interpolation), `share_above` is the share (0 to 1) of samples
strictly above `above`.
"""

from typing import Literal

from msgspec import Struct, field

WINDOW_S_MAX = 900.0
"""What an agent remembers: long enough to tell a busy card from a lucky poll, small enough for any box."""

UTILIZATION_ABOVE_PCT = 80.0
MEMORY_ABOVE_PCT = 90.0

THROTTLE_REASONS: dict[int, str] = {
    0x001: "gpu_idle",
    0x002: "applications_clocks_setting",
    0x004: "sw_power_cap",
    0x008: "hw_slowdown",
    0x010: "sync_boost",
    0x020: "sw_thermal_slowdown",
    0x040: "hw_thermal_slowdown",
    0x080: "hw_power_brake_slowdown",
    0x100: "display_clock_setting",
    0x200: "board_limit",
    0x400: "reliability",
}
"""NVML's clocks event (throttle) bits by name; any other bit is `bit_<n>`: nothing is dropped in silence."""

THERMAL_REASONS = frozenset({"sw_thermal_slowdown", "hw_thermal_slowdown"})
POWER_REASONS = frozenset({"sw_power_cap", "hw_power_brake_slowdown"})

ThrottleKind = Literal["thermal", "power", "unknown_cause", "benign"]


def throttle_kind(reason: str) -> ThrottleKind:
    """Say what a reason means: `hw_slowdown` alone is heat or power, and old drivers do not tell which."""
    if reason in THERMAL_REASONS:
        return "thermal"
    if reason in POWER_REASONS:
        return "power"
    return "unknown_cause" if reason == "hw_slowdown" else "benign"


class GpuReportRequest(Struct, frozen=True):
    """What is asked of an agent; every field may be left out."""

    window_s: float = WINDOW_S_MAX
    utilization_above_pct: float = UTILIZATION_ABOVE_PCT
    memory_above_pct: float = MEMORY_ABOVE_PCT


class GpuRequestRefused(Struct, frozen=True):
    """The answer to a request that cannot be answered: what is wrong, and with which field."""

    error: str
    field: str


class Stat(Struct, frozen=True):
    """One value over the window; all null, with no samples, where the card does not support it."""

    now: float | None = None
    mean: float | None = None
    p95: float | None = None
    max: float | None = None
    samples: int = 0
    above: float | None = None
    share_above: float | None = None


class ThrottleSeen(Struct, frozen=True):
    """A reason why the clocks were held down, and the share (0 to 1) of the window's samples that had it."""

    reason: str
    kind: ThrottleKind
    samples: int
    share: float


class Throttle(Struct, frozen=True):
    """The reasons in the newest sample, and each reason seen in the window."""

    now: list[str] = field(default_factory=list)
    seen: list[ThrottleSeen] = field(default_factory=list)
    samples: int = 0


class EccCounts(Struct, frozen=True):
    """Memory errors since the driver was loaded (NVML's volatile counters)."""

    corrected: int | None = None
    uncorrected: int | None = None


class XidCount(Struct, frozen=True):
    """How often the driver reported one XID error in the window."""

    xid: int
    count: int


class GpuProcess(Struct, frozen=True):
    """A living process on a GPU; `name` and `used_memory_bytes` are null where the system does not tell."""

    pid: int
    name: str | None = None
    used_memory_bytes: int | None = None
    kinds: list[str] = field(default_factory=list)


class GpuReport(Struct, frozen=True, kw_only=True):
    """One GPU over the window. A lost one keeps its statistics from before, with every `now` null."""

    index: int
    uuid: str
    name: str | None = None
    pci_bus_id: str | None = None
    lost: bool = False
    mig: Literal["enabled", "disabled"] | None = None
    utilization_pct: Stat = Stat()
    memory_used_bytes: Stat = Stat()
    memory_pct: Stat = Stat()
    memory_total_bytes: int | None = None
    temperature_c: Stat = Stat()
    power_w: Stat = Stat()
    power_limit_w: float | None = None
    graphics_clock_mhz: Stat = Stat()
    sm_clock_mhz: Stat = Stat()
    memory_clock_mhz: Stat = Stat()
    throttle: Throttle | None = None
    ecc: EccCounts | None = None
    xids: list[XidCount] | None = None
    processes: list[GpuProcess] | None = None


NvmlState = Literal["ok", "absent", "failing", "stalled"]
"""`absent` is a plain fact about a host (no library or no driver); `failing` and `stalled` are troubles."""


class GpuHostReport(Struct, frozen=True, kw_only=True):
    """One host's GPUs; `nvml` is "ok" or the reason, `sampled_s` the time that the samples span."""

    host: str
    at: str
    state: NvmlState
    nvml: str
    driver_version: str | None = None
    cuda_version: str | None = None
    window_s: float = WINDOW_S_MAX
    sampled_s: float = 0.0
    newest_sample_age_s: float | None = None
    gpus: list[GpuReport] = field(default_factory=list)

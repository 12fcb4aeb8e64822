"""What one look at the GPUs gives: plain values between the thin NVML file and the pure window.

Two paces. A `Reading` is taken at every tick and kept in the window. `Facts` change slowly and cost more
calls (processes, ECC), so they are taken every few ticks and only the last are kept.
"""

from typing import Literal, Protocol

from msgspec import Struct

from shared.gpu import EccCounts, GpuProcess, NvmlState


class Reading(Struct, frozen=True, gc=False):
    """One tick of one GPU at `t_s` on the monotonic clock; null is "not supported"."""

    t_s: float
    utilization_pct: float | None = None
    memory_used_bytes: float | None = None
    memory_total_bytes: float | None = None
    temperature_c: float | None = None
    power_w: float | None = None
    graphics_clock_mhz: float | None = None
    sm_clock_mhz: float | None = None
    memory_clock_mhz: float | None = None
    throttle_bits: int | None = None


class Facts(Struct, frozen=True):
    """What changes slowly; `processes` holds living ones only."""

    mig: Literal["enabled", "disabled"] | None = None
    power_limit_w: float | None = None
    ecc: EccCounts | None = None
    processes: list[GpuProcess] | None = None


class GpuSample(Struct, frozen=True):
    """One GPU at one tick: no reading when it is lost, no facts when they were not due."""

    uuid: str
    index: int
    name: str | None
    pci_bus_id: str | None
    reading: Reading | None
    facts: Facts | None
    xids: list[int]
    xids_supported: bool

    @property
    def lost(self) -> bool:
        """Say whether the card gave nothing because it has fallen off its bus."""
        return self.reading is None


class HostSample(Struct, frozen=True):
    """All GPUs at one tick; without NVML no GPUs and the reason."""

    t_s: float
    state: NvmlState
    nvml: str
    driver_version: str | None
    cuda_version: str | None
    gpus: list[GpuSample]


class GpuSource(Protocol):
    """Where samples come from; `sample` never raises for what NVML says."""

    def sample(self, t_s: float) -> HostSample:
        """Look once, at `t_s` on the monotonic clock (seconds)."""
        ...

    def close(self) -> None:
        """Give the library back."""
        ...

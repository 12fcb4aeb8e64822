"""What `gpu_report.json` says: the document that the task `gpu_report` leaves behind."""

from typing import Literal

from msgspec import Struct

from shared.gpu import GpuReport, NvmlState

HotspotKind = Literal["utilization", "memory", "thermal_throttle", "power_throttle"]

ReportStatus = Literal["success", "partial", "no_gpus_available"]
"""`partial`: a host did not answer, its NVML is in trouble, or a GPU is lost."""


class HostGpuReport(GpuReport, frozen=True, kw_only=True):
    """One GPU and the host that it is in."""

    host: str


class Hotspot(Struct, frozen=True):
    """Something that an operator should look at: a value above its threshold, both in percent."""

    host: str
    gpu: int
    uuid: str
    name: str | None
    kind: HotspotKind
    value: float
    threshold: float
    why: str


class HostSummary(Struct, frozen=True):
    """What a host that answered said of itself."""

    host: str
    at: str
    state: NvmlState
    nvml: str
    driver_version: str | None
    cuda_version: str | None
    gpu_count: int
    window_s: float
    sampled_s: float
    newest_sample_age_s: float | None


class GpuReportDocument(Struct, frozen=True, kw_only=True):
    """The whole report. `notes` tells what was refused in an agent's answer, and what is missing from this page."""

    status: ReportStatus
    timestamp: str
    gpu_count: int
    gpus: list[HostGpuReport]
    hotspots: list[Hotspot]
    missing_hosts: list[str]
    hosts: list[HostSummary]
    utilization_threshold_pct: float
    memory_threshold_pct: float
    notes: list[str]

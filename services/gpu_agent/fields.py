"""What is asked of one GPU, call by call, with each refusal turned into a null.

The binding and the driver drift apart: a missing symbol, an unsupported field or a refused permission is an
error of that one call. So each call is caught alone, and a newer call falls back to its older form. Only
"this GPU is lost" is true of the whole card. `n` is the binding's module, handed in: this file does not
import it.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

from services.gpu_agent.processes import living
from services.gpu_agent.reading import Facts, Reading
from shared.gpu import EccCounts, GpuProcess

T = TypeVar("T")

_LISTS = {
    "compute": "nvmlDeviceGetComputeRunningProcesses",
    "graphics": "nvmlDeviceGetGraphicsRunningProcesses",
    "mps": "nvmlDeviceGetMPSComputeRunningProcesses",
}


class GpuLost(Exception):
    """One GPU answered that it has fallen off its bus."""


def ask(n: Any, *calls: Callable[[], T]) -> T | None:
    """Return the first answer of calls that stand in for each other; GpuLost when the card is lost."""
    for call in calls:
        try:
            return call()
        except n.NVMLError as error:
            if error.value == n.NVML_ERROR_GPU_IS_LOST:
                raise GpuLost from error
        except (AttributeError, UnicodeDecodeError):  # an older binding without the call; garbage in a name
            continue
    return None


def read(n: Any, handle: Any, t_s: float) -> Reading:
    """Take one reading at `t_s`: eight quick calls."""
    memory = ask(
        n,
        lambda: n.nvmlDeviceGetMemoryInfo(handle, n.nvmlMemory_v2),  # the older form counts reserved memory as used
        lambda: n.nvmlDeviceGetMemoryInfo(handle),
    )
    busy = ask(n, lambda: n.nvmlDeviceGetUtilizationRates(handle))
    return Reading(
        t_s=t_s,
        utilization_pct=None if busy is None else float(busy.gpu),
        memory_used_bytes=None if memory is None else float(memory.used),
        memory_total_bytes=None if memory is None else float(memory.total),
        temperature_c=ask(
            n,
            lambda: float(n.nvmlDeviceGetTemperatureV(handle, n.NVML_TEMPERATURE_GPU)),
            lambda: float(n.nvmlDeviceGetTemperature(handle, n.NVML_TEMPERATURE_GPU)),
        ),
        power_w=ask(n, lambda: n.nvmlDeviceGetPowerUsage(handle) / 1000.0),
        graphics_clock_mhz=_clock(n, handle, n.NVML_CLOCK_GRAPHICS),
        sm_clock_mhz=_clock(n, handle, n.NVML_CLOCK_SM),
        memory_clock_mhz=_clock(n, handle, n.NVML_CLOCK_MEM),
        throttle_bits=ask(
            n,
            lambda: int(n.nvmlDeviceGetCurrentClocksEventReasons(handle)),
            lambda: int(n.nvmlDeviceGetCurrentClocksThrottleReasons(handle)),
        ),
    )


def facts(n: Any, handle: Any) -> Facts:
    """Ask for what changes slowly."""
    ecc = EccCounts(
        corrected=_ecc(n, handle, n.NVML_MEMORY_ERROR_TYPE_CORRECTED),
        uncorrected=_ecc(n, handle, n.NVML_MEMORY_ERROR_TYPE_UNCORRECTED),
    )
    mig = ask(n, lambda: n.nvmlDeviceGetMigMode(handle)[0])
    return Facts(
        mig=None if mig is None else "enabled" if mig == n.NVML_DEVICE_MIG_ENABLE else "disabled",
        power_limit_w=ask(
            n,
            lambda: n.nvmlDeviceGetEnforcedPowerLimit(handle) / 1000.0,
            lambda: n.nvmlDeviceGetPowerManagementLimit(handle) / 1000.0,
        ),
        ecc=None if ecc == EccCounts() else ecc,
        processes=_processes(n, handle),
    )


def text(value: Any) -> str | None:
    """Read a name as the binding gives it: bytes or text, of any length."""
    if value is None:
        return None
    return (value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value))[:200]


def _clock(n: Any, handle: Any, kind: int) -> float | None:
    return ask(n, lambda: float(n.nvmlDeviceGetClockInfo(handle, kind)))


def _ecc(n: Any, handle: Any, kind: int) -> int | None:
    return ask(n, lambda: int(n.nvmlDeviceGetTotalEccErrors(handle, kind, n.NVML_VOLATILE_ECC)))


def _processes(n: Any, handle: Any) -> list[GpuProcess] | None:
    """List them by the versioned calls: the unversioned ones end in an error of another kind on an old driver."""
    answers = {kind: ask(n, *_listers(n, name, handle)) for kind, name in _LISTS.items()}
    told = {kind: listed for kind, listed in answers.items() if listed is not None}
    if not told:
        return None
    return living({kind: [(p.pid, p.usedGpuMemory) for p in listed] for kind, listed in told.items()})


def _listers(n: Any, name: str, handle: Any) -> list[Callable[[], Any]]:
    versions = [getattr(n, name + version, None) for version in ("_v3", "_v2")]  # one layout, older symbol
    return [partial(call, handle) for call in versions if call is not None]

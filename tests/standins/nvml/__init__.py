"""A stand-in for the NVIDIA driver's library: compiled C at NVML's ABI, and a writer for what its cards look like.

`build` makes a folder with `libnvidia-ml.so.1`; a process started with `environment(...)` finds it before any
real one, so that unmodified NVML clients (the agent, gpustat, nvitop) see the cards of a `scenario`. The
scenario is written by rename, and read again by the library when it changes, so a test can break a card while
a client watches.
"""

import os
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

SOURCE = Path(__file__).with_name("libnvidia-ml.c")

Series = int | str | Sequence[int | str] | None
"""One value, or one a call over and over: "x" is "not supported", "e15" is NVML's error 15; None is no such key."""

GIB = 1 << 30
UNSUPPORTED = "x"
GPU_IS_LOST = "e15"
DRIVER_NOT_LOADED = 9


class NoCompiler(Exception):
    """There is no C compiler here, so the stand-in cannot be built."""


@dataclass
class Gpu:
    """One card: a mid-range one at rest, until a test says otherwise."""

    name: str | None = "NVIDIA Stand-in 24"
    uuid: str = "GPU-00000000-0000-0000-0000-000000000000"
    utilization: Series = 5
    utilization_memory: Series = 2
    memory_total: Series = 24 * GIB
    memory_used: Series = 2 * GIB
    memory_reserved: Series = GIB // 2
    bar1_total: Series = GIB // 4
    temperature: Series = 41
    power_mw: Series = 31_500
    power_limit_mw: Series = 350_000
    fan_pct: Series = 30
    clock_graphics: Series = 1_410
    clock_graphics_max: Series = 2_100
    clock_sm: Series = 1_410
    clock_sm_max: Series = 2_100
    clock_memory: Series = 9_501
    clock_memory_max: Series = 9_501
    clock_video: Series = 1_275
    clock_video_max: Series = 1_950
    encoder: Series = 0
    decoder: Series = 0
    throttle: Series = 1
    pstate: Series = 8
    persistence: Series = 1
    compute_mode: Series = 0
    display_mode: Series = 0
    display_active: Series = 0
    mig: Series = None
    ecc_corrected: Series = None
    ecc_uncorrected: Series = None
    pcie_generation: Series = 4
    pcie_width: Series = 16
    pcie_kib_s: Series = 1_000
    compute_capability: Series = 86
    xid_events: Series = 1
    xids: Sequence[int] = ()
    processes: Sequence[tuple[int, int, str]] = ()
    lost_after: int | None = None

    def lines(self) -> list[str]:
        """Write the card as the library reads it."""
        told = ["gpu", f"uuid {self.uuid}"]
        for key, value in vars(self).items():
            if key in ("uuid", "xids", "processes") or value is None:
                continue
            many = [value] if isinstance(value, int | str) else value
            told.append(f"{key} {' '.join(str(one) for one in many)}")
        if self.xids:
            told.append(f"xid {' '.join(map(str, self.xids))}")
        return told + [f"process {pid} {used_bytes} {kind}" for pid, used_bytes, kind in self.processes]


@dataclass
class Host:
    """The library and its cards."""

    gpus: Sequence[Gpu] = field(default_factory=list)
    driver: str = "570.86.15"
    cuda: int = 12_080
    init: int = 0
    alive: int = 0
    stall_ms: int = 0


def idle(count: int) -> list[Gpu]:
    """Make cards at rest that differ in their UUIDs only."""
    return [Gpu(uuid=f"GPU-{index:08d}-aaaa-bbbb-cccc-000000000000") for index in range(count)]


def scenario(path: Path, host: Host) -> Path:
    """Write (or replace at once) what the library shows."""
    lines = [f"{key} {value}" for key, value in vars(host).items() if key != "gpus"]
    lines += [line for gpu in host.gpus for line in gpu.lines()]
    fresh = path.with_suffix(".new")
    fresh.write_text("\n".join(lines) + "\n")
    os.replace(fresh, path)
    return path


def build(folder: Path, *, without: Sequence[str] = ()) -> Path:
    """Compile the library into a folder of its own, and return that; an old driver is one `without` some symbols."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        raise NoCompiler("no C compiler (cc or gcc): the NVML stand-in cannot be built")
    made = folder / "-".join(["nvml", *without])
    library = made / "libnvidia-ml.so.1"
    if library.exists():
        return made
    made.mkdir(parents=True)
    hidden = [f"-D{name}=hidden_{name}" for name in without]
    flags = ["-std=c11", "-O1", "-Wall", "-Wextra", "-Werror", "-fPIC", "-shared", "-pthread"]
    soname = "-Wl,-soname,libnvidia-ml.so.1"
    command = [compiler, *flags, *hidden, soname, "-o", str(library), str(SOURCE)]
    subprocess.run(command, check=True, timeout=120)
    return made


def environment(folder: Path, told: Path, *, trace: Path | None = None) -> dict[str, str]:
    """Return this process's environment with the stand-in in front; `trace` gets the names of the functions called."""
    found = dict(os.environ) | {"LD_LIBRARY_PATH": str(folder), "REMIT_NVML_STANDIN": str(told)}
    return found | ({"REMIT_NVML_STANDIN_TRACE": str(trace)} if trace else {})

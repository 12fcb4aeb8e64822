"""Programs of other people, unmodified, see in the stand-in what the agent sees: neither is fitted to the other."""

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest

from services.gpu_agent.reading import GpuSample
from tests.gpu_agent.conftest import Watcher
from tests.standins.nvml import GIB, UNSUPPORTED, Gpu, Host

NVITOP = """
import json
from nvitop import Device
print(json.dumps([
    {"index": d.index, "name": d.name(), "uuid": d.uuid(), "bus_id": d.bus_id(), "utilization": d.gpu_utilization(),
     "memory_used": d.memory_used(), "memory_total": d.memory_total(), "temperature": d.temperature(),
     "power_mw": d.power_usage(), "power_limit_mw": d.power_limit(), "clocks": list(d.clock_infos())[:3],
     "mig": d.mig_mode(), "ecc_uncorrected": d.total_volatile_uncorrected_ecc_errors(), "pids": sorted(d.processes())}
    for d in Device.all()]))
"""


def cards() -> list[Gpu]:
    busy = Gpu(
        name="NVIDIA H200",
        uuid="GPU-11111111-2222-3333-4444-555555555555",
        utilization=93,
        memory_total=141 * GIB,
        memory_used=130 * GIB,
        temperature=78,
        power_mw=689_000,
        power_limit_mw=700_000,
        clock_graphics=1_980,
        clock_sm=1_965,
        clock_memory=3_201,
        mig=0,
        ecc_corrected=12,
        ecc_uncorrected=3,
        processes=[(os.getpid(), 128 * GIB, "C")],
    )
    quiet = Gpu(uuid="GPU-b", temperature=UNSUPPORTED, power_mw=None, processes=[(os.getpid(), GIB, "G")])
    lost = Gpu(uuid="GPU-c", lost_after=0)
    return [busy, quiet, lost]


def ours(watch: Callable[..., Watcher], shown: list[Gpu]) -> tuple[Watcher, list[GpuSample]]:
    watcher = watch(Host(gpus=shown))
    return watcher, watcher.look(0.0).gpus


def asked(watcher: Watcher, *command: str) -> Any:
    done = subprocess.run(
        [sys.executable, *command], env=watcher.environment, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.skipif(importlib.util.find_spec("gpustat") is None, reason="gpustat is not installed")
def test_gpustat_shows_the_same_numbers(watch: Callable[..., Watcher]) -> None:
    watcher, gpus = ours(watch, cards())
    shown = asked(watcher, "-m", "gpustat", "--json")
    assert shown["driver_version"] == "570.86.15"
    assert len(shown["gpus"]) == len(gpus) == 3
    for theirs, mine in zip(shown["gpus"][:2], gpus[:2], strict=True):
        assert mine.reading is not None
        assert mine.facts is not None
        assert (theirs["index"], theirs["uuid"], theirs["name"]) == (mine.index, mine.uuid, mine.name)
        assert theirs["utilization.gpu"] == mine.reading.utilization_pct
        assert theirs["temperature.gpu"] == mine.reading.temperature_c
        power_w = mine.reading.power_w
        assert theirs["power.draw"] == (None if power_w is None else int(power_w))
        assert theirs["enforced.power.limit"] == mine.facts.power_limit_w
        assert theirs["memory.used"] * 2**20 == mine.reading.memory_used_bytes
        assert theirs["memory.total"] * 2**20 == mine.reading.memory_total_bytes
        assert [(p["pid"], p["gpu_memory_usage"] * 2**20) for p in theirs["processes"]] == [
            (p.pid, p.used_memory_bytes) for p in mine.facts.processes or []
        ]
    assert "lost" in shown["gpus"][2]["name"]
    assert gpus[2].lost


@pytest.mark.skipif(importlib.util.find_spec("nvitop") is None, reason="nvitop is not installed")
def test_nvitop_shows_the_same_numbers(watch: Callable[..., Watcher]) -> None:
    watcher, gpus = ours(watch, cards()[:2])
    for theirs, mine in zip(asked(watcher, "-c", NVITOP), gpus, strict=True):
        reading, facts = mine.reading, mine.facts
        assert reading is not None
        assert facts is not None
        known = {key: None if value == "N/A" else value for key, value in theirs.items()}
        assert (known["index"], known["uuid"], known["name"]) == (mine.index, mine.uuid, mine.name)
        assert known["bus_id"] == mine.pci_bus_id
        assert known["utilization"] == reading.utilization_pct
        assert (known["memory_used"], known["memory_total"]) == (reading.memory_used_bytes, reading.memory_total_bytes)
        assert known["temperature"] == reading.temperature_c
        assert known["power_mw"] == (None if reading.power_w is None else reading.power_w * 1000)
        assert known["power_limit_mw"] == (None if facts.power_limit_w is None else facts.power_limit_w * 1000)
        assert known["clocks"] == [reading.graphics_clock_mhz, reading.sm_clock_mhz, reading.memory_clock_mhz]
        assert known["mig"] == {"disabled": "Disabled", None: None}[facts.mig]
        assert known["ecc_uncorrected"] == (None if facts.ecc is None else facts.ecc.uncorrected)
        assert known["pids"] == [process.pid for process in facts.processes or []]


@pytest.mark.skipif(importlib.util.find_spec("nvitop") is None, reason="nvitop is not installed")
def test_nvitops_whole_page_is_drawn_from_the_stand_in(watch: Callable[..., Watcher]) -> None:
    watcher = watch(Host(gpus=cards()))
    done = subprocess.run(
        [sys.executable, "-m", "nvitop", "-1"],
        env=watcher.environment | {"TERM": "xterm", "COLUMNS": "120", "LINES": "50"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "130.0GiB / 141.0GiB" in done.stdout
    assert "93%" in done.stdout
    assert "Stand-in 24" in done.stdout

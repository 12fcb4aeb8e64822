"""The agent's eyes against the stand-in at NVML's ABI, through the unmodified binding, in a process of their own."""

import os
import time
from collections.abc import Callable
from pathlib import Path

from services.gpu_agent.nvml import REOPEN_LOST_S, REOPEN_S
from services.gpu_agent.reading import GpuSample, Reading
from shared.gpu import EccCounts, GpuProcess
from tests.gpu_agent.conftest import Watcher
from tests.standins.nvml import DRIVER_NOT_LOADED, GIB, GPU_IS_LOST, UNSUPPORTED, Gpu, Host, idle

Watch = Callable[..., Watcher]


def test_a_card_is_told_with_all_that_it_supports(watch: Watch) -> None:
    card = Gpu(
        uuid="GPU-a",
        utilization=73,
        memory_used=6 * GIB,
        temperature=66,
        power_mw=251_300,
        throttle=0x44,
        mig=0,
        ecc_corrected=7,
        ecc_uncorrected=1,
        processes=[(os.getpid(), 3 * GIB, "C")],
    )
    host = watch(Host(gpus=[card])).look(10.0)
    (gpu,) = host.gpus
    assert (host.state, host.driver_version, host.cuda_version) == ("ok", "570.86.15", "12.8")
    assert (gpu.uuid, gpu.index, gpu.name) == ("GPU-a", 0, "NVIDIA Stand-in 24")
    assert gpu.pci_bus_id == "00000000:01:00.0"
    assert gpu.reading is not None
    assert gpu.reading.t_s == 10.0
    assert gpu.reading.utilization_pct == 73.0
    assert (gpu.reading.memory_used_bytes, gpu.reading.memory_total_bytes) == (6.0 * GIB, 24.0 * GIB)
    assert (gpu.reading.temperature_c, gpu.reading.power_w) == (66.0, 251.3)
    assert (gpu.reading.graphics_clock_mhz, gpu.reading.memory_clock_mhz) == (1410.0, 9501.0)
    assert gpu.reading.throttle_bits == 0x44
    assert gpu.facts is not None
    assert (gpu.facts.mig, gpu.facts.power_limit_w) == ("disabled", 350.0)
    assert gpu.facts.ecc == EccCounts(corrected=7, uncorrected=1)
    assert gpu.facts.processes is not None
    assert [(p.pid, p.used_memory_bytes, p.kinds) for p in gpu.facts.processes] == [(os.getpid(), 3 * GIB, ["compute"])]


def test_what_a_card_does_not_support_is_null_and_costs_nothing_else(watch: Watch) -> None:
    bare = Gpu(
        uuid="GPU-bare",
        name=None,
        memory_total=None,
        memory_used=None,
        temperature=UNSUPPORTED,
        power_mw=None,
        power_limit_mw=None,
        clock_graphics=None,
        clock_sm=None,
        clock_memory=None,
        throttle=None,
        xid_events=None,
    )
    (gpu,) = watch(Host(gpus=[bare])).look(0.0).gpus
    assert not gpu.lost
    assert gpu.name is None
    assert gpu.reading is not None
    assert gpu.reading.utilization_pct == 5.0
    assert gpu.reading.memory_used_bytes is gpu.reading.temperature_c is gpu.reading.power_w is None
    assert gpu.reading.sm_clock_mhz is gpu.reading.throttle_bits is None
    assert gpu.facts is not None
    assert (gpu.facts.ecc, gpu.facts.mig, gpu.facts.power_limit_w) == (None, None, None)
    assert gpu.facts.processes == []
    assert not gpu.xids_supported


def test_one_failed_call_is_one_null(watch: Watch) -> None:
    watcher = watch(Host(gpus=[Gpu(temperature=[50, "e999", 52])]))
    seen = [_reading(watcher.look(t).gpus[0]).temperature_c for t in (0.0, 1.0, 2.0)]
    # the newer form of the call fails, and the older one is asked in its place at once
    assert seen == [50.0, 52.0, 50.0]


def test_an_old_driver_without_the_newer_symbols_serves(watch: Watch) -> None:
    """Memory without `_v2` counts what the driver reserves as used: worse, but known."""
    missing = (
        "nvmlDeviceGetMemoryInfo_v2",
        "nvmlDeviceGetTemperatureV",
        "nvmlDeviceGetCurrentClocksEventReasons",
        "nvmlSystemGetCudaDriverVersion_v2",
        "nvmlEventSetWait_v2",
        "nvmlDeviceGetMPSComputeRunningProcesses_v3",
        "nvmlDeviceGetComputeRunningProcesses_v3",
    )
    host = watch(Host(gpus=[Gpu(throttle=4, xids=[31], processes=[(os.getpid(), 5, "C")])]), without=missing).look(0.0)
    (gpu,) = host.gpus
    reading = _reading(gpu)
    assert reading.memory_used_bytes == 2.5 * GIB
    assert (reading.temperature_c, reading.throttle_bits) == (41.0, 4)
    assert host.cuda_version == "12.8"
    assert gpu.xids == []
    assert gpu.facts is not None
    assert gpu.facts.processes is not None
    assert [process.used_memory_bytes for process in gpu.facts.processes] == [5]


def test_a_lost_card_does_not_take_its_neighbours_with_it(watch: Watch) -> None:
    cards = idle(3)
    cards[1].lost_after = 2
    watcher = watch(Host(gpus=cards))
    lost = [[gpu.lost for gpu in watcher.look(float(t)).gpus] for t in range(4)]
    assert lost == [[False] * 3, [False] * 3, [False, True, False], [False, True, False]]


def test_a_card_lost_in_the_middle_of_a_look_is_lost(watch: Watch) -> None:
    watcher = watch(Host(gpus=[Gpu(power_mw=[1000, GPU_IS_LOST]), Gpu(uuid="GPU-b")]))
    assert [gpu.lost for gpu in watcher.look(0.0).gpus] == [False, False]
    assert [gpu.lost for gpu in watcher.look(1.0).gpus] == [True, False]


def test_a_card_lost_before_the_start_is_told_without_a_name(watch: Watch) -> None:
    cards = idle(2)
    cards[0].lost_after = 0
    first, second = watch(Host(gpus=cards)).look(0.0).gpus
    assert first.lost
    assert (first.uuid, first.name) == ("unknown-0", None)
    assert not second.lost


def test_a_card_that_comes_back_is_found_by_opening_anew(watch: Watch) -> None:
    cards = idle(2)
    cards[1].lost_after = 1
    watcher = watch(Host(gpus=cards))
    watcher.look(0.0)
    assert watcher.look(1.0).gpus[1].lost
    # the library is opened anew while the card is still lost: the agent remembers who it was
    watcher.look(REOPEN_LOST_S)
    again = watcher.look(REOPEN_LOST_S + 1).gpus[1]
    assert again.lost
    assert again.uuid == cards[1].uuid
    cards[1].lost_after = None
    watcher.show(Host(gpus=cards))
    assert watcher.look(2 * REOPEN_LOST_S).gpus[1].lost, "an open library does not see it come back"
    watcher.look(2 * REOPEN_LOST_S + 1)
    assert not watcher.look(2 * REOPEN_LOST_S + 2).gpus[1].lost


def test_dead_and_impossible_pids_are_dropped_and_one_process_is_told_once(watch: Watch) -> None:
    me = os.getpid()
    listed = [
        (0, 1, "C"),
        (4_294_967_295, 1, "C"),
        (4_194_305, 1, "C"),
        (_dead_pid(), 1, "G"),
        (me, 2 * GIB, "C"),
        (me, -1, "G"),
    ]
    (gpu,) = watch(Host(gpus=[Gpu(processes=listed)])).look(0.0).gpus
    assert gpu.facts is not None
    name = Path(f"/proc/{me}/comm").read_text().strip()
    assert gpu.facts.processes == [GpuProcess(me, name, 2 * GIB, ["compute", "graphics"])]


def test_a_process_in_two_lists_is_not_counted_twice(watch: Watch) -> None:
    me = os.getpid()
    (gpu,) = watch(Host(gpus=[Gpu(processes=[(me, 3 * GIB, "C"), (me, 3 * GIB, "G")])])).look(0.0).gpus
    assert gpu.facts is not None
    assert gpu.facts.processes is not None
    assert [process.used_memory_bytes for process in gpu.facts.processes] == [3 * GIB]


def test_a_process_of_unknown_size_has_a_null(watch: Watch) -> None:
    (gpu,) = watch(Host(gpus=[Gpu(processes=[(os.getpid(), -1, "C")])])).look(0.0).gpus
    assert gpu.facts is not None
    assert gpu.facts.processes is not None
    assert gpu.facts.processes[0].used_memory_bytes is None


def test_each_xid_is_told_once_by_its_own_card_without_waiting(watch: Watch) -> None:
    cards = idle(2)
    cards[1].xids = [48, 79]
    watcher = watch(Host(gpus=cards))
    assert [gpu.xids for gpu in watcher.look(0.0).gpus] == [[], [48, 79]]
    began = time.monotonic()
    assert [watcher.look(float(t)).gpus[1].xids for t in range(1, 21)] == [[]] * 20
    assert time.monotonic() - began < 1.0, "twenty looks at two cards wait for something"
    cards[1].xids = [48, 79, 31]
    watcher.show(Host(gpus=cards))
    assert watcher.look(30.0).gpus[1].xids == [31]


def test_no_look_measures_pcie_throughput(watch: Watch) -> None:
    """It blocks 20 ms a direction and card."""
    watcher = watch(Host(gpus=idle(2)))
    watcher.look(0.0)
    called = watcher.trace.read_text().split()
    assert "nvmlDeviceGetUtilizationRates" in called
    assert "nvmlDeviceGetPcieThroughput" not in called


def test_a_host_without_the_library_has_no_gpus_and_never_loads_the_binding(watch: Watch, tmp_path: Path) -> None:
    empty = tmp_path / "no-driver"
    empty.mkdir()
    watcher = watch(Host(), folder=empty)
    sample = watcher.look(0.0)
    assert sample.gpus == []
    assert (sample.state, sample.driver_version) == ("absent", None)
    assert "libnvidia-ml.so.1 not found" in sample.nvml
    assert not watcher.has_binding()


def test_a_driver_that_is_loaded_later_is_found(watch: Watch) -> None:
    watcher = watch(Host(gpus=idle(2), init=DRIVER_NOT_LOADED))
    sample = watcher.look(0.0)
    assert (sample.state, sample.gpus) == ("absent", [])
    assert "Driver Not Loaded" in sample.nvml
    watcher.show(Host(gpus=idle(2)))
    assert watcher.look(REOPEN_S - 1).gpus == []
    assert len(watcher.look(REOPEN_S).gpus) == 2


def test_a_driver_that_does_not_fit_its_library_is_trouble_not_absence(watch: Watch) -> None:
    sample = watch(Host(gpus=idle(1), init=18)).look(0.0)
    assert (sample.state, sample.gpus) == ("failing", [])
    assert "version mismatch" in sample.nvml


def test_a_driver_unloaded_under_the_agent_is_told_and_found_again(watch: Watch) -> None:
    watcher = watch(Host(gpus=idle(1)))
    assert len(watcher.look(0.0).gpus) == 1
    watcher.show(Host(gpus=idle(1), alive=1))
    sample = watcher.look(1.0)
    assert (sample.state, sample.gpus) == ("failing", [])
    assert "does not answer" in sample.nvml
    watcher.show(Host(gpus=idle(1)))
    sample = watcher.look(1.0 + REOPEN_S)
    assert (sample.state, len(sample.gpus)) == ("ok", 1)


def test_a_driver_that_starts_and_cannot_count_is_trouble(watch: Watch) -> None:
    watcher = watch(Host(gpus=idle(1), alive=999))
    sample = watcher.look(0.0)
    assert (sample.state, sample.gpus) == ("failing", [])
    assert "Unknown Error" in sample.nvml
    watcher.show(Host(gpus=idle(1)))
    assert watcher.look(1.0).state == "failing"
    assert len(watcher.look(REOPEN_S).gpus) == 1


def test_a_driver_without_cards_is_fine(watch: Watch) -> None:
    sample = watch(Host()).look(0.0)
    assert (sample.state, sample.nvml, sample.gpus) == ("ok", "ok", [])


def _reading(gpu: GpuSample) -> Reading:
    assert gpu.reading is not None
    return gpu.reading


def _dead_pid() -> int:
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    os.waitpid(pid, 0)
    return pid

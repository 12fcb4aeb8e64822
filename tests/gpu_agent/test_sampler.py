"""The sampler's thread: its cadence, what it survives, and what it answers meanwhile."""

import threading
import time
from collections.abc import Callable

import pytest

from services.gpu_agent.reading import GpuSample, HostSample, Reading
from services.gpu_agent.sampler import Sampler
from shared.errors import Malformed
from shared.gpu import GpuHostReport, GpuReportRequest
from tests.gpu_agent.conftest import Watcher
from tests.standins.nvml import Gpu, Host, idle

AT = "2026-11-21T09:30:00.000000Z"


class Eyes:
    """A source whose every look is a step of the test's own; it keeps the times at which it looked."""

    def __init__(
        self, step: Callable[[int], object] = lambda _: None, gpus: Callable[[int], int] = lambda _: 1
    ) -> None:
        self.times: list[float] = []
        self.closed = False
        self._step = step
        self._gpus = gpus

    def sample(self, t_s: float) -> HostSample:
        number = len(self.times)
        self.times.append(t_s)
        self._step(number)
        readings = [Reading(t_s=t_s, utilization_pct=50.0) for _ in range(self._gpus(number))]
        gpus = [GpuSample(f"GPU-{n}", n, "Card", None, reading, None, [], True) for n, reading in enumerate(readings)]
        return HostSample(t_s, "ok", "ok", "570", "12.8", gpus)

    def close(self) -> None:
        self.closed = True


def until(holds: Callable[[], bool], within_s: float = 10.0) -> None:
    deadline = time.monotonic() + within_s
    pause = threading.Event()
    while not holds():
        assert time.monotonic() < deadline, "it did not come to pass"
        pause.wait(0.005)


def ask(sampler: Sampler) -> GpuHostReport:
    return sampler.answer(GpuReportRequest(), at=AT)


def test_looks_lie_on_a_grid_and_do_not_drift() -> None:
    """Each look takes a third of the interval; over thirty looks a naive loop would be ten intervals late."""
    pause = threading.Event()
    eyes = Eyes(lambda _: pause.wait(0.02))
    sampler = Sampler(eyes, host="tower", interval_s=0.06)
    sampler.start()
    until(lambda: len(eyes.times) >= 30)
    assert sampler.stop()
    ticks = [(t_s - eyes.times[0]) / 0.06 for t_s in eyes.times]
    late = sorted(tick - int(tick + 0.02) for tick in ticks)
    assert late[len(late) // 2] < 0.3, "the middle look is late on its grid"
    assert eyes.closed


def test_a_look_that_overruns_skips_ticks_instead_of_making_up_for_them() -> None:
    pause = threading.Event()
    eyes = Eyes(lambda number: pause.wait(0.5 if number == 2 else 0))
    sampler = Sampler(eyes, host="tower", interval_s=0.1)
    sampler.start()
    until(lambda: len(eyes.times) >= 6)
    sampler.stop()
    slots = [int((t_s - eyes.times[0]) / 0.1 + 0.02) for t_s in eyes.times]
    assert slots[3] >= 5, "the third look took half a second"
    assert len(set(slots)) == len(slots), f"looks bunch together: {slots}"


def test_a_fault_in_a_look_does_not_end_the_watch() -> None:
    def falls(number: int) -> None:
        if number in (0, 2):
            raise ZeroDivisionError("a fault of ours")

    eyes = Eyes(falls)
    sampler = Sampler(eyes, host="tower", interval_s=0.05)
    sampler.start()
    until(lambda: len(eyes.times) >= 5)
    report = ask(sampler)
    sampler.stop()
    assert report.state == "ok"
    assert report.gpus[0].utilization_pct.samples >= 2


def test_a_card_that_is_no_longer_listed_is_told_as_lost() -> None:
    eyes = Eyes(gpus=lambda number: 2 if number < 3 else 1)
    sampler = Sampler(eyes, host="tower", interval_s=0.05)
    sampler.start()
    until(lambda: len(eyes.times) >= 5)
    first, second = ask(sampler).gpus
    sampler.stop()
    assert (first.lost, second.lost) == (False, True)
    assert second.utilization_pct.mean == 50.0
    assert second.utilization_pct.now is None


def test_an_answer_comes_while_nvml_hangs_and_says_so() -> None:
    free = threading.Event()
    now = [0.0]
    eyes = Eyes(lambda number: number == 1 and free.wait(30))
    sampler = Sampler(eyes, host="tower", interval_s=0.05, clock=lambda: time.monotonic() + now[0])
    sampler.start()
    until(lambda: len(eyes.times) == 2)
    now[0] = 60.0
    began = time.monotonic()
    report = ask(sampler)
    assert time.monotonic() - began < 1.0
    assert report.state == "stalled"
    assert "has not answered for 60 s" in report.nvml
    assert report.gpus[0].utilization_pct.now is None
    assert report.gpus[0].utilization_pct.mean == 50.0
    assert not report.gpus[0].lost
    assert not sampler.stop(timeout_s=0.05), "the thread hangs in NVML, and stop says so"
    free.set()
    assert sampler.stop()


def test_an_answer_right_after_the_start_waits_for_the_first_look() -> None:
    pause = threading.Event()
    sampler = Sampler(Eyes(lambda _: pause.wait(0.2)), host="tower")
    sampler.start()
    report = ask(sampler)
    sampler.stop()
    assert (report.state, report.host, report.at) == ("ok", "tower", AT)
    assert report.gpus[0].utilization_pct.samples == 1


@pytest.mark.parametrize("interval_s", [0.0, -1.0, 0.01, 61.0, float("nan"), float("inf")])
def test_an_interval_out_of_range_is_refused(interval_s: float) -> None:
    with pytest.raises(Malformed) as refused:
        Sampler(Eyes(), host="tower", interval_s=interval_s)
    assert refused.value.field == "interval_s"


def test_a_stop_without_a_start_is_fine() -> None:
    assert Sampler(Eyes(), host="tower").stop()


def test_the_mean_over_the_window_is_that_of_the_cards_series(watch: Callable[..., Watcher]) -> None:
    """From the C library through the binding, the thread and the window: 60, 100, 60, 100 … is 80 on the mean."""
    watcher = watch(Host(gpus=[Gpu(uuid="GPU-a", utilization=[60, 100]), *idle(1)]))
    watcher.start(0.05)
    report = watcher.answer_when(lambda told: told.gpus[0].utilization_pct.samples >= 20)
    told = report.gpus[0].utilization_pct
    assert (report.state, report.host) == ("ok", "tower")
    assert told.mean == pytest.approx(80.0, abs=1.0)  # an odd number of samples leans to one side
    assert (told.max, told.p95) == (100.0, 100.0)
    assert told.share_above == pytest.approx(0.5, abs=0.03)
    assert report.sampled_s >= 19 * 0.05 - 0.01
    assert report.gpus[1].utilization_pct.mean == 5.0


def test_a_card_lost_midway_is_told_with_its_past_beside_a_healthy_one(watch: Callable[..., Watcher]) -> None:
    cards = [Gpu(uuid="GPU-a", utilization=90, lost_after=5, xids=[79]), *idle(1)]
    watcher = watch(Host(gpus=cards))
    watcher.start(0.05)
    report = watcher.answer_when(lambda told: told.gpus[0].lost)
    lost, healthy = report.gpus
    assert (lost.utilization_pct.samples, lost.utilization_pct.mean, lost.utilization_pct.now) == (5, 90.0, None)
    assert lost.xids is not None
    assert [(one.xid, one.count) for one in lost.xids] == [(79, 1)]
    assert not healthy.lost
    assert healthy.utilization_pct.now == 5.0


def test_a_driver_that_hangs_forever_does_not_hold_the_process(watch: Callable[..., Watcher]) -> None:
    """Closing ends the process although its thread is inside the C library."""
    watcher = watch(Host(gpus=idle(1)))
    watcher.start(0.05)
    watcher.answer_when(lambda told: told.gpus[0].utilization_pct.samples >= 2)
    watcher.show(Host(gpus=idle(1), stall_ms=600_000))
    before = watcher.answer().gpus[0].utilization_pct.samples
    assert watcher.answer_when(lambda told: (told.newest_sample_age_s or 0) > 0.5).gpus[0].utilization_pct.samples <= (
        before + 1
    )
    watcher.close()
    assert watcher.process.returncode == 0

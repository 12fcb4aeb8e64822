"""Sampling on a thread of its own, and answering from what it has gathered.

NVML blocks: a call may take milliseconds, and on a sick driver it never returns. So one thread samples, and
whoever asks reads the windows under a lock that is never held during an NVML call: an answer comes at once
even while the driver hangs, and says so (`stalled`). Ticks lie on a fixed grid from the start (no drift); a
tick that is overrun is skipped, not made up for. A GPU that was seen once and is not any more is told as
lost: the operator should hear of it, not wonder.
"""

import logging
import threading
import time
from collections.abc import Callable

from msgspec.structs import replace

from services.gpu_agent.reading import GpuSource, HostSample
from services.gpu_agent.window import GpuWindow
from shared.errors import Malformed
from shared.gpu import WINDOW_S_MAX, GpuHostReport, GpuReport, GpuReportRequest, NvmlState

INTERVAL_S = 1.0
INTERVAL_S_MIN = 0.05
INTERVAL_S_MAX = 60.0

STALE_AFTER_S = 5.0
STALE_AFTER_TICKS = 5
"""The newest sample is stale when it is older than five seconds and five ticks."""

FIRST_SAMPLE_WAIT_S = 3.0
"""Opening NVML without persistence mode takes seconds; an answer right after the start waits for it."""

log = logging.getLogger(__name__)


class Sampler:
    """Looks at the GPUs every `interval_s` seconds and answers for the last `WINDOW_S_MAX`."""

    def __init__(
        self,
        source: GpuSource,
        *,
        host: str,
        interval_s: float = INTERVAL_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        if not INTERVAL_S_MIN <= interval_s <= INTERVAL_S_MAX:
            limits = f"{INTERVAL_S_MIN:g} to {INTERVAL_S_MAX:g}"
            raise Malformed(f"interval_s must be {limits}, not {interval_s:g}", field="interval_s")
        self._source = source
        self._host = host
        self._interval_s = interval_s
        self._clock = clock
        self._capacity = int(WINDOW_S_MAX / interval_s) + 2
        self._lock = threading.Lock()
        self._windows: dict[str, GpuWindow] = {}
        self._newest: HostSample | None = None
        self._first = threading.Event()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="gpu-sampler", daemon=True)

    def start(self) -> None:
        """Begin to sample; once only."""
        self._thread.start()

    def stop(self, timeout_s: float = 5.0) -> bool:
        """End the thread; False when NVML did not return in time (a daemon thread ends with the process)."""
        self._stopping.set()
        if self._thread.ident is not None:
            self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def answer(self, request: GpuReportRequest, *, at: str) -> GpuHostReport:
        """Report on the asked-for window; `at` is the wall clock's time. Waits only for the first sample."""
        self._first.wait(FIRST_SAMPLE_WAIT_S)
        with self._lock:
            now_s = self._clock()
            newest = self._newest
            if newest is None:
                return GpuHostReport(host=self._host, at=at, state="stalled", nvml="NVML has not answered yet")
            age_s = max(now_s - newest.t_s, 0.0)
            state, nvml = self._state(newest, age_s)
            present = {gpu.uuid for gpu in newest.gpus if not gpu.lost}
            gpus: list[GpuReport] = []
            times: set[float] = set()
            for uuid, window in self._windows.items():
                report = window.report(now_s, request, present=state == "ok" and uuid in present)
                if report is not None:
                    gpus.append(report if uuid in present or report.lost else replace(report, lost=True))
                times.update(window.times_since(now_s - request.window_s))
        return GpuHostReport(
            host=self._host,
            at=at,
            state=state,
            nvml=nvml,
            driver_version=newest.driver_version,
            cuda_version=newest.cuda_version,
            window_s=request.window_s,
            sampled_s=round(max(times) - min(times), 3) if times else 0.0,
            newest_sample_age_s=round(age_s, 3),
            gpus=sorted(gpus, key=lambda gpu: (gpu.index, gpu.uuid)),
        )

    def _state(self, newest: HostSample, age_s: float) -> tuple[NvmlState, str]:
        if age_s > max(STALE_AFTER_S, STALE_AFTER_TICKS * self._interval_s):
            return "stalled", f"NVML has not answered for {age_s:.0f} s"
        return newest.state, newest.nvml

    def _run(self) -> None:
        began_s = self._clock()
        tick = 0
        while not self._stopping.is_set():
            self._tick()
            tick = max(tick + 1, int((self._clock() - began_s) / self._interval_s) + 1)
            self._stopping.wait(max(began_s + tick * self._interval_s - self._clock(), 0.0))
        self._source.close()

    def _tick(self) -> None:
        t_s = self._clock()
        try:
            sample = self._source.sample(t_s)
        except Exception:
            # The source answers for NVML's errors; anything else is a fault of ours, and one bad tick must
            # not end the watch. The newest sample grows stale: a lasting fault is told as `stalled`.
            log.exception("a look at the GPUs failed")
            return
        with self._lock:
            self._newest = sample
            for gpu in sample.gpus:
                if gpu.uuid not in self._windows:
                    self._windows[gpu.uuid] = GpuWindow(WINDOW_S_MAX, self._capacity)
                self._windows[gpu.uuid].add(t_s, gpu)
            for window in self._windows.values():
                window.forget_until(t_s - WINDOW_S_MAX)
        self._first.set()

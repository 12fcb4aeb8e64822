"""`remit bench memory`: what many finished runs leave behind in the executor's two processes.

The runs differ (each has a parameter of its own, so no plan serves two of them), and one of a hundred lasts for more
than a second, so that timers are set for it. A tenth of the runs goes before: caches have their size by then.
"""

import asyncio
from collections.abc import Callable
from typing import Any

import msgspec

from bench.load import IN_FLIGHT
from bench.processes import pids_of, resident_mib
from bench.stack import stack
from shared.append import Appender
from shared.bus import Bus
from shared.pull import Reader
from shared.streams import ensure, last_seq
from shared.subjects import EVENTS, goal_submitted

SERVICES = ("planner", "executor")
SAMPLES = 5
LASTING = 100  # one of so many runs
SETTLE_S = 3.0  # acks and timers behind the last run
PATIENCE_S = 120.0  # without any run's end


async def run(runs: int, tell: Callable[[str], None]) -> dict[str, Any]:
    """Resident memory of decider and worker in MiB before `runs` runs, in between, and behind them."""
    async with stack(SERVICES, tell) as made:
        bus, appender = made.bus, made.appender
        await ensure(bus)  # no service that answers is among these two, so nothing says that they are ready
        load = await _Load(bus, appender).start()
        await load.finish(max(runs // 10, 1))
        pids = pids_of(made.keeper)
        await asyncio.sleep(SETTLE_S)
        sizes = {name: [resident_mib(pids[name])] for name in ("decider", "worker")}
        for part in range(SAMPLES):
            await load.finish(runs // SAMPLES)
            await asyncio.sleep(SETTLE_S)
            for name, found in sizes.items():
                found.append(resident_mib(pids[name]))
            tell(f"{(part + 1) * (runs // SAMPLES)} runs: {sizes['decider'][-1]} MiB")
        await load.stop()
        if pids_of(made.keeper) != pids:
            raise RuntimeError("a process was started anew meanwhile, so the figures say nothing")
        before, after = sizes["decider"][0], sizes["decider"][-1]
        return {
            "finished_runs": runs // SAMPLES * SAMPLES,
            "decider_mib_before": before,
            "decider_mib_after": after,
            "grown_mib": round(after - before, 1),
            "decider_mib": sizes["decider"],
            "worker_mib": sizes["worker"],
        }


class _Load:
    """Submits goals and waits for as many ends, with a bounded number in flight."""

    def __init__(self, bus: Bus, appender: Appender) -> None:
        self._bus, self._appender = bus, appender
        self._slots = asyncio.Semaphore(IN_FLIGHT)
        self._submitted = self._ended = 0
        self._came = asyncio.Event()

    async def start(self) -> "_Load":
        start_seq = await last_seq(self._bus) + 1
        subjects = ["run.completed.>", "goal.rejected.>"]
        self._reader = await Reader(self._bus, EVENTS, self._on_end, start_seq=start_seq, subjects=subjects).start()
        return self

    async def stop(self) -> None:
        await self._reader.stop()

    def _on_end(self, subject: str, _seq: int, _at_ns: int, data: bytes) -> None:
        if not subject.startswith("run.completed.") or b'"status":"succeeded"' not in data:
            raise RuntimeError(f"{subject}: {data!r}")
        self._ended += 1
        self._slots.release()
        self._came.set()

    async def finish(self, runs: int) -> None:
        """Submit so many, and see all end."""
        for _ in range(runs):
            async with asyncio.timeout(PATIENCE_S):
                await self._slots.acquire()
            self._submitted += 1
            await self._appender.say(goal_submitted(), _goal(self._submitted), headers=None)
        while self._ended < self._submitted:
            self._came.clear()
            async with asyncio.timeout(PATIENCE_S):
                await self._came.wait()


def _goal(number: int) -> bytes:
    if number % LASTING == 0:
        return msgspec.json.encode({"tasks": ["sleep"], "params": {"seconds": 1.5, "number": number}})
    return msgspec.json.encode({"tasks": ["noop", "noop", "noop"], "params": {"number": number}})

"""`remit bench restart`: kill -9 of the only executor with many active runs; how long until the next decision."""

import asyncio
import os
import signal
import time
from collections.abc import Callable
from typing import Any

import msgspec

from bench.processes import cpu_s
from bench.runs import SERVICES
from bench.stack import stack
from shared.bus import Bus
from shared.plan import Directive, TaskSpec
from shared.pull import Reader
from shared.streams import last_seq, worker_queue
from shared.subjects import CONFIG_BUCKET, EVENTS, directive_key, goal_submitted, run_started, task_key

TASK = "nobody"  # no worker has it, so its runs stay active
WITHIN_S = 120.0


async def run(runs: int, tell: Callable[[str], None]) -> dict[str, Any]:
    """Seconds from the kill to the first decision of the executor's successor, and what it had to take up."""
    async with stack(SERVICES, lambda _: None) as made:
        bus, appender = made.bus, made.appender
        await _allow(bus, runs + 10)
        tell(f"starting {runs} runs that stay active")
        goal = msgspec.json.encode({"tasks": [TASK, TASK], "directive": "bench"})
        started = _Seen(bus, "run.started.>")
        await started.start()
        for _ in range(runs):
            await appender.say(goal_submitted(), goal, headers=None)
        await started.until(runs)
        events = await last_seq(bus)
        await asyncio.sleep(2)  # timers are set a second after the fact: they belong to what is taken up
        tell("kill -9 of the executor")
        os.kill(made.keeper.pids()["executor"], signal.SIGKILL)
        killed_s = time.perf_counter()
        run_id = await appender.append(goal_submitted(), goal, headers=None)
        await started.until_subject(run_started(run_id))
        took_s = time.perf_counter() - killed_s
        used_s = cpu_s(made.keeper.pids()["executor"])
        await started.stop()
        return {
            "active_runs": runs,
            "events": events,
            "seconds_to_next_decision": round(took_s, 3),
            "successor_cpu_s": round(
                used_s, 3
            ),  # of these seconds; what else passes is waiting, for the made.keeper, too
        }


async def _allow(bus: Bus, runs: int) -> None:
    await worker_queue(bus, TASK)
    await bus.kv_put(CONFIG_BUCKET, task_key(TASK), msgspec.json.encode(TaskSpec(name=TASK)))
    directive = Directive(name="bench", task_list=[TASK], max_concurrent_runs=runs)
    await bus.kv_put(CONFIG_BUCKET, directive_key("bench"), msgspec.json.encode(directive))


class _Seen:
    """Counts what comes on a subject of EVENTS."""

    def __init__(self, bus: Bus, subjects: str) -> None:
        self._reader = Reader(bus, EVENTS, self._came, subjects=[subjects])
        self._count = 0
        self._last = ""
        self._moved = asyncio.Event()

    async def start(self) -> None:
        await self._reader.start()

    async def stop(self) -> None:
        await self._reader.stop()

    def _came(self, subject: str, _seq: int, _at_ns: int, _data: bytes) -> None:
        self._count += 1
        self._last = subject
        self._moved.set()

    async def until(self, count: int) -> None:
        await self._wait(lambda: self._count >= count)

    async def until_subject(self, subject: str) -> None:
        await self._wait(lambda: self._last == subject)

    async def _wait(self, so: Callable[[], bool]) -> None:
        async with asyncio.timeout(WITHIN_S):
            while not so():
                self._moved.clear()
                await self._moved.wait()

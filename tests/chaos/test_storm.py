"""A storm over all processes at once: kill -9, SIGSTOP and SIGCONT, restarts, two executors; then audit and rebuild.

Seeded: `REMIT_CHAOS_SEED` repeats a storm's injections (the moments are those of the machine). The long version runs
under `./remit test --chaos`.
"""

import asyncio
import random
import sys
from collections.abc import Callable

import pytest

from shared.bus import Bus
from tests.chaos import load
from tests.chaos.load import Load
from tests.conftest import until
from tests.stack import Stack

SECOND = "executor-2"
SPLIT_S = (0.05, 0.5)
STILL_S = (0.3, 3.0)


class Storm:
    """Hurts one process at a time, in a seeded order; all run again when it is over."""

    def __init__(self, stack: Stack, chance: random.Random) -> None:
        self._stack = stack
        self._chance = chance
        self._start: dict[str, Callable[[], None]] = {
            "planner": lambda: stack.start("planner"),
            "executor": lambda: stack.start("executor"),
            SECOND: lambda: stack.start_as(SECOND, [sys.executable, "-m", "services.executor"]),
            "registry": lambda: stack.start("registry"),
            "gateway": lambda: stack.start("gateway"),
            "slow-worker": lambda: load.start_slow_worker(stack),
            "nats": stack.start_nats,
        }
        self.done: list[str] = []

    async def injure(self) -> None:
        """One injection, and a pause before the next."""
        name = self._chance.choice(sorted(self._start))
        how = self._chance.choice(["kill", "kill", "kill", "still", "still", "restart", "worker"])
        self.done.append(f"{how} {name}")
        if how == "kill":
            self._stack.kill(name)
            await asyncio.to_thread(self._start[name])
        elif how == "still":
            self._stack.freeze(name)
            await asyncio.sleep(self._chance.uniform(*STILL_S))
            self._stack.thaw(name)
        elif how == "restart":
            await asyncio.to_thread(self._stack.stop, name)
            await asyncio.to_thread(self._start[name])
        else:
            self.done[-1] = "kill worker child"
            load.kill_worker_child(self._stack, self._chance.choice(["executor", SECOND]))
        await asyncio.sleep(self._chance.uniform(*SPLIT_S))


async def storm(stack: Stack, bus: Bus, runs: Load, chance: random.Random, *, injections: int, goals: int) -> None:
    """`goals` runs over the time of `injections`; then every one has ended, once, and the record holds."""
    if SECOND not in stack.processes:
        stack.start_as(SECOND, [sys.executable, "-m", "services.executor"])
    weather = Storm(stack, chance)
    submitting: list[asyncio.Task[None]] = []
    for i in range(injections):
        share = goals * (i + 1) // injections - goals * i // injections
        submitting.append(asyncio.create_task(runs.submit_mix(share)))
        await weather.injure()
    print("; ".join(weather.done))
    await asyncio.gather(*submitting)
    await until(runs.ended, within_s=60)
    ends = await load.examine(stack, bus)
    print(load.tally(ends, runs.runs))
    assert len(runs.runs) == goals
    assert {ends[run] for run in runs.runs} <= {"succeeded", "failed", "rejected"}
    rejected = [goal for run, goal in runs.runs.items() if ends[run] == "rejected"]
    assert set(rejected) == {load.MIX[5], load.MIX[7]}


async def test_a_short_storm_leaves_every_run_ended_once(
    remit: Stack, client: Bus, runs: Load, chance: random.Random
) -> None:
    await storm(remit, client, runs, chance, injections=15, goals=150)


@pytest.mark.chaos
@pytest.mark.slow
async def test_a_long_storm_leaves_every_run_ended_once(
    remit: Stack, client: Bus, runs: Load, chance: random.Random
) -> None:
    await storm(remit, client, runs, chance, injections=120, goals=600)

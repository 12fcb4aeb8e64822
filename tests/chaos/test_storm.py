"""A storm over all processes at once: kill -9, SIGSTOP and SIGCONT, restarts, two executors; then audit and rebuild.

Seeded: `REMIT_CHAOS_SEED` repeats a storm's injections (the moments are those of the machine). The long version runs
under `./remit test --chaos`; its last figures stand in docs/chaos.md.
"""

import asyncio
import json
import os
import random
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from shared.bus import Bus
from shared.clock import NS_PER_S, rfc3339
from shared.subjects import CONFIG_BUCKET, schedule_key
from tests.auditor import tally_void
from tests.chaos import load
from tests.chaos.load import Load
from tests.chaos.mix import LONG_S, MIX, SLOW_TASK, TOKENS_TASK
from tests.conftest import until
from tests.stack import Stack

SECOND = "executor-2"
EACH_MINUTE = "each-minute"
STILL_FOR_MOST = 4  # injections; at most so many processes stand still at a time
PAUSE_S = (0.3, 1.5)  # so they stand still for 1 to 6 seconds
SHORT_PAUSE_S = (0.1, 0.4)
GOALS_AT_A_TIME = 6
FEED_S = 0.3
PATIENT_LEASE_S = 8  # nobody is killed: a lease that ends because the machine is busy would have a step begun twice
CALM_GRACE_S = 1.0  # a run that is out of time has ended when its worker ends its process
GRACE_S = 15.0  # a worker that stood still hears only when it goes on that its step was to end


class Storm:
    """Hurts one process after the other, in a seeded order; what stands still does so while others are hurt."""

    def __init__(self, stack: Stack, chance: random.Random, pause_s: tuple[float, float]) -> None:
        self._stack = stack
        self._chance = chance
        self._pause_s = pause_s
        self._start = starters(stack)
        self._still: dict[str, int] = {}  # what stands still, and for how many injections yet
        self._pids: dict[str, list[int]] = {}
        self.done: list[str] = []

    async def injure(self) -> None:
        """One injection, and a pause before the next."""
        assert self._stack.ended() == {}
        self._go_on()
        name = self._chance.choice([one for one in sorted(self._start) if one not in self._still])
        how = self._chance.choice(["kill", "kill", "kill", "still", "still", "restart", "worker", "worker still"])
        executor = self._chance.choice(["executor", SECOND])
        for_long = self._chance.randint(1, STILL_FOR_MOST)
        if how.startswith("worker"):
            name = f"worker of {executor}"
            how = "still" if how == "worker still" and name not in self._still else "kill"
        elif how == "restart" and self._still:
            how = "kill"  # whoever drains needs the others
        self.done.append(f"{how} {name}")
        if how == "still":
            own = name in self._start
            whose = self._stack.processes[name if own else executor]
            self._pids[name] = [whose.pid] if own else load.children(whose)
            self._signal(name, signal.SIGSTOP)
            self._still[name] = for_long
        elif name not in self._start:
            load.kill_worker_child(self._stack, executor)
        else:
            await asyncio.to_thread(self._stack.kill if how == "kill" else self._stack.stop, name)
            await asyncio.to_thread(self._start[name])
        await asyncio.sleep(self._chance.uniform(*self._pause_s))

    def _go_on(self) -> None:
        for name in list(self._still):
            self._still[name] -= 1
            if not self._still[name]:
                del self._still[name]
                self._signal(name, signal.SIGCONT)

    def pass_over(self) -> None:
        """Everything goes on."""
        for name in list(self._still):
            self._still[name] = 1
        self._go_on()

    def _signal(self, name: str, number: signal.Signals) -> None:
        for pid in self._pids[name]:
            with suppress(ProcessLookupError):  # a worker may have been killed meanwhile
                os.kill(pid, number)


def starters(stack: Stack) -> dict[str, Callable[[], None]]:
    """How each process of the stack is started again."""
    return {
        "planner": lambda: stack.start("planner"),
        "executor": lambda: stack.start("executor"),
        SECOND: lambda: stack.start_as(SECOND, [sys.executable, "-m", "services.executor"]),
        "registry": lambda: stack.start("registry"),
        "gateway": lambda: stack.start("gateway"),
        "slow-worker": lambda: load.start_slow_worker(stack),
        "nats": stack.start_nats,
    }


async def over(stack: Stack, bus: Bus, runs: Load, goals: int, *, grace_s: float = GRACE_S) -> None:
    """Every run has ended, once, as its kind may; nothing of any step is left; the record holds."""
    began_s = time.monotonic()
    await load.until_ended(stack, bus, runs, within_s=120)
    await until(lambda: not sleeping(), within_s=grace_s)
    print(f"the last run had ended {time.monotonic() - began_s:.1f} s after the last injection")
    ends = await load.examine(stack, bus)
    print(runs.tally(ends))
    assert runs.wrong(ends) == {}
    assert len(runs.runs) == goals


def sleeping() -> list[int]:
    """Processes of `sleep` steps of this load that should have been ended: none of them ends by itself."""
    found = []
    for cmdline in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            argv = cmdline.read_bytes().split(b"\0")
        except OSError:
            continue  # it ended while we looked
        if argv[:2] == [b"sleep", f"{LONG_S:g}".encode()]:
            found.append(int(cmdline.parent.name))
    return found


async def storm(
    stack: Stack,
    bus: Bus,
    runs: Load,
    chance: random.Random,
    *,
    injections: int,
    goals: int,
    pause_s: tuple[float, float] = SHORT_PAUSE_S,
) -> None:
    """`goals` runs over the time of `injections`; then every one has ended, once, and the record holds."""
    if SECOND not in stack.processes:
        stack.start_as(SECOND, [sys.executable, "-m", "services.executor"])
    began_s = time.monotonic()
    # A chance of its own: the robots draw from the other one, whenever they have something to say.
    weather = Storm(stack, random.Random(chance.getrandbits(64)), pause_s)
    submitting: list[asyncio.Task[None]] = []
    for i in range(injections):
        share = goals * (i + 1) // injections - goals * i // injections
        submitting.append(asyncio.create_task(runs.submit_mix(share)))
        await weather.injure()
    weather.pass_over()
    print("; ".join(weather.done))
    print(f"{injections} injections in {time.monotonic() - began_s:.0f} s: {dict(Counter(weather.done))}")
    await asyncio.gather(*submitting)
    await over(stack, bus, runs, goals)
    messages = await load.whole_stream(bus)
    print(f"{len(messages)} events; dispatches that did not count: {tally_void(messages)}")


FED_LEAST = 140  # goals: about half as many attempts of the outsider's, so that a repetition would show


async def test_every_kind_of_run_ends_as_it_must(remit: Stack, client: Bus, mixed: Load) -> None:
    """Without any weather, so that what a storm finds is the storm's."""
    await mixed.submit_mix(2 * len(MIX))
    await over(remit, client, mixed, 2 * len(MIX), grace_s=CALM_GRACE_S)


async def test_a_rolling_restart_loses_and_repeats_nothing(remit: Stack, client: Bus, mixed: Load) -> None:
    """Each service in turn is asked to end and started again under load, twice; an outsider's worker, too.

    Nobody is killed, so no step is begun twice: the outsider's worker writes down what it begins.
    """
    starts = starters(remit)
    if SECOND not in remit.processes:
        starts[SECOND]()
    for task in (SLOW_TASK, TOKENS_TASK):
        await load.set_lease(client, task, PATIENT_LEASE_S)
    before = load.performed(remit)
    feed = load.Feed(mixed, goals=GOALS_AT_A_TIME, pause_s=FEED_S)
    for name in [name for _ in range(2) for name in starts if name != "nats"]:
        ended = mixed.submitted + GOALS_AT_A_TIME
        await until(lambda name=name: load.minds(remit.processes[name]))
        assert await asyncio.to_thread(remit.stop, name) == 0, f"{name} ended badly: {remit.log(name)[-500:]}"
        await asyncio.to_thread(starts[name])
        await until(lambda ended=ended: mixed.submitted >= ended)
    await until(lambda: mixed.submitted >= FED_LEAST)  # a machine may restart faster than it is fed
    await over(remit, client, mixed, await feed.stop())
    begun = Counter(load.performed(remit)[len(before) :])
    assert {attempt: times for attempt, times in begun.items() if times > 1} == {}
    messages = await load.whole_stream(client)
    outside = {
        ".".join(subject.split(".")[2:])
        for subject, _, _, data in messages
        if subject.startswith(("step.completed.", "step.failed.")) and json.loads(data).get("host") == "outside"
    }
    mine = {attempt for attempt in outside if int(attempt.split(".")[0]) in mixed.runs}
    assert len(mine) > 50
    assert mine <= begun.keys()
    for task in (SLOW_TASK, TOKENS_TASK):
        await load.set_lease(client, task, load.LEASE_S)


async def test_a_short_storm_leaves_every_run_ended_once(
    remit: Stack, client: Bus, mixed: Load, chance: random.Random
) -> None:
    await storm(remit, client, mixed, chance, injections=12, goals=2 * len(MIX))


@pytest.mark.chaos
@pytest.mark.slow
async def test_a_long_storm_leaves_every_run_ended_once(
    remit: Stack, client: Bus, mixed: Load, chance: random.Random
) -> None:
    """A schedule of each minute goes on through it: no tick is passed over, and none runs twice."""
    began_s = time.time()
    schedule = {
        "name": EACH_MINUTE, "cron": "* * * * *", "goal": {"tasks": ["noop"]}, "overlap": "allow", "catch_up": "all",
        "since": rfc3339(int(began_s * NS_PER_S)),
    }  # fmt: skip
    await client.kv_put(CONFIG_BUCKET, schedule_key(EACH_MINUTE), json.dumps(schedule).encode())
    await storm(remit, client, mixed, chance, injections=150, goals=900, pause_s=PAUSE_S)
    await until(lambda: ticked_up_to(client, time.time() // 60 * 60))
    await client.kv_delete(CONFIG_BUCKET, schedule_key(EACH_MINUTE))
    await until(lambda: load.every_run_ended(client), look_s=0.1)
    await load.examine(remit, client)
    ticks = await load.ticks(client, EACH_MINUTE)
    first = began_s // 60 * 60 + 60
    assert list(ticks) == [first + 60 * i for i in range(len(ticks))] and len(ticks) > 1
    print(f"ticks of each minute: {list(ticks.values())}")
    assert set(ticks.values()) <= {"ran", "late", "caught_up"}


async def ticked_up_to(bus: Bus, due_s: float) -> bool:
    return max(await load.ticks(bus, EACH_MINUTE), default=0) >= due_s

"""`remit bench fan`: one run of many parallel steps, beside the NATS floor, in one go, through the same server.

Runs of floor and Remit alternate, so that a noisy neighbour meets both. The run is a playbook of N `noop` steps that
need nothing, under a directive that allows N steps, and `parallel` of them at a time.
"""

import statistics
from collections.abc import Callable
from typing import Any

import msgspec

from bench.floor import Sizes
from bench.load import Client
from bench.processes import cpu_s, pids_of
from bench.runs import SERVICES, floor, lengths
from bench.stack import stack
from shared.append import Appender
from shared.bus import Bus
from shared.plan import Budgets, Directive
from shared.streams import last_seq
from shared.subjects import CONFIG_BUCKET, EVENTS, directive_key, goal_submitted, playbook_key

NAME = "bench-fan"
GOAL = msgspec.json.encode({"playbook": NAME, "directive": NAME})
ROUNDS = 3


async def run(steps: int, parallel: int, tell: Callable[[str], None]) -> dict[str, Any]:
    """The figures by name: medians over the rounds."""
    async with stack(SERVICES, tell) as made:
        bus, appender = made.bus, made.appender
        await _allow(bus, steps, parallel)
        tell(f"a run of {steps} steps, to see how long its messages are")
        sizes = await lengths(bus, appender, GOAL)
        sizes.steps, sizes.width = steps, parallel
        async with floor(bus, made.url, sizes):
            return await _measure(bus, appender, sizes, pids_of(made.keeper), tell)


async def _allow(bus: Bus, steps: int, parallel: int) -> None:
    """The playbook and its directive. (A goal may ask for 100 steps at most, a directive may give more.)"""
    text = "steps = [\n" + "".join(f'{{id="s{n}",task="noop"}},\n' for n in range(1, steps + 1)) + "]\n"
    budgets = Budgets(max_steps=steps)
    directive = Directive(name=NAME, task_list=["noop"], max_parallel_steps=parallel, defaults=budgets, maximum=budgets)
    await bus.kv_put(CONFIG_BUCKET, playbook_key(NAME), text.encode())
    await bus.kv_put(CONFIG_BUCKET, directive_key(NAME), msgspec.json.encode(directive))


async def _measure(
    bus: Bus, appender: Appender, sizes: Sizes, pids: dict[str, int], tell: Callable[[str], None]
) -> dict[str, Any]:
    under = await Client.of_floor(bus, appender, sizes).start(1)
    remit = await Client(bus, appender, EVENTS, goal_submitted(), GOAL, "run.completed.>").start(
        await last_seq(bus) + 1
    )
    tell("warming up")
    await under.alone(1)
    await remit.alone(1)
    floor_ms, remit_ms = [], []
    used_s: dict[str, list[float]] = {name: [] for name in pids}
    for number in range(1, ROUNDS + 1):
        tell(f"round {number} of {ROUNDS}")
        floor_ms += await under.alone(1)
        before_s = {name: cpu_s(pid) for name, pid in pids.items()}
        remit_ms += await remit.alone(1)
        for name, pid in pids.items():
            used_s[name].append(cpu_s(pid) - before_s[name])
    await under.stop()
    await remit.stop()
    used = {name: round(statistics.median(each), 3) for name, each in used_s.items()}
    floor_s, remit_s = statistics.median(floor_ms) / 1000, statistics.median(remit_ms) / 1000
    return {
        "steps": sizes.steps,
        "parallel": sizes.width,
        "floor_steps_s": round(sizes.steps / floor_s, 1),
        "remit_steps_s": round(sizes.steps / remit_s, 1),
        "ratio": round(floor_s / remit_s, 3),
        "floor_seconds": round(floor_s, 3),
        "seconds": round(remit_s, 3),
        "seconds_each": [round(one / 1000, 3) for one in remit_ms],
        "decider_cpu_s": used.pop("decider"),
        "others_cpu_s": used,
        "payload_bytes": msgspec.to_builtins(sizes),
    }

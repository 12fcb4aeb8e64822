"""Each process in turn is killed with -9 under a load of 200 runs: nothing is lost, nothing is done twice."""

import asyncio
import random
from collections.abc import Callable

import pytest

from shared.bus import Bus
from tests.chaos import load
from tests.chaos.load import Load
from tests.conftest import until
from tests.stack import Stack

RUNS = 200
KILLS = 2
EVENTS_MOST = RUNS * 6  # about what the load says in all


def _again(name: str) -> Callable[[Stack], None]:
    def kill(stack: Stack) -> None:
        stack.kill(name)
        stack.start(name)

    return kill


def _nats(stack: Stack) -> None:
    stack.kill("nats")
    stack.start_nats()


def _slow_worker(stack: Stack) -> None:
    stack.kill("slow-worker")
    load.start_slow_worker(stack)


def _child(stack: Stack) -> None:
    load.kill_worker_child(stack)  # the executor starts another


KILL: dict[str, Callable[[Stack], None]] = {
    "planner": _again("planner"),
    "executor": _again("executor"),  # its worker dies with it
    "worker child": _child,
    "outside worker": _slow_worker,
    "registry": _again("registry"),
    "gateway": _again("gateway"),
    "nats": _nats,
}


@pytest.mark.parametrize("name", KILL)
async def test_a_kill_under_load_loses_and_repeats_nothing(
    name: str, remit: Stack, client: Bus, runs: Load, chance: random.Random
) -> None:
    """Every run ends once and as it must, the auditor finds nothing, and the tables fold again to the same."""
    began = await load.events_stored(client)
    submitting = asyncio.create_task(runs.submit_mix(RUNS))
    for moment in sorted(chance.sample(range(EVENTS_MOST), KILLS)):
        await until(lambda at=began + moment: load.passed(client, at))
        KILL[name](remit)
    await submitting
    await load.until_ended(remit, client, runs)
    ends = await load.examine(remit, client)
    assert runs.wrong(ends) == {}
    assert len(runs.runs) == RUNS

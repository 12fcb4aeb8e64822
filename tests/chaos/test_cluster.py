"""Three real nats-servers with every stream on all three: a node is killed with -9 under load, comes back, and so on.

The short version kills two nodes, each the leader of EVENTS; the long one, in which any node is killed
or stands still, ten times, runs under `./remit test --chaos`.
"""

import asyncio
import random
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from shared.append import Appender
from shared.bus import ApiError, Bus, connect
from shared.errors import Unavailable
from shared.streams import ensure
from shared.subjects import (
    ARTIFACTS_BUCKET,
    CONFIG_BUCKET,
    EVENTS,
    MEMORY_BUCKET,
    SNAPSHOTS_BUCKET,
    TIMERS,
    worker_consumer,
)
from tests.chaos import load
from tests.chaos.load import Load
from tests.chaos.mix import CHAIN, SLOW_TASK, Kind
from tests.conftest import until
from tests.stack import Stack, stack

NODES = 3
SERVICES = ("planner", "executor", "registry")
STREAMS = (
    EVENTS, TIMERS, f"KV_{CONFIG_BUCKET}", f"KV_{MEMORY_BUCKET}", f"OBJ_{ARTIFACTS_BUCKET}", f"OBJ_{SNAPSHOTS_BUCKET}",
)  # fmt: skip
WITHIN_S = 90.0  # an election takes 4 to 9 s, each stream and each work queue has its own, and the machine is shared
GOALS_AT_A_TIME = 10
PAUSE_S = 0.5
EVENTS_BEHIND = 100  # so many behind a kill, and the load goes on; fewer may have been under way
NOBODYS_TASK = "nobodys"
NOBODYS = Kind("nobody's", b'{"tasks": ["nobodys"]}', frozenset({"failed"}))
SOURCE_AGAIN_S = 120.0  # EVENTS goes on sourcing TIMERS so late at worst, when its new leader tried in vain at once


@pytest.fixture
def remit(tmp_path: Path) -> Iterator[Stack]:
    """The cluster alone; the services are started when the streams are there."""
    environment = {**load.SHORT_LEASE, "REMIT_REPLICAS": str(NODES)}
    with stack(tmp_path, environment=environment, nodes=NODES) as made:
        yield made


@pytest.fixture
async def client(remit: Stack) -> AsyncIterator[Bus]:
    """A connection to a cluster whose streams had one replica each and were given three."""
    bus = await connect(remit.url, "chaos")

    async def prepared() -> bool:
        try:
            await ensure(bus)
            await load.prepare(bus, NODES)
        except Unavailable:
            return False  # the cluster has no leader yet
        return True

    await until(prepared, within_s=WITHIN_S)
    await load.add_task(bus, NOBODYS_TASK, timeout_s=1, max_attempts=1)
    await until(lambda: whole(bus), within_s=WITHIN_S)
    for service in SERVICES:
        remit.start(service)
    load.start_slow_worker(remit)
    yield bus
    await bus.close()


@pytest.fixture
async def runs(client: Bus) -> AsyncIterator[Load]:
    appender = await Appender(client).start()
    made = Load(client, appender)
    await made.submit(CHAIN)
    await until(made.ended, within_s=WITHIN_S)
    await load.digest(client)  # every service has begun: one that cannot, ends, and its keeper is not here
    yield made
    appender.stop()


async def group(bus: Bus, what: str) -> dict[str, Any]:
    """The nodes that keep a stream or a consumer; empty while none can say."""
    with suppress(Unavailable, ApiError):
        found: dict[str, Any] = (await bus.api(what, timeout_s=2)).get("cluster", {})
        return found
    return {}


def is_whole(nodes: dict[str, Any]) -> bool:
    replicas = nodes.get("replicas", [])
    return bool(nodes.get("leader")) and len(replicas) == NODES - 1 and all(
        one["current"] and not one.get("offline") for one in replicas
    )  # fmt: skip


async def whole(bus: Bus) -> bool:
    """Whether every stream has all its nodes, none behind the others."""
    return all(map(is_whole, await asyncio.gather(*(group(bus, f"STREAM.INFO.{stream}") for stream in STREAMS))))


async def lose(remit: Stack, bus: Bus, node: str, *, still: bool = False) -> None:
    """kill -9 of a node, or SIGSTOP; the load goes on without it, and with it when it is back with what it missed."""
    end = await events_stored(bus)
    began = time.monotonic()
    (remit.freeze if still else remit.kill)(node)
    await until(lambda: load.passed(bus, end + EVENTS_BEHIND), within_s=WITHIN_S)
    went_on = time.monotonic()
    await asyncio.to_thread(remit.thaw if still else remit.start_node, node)
    await until(lambda: whole(bus), within_s=WITHIN_S)
    how, again = "still" if still else "killed", time.monotonic()
    print(f"{node} {how}: 100 events on after {went_on - began:.1f} s, whole {again - went_on:.1f} s after its return")


async def events_stored(bus: Bus) -> int:
    """The end of EVENTS, from a leader that may just have been elected."""
    await until(lambda: load.passed(bus, 0), within_s=WITHIN_S)
    return await load.events_stored(bus)


async def leader(bus: Bus) -> str:
    return str((await bus.api(f"STREAM.INFO.{EVENTS}"))["cluster"]["leader"])


async def judge(remit: Stack, bus: Bus, runs: Load) -> None:
    """Every run has ended once and as it must, and no service has ended."""
    await load.until_ended(remit, bus, runs, within_s=WITHIN_S + SOURCE_AGAIN_S)
    ends = await load.examine(remit, bus)
    print(runs.tally(ends))
    assert runs.wrong(ends) == {}
    assert len(ends) == len(runs.runs), "a goal was stored twice"


@pytest.mark.slow
async def test_a_node_may_die_and_then_another(remit: Stack, client: Bus, runs: Load) -> None:
    """The leader of EVENTS is killed under load and comes back, then its successor: nothing is lost or done twice."""
    for queue in ("planner", worker_consumer("noop"), worker_consumer(SLOW_TASK)):
        await until(lambda queue=queue: kept_by_all(client, queue), within_s=WITHIN_S)
    feed = load.Feed(runs, goals=GOALS_AT_A_TIME, pause_s=PAUSE_S)
    for _ in range(2):
        await lose(remit, client, await leader(client))
    await feed.stop()
    await judge(remit, client, runs)


async def kept_by_all(bus: Bus, queue: str) -> bool:
    """A work queue is on as many nodes as its stream, or it would die with one."""
    return is_whole(await group(bus, f"CONSUMER.INFO.{EVENTS}.{queue}"))


@pytest.mark.chaos
@pytest.mark.slow
async def test_nodes_may_die_one_by_one_for_long(remit: Stack, client: Bus, runs: Load, chance: random.Random) -> None:
    """Any node is killed or stands still, ten times, and the executor's worker is killed together with it.

    Steps that nobody performs end by their timers, which may be late: see docs/cluster.md.
    """
    feed = load.Feed(runs, goals=GOALS_AT_A_TIME, pause_s=PAUSE_S)
    for _ in range(10):
        await runs.submit(NOBODYS)
        load.kill_worker_child(remit)
        await lose(remit, client, chance.choice(sorted(remit.nodes)), still=chance.random() < 0.5)
    await feed.stop()
    await judge(remit, client, runs)

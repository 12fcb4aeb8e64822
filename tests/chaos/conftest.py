"""A whole stack, prepared for kills: short leases, the outsider's worker, an auditor's view at the end."""

import random
from collections.abc import AsyncIterator, Iterator

import pytest

from shared.append import Appender
from shared.bus import Bus, connect
from tests.chaos import load
from tests.chaos.load import Load
from tests.chaos.mix import MIX
from tests.chaos.robot import Robot
from tests.stack import Stack, stack

SERVICES = ("planner", "executor", "registry", "gateway")


@pytest.fixture(scope="module")
def remit(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """NATS alone; the tests start the services when the streams are prepared."""
    with stack(tmp_path_factory.mktemp("chaos"), environment=load.SHORT_LEASE) as made:
        yield made


@pytest.fixture
async def client(remit: Stack) -> AsyncIterator[Bus]:
    """A connection to a stack in which every service of a load runs."""
    bus = await connect(remit.url, "chaos")
    if len(remit.processes) == 1:
        await load.prepare(bus)
    for service in SERVICES:
        if service not in remit.processes:
            remit.start(service)
    if "slow-worker" not in remit.processes:
        load.start_slow_worker(remit)
    yield bus
    await bus.close()


@pytest.fixture
async def runs(client: Bus) -> AsyncIterator[Load]:
    appender = await Appender(client).start()
    yield Load(client, appender)
    appender.stop()


@pytest.fixture
async def mixed(client: Bus, chance: random.Random) -> AsyncIterator[Load]:
    """A load of every kind, with robots that answer and cancel."""
    appender = await Appender(client).start()
    robot = await Robot(client, appender, chance).start()
    yield Load(client, appender, MIX, robot)
    await robot.stop()
    appender.stop()


@pytest.fixture
def chance() -> random.Random:
    """The test's own chance; its seed is printed."""
    return random.Random(load.seed())

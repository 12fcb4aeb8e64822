"""Replicas that cannot be had are refused by the setting's name, at once; on a cluster: tests/chaos/test_cluster.py."""

from collections.abc import AsyncIterator, Iterator

import pytest

from shared.bus import Bus, connect
from shared.errors import RemitError, Unavailable
from shared.streams import ensure
from tests.stack import Stack, stack


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """One nats-server, no cluster."""
    with stack(tmp_path_factory.mktemp("single")) as made:
        yield made


@pytest.fixture
async def bus(server: Stack) -> AsyncIterator[Bus]:
    made = await connect(server.url, "test")
    yield made
    await made.close()


async def refusal(bus: Bus, replicas: int) -> str:
    with pytest.raises(RemitError) as refused:
        await ensure(bus, replicas)
    assert not isinstance(refused.value, Unavailable), "nobody is to wait for what cannot come"
    return refused.value.message


async def test_a_single_server_cannot_keep_three_replicas(bus: Bus) -> None:
    """Neither of streams that have to be made nor of those that are there."""
    before = await refusal(bus, 3)
    await ensure(bus)
    assert "REMIT_REPLICAS=3 (--replicas)" in before and "single" in before
    assert await refusal(bus, 3) == before


async def test_an_even_number_of_replicas_is_refused(bus: Bus) -> None:
    assert "one of 1, 3, 5" in await refusal(bus, 2)


def test_a_service_that_cannot_have_its_replicas_ends_and_says_why(server: Stack) -> None:
    done = server.remit("executor", "--replicas", "3", timeout_s=30)
    assert done.returncode == 1
    assert "REMIT_REPLICAS=3" in done.stderr and "Traceback" not in done.stderr


def test_a_stack_that_cannot_have_its_replicas_is_not_started(server: Stack) -> None:
    """Without a cluster's URL nothing is even asked; with a single server's it is that server's answer."""
    without = server.remit("up", "--replicas", "3", timeout_s=30)
    assert (without.returncode, "--nats URL,URL,URL" in without.stderr) == (2, True), without.stderr
    single = server.remit("up", "--nats", server.url, "--replicas", "3", "--http-port", "0", timeout_s=30)
    assert (single.returncode, "REMIT_REPLICAS=3" in single.stderr) == (1, True), single.stderr

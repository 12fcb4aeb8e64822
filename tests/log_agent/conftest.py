"""A real nats-server for the agent's tests: started on a free loopback port, gone after them."""

import asyncio
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from shared.bus import Bus, connect
from shared.errors import Unavailable
from shared.streams import ensure


@pytest.fixture(scope="module")
def nats_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    server = Path(sys.executable).parent / "nats-server"
    store = tmp_path_factory.mktemp("jetstream")
    process = subprocess.Popen(
        [str(server), "-a", "127.0.0.1", "-p", str(port), "-js", "-sd", str(store)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        yield f"nats://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(10)


@pytest.fixture
async def bus(nats_url: str) -> AsyncIterator[Bus]:
    async with asyncio.timeout(10):
        while True:
            try:
                made = await connect(nats_url, "test")
                break
            except Unavailable:
                await asyncio.sleep(0.02)
    await ensure(made)
    yield made
    await made.close()

"""Servers that are too old are told at once: with them a timer never comes, or a stream seems to be another one."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from shared.bus import connect
from shared.errors import RemitError, Unavailable
from shared.streams import ensure


@asynccontextmanager
async def server(version: str) -> AsyncIterator[str]:
    """The URL of what greets as a nats-server of this version, and answers no more than a ping."""

    async def greet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        info = {"server_id": "x", "version": version, "max_payload": 1_048_576, "headers": True, "proto": 1}
        writer.write(f"INFO {json.dumps(info)}\r\n".encode())
        while line := await reader.readline():
            if line == b"PING\r\n":
                writer.write(b"PONG\r\n")
        writer.close()

    listening = await asyncio.start_server(greet, "127.0.0.1", 0)
    try:
        yield f"nats://127.0.0.1:{listening.sockets[0].getsockname()[1]}"
    finally:
        listening.close()


@pytest.mark.parametrize("version", ["2.9.25", "2.12.8", "2.13.0"])
async def test_an_old_server_is_refused(version: str) -> None:
    async with server(version) as url:
        with pytest.raises(Unavailable, match=rf"nats-server {version}\) is too old: Remit needs nats-server 2.14"):
            await connect(url, "test")


@pytest.mark.parametrize(("version", "is_refused"), [("2.14.0", True), ("2.14.5", True), ("2.14.6", False)])
async def test_a_cluster_needs_a_newer_one(version: str, is_refused: bool) -> None:
    async with server(version) as url:
        bus = await connect(url, "test")
        with pytest.raises(RemitError, match="too old for a cluster" if is_refused else "STREAM.CREATE"):
            await asyncio.wait_for(ensure(bus, 3), 20)
        await bus.close()

"""A container engine that lies or hangs, as no real one can be made to: HTTP over a unix socket, answers by path."""

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

from msgspec import Struct, field, json

CONTAINER = "0123456789ab" * 2
TRICKLE_S = 0.05  # between bytes: always sooner than any timeout that counts from byte to byte


def inspected(name: str = "web") -> dict[str, object]:
    return {"Id": CONTAINER, "Name": f"/{name}", "Config": {}, "State": {"Running": False}}


def framed(*lines: str) -> bytes:
    """The lines, each with its stamp, as a container without a TTY has them."""
    return b"".join(b"\1\0\0\0" + len(line.encode()).to_bytes(4, "big") + line.encode() for line in lines)


class StandIn(Struct):
    """`answers` maps a path (without the version) to a status and a body; what is in `trickles` never ends."""

    socket: Path
    answers: dict[str, tuple[int, bytes]]
    trickles: set[str] = field(default_factory=set)

    @property
    def address(self) -> dict[str, str]:
        return {"DOCKER_HOST": f"unix://{self.socket}"}

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError, asyncio.IncompleteReadError):
            while True:
                request = await reader.readuntil(b"\r\n\r\n")
                path = re.sub(r"^/v1\.\d+", "", request.split()[1].decode().partition("?")[0])
                status, body = self.answers.get(path, (404, b'{"message":"page not found"}'))
                size = 10**6 if path in self.trickles else len(body)
                head = f"HTTP/1.1 {status} X\r\nContent-Type: application/json\r\nContent-Length: {size}\r\n\r\n"
                writer.write(head.encode() + body)
                while path in self.trickles:
                    writer.write(b" ")
                    await writer.drain()
                    await asyncio.sleep(TRICKLE_S)
                await writer.drain()
        writer.close()


def honest() -> dict[str, tuple[int, bytes]]:
    """One container, `web`, with one line."""
    said: dict[str, object] = {
        "/version": {"Platform": {"Name": "Stand-in"}, "Version": "1", "ApiVersion": "1.41"},
        "/containers/json": [{"Id": CONTAINER, "Names": ["/web"], "Image": "app:1", "State": "exited"}],
        "/containers/web/json": inspected(),
        f"/containers/{CONTAINER}/json": inspected(),
        "/networks": [{"Name": "back", "Driver": "bridge"}],
    }
    answers = {path: (200, json.encode(what)) for path, what in said.items()}
    answers[f"/containers/{CONTAINER}/logs"] = (200, framed("2026-11-21T09:52:02.315025555Z hello\n"))
    return answers


@asynccontextmanager
async def stand_in(folder: Path) -> AsyncIterator[StandIn]:
    made = StandIn(folder / "engine.sock", honest())
    serving: set[asyncio.Task[None]] = set()

    def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        serving.add(asyncio.ensure_future(made.serve(reader, writer)))

    server = await asyncio.start_unix_server(connected, made.socket)
    try:
        yield made
    finally:
        server.close()
        for task in serving:
            task.cancel()
        await asyncio.gather(*serving, return_exceptions=True)

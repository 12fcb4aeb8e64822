"""A container's log over plain HTTP: the engine's own speed, with stdout and stderr told apart.

aiohttp stops reading the socket when nobody takes what it has, the engine then stops sending: a 100 MB log
needs no more memory here than a short one.

An engine that trickles is as good as one that is silent: it is given as long for BUFFER_BYTES as for its first byte.
"""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import aiohttp
import msgspec

from services.log_agent.engine_address import EngineAddress
from services.log_agent.frames import FrameWalk, NotFrames, TtyWalk
from services.log_agent.lines import Batch
from shared.errors import UNREADABLE, NotFound, Unavailable

CONNECT_S = 5.0
HEAD_S = 5.0  # engines send the head before they look for the first line
SILENCE_S = 16.0  # to find the first line may take long; with two calls of CALL_S it all fits in ANSWER_WAIT_S
BUFFER_BYTES = 256 * 1024


class _EngineMessage(msgspec.Struct):
    message: str = ""


class EngineLogs:
    """The log endpoint of one engine; one HTTP session, made on first use inside the running loop."""

    def __init__(self, address: EngineAddress) -> None:
        self._address = address
        self._session: aiohttp.ClientSession | None = None

    @asynccontextmanager
    async def open(
        self, container_id: str, *, tty: bool, since: str | None, tail: int | None
    ) -> AsyncGenerator["LogReading", None]:
        """Ask for the log as it stands now, from `since` (`seconds.nanoseconds`, inclusive) or its last
        `tail` entries. NotFound when the container is gone, Unavailable with the engine's words when it
        cannot be read.
        """
        query = {"stdout": "1", "stderr": "1", "timestamps": "1", "follow": "0", "tail": str(tail or "all")}
        if since is not None:
            query["since"] = since
        url = f"{self._address.http_url}/containers/{container_id}/logs"
        try:
            async with asyncio.timeout(HEAD_S):
                response = await self._connected().get(url, params=query)
            async with response:
                if response.status != 200:
                    async with asyncio.timeout(HEAD_S):
                        raise _refusal(response.status, await response.content.read(2_000))
                yield LogReading(response, TtyWalk() if tty else FrameWalk())
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise Unavailable(f"the container engine does not answer: {str(error) or type(error).__name__}") from error

    async def close(self) -> None:
        """Close the connections."""
        if self._session is not None:
            await self._session.close()

    def _connected(self) -> aiohttp.ClientSession:
        if self._session is None or self._session.closed:
            path = self._address.socket_path
            self._session = aiohttp.ClientSession(
                connector=aiohttp.UnixConnector(path) if path else aiohttp.TCPConnector(),
                timeout=aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_S, sock_read=SILENCE_S),
                read_bufsize=BUFFER_BYTES,
                trust_env=False,  # a proxy for the web has no business before the engine
            )
        return self._session


class LogReading:
    """One answer of the log endpoint, batch by batch; afterwards `walk` knows what was left and noted."""

    def __init__(self, response: aiohttp.ClientResponse, walk: FrameWalk | TtyWalk) -> None:
        self.walk = walk
        self.broke_off: str | None = None
        self._response = response

    async def batches(self) -> AsyncGenerator[Batch, None]:
        """Yield the finished lines as they come. An answer that breaks off ends the lines; it is no error:
        what was read is whole, and `broke_off` says why there is no more.
        """
        loop = asyncio.get_running_loop()
        got_bytes, left_s = 0, SILENCE_S
        try:
            while True:
                began_s = loop.time()
                async with asyncio.timeout(left_s):
                    data = await self._response.content.readany()
                if not data:
                    break
                got_bytes, left_s = got_bytes + len(data), left_s - (loop.time() - began_s)
                if got_bytes >= BUFFER_BYTES:
                    got_bytes, left_s = 0, SILENCE_S
                batch = self.walk.feed(data)
                if batch.text:
                    yield batch
        except (aiohttp.ClientError, ConnectionError, TimeoutError) as error:
            self.broke_off = f"the engine's answer broke off: {str(error) or type(error).__name__}"
        except NotFrames as error:
            self.broke_off = f"the engine's answer cannot be read: {error}"


def _refusal(status: int, body: bytes) -> NotFound | Unavailable:
    try:
        message = msgspec.json.decode(body, type=_EngineMessage).message
    except UNREADABLE:
        message = ""
    if status == 404:
        return NotFound("the container is gone", field="source")
    return Unavailable(f"the container engine refused ({status}): {message[:200] or 'no reason given'}")

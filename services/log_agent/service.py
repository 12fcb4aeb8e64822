"""The agent on the bus: the micro service `logs`, whose metadata names the host, answers `logs.<host>.…`.

The allow-list is enforced here and nowhere else, so a request that goes round the executor is refused, too. A
read asks it before it begins, and again for every chunk: what is taken back in the middle ends there.
"""

import asyncio
import logging
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing, asynccontextmanager
from typing import TypeVar

import msgspec

from services.log_agent import listing
from services.log_agent.allow_list import AllowList
from services.log_agent.conversation import conversation
from services.log_agent.docker_engine import DockerEngine
from services.log_agent.docker_logs import EngineLogs
from services.log_agent.docker_read import read_container
from services.log_agent.file_read import read_file
from shared import clock, subjects
from shared.allow import container_name, file_path, normal
from shared.bus import Bus
from shared.errors import UNREADABLE, Malformed, NotFound, Refused, RemitError, Unavailable, malformed
from shared.logs import (
    ANSWER_WAIT_S,
    LogChunk,
    LogRefusal,
    ReadRequest,
    ServicesRequest,
    SourcesRequest,
    check_read,
)

log = logging.getLogger("remit.log_agent")

VERSION = "1.0.0"
READS_MAX = 4  # at once: each may hold a few chunks, and a host has other work than being read
READ_TURN_S = 10.0  # how long a further read waits for its turn
READS_WAITING_MAX = 32

T = TypeVar("T")


class Agent:
    """The log agent of one host."""

    def __init__(
        self,
        bus: Bus,
        host: str,
        allow: AllowList,
        engine: DockerEngine,
        logs: EngineLogs,
        *,
        globs: Sequence[str] = (),
        answer_wait_s: float = ANSWER_WAIT_S,
    ) -> None:
        self._bus, self._host, self._allow = bus, host, allow
        self._engine, self._logs, self._globs = engine, logs, globs
        self._answer_wait_s = answer_wait_s
        self._turns = asyncio.Semaphore(READS_MAX)
        self._waiting = 0

    async def serve(self) -> None:
        """Answer for this host from now on."""
        host = subjects.token(self._host, "host")
        endpoints = {"sources": self.on_sources, "read": self.on_read, "services": self.on_services}
        await self._bus.serve(
            "logs",
            VERSION,
            {subjects.logs(host, what): endpoint for what, endpoint in endpoints.items()},
            metadata={"host": host},
        )

    async def on_sources(self, data: bytes, reply: str) -> None:
        """Answer one page of sources."""
        async with self._told(reply):
            request = _asked(data or b"{}", SourcesRequest)
            allow = await self._allow.current()
            answer = await listing.sources(self._host, self._engine, allow, self._globs, request.after)
            await self._bus.publish(reply, msgspec.json.encode(answer))

    async def on_services(self, data: bytes, reply: str) -> None:
        """Answer one page of services."""
        async with self._told(reply):
            request = _asked(data or b"{}", ServicesRequest)
            answer = await listing.services(self._host, self._engine, await self._allow.current(), request.after)
            await self._bus.publish(reply, msgspec.json.encode(answer))

    async def on_read(self, data: bytes, reply: str) -> None:
        """Answer one read with its chunks, or with one refusal."""
        async with self._told(reply), self._turn():
            request = check_read(_asked(data, ReadRequest))
            await self._allow.current()
            async with (
                conversation(self._bus, reply, self._answer_wait_s) as talk,
                aclosing(self._chunks(request)) as chunks,
            ):
                async for chunk in chunks:
                    if not await talk.send(chunk):
                        log.info("a read of %s ended early: %s", request.source[:200], talk.ended)
                        break

    async def _chunks(self, request: ReadRequest) -> AsyncGenerator[LogChunk, None]:
        source = normal(request.source)
        name, path = container_name(source), file_path(source)
        if path is not None:
            chunks = read_file(path, request, self._allow.permits_path(), clock.now())
        elif name is not None:
            self._check(source)
            chunks = read_container(self._engine, self._logs, name, request, clock.now())
        else:
            raise Malformed("a source is docker:NAME or file:/PATH", field="source")
        async with aclosing(chunks):
            async for chunk in chunks:
                if path is None:
                    self._check(source)
                yield chunk

    def _check(self, source: str) -> None:
        if not self._allow.allows(source):
            raise Refused(f"{source[:200]} is not on the allow-list of {self._host}", field="source")

    @asynccontextmanager
    async def _turn(self) -> AsyncGenerator[None, None]:
        if self._waiting >= READS_WAITING_MAX:
            raise _Busy(f"{READS_WAITING_MAX} reads wait on {self._host} already")
        self._waiting += 1
        try:
            await asyncio.wait_for(self._turns.acquire(), READ_TURN_S)
        except TimeoutError as error:
            raise _Busy(f"{READS_MAX} reads run on {self._host} already") from error
        finally:
            self._waiting -= 1
        try:
            yield
        finally:
            self._turns.release()

    @asynccontextmanager
    async def _told(self, reply: str) -> AsyncGenerator[None, None]:
        """Answer what goes wrong as a refusal."""
        try:
            yield
        except RemitError as error:
            if isinstance(error, Refused):
                log.warning("refused: %s", error)
            await self._refuse(reply, error)
        except Exception as error:  # whoever asks is told at once, also of a fault of ours, and asks for the rest
            log.error("a request failed", exc_info=error)
            await self._refuse(reply, Unavailable(f"the log agent failed ({type(error).__name__}); its log says where"))

    async def _refuse(self, reply: str, error: RemitError) -> None:
        kind = _KINDS.get(type(error), "unavailable")
        refusal = LogRefusal(error=kind, message=error.message, field=error.field)
        await self._bus.publish(reply, msgspec.json.encode(refusal))


class _Busy(RemitError):
    """The agent does as much as it may at once; the same request may be answered later."""


_KINDS: dict[type[RemitError], str] = {
    Malformed: "malformed",
    Refused: "refused",
    NotFound: "not_found",
    Unavailable: "unavailable",
    _Busy: "busy",
}


def _asked(data: bytes, kind: type[T]) -> T:
    try:
        return msgspec.json.decode(data, type=kind)
    except UNREADABLE as error:
        raise malformed(error) from error

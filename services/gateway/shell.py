"""The HTTP server around the application: what it bounds, and how it answers what is no HTTP at all.

aiohttp answers a request line or header that cannot be parsed by itself, as plain text. `_Connection` has it say a
problem instead; it is the one class here that extends aiohttp, through its public names.
"""

import asyncio
import logging
from pathlib import Path

from aiohttp import web

from services.gateway.guards import check
from services.gateway.problems import Handler, response, told
from shared.errors import Malformed, RemitError

log = logging.getLogger("remit.gateway")

IDLE_S = 30.0  # a connection that asks nothing, from its first byte on
LINGER_S = 2.0  # what a refused body may still send before the connection is closed
STOP_S = 2.0


class _Connection(web.RequestHandler):
    __slots__ = ()

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        if request.writer.output_size > 0:
            raise ConnectionError("an answer was begun already; only closing is left")
        if status >= 500:
            log.error("a request failed outside its handler", exc_info=exc)
            made = response(500, "this is a bug of the gateway; its log says more", "")
        else:
            made = response(status, f"this is not HTTP as it should be: {type(exc).__name__}", "")
        made.force_close()
        return made


class _Server(web.Server):
    def __call__(self) -> web.RequestHandler:
        return _Connection(
            self,
            loop=asyncio.get_running_loop(),
            keepalive_timeout=IDLE_S,
            lingering_time=LINGER_S,
            auto_decompress=False,  # a compressed body is refused, not unpacked
        )


class Shell:
    """Listens, hands requests through the guards to the application, and stops in time."""

    def __init__(self, app: web.Application, hosts: frozenset[str]) -> None:
        self._app = web.AppRunner(app)
        self._hosts = hosts
        self._server: web.ServerRunner | None = None

    async def start(self, host: str, port: int) -> int:
        """Listen; the port comes back, which is news when 0 was asked for."""
        await self._app.setup()
        made = self._app.server
        assert made is not None
        logging.getLogger("aiohttp.access").setLevel(logging.WARNING)  # paths name runs; a line each is nobody's need
        server = _Server(
            told(self._guarded(made.request_handler)),
            request_factory=made.request_factory,
            handler_cancellation=True,  # whoever hangs up wants nothing more
        )
        self._server = web.ServerRunner(server, shutdown_timeout=STOP_S)
        await self._server.setup()
        try:
            await web.TCPSite(self._server, host, port).start()
        except OSError as error:
            raise RemitError(f"cannot listen on {host}:{port}: {error.strerror or error}") from error
        bound: int = self._server.addresses[0][1]
        return bound

    async def stop(self) -> None:
        await self._app.shutdown()  # first, so that whoever follows a run lets go
        if self._server:
            await self._server.cleanup()
        await self._app.cleanup()

    def _guarded(self, handler: Handler) -> Handler:
        async def answer(request: web.BaseRequest) -> web.StreamResponse:
            check(request, self._hosts)
            return await handler(request)

        return answer


def address(text: str) -> tuple[str, int]:
    """Host and port of `REMIT_HTTP`, such as `127.0.0.1:9595`, `[::1]:0` or `:9595` (every interface)."""
    host, colon, port = text.rpartition(":")
    if not colon or not port.isascii() or not port.isdigit() or int(port) > 65_535:
        raise Malformed(f"REMIT_HTTP={text!r} is not host:port, such as 127.0.0.1:9595", field="REMIT_HTTP")
    return host.strip("[]") or "0.0.0.0", int(port)


def write_port(path: Path, port: int) -> None:
    """Write the port for whoever waits for the file, whole or not at all."""
    part = path.with_name(path.name + ".part")
    part.write_text(f"{port}\n")
    part.replace(path)

"""A run's events as server-sent events, from its goal (or behind `Last-Event-ID`) to its end.

Theory of operation. A run that has ended is told from one read of the stream. One that goes on is followed by a
reader of its own on the run's subjects, folded from the goal on, so that each event says whether it was applied; the
response ends behind the event that ends the run. Who then comes back with the last event's id, as browsers do, gets
204, which tells them to stay away. A client that does not read is cut off: it can come back where it was.
"""

import asyncio

import msgspec
from aiohttp import web

from services.gateway.views import event_view
from shared.bus import Bus
from shared.errors import Unavailable
from shared.pull import Reader
from shared.story import Told, begun, read_story
from shared.subjects import EVENTS, of_run

HEARTBEAT_S = 15.0
RETRY_MS = 2_000
FOLLOWERS_MAX = 64  # each has a consumer on the server
BACKLOG_BYTES_MAX = 16 * 1024 * 1024
WRITE_S = 30.0
BATCH = 256

_HEADERS = {
    "Content-Type": "text/event-stream; charset=utf-8",
    "Cache-Control": "no-store",
    "X-Accel-Buffering": "no",  # a proxy that collects the stream before it passes it on defeats it
}


class Follower:
    """Tells runs to whoever follows them; `stop` lets all of them go."""

    def __init__(self, bus: Bus, heartbeat_s: float = HEARTBEAT_S) -> None:
        self._bus = bus
        self._heartbeat_s = heartbeat_s
        self._followers: set[asyncio.Queue[Told | None]] = set()

    async def stop(self, _app: web.Application) -> None:
        for arrived in self._followers:
            arrived.put_nowait(None)

    async def follow(self, request: web.Request, run: int, after: int) -> web.StreamResponse:
        """The run's events behind sequence `after`."""
        reading = await read_story(self._bus, run)
        if not reading.run.ended:
            return await self._live(request, run, after)
        left = [told for told in reading.told if told.event.seq > after]
        if not left:
            return web.Response(status=204)
        response = await _begin(request)
        for told in left:
            await _write(response, _message(told))
        return response

    async def _live(self, request: web.Request, run: int, after: int) -> web.StreamResponse:
        reading = await begun(self._bus, run)
        arrived: asyncio.Queue[Told | None] = asyncio.Queue()
        backlog_bytes = 0

        def on_event(subject: str, seq: int, at_ns: int, data: bytes) -> None:
            nonlocal backlog_bytes
            if reading.run.ended:
                return  # it comes too late to be the run's
            told = reading.fold(subject, seq, at_ns, data)
            backlog_bytes += len(data)
            if backlog_bytes > BACKLOG_BYTES_MAX:
                arrived.put_nowait(None)
            elif seq > after:
                arrived.put_nowait(told)
            if reading.run.ended:
                arrived.put_nowait(None)

        reader = Reader(self._bus, EVENTS, on_event, start_seq=run + 1, subjects=of_run(run), batch=BATCH)
        if len(self._followers) >= FOLLOWERS_MAX:
            raise Unavailable(f"{FOLLOWERS_MAX} runs are being followed through this gateway already")
        self._followers.add(arrived)  # with nothing waited for since it was counted
        failed: asyncio.Future[None] | None = None
        try:
            await reader.start()
            failed = asyncio.ensure_future(reader.failed())
            response = await _begin(request)
            if run > after:
                await _write(response, _message(reading.told[0]))
            while True:
                try:
                    told = await asyncio.wait_for(arrived.get(), self._heartbeat_s)
                except TimeoutError:
                    if failed is not None and failed.done():
                        failed.result()  # the stream is gone, and the run does not go on
                    await _write(response, b": the run goes on\n\n")
                    continue
                if told is None:
                    return response
                backlog_bytes -= len(told.data)
                await _write(response, _message(told))
        finally:
            self._followers.discard(arrived)
            if failed is not None:
                failed.cancel()
            await reader.stop()


async def _begin(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse(headers=_HEADERS)
    await response.prepare(request)
    await _write(response, f"retry: {RETRY_MS}\n\n".encode())
    return response


async def _write(response: web.StreamResponse, data: bytes) -> None:
    async with asyncio.timeout(WRITE_S):
        await response.write(data)


def _message(told: Told) -> bytes:
    """One event; its JSON stands on one line, as the framing needs."""
    event = told.event
    return b"id: %d\nevent: %s\ndata: %s\n\n" % (event.seq, event.kind.encode(), msgspec.json.encode(event_view(told)))

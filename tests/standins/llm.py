"""A language model's server for tests: OpenAI's chat completions over real HTTP, and every way in which one fails.

`with served(Served(...)) as model` listens on a loopback port in a thread of its own, so that a test may block. It
keeps every request, and answers by its `mode`.
"""

import asyncio
import contextlib
import gzip
import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

MODEL = "stand-in-1"
ANSWER = "Two things are wrong."
USAGE = {"prompt_tokens": 321, "completion_tokens": 45, "prompt_tokens_details": {"cached_tokens": 7},
         "completion_tokens_details": {"reasoning_tokens": 5}}  # fmt: skip


@dataclass
class Served:
    """What the server answers, what it was asked, and where it listens."""

    mode: str = "good"
    answer: str = ANSWER
    usage: Any = field(default_factory=lambda: dict(USAGE))
    changes: dict[str, Any] = field(default_factory=dict)
    error: dict[str, Any] = field(default_factory=dict)  # said together with the echo of the prompt
    requests: list[dict[str, Any]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)
    raw: bytes = b""  # of the modes `raw` and `raw_hang`: every byte that is answered, status line and all
    port: int = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    def body(self) -> dict[str, Any]:
        """A good answer, with the changes that the test asks for."""
        choice = {"index": 0, "message": {"role": "assistant", "content": self.answer}, "finish_reason": "stop"}
        whole = {"id": "x", "object": "chat.completion", "model": MODEL, "choices": [choice], "usage": self.usage}
        return {**whole, **self.changes}


async def _good(told: Served, request: web.Request) -> web.StreamResponse:
    return web.json_response(told.body())


async def _in_parts(told: Served, request: web.Request) -> web.StreamResponse:
    """The same bytes in many small writes, as a server behind a slow proxy sends them."""
    response = web.StreamResponse(headers={"Content-Type": "application/json"})
    await response.prepare(request)
    whole = json.dumps(told.body()).encode()
    for at in range(0, len(whole), 50):
        await response.write(whole[at : at + 50])
        await asyncio.sleep(0.005)  # parts must be packets of their own: this is the server, not a test's wait
    return response


async def _echo(told: Served, request: web.Request) -> web.StreamResponse:
    return web.json_response({**told.error, "prompt": f"bad prompt: {told.requests[-1]}"}, status=400)


async def _broken(told: Served, request: web.Request) -> web.StreamResponse:
    return web.Response(status=500, text=f"Traceback: {told.error} {told.requests[-1]}")


async def _redirect(told: Served, request: web.Request) -> web.StreamResponse:
    return web.Response(status=307, headers={"Location": "/elsewhere"})


async def _hang(told: Served, request: web.Request) -> web.StreamResponse:
    await asyncio.sleep(3600)
    return web.Response()


async def _hang_in_body(told: Served, request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse(headers={"Content-Type": "application/json"})
    await response.prepare(request)
    await response.write(b'{"choices": [')
    await asyncio.sleep(3600)
    return response


async def _close(told: Served, request: web.Request) -> web.StreamResponse:
    assert request.transport is not None
    request.transport.close()
    return web.Response()


async def _close_in_body(told: Served, request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse(headers={"Content-Type": "application/json", "Content-Length": "5000"})
    await response.prepare(request)
    await response.write(json.dumps(told.body()).encode())
    assert request.transport is not None
    request.transport.close()
    return response


async def _huge(told: Served, request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse(headers={"Content-Type": "application/json"})
    await response.prepare(request)
    with contextlib.suppress(ConnectionError):
        await response.write(b'{"choices":[{"message":{"content":"')
        for _ in range(160):
            await response.write(b"A" * 65_536)
        await response.write(b'"}}]}')
    return response


async def _bomb(told: Served, request: web.Request) -> web.StreamResponse:
    return web.Response(
        body=gzip.compress(b" " * 200_000_000, 1),
        headers={"Content-Type": "application/json", "Content-Encoding": "gzip"},
    )


async def _raw(told: Served, request: web.Request) -> web.StreamResponse:
    assert request.transport is not None
    request.transport.write(told.raw)
    request.transport.close()
    return web.Response()


async def _raw_hang(told: Served, request: web.Request) -> web.StreamResponse:
    assert request.transport is not None
    request.transport.write(told.raw)
    await asyncio.sleep(3600)
    return web.Response()


def _bytes(data: bytes) -> Callable[[Served, web.Request], Any]:
    async def answer(told: Served, request: web.Request) -> web.StreamResponse:
        return web.Response(body=data, content_type="application/json")

    return answer


MODES: dict[str, Callable[[Served, web.Request], Any]] = {
    "good": _good,
    "in_parts": _in_parts,
    "echo_400": _echo,
    "500": _broken,
    "redirect": _redirect,
    "hang": _hang,
    "hang_in_body": _hang_in_body,
    "close": _close,
    "close_in_body": _close_in_body,
    "raw": _raw,
    "raw_hang": _raw_hang,
    "huge": _huge,
    "bomb": _bomb,
    "garbage": _bytes(b"\x00\xff<html>no"),
    "empty": _bytes(b""),
    "a_list": _bytes(b"[1, 2]"),
    "deep": _bytes(b"[" * 100_000),
    "half_json": _bytes(b'{"choices": [{"message": {"content": "a'),
}


@contextlib.contextmanager
def served(told: Served) -> Iterator[Served]:
    """Serve until the block ends."""
    loop = asyncio.new_event_loop()

    async def on_request(request: web.Request) -> web.StreamResponse:
        told.requests.append(await request.json())
        told.headers.append(dict(request.headers))
        told.paths.append(request.path)
        answered: web.StreamResponse = await MODES[told.mode](told, request)
        return answered

    async def start() -> web.AppRunner:
        app = web.Application()
        app.router.add_route("*", "/{rest:.*}", on_request)
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1, handler_cancellation=True)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        told.port = runner.addresses[0][1]
        return runner

    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    try:
        runner = asyncio.run_coroutine_threadsafe(start(), loop).result(10)
        try:
            yield told
        finally:
            asyncio.run_coroutine_threadsafe(runner.cleanup(), loop).result(10)
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join(10)
        loop.close()

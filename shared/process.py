"""What every service process does alike: logging, signals, the loop, and ending when it must.

Not a base class: a service is its own `__main__`, and calls `run(main)`.
"""

import asyncio
import atexit
import gc
import logging
import os
import signal
import sys
import traceback
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

import msgspec
import uvloop

from shared.bus import Bus, connect
from shared.clock import rfc3339
from shared.errors import RemitError, Unavailable
from shared.redact import redact
from shared.settings import credentials, nats_url, setting
from shared.streams import ensure

log = logging.getLogger("remit.process")

_waiting: asyncio.Task[Any] | None = None  # who waits for a NATS that is not there yet

CAUSES_MAX = 10  # of one error that are told
CONNECT_PATIENCE_S = 60.0  # a NATS that is being restarted; after that the keeper shall know
CONNECT_AGAIN_S = 0.3
TELL_AGAIN_S = 10.0  # what is waited for, when it is the same all the time


class _Lines(logging.Formatter):
    """One JSON object a line: readable for programs, and for Remit's own triage."""

    def __init__(self, service: str) -> None:
        super().__init__()
        self._service = service

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": rfc3339(int(record.created * 1e9)),
            "level": record.levelname.lower(),
            "service": self._service,
            "logger": record.name,
            "message": redact(record.getMessage()),
        }
        if record.exc_info and record.exc_info[1] is not None:
            line["error"] = trace(record.exc_info[1])
        return msgspec.json.encode(line).decode()


def trace(error: BaseException) -> str:
    """What kind of error it is and where it came from, with its causes, and not its text.

    An unexpected error often quotes what was being read: a line of a log, a goal, a query. Remit's own say only what
    may be said, and are told whole.
    """
    told: list[str] = []
    cause: BaseException | None = error
    while cause is not None and len(told) < CAUSES_MAX:
        text = (
            f"{type(cause).__name__}: {redact(str(cause))}" if isinstance(cause, RemitError) else type(cause).__name__
        )
        inner = [f"\nwithin it: {trace(one)}" for one in getattr(cause, "exceptions", ())[:CAUSES_MAX]]
        told.append("".join([*traceback.format_tb(cause.__traceback__), text, *inner]))
        cause = cause.__cause__ or (None if cause.__suppress_context__ else cause.__context__)
    return "\nwhich came of:\n".join(told)


def log_to_stderr(service: str) -> None:
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Lines(service))
    level = os.environ.get("REMIT_LOG_LEVEL", "info").upper()
    logging.basicConfig(level=level if level in logging.getLevelNamesMapping() else "INFO", handlers=[handler])
    # What ends the process is told like the rest: the interpreter would print the error's text.
    sys.excepthook = lambda _kind, error, _traceback: log.critical("the process failed", exc_info=error)
    logging.getLogger("nats").setLevel(logging.ERROR)  # what matters of it comes through the bus


async def connected(service: str) -> Bus:
    """A connection with streams in place; waits for a NATS that is just starting.

    When the connection ends for good the process ends, too: its keeper starts it afresh.
    """
    global _waiting
    replicas = setting("REPLICAS", int, 1)
    loop = asyncio.get_running_loop()
    end_s = loop.time() + CONNECT_PATIENCE_S
    told, tell_again_s = "", 0.0
    _waiting = asyncio.current_task()
    while True:
        bus: Bus | None = None
        try:
            bus = await connect(
                nats_url(),
                f"remit-{service}",
                credentials=credentials(),
                on_closed=lambda: os.kill(os.getpid(), signal.SIGTERM),
            )
            await ensure(bus, replicas=replicas)
        except Unavailable as error:
            if bus is not None:
                await bus.close()  # the next try makes a connection of its own
            if loop.time() > end_s:
                raise
            if error.message != told or loop.time() > tell_again_s:
                told, tell_again_s = error.message, loop.time() + TELL_AGAIN_S
                log.info("waiting for NATS: %s", error)
            await asyncio.sleep(CONNECT_AGAIN_S)
        else:
            _waiting = None
            return bus


async def until(stop: asyncio.Event, work: Coroutine[Any, Any, None]) -> bool:
    """Wait for `work`; False when `stop` came first, which cuts it off.

    A start may take long: an archive is read, say. Once started, a service waits for what says that it cannot go on:
    what that raises ends the process at once, and its keeper starts it afresh.
    """
    working = asyncio.create_task(work)
    asked = asyncio.create_task(stop.wait())
    await asyncio.wait({working, asked}, return_when=asyncio.FIRST_COMPLETED)
    asked.cancel()
    if working.done():
        await working
        return True
    working.cancel()
    await asyncio.wait({working})
    return False


def _end(stop: asyncio.Event) -> None:
    """Asked to end: a service drains; one that still waits for its NATS has nothing to drain."""
    stop.set()
    if _waiting is not None:
        _waiting.cancel()


def collect_seldom() -> None:
    """For who reads streams: messages are many, short-lived and without cycles; what lives on is left in peace."""
    gc.collect()
    gc.freeze()
    atexit.register(gc.unfreeze)  # at the end it is looked for: extensions complain of what is never given back
    gc.set_threshold(50_000, 20, 50)


def prepare(service: str) -> None:
    """Before a process reads streams: where its log goes, and how seldom it looks for garbage."""
    log_to_stderr(service)
    collect_seldom()


def run(service: str, main: Callable[[asyncio.Event], Awaitable[None]]) -> None:
    """Run `main(stop)` until it returns; SIGTERM and SIGINT set `stop`. An error that can be acted on ends with 1."""
    prepare(service)

    async def supervised() -> None:
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, _end, stop)
        try:
            await main(stop)
        except asyncio.CancelledError:
            if not stop.is_set():
                raise

    try:
        uvloop.run(supervised())
    except RemitError as error:
        log.error("%s", error)
        raise SystemExit(1) from error
    except OSError as error:
        if error.filename is None:
            raise
        # A folder that cannot be written, a disk that is full: somebody can act on it, and a path is no content.
        log.error("%s: %s", error.filename, error.strerror, exc_info=error)
        raise SystemExit(1) from error

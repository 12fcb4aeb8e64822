"""Threads of the engine's own: one that hangs takes none from the files, and the process ends without it.

What a thread waits for cannot be cut off from outside, so a call that was given up keeps its thread until the engine
ends it. Then the others serve; when all of them hang, a call is told so at once.
"""

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import Future
from queue import SimpleQueue
from typing import Any, TypeVar

from shared.errors import Unavailable

THREADS_MAX = 4
WAITING_MAX = 32  # as many as reads may wait; what is given up stays in the queue until a thread comes by

T = TypeVar("T")


class EngineThreads:
    """A few daemon threads, made on first use; an executor's would be waited for at the end of the process."""

    def __init__(self) -> None:
        self._calls: SimpleQueue[tuple[Callable[[], Any], Future[Any]] | None] = SimpleQueue()
        self._threads: list[threading.Thread] = []

    async def run(self, call: Callable[[], T], within_s: float) -> T:
        """Return what the call returns; Unavailable when it does not within `within_s`, or all threads hang."""
        if self._calls.qsize() >= WAITING_MAX:
            raise Unavailable("the container engine has not answered what it was asked before")
        if not self._threads:
            self._threads = [threading.Thread(target=self._serve, daemon=True) for _ in range(THREADS_MAX)]
            for thread in self._threads:
                thread.start()
        answer: Future[T] = Future()
        self._calls.put((call, answer))
        try:
            return await asyncio.wait_for(asyncio.wrap_future(answer), within_s)
        except TimeoutError as error:
            raise Unavailable(f"the container engine did not answer within {within_s:g} s") from error

    def close(self) -> None:
        """Let the threads end when they have nothing to do; waits for none."""
        for _ in self._threads:
            self._calls.put(None)

    def _serve(self) -> None:
        while (taken := self._calls.get()) is not None:
            call, answer = taken
            if not answer.set_running_or_notify_cancel():
                continue  # given up before its turn
            try:
                answer.set_result(call())
            except BaseException as error:
                answer.set_exception(error)
            del taken, call, answer  # not to be kept until the next call

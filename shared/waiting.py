"""Waiting that a cancellation does not cut short, and waiting that it does."""

import asyncio
from collections.abc import Awaitable, Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


async def to_the_end(work: Coroutine[Any, Any, None]) -> None:
    """Wait for it, however often the waiting is cancelled meanwhile; a cancellation is raised when it is done."""
    task = asyncio.create_task(work)
    cancelled = False
    while not task.done():
        try:
            await asyncio.shield(task)
        except asyncio.CancelledError:
            cancelled = True
    task.result()
    if cancelled:
        raise asyncio.CancelledError


async def wait_for(work: Awaitable[T], timeout: float | None) -> T:  # noqa: ASYNC109  # what it stands in for has it
    """`asyncio.wait_for` as Python 3.12 has it. TimeoutError when `work` is not done in `timeout` seconds."""
    if timeout is not None and timeout <= 0:
        begun = asyncio.ensure_future(work)
        if not begun.done():
            begun.cancel()
            await asyncio.wait({begun})
        try:
            return begun.result()
        except asyncio.CancelledError as error:
            raise TimeoutError from error
    async with asyncio.timeout(timeout):
        return await work

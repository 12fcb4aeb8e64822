"""The executor's second process: kept as long as the first one runs, whatever is in the way."""

import asyncio
import errno
from typing import Any

import pytest

from services.executor import __main__ as process
from tests.conftest import until


async def test_a_worker_that_cannot_be_started_yet_is_started_later(monkeypatch: pytest.MonkeyPatch) -> None:
    """No process to be had just now: the decider would have gone on without a worker for ever, and told nobody."""
    monkeypatch.setattr(process, "AGAIN_S", 0.01)
    start, tries = asyncio.create_subprocess_exec, 0

    async def on_a_full_machine(*_argv: str, **_options: Any) -> asyncio.subprocess.Process:
        nonlocal tries
        tries += 1
        if tries < 3:
            raise BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable")
        return await start("sleep", "60")

    monkeypatch.setattr(asyncio, "create_subprocess_exec", on_a_full_machine)
    stop = asyncio.Event()
    keeping = asyncio.create_task(process.keep_worker(stop))
    await until(lambda: tries == 3 or keeping.done(), within_s=10)
    stop.set()
    await keeping
    assert tries == 3

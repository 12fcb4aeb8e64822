"""Batches are written one behind the other, whoever stops waiting for one: nothing is written over a hole."""

import asyncio
import threading
from pathlib import Path

import pytest

from services.registry.fold import Batch
from services.registry.service import Registry
from services.registry.store import Store
from shared.append import Appender
from shared.bus import Bus
from tests.conftest import until
from tests.registry.conftest import LEDGER, say_runs


async def test_a_write_that_fails_when_nobody_waits_any_more_is_the_last(
    bus: Bus, appender: Appender, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As when a registry is asked to end within a write: what it writes as it ends would stand behind a hole."""
    registry = Registry(bus, tmp_path / LEDGER, answers=False)
    await registry.start()
    registry._flusher.cancel()
    written: list[int] = []
    begun, go_on = threading.Event(), threading.Event()

    def write(_store: Store, batch: Batch) -> None:
        if not begun.is_set():
            begun.set()
            go_on.wait(10)
            raise OSError("the disk is full")
        written.append(batch.position)

    monkeypatch.setattr(Store, "write", write)
    await say_runs(appender, 1)
    await until(lambda: len(registry._fold) > 0)
    flushing = asyncio.create_task(registry.flush())
    await until(begun.is_set)
    flushing.cancel()
    asyncio.get_running_loop().call_later(0.2, go_on.set)
    await asyncio.wait({flushing})
    await say_runs(appender, 1)
    await until(lambda: len(registry._fold) > 0)
    with pytest.raises(OSError, match="disk is full"):
        await registry.stop()
    assert written == []

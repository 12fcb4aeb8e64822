"""A cancellation is never lost, whatever comes with it."""

import asyncio
import random
import time
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from cli.keeper import LOOK_S, SERVICES, until_ready
from shared import waiting
from shared.bus import Bus
from shared.errors import Unavailable
from tests.stack import Stack

WaitFor = Callable[[Awaitable[Any], float | None], Awaitable[Any]]
WAITS = [pytest.param(asyncio.wait_for, id="as everybody looks it up"), pytest.param(waiting.wait_for, id="its own")]


@pytest.mark.parametrize("wait_for", WAITS)
class TestWaitFor:
    async def test_what_comes_in_time_is_handed_over(self, wait_for: WaitFor) -> None:
        async def work() -> str:
            await asyncio.sleep(0.01)
            return "done"

        assert await wait_for(work(), 5) == "done"
        assert await wait_for(work(), None) == "done"

    async def test_what_does_not_is_cancelled_and_a_timeout(self, wait_for: WaitFor) -> None:
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        with pytest.raises(TimeoutError):
            await wait_for(future, 0.01)
        assert future.cancelled()

    @pytest.mark.parametrize("limit_s", [0, -1])
    async def test_without_time_only_what_is_done_counts(self, wait_for: WaitFor, limit_s: float) -> None:
        loop = asyncio.get_running_loop()
        done: asyncio.Future[int] = loop.create_future()
        done.set_result(7)
        assert await wait_for(done, limit_s) == 7
        late: asyncio.Future[int] = loop.create_future()
        with pytest.raises(TimeoutError):
            await wait_for(late, limit_s)
        assert late.cancelled()
        failed: asyncio.Future[int] = loop.create_future()
        failed.set_exception(ValueError("its own"))
        with pytest.raises(ValueError, match="its own"):
            await wait_for(failed, limit_s)

    async def test_a_cancellation_in_the_turn_of_the_result_counts(self, wait_for: WaitFor) -> None:
        future: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        task = asyncio.create_task(wait_for(future, 60))
        await asyncio.sleep(0.01)
        future.set_result(1)
        task.cancel()
        await asyncio.wait({task})
        assert task.cancelled()

    async def test_a_timeout_around_it_holds_where_answers_keep_coming(self, wait_for: WaitFor) -> None:
        answers = 0

        async def answering() -> None:
            nonlocal answers
            while time.monotonic() < end_s:
                came.set()
                answers += 1
                await asyncio.sleep(0)

        came, end_s = asyncio.Event(), time.monotonic() + 2
        endless = asyncio.create_task(answering())

        async def ask() -> None:
            async with asyncio.timeout(0.1):
                while True:
                    came.clear()
                    await wait_for(came.wait(), 5)

        with pytest.raises(TimeoutError):
            await ask()
        assert not endless.done()
        assert answers > 100
        endless.cancel()


async def test_whoever_waits_for_a_stack_can_be_told_to_stop_at_any_moment(server: Stack, bus: Bus) -> None:
    """No service answers, so it asks again and again: requests, questions to all, pauses."""
    chance = random.Random(1)
    for _ in range(30):
        task = asyncio.create_task(until_ready(server.url, SERVICES))
        await asyncio.sleep(chance.random() * 0.3)
        task.cancel()
        await asyncio.wait({task}, timeout=5)
        assert task.cancelled()


async def test_whoever_waits_for_a_stack_asks_no_faster_for_being_refused_at_once(
    server: Stack, bus: Bus, monkeypatch: pytest.MonkeyPatch
) -> None:
    """That nobody answers is said by NATS itself, at once."""
    asked: list[str] = []
    ask = Bus.request_all

    async def count(self: Bus, subject: str, **limits: float) -> list[bytes]:
        asked.append(subject)
        return await ask(self, subject, **limits)

    monkeypatch.setattr(Bus, "request_all", count)
    with pytest.raises(Unavailable, match="registry"):
        await until_ready(server.url, ["registry"], patience_s=20 * LOOK_S)
    assert 1 < len(asked) < 25

"""Pulling, over kills of a real nats-server: a queue loses nothing, a reader sees each message once, in order."""

import asyncio
import random

import pytest

from shared.append import Appender
from shared.bus import Bus
from shared.pull import Delivery, Puller, Reader
from shared.streams import work_queue
from tests.chaos.load import seed
from tests.conftest import until
from tests.stack import Stack

FACT = b'"a fact"'
QUEUE = "worker-test"
MESSAGES = 3_000


@pytest.fixture
async def bus(bus: Bus) -> Bus:
    await work_queue(bus, QUEUE, ["audit.test.*"], ack_wait_s=2)
    return bus


async def fill(bus: Bus, count: int, first: int = 0) -> None:
    appender = await Appender(bus).start()
    for i in range(first, first + count):
        await appender.say(f"audit.test.{i}", FACT)
    await appender.drain(30)
    appender.stop()


class Work:
    """What a queue delivered; acks each unless told to hold."""

    def __init__(self) -> None:
        self.seen: list[int] = []
        self.hold = False
        self.puller: Puller

    async def on_delivery(self, delivery: Delivery) -> None:
        self.seen.append(delivery.seq)
        if not self.hold:
            await self.puller.ack(delivery)


async def working(bus: Bus, batch: int = 64) -> Work:
    work = Work()
    work.puller = await Puller(bus, "EVENTS", QUEUE, work.on_delivery, batch=batch).start()
    return work


async def test_a_queue_delivers_everything_over_kills_of_the_server(server: Stack, bus: Bus) -> None:
    """Some twice, as an ack does not outlive a kill; none not at all."""
    chance = random.Random(seed())
    work = await working(bus)
    filling = asyncio.create_task(fill(bus, MESSAGES))
    for moment in sorted(chance.sample(range(MESSAGES - 200), 3)):
        await until(lambda at=moment: len(set(work.seen)) >= at)  # type: ignore[misc]
        server.kill("nats")
        server.start_nats()
    await filling
    await until(lambda: set(work.seen) == set(range(1, MESSAGES + 1)))
    await work.puller.stop()


async def test_a_queue_that_was_deleted_and_made_again_goes_on(bus: Bus) -> None:
    """Somebody deletes the consumer behind the worker's back; when it is there again, the work goes on."""
    work = await working(bus)
    await fill(bus, 10)
    await until(lambda: len(work.seen) == 10)
    await bus.api(f"CONSUMER.DELETE.EVENTS.{QUEUE}")
    await fill(bus, 10, first=10)
    await work_queue(bus, QUEUE, ["audit.test.*"])
    await until(lambda: set(work.seen) == set(range(1, 21)))
    await work.puller.stop()


async def test_a_paused_queue_takes_no_more_and_goes_on_afterwards(bus: Bus) -> None:
    """What was asked for still comes; what was not waits for others or for the end of the pause."""
    work = await working(bus, batch=4)
    await work.puller.pause(True)
    await fill(bus, 100)
    asked_for = 4 + 4  # the request that was open, and at most one more
    assert len(work.seen) <= asked_for
    other = await working(bus, batch=4)
    await until(lambda: len(set(other.seen) | set(work.seen)) == 100)
    assert len(work.seen) <= asked_for
    await other.puller.stop()
    await work.puller.pause(False)
    await fill(bus, 10, first=100)
    await until(lambda: set(work.seen) >= set(range(101, 111)))
    await work.puller.stop()


async def test_what_is_not_acked_comes_again_and_counts(bus: Bus) -> None:
    counts: list[int] = []

    async def on_delivery(delivery: Delivery) -> None:
        counts.append(delivery.delivered)
        if delivery.delivered == 1:
            await puller.give_back(delivery)
        elif delivery.delivered == 3:
            await puller.ack(delivery)

    puller = await Puller(bus, "EVENTS", QUEUE, on_delivery, batch=8).start()
    await fill(bus, 1)
    await until(lambda: counts == [1, 2, 3], within_s=10)  # given back, then left to its lease
    await puller.stop()


@pytest.mark.chaos
async def test_a_step_in_progress_keeps_its_lease(bus: Bus) -> None:
    """Longer than the lease of 2 s, delivered once."""
    held: list[Delivery] = []
    puller = await Puller(bus, "EVENTS", QUEUE, lambda delivery: held.append(delivery), batch=8).start()
    await fill(bus, 1)
    loop = asyncio.get_running_loop()
    end_s = loop.time() + 5

    async def kept() -> bool:
        for delivery in held[:1]:
            await puller.in_progress(delivery)
        return loop.time() > end_s

    await until(kept)
    assert [delivery.delivered for delivery in held] == [1]
    await puller.ack(held[0])
    await puller.stop()


async def test_a_reader_sees_each_message_once_in_order_over_kills(server: Stack, bus: Bus) -> None:
    chance = random.Random(seed())
    seen: list[int] = []
    reader = await Reader(bus, "EVENTS", lambda _subject, seq, _at, _data: seen.append(seq), batch=128).start()
    filling = asyncio.create_task(fill(bus, MESSAGES))
    for moment in sorted(chance.sample(range(MESSAGES - 200), 3)):
        await until(lambda at=moment: len(seen) >= at)  # type: ignore[misc]
        server.kill("nats")
        server.start_nats()
    await filling
    await until(lambda: len(seen) >= MESSAGES)
    assert seen == list(range(1, MESSAGES + 1))
    assert reader.position == MESSAGES
    await reader.stop()


async def test_a_readers_consumer_that_is_deleted_is_made_again(bus: Bus) -> None:
    seen: list[int] = []
    reader = await Reader(bus, "EVENTS", lambda _subject, seq, _at, _data: seen.append(seq)).start()
    await fill(bus, 10)
    await until(lambda: len(seen) == 10)
    await bus.api(f"CONSUMER.DELETE.EVENTS.{reader._consumer}")
    await fill(bus, 10, first=10)
    await until(lambda: len(seen) == 20, within_s=10)
    assert seen == list(range(1, 21))
    await reader.stop()


async def test_a_reader_starts_where_it_is_told_and_reads_what_it_is_told(bus: Bus) -> None:
    """From `start_seq` on, and only the subjects named: numbers are missing then, messages are not."""
    appender = await Appender(bus).start()
    for i in range(20):
        await appender.append(f"audit.{'odd' if i % 2 else 'even'}.{i}", FACT)
    seen: list[tuple[str, int]] = []
    reader = await Reader(
        bus,
        "EVENTS",
        lambda subject, seq, _at, _data: seen.append((subject, seq)),
        start_seq=6,
        subjects=["audit.odd.*"],
    ).start()
    await appender.append("audit.odd.20", FACT)
    await until(lambda: seen and seen[-1][1] == 21)
    assert seen == [(f"audit.odd.{i}", i + 1) for i in (5, 7, 9, 11, 13, 15, 17, 19, 20)]
    await reader.stop()
    appender.stop()


@pytest.mark.chaos
async def test_a_slow_handler_holds_up_nothing_but_itself(bus: Bus) -> None:
    """Longer than the silence after which a reader asks anew: each message is folded once all the same."""
    seen: list[int] = []
    gate = asyncio.Event()

    async def on_message(_subject: str, seq: int, _at_ns: int, _data: bytes) -> None:
        if seq == 3:
            await gate.wait()
        seen.append(seq)

    reader = await Reader(bus, "EVENTS", on_message, batch=4).start()
    await fill(bus, 20)
    loop = asyncio.get_running_loop()
    end_s = loop.time() + 6
    await until(lambda: loop.time() > end_s)
    assert seen == [1, 2]
    gate.set()
    await until(lambda: len(seen) >= 20)
    assert seen == list(range(1, 21))
    await reader.stop()

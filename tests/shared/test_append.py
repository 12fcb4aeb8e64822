"""Appending to a real nats-server that is killed and stopped: each fact is stored once, in order, or said not to be."""

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable

import pytest

from shared.append import Appender, NotTaken, append_once
from shared.bus import Bus
from shared.errors import AlreadySaid, RemitError, Unavailable
from tests.chaos.load import seed, whole_stream
from tests.conftest import until
from tests.stack import Stack

FACT = b'{"reason": "for a test"}'


@pytest.fixture
async def appender(bus: Bus) -> AsyncIterator[Appender]:
    made = await Appender(bus).start()
    yield made
    made.stop()


async def stored(bus: Bus) -> list[str]:
    return [subject for subject, *_ in await whole_stream(bus)]


async def test_an_append_gives_its_sequence(bus: Bus, appender: Appender) -> None:
    assert [await appender.append(f"audit.test.{i}", FACT) for i in range(3)] == [1, 2, 3]
    assert await stored(bus) == ["audit.test.0", "audit.test.1", "audit.test.2"]


async def test_a_subject_takes_one_fact(bus: Bus, appender: Appender) -> None:
    """The second is `AlreadySaid`, whoever says it, and the first stays what it was."""
    await appender.append("audit.test.1", b'"first"')
    other = await Appender(bus).start()
    with pytest.raises(AlreadySaid, match=r"audit\.test\.1"):
        await other.append("audit.test.1", b'"second"')
    assert (other.already_said, appender.already_said) == (1, 0)
    assert [data for *_, data in await whole_stream(bus)] == [b'"first"']
    other.stop()


async def test_then_is_told_the_sequence_or_zero(appender: Appender) -> None:
    told: list[int] = []
    await appender.say("audit.test.1", FACT, told.append)
    await appender.say("audit.test.1", FACT, told.append)
    await appender.drain()
    assert told == [1, 0]


async def test_then_may_be_awaited(bus: Bus, appender: Appender) -> None:
    """What `then` returns is awaited before the next ack is heard, and may itself wait for the server."""
    told: list[tuple[int, int]] = []

    async def look(seq: int) -> None:
        told.append((seq, int((await bus.api("STREAM.INFO.EVENTS"))["state"]["messages"])))

    for i in range(5):
        await appender.say(f"audit.test.{i}", FACT, look)
    await until(lambda: len(told) == 5)
    assert [seq for seq, _ in told] == [1, 2, 3, 4, 5]


async def test_facts_are_stored_in_the_order_in_which_they_were_said(bus: Bus, appender: Appender) -> None:
    for i in range(1_000):
        await appender.say(f"audit.test.{i}", FACT)
    await appender.drain()
    assert await stored(bus) == [f"audit.test.{i}" for i in range(1_000)]


async def test_no_more_than_the_window_is_under_way(server: Stack, bus: Bus) -> None:
    """With a server that does not answer, the window fills, the next one waits; then all are stored."""
    appender = await Appender(bus, window=10).start()
    server.freeze("nats")
    try:
        saying = asyncio.create_task(say_all(appender, 30))
        await until(lambda: len(appender._pending) == 10)
        assert not saying.done()
    finally:
        server.thaw("nats")
    await saying
    await appender.drain()
    assert sorted(await stored(bus)) == sorted(f"audit.test.{i}" for i in range(30))
    appender.stop()


async def say_all(appender: Appender, count: int, acked: list[int] | None = None) -> None:
    for i in range(count):
        await appender.say(f"audit.test.{i}", FACT, acked.append if acked is not None else None)


async def test_what_had_no_ack_when_the_server_was_killed_is_stored_once(server: Stack, bus: Bus) -> None:
    """Kills in the middle of 5,000 appends: each fact is there once, and each `then` was called once."""
    chance = random.Random(seed())
    appender = await Appender(bus, window=256).start()
    acked: list[int] = []
    saying = asyncio.create_task(say_all(appender, 5_000, acked))
    for kill_at in sorted(chance.sample(range(5_000), 3)):
        await until(lambda at=kill_at: len(acked) >= at)  # type: ignore[misc]
        server.kill("nats")
        server.start_nats()
    await saying
    await appender.drain(30)
    assert sorted(await stored(bus)) == sorted(f"audit.test.{i}" for i in range(5_000))
    assert len(acked) == 5_000
    appender.stop()


async def test_a_server_that_stood_still_gets_everything_once(server: Stack, bus: Bus, appender: Appender) -> None:
    """Longer than the appender waits for an ack: it says all again, and the second tries change nothing."""
    server.freeze("nats")
    try:
        await say_all(appender, 100)
        first = appender._sweeps
        await until(lambda: appender._sweeps > first + 6)
    finally:
        server.thaw("nats")
    await appender.drain()
    assert await stored(bus) == [f"audit.test.{i}" for i in range(100)]


async def test_a_goal_said_to_a_server_that_stood_still_is_one_run(server: Stack, bus: Bus, appender: Appender) -> None:
    """`goal.submitted` is not create-only: what is said again for want of an ack must not become a second run."""
    server.freeze("nats")
    try:
        saying = asyncio.create_task(appender.append("goal.submitted", b'{"tasks": ["noop"]}', headers=None))
        first = appender._sweeps
        await until(lambda: appender._sweeps > first + 6)
    finally:
        server.thaw("nats")
    assert await saying == 1
    await appender.append("audit.test.1", FACT)  # whatever was said twice is stored by now
    assert await stored(bus) == ["goal.submitted", "audit.test.1"]


async def test_the_same_goal_said_twice_is_two_runs(bus: Bus, appender: Appender) -> None:
    """Each `append` is an intention of its own."""
    assert [await appender.append("goal.submitted", b'{"tasks": ["noop"]}', headers=None) for _ in range(2)] == [1, 2]


async def test_what_a_new_server_takes_no_longer_is_dropped_and_stops_nobody(bus: Bus, appender: Appender) -> None:
    """It waits for an ack, and the server that comes back has a smaller limit; what follows it fails, too."""
    told: list[int] = []

    def then(seq: int) -> Awaitable[object]:
        told.append(seq)
        raise Unavailable("no work queue to ack to")

    await appender.say("nowhere.large", b"x" * 200_000, then)  # no stream takes either: neither has an ack
    await appender.say("nowhere.small", b"{}")
    bus._client._max_payload = 100_000
    await until(lambda: told == [0], within_s=10)
    (waiting,) = appender._pending.values()
    sent = waiting.sent
    await until(lambda: waiting.sent > sent, within_s=10)
    appender._pending.clear()


async def test_a_payload_over_the_servers_limit_is_refused_and_stops_nobody(
    server: Stack, bus: Bus, appender: Appender
) -> None:
    """The client refuses it; what is said before and behind it is stored, over a stop of the server, too."""
    await appender.append("audit.test.0", FACT)
    with pytest.raises(RemitError, match="limit"):
        await appender.say("audit.test.big", b'"' + b"x" * 1_200_000 + b'"')
    server.freeze("nats")
    try:
        await appender.say("audit.test.1", FACT)
        first = appender._sweeps
        await until(lambda: appender._sweeps > first + 6, within_s=10)
    finally:
        server.thaw("nats")
    await appender.drain()
    assert await stored(bus) == ["audit.test.0", "audit.test.1"]


async def test_an_answer_of_somebody_else_says_nothing_of_the_message(bus: Bus) -> None:
    """A client that listens may answer before the stream does: then nobody knows what has become of the message."""
    said = [b"no JSON", b"[" * 2_000, b"[]", b"{}", b'{"stream":"OTHER","seq":1}', b'{"error":{"description":"full"}}']
    told: list[type[Unavailable]] = []
    await bus.api("STREAM.DELETE.EVENTS")

    def answer(_subject: str, _data: bytes, reply: str, _headers: object) -> Awaitable[None]:
        return bus.publish(reply, said[len(told)])

    await bus.subscribe("audit.>", answer)
    for _ in said:
        with pytest.raises(Unavailable) as raised:
            await append_once(bus, "EVENTS", "audit.test.1", FACT)
        told.append(type(raised.value))
    assert told == [*[Unavailable] * 5, NotTaken]

"""A fold's reader on a real nats-server: no message is cut off, none is folded over a hole, no other stream is read."""

import asyncio
import shutil
import time
from collections import deque

import pytest

from shared import pull
from shared.append import Appender
from shared.bus import Bus, StreamMissing, connect
from shared.errors import RemitError
from shared.pull import Reader
from shared.streams import ensure
from shared.subjects import EVENTS
from tests.conftest import until
from tests.stack import Stack, free_port

FACT = b'{"reason": "for a test"}'


async def say(bus: Bus, *names: str) -> None:
    appender = await Appender(bus).start()
    for name in names:
        await appender.append(f"audit.test.{name}", FACT)
    appender.stop()


async def test_a_message_in_hand_is_folded_to_its_end_over_a_kill_of_the_server(server: Stack, bus: Bus) -> None:
    """The reader asks anew when the connection is new; the end of its old subscription must not cut the handler off."""
    begun: list[int] = []
    ended: list[int] = []
    gate = asyncio.Event()

    async def on_message(_subject: str, seq: int, _at_ns: int, _data: bytes) -> None:
        begun.append(seq)
        if seq == 3:
            await gate.wait()
        ended.append(seq)

    await say(bus, *"abcdef")
    reader = await Reader(bus, EVENTS, on_message).start()
    await until(lambda: begun == [1, 2, 3])
    server.kill("nats")
    await until(lambda: not bus.is_connected)
    server.start_nats()
    await until(lambda: bus.is_connected)
    await say(bus, "g")  # an append after the reconnection: its callbacks have run
    gate.set()
    await until(lambda: len(ended) >= 7)
    assert begun == ended == [1, 2, 3, 4, 5, 6, 7]
    await reader.stop()


async def test_many_large_messages_do_not_cost_the_connection(bus: Bus) -> None:
    """The server ends a connection that 64 MB wait for, and a slow reader of a thousand messages would have it wait."""
    heard: list[int] = []

    def on_message(_subject: str, seq: int, _at_ns: int, data: bytes) -> None:
        time.sleep(0.005)
        heard.append(seq)

    fact = b'{"reason": "%b"}' % (b"x" * 900_000)
    appender = await Appender(bus, window=16).start()
    for number in range(160):
        await appender.say(f"audit.test.{number}", fact)
    await appender.drain()
    reader = await Reader(bus, EVENTS, on_message, whole=True).start()
    await until(lambda: len(heard) == 160)
    assert heard == list(range(1, 161))
    assert bus._client.stats["reconnects"] == 0
    await reader.stop()
    appender.stop()


async def test_a_handler_that_takes_its_time_is_no_silence(bus: Bus, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody asks anew for what waits behind it, and the reader does not begin again."""
    monkeypatch.setattr(pull, "SILENCE_S", 0.5)
    heard: list[int] = []

    async def on_message(_subject: str, seq: int, _at_ns: int, _data: bytes) -> None:
        heard.append(seq)
        await asyncio.sleep(2 if seq == 1 else 0)

    await say(bus, *"abc")
    reader = await Reader(bus, EVENTS, on_message).start()
    consumer = reader._consumer
    await until(lambda: heard == [1, 2, 3])
    assert reader._consumer == consumer
    assert next(reader._pulls._numbers) == 2  # type: ignore[union-attr]  # one request was made
    await reader.stop()


async def test_a_message_that_was_cut_off_in_the_handlers_hand_ends_the_reader(bus: Bus) -> None:
    async def on_message(_subject: str, seq: int, _at_ns: int, _data: bytes) -> None:
        if seq == 2:
            raise asyncio.CancelledError

    await say(bus, *"abc")
    reader = await Reader(bus, EVENTS, on_message).start()
    with pytest.raises(RemitError, match="message 2 of EVENTS was cut off"):
        await asyncio.wait_for(reader.failed(), 5)
    await reader.stop()


async def test_nothing_is_folded_behind_a_message_that_could_not_be(bus: Bus) -> None:
    folded: list[int] = []

    def on_message(_subject: str, seq: int, _at_ns: int, _data: bytes) -> None:
        if seq == 2:
            raise ValueError("a bug")
        folded.append(seq)

    await say(bus, *"abcd")
    reader = await Reader(bus, EVENTS, on_message).start()
    with pytest.raises(ValueError, match="a bug"):
        await asyncio.wait_for(reader.failed(), 10)
    last = asyncio.Event()

    def see(_subject: str, seq: int, _at_ns: int, _data: bytes) -> None:
        if seq == 5:
            last.set()

    await say(bus, "e")
    other = await Reader(bus, EVENTS, see).start()
    await asyncio.wait_for(last.wait(), 10)
    assert folded == [1]
    await reader.stop()
    await other.stop()


@pytest.mark.parametrize("made_anew", [False, True])
async def test_a_store_that_was_lost_ends_the_reader(server: Stack, bus: Bus, made_anew: bool) -> None:
    """Sequences of another stream mean other events: whoever folds has to begin anew, so its process has to end."""
    await say(bus, "a", "b")
    reader = await Reader(bus, EVENTS, lambda *_: None).start()
    await until(lambda: reader.position == 2)
    server.kill("nats")
    shutil.rmtree(server.folder / "jetstream")
    server.start_nats()
    if made_anew:
        other = await connect(server.url, "other")
        await ensure(other)
        await other.close()
    with pytest.raises(StreamMissing):
        await asyncio.wait_for(reader.failed(), 20)
    await reader.stop()


async def test_any_of_several_servers_will_do(server: Stack) -> None:
    nobody = f"nats://127.0.0.1:{free_port()}"
    bus = await connect(f"{nobody}, {server.url}", "test")
    assert bus.is_connected
    await bus.close()


async def test_each_form_of_a_reply_says_where_its_message_stands(bus: Bus) -> None:
    """The server's short form, its form with domain and account, and what is none or of another consumer."""
    heard: list[tuple[int, int]] = []
    reader = Reader(bus, EVENTS, lambda _subject, seq, at_ns, _data: heard.append((seq, at_ns)))
    reader._consumer, reader._acks = "mine", "$JS.ACK.EVENTS.mine"
    replies = [
        "$JS.ACK.EVENTS.mine.1.1.1.101.5",
        "$JS.ACK.EVENTS.before.1.2.2.102.5",
        "$JS.ACK.hub.ACCOUNT.EVENTS.mine.1.2.2.102.5",
        "$JS.ACK.hub.ACCOUNT.EVENTS.mine.1.3.3.103.5.token",
        "",
        "a.stranger",
        "$JS.ACK.EVENTS.mine.1.4.4.104.0",
    ]
    waiting = deque(("audit.test.a", FACT, reply, None) for reply in replies)
    assert reader._take(waiting) is None
    assert heard == [(1, 101), (2, 102), (3, 103), (4, 104)]
    assert not waiting

"""The receiving half of the client: what it hears is what nats-py's own parser hears, however the bytes are cut."""

import asyncio
from collections.abc import Mapping
from typing import Any

import nats.aio.client
import nats.errors
import nats.protocol.parser
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.bus import CREATE_ONLY, Bus
from shared.client import Client, Listener, Waiting, one_by_one
from shared.errors import Malformed, RemitError, Unavailable
from shared.streams import last_seq
from tests.conftest import until
from tests.stack import Stack

EXPECTED = b"NATS/1.0\r\nNats-Expected-Last-Subject-Sequence: 0\r\n\r\n"
HEADERS = (
    b"",
    EXPECTED,
    b"NATS/1.0\r\nTrace: a b\r\n\r\n",
    b"NATS/1.0 503\r\n\r\n",
    b"NATS/1.0 408 Request Timeout\r\n\r\n",
    b"NATS/1.0 100 Idle Heartbeat\r\nNats-Last-Consumer: 1016\r\nNats-Last-Stream: 1024\r\n\r\n",
    b"NATS/1.0\r\nTrace:a\r\nTwice: 1\r\nTwice:\t2\r\n of: none\r\nno colon\r\n\r\n",
)
NO_HEADERS = (
    b"x", b"NATS/1.0", b"NATS/1.0 ", b"NATS/1.0\r\n", b"NATS/1.0 \xff\xff\xff\r\n\r\n", b"\r\n\r\n",
    b"NATS/1.0\r\n\xff: \xfe\r\n\r\n", b"NATS/1.0\r\nno colon\r\n\r\n", b"NATS/1.0 503 \xff\r\n\r\n",
)  # fmt: skip
Heard = tuple[str, bytes, str, Mapping[str, str] | None]


def message(subject: str, reply: str, header: bytes, data: bytes, sid: int = 1) -> bytes:
    """As the server sends it."""
    to = f" {reply}" if reply else ""
    if not header:
        return f"MSG {subject} {sid}{to} {len(data)}\r\n".encode() + data + b"\r\n"
    return f"HMSG {subject} {sid}{to} {len(header)} {len(header) + len(data)}\r\n".encode() + header + data + b"\r\n"


class Theirs(nats.aio.client.Client):  # type: ignore[misc]
    """nats-py's client, with its own parser, and an ear where it would look for a subscription."""

    def __init__(self) -> None:
        super().__init__()
        self.heard: list[Heard] = []
        self.pongs = 0

    async def _process_msg(self, sid: int, subject: bytes, reply: bytes, data: bytes, headers: bytes) -> None:
        self.heard.append((subject.decode(), data, reply.decode(), await self._process_headers(headers)))

    async def _process_pong(self) -> None:
        self.pongs += 1


class Ours(Client):
    def __init__(self) -> None:
        super().__init__()
        self.heard: list[Heard] = []
        self.pongs = 0
        self.listeners["1"] = Listener(self, one_by_one(lambda *heard: self.heard.append(heard)))

    async def _process_pong(self) -> None:
        self.pongs += 1


messages = st.builds(
    message,
    st.sampled_from(["a", "step.completed.7.b.1", "ünd.so"]),
    st.sampled_from(["", "$JS.ACK.EVENTS.c.1.2.3.4.5"]),
    st.sampled_from(HEADERS),
    st.binary(max_size=60) | st.sampled_from([b"\r\n", b"MSG a 1 3\r\nabc\r\n", b"PING\r\n", b"x" * 5000]),
)
lines = st.lists(messages | st.sampled_from([b"PONG\r\n", b"+OK\r\n"]), max_size=12)


@given(lines, st.lists(st.integers(1, 400), max_size=30))
async def test_it_hears_what_the_clients_own_parser_hears(said: list[bytes], cuts: list[int]) -> None:
    stream = b"".join(said)
    theirs, ours = Theirs(), Ours()
    at = 0
    for cut in [*cuts, len(stream)]:
        piece = stream[at : at + cut]
        at += cut
        await theirs._ps.parse(piece)
        await ours._ps.parse(piece)
        assert ours.heard == theirs.heard  # also in time: a message is not held back
    assert ours.pongs == theirs.pongs
    assert len(ours.heard) + ours.pongs + stream.count(b"+OK\r\n") >= len(said)


@pytest.mark.parametrize(
    "line",
    [b"MSG a 1\r\n", b"MSG a x 3\r\nabc\r\n", b"MSG a 1 b c 3\r\nabc\r\n", b"HMSG a 1 12\r\n", b"HELLO\r\n", b"\r\n",
     b"HELLO" * 1000 + b"\r\n"],
)  # fmt: skip
async def test_what_is_no_protocol_ends_the_connection_and_not_in_silence(line: bytes) -> None:
    ours = Ours()
    with pytest.raises(nats.errors.ProtocolError):
        await ours._ps.parse(message("a", "", b"", b"1") + line + message("a", "", b"", b"2"))
    assert [data for _, data, _, _ in ours.heard] == [b"1"]


async def test_what_came_over_a_connection_that_is_over_is_forgotten() -> None:
    ours = Ours()
    await ours._ps.parse(message("a", "", b"", b"whole") + b"MSG a 1 100\r\nthe beg")
    ours._ps.reset()
    await ours._ps.parse(message("a", "", b"", b"new"))
    assert [data for _, data, _, _ in ours.heard] == [b"whole", b"new"]


async def test_a_handler_that_waits_has_what_comes_meanwhile_wait_behind_it() -> None:
    client, gate = Client(), asyncio.Event()
    order: list[str] = []

    def handle(
        _subject: str, data: bytes, _reply: str, _headers: Mapping[str, str] | None
    ) -> asyncio.Future[None] | None:
        name = data.decode()
        order.append(f"begin {name}")
        if name == "sudden":
            raise RuntimeError("a handler that fails")

        async def wait() -> None:
            await gate.wait()
            order.append(f"end {name}")
            if name == "late":
                raise RuntimeError("a handler that fails later")

        return None if name == "short" else asyncio.ensure_future(wait())

    told: list[str] = []

    async def tell(error: Exception) -> None:
        told.append(str(error))

    client._error_cb = tell
    client.listeners["1"] = Listener(client, one_by_one(handle))
    for name in ("short", "a", "late", "short", "sudden", "b"):
        await client._ps.parse(message("a", "", b"", name.encode()))
    assert order == ["begin short", "begin a"]
    gate.set()
    await until(lambda: order[-1] == "end b")
    assert order == [
        "begin short", "begin a", "end a", "begin late", "end late", "begin short", "begin sudden", "begin b", "end b",
    ]  # fmt: skip
    assert told == ["a handler that fails later", "a handler that fails"]


async def test_who_fails_before_taking_a_message_does_not_get_it_again() -> None:
    client, told, taken = Client(), list[str](), list[bytes]()

    async def tell(error: Exception) -> None:
        told.append(str(error))

    def take(waiting: Waiting) -> None:
        if waiting[0][1] == b"bad":
            raise RuntimeError("not this one")
        taken.append(waiting.popleft()[1])

    client._error_cb = tell
    client.listeners["1"] = Listener(client, take)
    await client._ps.parse(b"".join(message("a", "", b"", data) for data in (b"1", b"bad", b"2")))
    await until(lambda: taken == [b"1", b"2"])
    assert told == ["not this one"]


async def test_a_handler_may_end_its_own_subscription(bus: Bus) -> None:
    heard: list[bytes] = []
    stops: list[object] = []

    async def once(_subject: str, data: bytes, _reply: str, _headers: Mapping[str, str] | None) -> None:
        heard.append(data)
        await stop()
        stops.append("not cut off before its subscription has ended")

    stop = await bus.subscribe("here", once)
    for data in (b"1", b"2", b"3"):
        await bus.publish("here", data)
    await bus.flush()
    await asyncio.sleep(0.05)
    assert heard == [b"1"]
    assert stops == ["not cut off before its subscription has ended"]


@pytest.mark.parametrize("subscribed", [True, False])
async def test_whatever_the_server_passes_on_ends_no_connection(bus: Bus, server: Stack, subscribed: bool) -> None:
    """White space in a subject, headers that are none, bytes that are no text: a handler's way and the client's own."""
    heard: list[str] = []
    if subscribed:
        await bus.subscribe("said.>", lambda subject, *_: heard.append(subject))
    else:

        async def collect(message: Any) -> None:
            heard.append(message.subject)

        await bus._client.subscribe("said.>", cb=collect)
    await bus.publish("said.first")  # a flush's ping overtakes the subscription: only what comes tells that it is there
    await until(lambda: heard == ["said.first"])
    host, port = server.url.removeprefix("nats://").split(":")
    _, writer = await asyncio.open_connection(host, int(port))
    writer.write(b'CONNECT {"verbose":false,"headers":true}\r\n')
    for subject in (b"said.a\x0bb", b"said.a\x0cb", b"said.\xff"):
        writer.write(b"PUB %b 2\r\nhi\r\n" % subject)
    for header in NO_HEADERS:
        writer.write(b"HPUB said.h %d %d\r\n%b\r\n" % (len(header), len(header), header))
    writer.write(b"PUB said.last 2\r\nhi\r\n")
    await until(lambda: "said.last" in heard)
    writer.close()
    assert heard[1:4] == ["said.a\x0bb", "said.a\x0cb", "said.\ufffd"]
    assert heard[4:] == ["said.h"] * len(NO_HEADERS) + ["said.last"]


async def test_a_call_whose_answer_was_lost_with_the_server_is_made_again(bus: Bus, server: Stack) -> None:
    server.freeze("nats")
    asked = asyncio.create_task(bus.api("STREAM.INFO.EVENTS", timeout_s=2))
    client = bus._client
    await until(lambda: client._resp_map and not client._pending_data_size)  # it is under way
    server.kill("nats")
    await until(lambda: not bus.is_connected)
    server.start_nats()
    assert (await asked)["config"]["name"] == "EVENTS"


async def test_a_call_that_nobody_answers_is_made_once(bus: Bus, server: Stack) -> None:
    server.freeze("nats")
    said = bus._client.stats["out_msgs"]
    with pytest.raises(Unavailable, match=r"INFO.EVENTS did not answer within 0.3 s"):
        await bus.api("STREAM.INFO.EVENTS", timeout_s=0.3)
    assert bus._client.stats["out_msgs"] == said + 1
    server.thaw("nats")


async def test_subscriptions_outlast_a_restart_of_the_server(bus: Bus, server: Stack) -> None:
    heard: list[bytes] = []
    await bus.subscribe("here", lambda _subject, data, *_: heard.append(data))
    server.kill("nats")
    await until(lambda: not bus.is_connected)
    server.start_nats()
    await until(lambda: bus.is_connected)

    async def said() -> bool:
        await bus.publish("here", b"again")
        return bool(heard)

    await until(said)


@pytest.mark.parametrize("subject", ["a b", "a\r\nPUB b 0", "a\tb", ""])
@pytest.mark.parametrize("headers", [None, CREATE_ONLY])
async def test_no_subject_says_a_second_command(bus: Bus, subject: str, headers: dict[str, str] | None) -> None:
    with pytest.raises(Malformed, match="nothing can be published on"):
        await bus.publish(subject, b"", "", headers)
    if subject:
        with pytest.raises(Malformed):
            await bus.publish("here", b"", subject, headers)


FORGED = b"Nats-Subject: audit.sealed.other\r\nNats-Sequence: 99\r\nNats-Time-Stamp: 2001-01-01T00:00:00Z\r\n"
BLOCKS = (
    b"NATS/1.0 503\r\n\r\n",
    b"NATS/1.0 404 No Messages\r\n\r\n",
    b"NATS/1.0\r\nStatus: 413\r\n\r\n",
    b"NATS/1.0\r\n" + FORGED + b"\r\n",
    b"NATS/1.0 204 EOB\r\n" + FORGED + b"\r\n",
    b"NATS/1.0\r\n" + FORGED.rstrip(),
    b"x",
    EXPECTED,
    b"",
)


@pytest.mark.parametrize("block", BLOCKS)
async def test_a_stored_message_is_told_from_a_word_of_the_servers(bus: Bus, block: bytes) -> None:
    """Whatever headers it was published with: they neither end the answer, nor say which message it is."""
    for number in (1, 2, 3):
        name, of_it = f"audit.test.{number}".encode(), block if number == 2 else b""
        op = b"HPUB %s %d %d" % (name, len(of_it), len(of_it) + 2) if of_it else b"PUB %s 2" % name
        bus._client._pending.append(op + b"\r\n" + of_it + b"{}\r\n")
        bus._client._pending_data_size += 1
    await bus.flush()

    async def stored() -> bool:  # the server has them before its stream does
        return await last_seq(bus) == 3

    await until(stored)
    wanted = [(f"audit.test.{number}", number, b"{}") for number in (1, 2, 3)]
    for query in ({"multi_last": ["audit.test.*"], "batch": 9}, {"seq": 1, "batch": 9}):
        found = await bus.direct("EVENTS", query)
        assert [(subject, seq, data) for subject, seq, _, data in found] == wanted
        assert found[0][2] <= found[1][2] <= found[2][2]
    assert (await bus.stored("EVENTS", 2) or ())[0] == "audit.test.2"
    assert await bus.stored("EVENTS", 4) is None


@pytest.mark.parametrize("headers", [None, CREATE_ONLY, {"Nats-Msg-Id": "one"}])
async def test_a_message_is_refused_when_it_is_too_large_with_its_headers(
    bus: Bus, headers: dict[str, str] | None
) -> None:
    """The server counts them, too, and would end the connection: with it all that is under way."""
    most = 1_048_576 - (len(EXPECTED) if headers is CREATE_ONLY else len(b"NATS/1.0\r\nNats-Msg-Id: one\r\n\r\n"))
    most = 1_048_576 if headers is None else most
    with pytest.raises(RemitError, match="over the server's limit"):
        await bus.publish("here", b"x" * (most + 1), "", headers)
    heard: list[int] = []
    await bus.subscribe("here", lambda _subject, data, *_: heard.append(len(data)))
    await bus.publish("here", b"x" * most, "", headers)
    await until(lambda: heard == [most])
    assert bus._client.stats["reconnects"] == 0


async def test_what_a_handler_waited_for_may_be_cancelled(bus: Bus) -> None:
    """That message is lost to the handler, and what waits behind it is not."""
    heard: list[bytes] = []

    async def handle(_subject: str, data: bytes, _reply: str, _headers: Mapping[str, str] | None) -> None:
        heard.append(data)
        if data == b"1":
            other = asyncio.get_running_loop().create_future()
            asyncio.get_running_loop().call_later(0.05, other.cancel)
            await other

    await bus.subscribe("here", handle)
    for data in (b"1", b"2", b"3"):
        await bus.publish("here", data)
    await until(lambda: heard == [b"1", b"2", b"3"])


async def test_many_megabytes_come_in_many_pieces(bus: Bus) -> None:
    heard: list[int] = []
    await bus.subscribe("here", lambda _subject, data, *_: heard.append(len(data)))
    for size in (1_000_000, 0, 1_048_000, 3):
        await bus.publish("here", b"x" * size)
    await until(lambda: len(heard) == 4)
    assert heard == [1_000_000, 0, 1_048_000, 3]


async def test_a_request_that_nobody_waits_for_asks_for_no_work(bus: Bus) -> None:
    """A rebuild, say, would be done for nothing, and end in the answer that has nowhere to go."""
    heard: list[bytes] = []

    async def answer(data: bytes, reply: str) -> None:
        heard.append(data)
        await bus.publish(reply, b"done")

    await bus.serve("test", "1.0.0", {"test.ask": answer})
    await bus.publish("test.ask", b"1")
    assert await bus.request("test.ask", b"2") == b"done"
    assert heard == [b"2"]

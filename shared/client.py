"""nats-py's client with a receiving half of its own; only `shared.bus` knows of it.

Theory of operation. Whoever follows a stream spends more on a message's way through the client (two regular
expressions, an object, a queue, a task) than on what it says. So two things are done here instead of there. The parser
finds a message's line with one search and one split; every line that is no message goes to the client's own parser.
And what was read for one subscription waits in its listener's queue until what comes next is somebody else's, or
nothing: then the listener's handler takes it from there, all in one call. A handler that has something to wait for
returns it: that is awaited in a task, and what comes meanwhile waits behind it, so that one message is handled at a
time, in order. Requests, buckets, objects and micro services take the client's own way.
"""

import asyncio
import contextlib
import importlib
import re
import sys
from collections import deque
from collections.abc import Awaitable, Callable, Iterator, Mapping
from functools import cached_property
from typing import Any

from shared.waiting import wait_for


@contextlib.contextmanager
def _left_out(*names: str) -> Iterator[None]:
    """These modules cannot be imported in here, unless they are already."""
    missing = [name for name in names if name not in sys.modules]
    for name in missing:
        sys.modules[name] = None  # type: ignore[assignment]  # not to be found
    try:
        yield
    finally:
        for name in missing:
            del sys.modules[name]


# nats-py wants these for WebSockets alone and does without them. They are two thirds of its import, and every command
# and every service imports it; `Client.use_websockets` brings them when a URL asks for it.
WEBSOCKETS = ("aiohttp", "multidict")
with _left_out(*WEBSOCKETS):
    import nats.aio.client
    import nats.aio.subscription
    import nats.aio.transport
    import nats.errors
    import nats.js.errors
    import nats.protocol.parser

# Before Python 3.12 `asyncio.wait_for` drops a cancellation, or the end of an `asyncio.timeout` around it, when what it
# waits for comes in the same turn of the loop: often, where answers come fast. What was to end goes on, and nobody
# cancels twice. nats-py waits with it for all that it waits for, so it is mended where everybody looks it up.
if sys.version_info < (3, 12):
    asyncio.wait_for = asyncio.tasks.wait_for = wait_for  # type: ignore[assignment]

__all__ = ["CREATE_ONLY", "Client", "Handler", "Listener", "Message", "Take", "Waiting", "nats", "one_by_one"]

# Subject, data, reply subject, headers (None when there are none).
Message = tuple[str, bytes, str, Mapping[str, str] | None]
# What a subscription's handler gets of a message.
Handler = Callable[[str, bytes, str, Mapping[str, str] | None], Awaitable[object] | None]
# What a listener has not handled yet, and a handler that takes from its left: as many as it can, up to one that has
# something to wait for.
Waiting = deque[Message]
Take = Callable[[Waiting], Awaitable[object] | None]

# Every append of a fact carries this one header: the subject must be free (docs/theory.md).
CREATE_ONLY = {"Nats-Expected-Last-Subject-Sequence": "0"}
# What the server keeps with each create-only append and hands out again; nobody needs to read it, or to write it anew.
_EXPECTED_HEADER = b"NATS/1.0\r\nNats-Expected-Last-Subject-Sequence: 0\r\n\r\n"
_EXPECTED_SIZE = str(len(_EXPECTED_HEADER))
_CRLF = b"\r\n"


class Headers(Mapping[str, str]):
    """A message's headers: the block of bytes as it came, read when somebody asks for a name.

    What is no header is none: the server passes on whatever somebody called one.
    """

    def __init__(self, raw: bytes) -> None:
        self.raw = raw

    @cached_property
    def _told(self) -> dict[str, str]:
        first, _, lines = self.raw.partition(_CRLF)
        version, _, word = first.partition(b" ")
        found: dict[str, str] = {}
        if version == b"NATS/1.0" and word:  # the server's own word: a number, and what it means
            status, text = word[:3].strip().decode(errors="replace"), word[4:].decode(errors="replace")
            found |= {"Status": status} if status.isdigit() else {}
            found |= {"Description": text} if text else {}
        found |= nats.aio.client.Client._parse_header_lines(lines)
        return found

    def __getitem__(self, name: str) -> str:
        return self._told[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._told)

    def __len__(self) -> int:
        return len(self._told)


_EXPECTED = Headers(_EXPECTED_HEADER)
CONTROL_LINE_BYTES_MAX = 4096  # the server's default: it ends the connection of whoever says a longer one
_white_space = re.compile(r"[ \t\r\n]").search  # in a subject it would end the line, and begin another command


def _too_long(subject: str, reply: str) -> bool:
    """Whether no line of the protocol can hold these; what else stands on it is short."""
    if len(subject) + len(reply) < CONTROL_LINE_BYTES_MAX // 8:
        return False
    return len(subject.encode(errors="replace")) + len(reply.encode(errors="replace")) > CONTROL_LINE_BYTES_MAX - 64


def _block_size(headers: Mapping[str, str]) -> int:
    """How many bytes these headers are on the wire."""
    lines = sum(len(name.encode()) + len(value.encode()) + 4 for name, value in headers.items())
    return len(b"NATS/1.0\r\n") + lines + len(_CRLF)


def _as_six(words: list[str]) -> list[str]:
    """The words of a message's line, and those that it may leave out: a reply subject, the size of its headers."""
    op, *rest = words
    if op == "MSG":
        rest.insert(-1, "0")
    if len(rest) == 4:
        rest.insert(2, "")
    if len(rest) != 5:
        raise _malformed()
    return [op, *rest]


def _number(sid: str) -> int:
    if not (sid.isascii() and sid.isdigit()):
        raise _malformed()
    return int(sid)


def _malformed() -> Exception:
    error: Exception = nats.errors.ProtocolError("nats: malformed message line")
    return error


def one_by_one(handler: Handler) -> Take:
    """A handler of messages as one of all that waits."""

    def take(waiting: Waiting) -> Awaitable[object] | None:
        done: Awaitable[object] | None = None
        while waiting and done is None:
            done = handler(*waiting.popleft())
        return done

    return take


class Listener:
    """One subscription's handler, and what waits for it."""

    def __init__(self, client: "Client", take: Take) -> None:
        self._client = client
        self._take = take
        self.waiting: Waiting = deque()
        self._task: asyncio.Task[None] | None = None
        self._stopped = False

    def hear(self) -> None:
        """Have what waits handled, unless a message is in hand: then that is done behind it."""
        if self._task is None:
            done = self._next()
            if done is not None:
                self._task = asyncio.ensure_future(self._finish(done))

    def _next(self) -> Awaitable[object] | None:
        """Handle what waits up to the first message that there is something to wait for."""
        done: Awaitable[object] | None = None
        while self.waiting and done is None:
            before = len(self.waiting)
            try:
                done = self._take(self.waiting)
            except Exception as error:
                done = self._client.tell(error)
            if len(self.waiting) == before:
                self.waiting.popleft()  # who fails over a message before taking it does not get it again, for ever
        return done

    async def _finish(self, done: Awaitable[object] | None) -> None:
        """Wait for what a handler began, then for all that has come meanwhile."""
        try:
            while done is not None:
                try:
                    await done
                except asyncio.CancelledError:
                    task = asyncio.current_task()
                    if self._stopped or (task is not None and task.cancelling()):
                        raise
                    # What the handler waited for was cancelled, and not this: what waits behind it still comes.
                    await self._client.tell(RuntimeError("a handler ended as what it waited for was cancelled"))
                except Exception as error:
                    await self._client.tell(error)
                done = None if self._stopped else self._next()
        finally:
            self._task = None

    def stop(self) -> None:
        """Handle no more; a handler that is under way is cut off."""
        self._stopped = True
        self.waiting.clear()
        if self._task is not None:
            self._task.cancel()


class _Parser(nats.protocol.parser.Parser):  # type: ignore[misc]
    """Messages by one search and one split; all else by the client's own parser, a line at a time."""

    _resets = 0

    def __init__(self, client: "Client") -> None:
        super().__init__(client)
        self._client = client

    def reset(self) -> None:
        super().reset()
        self._parts: list[bytes] = []  # what came of a message, or of a line, whose end has not
        self._came = 0
        self._needed = 0
        self._resets += 1

    async def parse(self, data: bytes = b"") -> None:
        if self._parts:
            # A large payload comes in many pieces, which are joined once.
            self._parts.append(data)
            self._came += len(data)
            if self._came < self._needed:
                return
            data = b"".join(self._parts)
            self._parts = []
        client, resets = self._client, self._resets
        listeners = client.listeners
        heard: Listener | None = None  # whose the last message was: it has not been handled yet
        find, at, end, needed = data.find, 0, len(data), 0
        try:
            while (line_end := find(_CRLF, at)) >= 0:
                # By the space alone: a subject may hold any other white space, and the client's own pattern ends at it.
                line = data[at:line_end]
                try:
                    words = line.decode().split(" ")
                except UnicodeDecodeError:
                    words = line.decode(errors="replace").split(" ")
                if len(words) == 6 and words[0] == "HMSG":  # nearly all that a stream is read with
                    pass
                elif words[0] == "HMSG" or words[0] == "MSG":
                    words = _as_six(words)
                else:
                    if heard is not None:
                        heard.hear()
                        heard = None
                    await super().parse(data[at : line_end + 2])
                    if self._resets != resets:
                        return  # the connection is over, and with it what came over it
                    if self.buf:
                        raise nats.errors.ProtocolError("nats: unknown protocol")
                    at = line_end + 2
                    continue
                _, subject, sid, reply, header_size, size = words
                head = line_end + 2
                try:
                    begin, tail = head + int(header_size), head + int(size)
                except ValueError:
                    raise _malformed() from None
                if begin < head or tail < begin:
                    raise _malformed()
                if tail + 2 > end:
                    needed = tail + 2 - at
                    break
                listener = listeners.get(sid)
                if listener is not heard:
                    if heard is not None:
                        heard.hear()
                    heard = listener
                if listener is None:
                    # Of a subscription of the client's own: its inbox for answers, or a service's.
                    raw = line.split(b" ")
                    to = raw[3] if reply else b""
                    await client._process_msg(_number(sid), raw[1], to, data[begin:tail], data[head:begin])
                    if self._resets != resets:
                        return
                elif header_size == _EXPECTED_SIZE and data.startswith(_EXPECTED_HEADER, head):
                    listener.waiting.append((subject, data[begin:tail], reply, _EXPECTED))
                else:
                    headers = Headers(data[head:begin]) if begin > head else None
                    listener.waiting.append((subject, data[begin:tail], reply, headers))
                at = tail + 2
        finally:
            if heard is not None:
                heard.hear()
        if at < end:
            self._parts = [data[at:]]
            self._came = end - at
            self._needed = needed or self._came + 1


class Client(nats.aio.client.Client):  # type: ignore[misc]
    """The client. It neither parses nor builds the one header that nearly every message carries; and what the server
    stores without complaint (a subject that is no UTF-8, a header that is none) does not end its read loop.
    """

    def __init__(self) -> None:
        super().__init__()
        self.listeners: dict[str, Listener] = {}  # by the id of its subscription, as the server says it
        self._ps = _Parser(self)

    @staticmethod
    def micro() -> Any:
        """The client's module of micro services: a third of what is left of its import, and only agents answer."""
        return importlib.import_module("nats.micro")

    @staticmethod
    def use_websockets() -> None:
        for name in WEBSOCKETS:
            setattr(nats.aio.transport, name, importlib.import_module(name))

    async def listen(self, subject: str, queue: str, take: Take) -> Callable[[], Awaitable[None]]:
        """Subscribe, also over reconnections; the result ends it."""
        if self.is_closed:
            raise nats.errors.ConnectionClosedError
        self._sid += 1
        sid = self._sid
        subscription = nats.aio.subscription.Subscription(self, sid, subject, queue=queue)
        listener = Listener(self, take)
        self._subs[sid] = subscription  # by it the client subscribes again after a reconnection
        self.listeners[str(sid)] = listener
        await self._send_subscribe(subscription)

        async def stop() -> None:
            self.listeners.pop(str(sid), None)
            try:
                with contextlib.suppress(nats.errors.Error):
                    await subscription.unsubscribe()
            finally:
                listener.stop()  # last: it may be this listener's own handler that asks for it

        return stop

    async def tell(self, error: Exception) -> None:
        """What a handler raised goes where the client's own errors go."""
        await self._error_cb(error)

    async def flush(self, timeout: int = 10) -> None:  # noqa: ASYNC109 (the client's own name)
        """All that was said has reached the server. The client's ping alone would overtake what waits to be sent."""
        if self._pending_data_size and self.is_connected:
            await self._flush_pending(force_flush=True)
        await super().flush(timeout)

    async def publish(
        self, subject: str, payload: bytes = b"", reply: str = "", headers: dict[str, str] | None = None
    ) -> None:
        """As the client's own; what nearly every message is, an append or an ack, takes a shorter way."""
        if not subject or _white_space(subject) or _white_space(reply) or _too_long(subject, reply):
            raise nats.errors.BadSubjectError
        size = len(payload)
        if headers is not None:
            # The server counts them, and ends the connection of whoever sends more: the client's own way does not look.
            size += len(_EXPECTED_HEADER) if headers is CREATE_ONLY else _block_size(headers)
        if (headers is not None and headers is not CREATE_ONLY) or not self.is_connected or self.is_draining:
            if size > self._max_payload:
                raise nats.errors.MaxPayloadError
            await super().publish(subject, payload, reply, headers)
            return
        if size > self._max_payload:
            raise nats.errors.MaxPayloadError
        if headers is None:
            message = b"%b%b\r\n" % (f"PUB {subject} {reply} {size}\r\n".encode(), payload)
        else:
            line = f"HPUB {subject} {reply} {len(_EXPECTED_HEADER)} {size}\r\n"
            message = b"%b%b%b\r\n" % (line.encode(), _EXPECTED_HEADER, payload)
        self.stats["out_msgs"] += 1
        self.stats["out_bytes"] += size
        self._pending.append(message)
        self._pending_data_size += len(message)
        if self._pending_data_size > self._max_pending_size > 0:
            await self._flush_pending(force_flush=True)
        elif self._flush_queue.empty():
            await self._flush_pending()

    async def _process_headers(self, headers: bytes) -> dict[str, str] | None:
        return dict(Headers(headers)) if headers else None

    def _build_message(
        self, sid: int, subject: bytes, reply: bytes, data: bytes, headers: dict[str, str] | None
    ) -> Any:
        return self.msg_class(
            subject=subject.decode(errors="replace"),
            reply=reply.decode(errors="replace"),
            data=data,
            headers=headers,
            _client=self,
            _sid=sid,
        )

"""Saying facts: create-only appends that are repeated until the stream has answered.

Theory of operation. Every fact goes out with `Nats-Expected-Last-Subject-Sequence: 0`, so the server stores it at
most once, whoever repeats it. All acks come back on one wildcard inbox, told apart by their last token: no future
and no subscription per message. What has no ack after a while, or was under way when the connection broke, is sent
again: an ack that is missing says nothing, and 10071 on the second try means that the first one was stored. What is
not create-only (a goal) carries an id, so that the second try does not become a second run.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping

import msgspec

from shared.bus import CREATE_ONLY as CREATE_ONLY
from shared.bus import Bus
from shared.errors import UNREADABLE, AlreadySaid, RemitError, Unavailable

log = logging.getLogger("remit.append")

ALREADY_SAID = 10071
TOO_LARGE = 10054
WINDOW = 4096  # appends without an ack; more would only wait in the socket
SWEEP_S = 0.5
RESEND_SWEEPS = 4


class _AckError(msgspec.Struct):
    err_code: int = 0
    description: str = ""


class _Ack(msgspec.Struct):
    """What a stream answers to a message: its own name and the message's sequence, or why it did not take it."""

    stream: str = ""
    seq: int = 0
    error: _AckError | None = None


class NotTaken(Unavailable):
    """The stream has answered, and has not stored the message."""


async def append_once(
    bus: Bus, stream: str, subject: str, data: bytes, *, headers: dict[str, str] | None = None
) -> int:
    """Publish one message and wait for the stream's answer: its sequence, 0 when a create-only subject was taken.

    `NotTaken` when the stream refuses it. Any other `Unavailable`: it may be stored or not, and nothing is repeated.
    """
    try:
        ack = msgspec.json.decode(await bus.request(subject, data, headers=headers), type=_Ack)
    except UNREADABLE as error:
        raise Unavailable(f"somebody else than the stream {stream} has answered on {subject}") from error
    if ack.error is not None and ack.error.err_code == ALREADY_SAID:
        return 0
    if ack.error is not None:
        raise NotTaken(f"the stream did not take it: {ack.error.description}")
    if ack.stream != stream or not ack.seq:
        raise Unavailable(f"somebody else than the stream {stream} has answered on {subject}")
    return ack.seq


# What the stream answered: the sequence, or 0 when the subject had been taken before.
# It may return an awaitable (a publish of the work queue's ack), which is then awaited: acks are heard one at a time,
# so it must not wait for an append of its own.
Then = Callable[[int], Awaitable[object] | None]


class _Pending(msgspec.Struct):
    subject: str
    data: bytes
    sent: int  # in sweeps: a clock is not asked for each message
    then: Then | None
    headers: dict[str, str] | None


class Appender:
    """Appends over one connection, in the order in which they were said."""

    def __init__(self, bus: Bus, *, window: int = WINDOW) -> None:
        self._bus = bus
        self._window = window
        self._prefix = bus.inbox()
        self._pending: dict[str, _Pending] = {}
        self._number = 0
        self._sweeps = 0
        self._room = asyncio.Event()
        self._room.set()
        self._sweeper: asyncio.Task[None] | None = None
        self._decode = msgspec.json.Decoder(_Ack).decode
        self.already_said = 0

    async def start(self) -> "Appender":
        await self._bus.subscribe(f"{self._prefix}.*", self._acked)
        self._bus.on_reconnected(self._resend_all)
        self._sweeper = asyncio.create_task(self._sweep())
        return self

    async def say(
        self, subject: str, data: bytes, then: Then | None = None, *, headers: dict[str, str] | None = CREATE_ONLY
    ) -> None:
        """Append without waiting for the ack; `then(seq)` is called when it has come."""
        while len(self._pending) >= self._window:
            self._room.clear()
            await self._room.wait()
        self._number += 1
        token = str(self._number)
        reply = f"{self._prefix}.{token}"
        if headers is None:
            headers = {"Nats-Msg-Id": reply}  # of this process and this message; it need only outlast the repetitions
        self._pending[token] = _Pending(subject, data, self._sweeps, then, headers)
        try:
            await self._bus.publish(subject, data, reply, headers)
        except Unavailable as error:
            log.info("%s waits for the connection: %s", subject, error)  # it is pending, and said when there is one
        except RemitError:
            del self._pending[token]  # it can never be said; who said it is told, and nothing repeats it
            raise

    async def append(self, subject: str, data: bytes, *, headers: dict[str, str] | None = CREATE_ONLY) -> int:
        """Append and wait: the message's sequence. `AlreadySaid` when the subject was taken."""
        done: asyncio.Future[int] = asyncio.get_running_loop().create_future()

        def settle(seq: int) -> None:
            if not done.done():
                done.set_result(seq)

        await self.say(subject, data, settle, headers=headers)
        seq = await done
        if seq == 0:
            raise AlreadySaid(f"{subject} was said before")
        return seq

    async def drain(self, timeout_s: float = 10.0) -> None:
        """Wait until everything said has its ack; RemitError when some has none in time."""
        end_s = asyncio.get_running_loop().time() + timeout_s
        while self._pending:
            if asyncio.get_running_loop().time() > end_s:
                raise RemitError(f"{len(self._pending)} facts have no ack after {timeout_s:g} s")
            await asyncio.sleep(0.005)

    def stop(self) -> None:
        if self._sweeper:
            self._sweeper.cancel()

    def _acked(
        self, subject: str, data: bytes, _reply: str, headers: Mapping[str, str] | None
    ) -> Awaitable[object] | None:
        token = subject[len(self._prefix) + 1 :]
        pending = self._pending.get(token)
        if pending is None:
            return None  # the ack of a first try whose second was answered already
        seq = 0
        if headers and "Status" in headers:
            return None  # 503: no stream took it (the server is starting); the sweep sends it again
        ack = self._decode(data)
        if ack.error is None:
            seq = ack.seq
        elif ack.error.err_code == ALREADY_SAID:
            self.already_said += 1
        elif ack.error.err_code == TOO_LARGE:
            log.error("%s is too large for the stream and was dropped", pending.subject)
        else:
            # 10164 (a write in flight on R3), no quorum, a full disk: ambiguous or passing. Sent again by the sweep.
            log.warning("%s: %s (%d); trying again", pending.subject, ack.error.description, ack.error.err_code)
            return None
        return self._settle(token, pending, seq)

    def _settle(self, token: str, pending: _Pending, seq: int) -> Awaitable[object] | None:
        del self._pending[token]
        if not self._room.is_set() and len(self._pending) < self._window:
            self._room.set()
        return pending.then(seq) if pending.then else None

    async def _sweep(self) -> None:
        while True:
            await asyncio.sleep(SWEEP_S)
            self._sweeps += 1
            if self._pending and self._bus.is_connected:
                await self._resend(said_before=self._sweeps - RESEND_SWEEPS)

    async def _resend_all(self) -> None:
        await self._resend(said_before=self._sweeps)

    async def _dropped(self, token: str, pending: _Pending) -> None:
        try:
            then = self._settle(token, pending, 0)
            if then is not None:
                await then
        except RemitError as error:
            log.error("%s: what follows it failed: %s", pending.subject, error)

    async def _resend(self, said_before: int) -> None:
        for token, pending in list(self._pending.items()):
            if token in self._pending and pending.sent <= said_before:
                try:
                    await self._bus.publish(pending.subject, pending.data, f"{self._prefix}.{token}", pending.headers)
                except Unavailable:
                    return  # the connection broke meanwhile; the next one has all of it said again
                except RemitError as error:
                    # The server that answers now takes less than the one before: as when the stream itself refuses.
                    log.error("%s can never be said, and was dropped: %s", pending.subject, error)
                    await self._dropped(token, pending)
                    continue
                pending.sent = self._sweeps

"""Reading streams: one pull loop that survives a server restart, and a fold's reader built on it.

Theory of operation. A pull request is always outstanding: the next one goes out when half of the last is used up,
and every request has a reply subject of its own, so that a status (404, 408, 409, 503) ends just that request.
Requests are served in order, so an arriving message is counted against the oldest one. A server that has a request
sends a heartbeat each second: when nothing at all has come for `SILENCE_S`, or the connection was made anew, all
requests are given up and one new request is sent.

A `Puller` serves a durable work queue (explicit acks). A `Reader` follows a whole stream in order for a fold, with an
ephemeral consumer that needs no acks: it checks that no sequence is missing and starts again behind the last one it
has seen when one is, or when the consumer is gone.
"""

import asyncio
import itertools
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

import msgspec

from shared.bus import REQUEST_TIMEOUT_S, ApiError, Bus, StreamMissing
from shared.client import Message, Take, Waiting
from shared.errors import RemitError, Unavailable
from shared.streams import standing

log = logging.getLogger("remit.pull")

EXPIRES_S = 5
HEARTBEAT_S = 1
SILENCE_S = 2.5
NS = 1_000_000_000
# Of one request, and two are open at most. The server ends a connection that 64 MB wait for, and all over it.
BYTES = 16_000_000
CONSUMER_GONE_S = 300  # how long the server keeps a reader's consumer that nobody pulls
RETRY_S = 0.25
AGAIN_S = 2.0  # a stream without a leader does not answer, nor does a consumer that was put on a node that has died
# A node of a cluster that was the leader and does not know yet that it is not tells an old end. A store that was cut
# goes on telling it.
SHORT_MOST = 8

_names = itertools.count(1)


class Delivery(msgspec.Struct):
    """One message of a work queue. `delivered` counts from 1; more means that somebody had it and did not finish."""

    subject: str
    data: bytes
    reply: str
    seq: int
    at_ns: int
    delivered: int


def stamps(reply: str) -> list[str]:
    """What a JetStream reply subject says: the last six are consumer, delivered, seq, consumer seq, time, pending.

    `$JS.ACK.<stream>.<consumer>.<delivered>.<seq>.<consumer seq>.<time>.<pending>`; the longer form has the domain and
    the account's hash before the stream, and a random token behind all, which is left out here.
    """
    parts = reply.split(".")
    return parts if len(parts) == 9 else parts[:11]


def _is_word(message: Message) -> bool:
    """Whether this is the server's word on a request, and no message of the stream."""
    _, _, reply, headers = message
    return not reply.startswith("$JS.ACK") and headers is not None and "Status" in headers


class _Pulls:
    """The outstanding pull requests of one consumer. `take` leaves the server's words to it."""

    def __init__(self, bus: Bus, stream: str, consumer: str, batch: int, take: Take):
        self._bus = bus
        self._subject = f"$JS.API.CONSUMER.MSG.NEXT.{stream}.{consumer}"
        self._batch = batch
        self._take = take
        self._enough = batch // 2  # with fewer still to come, more are asked for
        self._open: dict[str, int] = {}  # reply subject -> messages still to come, oldest first
        self._came_since = 0  # what came and is not yet counted in `_open`: that is done when `_next_look` have come
        self._next_look = 1
        self._prefix = bus.inbox()
        self._numbers = itertools.count(1)
        self._quiet = 0  # ticks of RETRY_S since anything came
        self._busy = False  # what came has its handler at work, and what comes meanwhile waits: that is no silence
        self._again = False
        self._stop: Callable[[], Awaitable[None]] | None = None
        self._forget: Callable[[], None] | None = None
        self._watch: asyncio.Task[None] | None = None
        self.gone = asyncio.Event()
        self.paused = False

    async def start(self) -> None:
        self._stop = await self._bus.subscribe_all(f"{self._prefix}.*", self._came)
        self._forget = self._bus.on_reconnected(self.restart)
        self._watch = asyncio.create_task(self._listen())
        await self._ask()

    async def stop(self) -> None:
        if self._watch:
            self._watch.cancel()
        if self._forget:
            self._forget()
        stop, self._stop = self._stop, None
        if stop:
            await stop()

    async def restart(self) -> None:
        """Give up every request and send a new one."""
        self._open.clear()
        self._came_since = 0
        await self._ask()

    async def pause(self, paused: bool) -> None:
        """Ask for no more while paused; what was asked for still comes."""
        if paused == self.paused:
            return
        self.paused = paused
        self._count()
        if not paused and sum(self._open.values()) <= self._enough:
            await self._ask()

    async def _ask(self) -> None:
        self._again = False
        if self.paused or self._stop is None:
            return
        reply = f"{self._prefix}.{next(self._numbers)}"
        self._open[reply] = self._batch
        self._count()
        self._quiet = 0
        body = {
            "batch": self._batch,
            "max_bytes": max(BYTES, 2 * self._bus.max_payload),  # what is larger than this would never come
            "expires": EXPIRES_S * NS,
            "idle_heartbeat": HEARTBEAT_S * NS,
        }
        try:
            await self._bus.publish(self._subject, msgspec.json.encode(body), reply)
        except Unavailable:
            self._again = True  # `_listen` asks when there is a connection

    def _came(self, waiting: Waiting) -> Awaitable[object] | None:
        # Not a coroutine: few of the messages that come have something to wait for.
        self._quiet = 0
        before = len(waiting)
        try:
            done = self._take(waiting)
        finally:
            self._came_since += before - len(waiting)
        if done is None and waiting:
            subject, _, _, headers = waiting.popleft()
            assert headers is not None
            return self._told(subject, headers["Status"], headers.get("Description", ""))
        if self._came_since >= self._next_look:
            self._count()
            if self._wants_more():
                return self._in_hand(done, ask=True)
        return done if done is None else self._in_hand(done)

    def _count(self) -> None:
        """Take what has come from the requests, the oldest first, and see when the next one may be wanted."""
        for reply, left in list(self._open.items()):
            taken = min(left, self._came_since)
            self._came_since -= taken
            if taken < left:
                self._open[reply] = left - taken
                break
            del self._open[reply]
        self._came_since = 0
        oldest = next(iter(self._open.values()), 0)
        self._next_look = oldest if len(self._open) > 1 else oldest - self._enough

    def _wants_more(self) -> bool:
        return len(self._open) < 2 and sum(self._open.values()) <= self._enough

    async def _in_hand(self, done: Awaitable[object] | None, *, ask: bool = False) -> None:
        self._busy = True
        try:
            if ask:
                await self._ask()  # before the work, so that the next messages are under way meanwhile
        finally:
            try:
                if done is not None:
                    await done  # whatever becomes of the question, this message is in hand
            finally:
                self._busy, self._quiet = False, 0

    async def _told(self, request: str, status: str, text: str) -> None:
        """The server's word on one request: a heartbeat, or its end."""
        self._count()
        if status != "100":
            self._open.pop(request, None)
            self._count()
        text = text.lower()
        if status == "409" and "deleted" in text:
            self.gone.set()
        elif status in ("404", "503") or (status == "409" and "maxbytes" not in text):
            # No responders while the server starts or the consumer is unknown: not in a tight loop.
            self._again = True
        elif self._wants_more():
            await self._ask()  # it has brought what it may, or its time is over; or what came before was not looked at

    async def _listen(self) -> None:
        while True:
            await asyncio.sleep(RETRY_S)
            self._quiet += 1
            if not self._bus.is_connected or self.paused or self._busy:
                continue
            silent = bool(self._open) and self._quiet * RETRY_S > SILENCE_S
            if silent or not self._open or self._again:
                if silent:
                    log.debug("%s is silent; asking again", self._subject)
                    self.gone.set()  # a reader then looks whether its consumer is still there
                await self.restart()


class Puller:
    """A work queue: deliveries of a durable consumer, to be acked when they are done."""

    def __init__(
        self, bus: Bus, stream: str, durable: str, handler: Callable[[Delivery], Awaitable[None] | None], *, batch: int
    ) -> None:
        self._bus = bus
        self._handler = handler
        self._pulls = _Pulls(bus, stream, durable, batch, self._take)

    async def start(self) -> "Puller":
        await self._pulls.start()
        return self

    async def stop(self) -> None:
        await self._pulls.stop()

    async def pause(self, paused: bool) -> None:
        """Take no more work while paused."""
        await self._pulls.pause(paused)

    async def ack(self, delivery: Delivery) -> None:
        """Done: not delivered again (unless the server is killed first; then the create-only append refuses it)."""
        await self._bus.publish(delivery.reply)

    async def in_progress(self, delivery: Delivery) -> None:
        """Still at it: the lease of `ack_wait` starts anew."""
        await self._bus.publish(delivery.reply, b"+WPI")

    async def give_back(self, delivery: Delivery, delay_s: float = 0.0) -> None:
        """Not done: deliver again after `delay_s`."""
        body = b"-NAK " + msgspec.json.encode({"delay": int(delay_s * NS)}) if delay_s else b"-NAK"
        await self._bus.publish(delivery.reply, body)

    def _take(self, waiting: Waiting) -> Awaitable[None] | None:
        done: Awaitable[None] | None = None
        while waiting and done is None and not _is_word(waiting[0]):
            subject, data, reply, _ = waiting.popleft()
            said = stamps(reply)
            done = self._handler(Delivery(subject, data, reply, int(said[-4]), int(said[-2]), int(said[-5])))
        return done


# What a fold's reader hands over: subject, sequence, stamp in nanoseconds, data.
OnMessage = Callable[[str, int, int, bytes], Awaitable[None] | None]


class Gone(RemitError):
    """Messages that are wanted are not in the stream any more: `first` to `last` of them."""

    def __init__(self, stream: str, first: int, last: int, way_out: str = "") -> None:
        messages = f"message {first} is" if first == last else f"messages {first} to {last} are"
        text = f"{messages} not in {stream} any more, which begins with {last + 1}"
        super().__init__(f"{text}; {way_out}" if way_out else text)
        self.first, self.last = first, last


class Reader:
    """Every message of a stream (or of some of its subjects), once, in order, from `start_seq` on, for ever.

    With `whole` it fails with `Gone` where the stream lacks a message, so that nothing is folded over a hole; without
    it, the next one that there is follows. `headers` are those of the message that the handler has in hand.
    """

    def __init__(
        self,
        bus: Bus,
        stream: str,
        handler: OnMessage,
        *,
        start_seq: int = 1,
        subjects: Sequence[str] | None = None,
        batch: int = 1024,
        whole: bool = False,
    ) -> None:
        self._bus = bus
        self._stream = stream
        self._handler = handler
        self._whole = whole
        self.headers: Mapping[str, str] | None = None
        self._subjects = list(subjects) if subjects is not None else None
        self._batch = batch
        self.position = start_seq - 1
        self._pulls: _Pulls | None = None
        self._consumer = ""
        self._acks = ""  # how the reply subjects of its messages begin, but where they name a domain
        self._keeper: asyncio.Task[None] | None = None
        self._forget: Callable[[], None] | None = None
        self._ahead = 0  # how much higher a message's sequence is than its number among those of the consumer
        self._patience_s = REQUEST_TIMEOUT_S
        self._created = ""
        self._short = 0  # times in a row that the stream was said to end before our position
        self._stopped = False
        self._at_rest = asyncio.Event()  # no message is in the handler's hand
        self._at_rest.set()
        self._failure: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def start(self) -> "Reader":
        await self._open()
        self._patience_s = AGAIN_S
        self._forget = self._bus.on_reconnected(self._reconnected)
        self._keeper = asyncio.create_task(self._keep())
        return self

    async def stop(self) -> None:
        self._stopped = True
        if self._keeper:
            self._keeper.cancel()
        if self._forget:
            self._forget()
        if self._pulls:
            await self._pulls.stop()
        if self._consumer and self._bus.is_connected:
            try:
                await self._bus.api(f"CONSUMER.DELETE.{self._stream}.{self._consumer}", timeout_s=1)
            except RemitError as error:
                log.debug("the reader's consumer is left to its timeout: %s", error)

    async def _open(self) -> None:
        """A new consumer right behind the last message seen."""
        if self._pulls:
            self._consumer = self._acks = ""  # what still comes of the old one is left out: the new one brings it again
            # The end of a subscription cuts its handler off, and a message that was begun has to be folded to its end.
            await self._at_rest.wait()
            await self._pulls.stop()
            self._pulls = None
        await self._check_stream()
        config = self._config()
        body = {"stream_name": self._stream, "config": config}
        await self._bus.api(f"CONSUMER.CREATE.{self._stream}.{config['name']}", body, timeout_s=self._patience_s)
        self._consumer = config["name"]
        self._acks = f"$JS.ACK.{self._stream}.{self._consumer}"
        self._ahead = self.position
        self._pulls = _Pulls(self._bus, self._stream, self._consumer, self._batch, self._take)
        await self._pulls.start()

    async def _check_stream(self) -> None:
        """Raise `StreamMissing` when this is not the stream that was read so far: a store that was lost or cut."""
        created, end = await standing(self._bus, self._stream, timeout_s=self._patience_s)
        if not self._created:
            self._created = created
        elif created != self._created:
            raise StreamMissing(f"{self._stream} was made anew on {created}; its events are others")
        elif end < self.position:
            self._short += 1
            cut = f"{self._stream} ends at {end}, before event {self.position}"
            raise StreamMissing(cut) if self._short > SHORT_MOST else Unavailable(cut)
        self._short = 0

    def _config(self) -> dict[str, Any]:
        name = self._bus.inbox().rsplit(".", 1)[-1]
        config: dict[str, Any] = {
            "name": f"reader-{name}-{next(_names)}",
            "deliver_policy": "by_start_sequence",
            "opt_start_seq": self.position + 1,
            "ack_policy": "none",
            "mem_storage": True,
            "num_replicas": 1,
            "inactive_threshold": CONSUMER_GONE_S * NS,
            "max_waiting": 16,
        }
        if self._subjects is not None:
            config["filter_subjects"] = self._subjects
        return config

    def _take(self, waiting: Waiting) -> Awaitable[None] | None:
        acks, handler, failed = self._acks, self._handler, self._failure.done
        while waiting:
            subject, data, reply, headers = message = waiting.popleft()
            said = reply.rsplit(".", 5)
            if said[0] != acks:
                if _is_word(message):
                    waiting.appendleft(message)
                    return None
                said = stamps(reply)[-6:]
                if len(said) < 6 or said[0] != self._consumer:
                    continue  # a late message of the consumer before, or a stranger's
            if failed():
                continue  # nothing must be folded over a hole
            seq = int(said[2])
            if seq != self.position + 1:
                # The consumer numbers what it delivers without gaps, whatever its filter: a gap is a lost message.
                if int(said[3]) != self.position - self._ahead + 1:
                    if self._pulls:
                        self._pulls.gone.set()
                    continue
                if self._whole:
                    self._fail(Gone(self._stream, self.position + 1, seq - 1))
                    continue
                self._ahead = seq - int(said[3])
            self.position, self.headers = seq, headers
            try:
                done = handler(subject, seq, int(said[4]), data)
            except Exception as error:
                self._fail(error)
                raise
            if done is not None:
                self._at_rest.clear()
                return self._watched(done)
        return None

    async def _watched(self, done: Awaitable[None]) -> None:
        try:
            await done
        except asyncio.CancelledError:
            if not self._stopped:
                self._fail(RemitError(f"message {self.position} of {self._stream} was cut off in its handler's hand"))
            raise
        except Exception as error:
            self._fail(error)
            raise
        finally:
            self._at_rest.set()

    def _fail(self, error: Exception) -> None:
        if not self._failure.done():
            self._failure.set_exception(error)
            self._failure.exception()  # seen: where nobody waits for it, asyncio need not complain at the end

    async def failed(self) -> None:
        """Wait until reading cannot go on, and raise why.

        The handler raised: an event that was not folded must not be passed over. Or the stream is another one than
        that which was read: what was made of it is no state of the new one.
        """
        await asyncio.shield(self._failure)

    async def until(self, done: asyncio.Event, within_s: float | None = None) -> bool:
        """Wait until `done` is set, or for so long; whether it is. Raises as `failed` does."""
        came = asyncio.create_task(done.wait())
        either: set[asyncio.Future[Any]] = {self._failure, came}
        try:
            await asyncio.wait(either, timeout=within_s, return_when=asyncio.FIRST_COMPLETED)
            if self._failure.done():
                self._failure.result()
        finally:
            came.cancel()
        return done.is_set()

    async def _reconnected(self) -> None:
        # What was under way is lost, as nothing was acked; the consumer may be lost, too.
        if self._pulls:
            self._pulls.gone.set()

    async def _keep(self) -> None:
        while True:
            if self._pulls is None:
                await asyncio.sleep(RETRY_S)
            else:
                await self._pulls.gone.wait()
            if not self._bus.is_connected:
                await asyncio.sleep(RETRY_S)
                continue
            try:
                await self._open()
            except StreamMissing as error:
                self._fail(error)
                return
            except (Unavailable, ApiError) as error:
                log.warning("cannot read %s yet: %s", self._stream, error)
                await asyncio.sleep(RETRY_S)

"""The door to NATS: a connection, and what Remit does with it.

Theory of operation. A `Bus` is one connection. Appending facts (`shared.append`) and reading streams
(`shared.pull`) are built on its `publish` and `subscribe` with plain JetStream API messages, because the
client's own forms lose requests over a server restart (docs/theory.md). Key-value, objects and micro services
are the client's own. Errors are told by whose they are: a server that is not there is `Unavailable`.
"""

import asyncio
import contextlib
import hashlib
import logging
import os
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import msgspec

from shared.client import CREATE_ONLY as CREATE_ONLY
from shared.client import Client, Handler, Take, nats, one_by_one
from shared.clock import parse_ns
from shared.errors import UNREADABLE, AlreadySaid, Malformed, NotFound, RemitError, Unavailable

log = logging.getLogger("remit.bus")

SERVER_VERSION_LEAST = (2, 14)  # of older ones a timer that has fired does not reach EVENTS, without a word
CONNECT_TIMEOUT_S = 5.0
PORT = 4222
HISTORY_MAX = 64  # changes of a key that NATS keeps at most
SCHEMES = ("nats", "tls", "ws", "wss")
REQUEST_TIMEOUT_S = 5.0
OBJECT_TIMEOUT_S = 120.0  # a missing body hangs for ever otherwise
PENDING_BYTES_MAX = 64 * 1024 * 1024
STREAM_NOT_FOUND = 10059
NO_MESSAGE = 10037
NOT_NOW = 503  # a cluster that elects a leader, most of all

# What a service's endpoint gets: the request's data and its reply subject. It answers with `Bus.publish`.
Endpoint = Callable[[bytes, str], Awaitable[None]]


class ApiError(RemitError):
    """JetStream refused: `code` is its error code, such as 10071."""

    def __init__(self, code: int, description: str) -> None:
        super().__init__(f"JetStream says: {description} ({code})")
        self.code = code


class StreamMissing(Unavailable):
    """The NATS is there, and a stream of Remit is not: nothing was started on it, or its store was lost."""


class ServiceInfo(msgspec.Struct):
    """What discovery tells of one instance of a micro service; agents put their host into the metadata."""

    name: str
    id: str = ""
    version: str = ""
    metadata: dict[str, str] = {}
    endpoints: list[dict[str, Any]] = []

    @property
    def host(self) -> str:
        return self.metadata.get("host", "")


class Bus:
    """One connection to NATS; make it with `connect`."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._js = client.jetstream()
        self._reconnected: list[Callable[[], Awaitable[None]]] = []
        self._buckets: dict[str, Any] = {}
        self._services: list[Any] = []
        self.closing = False

    # -- messages ------------------------------------------------------------------------------------------

    async def publish(
        self, subject: str, data: bytes = b"", reply: str = "", headers: dict[str, str] | None = None
    ) -> None:
        """Send and forget; buffered while the connection is down."""
        try:
            await self._client.publish(subject, data, reply, headers)
        except (nats.errors.ConnectionClosedError, nats.errors.OutboundBufferLimitError) as error:
            raise Unavailable(f"NATS is not reachable: {error}") from error
        except nats.errors.MaxPayloadError as error:
            raise RemitError(f"a message of {len(data)} bytes is over the server's limit") from error
        except nats.errors.BadSubjectError as error:
            raise Malformed(f"nothing can be published on {subject[:200]!r}", field="subject") from error

    async def subscribe(self, subject: str, handler: Handler, *, queue: str = "") -> Callable[[], Awaitable[None]]:
        """Call `handler` for each message, one at a time; the result ends the subscription."""
        return await self._client.listen(subject, queue, one_by_one(handler))

    async def subscribe_all(self, subject: str, take: Take) -> Callable[[], Awaitable[None]]:
        """Call `take` with the messages that wait: it takes them from the left, up to one that it has to wait for."""
        return await self._client.listen(subject, "", take)

    async def request(
        self,
        subject: str,
        data: bytes = b"",
        *,
        timeout_s: float = REQUEST_TIMEOUT_S,
        headers: dict[str, str] | None = None,
    ) -> bytes:
        """One question, one answer. `Unavailable` when nobody listens or nobody answers in time."""
        try:
            answer = await self._client.request(subject, data, timeout=timeout_s, headers=headers)
        except nats.errors.NoRespondersError as error:
            raise Unavailable(f"nobody answers {subject}") from error
        except (nats.errors.TimeoutError, TimeoutError) as error:
            raise Unavailable(f"{subject} did not answer within {timeout_s:g} s") from error
        except (nats.errors.ConnectionClosedError, nats.errors.OutboundBufferLimitError) as error:
            raise Unavailable(f"NATS is not reachable: {error}") from error
        except nats.errors.MaxPayloadError as error:
            raise RemitError(f"a message of {len(data)} bytes is over the server's limit") from error
        except nats.errors.BadSubjectError as error:
            raise Malformed(f"nothing can be published on {subject[:200]!r}", field="subject") from error
        data = answer.data
        assert isinstance(data, bytes)
        return data

    async def request_all(
        self, subject: str, data: bytes = b"", *, quiet_s: float = 0.3, timeout_s: float = 2.0
    ) -> list[bytes]:
        """Every answer to one question, until none has come for `quiet_s` seconds or `timeout_s` is over."""
        answers: list[bytes] = []
        came = asyncio.Event()
        over = False

        def collect(_subject: str, answer: bytes, _reply: str, headers: Mapping[str, str] | None) -> None:
            nonlocal over
            if headers and headers.get("Status") == "503":
                over = True
            else:
                answers.append(answer)
            came.set()

        inbox = self.inbox()
        stop = await self.subscribe(inbox, collect)
        try:
            async with asyncio.timeout(timeout_s):
                await self.publish(subject, data, inbox)
                while not over:
                    came.clear()
                    await asyncio.wait_for(came.wait(), quiet_s if answers else timeout_s)
        except TimeoutError:
            pass
        finally:
            await stop()
        return answers

    def inbox(self) -> str:
        """A new subject that nobody else listens to."""
        return str(self._client.new_inbox())

    async def flush(self) -> None:
        await self._client.flush()

    def on_reconnected(self, action: Callable[[], Awaitable[None]]) -> Callable[[], None]:
        """Run `action` after each reconnection; the result forgets it again."""
        self._reconnected.append(action)
        return lambda: self._reconnected.remove(action)

    @property
    def is_connected(self) -> bool:
        return bool(self._client.is_connected)

    @property
    def is_closed(self) -> bool:
        """For good: it does not connect again."""
        return bool(self._client.is_closed)

    @property
    def max_payload(self) -> int:
        """Bytes of the largest message that the server takes."""
        return int(self._client.max_payload)

    @property
    def server(self) -> str:
        """Address and version of the server that this connection is with; never with its user and password."""
        address = self._client.connected_url.netloc.rpartition("@")[2]
        return f"{address} (nats-server {self._client._server_info.get('version')})"

    @property
    def server_version(self) -> tuple[int, ...]:
        """Major, minor and patch of the server that we are connected to."""
        version = self._client.connected_server_version
        return version.major, version.minor, version.patch

    # -- JetStream -----------------------------------------------------------------------------------------

    async def api(self, what: str, body: Any = None, *, timeout_s: float = REQUEST_TIMEOUT_S) -> dict[str, Any]:
        """A call of the JetStream API: `what` is the subject after `$JS.API.`.

        Each of our calls means the same when it is made twice, so one whose answer a lost connection has taken with it
        is made again.
        """
        data = b"" if body is None else msgspec.json.encode(body)
        reconnects = self._client.stats["reconnects"]
        try:
            said = await self.request(f"$JS.API.{what}", data, timeout_s=timeout_s)
        except Unavailable:
            if self._client.stats["reconnects"] == reconnects:
                raise
            said = await self.request(f"$JS.API.{what}", data, timeout_s=timeout_s)
        answer: dict[str, Any] = msgspec.json.decode(said)
        if error := answer.get("error"):
            if error.get("err_code") == STREAM_NOT_FOUND:
                raise StreamMissing(f"no stream for {what} on this NATS: is `remit up` running?")
            if error.get("code") == NOT_NOW:
                raise Unavailable(f"JetStream says: {error.get('description', 'not now')} ({error.get('err_code', 0)})")
            raise ApiError(error.get("err_code", 0), error.get("description", "unknown error"))
        return answer

    async def stored(self, stream: str, seq: int) -> tuple[str, int, bytes] | None:
        """Subject, stamp (nanoseconds) and data of message `seq`, or None when there is none.

        In a cluster the node that answers may not have it yet; the leader then knows.
        """
        found = await self.direct(stream, {"seq": seq})
        message = found[0] if found and found[0][1] == seq else await self._of_leader(stream, {"seq": seq})
        return (message[0], message[2], message[3]) if message else None

    async def last_on(self, stream: str, subject: str) -> tuple[int, bytes] | None:
        """Sequence and data of the newest message on `subject`, from the leader, or None."""
        found = await self._of_leader(stream, {"last_by_subj": subject})
        return (found[1], found[3]) if found else None

    async def _of_leader(self, stream: str, query: dict[str, Any]) -> tuple[str, int, int, bytes] | None:
        """The one message that answers `query`, as `direct` gives it, from the node that every write goes through."""
        try:
            message = (await self.api(f"STREAM.MSG.GET.{stream}", query))["message"]
        except ApiError as error:
            if error.code == NO_MESSAGE:
                return None
            raise
        data = msgspec.json.decode(f'"{message.get("data", "")}"', type=bytes)
        return message["subject"], message["seq"], parse_ns(message["time"]), data

    async def direct(
        self, stream: str, query: dict[str, Any], *, timeout_s: float = REQUEST_TIMEOUT_S
    ) -> list[tuple[str, int, int, bytes]]:
        """A direct get: `(subject, seq, at_ns, data)` of each message that answers `query`, in stream order.

        In a cluster any node may answer, and one that is behind answers from an earlier moment of the stream. What
        must know of a write that was acked a moment ago asks `last_on` or `stored`.
        """
        found: list[tuple[str, int, int, bytes]] = []
        over = asyncio.get_running_loop().create_future()
        many = "multi_last" in query or "batch" in query

        def collect(_subject: str, data: bytes, _reply: str, headers: Mapping[str, str] | None) -> None:
            message = _stored(headers)
            if message is not None:
                found.append((*message, data))
            if (message is None or not many) and not over.done():
                over.set_result(headers.get("Status") if headers and message is None else None)

        inbox = self.inbox()
        stop = await self.subscribe(inbox, collect)
        try:
            await self.publish(f"$JS.API.DIRECT.GET.{stream}", msgspec.json.encode(query), inbox)
            status = await asyncio.wait_for(over, timeout_s)
        except TimeoutError as error:
            raise Unavailable(f"stream {stream} did not answer within {timeout_s:g} s") from error
        finally:
            await stop()
        if status == "503":
            raise Unavailable(f"stream {stream} does not exist on this NATS: is `remit up` running?")
        if status == "413":
            raise RemitError(f"more than 1,024 subjects answer {query}")
        return sorted(found, key=lambda message: message[1])

    # -- key-value -----------------------------------------------------------------------------------------

    async def _bucket(self, bucket: str) -> Any:
        if bucket not in self._buckets:
            with _told("the bucket " + bucket):
                self._buckets[bucket] = await self._js.key_value(bucket)
        return self._buckets[bucket]

    async def kv_get(self, bucket: str, key: str) -> tuple[bytes, int] | None:
        """Value and revision of `key`, or None. From the leader: the client's own form may not see what it just put."""
        found = await self.last_on(f"KV_{bucket}", f"$KV.{bucket}.{key}")
        # What tells a deletion is an empty message: a value of Remit is never empty.
        return (found[1], found[0]) if found and found[1] else None

    async def kv_history(self, bucket: str, key: str) -> list[tuple[int, int, bytes]]:
        """Revision, stamp (nanoseconds) and value of each change of `key` that is kept, oldest first; b"": removed."""
        query = {"next_by_subj": f"$KV.{bucket}.{key}", "seq": 1, "batch": HISTORY_MAX}
        return [(seq, at_ns, data) for _, seq, at_ns, data in await self.direct(f"KV_{bucket}", query)]

    async def kv_put(self, bucket: str, key: str, value: bytes, *, revision: int | None = None) -> int:
        """Store `value`, the new revision comes back; with `revision`, only over that one (0: only if absent)."""
        with _told(f"{bucket}/{key}"):
            kv = await self._bucket(bucket)
            try:
                if revision is None:
                    return int(await kv.put(key, value))
                return int(await (kv.create(key, value) if revision == 0 else kv.update(key, value, last=revision)))
            except nats.js.errors.KeyWrongLastSequenceError as error:
                raise AlreadySaid(f"{key} was changed by somebody else meanwhile; read it again") from error

    async def kv_delete(self, bucket: str, key: str) -> None:
        with _told(f"{bucket}/{key}"):
            await (await self._bucket(bucket)).delete(key)

    async def kv_forget(self, bucket: str, key: str) -> None:
        """Remove what was stored under `key` and leave nothing: a deletion would stay as a message of its own."""
        await self.api(f"STREAM.PURGE.KV_{bucket}", {"filter": f"$KV.{bucket}.{key}"})

    # -- objects -------------------------------------------------------------------------------------------

    async def object_put(self, bucket: str, name: str, data: bytes | Path) -> tuple[str, int]:
        """Store bytes or a file under `name`; its sha256 (hex) and size in bytes come back."""
        digest = hashlib.sha256()
        with _told(f"{bucket}/{name}"):
            store = await self._js.object_store(bucket)
            if isinstance(data, bytes):
                digest.update(data)
                await store.put(name, data)
                return digest.hexdigest(), len(data)
            size = 0
            with data.open("rb") as file:
                while block := await asyncio.to_thread(file.read, 1 << 20):
                    digest.update(block)
                    size += len(block)
                file.seek(0)
                await store.put(name, file)
            return digest.hexdigest(), size

    async def object_get(self, bucket: str, name: str, into: Path) -> None:
        """Write the object `name` to the file `into`, whole or not at all. `NotFound` when there is none."""
        part = into.with_name(into.name + ".part")
        with _told(f"{bucket}/{name}"):
            try:
                store = await self._js.object_store(bucket)
                info = await asyncio.wait_for(store.get_info(name), OBJECT_TIMEOUT_S)
                if info.is_link():  # a link may lead into another bucket; nothing of Remit writes one
                    raise NotFound(f"{name} is a link, not an artifact")
                with part.open("wb") as file:
                    await asyncio.wait_for(store.get(name, writeinto=file), OBJECT_TIMEOUT_S)
                os.replace(part, into)  # the digest is checked after the bytes are written
            except (nats.js.errors.ObjectNotFoundError, nats.js.errors.ObjectDeletedError) as error:
                raise NotFound(f"there is no object {name}") from error
            except _DAMAGED as error:
                raise RemitError(f"the object {name} is damaged: {error or type(error).__name__}") from error
            finally:
                part.unlink(missing_ok=True)

    # -- services ------------------------------------------------------------------------------------------

    async def serve(
        self, name: str, version: str, endpoints: Mapping[str, Endpoint], *, metadata: dict[str, str] | None = None
    ) -> None:
        """Answer as a NATS micro service `name`; `endpoints` maps a whole subject to its handler.

        Each request runs in a task of its own, so a long answer does not hold up the next one. One without a reply
        subject has nobody to be answered, and is passed over.
        """
        micro = self._client.micro()
        described = micro.service.ServiceConfig(name=name, version=version, metadata=metadata or {})
        service = await micro.add_service(self._client, described)
        self._services.append(service)
        tasks: set[asyncio.Task[None]] = set()

        def start(endpoint: Endpoint) -> Callable[[Any], Awaitable[None]]:
            async def handle(request: Any) -> None:
                if reply := request._msg.reply:
                    task = asyncio.create_task(_answer(endpoint, request.data, reply))
                    tasks.add(task)
                    task.add_done_callback(tasks.discard)

            return handle

        for subject, endpoint in endpoints.items():
            await service.add_endpoint(
                micro.service.EndpointConfig(name=subject.rsplit(".", 1)[-1], subject=subject, handler=start(endpoint))
            )

    async def discover(self, name: str) -> list[ServiceInfo]:
        """What every instance of the micro service `name` says of itself (`$SRV.INFO`)."""
        found: list[ServiceInfo] = []
        for answer in await self.request_all(f"$SRV.INFO.{name}"):
            try:
                found.append(msgspec.json.decode(answer, type=ServiceInfo))
            except UNREADABLE as error:
                log.warning("somebody answers for %s with what is no service's word: %s", name, error)
        return found

    async def close(self) -> None:
        self.closing = True
        for service in self._services:
            with contextlib.suppress(nats.errors.Error, TimeoutError):
                await service.stop()
        if not self._client.is_closed:
            with contextlib.suppress(nats.errors.Error, TimeoutError):
                await asyncio.wait_for(self._client.flush(), 1)
            await self._client.close()


# What the client raises over an object: what the store keeps beside its chunks is not checked, and may be anybody's.
_DAMAGED = (
    nats.js.errors.BadObjectMetaError,
    nats.js.errors.DigestMismatchError,
    nats.errors.BadSubjectError,
    AttributeError,
    LookupError,
    TypeError,
    ValueError,
)


def _stored(headers: Mapping[str, str] | None) -> tuple[str, int, int] | None:
    """Subject, sequence and stamp of a stored message that came by a direct get; None for a word of the server's own.

    The server writes its headers behind those that the message was stored with, and whoever published it may have
    used the same names, or a status line: the last ones count, and they alone tell a message from a status.
    """
    block = getattr(headers, "raw", b"")
    stamp = block.rfind(b"\r\nNats-Time-Stamp: ")
    sequence = block.rfind(b"\r\nNats-Sequence: ", 0, stamp)
    subject = block.rfind(b"Nats-Subject: ", 0, sequence)
    if subject < 0:
        return None
    name, seq = block[subject + 14 : sequence], block[sequence + 17 : stamp]
    at = block[stamp + 19 : block.find(b"\r", stamp + 19)]
    return name.decode(errors="replace"), int(seq), parse_ns(at.decode())


async def _answer(endpoint: Endpoint, data: bytes, reply: str) -> None:
    try:
        await endpoint(data, reply)
    except RemitError as error:  # NATS is away, or nothing can be published there
        log.warning("a request was not answered: %s", error)  # the asker's timeout tells them


@contextlib.contextmanager
def _told(what: str) -> Any:
    """The client's errors as ours."""
    try:
        yield
    except (nats.js.errors.BucketNotFoundError, nats.js.errors.NotFoundError) as error:
        raise Unavailable(f"{what} does not exist on this NATS: is `remit up` running?") from error
    except (
        nats.errors.TimeoutError,
        TimeoutError,
        nats.errors.NoRespondersError,
        nats.js.errors.NoStreamResponseError,  # the stream has no leader just now
        nats.js.errors.ServiceUnavailableError,
    ) as error:
        raise Unavailable(f"{what}: NATS did not answer") from error
    except (nats.errors.ConnectionClosedError, nats.errors.OutboundBufferLimitError) as error:
        raise Unavailable(f"NATS is not reachable: {error}") from error
    except nats.errors.MaxPayloadError as error:
        raise RemitError(f"{what}: it is larger than the server takes") from error
    except nats.js.errors.Error as error:
        raise RemitError(f"{what}: NATS refused: {error or type(error).__name__}") from error


async def connect(
    url: str, name: str, *, credentials: str | None = None, on_closed: Callable[[], None] | None = None
) -> Bus:
    """A connection to `url`, or `Unavailable` at once; later interruptions are waited out.

    `on_closed` runs when the connection has ended for good (an authorisation that was withdrawn, say):
    a service then ends its process and lets its keeper start it afresh.
    """
    bus: Bus | None = None
    await _reach(url)

    async def reconnected() -> None:
        log.info("reconnected to NATS")
        for action in list(bus._reconnected if bus else ()):
            try:
                await action()
            except Unavailable as error:  # the connection broke again: the next one runs them all
                log.info("%s", error)

    async def disconnected() -> None:
        if bus is None or not bus.closing:
            log.warning("connection to NATS lost; it is tried again until it is back")

    async def error(trouble: Exception) -> None:
        if isinstance(trouble, OSError) and bus is not None and not bus.is_connected:
            log.debug("NATS: %s", trouble)  # one of the tries of a reconnection, five a second
            return
        # A permission that is missing shows only here; the caller sees a timeout.
        log.warning("NATS: %s", trouble or type(trouble).__name__)

    async def closed() -> None:
        if on_closed and (bus is None or not bus.closing):
            on_closed()

    try:
        client = Client()
        if "ws://" in url or "wss://" in url:
            client.use_websockets()
        await asyncio.wait_for(
            client.connect(
                [one.strip() for one in url.split(",")],
                name=name,
                user_credentials=credentials,
                connect_timeout=CONNECT_TIMEOUT_S,
                max_reconnect_attempts=-1,
                reconnect_time_wait=0.2,
                ping_interval=3,
                pending_size=PENDING_BYTES_MAX,
                reconnected_cb=reconnected,
                disconnected_cb=disconnected,
                error_cb=error,
                closed_cb=closed,
            ),
            CONNECT_TIMEOUT_S * 2,
        )
    except ImportError as missing:
        raise RemitError(
            f"credentials for NATS need the package {missing.name}: pip install {missing.name}"
        ) from missing
    except (nats.errors.Error, OSError, TimeoutError) as trouble:
        raise Unavailable(f"cannot connect to NATS at {bare(url)}: {trouble or type(trouble).__name__}") from trouble
    bus = Bus(client)
    if bus.server_version < SERVER_VERSION_LEAST:
        server = bus.server
        await client.close()
        least = ".".join(map(str, SERVER_VERSION_LEAST))
        raise Unavailable(f"{server} is too old: Remit needs nats-server {least} or newer")
    return bus


async def _reach(url: str) -> None:
    """Fail fast where nothing listens: the client itself would go on trying."""
    trouble: Exception | None = None
    for one in url.split(","):
        host, port = _place(one.strip())
        try:
            _, writer = await asyncio.wait_for(asyncio.open_connection(host, port), CONNECT_TIMEOUT_S)
        except (OSError, TimeoutError) as error:
            trouble = error
        else:
            writer.close()
            return
    raise Unavailable(
        f"nothing listens at {bare(url)}; start Remit with `./remit up`, or name a NATS with --nats URL"
    ) from trouble


def _place(url: str) -> tuple[str, int]:
    """Host and port of one server's URL."""
    try:
        parts = urlsplit(url if "//" in url else f"nats://{url}")
        host, port = parts.hostname, parts.port or PORT
    except ValueError as error:
        raise Malformed(f"{bare(url)[:200]!r} is no URL of a NATS: {error}", field="nats") from error
    if not host or parts.scheme not in SCHEMES:
        raise Malformed(f"{bare(url)[:200]!r} is no URL of a NATS, such as nats://127.0.0.1:{PORT}", field="nats")
    return host, port


def bare(url: str) -> str:
    """The URL without its user and password, fit for a message."""
    return ",".join(
        one if "@" not in one else one.split("//")[0] + "//" + one.rsplit("@", 1)[1] for one in url.split(",")
    )

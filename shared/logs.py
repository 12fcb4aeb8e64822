"""The words that a log agent and the tasks `log_triage` and `service_map` speak to each other.

`logs.<host>.sources`   SourcesRequest  -> SourcesReply, a page at a time (`after` = the reply's `next`)
`logs.<host>.services`  ServicesRequest -> ServicesReply, a page at a time
`logs.<host>.read`      ReadRequest     -> a stream of LogChunk on the request's reply inbox

**A read is a conversation.** Every chunk carries a reply subject of the agent's own. The reader answers each
chunk with `GO_ON` when it has dealt with it, or with `STOP`; the agent sends at most `UNANSWERED_CHUNKS_MAX`
ahead, so a slow reader costs it no memory, and gives up after `ANSWER_WAIT_S` without a word. Exactly one
chunk has `last`: it carries the cursor, what bound was met and what is to be noted. A chunk with `error`
also ends the stream; a refusal that comes as a plain LogRefusal decodes as such a chunk.

**A cursor is the one resume mechanism**, opaque to everyone but the agent that made it: handed back with the
next ReadRequest, nothing is read twice and nothing left out, for containers and for files alike. Without a
cursor a read is a first read: the newest lines within the bounds, `older_skipped` when there were more.
"""

import re
from collections.abc import Sequence
from typing import TypeVar

import msgspec
from msgspec import Struct, field

from shared.clock import parse_ns
from shared.errors import Malformed

CHUNK_LINES_MAX = 2_000
CHUNK_BYTES_MAX = 256 * 1024  # encoded; NATS refuses messages over 1 MB, and a quarter of it keeps others flowing
LINE_BYTES_MAX = 64 * 1024  # control characters grow sixfold in JSON: one such line still fits a message of 1 MB

READ_LINES_DEFAULT = 200_000
READ_LINES_MAX = 2_000_000
READ_BYTES_DEFAULT = 64 * 1024 * 1024
READ_BYTES_MAX = 1024 * 1024 * 1024
CURSOR_CHARS_MAX = 512

UNANSWERED_CHUNKS_MAX = 4
ANSWER_WAIT_S = 30.0
GO_ON = b"+"
STOP = b"stop"

REPLY_BYTES_MAX = 256 * 1024  # encoded size at which a page of sources or services ends

# Containers' ids and names never hold these, and a path with one would not survive a JSON reply.
_SURROGATE = re.compile("[\ud800-\udfff]")


class EngineInfo(Struct, frozen=True):
    """The container engine of a host, as it calls itself."""

    name: str
    version: str
    api_version: str
    containers: int


class SourceInfo(Struct, frozen=True, kw_only=True):
    """Something that logs: a container (`docker:NAME`) or a file (`file:/PATH`), and whether it may be
    read.
    """

    source: str
    kind: str
    name: str
    allowed: bool
    image: str | None = None
    state: str | None = None
    size_bytes: int | None = None


class SourcesRequest(Struct, frozen=True):
    """Ask for the page of sources that follows `after`, in the order of their names."""

    after: str = ""


class SourcesReply(Struct, frozen=True, kw_only=True):
    """What a host could have read. Containers are named whether allowed or not, so that a person can choose;
    files are named only where an entry or the agent's own configuration names them.
    """

    host: str
    engine: EngineInfo | None = None
    engine_error: str | None = None
    sources: list[SourceInfo] = []
    notes: list[str] = []
    next: str | None = None


class ReadRequest(Struct, frozen=True, kw_only=True):
    """Read one source: from the cursor, or at first its newest lines; `since` (RFC 3339, inclusive) is a
    lower bound for containers, whose lines carry the engine's stamps. Files have no stamps that could be
    trusted.
    """

    source: str
    cursor: str | None = None
    since: str | None = None
    max_lines: int = READ_LINES_DEFAULT
    max_bytes: int = READ_BYTES_DEFAULT


class LogChunk(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Some lines in three lists of one length: the engine's stamp or null, `stdout`/`stderr`/``, the text.

    `cut_bytes` were dropped from lines over LINE_BYTES_MAX (each such line says so at its end). The last
    chunk has `truncated` ("lines" or "bytes", the bound that was met; the cursor goes on from there),
    `older_skipped`, `until` (the time up to which the source was read) and `notes` for people.
    """

    n: int = 0
    at: list[str | None] = []
    stream: list[str] = []
    text: list[str] = []
    cut_bytes: int = 0
    last: bool = False
    truncated: str | None = None
    older_skipped: bool = False
    until: str | None = None
    cursor: str | None = None
    notes: list[str] = []
    error: str | None = None
    message: str = ""
    field: str = ""


class LogRefusal(Struct, frozen=True):
    """Why a request was not answered: `malformed`, `refused`, `not_found`, `unavailable` or `busy`."""

    error: str
    message: str
    field: str = ""


class PortInfo(Struct, frozen=True, kw_only=True):
    """A port of a container; `host_port` is null where it is exposed and not published."""

    container_port: int
    protocol: str
    host_ip: str | None = None
    host_port: int | None = None


class NetworkInfo(Struct, frozen=True, kw_only=True):
    """A network that a container is attached to."""

    name: str
    id: str = ""
    driver: str | None = None
    ip: str | None = None
    aliases: list[str] = []


class MountInfo(Struct, frozen=True, kw_only=True):
    """Something mounted into a container: `bind`, `volume`, `tmpfs`."""

    type: str
    source: str
    destination: str
    rw: bool


class DependsOn(Struct, frozen=True):
    """A compose service that must be there first, and in which condition."""

    service: str
    condition: str = ""


class LinkInfo(Struct, frozen=True):
    """A legacy container link: the container's name and the alias it is known by."""

    container: str
    alias: str = ""


class ServiceInfo(Struct, frozen=True, kw_only=True):
    """One allow-listed container, without its environment and without labels that look secret."""

    id: str
    name: str
    image: str
    state: str
    health: str | None = None
    started_at: str | None = None
    restart_count: int = 0
    ports: list[PortInfo] = field(default_factory=list)
    networks: list[NetworkInfo] = field(default_factory=list)
    network_mode: str = ""
    mounts: list[MountInfo] = field(default_factory=list)
    compose_project: str | None = None
    compose_service: str | None = None
    depends_on: list[DependsOn] = field(default_factory=list)
    links: list[LinkInfo] = field(default_factory=list)
    labels: dict[str, str] = field(default_factory=dict)


class ServicesRequest(Struct, frozen=True):
    """Ask for the page of services that follows `after`, in the order of their names."""

    after: str = ""


class ServicesReply(Struct, frozen=True, kw_only=True):
    """The allow-listed containers of one host, or why its engine did not answer."""

    host: str
    engine_error: str | None = None
    services: list[ServiceInfo] = []
    next: str | None = None


Item = TypeVar("Item", SourceInfo, ServiceInfo)


def check_read(request: ReadRequest) -> ReadRequest:
    """Return the request when it can be answered; Malformed, with the field, when a bound is out of range."""
    if not request.source or _SURROGATE.search(request.source):
        raise Malformed("a source is docker:NAME or file:/PATH", field="source")
    if not 1 <= request.max_lines <= READ_LINES_MAX:
        raise Malformed(f"max_lines must be 1 to {READ_LINES_MAX}", field="max_lines")
    if not 1 <= request.max_bytes <= READ_BYTES_MAX:
        raise Malformed(f"max_bytes must be 1 to {READ_BYTES_MAX}", field="max_bytes")
    if request.cursor is not None and len(request.cursor) > CURSOR_CHARS_MAX:
        raise Malformed(f"a cursor has at most {CURSOR_CHARS_MAX} characters", field="cursor")
    if request.since is not None:
        try:
            parse_ns(request.since)
        except (ValueError, OverflowError) as error:
            raise Malformed(str(error), field="since") from error
    return request


def page(items: Sequence[Item], size_bytes_max: int = REPLY_BYTES_MAX) -> list[Item]:
    """Return as many of the first items as fit one reply, at least one: a page that holds nothing never
    ends.
    """
    taken: list[Item] = []
    left_bytes = size_bytes_max
    for item in items:
        left_bytes -= len(msgspec.json.encode(item))
        if left_bytes < 0 and taken:
            break
        taken.append(item)
    return taken

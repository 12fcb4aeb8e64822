"""Canaries: random words that are planted where content is, and the search that shows where they came to rest.

Theory of operation. Every place gets a word of its own, so a find says where it came from. A word is sought by its
halves, because a part of a secret is a secret. Each half begins with the same mark, so that a place is looked at for
every word at once, and only where there is a mark. Text hides in two ways. What turns each byte into others wherever it
stands (hex, base64 at each of three alignments) is sought in its other form. What has to be undone to be read (URL and
JSON escapes, line breaks in base64, compression, base64 around any of them) is undone first, again and again, down to
`DEPTH`. DuckDB and Parquet pack text in ways of their own, so they are opened and every value is read; JetStream is
read twice, from its files and message by message.
"""

import base64
import binascii
import contextlib
import functools
import io
import json
import re
import secrets
import zlib
from collections import defaultdict
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import unquote_to_bytes

import duckdb
import pyarrow
import pyarrow.parquet

from shared.bus import ApiError, Bus

LETTERS = "bcdfghjklmnpqrtvxz"  # no vowels: no word of any language, and none that tells of a secret
WORD_LETTERS = 24
MARK = "qzkv"
DEPTH = 3  # base64 of gzip of base64; nobody hides anything here on purpose
UNPACKED_BYTES_MAX = 1 << 26
NO_MESSAGE = 10037
RUN_BYTES_MIN = 24  # of base64: what is shorter holds no half of a word in a second coat


@dataclass(frozen=True)
class Canary:
    """A word, where it was planted, and where it may be found (a pattern of places; none: nowhere) and why."""

    place: str
    word: str
    kept: str = ""
    why: str = ""


@dataclass(frozen=True, order=True)
class Find:
    """A canary where it came to rest."""

    place: str
    where: str
    form: str


@dataclass
class Flock:
    """All canaries of a test, by the place where each was planted."""

    canaries: dict[str, Canary] = field(default_factory=dict)
    # By form and the mark in it: what is sought, and its place. And what has no mark: place, form, what is sought.
    _marked: dict[tuple[str, bytes], dict[bytes, str]] = field(default_factory=lambda: defaultdict(dict))
    _others: list[tuple[str, str, bytes]] = field(default_factory=list)

    def plant(self, place: str, *, kept: str = "", why: str = "", word: str = "") -> str:
        """A new word for this place."""
        assert place not in self.canaries, f"{place} has its canary"
        assert bool(kept) == bool(why), f"{place}: what may be kept is kept for a reason"
        word = word or "".join(MARK + _letters(WORD_LETTERS // 2 - len(MARK)) for _ in range(2))
        self.canaries[place] = Canary(place, word, kept, why)
        for half in _halves(word):
            for form, sought in _forms(half):
                marks = [mark for of, mark in _forms(MARK) if of == form and sought.startswith(mark)]
                for mark in marks:
                    self._marked[form, mark][sought] = place
                if not marks:
                    self._others.append((place, form, sought))
        return word

    def finds(self, where: str, data: bytes) -> set[Find]:
        """The canaries in these bytes, whatever they are wrapped in."""
        found: set[Find] = set()
        for view in _views(data, DEPTH):
            lower = view.lower()
            for (form, mark), places in self._marked.items():
                text = view if form == "base64" else lower
                sizes = {len(sought) for sought in places}
                for at in _places(text, mark):
                    there = {places[sought] for size in sizes if (sought := text[at : at + size]) in places}
                    found |= {Find(place, where, form) for place in there}
            for place, form, sought in self._others:
                if sought in (view if form == "base64" else lower):
                    found.add(Find(place, where, form))
        return found

    def finds_in_files(self, folder: Path) -> set[Find]:
        """In every file below `folder` (its path included), raw, and in every value where it is a database."""
        found: set[Find] = set()
        for path in sorted(folder.rglob("*")):
            where = f"file {path.relative_to(folder)}"
            found |= self.finds(where, str(path.relative_to(folder)).encode())
            if path.is_file() and not path.is_symlink():
                found |= self.finds(where, path.read_bytes())
                if path.read_bytes()[8:12] == b"DUCK":
                    found |= self.finds_in_tables(path)
        return found

    def finds_in_tables(self, path: Path) -> set[Find]:
        """In every column of every table of a DuckDB file, whatever its type; whoever writes the file has ended."""
        found: set[Find] = set()
        with duckdb.connect(str(path), read_only=True) as base:
            names = base.execute("select schema_name, table_name, sql from duckdb_tables()").fetchall()
            assert names, f"{path} has no table, so this would find nothing"
            for schema, name, sql in names:
                found |= self.finds(f"table {name}", str(sql).encode())
                rows = base.execute(f'select * from "{schema}"."{name}"')
                columns = [one[0] for one in rows.description]
                values: dict[str, list[bytes]] = {column: [] for column in columns}
                while batch := rows.fetchmany(10_000):
                    for row in batch:
                        for column, value in zip(columns, row, strict=True):
                            values[column].append(_bytes_of(value))
                for column, held in values.items():
                    found |= self.finds(f"table {name}.{column}", b"\n".join(held))
        return found

    async def finds_in_streams(self, bus: Bus) -> set[Find]:
        """In every message of every stream and bucket, as the server hands it out: subject, headers and data."""
        found: set[Find] = set()
        count = 0
        async for where, data in _messages(bus):
            count += 1
            found |= self.finds(where, data)
        assert count, "no stream holds a message, so this would find nothing"
        return found

    def strays(self, found: set[Find]) -> list[Find]:
        """The finds where their canary may not be."""
        return sorted(
            one
            for one in found
            if not self.canaries[one.place].kept or not re.search(self.canaries[one.place].kept, one.where)
        )


def _letters(count: int) -> str:
    return "".join(secrets.choice(LETTERS) for _ in range(count))


def _halves(word: str) -> tuple[str, str]:
    return word[: len(word) // 2], word[len(word) // 2 :]


@functools.cache
def _forms(part: str) -> tuple[tuple[str, bytes], ...]:
    """How a part of a word stands where nothing has to be undone; plain and hex in lower case."""
    raw = part.encode()
    found = [("plain", raw.lower()), ("hex", raw.hex().encode())]
    for alignment in range(3):
        whole = base64.b64encode(b"\0" * alignment + raw)
        # The first characters hold bits of what stands before, the last ones of what follows.
        sure = whole[(0, 2, 3)[alignment] : 8 * (alignment + len(raw)) // 6]
        found += [("base64", sure), ("base64", sure.replace(b"+", b"-").replace(b"/", b"_"))]
    return tuple(dict.fromkeys(found))


def _views(data: bytes, depth: int) -> Iterator[bytes]:
    """The bytes, and what they are when an escape is undone, a line joined or something unpacked."""
    seen: set[bytes] = set()
    for view in (data, *_unescaped(data)):
        if view in seen:
            continue
        seen.add(view)
        yield view
        if depth:
            if view is data and data.startswith(b"PAR1") and data.endswith(b"PAR1"):
                yield from _views(_parquet(data), depth - 1)
            for inner in (*_unpacked(view), *_decoded(view)):
                yield from _views(inner, depth - 1)


_JSON_ESCAPE = re.compile(rb"(?:\\u[0-9A-Fa-f]{4})+|\\[^u]")
_LINE_BREAKS = re.compile(rb"(?:\\[rn]|\\\\[rn]|[\r\n])+[ \t]*")


def _unescaped(data: bytes) -> Iterator[bytes]:
    if b"\n" in data or b"\\n" in data:
        yield _LINE_BREAKS.sub(b"", data)
    if b"%" in data:
        once = unquote_to_bytes(data)
        yield once
        yield unquote_to_bytes(once)
    for _ in range(DEPTH):  # JSON in JSON
        if b"\\" not in data:
            return
        data = _JSON_ESCAPE.sub(_unescape, data)
        yield data
        if b"%" in data:
            yield unquote_to_bytes(data)


def _unescape(match: re.Match[bytes]) -> bytes:
    escape = match[0]
    if escape.startswith(b"\\u"):
        said: str = json.loads(b'"' + escape + b'"')
        return said.encode("utf-8", "surrogatepass")
    return {b"\\n": b"\n", b"\\r": b"\r", b"\\t": b"\t"}.get(escape, escape[1:])


_MAGIC = (
    ("gzip", b"\x1f\x8b\x08"), ("zlib", b"\x78\x01"), ("zlib", b"\x78\x5e"), ("zlib", b"\x78\x9c"),
    ("zlib", b"\x78\xda"), ("zstd", b"\x28\xb5\x2f\xfd"),
    ("s2", b"\xff\x06\x00\x00S2sTwO"), ("s2", b"\xff\x06\x00\x00sNaPpY"),
)  # fmt: skip
# Half a word, in whatever form, is so long.
_TELLS = re.compile(rb"[ -~]{12}|" + b"|".join(re.escape(magic) for _, magic in _MAGIC))
_BASE64_RUN = re.compile(rb"[A-Za-z0-9+/_-]{%d,}" % RUN_BYTES_MIN)
_COMMON = bytes.maketrans(b"-_", b"+/")
_HEX_RUN = re.compile(rb"(?:[0-9A-Fa-f]{2}){%d,}" % RUN_BYTES_MIN)


def _decoded(data: bytes) -> Iterator[bytes]:
    """What runs of base64 (from each of their first four characters) and hex hold, each kind as one text.

    Left out is what holds neither text nor something compressed: digests are such runs, and there are very many.
    """
    runs = [run.translate(_COMMON) for run in _BASE64_RUN.findall(data)]
    for start in range(4):
        inner = (_from_base64(run[start:]) for run in runs)
        if told := b"\n".join(one for one in inner if _TELLS.search(one)):
            yield told
    if told := b"\n".join(one for one in map(binascii.unhexlify, _HEX_RUN.findall(data)) if _TELLS.search(one)):
        yield told


def _from_base64(run: bytes) -> bytes:
    """What a run holds that may lack its padding, or end within four characters."""
    return base64.b64decode(run + (b"", b"A==", b"==", b"=")[len(run) % 4])


def _places(data: bytes, part: bytes) -> Iterator[int]:
    at = data.find(part)
    while at >= 0:
        yield at
        at = data.find(part, at + 1)


def _unpacked(data: bytes) -> Iterator[bytes]:
    """What is compressed anywhere in these bytes, as far as it can be unpacked: a file may end in the middle."""
    whole = memoryview(data)
    for kind, at in ((kind, at) for kind, magic in _MAGIC for at in _places(data, magic)):
        packed = whole[at:]
        if kind == "gzip" or kind == "zlib":
            with contextlib.suppress(zlib.error):
                if unpacked := zlib.decompressobj(47).decompress(packed, UNPACKED_BYTES_MAX):
                    yield unpacked
        elif kind == "zstd":
            if unpacked := _zstd(packed):
                yield unpacked
        else:
            yield s2(packed)


def _parquet(data: bytes) -> bytes:
    table = pyarrow.parquet.read_table(io.BytesIO(data))
    return b"\n".join(_bytes_of(value) for column in table.columns for value in column.to_pylist())


def _zstd(packed: bytes | memoryview) -> bytes:
    out = bytearray()
    with contextlib.suppress(OSError, pyarrow.ArrowException):
        stream = pyarrow.CompressedInputStream(pyarrow.BufferReader(packed), "zstd")
        while len(out) < UNPACKED_BYTES_MAX and (part := stream.read(4_096)):
            out += part
    return bytes(out)


def s2(packed: bytes | memoryview) -> bytes:
    """What a stream of S2 or Snappy frames holds, as JetStream writes blocks, up to where it is no such stream."""
    out = bytearray()
    at = 0
    with contextlib.suppress(IndexError, ValueError):
        while at + 4 <= len(packed):
            kind, size = packed[at], int.from_bytes(packed[at + 1 : at + 4], "little")
            body = packed[at + 4 : at + 4 + size]
            if kind == 0x00:
                out += _s2_block(body[4:])  # behind its checksum
            elif kind == 0x01:
                out += body[4:]
            elif kind < 0x80 and kind > 0x01:
                break  # a kind that may not be passed over: this is something else
            at += 4 + size
    return bytes(out)


def _s2_block(block: bytes | memoryview) -> bytes:
    """One block: literals, and copies of what came before; S2 adds "the same distance again" to Snappy's copies."""
    at = shift = size = 0
    while True:
        size |= (block[at] & 0x7F) << shift
        shift += 7
        at += 1
        if block[at - 1] < 0x80:
            break
    out = bytearray()
    distance = 0
    while at < len(block) and len(out) < size:
        tag, at = block[at], at + 1
        length = tag >> 2
        if tag & 3 == 0:
            if length >= 60:
                width = length - 59
                length, at = int.from_bytes(block[at : at + width], "little"), at + width
            out += block[at : at + length + 1]
            at += length + 1
            continue
        if tag & 3 == 1:
            length &= 7
            near, at = (tag & 0xE0) << 3 | block[at], at + 1
            if near:
                distance = near
            elif length >= 5:
                width = length - 4
                base = (4, 1 << 8, 1 << 16)[width - 1]
                length, at = int.from_bytes(block[at : at + width], "little") + base, at + width
            length += 4
        else:
            width = 2 if tag & 3 == 2 else 4
            distance, at = int.from_bytes(block[at : at + width], "little"), at + width
            length += 1
        if not 0 < distance <= len(out):
            raise ValueError("a copy of what is not there")
        again = bytes(out[-distance:][:length])
        out += (again * (length // len(again) + 1))[:length]  # a copy may reach into itself
    return bytes(out)


def _bytes_of(value: Any) -> bytes:
    if isinstance(value, bytes):
        return value
    if isinstance(value, list | tuple | set):
        return b"\n".join(_bytes_of(one) for one in value)
    if isinstance(value, dict):
        return b"\n".join(_bytes_of(one) for pair in value.items() for one in pair)
    return str(value).encode("utf-8", "surrogatepass")


async def _messages(bus: Bus) -> AsyncIterator[tuple[str, bytes]]:
    """Each message by stream and subject; then each object as a whole, by its name: chunks may part a word."""
    names: list[str] = (await bus.api("STREAM.NAMES"))["streams"] or []
    for stream in names:
        info = await bus.api(f"STREAM.INFO.{stream}")
        yield f"stream {stream}: its settings", json.dumps(info).encode()
        consumers = await bus.api(f"CONSUMER.LIST.{stream}")
        yield f"stream {stream}: its consumers", json.dumps(consumers).encode()
        chunks: dict[str, list[bytes]] = {}
        objects: dict[str, str] = {}
        for seq in range(max(1, info["state"]["first_seq"]), info["state"]["last_seq"] + 1):
            try:
                message = (await bus.api(f"STREAM.MSG.GET.{stream}", {"seq": seq}))["message"]
            except ApiError as error:
                if error.code != NO_MESSAGE:
                    raise
                continue  # replaced by a newer one; what its file still holds is found there
            subject, data = str(message["subject"]), base64.b64decode(message.get("data", ""))
            headers = base64.b64decode(message.get("hdrs", ""))
            if ".C." in subject and stream.startswith("OBJ_"):
                chunks.setdefault(subject.rpartition(".")[2], []).append(data)
                data = b""
            elif stream.startswith("OBJ_") and data:
                told = json.loads(data)
                objects[told["nuid"]] = told["name"]
            yield f"stream {stream}: {subject}", b"\n".join((subject.encode(), headers, data))
        for nuid, parts in chunks.items():
            yield f"object {stream} {objects.get(nuid, 'that nobody has announced')}", b"".join(parts)

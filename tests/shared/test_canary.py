"""The search for canaries finds them in whatever they are wrapped: one that finds nothing would prove nothing."""

import base64
import gzip
import json
import textwrap
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import quote

import duckdb
import pyarrow
import pyarrow.parquet
import pytest

from shared.bus import Bus, connect
from shared.streams import bucket, objects
from tests.canary import MARK, WORD_LETTERS, Canary, Find, Flock, s2
from tests.stack import Stack, stack, until

# One as they are planted, and one of all that some encoding has to write in another way.
WORDS = ["qzkvbtnxrdlmqzkvgfhpcjbt", 'a+b/c=?&%"\\d\te é€😀 <g>']


@pytest.fixture(params=WORDS, ids=["letters", "reserved"])
def word(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def flock(word: str) -> Flock:
    made = Flock()
    made.plant("here", word=word)
    made.plant("elsewhere")
    return made


def test_each_half_begins_with_the_mark_that_is_sought_first() -> None:
    assert all(half.startswith(MARK) for half in (WORDS[0][:12], WORDS[0][12:]))
    planted = Flock().plant("here")
    assert len(planted) == WORD_LETTERS
    assert all(half.startswith(MARK) for half in (planted[:12], planted[12:]))


def places(found: set[Find]) -> set[str]:
    return {one.place for one in found}


def every_escape(word: str) -> str:
    return "".join(f"%{byte:02X}" for byte in word.encode())


def json_escape(word: str) -> str:
    units = word.encode("utf-16-be").hex()
    return "".join(f"\\u{units[at : at + 4]}" for at in range(0, len(units), 4))


def zstd(data: bytes) -> bytes:
    packed: bytes = pyarrow.compress(data, "zstd", asbytes=True)
    return packed


WRAPPED: dict[str, Callable[[str], bytes]] = {
    "plain": str.encode,
    "in capitals": lambda word: "".join(c.upper() if c.isascii() else c for c in word).encode(),
    "hex": lambda word: word.encode().hex().encode(),
    "hex in capitals": lambda word: word.encode().hex().upper().encode(),
    "URL, reserved only": lambda word: quote(word, safe="").encode(),
    "URL, few reserved": lambda word: quote(word).encode(),
    "URL, every byte": lambda word: every_escape(word).encode(),
    "URL, small letters": lambda word: every_escape(word).lower().encode(),
    "URL, twice": lambda word: quote(every_escape(word)).encode(),
    "JSON": lambda word: json.dumps(word).encode(),
    "JSON, not ASCII": lambda word: json.dumps(word, ensure_ascii=False).encode(),
    "JSON, every letter": lambda word: json_escape(word).encode(),
    "JSON in JSON": lambda word: json.dumps(json.dumps({"a": json.dumps(word)})).encode(),
    "JSON in JSON, every letter": lambda word: json.dumps(json.dumps(json_escape(word))).encode(),
    "URL in JSON": lambda word: json.dumps(json.dumps(every_escape(word))).encode(),
    "base64 of base64": lambda word: base64.b64encode(base64.b64encode(f"xy{word}".encode())),
    "base64 of hex": lambda word: base64.b64encode(word.encode().hex().encode()),
    "base64 of URL": lambda word: base64.urlsafe_b64encode(every_escape(word).encode()),
    "base64 of JSON": lambda word: base64.b64encode(json_escape(word).encode()),
    "base64 in lines": lambda word: base64.encodebytes(b"before it stands more " * 3 + word.encode() * 3),
    "base64 in lines in JSON": lambda word: json.dumps(
        "\n".join(textwrap.wrap(base64.b64encode(word.encode() * 3).decode(), 20))
    ).encode(),
    "URL of base64": lambda word: quote(base64.b64encode(word.encode()).decode(), safe="").encode(),
    "hex of base64": lambda word: base64.b64encode(word.encode()).hex().encode(),
    "gzip": lambda word: gzip.compress(f"{word} {word}".encode()),
    "zlib": lambda word: zlib.compress(word.encode()),
    "zstd": lambda word: zstd(b"many times " * 50 + word.encode() * 2),
    "base64 of gzip": lambda word: base64.b64encode(gzip.compress(word.encode() * 2)),
    "gzip of base64 of zstd": lambda word: gzip.compress(base64.b64encode(zstd(word.encode() * 2))),
}


@pytest.mark.parametrize("how", WRAPPED)
def test_a_canary_is_found_however_it_is_wrapped(flock: Flock, word: str, how: str) -> None:
    """Alone and in the middle of other bytes; the word that is not there is not found."""
    wrapped = WRAPPED[how](word)
    for data in (wrapped, b"\x00\xff before: " + wrapped + b" and after\n"):
        assert places(flock.finds("somewhere", data)) == {"here"}


@pytest.mark.parametrize("before", range(6))
@pytest.mark.parametrize("encode", [base64.b64encode, base64.urlsafe_b64encode])
def test_base64_is_found_at_each_alignment(
    flock: Flock, word: str, before: int, encode: Callable[[bytes], bytes]
) -> None:
    """Whatever stands around it, with and without padding."""
    for around in (b"\xff", b"~", b"a"):
        encoded = encode(around * before + word.encode() + around * 2)
        for data in (encoded, encoded.rstrip(b"="), b'{"a":"' + encoded + b'"}'):
            assert ("here", "base64") in {(one.place, one.form) for one in flock.finds("", data)}


@pytest.mark.parametrize("before", range(4))
def test_a_second_coat_of_base64_is_found_at_each_alignment(flock: Flock, word: str, before: int) -> None:
    """The run may begin with letters that are no part of it."""
    once = base64.b64encode(word.encode())
    assert places(flock.finds("", b"A" * before + base64.b64encode(b"-" * before + once + b"--"))) == {"here"}


@pytest.mark.parametrize("part", [slice(None, 12), slice(12, None), slice(None, 20), slice(4, None)], ids=str)
@pytest.mark.parametrize("how", ["plain", "hex", "URL, every byte", "base64 in lines", "gzip"])
def test_half_a_canary_is_found(part: slice, how: str) -> None:
    """What cuts a text may leave a part of a secret."""
    flock = Flock()
    flock.plant("here", word=WORDS[0])
    assert places(flock.finds("", WRAPPED[how](WORDS[0][part]))) == {"here"}


@pytest.mark.parametrize("size", [0, 1, 1_000])
def test_what_holds_no_canary_gives_no_find(flock: Flock, word: str, size: int) -> None:
    """Neither random bytes, nor base64, nor what only begins like something compressed, nor a word turned round."""
    noise = b"".join(word[::-1].encode() + bytes([at % 256]) for at in range(size))
    for magic in (b"", b"\x1f\x8b\x08", b"\x78\x9c", b"\x28\xb5\x2f\xfd", b"\xff\x06\x00\x00S2sTwO"):
        for data in (magic + noise, noise + magic, base64.b64encode(magic + noise), noise.hex().encode()):
            assert flock.finds("", data) == set()


@pytest.mark.parametrize("compression", ["none", "snappy", "gzip", "zstd", "lz4", "brotli"])
def test_a_value_in_a_parquet_file_is_found(flock: Flock, word: str, tmp_path: Path, compression: str) -> None:
    """Text, bytes and lists, dictionaries and long columns, whatever they are packed with."""
    for column in ([word] * 2_000, [word.encode()] * 2_000, [[word, "x"]] * 2_000, [{"a": word}] * 2_000):
        path = tmp_path / "a.parquet"
        pyarrow.parquet.write_table(pyarrow.table({"a": column}), path, compression=compression)
        assert places(flock.finds_in_files(tmp_path)) == {"here"}


@pytest.mark.parametrize("form", ["dictionary", "fsst", "zstd", "dict_fsst", "uncompressed", "auto"])
def test_a_value_in_a_table_is_found(tmp_path: Path, form: str) -> None:
    """Also where the file's bytes do not show it: DuckDB packs text in ways of its own."""
    flock = Flock()
    words = {kind: flock.plant(kind) for kind in ("text", "bytes", "list", "map", "struct")}
    with duckdb.connect(str(tmp_path / "a.duckdb")) as base:
        base.execute(f"pragma force_compression = '{form}'")
        base.execute("create table t (n int, text varchar, bytes blob, list varchar[], map map(varchar, int), s json)")
        base.execute(
            "insert into t select n, 'a' || n || $text, encode('b' || $bytes || n), [$list], map {$map: n},"
            " '{\"a\": \"' || $struct || '\"}' from range(1500) as r(n)",
            words,
        )
    found = flock.finds_in_tables(tmp_path / "a.duckdb")
    assert {(one.place, one.where) for one in found} == {
        (place, f"table t.{'s' if place == 'struct' else place}") for place in words
    }


def test_a_row_that_only_the_log_of_a_killed_database_holds_is_found(flock: Flock, word: str, tmp_path: Path) -> None:
    """A registry that was killed leaves rows in the file beside its database."""
    with duckdb.connect(str(tmp_path / "a.duckdb")) as base:
        base.execute("create table t (a varchar)")
        base.execute("checkpoint")
        base.execute("insert into t values ($1)", [word])
        for path in list(tmp_path.glob("a.duckdb*")):
            (tmp_path / f"killed.{path.name}").write_bytes(path.read_bytes())
    (tmp_path / "a.duckdb").unlink()
    found = {one.where for one in flock.finds_in_files(tmp_path)}
    assert found == {"table t.a", "file killed.a.duckdb.wal"}


def test_the_name_of_a_file_is_searched_too(tmp_path: Path) -> None:
    flock = Flock()
    (tmp_path / flock.plant("a name")).mkdir()
    assert places(flock.finds_in_files(tmp_path)) == {"a name"}


def test_a_find_is_a_stray_unless_it_lies_where_it_may() -> None:
    """`kept` is a pattern of places, and whoever has none may be nowhere."""
    flock = Flock({"a": Canary("a", "x" * 24, kept=r"^table t\.", why="for a test"), "b": Canary("b", "z" * 24)})
    found = {Find(place, where, "plain") for place in "ab" for where in ("table t.a", "file x")}
    assert [(one.place, one.where) for one in flock.strays(found)] == [
        ("a", "file x"),
        ("b", "file x"),
        ("b", "table t.a"),
    ]


@pytest.mark.parametrize(
    ("block", "holds"),
    [
        (b"\x04\x0cabcd", b"abcd"),
        (b"\x0c\x0cabcd\x11\x04", b"abcdabcdabcd"),  # Snappy's near copy, which reaches into itself
        (b"\x08\x0cabcd\x0e\x04\x00", b"abcdabcd"),
        (b"\x08\x0cabcd\x0f\x04\x00\x00\x00", b"abcdabcd"),
        (b"\x10\x0cabcd\x01\x04\x01\x00\x01\x00", b"abcd" * 4),  # S2's: the same distance again
        (b"\x18\x0cabcd\x01\x04\x15\x00\x08", b"abcd" * 2 + b"abcdabcdabcdabcd"),
    ],
    ids=["literal", "near", "far", "farther", "again", "again, long"],
)
def test_each_kind_of_copy_in_a_block_is_undone(block: bytes, holds: bytes) -> None:
    frame = b"\x00" + (len(block) + 4).to_bytes(3, "little") + b"\0\0\0\0" + block
    assert s2(b"\xff\x06\x00\x00S2sTwO" + frame) == holds


@pytest.fixture(scope="module")
def nats(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    with stack(tmp_path_factory.mktemp("nats")) as made:
        yield made


async def connected(nats: Stack) -> Bus:
    return await connect(nats.url, "test")


async def test_a_message_in_a_block_that_the_server_has_compressed_is_found(nats: Stack) -> None:
    """A real server's S2: the file's own bytes do not show the word, and it is found in that very file."""
    flock = Flock()
    word = flock.plant("in a block")
    bus = await connected(nats)
    settings: dict[str, object] = {"name": "PACKED", "subjects": ["packed.>"], "storage": "file", "compression": "s2"}
    settings["max_bytes"] = 8_000_000  # a block is a quarter of it
    await bus.api("STREAM.CREATE.PACKED", settings)
    parts = "".join(f"{word[at : at + 6]} is a part, " for at in range(WORD_LETTERS - 5))  # what a copy can point at
    for number in range(20):
        await bus.request("packed.a", (f"{number} {parts} {word} " + "and so on, " * 20_000).encode())
    await bus.close()

    def packed() -> list[Path]:
        """Blocks that the server has done with: it compresses them behind the next one."""
        blocks = nats.folder.rglob("streams/PACKED/msgs/*.blk")
        return [path for path in blocks if b"\xff\x06\x00\x00S2sTwO" in path.read_bytes()[:64]]

    until(packed, "the server compresses a block")
    for path in packed():
        assert places(flock.finds(path.name, path.read_bytes())) == {"in a block"}
        assert word.encode() not in path.read_bytes()


async def test_subjects_headers_data_and_objects_are_searched(nats: Stack, tmp_path: Path) -> None:
    """In a plain stream, a bucket and an object that is many chunks, the word lying across two of them."""
    flock = Flock()
    words = {place: flock.plant(place) for place in ("subject", "header", "data", "key", "value", "name", "chunks")}
    bus = await connected(nats)
    await bus.api("STREAM.CREATE.PLAIN", {"name": "PLAIN", "subjects": ["plain.>"], "storage": "file"})
    await bus.request(f"plain.{words['subject']}", b"", headers={"X-A": words["header"]})
    await bus.request("plain.data", words["data"].encode())
    await bus.api("STREAM.CREATE.KV_k", bucket("k", 1, history=1))
    await bus.kv_put("k", words["key"], words["value"].encode())
    await bus.api("STREAM.CREATE.OBJ_o", objects("o", 1))
    await bus.api("STREAM.CREATE.OBJ_empty", objects("empty", 1))
    await bus.object_put("o", words["name"], b"." * (128 * 1024 - 12) + words["chunks"].encode() + b"." * 1_000)
    found = await flock.finds_in_streams(bus)
    await bus.close()
    assert places(found) == set(words)
    assert f"object OBJ_o {words['name']}" in {one.where for one in found if one.place == "chunks"}
    assert places(flock.finds_in_files(nats.folder)) >= set(words) - {"name"}

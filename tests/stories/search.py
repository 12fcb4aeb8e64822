"""Looking for what must be nowhere: in every file of a stack, every table, every message, in every spelling."""

import base64
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote, quote_plus

import duckdb


def spellings(text: str) -> set[bytes]:
    """The ways in which text hides: as it is, base64 at each of three offsets (both alphabets), hex, URL."""
    raw = text.encode()
    found = {
        raw,
        raw.hex().encode(),
        raw.hex().upper().encode(),
        quote(text, safe="").encode(),
        quote_plus(text).encode(),
    }
    for shift in range(3):
        padded = base64.b64encode(b"\0" * shift + raw + b"\0" * 3)
        inside = padded[4 if shift else 0 : -8]
        found |= {inside, inside.replace(b"+", b"-").replace(b"/", b"_")}
    return found


def files_with(folder: Path, text: str) -> list[str]:
    """The files below `folder` that hold `text` in any spelling: the stream's and buckets' stores, logs, the rest."""
    wanted = spellings(text)
    return sorted(
        str(path.relative_to(folder))
        for path in folder.rglob("*")
        if path.is_file() and any(one in path.read_bytes() for one in wanted)
    )


def tables(folder: Path) -> Iterator[tuple[str, str]]:
    """Name and rows, as text, of every table of the registry's file (which has one opener: end the registry first)."""
    [path] = folder.rglob("*.duckdb")
    with duckdb.connect(str(path), read_only=True) as base:
        for (name,) in base.execute("SELECT table_name FROM information_schema.tables").fetchall():
            yield name, repr(base.execute(f'SELECT * FROM "{name}"').fetchall())

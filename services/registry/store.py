"""The one opener of the DuckDB file: batches in, answers out. Blocking; the service calls it off its loop.

A batch and the position that it ends at are one transaction, so a kill in the middle neither loses nor doubles a row.
"""

import contextlib
import hashlib
import json
import re
import threading
from datetime import UTC, datetime
from decimal import Decimal
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import duckdb
import msgspec
import pyarrow as pa

from services.registry import reading
from services.registry.fold import Batch, Columns
from shared.clock import now
from shared.errors import Malformed, RemitError

TABLES = (
    "events", "runs", "plans", "steps", "ended_attempts", "approvals", "artifacts", "llm_calls", "ticked",
)  # fmt: skip
VIEWS = ("attempts", "ticks", "hosts", "active_runs", "ended_runs", "open_approvals")
TABLES_AND_VIEWS = frozenset((*TABLES, *VIEWS))

MEMORY = "1GB"  # rows that are read again come from the page cache; what must be held is one batch and one answer
SPILL = "4GB"
# A checkpoint compresses the last row group of every table anew, full or not, and those that deleted rows have left:
# the fewer rows they have, the shorter the live fold stands still. The questions are as quick (docs/performance.md).
ROW_GROUP_ROWS = 10_240
SQL_CHARS_MAX = 20_000
SELECT_FETCH_ROWS = 256
SELECT_BYTES_MAX = 700_000  # one NATS message holds an answer, and 1 MiB at most
# What DuckDB says then, and never of a file that is locked, or that may not be read.
DAMAGED = ("not a valid DuckDB database file", "WAL does not match database file", "replaying WAL")
UNUSABLE = "?\\"  # it puts a log's `.wal` before a `?`, as of a URL, and takes a `\` for a `/`
INT_MAX = (1 << 63) - 1

_AT = pa.timestamp("us")  # UTC, and without a zone: DuckDB needs pytz to hand out one with a zone
_TYPES: dict[str, Any] = {
    "seq": pa.uint64(),
    "run": pa.uint64(),
    "said_at": _AT,
    "submitted_at": _AT,
    "started_at": _AT,
    "ended_at": _AT,
    "dispatched_at": _AT,
    "waits_until": _AT,
    "requested_at": _AT,
    "expires_at": _AT,
    "decided_at": _AT,
    "planned_at": _AT,
    "due_at": _AT,
    "attempt": pa.uint32(),
    "attempts": pa.uint32(),
    "place": pa.uint32(),
    "size_bytes": pa.uint64(),
    "steps_total": pa.uint32(),
    "max_steps": pa.uint32(),
    "time_budget_s": pa.uint32(),
    "token_budget": pa.uint64(),
    "tick": pa.uint64(),
    "schedule_version": pa.int64(),
    "unknown_calls": pa.uint32(),
    "input_tokens": pa.uint64(),
    "output_tokens": pa.uint64(),
    "cached_tokens": pa.uint64(),
    "reasoning_tokens": pa.uint64(),
    "retry_of": pa.uint64(),
    "reused_from": pa.uint64(),
    "from_run": pa.uint64(),
    "approvals_needed": pa.uint32(),
    "applied": pa.bool_(),
    "is_open": pa.bool_(),
    "duration_s": pa.float64(),
    "tasks": pa.list_(pa.string()),
    "approvers": pa.list_(pa.string()),
    "approved_by": pa.list_(pa.string()),
}


@cache
def sql(question: str) -> str:
    """The text of `sql/<question>.sql`."""
    return files("services.registry").joinpath("sql", f"{question}.sql").read_text()


@cache
def shape() -> str:
    """Twelve hex digits over `sql/schema.sql`, comments and line breaks aside: what a file of today says of itself."""
    text = " ".join(re.sub(r"--[^\n]*", "", sql("schema")).split())
    return hashlib.sha256(text.encode()).hexdigest()[:12]


class Damaged(RemitError):
    """The file is no ledger any more: a disk was full as it was made, say. The stream has all that was in it."""


def put_aside(path: Path, ending: str = "") -> Path:
    """Keep a file under another name, which comes back; without `ending`, one that is damaged: it may be no ledger."""
    aside = path.with_name(f"{path.name}.{ending or now().replace(':', '')[:17] + '.damaged'}")
    for end in (".wal", ""):
        with contextlib.suppress(FileNotFoundError):
            path.with_name(path.name + end).rename(aside.with_name(aside.name + end))
    return aside


class Store:
    """One DuckDB file and its writer connection.

    `is_outdated`: the file's tables are of another Remit. Nothing is read from it or written to it but `position`.
    """

    def __init__(self, path: Path, *, threads: int = 1) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            self._writer = _opened(path)
        except duckdb.Error as error:
            if any(words in str(error) for words in DAMAGED):
                raise Damaged(f"{path} is damaged: {error}") from error
            raise RemitError(f"{path} cannot be opened (is another registry running on it?): {error}") from error
        self._writer.execute(f"set threads = {threads}")
        self._writer.execute(f"set memory_limit = '{MEMORY}'")
        self._writer.execute(f"set max_temp_directory_size = '{SPILL}'")
        self.shape = self._shape()
        self.is_outdated = self.shape not in ("", shape())
        if not self.is_outdated:
            self._writer.execute(sql("schema"))
        # Nothing that is asked of this file reaches another one, whatever it is: files, network, extensions, variables
        # of this process. A lock that nobody can open again.
        for wall in ("python_enable_replacements = false", "enable_external_access = false"):
            self._writer.execute(f"set {wall}")
        self._writer.execute("set lock_configuration = true")
        self._strangers: set[Any] = set()
        names = {row[0].lower() for row in self._writer.execute(sql("every_name")).fetchall()}
        self._hidden = frozenset(names) - TABLES_AND_VIEWS
        self._names: dict[str, list[str]] = {}  # of each table's columns, in its order

    def close(self) -> None:
        self._writer.close()

    def _cursor(self) -> Any:
        """A connection of one's own for an answer."""
        return _in_ledger(self._writer.cursor())

    def _shape(self) -> str:
        """What the file says of its tables: "" when it has none yet, `unknown` when it does not say."""
        columns = {row[0] for row in self._writer.execute(sql("folded_columns")).fetchall()}
        if not columns:
            return ""
        row = self._writer.execute("select shape from folded").fetchone() if "shape" in columns else None
        return row[0] if row else "unknown"

    def position(self) -> tuple[str, int]:
        """When the folded stream was created, and the last sequence that is in the tables ("", 0: nothing is)."""
        row = self._writer.execute("select created, seq from folded").fetchone()
        return (row[0], row[1]) if row else ("", 0)

    def begin(self, stream: str, created: str) -> None:
        """Remember which stream this file folds."""
        self._writer.execute("delete from folded")
        self._writer.execute("insert into folded values (?, ?, 0, ?)", [stream, created, shape()])

    def write(self, batch: Batch) -> None:
        """All of a batch, or nothing of it."""
        try:
            self._write(batch)
        except duckdb.OutOfMemoryException:
            # Somebody's query has the memory. The record comes first: it is ended, and the batch tried once more.
            self.interrupt_strangers()
            self._write(batch)

    def interrupt_strangers(self) -> None:
        """End what `select` is at; who asked is told."""
        for cursor in tuple(self._strangers):
            cursor.interrupt()

    def _write(self, batch: Batch) -> None:
        db = self._writer
        db.execute("begin")
        try:
            self._append("events", batch.events)
            self._delete(batch.rewritten, "runs", "steps")
            self._delete(batch.asked_again, "approvals")
            for table in TABLES[1:]:
                self._append(table, getattr(batch, table))
            db.execute("update folded set seq = ?", [batch.position])
            db.execute("commit")
        except BaseException:
            db.execute("rollback")
            raise

    def _delete(self, runs: list[int], *tables: str) -> None:
        """What these runs' rows were; the least of them keeps DuckDB from reading all the older rows."""
        if runs:
            for table in tables:
                self._writer.execute(
                    f"delete from {table} where run >= ? and run in (select unnest(?))", [min(runs), runs]
                )

    def _append(self, table: str, columns: Columns) -> None:
        if next(iter(columns.values())):
            # By place, and without a view by a name: of a few rows it takes a third less than a statement.
            if table not in self._names:
                self._names[table] = self._writer.table(table).columns
                assert set(self._names[table]) == set(columns), table
            ordered = {name: columns[name] for name in self._names[table]}
            self._writer.from_arrow(_table(ordered)).insert_into(table)

    def ask(self, question: str, values: dict[str, Any]) -> list[dict[str, Any]]:
        """The rows that answer `sql/<question>.sql`; times as RFC 3339 text."""
        text = sql(question)
        cursor = self._cursor()
        try:
            used = {name: value for name, value in values.items() if f"${name}" in text}
            cursor.execute(text, used)
            names = [column[0] for column in cursor.description or ()]
            return [{name: _plain(value) for name, value in zip(names, row, strict=True)} for row in cursor.fetchall()]
        finally:
            cursor.close()

    def select(self, text: str, *, rows_max: int, time_s: float) -> tuple[list[str], list[dict[str, Any]], str]:
        """Columns and rows of somebody's query, and why rows are missing ("" when none are); Malformed if it is bad."""
        if len(text) > SQL_CHARS_MAX:
            raise Malformed(f"the query has {len(text)} characters; {SQL_CHARS_MAX} at most", field="sql")
        cursor = self._cursor()
        too_long = threading.Event()

        def end() -> None:
            too_long.set()
            cursor.interrupt()

        ending = threading.Timer(time_s, end)
        ending.daemon = True
        self._strangers.add(cursor)
        ending.start()
        try:
            parsed = cursor.execute("select json_serialize_sql(?::varchar)", [text]).fetchone()[0]
            if why := reading.refusal(json.loads(parsed), TABLES_AND_VIEWS, self._hidden):
                raise Malformed(why, field="sql")
            cursor.execute("begin transaction read only")  # a wall of the engine's own; closing the cursor ends it
            cursor.execute(text)
            names = _distinct([column[0] for column in cursor.description or ()])
            rows: list[dict[str, Any]] = []
            size, cut = 0, ""
            while not cut and (found := cursor.fetchmany(SELECT_FETCH_ROWS)):
                for values in found:
                    row = {name: _wire(value) for name, value in zip(names, values, strict=True)}
                    size += len(msgspec.json.encode(row))
                    if len(rows) == rows_max or size > SELECT_BYTES_MAX:
                        cut = f"cut at {len(rows)} rows" + (
                            "" if len(rows) == rows_max else ": more is too much at once"
                        )
                        break
                    rows.append(row)
        except duckdb.InterruptException as error:
            if too_long.is_set():
                raise Malformed(f"the query was ended after {time_s:g} s; ask for less", field="sql") from error
            raise RemitError("the query was ended: the record needed its memory, or is rebuilt; ask again") from error
        except duckdb.OutOfMemoryException as error:
            raise Malformed("the query needs more memory than there is for it; ask for less", field="sql") from error
        except (duckdb.Error, ValueError, RecursionError) as error:
            told = "times with a zone: cast them, as in now()::timestamp" if "pytz" in str(error) else str(error)
            raise Malformed(told.strip()[:1000], field="sql") from error
        finally:
            ending.cancel()
            self._strangers.discard(cursor)
            cursor.close()
        return names, rows, cut

    def active_events(self) -> list[tuple[str, int, int, bytes, str | None]]:
        """Subject, sequence, stamp (µs), data and unreadable's reason of what a restarted fold starts from."""
        cursor = self._cursor()
        rows = cursor.execute(sql("active_events")).fetchall()
        cursor.close()
        return [
            (subject, seq, _micros(at), (body or "").encode(), unreadable)
            for subject, seq, at, body, unreadable in rows
        ]

    def digest(self) -> dict[str, str]:
        """For each table its count of rows and a sum of their hashes, whatever order they lie in."""
        cursor = self._cursor()
        found: dict[str, str] = {}
        for table in TABLES:
            count, total = cursor.execute(f"select count(*), sum(hash(t)) from {table} t").fetchone()
            found[table] = f"{count}:{hashlib.sha256(str(total).encode()).hexdigest()[:16]}"
        cursor.close()
        return found


def _opened(path: Path) -> Any:
    """A connection to the file, made if it is not there. Only what is attached may have row groups of another size."""
    # Its whole path: what begins as `sqlite:` or `~` does would be read as another kind of place.
    whole = str(path.absolute())
    if odd := next((char for char in UNUSABLE if char in whole), ""):
        raise RemitError(f"{whole}: DuckDB keeps no file on a path with {odd} in it; choose another folder")
    quoted = whole.replace("'", "''")
    db = duckdb.connect()
    try:
        db.execute(f"attach '{quoted}' as ledger (type duckdb, row_group_size {ROW_GROUP_ROWS})")
        # What does not fit into memory goes beside the file: the engine's own choice would be where we were started.
        db.execute(f"set temp_directory = '{quoted}.tmp'")
    except BaseException:
        db.close()
        raise
    return _in_ledger(db)


def _in_ledger(connection: Any) -> Any:
    connection.execute("use ledger")
    return connection


def _table(columns: Columns) -> Any:
    return pa.table({name: pa.array(values, type=_TYPES.get(name, pa.string())) for name, values in columns.items()})


def _micros(at: datetime) -> int:
    since = at.replace(tzinfo=UTC) - datetime(1970, 1, 1, tzinfo=UTC)
    return (since.days * 86_400 + since.seconds) * 1_000_000 + since.microseconds


def _distinct(names: list[str]) -> list[str]:
    """`select a, a` gives `a` and `a_2`: a row is an object, and no column is lost."""
    found: list[str] = []
    for name in names:
        number, said = 2, name
        while said in found:
            said, number = f"{name}_{number}", number + 1
        found.append(said)
    return found


def _wire(value: Any) -> Any:
    """As JSON can hold it: whole numbers beyond 64 bits and decimals as text, bytes as hex, times as RFC 3339."""
    if value is None or isinstance(value, str | bool | float):
        return value
    if isinstance(value, int):
        return value if -INT_MAX <= value <= INT_MAX else str(value)
    if isinstance(value, datetime):
        return _plain(value)
    if isinstance(value, bytes | bytearray):
        return value.hex()
    if isinstance(value, list | tuple):
        return [_wire(one) for one in value]
    if isinstance(value, dict):
        return {str(name): _wire(one) for name, one in value.items()}
    return str(value) if isinstance(value, Decimal) else _wire(str(value))


def _plain(value: Any) -> Any:
    if isinstance(value, datetime):
        return value.strftime("%Y-%m-%dT%H:%M:%S.%fZ")
    return value

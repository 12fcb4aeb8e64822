"""A day's file: messages into Parquet and back, a row group at a time, so memory is bounded whatever the day's size.

The same messages give the same bytes under the same pyarrow, as nothing is written of who wrote them, or when.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from shared.archive.days import Row

GROUP_ROWS = 50_000
GROUP_BYTES = 32 * 1024 * 1024  # of subjects, headers and data; a plan may have half a megabyte
GROUP_BYTES_MOST = GROUP_BYTES + 128 * 1024 * 1024  # and the one message that went over it; a server takes 64 MB
READ_ROWS = 4_096
COMPRESSION = "zstd"
_META = "remit."


def _schema() -> Any:
    import pyarrow as pa

    return pa.schema(
        [
            pa.field("seq", pa.uint64(), nullable=False),
            pa.field("at_ns", pa.int64(), nullable=False),
            pa.field("subject", pa.string(), nullable=False),
            pa.field("headers", pa.binary()),
            pa.field("data", pa.binary(), nullable=False),
        ]
    )


class Writer:
    """`add` each message, then `close` with what the file is to say of itself."""

    def __init__(self, path: Path) -> None:
        import pyarrow.parquet as pq  # a fifth of a second: not for `remit --help`

        self._schema = _schema()
        self._writer = pq.ParquetWriter(str(path), self._schema, compression=COMPRESSION)
        self._rows: list[Row] = []
        self._bytes = 0

    def add(self, row: Row) -> None:
        self._rows.append(row)
        self._bytes += len(row[0]) + len(row[3]) + len(row[4] or b"")
        if len(self._rows) >= GROUP_ROWS or self._bytes >= GROUP_BYTES:
            self._flush()

    def _flush(self) -> None:
        import pyarrow as pa

        if not self._rows:
            return
        subjects, seqs, stamps, data, headers = zip(*self._rows, strict=True)
        arrays = [
            pa.array(values, type=field.type)
            for values, field in zip((seqs, stamps, subjects, headers, data), self._schema, strict=True)
        ]
        self._writer.write_table(pa.Table.from_arrays(arrays, schema=self._schema))
        self._rows, self._bytes = [], 0

    def close(self, **told: object) -> None:
        self._flush()
        self._writer.add_key_value_metadata({f"{_META}{name}": str(value) for name, value in told.items()})
        self._writer.close()

    def give_up(self) -> None:
        """Close without the rest; the file is of no use."""
        self._writer.close()


def rows(path: Path) -> Iterator[Row]:
    """Every message of the file, in its order. ValueError where it cannot be read on, or is no file of ours.

    What a file says of itself is not believed: it may be anybody's. Columns are read as dictionaries where they were
    written so, and a value that stands there once is in memory once.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = _schema()
    texts = [field.name for field in schema if not pa.types.is_integer(field.type)]
    try:
        _refuse_foreign(path, schema)
        with pq.ParquetFile(str(path), read_dictionary=texts) as file:
            for batch in file.iter_batches(READ_ROWS, columns=schema.names):
                columns = [_values(batch.column(name)) for name in schema.names]
                for seq, at_ns, subject, headers, data in zip(*columns, strict=True):
                    if subject is None or data is None or seq is None or at_ns is None or at_ns < 0:
                        raise ValueError("a message in it has no subject, data or number, or is from before 1970")
                    yield subject, seq, at_ns, data, headers
    except (pa.ArrowException, OSError, MemoryError) as error:
        text = str(error) or type(error).__name__
        raise ValueError(f"it cannot be read: {text.splitlines()[0][:200]}") from error


def _refuse_foreign(path: Path, schema: Any) -> None:
    """ValueError unless the file has our columns, in row groups of our size."""
    import pyarrow.parquet as pq

    found = pq.read_metadata(str(path))
    names, kinds = found.schema.to_arrow_schema().names, found.schema.to_arrow_schema().types
    of = dict(zip(names, kinds, strict=True))
    for field in schema:
        kind = of.get(field.name, "not there")
        if kind != field.type:
            raise ValueError(f"it is no file of an archive: its column {field.name} is {kind}, and not {field.type}")
    for number in range(found.num_row_groups):
        group = found.row_group(number)
        if group.num_rows > GROUP_ROWS or group.total_byte_size > GROUP_BYTES_MOST:
            size = f"{group.num_rows} rows, {group.total_byte_size} bytes"
            raise ValueError(f"it is no file of an archive: its row group {number} has {size}")


def _values(column: Any) -> list[Any]:
    import pyarrow as pa

    if not pa.types.is_dictionary(column.type):
        return list(column.to_pylist())
    values = column.dictionary.to_pylist()
    return [None if at is None else values[at] for at in column.indices.to_pylist()]


def told(path: Path) -> dict[str, str]:
    """What the file says of itself. ValueError when it is no Parquet."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        found = pq.read_metadata(str(path)).metadata or {}
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"it cannot be read: {str(error).splitlines()[0][:200]}") from error
    return {
        name.decode().removeprefix(_META): value.decode()
        for name, value in found.items()
        if name.startswith(_META.encode())
    }

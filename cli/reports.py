"""`remit tokens|usage|daily|sql`: what the registry knows, as tables with bars, JSON, CSV or Parquet."""

import csv
import io
import sys
from collections.abc import Callable, Iterable, Sequence
from functools import wraps
from pathlib import Path
from typing import Any, get_args

import click
import msgspec

from cli.speak import ask, data, ends_well, nats_option, plain, table, talk, whole, with_bus
from shared.clock import now
from shared.errors import UNREADABLE, Malformed, RemitError
from shared.ledger import LIMIT_MAX, SELECT_ROWS_MAX, TOKENS_BY, By, Question, Rates

ASK_S = 15.0
AS_OF_S = 600.0
BAR_CHARS = 24
# What a spreadsheet takes for a formula at the beginning of a cell; the last four are the full-width ones of East Asia.
FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n", "\uff1d", "\uff0b", "\uff0d", "\uff20")
FILES = ("csv", "parquet")
COUNTS = ("calls", "unknown_calls", "input_tokens", "output_tokens", "cached_tokens", "reasoning_tokens")
# Several tables in one file: each with all its columns, whatever has rows that day, so that files can be put together.
USAGE = {
    "run": ("status", "runs", "p50_s", "p95_s", "repeated_runs"),
    "step": ("task", "status", "steps", "attempts", "retries", "p50_s", "p95_s"),
    "approval": ("status", "approvals", "p50_wait_s", "p95_wait_s"),
}
DAILY = {
    "run": ("status", "runs", "p50_s", "p95_s"),
    "failure": ("run", "status", "directive", "reason", "ended_at", "step", "task", "error", "message"),
    "approval": ("status", "by_whom", "approvals", "p50_wait_s"),
    "tick": ("schedule", "outcome", "ticks", "reason"),
    "tokens": ("model", *COUNTS, "duration_s", "cost"),
    "total": ("calls", "unknown_calls", "input_tokens", "output_tokens", "currency", "cost", "cost_is_whole"),
}
# In Parquet a report's columns are of one type, whatever is in them that day: files are read together.
WHOLE_NUMBERS = frozenset(
    ("run", "runs", "repeated_runs", "steps", "attempts", "retries", "approvals", "ticks", *COUNTS)
)
WORDS = frozenset(
    (
        "what", "status", "directive", "reason", "ended_at", "step", "task", "error", "message", "schedule", "outcome",
        "day", "model", "host", "currency",
    )
)  # fmt: skip
FRACTIONS = frozenset(("p50_s", "p95_s", "p50_wait_s", "p95_wait_s", "duration_s", "cost"))

Rows = list[dict[str, Any]]


def printed(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options of every command that prints a report."""

    @wraps(command)
    def checked(*args: Any, output: str, to: Path | None, **more: Any) -> Any:
        if to is not None and output not in FILES:
            raise click.UsageError(f"--to is for -o csv and -o parquet; anything else: > {to}")
        return command(*args, output=output, to=to, **more)

    made = click.option(
        "--to", type=click.Path(dir_okay=False, path_type=Path), help="Write csv or parquet into this file."
    )(checked)
    made = click.option(
        "-o",
        "--output",
        type=click.Choice(["text", "json", "csv", "parquet"]),
        default="text",
        help="How to print the data.",
    )(made)
    return nats_option(made)


def between(command: Callable[..., Any]) -> Callable[..., Any]:
    for name, help_text in (
        ("--until", "Up to this time, or the beginning of this day (UTC)."),
        ("--since", "From this day (2026-11-21) or time (2026-11-21T09:30:00Z) on."),
    ):
        command = click.option(name, metavar="WHEN", help=help_text)(command)
    return command


@click.command()
@click.option("--by", type=click.Choice(TOKENS_BY), help="Sum by this (default: by day and model).")
@between
@printed
@ends_well
def tokens(by: By | None, since: str | None, until: str | None, output: str, to: Path | None) -> None:
    """Show what language models' calls used. What a server did not report is unknown, and never counted as 0."""
    assert by is None or by in get_args(By)
    question = Question(by=by, since=since, until=until, limit=LIMIT_MAX)
    rows, first = with_bus(lambda bus: whole(bus, "tokens", question))
    total = first.more["total"]
    keys = (by,) if by else ("day", "model")
    if output == "json":
        data({"total": total, "rows": rows})
    elif output != "text":
        _written(rows, (*keys, *COUNTS, "duration_s"), output, to)
    else:
        shown = [_counted(row) for row in rows]
        columns: tuple[str, ...] = (*keys, "calls", "unknown_calls", "input_tokens", "output_tokens")
        _bars(shown, columns, [_sum(row) for row in rows], "tokens")
        unknown = f" ({total['unknown_calls']} of unknown usage)" if total["unknown_calls"] else ""
        read, written = ("unknown" if n is None else n for n in (total["input_tokens"], total["output_tokens"]))
        talk(f"{total['calls']} calls{unknown}: {read} tokens in, {written} out")


@click.command()
@between
@printed
@ends_well
def usage(since: str | None, until: str | None, output: str, to: Path | None) -> None:
    """Show how runs and steps ended, how long they took, retries, and how long answers were waited for."""
    more = with_bus(lambda bus: ask(bus, "usage", Question(since=since, until=until), timeout_s=ASK_S)).more
    if output == "json":
        data(more)
    elif output != "text":
        _written(*flat({name: more[f"{name}s"] for name in USAGE}, USAGE), output, to)
    else:
        _head("runs")
        _bars(more["runs"], ("status", "runs", "p50_s", "p95_s"), [row["runs"] for row in more["runs"]])
        _head("steps")
        steps = ("task", "status", "steps", "attempts", "retries", "p50_s", "p95_s")
        _bars(more["steps"], steps, [row["steps"] for row in more["steps"]])
        _head("approvals")
        waits = ("status", "approvals", "p50_wait_s", "p95_wait_s")
        _bars(more["approvals"], waits, [row["approvals"] for row in more["approvals"]])


@click.command()
@click.argument("day", required=False)
@click.option("--rates", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="Prices, as JSON.")
@printed
@ends_well
def daily(day: str | None, rates: Path | None, output: str, to: Path | None) -> None:
    """One page for a DAY (UTC; default: today): runs, failures and why, approvals and by whom, ticks, tokens, cost.

    Prices are those of the config's key `rates`, or of a file:
    {"currency": "EUR", "models": {"small": {"input_per_million": 0.15, "output_per_million": 0.6}}}
    """
    question = Question(day=day or now()[:10], limit=LIMIT_MAX, rates=_rates(rates) if rates else None)
    failures, first = with_bus(lambda bus: whole(bus, "daily", question))
    page = {**first.more, "failures": failures}
    if output == "json":
        data(page)
    elif output != "text":
        parts = {"run": page["runs"], "failure": failures, "approval": page["approvals"], "tick": page["ticks"]}
        _written(*flat({**parts, "tokens": page["tokens"], "total": [page["total"]]}, DAILY), output, to)
    else:
        _daily(page)
    if page.get("cut"):
        talk(f"{page['cut']}; `remit tokens --by model` has all models, `remit sql` the rest")


def _daily(page: dict[str, Any]) -> None:
    _head(f"{page['day']}: {sum(row['runs'] for row in page['runs'])} runs")
    _bars(page["runs"], ("status", "runs", "p50_s", "p95_s"), [row["runs"] for row in page["runs"]])
    for name, rows, columns in (
        ("failures", page["failures"], ("run", "status", "directive", "step", "error", "reason")),
        ("approvals", page["approvals"], ("status", "by_whom", "approvals", "p50_wait_s")),
        ("ticks", page["ticks"], ("schedule", "outcome", "ticks", "reason")),
    ):
        _head(name)
        if rows:
            named = [{**row, "by_whom": [who or "somebody" for who in row.get("by_whom") or []]} for row in rows]
            table([_rounded(row) for row in named], columns)
        else:
            click.echo("none")
    _head("tokens")
    priced = ("cost",) if page["total"]["currency"] else ()
    shown = [{**_counted(row), "cost": "unknown" if row.get("cost") is None else row["cost"]} for row in page["tokens"]]
    used = ("model", "calls", "unknown_calls", "input_tokens", "output_tokens", *priced)
    _bars(shown, used, [_sum(row) for row in page["tokens"]], "tokens")
    total = page["total"]
    if total["currency"]:
        least = "" if total["cost_is_whole"] else "at least " if total["cost"] is not None else ""
        told = "unknown" if total["cost"] is None else f"{total['cost']:.2f} {total['currency']}"
        why = "" if total["cost_is_whole"] else " (usage or a price is unknown)"
        click.echo(plain(f"cost: {least}{told}{why}"))


@click.command()
@click.argument("query")
@click.option("--as-of", metavar="SEQ|WHEN", help="The tables as they stood at this event, day or time.")
@click.option("--limit", type=click.IntRange(1, SELECT_ROWS_MAX), default=1000, show_default=True, help="Rows at most.")
@printed
@ends_well
def sql(query: str, as_of: str | None, limit: int, output: str, to: Path | None) -> None:
    """Run one select over the registry's tables; nothing can be changed, read from a file or fetched by it."""
    if as_of:
        talk("folding the stream up to there")
    question = Question(sql=query, as_of=as_of, limit=limit)
    answer = with_bus(
        lambda bus: ask(bus, "sql", question, timeout_s=AS_OF_S if as_of else ASK_S, as_it_stands=bool(as_of))
    )
    columns = answer.more["columns"]
    if output == "json":
        data({"columns": columns, "rows": answer.rows, "cut": answer.more["cut"], "position": answer.position})
    elif output != "text":
        _written(answer.rows, columns, output, to, is_report=False)
    else:
        table(answer.rows, columns)
    if answer.more["cut"]:
        talk(f"{answer.more['cut']}; --limit goes up to {SELECT_ROWS_MAX}, or select less")
    if as_of:
        talk(f"as of event {answer.more['as_of']}, folded in {answer.more['folded_s']} s")


def _rates(path: Path) -> Rates:
    try:
        return msgspec.json.decode(path.read_bytes(), type=Rates)
    except UNREADABLE as error:
        raise Malformed(f"{path} holds no prices: {error}", field="--rates") from error


# -- printing ----------------------------------------------------------------------------------------------------


def _head(text: str) -> None:
    click.echo(click.style(f"\n{plain(text)}", bold=True))


def _sum(row: dict[str, Any]) -> int:
    return (row["input_tokens"] or 0) + (row["output_tokens"] or 0)


def _counted(row: dict[str, Any]) -> dict[str, Any]:
    """Counts for a person: unknown where nothing was reported, and a + where something was not."""
    shown = dict(row)
    for name in ("input_tokens", "output_tokens"):
        known = row[name]
        shown[name] = "unknown" if known is None else f"{known:,}" + (" +" if row["unknown_calls"] else "")
    return shown


def _rounded(row: dict[str, Any]) -> dict[str, Any]:
    return {name: round(value, 3) if isinstance(value, float) else value for name, value in row.items()}


def _bars(rows: Rows, columns: Sequence[str], sizes: Iterable[float], title: str = "") -> None:
    """A table with a bar for each row's size beside the largest."""
    sizes = list(sizes)
    if not rows:
        click.echo("none")
        return
    most = max(sizes, default=0) or 1
    shown = [
        {**_rounded(row), "bar": "█" * max(round(size / most * BAR_CHARS), 1 if size else 0)}
        for row, size in zip(rows, sizes, strict=True)
    ]
    table(shown, (*columns, "bar"), titles={"bar": title})


def flat(parts: dict[str, Rows], columns: dict[str, tuple[str, ...]]) -> tuple[Rows, list[str]]:
    """Several tables as one, and its columns: `what` says of which each row is. A newer registry's come behind."""
    known = [name for names in columns.values() for name in names]
    names = list(dict.fromkeys((*known, *(name for rows in parts.values() for row in rows for name in row))))
    rows = [{"what": what, **{name: row.get(name) for name in names}} for what, rows in parts.items() for row in rows]
    return rows, ["what", *names]


def cell(value: Any) -> Any:
    """A value as it may stand in a spreadsheet: text that would be a formula there begins with an apostrophe."""
    if isinstance(value, list | dict):
        value = msgspec.json.encode(value).decode()
    return f"'{value}" if isinstance(value, str) and value.startswith(FORMULA) else value


def csv_text(rows: Rows, columns: Sequence[str]) -> str:
    """RFC 4180; what is null is empty."""
    made = io.StringIO()
    writer = csv.writer(made)
    writer.writerow([cell(name) for name in columns])
    writer.writerows([cell(row.get(name)) for name in columns] for row in rows)
    return made.getvalue()


def parquet_bytes(rows: Rows, columns: Sequence[str], *, is_report: bool = False) -> bytes:
    """A report's columns have their types; of a query's answer they are those of its values, or text."""
    import pyarrow as pa
    from pyarrow import parquet

    kinds = {
        **dict.fromkeys(WHOLE_NUMBERS, pa.int64()),
        **dict.fromkeys(WORDS, pa.string()),
        **dict.fromkeys(FRACTIONS, pa.float64()),
        "by_whom": pa.list_(pa.string()),
        "cost_is_whole": pa.bool_(),
    }

    def column(name: str) -> Any:
        values = [row.get(name) for row in rows]
        if is_report and name in kinds:
            return pa.array(values, type=kinds[name])
        try:
            made = pa.array(values)
        except (pa.ArrowInvalid, pa.ArrowTypeError):  # values of more than one type
            return pa.array([_text(value) for value in values], type=pa.string())
        # A column without a value has no type, and no file behind it could be read with it.
        return made.cast(pa.string()) if pa.types.is_null(made.type) else made

    made = io.BytesIO()
    parquet.write_table(pa.table({name: column(name) for name in columns}), made)
    return made.getvalue()


def _text(value: Any) -> str | None:
    return None if value is None else value if isinstance(value, str) else msgspec.json.encode(value).decode()


def _written(rows: Rows, columns: Sequence[str], output: str, to: Path | None, *, is_report: bool = True) -> None:
    made = csv_text(rows, columns).encode() if output == "csv" else parquet_bytes(rows, columns, is_report=is_report)
    if to is not None:
        try:
            to.write_bytes(made)
        except OSError as error:
            raise RemitError(f"{to} cannot be written: {error}") from error
        talk(f"{len(rows)} rows in {to}")
    elif output == "parquet" and sys.stdout.isatty():
        raise Malformed("Parquet is nothing for a terminal: name a file, or send it into a pipe", field="--to")
    else:
        sys.stdout.buffer.write(made)
        sys.stdout.buffer.flush()

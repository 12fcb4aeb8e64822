"""Tokens, usage and a day's page, as they are asked: every page, and nothing invented where nothing was reported."""

import csv
import io
import json
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from pyarrow import parquet

from bench.made import stream as made_stream
from cli.reports import COUNTS, DAILY, FRACTIONS, USAGE, WHOLE_NUMBERS, WORDS, cell, csv_text, flat, parquet_bytes
from services.registry import reports
from services.registry.fold import Fold
from services.registry.store import Store
from shared.append import Appender
from shared.bus import Bus
from shared.errors import Malformed
from shared.events import LlmCalled, Tokens, encode
from shared.ledger import TOKENS_BY, Answer, Question, Rate, Rates, cost, whole_day
from shared.showing import tokens_told
from shared.subjects import llm_called, plan_created, run_completed, run_started, step_completed, step_dispatched
from tests import controls
from tests.conftest import until
from tests.controls import Stream
from tests.registry.conftest import LEDGER, ask, last_seq
from tests.stack import Stack

RATES = Rates(currency="EUR", models={"small-2026": Rate(input_per_million=1, output_per_million=2)})


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    """Three hundred runs over ninety days."""
    store, fold = Store(tmp_path_factory.mktemp("ledger") / LEDGER), Fold()
    store.begin("EVENTS", "2026")
    for message in made_stream(300, seed=3):
        fold.add(*message)
    store.write(fold.take())
    yield store
    store.close()


async def tokens(store: Store, question: Question) -> Answer:
    async def read(name: str, **values: Any) -> list[dict[str, Any]]:
        return store.ask(name, values)

    return await reports.tokens(read, question)


def one(store: Store, query: str) -> dict[str, Any]:
    return store.select(query, rows_max=1, time_s=10)[1][0]


@pytest.mark.parametrize("by", [None, *TOKENS_BY])
@pytest.mark.parametrize("limit", [1, 7, 1000])
async def test_every_page_together_is_the_whole(store: Store, by: Any, limit: int) -> None:
    """Whatever is summed by: the pages give each group once, and their sums are the table's."""
    question = Question(by=by, limit=limit)
    answer = await tokens(store, question)
    total, found = answer.more["total"], list(answer.rows)
    while answer.next_page is not None:
        answer = await tokens(store, Question(by=by, limit=limit, page=answer.next_page))
        assert answer.rows or limit <= len(found)
        found += answer.rows
    keys = [(row["day"], row["model"]) if by is None else row[by] for row in found]
    assert len(keys) == len(set(keys))
    whole = one(store, "select count(*) as calls, sum(input_tokens)::bigint as i from llm_calls")
    assert sum(row["calls"] for row in found) == total["calls"] == whole["calls"] > 100
    assert sum(row["input_tokens"] or 0 for row in found) == total["input_tokens"] == whole["i"]


async def test_a_span_holds_its_beginning_and_not_its_end(store: Store) -> None:
    days = [row["day"] for row in (await tokens(store, Question(by="day", limit=1000))).rows]
    some = await tokens(store, Question(by="day", limit=1000, since=days[5], until=days[2]))
    assert [row["day"] for row in some.rows] == days[3:6]
    assert sum(row["calls"] for row in some.rows) == some.more["total"]["calls"]


async def test_usage_that_was_not_reported_is_unknown(store: Store) -> None:
    """The calls without a usage carry the name that was asked for: their sums are null, never 0."""
    found = (await tokens(store, Question(by="model", limit=10))).rows
    lost = [row for row in found if row["unknown_calls"] == row["calls"]]
    assert lost
    assert {(row["input_tokens"], row["output_tokens"], row["cached_tokens"]) for row in lost} == {(None, None, None)}
    assert {row["reasoning_tokens"] for row in found} == {None}


@pytest.fixture
def called(tmp_path: Path) -> Iterator[Callable[..., Store]]:
    """A store of one run that has made these calls."""
    store, fold, stream = Store(tmp_path / LEDGER), Fold(), Stream()
    store.begin("EVENTS", "2026")

    def made(*calls: LlmCalled) -> Store:
        run = stream.planned()
        stream.put(run_started(run), controls.started())
        stream.put(step_dispatched(run, "a", 1, "noop"), controls.dispatched())
        for number, call in enumerate(calls, 1):
            stream.put(llm_called(run, "a", f"1-{number}"), call)
        for message in stream.messages:
            fold.add(*message)
        store.write(fold.take())
        return store

    yield made
    store.close()


@pytest.mark.parametrize("limit", [1, 2, 1000])
async def test_a_model_is_whatever_it_calls_itself(called: Callable[..., Store], limit: int) -> None:
    """Some servers answer without a name; another one has the name under which calls on no host are shown."""
    store = called(*(controls.called(response_model=name) for name in ("", "(none)", "a", "\uffff")))
    answer = await tokens(store, Question(by="model", limit=limit))
    found = list(answer.rows)
    while answer.next_page is not None:
        answer = await tokens(store, Question(by="model", limit=limit, page=answer.next_page))
        found += answer.rows
    assert [row["model"] for row in found] == ["", "(none)", "a", "\uffff"]
    [host] = (await tokens(store, Question(by="host"))).rows
    assert (host["host"], host["calls"]) == (None, 4)


async def test_a_total_of_which_nothing_was_reported_is_unknown(called: Callable[..., Store]) -> None:
    """As the rows are; of no calls at all it is 0."""
    store = called(controls.called(input_tokens=None, output_tokens=None))
    asked = Question(limit=10)
    assert (await tokens(store, asked)).more["total"] == {
        "calls": 1, "unknown_calls": 1, "input_tokens": None, "output_tokens": None
    }  # fmt: skip
    assert (await tokens(store, Question(until="2020-01-01"))).more["total"] == {
        "calls": 0, "unknown_calls": 0, "input_tokens": 0, "output_tokens": 0
    }  # fmt: skip


@pytest.mark.parametrize("room", [1, 3_000, 800_000])
async def test_a_page_is_no_larger_than_a_message(store: Store, monkeypatch: pytest.MonkeyPatch, room: int) -> None:
    """However many rows may be in it: the next one goes on there, and all of them together are the whole."""
    monkeypatch.setattr(reports, "PAGE_BYTES_MAX", room)

    async def read(name: str, **values: Any) -> list[dict[str, Any]]:
        return store.ask(name, values)

    found, before = [], reports.RUN_BEYOND_ALL
    while True:
        rows, are_more = await reports.paged(read, "runs", 1000, before=before, status=None)
        assert len(rows) == 1 or len(json.dumps(rows, separators=(",", ":"))) <= room
        found += rows
        if not are_more:
            break
        before = rows[-1]["run"]
    assert found == store.ask("runs", {"before": reports.RUN_BEYOND_ALL, "status": None, "limit": 1000})


async def test_hosts_come_a_page_at_a_time(remit: Stack, bus: Bus, filled: int, appender: Appender) -> None:
    """A fleet whose hosts come and go leaves ever more names."""
    names = [f"pod-{number:03}" for number in range(120)]
    for name in names:
        run = await appender.append("goal.submitted", b'{"tasks": ["noop"]}', headers={})
        for subject, body in (
            (plan_created(run), controls.plan()),
            (run_started(run), controls.started()),
            (step_dispatched(run, "a", 1, "noop"), controls.dispatched()),
            (step_completed(run, "a", 1), controls.completed(host=name)),
        ):
            await appender.append(subject, encode(body))
    first = await ask(bus, "hosts", Question(limit=100, min_seq=await last_seq(bus)))
    second = await ask(bus, "hosts", Question(limit=100, page=first.next_page))
    assert [row["host"] for row in first.rows + second.rows] == [*names, "tower"]
    assert (len(first.rows), second.next_page) == (100, None)
    assert [row["host"] for row in printed(remit, "hosts", "-o", "json")] == [*names, "tower"]


async def test_a_day_of_many_models_says_that_not_all_are_listed(
    called: Callable[..., Store], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The cost is then that of some, and not whole; the total is of all."""
    monkeypatch.setattr(reports, "GROUPS_MAX", 2)
    store = called(*(controls.called(response_model=name) for name in "abc"))

    async def read(name: str, **values: Any) -> list[dict[str, Any]]:
        return store.ask(name, values)

    rates = Rates(currency="EUR", models={name: Rate(input_per_million=1, output_per_million=1) for name in "abc"})
    day = str(one(store, "select max(said_at)::date as d from llm_calls")["d"])
    more = (await reports.daily(read, Question(day=day), rates)).more
    assert [row["model"] for row in more["tokens"]] == ["a", "b"] and more["cut"] == "tokens cut at 2 rows"
    assert (more["total"]["calls"], more["total"]["cost_is_whole"]) == (3, False)
    monkeypatch.setattr(reports, "GROUPS_MAX", 3)
    more = (await reports.daily(read, Question(day=day), rates)).more
    assert more["cut"] is None and more["total"]["cost_is_whole"] is True


@pytest.mark.parametrize(
    ("reported", "costs"), [((2, 3), 8.0), ((2, None), 2.0), ((None, 3), 6.0), ((None, None), None), ((0, 0), 0.0)]
)
def test_what_was_reported_has_its_cost(reported: tuple[int | None, int | None], costs: float | None) -> None:
    """Half of a usage, too; of none nobody knows it."""
    read, written = reported
    row = {"model": "m", "input_tokens": read, "output_tokens": written, "cached_tokens": None}
    rates = Rates(currency="EUR", models={"m": Rate(input_per_million=1e6, output_per_million=2e6)})
    assert cost(row, rates) == costs


def test_a_run_of_unknown_usage_is_told_so() -> None:
    assert tokens_told(Tokens()) == "tokens: 0 in, 0 out"
    assert tokens_told(Tokens(input=7, unknown_calls=2)) == "tokens: 7 in, unknown out, 2 calls of unknown usage"


async def test_a_day_s_page_says_what_it_does_not_know(store: Store) -> None:
    """Its cost is that of what has a price and was reported, and it says so when that is not all."""

    async def read(name: str, **values: Any) -> list[dict[str, Any]]:
        return store.ask(name, values)

    failed = one(
        store,
        "select strftime(ended_at, '%Y-%m-%d') as day, run from runs r where status = 'failed' and exists (select 1"
        " from llm_calls c where c.said_at::date = r.ended_at::date and c.response_model != 'small-2026')",
    )
    page = await reports.daily(read, Question(day=failed["day"], limit=50), RATES)
    [row] = [row for row in page.rows if row["run"] == failed["run"]]
    assert (row["step"], row["error"], row["reason"]) == ("b", "unavailable", "step b failed: unavailable")
    total, models = page.more["total"], page.more["tokens"]
    priced = [row for row in models if row["model"] == "small-2026"]
    assert total["cost"] == pytest.approx(sum((r["input_tokens"] + 2 * r["output_tokens"]) / 1e6 for r in priced))
    assert total["cost_is_whole"] is False
    assert [row["cost"] for row in models if row["model"] != "small-2026"] == [None] * (len(models) - len(priced))
    without = await reports.daily(read, Question(day=failed["day"], limit=50), None)
    assert (without.more["total"]["cost"], without.more["total"]["cost_is_whole"]) == (None, False)
    assert sum(row["ticks"] for row in page.more["ticks"]) <= 1


async def test_how_runs_steps_and_questions_went(store: Store) -> None:
    async def read(name: str, **values: Any) -> list[dict[str, Any]]:
        return store.ask(name, values)

    usage = (await reports.usage(read, Question())).more
    assert sum(row["runs"] for row in usage["runs"]) == 300
    assert {row["status"] for row in usage["runs"]} == {"succeeded", "failed"}
    assert sum(row["retries"] for row in usage["steps"]) > 0
    assert [row["status"] for row in usage["approvals"]] == ["approved"]


@pytest.mark.parametrize("text", ["2026-13-01", "2026-1-1", "yesterday", "", "2026-11-18T00:00:00Z", "9999-12-31"])
def test_a_day_is_a_day(text: str) -> None:
    with pytest.raises(Malformed):
        whole_day(text)


def test_a_cell_is_never_a_formula() -> None:
    """Numbers stay numbers; text that a spreadsheet would compute gets an apostrophe; nothing else is changed."""
    for text in (
        "=1+1",
        "+1",
        "-1",
        "@SUM(A1)",
        "\t=1",
        "\r=1",
        "\n=1",
        "\uff1d1+1",
        "\uff0b1",
        "\uff0d1",
        "\uff20SUM(A1)",
    ):
        assert cell(text) == f"'{text}"
    assert [cell(value) for value in (-1, -1.5, None, "a=1", "", ["-x"])] == [-1, -1.5, None, "a=1", "", '["-x"]']
    told = csv_text([{"a": "=HYPERLINK(1)", "b": 'two\n"lines"'}], ["a", "b"])
    assert list(csv.reader(io.StringIO(told))) == [["a", "b"], ["'=HYPERLINK(1)", 'two\n"lines"']]


def test_a_file_of_several_tables_has_all_columns_whatever_has_rows() -> None:
    """Days are put together into one file: a day without an approval has the columns of a day with one."""
    empty, columns = flat({name: [] for name in DAILY}, DAILY)
    assert empty == [] and csv_text(empty, columns).startswith("what,status,runs,p50_s,p95_s,run,directive,reason,")
    rows, same = flat({"approval": [{"status": "approved", "by_whom": ["ann"]}]}, DAILY)
    assert same == columns and rows[0]["what"] == "approval" and rows[0].keys() == set(columns)
    _, more = flat({"run": [{"status": "failed", "of_a_newer_registry": 1}]}, DAILY)
    assert more == [*columns, "of_a_newer_registry"]


async def test_their_columns_are_those_of_the_rows(store: Store) -> None:
    async def read(name: str, **values: Any) -> list[dict[str, Any]]:
        return store.ask(name, values)

    used = (await reports.usage(read, Question())).more
    page = await reports.daily(
        read, Question(day=str(one(store, "select max(ended_at)::date as d from runs")["d"])), RATES
    )
    for columns, parts in (
        (USAGE, {name: used[f"{name}s"] for name in USAGE}),
        (DAILY, {"run": page.more["runs"], "failure": page.rows, "approval": page.more["approvals"]}),
        (DAILY, {"tick": page.more["ticks"], "tokens": page.more["tokens"], "total": [page.more["total"]]}),
    ):
        assert any(parts.values())
        for name, rows in parts.items():
            assert all(set(row) == set(columns[name]) for row in rows), name


def read_back(made: bytes) -> Any:
    return parquet.read_table(io.BytesIO(made))


async def test_parquet_of_a_quiet_day_has_the_types_of_a_busy_one(store: Store) -> None:
    """So that a tool reads files together, whichever comes first; every column of a report has its type."""

    async def read(name: str, **values: Any) -> list[dict[str, Any]]:
        return store.ask(name, values)

    quiet = read_back(parquet_bytes([], ("model", *COUNTS, "duration_s"), is_report=True))
    rows = (await tokens(store, Question(by="model", limit=10))).rows
    assert rows and read_back(parquet_bytes(rows, quiet.schema.names, is_report=True)).schema.equals(quiet.schema)
    for names in (DAILY, USAGE):
        _, columns = flat({name: [] for name in names}, names)
        kinds = {field.name: field.type for field in read_back(parquet_bytes([], columns, is_report=True)).schema}
        assert kinds.keys() <= {*WHOLE_NUMBERS, *WORDS, *FRACTIONS, "by_whom", "cost_is_whole"}
    busy = str(one(store, "select max(ended_at)::date as d from runs")["d"])
    page = await reports.daily(read, Question(day=busy), RATES)
    both = {"run": page.more["runs"], "failure": page.rows, "approval": page.more["approvals"]}
    assert read_back(parquet_bytes(*flat(both, DAILY), is_report=True)).num_rows == sum(map(len, both.values()))


def test_a_column_of_several_types_leaves_the_others_as_they_are() -> None:
    made = read_back(parquet_bytes([{"a": 1, "b": 2, "c": None}, {"a": "x", "b": 3, "c": None}], ("a", "b", "c")))
    assert made.to_pydict() == {"a": ["1", "x"], "b": [2, 3], "c": [None, None]}
    assert [str(field.type) for field in made.schema] == ["string", "int64", "string"]


@pytest.fixture
async def filled(remit: Stack, bus: Bus, appender: Appender) -> AsyncIterator[int]:
    """A registry with one run that has called a model; the run."""
    run = await appender.append("goal.submitted.ann", b'{"tasks": ["noop"]}', headers={})
    for subject, body in (
        (plan_created(run), controls.plan()),
        (run_started(run), controls.started()),
        (step_dispatched(run, "a", 1, "noop"), controls.dispatched()),
        (llm_called(run, "a", "1-1"), controls.called(response_model="=small")),
        (llm_called(run, "a", "1-2"), controls.called(input_tokens=None)),
        (step_completed(run, "a", 1), controls.completed()),
        (run_completed(run), controls.run_over()),
    ):
        await appender.append(subject, encode(body))
    remit.start("registry")
    await ask(bus, "status", Question(min_seq=await last_seq(bus)))
    yield run


def printed(remit: Stack, *words: str) -> Any:
    done = remit.remit(*words)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout) if "json" in words else done.stdout


async def test_the_verbs_print_tables_json_csv_and_parquet(remit: Stack, filled: int) -> None:
    assert printed(remit, "tokens", "-o", "json")["total"]["input_tokens"] == 30
    [host] = printed(remit, "tokens", "--by", "host", "-o", "json")["rows"]
    assert (host["host"], host["calls"], host["unknown_calls"]) == ("tower", 2, 1)
    told = list(csv.DictReader(io.StringIO(printed(remit, "tokens", "--by", "model", "-o", "csv"))))
    assert [row["model"] for row in told] == ["'=small", "small"]
    assert [row["input_tokens"] for row in told] == ["30", ""]
    text = printed(remit, "tokens", "--by", "model")
    assert "unknown" in text and "█" in text
    file = remit.folder / "usage.parquet"
    assert printed(remit, "usage", "-o", "parquet", "--to", str(file)) == ""
    assert parquet.read_table(file).column("what").to_pylist() == ["run", "step"]
    rates = remit.folder / "rates.json"
    rates.write_text('{"currency":"EUR","models":{"small":{"input_per_million":1,"output_per_million":2}}}')
    day = one_day(remit)
    page = printed(remit, "daily", day, "--rates", str(rates), "-o", "json")
    assert page["total"]["currency"] == "EUR" and page["total"]["cost_is_whole"] is False
    assert page["runs"][0]["status"] == "succeeded" and page["failures"] == []
    assert "cost:" in printed(remit, "daily", day, "--rates", str(rates))


def one_day(remit: Stack) -> str:
    found: str = printed(remit, "tokens", "--by", "day", "-o", "json")["rows"][0]["day"]
    return found


async def test_the_tables_are_shown_as_they_stood(remit: Stack, bus: Bus, filled: int) -> None:
    """At each event of the run: its status is what it was then, and the tables of now are untouched."""
    query = "select status, input_tokens from runs"
    told = [printed(remit, "sql", query, "--as-of", str(filled + more), "-o", "json") for more in (0, 2, 4, 7)]
    found = [one["rows"] for one in told]
    assert [(row["status"], row["input_tokens"]) for [row] in found] == [
        ("pending", 0), ("running", 0), ("running", 30), ("succeeded", 30)
    ]  # fmt: skip
    before = printed(remit, "sql", query, "--as-of", "2020-01-01", "-o", "json")
    assert before["rows"] == []
    assert [one["position"] for one in (*told, before)] == [filled, filled + 2, filled + 4, filled + 7, 0]
    later = remit.remit("sql", query, "--as-of", "1000")
    assert later.returncode == 2 and "as_of" in later.stderr
    refused = remit.remit("sql", "select * from read_csv('/etc/passwd')")
    assert refused.returncode == 2 and "read_csv" in refused.stderr
    cut = remit.remit("sql", "select seq from events", "--limit", "3")
    assert "cut at 3 rows" in cut.stderr


async def test_a_replica_folds_into_its_own_file_and_ends_with_the_same_digests(
    remit: Stack, bus: Bus, filled: int
) -> None:
    """It answers nobody: the registry's questions are the registry's."""
    replica = [sys.executable, "-m", "services.registry"]
    remit.start_as("replica", replica, REMIT_REGISTRY_FILE=str(remit.folder / "laptop.duckdb"))
    last = await last_seq(bus)
    await until(lambda: f"caught up at event {last}" in remit.log("replica"))
    wanted = (await ask(bus, "digest", Question(min_seq=last))).more
    assert len(await bus.discover("registry")) == 1
    assert remit.stop("replica") == 0
    copy = Store(remit.folder / "laptop.duckdb")
    assert (copy.position()[1], copy.digest()) == (last, wanted)
    copy.close()

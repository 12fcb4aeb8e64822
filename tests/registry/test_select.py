"""Somebody's own query: it reads the registry's tables, and nothing else, for a while, up to so many rows."""

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from services.registry.fold import Fold
from services.registry.store import Store
from shared.errors import Malformed, RemitError
from shared.subjects import run_completed, run_started
from tests import controls
from tests.controls import Stream


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    """One for all tests here: none of them can change it, or another fails."""
    made = Store(tmp_path_factory.mktemp("ledger") / "ledger.duckdb")
    made.begin("EVENTS", "2026")
    stream, fold = Stream(), Fold()
    for _ in range(3):
        run = stream.planned()
        stream.put(run_started(run), controls.started())
    stream.put(run_completed(1), controls.run_over())
    for message in stream.messages:
        fold.add(*message)
    made.write(fold.take())
    yield made
    made.close()


READ = {
    "select status, count(*) as runs from runs group by status order by runs": [
        {"status": "succeeded", "runs": 1},
        {"status": "running", "runs": 2},
    ],
    "with mine as (select run from runs) select max(run) as run from mine": [{"run": 7}],
    "select r.run from runs r join plans p using (run) where exists (select 1 from events e where e.run = r.run) "
    "order by 1 limit 1": [{"run": 1}],
    "from active_runs select count(*) as n;": [{"n": 2}],
    "select 1 as a, 2 as a": [{"a": 1, "a_2": 2}],
    "select i from range(2) t(i)": [{"i": 0}, {"i": 1}],
    "select 170141183460469231731687303715884105727 as big, 1.5::decimal(3,1) as d, 'x'::blob as b, [1, null] as l": [
        {"big": "170141183460469231731687303715884105727", "d": "1.5", "b": "78", "l": [1, None]}
    ],
    "select timestamp '2026-11-18 12:00:00' as at": [{"at": "2026-11-18T12:00:00.000000Z"}],
}


@pytest.mark.parametrize("query", READ)
def test_a_select_over_the_tables_is_answered(store: Store, query: str) -> None:
    assert store.select(query, rows_max=100, time_s=5)[1] == READ[query]


# Since DuckDB 2.0 the parser takes these for one select.
WRITING = [
    "with x as (delete from runs returning run) select * from x",
    "with x as (truncate runs) select 1",
    "with x as (update runs set status = 'failed' returning run) select 1",
    "with x as (update main.runs set status = 'failed') select 1",
    "with x as (insert into runs select * from runs returning run) select * from x",
    "with x as (insert into folded select * from folded) select 1",
    "with x as (copy runs to '/tmp/stolen.csv') select 1",
    "with y as (select 1), x as materialized (delete from steps returning run) select * from y union all from x",
]

HOSTILE = [
    *WRITING,
    "select * from read_csv('/etc/passwd')",
    "select * from read_text('/etc/passwd')",
    "select * from read_blob('/etc/hosts')",
    "select * from read_parquet('https://example.com/x.parquet')",
    "select * from '/etc/passwd'",
    "select * from glob('/etc/*')",
    "select * from sniff_csv('/etc/passwd')",
    "select (select content from read_text('/etc/passwd'))",
    "with x as (select * from read_csv('/etc/passwd')) select * from x",
    "with x as materialized (select 1) select * from x, read_csv('/etc/passwd')",
    "select * from runs where run in (select 1 from read_csv('/etc/passwd'))",
    "select * from query('select * from runs')",
    "select * from query_table('runs')",
    "select * from arrow_scan(1, 2, 3)",
    "select * from pandas_scan(1)",
    "select * from duckdb_settings()",
    "select * from duckdb_secrets()",
    "select * from pragma_database_list()",
    "select * from enable_logging()",
    "select * from checkpoint()",
    "select * from information_schema.tables",
    "select * from other.main.runs",
    "select * from nothing",
    "show tables",
    "show databases",
    "select getenv('HOME')",
    "select current_setting('memory_limit')",
    "select upper(getenv('HOME')) from runs",
    "select json_serialize_plan('select current_setting(''memory_limit'')', optimize := true)",
    "select json_serialize_plan('select * from folded')",
    "select pg_sleep(1)",
    "copy runs to '/tmp/stolen.csv'",
    "copy (select 1) to '/tmp/stolen.csv'",
    "attach '/tmp/other.duckdb'",
    "install httpfs",
    "load httpfs",
    "pragma database_list",
    "pragma enable_external_access",
    "set enable_external_access = true",
    "reset lock_configuration",
    "use memory",
    "call pragma_version()",
    "checkpoint",
    "vacuum",
    "export database '/tmp/stolen'",
    "begin",
    "rollback",
    "delete from runs",
    "insert into runs select * from runs",
    "update runs set status = 'failed'",
    "drop table runs",
    "create table x (i int)",
    "create view x as select 1",
    "create macro f() as 1",
    "prepare x as select 1",
    "execute x",
    "explain analyze select 1",
    "select 1; select 2",
    "select 1; drop table runs",
    "select 1; copy runs to '/tmp/stolen.csv'",
    "",
    ";",
    "-- nothing",
    "select",
    "select $1",
    "with folded as (select 1) select * from main.folded",
    "with FOLDED as (select 1) select * from folded, (with folded as (select 1 as a) select a from folded)",
    "with duckdb_databases as (select 1) select path from main.duckdb_databases",
    "with sqlite_master as (select 1) select * from (select * from sqlite_master)",
    "with mine as (select 1) select * from main.mine",
    "select len(range(300000000))",
    "select * from unnest(generate_series(1, 300000000))",
    "select length(repeat('a', 1500000000)) as n from runs",
    "select rpad('a', 1500000000, 'x') from range(2)",
    "select format('{:1500000000d}', 1)",
    "select \x00",
    "sel" * 10_000,
    "select " + "(" * 9_000 + "1" + ")" * 9_000,
    "select " + "-" * 1 + "(".join("" for _ in range(500)),
]


@pytest.mark.parametrize("query", HOSTILE, ids=lambda query: query[:60])
def test_whatever_is_no_select_over_the_tables_is_refused(store: Store, query: str) -> None:
    """With a reason that names the query; the tables and the writer's connection are as they were."""
    before = store.digest()
    with pytest.raises(Malformed) as refused:
        store.select(query, rows_max=10, time_s=5)
    assert refused.value.field == "sql" and refused.value.message
    assert "root:" not in refused.value.message
    assert store.digest() == before
    assert not Path("/tmp/stolen.csv").exists()


def test_the_walls_of_the_engine_hold_without_the_walk(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files, settings and every write are closed to the connection, should the walk ever miss something."""
    before = store.digest()
    monkeypatch.setattr("services.registry.reading.refusal", lambda *_: "")
    for query in (
        "select * from read_text('/etc/passwd')",
        "select * from '/etc/passwd'",
        "set enable_external_access = true",
        "copy runs to '/tmp/stolen.csv'",
        "attach '/tmp/other.duckdb'",
        "install httpfs",
        *WRITING,
        "delete from runs",
        "create table x as select 1",
        "drop table runs",
    ):
        with pytest.raises(Malformed):
            store.select(query, rows_max=10, time_s=5)
    assert store.digest() == before


@pytest.mark.parametrize(
    "query",
    [
        "select count(*) from range(10000000) a, range(10000000) b",
        "with recursive x as (select 1 as i union all select i + 1 from x) select count(*) from x",
        "select sum(hash(a.i + b.i)) from range(100000000) a(i), range(100000000) b(i)",
    ],
)
def test_a_query_without_end_is_ended(store: Store, query: str) -> None:
    """And the next one is answered."""
    began_s = time.monotonic()
    with pytest.raises(Malformed, match="ended after"):
        store.select(query, rows_max=10, time_s=0.3)
    assert time.monotonic() - began_s < 10
    assert store.select("select count(*) as n from runs", rows_max=10, time_s=5)[1] == [{"n": 3}]


def test_rows_beyond_the_limit_are_said_to_be_missing(store: Store) -> None:
    columns, rows, cut = store.select("select i from range(1000000000000) t(i)", rows_max=5, time_s=5)
    assert (columns, len(rows), cut) == (["i"], 5, "cut at 5 rows")
    assert store.select("select i from range(5) t(i)", rows_max=5, time_s=5)[2] == ""
    hundred_thousand = f"with w as (select '{'x' * 15_000}' as s) select s || s || s || s || s || s || s as x from w"
    wide = store.select(f"{hundred_thousand}, range(100)", rows_max=100, time_s=5)
    assert len(wide[1]) < 10 and "too much" in wide[2]


def test_a_query_that_is_in_the_way_is_told_so(store: Store) -> None:
    """It has done nothing wrong, so it is not told to ask for less."""
    query = "select sum(hash(a.i + b.i)) from range(100000000) a(i), range(100000000) b(i)"
    threading.Timer(0.3, store.interrupt_strangers).start()
    with pytest.raises(RemitError, match="ask again"):
        store.select(query, rows_max=10, time_s=20)


def test_a_query_that_takes_all_memory_does_not_take_the_writers(tmp_path: Path) -> None:
    """It is refused by the engine's own limit; a batch is written all the same."""
    store = Store(tmp_path / "ledger.duckdb")
    store.begin("EVENTS", "2026")
    with pytest.raises(Malformed, match="more memory"):
        store.select(f"select list(i::varchar || '{'x' * 1_000}') from range(20000000) t(i)", rows_max=1, time_s=20)
    stream, fold = Stream(), Fold()
    stream.goal()
    for _, seq, at_ns, data in stream.messages:
        fold.add("goal.submitted", seq + 100, at_ns, data)
    store.write(fold.take())
    assert store.select("select count(*) as n from runs", rows_max=1, time_s=5)[1] == [{"n": 1}]
    store.close()

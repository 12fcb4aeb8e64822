"""A rebuild that fails leaves nothing behind that would be in the way of the next one."""

import random
from pathlib import Path

import duckdb
import msgspec
import pytest

from services.registry import service
from services.registry.service import Registry
from shared.append import Appender
from shared.bus import Bus
from shared.errors import Unavailable
from shared.events import encode
from shared.ledger import Answer, Question
from shared.subjects import run_completed
from tests import controls
from tests.conftest import until
from tests.registry.conftest import ask, last_seq, say_runs


async def rebuilt(bus: Bus) -> Answer:
    """The last word of a rebuild."""
    said: list[Answer] = []
    inbox = bus.inbox()
    stop = await bus.subscribe(inbox, lambda _s, data, _r, _h: said.append(msgspec.json.decode(data, type=Answer)))
    await bus.publish("registry.rebuild", b"", inbox)
    await until(lambda: bool(said) and (said[-1].error is not None or said[-1].more.get("done", False)))
    await stop()
    return said[-1]


async def test_after_a_rebuild_that_failed_the_next_one_is_done(
    bus: Bus, appender: Appender, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await say_runs(appender, 3)
    registry = Registry(bus, tmp_path / "mine" / "ledger.duckdb")
    await registry.start()

    async def silent(*_args: object) -> int:
        raise Unavailable("the stream is silent at event 7 of 30")

    whole = service.rebuild
    monkeypatch.setattr(service, "rebuild", silent)
    for _ in range(2):
        assert (await rebuilt(bus)).error == "the stream is silent at event 7 of 30"
        assert sorted(one.name for one in (tmp_path / "mine").iterdir()) == ["ledger.duckdb", "ledger.duckdb.wal"]
    monkeypatch.setattr(service, "rebuild", whole)
    assert (await rebuilt(bus)).more["identical"] is True
    await registry.stop()


async def test_behind_a_rebuild_the_fold_goes_on_from_the_new_tables(
    bus: Bus, appender: Appender, tmp_path: Path
) -> None:
    """Where the old ones had lost runs that are active, what is said of them from then on counts again."""
    await say_runs(appender, 5, leave_open=1.0, chance=random.Random(1))
    end = await last_seq(bus)
    path = tmp_path / "mine" / "ledger.duckdb"
    path.parent.mkdir()
    registry = Registry(bus, path, answers=False)
    await registry.start()
    await until(lambda: registry.position == end)
    await registry.stop()
    with duckdb.connect(str(path)) as damaged:
        runs = [run for (run,) in damaged.execute("select run from runs where ended_at is null").fetchall()]
        damaged.execute("delete from runs")
    registry = Registry(bus, path)
    await registry.start()
    assert (await rebuilt(bus)).more["identical"] is False
    assert runs
    for run in runs:
        await appender.say(run_completed(run), encode(controls.run_over(status="failed")))
    await appender.drain(30)
    asked = Question(sql="select count(*) as n from active_runs", min_seq=await last_seq(bus))
    assert (await ask(bus, "sql", asked)).rows == [{"n": 0}]
    assert (await rebuilt(bus)).more["identical"] is True
    await registry.stop()

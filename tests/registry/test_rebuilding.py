"""A rebuild that fails leaves nothing behind that would be in the way of the next one."""

from pathlib import Path

import msgspec
import pytest

from services.registry import service
from services.registry.service import Registry
from shared.append import Appender
from shared.bus import Bus
from shared.errors import Unavailable
from shared.ledger import Answer
from tests.conftest import until
from tests.registry.conftest import say_runs


async def test_after_a_rebuild_that_failed_the_next_one_is_done(
    bus: Bus, appender: Appender, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await say_runs(appender, 3)
    registry = Registry(bus, tmp_path / "mine" / "ledger.duckdb")
    await registry.start()

    async def rebuilt() -> Answer:
        """The last word of a rebuild."""
        said: list[Answer] = []
        inbox = bus.inbox()
        stop = await bus.subscribe(inbox, lambda _s, data, _r, _h: said.append(msgspec.json.decode(data, type=Answer)))
        await bus.publish("registry.rebuild", b"", inbox)
        await until(lambda: bool(said) and (said[-1].error is not None or said[-1].more.get("done", False)))
        await stop()
        return said[-1]

    async def silent(*_args: object) -> int:
        raise Unavailable("the stream is silent at event 7 of 30")

    whole = service.rebuild
    monkeypatch.setattr(service, "rebuild", silent)
    for _ in range(2):
        assert (await rebuilt()).error == "the stream is silent at event 7 of 30"
        assert sorted(one.name for one in (tmp_path / "mine").iterdir()) == ["ledger.duckdb", "ledger.duckdb.wal"]
    monkeypatch.setattr(service, "rebuild", whole)
    assert (await rebuilt()).more["identical"] is True
    await registry.stop()

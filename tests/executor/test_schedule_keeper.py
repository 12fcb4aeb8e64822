"""The shell of schedules against a real NATS, inside this process."""

import asyncio
from pathlib import Path

import msgspec
import pytest

from services.executor import schedule_keeper
from services.executor.engine import Engine
from services.executor.schedule_keeper import ScheduleKeeper
from shared.append import Appender
from shared.bus import connect
from shared.clock import NS_PER_S, now_ns, rfc3339
from shared.config import Config
from shared.streams import ensure
from shared.subjects import CONFIG_BUCKET, EVENTS, schedule_key, ticks_of
from tests import controls
from tests.conftest import until
from tests.stack import stack


@pytest.mark.parametrize("wrong_s", [-7200, 7200])
async def test_a_host_whose_clock_is_wrong_goes_by_the_servers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wrong_s: int
) -> None:
    """Two hours ahead it would take ticks of the future; two hours behind it would be late for all of them."""
    monkeypatch.setattr(schedule_keeper, "now_ns", lambda: now_ns() + wrong_s * NS_PER_S)
    with stack(tmp_path) as remit:
        bus = await connect(remit.url, "test")
        await ensure(bus)
        since = rfc3339(now_ns() - 600 * NS_PER_S)
        made = controls.schedule(cron="* * * * *", overlap="allow", catch_up="all", since=since)
        await bus.kv_put(CONFIG_BUCKET, schedule_key("nightly"), msgspec.json.encode(made))
        engine, appender, config = Engine(), await Appender(bus).start(), await Config(bus).start()
        engine.due()
        keeping = asyncio.create_task(ScheduleKeeper(bus, appender, config).keep(engine))

        async def due() -> list[int]:
            found = await bus.direct(EVENTS, {"multi_last": [ticks_of("nightly")], "batch": 1000})
            return [int(subject.rsplit(".", 1)[1]) for subject, *_ in found]

        async def all_there() -> bool:
            return len(await due()) >= 10

        await until(all_there)
        assert max(await due()) <= now_ns() // NS_PER_S
        assert not keeping.done()
        keeping.cancel()
        appender.stop()
        await config.stop()
        await bus.close()

"""The agent as a process: it is found by discovery, answers, and ends when it is told to."""

import asyncio
import os
import signal
import sys
from contextlib import aclosing
from pathlib import Path

import msgspec
import pytest

from shared.bus import Bus
from shared.errors import Refused, Unavailable
from shared.log_reading import all_services, all_sources, read_log
from shared.logs import ReadRequest
from shared.subjects import CONFIG_BUCKET
from tests.engine import engine
from tests.engine.fleet import ALLOWED, fleet

ROOT = Path(__file__).parents[2]


async def agent(host: str, nats_url: str, *options: str) -> asyncio.subprocess.Process:
    """The agent as people start it."""
    return await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "cli", "log-agent", "--host", host, "--nats", nats_url, *options),
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stderr=asyncio.subprocess.DEVNULL,
    )


@pytest.mark.docker
async def test_a_fleet_is_read_by_the_agent_s_process(bus: Bus, nats_url: str) -> None:
    with engine() as made:
        six = fleet(made)
        for role in ALLOWED:
            entry = msgspec.json.encode({"id": role, "source": six.name(role), "host": "tower"})
            await bus.kv_put(CONFIG_BUCKET, f"allow.{role}", entry)
        process = await agent("tower", nats_url)
        try:
            async with asyncio.timeout(20):
                while not (found := await bus.discover("logs")):
                    pass
            assert [info.metadata for info in found] == [{"host": "tower"}]
            listed = {each.name: each.allowed for each in (await all_sources(bus, "tower")).sources}
            assert {role: listed[six.name(role)] for role in six.containers} == {
                role: role in ALLOWED for role in six.containers
            }
            lines: dict[str, list[tuple[str, str]]] = {}
            for role in ALLOWED:
                lines[role] = []
                async with aclosing(read_log(bus, "tower", ReadRequest(source=six.name(role)))) as chunks:
                    async for chunk in chunks:
                        lines[role] += zip(chunk.stream, chunk.text, strict=True)
            assert sum("cannot reach payment service" in text for _, text in lines["json"]) == 10
            assert lines["python"].count(("stderr", "ZeroDivisionError: division by zero")) == 3
            assert lines["tty"] == [("stdout", "WARN disk is 91% full"), ("stdout", "INFO still here")]
            assert lines["silent"] == []
            assert lines["noise"][-1] == ("stdout", "ERROR after the noise")
            with pytest.raises(Refused):
                async for _ in read_log(bus, "tower", ReadRequest(source=six.name("private"))):
                    pass
            services = await all_services(bus, "tower")
            assert {each.name for each in services.services} == {six.name(role) for role in ALLOWED}
            process.send_signal(signal.SIGTERM)
            assert await asyncio.wait_for(process.wait(), 10) == 0
            with pytest.raises(Unavailable):
                await all_sources(bus, "tower", timeout_s=1)
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()


async def test_files_are_listed_by_the_globs_that_it_is_told(bus: Bus, nats_url: str, tmp_path: Path) -> None:
    for name in ("a.log", "b.log", "c.txt", "d"):
        (tmp_path / name).write_text("a line\n")
    process = await agent("globs", nats_url, "--log-glob", f"{tmp_path}/*.log", "--log-glob", f"{tmp_path}/c.*")
    try:
        async with asyncio.timeout(20):
            while not any(info.metadata == {"host": "globs"} for info in await bus.discover("logs")):
                pass
        listed = {one.name: one.allowed for one in (await all_sources(bus, "globs")).sources if one.kind == "file"}
    finally:
        process.kill()
        await process.wait()
    assert listed == {f"{tmp_path}/{name}": False for name in ("a.log", "b.log", "c.txt")}

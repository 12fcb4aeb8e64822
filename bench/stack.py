"""What the benchmarks measure: a stack of real processes with a store of its own, and a process held to one core."""

import asyncio
import os
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from cli.keeper import Keeper, until_ready
from cli.stack import environment
from shared.append import Appender
from shared.bus import Bus


@dataclass(frozen=True)
class Stack:
    """A running stack: its folder, who keeps it, how to reach it, and a connection with an appender."""

    where: Path
    keeper: Keeper
    url: str
    variables: dict[str, str]
    bus: Bus
    appender: Appender


@asynccontextmanager
async def stack(services: Sequence[str], tell: Callable[[str], None]) -> AsyncIterator[Stack]:
    """NATS and these services in a temporary folder; nothing of them is left."""
    with tempfile.TemporaryDirectory(prefix="remit-bench-") as folder:
        where = Path(folder)
        keeper = Keeper(where, tell)
        try:
            url = await keeper.start_nats(0)
            variables = {**environment(url, where, "bench", 0), "REMIT_LOG_LEVEL": "warning"}
            await keeper.start_services(services, variables)
            bus = await until_ready(url, services)
            yield Stack(where, keeper, url, variables, bus, await Appender(bus).start())
            await bus.close()
        finally:
            await keeper.stop()


async def on_one_core(argv: Sequence[str], variables: Mapping[str, str] | None = None) -> tuple[float, bytes]:
    """Seconds that `python -m argv…` takes on one core, its start included, and what it prints."""
    began_s = time.perf_counter()
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", *argv, env={**os.environ, **(variables or {})}, stdout=asyncio.subprocess.PIPE
    )
    os.sched_setaffinity(process.pid, {max(os.sched_getaffinity(0))})
    out, _ = await process.communicate()
    return time.perf_counter() - began_s, out

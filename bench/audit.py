"""`remit bench audit`: a stream that a real load has left, judged whole by one process on one core."""

import asyncio
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from bench.load import Client
from bench.runs import GOAL, SERVICES
from cli.keeper import Keeper, until_ready
from cli.reading import read_all
from cli.stack import environment
from shared.append import Appender
from shared.audit.of_stream import Audit
from shared.streams import last_seq
from shared.subjects import EVENTS, goal_submitted


async def run(seconds: float, tell: Callable[[str], None]) -> dict[str, Any]:
    """Load a stack for `seconds`; then read its stream bare, judge it from memory, and `remit audit --all`."""
    with tempfile.TemporaryDirectory(prefix="remit-bench-") as folder:
        where = Path(folder)
        keeper = Keeper(where, tell)
        try:
            url = await keeper.start_nats(0)
            variables = {**environment(url, where, "bench", 0), "REMIT_LOG_LEVEL": "warning"}
            await keeper.start_services(SERVICES, variables)
            bus = await until_ready(url, SERVICES)
            appender = await Appender(bus).start()
            client = await Client(bus, appender, EVENTS, goal_submitted(), GOAL, "run.completed.>").start(1)
            tell(f"{seconds:g} s of load")
            await client.saturated(seconds)
            await client.stop()
            await keeper.stop_services()
            last = await last_seq(bus)
            messages: list[tuple[str, int, int, bytes]] = []
            tell(f"reading {last} events bare")
            began_s = time.perf_counter()
            await read_all(bus, lambda *message: messages.append(message))
            bare_s = time.perf_counter() - began_s
            await bus.close()
            rules_s = _judged_s(messages)
            tell("remit audit --all")
            audited_s, found = await _audited(url)
            return {
                "events": last,
                "audit_events_s": round(last / audited_s, 1),
                "rules_events_s": round(last / rules_s, 1),  # from memory, CPU
                "bare_read_events_s": round(last / bare_s, 1),
                "ratio": round(bare_s / audited_s, 3),
                "seconds": round(audited_s, 2),  # with the start of the process
                "runs": found["runs"],
                "findings": len(found["findings"]),
            }
        finally:
            await keeper.stop()


def _judged_s(messages: list[tuple[str, int, int, bytes]]) -> float:
    audit = Audit()
    began_s = time.process_time()
    for message in messages:
        audit.hear(*message)
    audit.result()
    return time.process_time() - began_s


async def _audited(url: str) -> tuple[float, dict[str, Any]]:
    """Seconds of the whole command, on one core, and what it says."""
    began_s = time.perf_counter()
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "cli", "audit", "--all", "-o", "json", "--nats", url,
        env=dict(os.environ), stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    os.sched_setaffinity(process.pid, {max(os.sched_getaffinity(0))})
    out, _ = await process.communicate()
    return time.perf_counter() - began_s, msgspec.json.decode(out)

"""`remit bench audit`: a stream that a real load has left, judged whole by one process on one core."""

import time
from collections.abc import Callable
from typing import Any

import msgspec

from bench.load import Client
from bench.runs import GOAL, SERVICES
from bench.stack import on_one_core, stack
from cli.reading import read_all
from shared.audit.of_stream import Audit
from shared.streams import last_seq
from shared.subjects import EVENTS, goal_submitted


async def run(seconds: float, tell: Callable[[str], None]) -> dict[str, Any]:
    """Load a stack for `seconds`; then read its stream bare, judge it from memory, and `remit audit --all`."""
    async with stack(SERVICES, tell) as made:
        bus, appender = made.bus, made.appender
        client = await Client(bus, appender, EVENTS, goal_submitted(), GOAL, "run.completed.>").start(1)
        tell(f"{seconds:g} s of load")
        await client.saturated(seconds)
        await client.stop()
        await made.keeper.stop_services()
        last = await last_seq(bus)
        messages: list[tuple[str, int, int, bytes]] = []
        tell(f"reading {last} events bare")
        began_s = time.perf_counter()
        await read_all(bus, lambda *message: messages.append(message))
        bare_s = time.perf_counter() - began_s
        rules_s = _judged_s(messages)
        tell("remit audit --all")
        audited_s, said = await on_one_core(("cli", "audit", "--all", "-o", "json", "--nats", made.url))
        found = msgspec.json.decode(said)
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


def _judged_s(messages: list[tuple[str, int, int, bytes]]) -> float:
    audit = Audit()
    began_s = time.process_time()
    for message in messages:
        audit.hear(*message)
    audit.result()
    return time.process_time() - began_s

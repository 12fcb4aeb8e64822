"""`remit bench fold`: a stream of real shape, folded into a fresh file by one process on one core."""

import asyncio
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from bench.runs import GOAL, SERVICES
from bench.stack import on_one_core, stack
from services.registry.fold import Batch, Fold
from services.registry.rebuild import rebuild
from services.registry.store import Store
from shared.append import CREATE_ONLY, Appender
from shared.bus import Bus
from shared.pull import Reader
from shared.story import read_story
from shared.streams import last_seq
from shared.subjects import EVENTS, goal_submitted

INTERLEAVED = 256  # runs under way at a time in the made stream, as in `bench runs`


async def run(events: int, tell: Callable[[str], None]) -> dict[str, Any]:
    """Make a stream of about `events` events, rebuild from it, and read it bare for comparison."""
    async with stack(SERVICES, tell) as made:
        bus, appender = made.bus, made.appender
        run_id = await appender.append(goal_submitted(), GOAL, headers=None)
        while not (story := await read_story(bus, run_id)).run.ended:
            await asyncio.sleep(0.05)
        await made.keeper.stop_services()
        tell(f"making a stream of {events} events")
        await _copies(bus, appender, [(told.subject, told.data) for told in story.told], events, tell)
        last = await last_seq(bus)
        tell("reading it bare")
        bare_s = await _read_bare(bus, last)
        tell("folding it")
        rebuilt_s = await _rebuild(made.variables, tell)
        tell("appending the same rows to another file")
        append_s = await _append_alone(bus, made.where / "append.duckdb", last)
        return {
            "events": last,
            "fold_events_s": round(last / rebuilt_s, 1),
            "bare_read_events_s": round(last / bare_s, 1),
            "append_events_s": round(last / append_s, 1),
            "ratio": round(bare_s / rebuilt_s, 3),
            "seconds": round(rebuilt_s, 2),
            "file_bytes": (made.where / "ledger.duckdb").stat().st_size,
        }


async def _copies(
    bus: Bus, appender: Appender, told: list[tuple[str, bytes]], events: int, tell: Callable[[str], None]
) -> None:
    """Many runs shaped as the one that was told, each with subjects of its own, interleaved as under load."""
    made = await last_seq(bus)
    while made < events:
        runs = [made + 1 + i for i in range(INTERLEAVED)]
        for subject, data in told:
            for run_id in runs:
                parts = subject.split(".")
                if len(parts) > 2:
                    parts[2] = str(run_id)
                # Under the headers that the engine's own facts have: they are a part of what is read.
                headers = CREATE_ONLY if len(parts) > 2 else None
                await appender.say(".".join(parts), data, headers=headers)
        made += len(told) * INTERLEAVED
        await appender.drain(60)
        if made // 100_000 != (made - len(told) * INTERLEAVED) // 100_000:
            tell(f"  {made} of {events}")


async def _read_bare(bus: Bus, last: int) -> float:
    over = asyncio.Event()

    def on_message(_subject: str, seq: int, _at_ns: int, _data: bytes) -> None:
        if seq >= last:
            over.set()

    began_s = time.perf_counter()
    reader = await Reader(bus, EVENTS, on_message, batch=8192).start()
    await over.wait()
    took_s = time.perf_counter() - began_s
    await reader.stop()
    return took_s


class _Timed(Store):
    """A store that knows what its writing alone costs: the same rows in the same batches, appended."""

    cpu_s = 0.0

    def write(self, batch: Batch) -> None:
        began_s = time.thread_time()
        super().write(batch)
        self.cpu_s += time.thread_time() - began_s


async def _append_alone(bus: Bus, path: Path, last: int) -> float:
    """CPU seconds of DuckDB's thread (it has one) for the rows of the whole stream."""

    async def tell(**_: object) -> None:
        pass

    store = _Timed(path)
    store.begin(EVENTS, "bench")
    await rebuild(bus, store, Fold(), last, tell)
    store.close()
    return store.cpu_s


async def _rebuild(variables: dict[str, str], tell: Callable[[str], None]) -> float:
    """Seconds that the registry's own rebuild takes as a process bound to one core, its start included."""
    took_s, out = await on_one_core(("services.registry", "--rebuild"), variables)
    last = msgspec.json.decode(out.splitlines()[-1])
    assert last.get("done"), out
    tell(f"  {last['after']}")
    return took_s

"""Folding the stream again, from where a store stands up to a given event: the same fold, the same tables."""

import asyncio
from collections.abc import Awaitable, Callable

from services.registry.fold import Fold
from services.registry.store import Store
from shared.bus import Bus
from shared.errors import Unavailable
from shared.pull import Reader
from shared.subjects import EVENTS

BATCH_EVENTS = 122_880  # a row group of DuckDB: it goes to the file at once, and not through the log first
SILENCE_S = 30.0

Tell = Callable[..., Awaitable[None]]


async def rebuild(bus: Bus, store: Store, fold: Fold, until: int, tell: Tell) -> int:
    """Fold the events behind `fold.position` up to `until` into `store`; the position reached comes back."""
    if fold.position >= until:
        return fold.position
    done = asyncio.Event()

    async def write() -> None:
        await asyncio.to_thread(store.write, fold.take())
        await tell(position=fold.position, of=until)

    def on_event(subject: str, seq: int, at_ns: int, data: bytes) -> Awaitable[None] | None:
        if seq > until:
            return None
        fold.add(subject, seq, at_ns, data)
        if seq == until:
            done.set()
        elif len(fold) >= BATCH_EVENTS:
            return write()
        return None

    reader = await Reader(bus, EVENTS, on_event, start_seq=fold.position + 1, batch=8192).start()
    try:
        while not done.is_set():
            before = fold.position
            try:
                await asyncio.wait_for(done.wait(), SILENCE_S)
            except TimeoutError:
                if fold.position == before:
                    raise Unavailable(f"the stream is silent at event {before} of {until}") from None
    finally:
        await reader.stop()
    if len(fold):
        await write()
    return fold.position

"""Folding the stream again, from where a store stands up to a given event: the same fold, the same tables."""

import asyncio
from collections.abc import Awaitable, Callable

from services.registry.fold import Fold
from services.registry.store import ROW_GROUP_ROWS, Store
from shared.archive.store import Archive, stretches
from shared.bus import Bus
from shared.errors import Unavailable
from shared.pull import Gone, Reader
from shared.streams import first_seq, standing
from shared.subjects import EVENTS

BATCH_EVENTS = 2 * ROW_GROUP_ROWS  # whole row groups go to the file at once, and not through the log first
ARCHIVED_ROWS = 2_048  # folded at a stretch: whoever asks something meanwhile waits that long
SILENCE_S = 30.0
WAY_OUT = "start the registry with --archive TO (or REMIT_ARCHIVE), the archive that has them"

Tell = Callable[..., Awaitable[None]]


async def from_archive(
    bus: Bus, fold: Fold, archive: str | None, write: Callable[[], Awaitable[None]], until: int | None = None
) -> None:
    """Fold what the stream does not have any more (up to `until`) out of the archive at this place.

    `Gone` when there is such and no archive, or RemitError when the archive is of another stream or lacks it, too. It
    calls `write` for each batch.
    """
    last = (await first_seq(bus))[0] - 1
    if fold.position >= last:
        return
    if not archive:
        raise Gone(EVENTS, fold.position + 1, last, WAY_OUT)
    created, _ = await standing(bus)
    rows = Archive.at(archive).rows(fold.position + 1, last if until is None else min(last, until), created)
    async for some in stretches(rows, ARCHIVED_ROWS):
        for row in some:
            fold.add(*row[:4])
        if len(fold) >= BATCH_EVENTS:
            await write()
    if len(fold):
        await write()


async def rebuild(bus: Bus, store: Store, fold: Fold, until: int, tell: Tell, archive: str | None = None) -> int:
    """Fold the events behind `fold.position` up to `until` into `store`; the position reached comes back.

    What the stream does not have any more comes from the archive at this place.
    """
    if fold.position >= until:
        return fold.position
    done = asyncio.Event()

    async def write() -> None:
        await asyncio.to_thread(store.write, fold.take())
        await tell(position=fold.position, of=until)

    await from_archive(bus, fold, archive, write, until)
    if fold.position >= until:
        return fold.position

    full = fold.position + BATCH_EVENTS  # the event with which the batch is written

    def on_event(subject: str, seq: int, at_ns: int, data: bytes) -> Awaitable[None] | None:
        nonlocal full
        if seq <= until:
            fold.add(subject, seq, at_ns, data)
        if seq < full and seq < until:
            return None
        full = seq + BATCH_EVENTS
        if seq < until:
            return write()
        done.set()
        return None

    reader = await Reader(bus, EVENTS, on_event, start_seq=fold.position + 1, batch=8192, whole=True).start()
    try:
        before = fold.position
        while not await reader.until(done, SILENCE_S):
            if fold.position == before:
                raise Unavailable(f"the stream is silent at event {before} of {until}")
            before = fold.position
    finally:
        await reader.stop()
    if len(fold):
        await write()
    return fold.position

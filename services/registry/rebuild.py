"""Folding the stream again, from where a store stands up to a given event: the same fold, the same tables."""

import asyncio
from collections.abc import Awaitable, Callable

from services.registry.fold import Batch, Fold
from services.registry.store import ROW_GROUP_ROWS, Store
from shared.archive.store import Archive, stretches
from shared.bus import Bus
from shared.errors import Unavailable
from shared.pull import Gone, Reader
from shared.streams import first_seq, standing
from shared.subjects import EVENTS

BATCH_EVENTS = 4 * ROW_GROUP_ROWS  # whole row groups go to the file at once, and not through the log first
ARCHIVED_ROWS = 2_048  # folded at a stretch: whoever asks something meanwhile waits that long
READ_EVENTS = 16_384  # with fewer the server is waited for
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


class _Writing:
    """Batches go to the file one at a time, each while the next one is folded: a write waits for the disk, too."""

    def __init__(self, store: Store, tell: Tell, until: int) -> None:
        self._store = store
        self._tell = tell
        self._until = until
        self._last: asyncio.Task[None] | None = None

    async def begin(self, batch: Batch) -> None:
        await self.done()
        self._last = asyncio.create_task(self._write(batch))

    async def done(self) -> None:
        """Wait until what was begun is in the file, or raise why it is not."""
        last, self._last = self._last, None
        if last is not None:
            await last

    async def _write(self, batch: Batch) -> None:
        await asyncio.to_thread(self._store.write, batch)
        await self._tell(position=batch.position, of=self._until)


async def rebuild(bus: Bus, store: Store, fold: Fold, until: int, tell: Tell, archive: str | None = None) -> int:
    """Fold the events behind `fold.position` up to `until` into `store`; the position reached comes back.

    What the stream does not have any more comes from the archive at this place.
    """
    writing = _Writing(store, tell, until)

    async def write() -> None:
        await writing.begin(fold.take())

    try:
        if fold.position < until:
            await from_archive(bus, fold, archive, write, until)
        if fold.position < until:
            await _from_stream(bus, fold, write, until)
    finally:
        await writing.done()
    return fold.position


async def _from_stream(bus: Bus, fold: Fold, write: Callable[[], Awaitable[None]], until: int) -> None:
    done = asyncio.Event()
    full = min(fold.position + BATCH_EVENTS, until)  # the event with which the batch is written

    def on_event(subject: str, seq: int, at_ns: int, data: bytes) -> Awaitable[None] | None:
        nonlocal full
        if seq > until:
            return None
        fold.add(subject, seq, at_ns, data)
        if seq < full:
            return None
        full = min(seq + BATCH_EVENTS, until)
        if seq < until:
            return write()
        done.set()
        return None

    reader = await Reader(bus, EVENTS, on_event, start_seq=fold.position + 1, batch=READ_EVENTS, whole=True).start()
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

"""Reading the stream as it is for those who judge it: all of it, one run, or a bundle's file."""

import asyncio
from collections.abc import Callable
from pathlib import Path

from shared.archive.days import Row
from shared.archive.store import Archive, stretches
from shared.bus import Bus
from shared.client import Headers
from shared.errors import Malformed, NotFound
from shared.proof.bundle import BUNDLE_BYTES_MAX, Bundle, read_bundle
from shared.proof.sealing import run_of
from shared.pull import Gone, Reader
from shared.story import read_messages
from shared.streams import first_seq, standing
from shared.subjects import EVENTS, GOALS

BATCH = 16_384  # with fewer the server is waited for

Message = tuple[str, int, int, bytes]  # subject, sequence, stamp in nanoseconds, data


async def read_all(
    bus: Bus,
    hear: Callable[[str, int, int, bytes], object],
    *,
    until: int | None = None,
    archive: str | None = None,
) -> int:
    """Call `hear` for every message from the first up to `until` (or to the end as it is now); the last sequence.

    What the stream does not have any more comes from the archive at this place; without one that is `Gone`.
    """
    created, last = await standing(bus)
    end = last if until is None else until
    begin = (await first_seq(bus))[0]
    gone = min(begin - 1, end)
    if gone and archive is None:
        raise Gone(EVENTS, 1, begin - 1, "name the archive that has them with --archive TO")
    if gone:
        async for some in stretches(Archive.at(archive or "").rows(1, gone, created), BATCH):
            for row in some:
                hear(*row[:4])

    if end <= gone:
        return end
    done = asyncio.Event()

    def heard(subject: str, seq: int, at_ns: int, data: bytes) -> None:
        if seq <= end:
            hear(subject, seq, at_ns, data)
        if seq >= end:
            done.set()

    await _read(Reader(bus, EVENTS, heard, start_seq=gone + 1, batch=BATCH, whole=True), done)
    return end


async def read_run(bus: Bus, run: int, archive: str | None = None) -> list[Message]:
    """Every message of the run, its goal among them, in stream order.

    Of one that the stream has let go: from the archive at this place, and what was said behind its end from the
    stream. `NotFound` without an archive.
    """
    if archive is None or run >= (await first_seq(bus))[0]:
        return await read_messages(bus, run)
    number = str(run)
    found: list[Message] = []

    def hear(subject: str, seq: int, at_ns: int, data: bytes) -> None:
        if seq == run or run_of(subject) == number:
            found.append((subject, seq, at_ns, data))

    await read_all(bus, hear, archive=archive)
    if not any(seq == run and subject.startswith(GOALS[0]) for subject, seq, *_ in found):
        raise NotFound(f"message {run} of the stream is no goal, so there is no run {run}", field="run")
    return found


async def read_range(bus: Bus, first: int, last: int, hear: Callable[[Row], object]) -> None:
    """Call `hear` for messages `first` to `last`, until it returns something true. `Gone` where one is not there."""
    done = asyncio.Event()

    def heard(subject: str, seq: int, at_ns: int, data: bytes) -> None:
        if done.is_set():
            return
        block = reader.headers.raw if isinstance(reader.headers, Headers) else None
        if hear((subject, seq, at_ns, data, block)) or seq == last:
            done.set()

    reader = Reader(bus, EVENTS, heard, start_seq=first, batch=BATCH, whole=True)
    await _read(reader, done)


async def _read(reader: Reader, done: asyncio.Event) -> None:
    await reader.start()
    try:
        await reader.until(done)
    finally:
        await reader.stop()


def bundle_of(path: Path) -> Bundle:
    """The bundle in a file."""
    try:
        if path.stat().st_size > BUNDLE_BYTES_MAX:
            raise Malformed(f"{path} is larger than any bundle", field="bundle")
        return read_bundle(path.read_bytes())
    except FileNotFoundError as error:
        raise NotFound(f"there is no file {path}") from error
    except (OSError, ValueError, RecursionError) as error:
        raise Malformed(f"{path} holds no bundle: {str(error)[:200]}", field="bundle") from error

"""Reading the stream as it is for those who judge it: all of it, one run, or a bundle's file."""

import asyncio
from collections.abc import Callable
from pathlib import Path

from shared.bus import Bus
from shared.errors import Malformed, NotFound
from shared.proof.bundle import BUNDLE_BYTES_MAX, Bundle, read_bundle
from shared.pull import Reader
from shared.streams import last_seq
from shared.subjects import EVENTS

BATCH = 4096

Message = tuple[str, int, int, bytes]  # subject, sequence, stamp in nanoseconds, data


async def read_all(bus: Bus, hear: Callable[[str, int, int, bytes], None], *, until: int | None = None) -> int:
    """Call `hear` for every message from the first up to `until` (or to the end as it is now); the last sequence."""
    end = await last_seq(bus) if until is None else until
    if not end:
        return 0
    done = asyncio.Event()

    def heard(subject: str, seq: int, at_ns: int, data: bytes) -> None:
        if seq <= end:
            hear(subject, seq, at_ns, data)
        if seq >= end:
            done.set()

    reader = await Reader(bus, EVENTS, heard, batch=BATCH).start()
    failed = asyncio.create_task(reader.failed())
    came = asyncio.create_task(done.wait())
    try:
        await asyncio.wait({failed, came}, return_when=asyncio.FIRST_COMPLETED)
        if failed.done():
            await failed
    finally:
        failed.cancel()
        came.cancel()
        await reader.stop()
    return end


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

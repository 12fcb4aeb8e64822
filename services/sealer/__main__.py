"""`python -m services.sealer`: the sealer as a process."""

import asyncio
import os
from pathlib import Path

from services.sealer.service import Sealer
from shared import process
from shared.append import Appender
from shared.errors import Malformed
from shared.proof.keys import read_public
from shared.settings import Count, Seconds, data_dir, setting


async def main(stop: asyncio.Event) -> None:
    every_s, every_events = setting("SEAL_EVERY_S", Seconds, 60.0), setting("SEAL_EVERY_EVENTS", Count, 10_000)
    archive = os.environ.get("REMIT_ARCHIVE")
    trusted = _trusted(os.environ.get("REMIT_SEALER_TRUSTS", ""))
    bus = await process.connected("sealer")
    appender = await Appender(bus).start()
    sealer = Sealer(
        bus, appender, data_dir(), every_s=every_s, every_events=every_events, archive=archive, trusted=trusted
    )
    if await process.until(stop, sealer.start()):
        await process.until(stop, sealer.failed())
        await sealer.stop()
    appender.stop()
    await bus.close()


def _trusted(key: str) -> list[bytes]:
    """The key of an earlier sealer that this one goes on from: a PEM file, or 64 hex digits."""
    if not key:
        return []
    try:
        return [read_public(Path(key).read_text() if Path(key).is_file() else key)]
    except (OSError, UnicodeDecodeError, Malformed) as error:
        raise Malformed(f"REMIT_SEALER_TRUSTS={key[:80]!r}: {error}", field="REMIT_SEALER_TRUSTS") from error


if __name__ == "__main__":
    process.run("sealer", main)

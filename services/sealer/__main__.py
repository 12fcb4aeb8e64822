"""`python -m services.sealer`: the sealer as a process."""

import asyncio
import os
from pathlib import Path

from services.sealer.service import Sealer
from shared import process
from shared.append import Appender
from shared.config import data_dir, setting
from shared.proof.keys import read_public


async def main(stop: asyncio.Event) -> None:
    bus = await process.connected("sealer")
    every_s, every_events = setting("SEAL_EVERY_S", float, 60.0), setting("SEAL_EVERY_EVENTS", int, 10_000)
    appender = await Appender(bus).start()
    archive = os.environ.get("REMIT_ARCHIVE")
    trusts = os.environ.get("REMIT_SEALER_TRUSTS", "")
    trusted = [read_public(Path(trusts).read_text() if Path(trusts).is_file() else trusts)] if trusts else []
    sealer = Sealer(
        bus, appender, data_dir(), every_s=every_s, every_events=every_events, archive=archive, trusted=trusted
    )
    if await process.until(stop, sealer.start()):
        await process.until(stop, sealer.failed())
        await sealer.stop()
    appender.stop()
    await bus.close()


if __name__ == "__main__":
    process.run("sealer", main)

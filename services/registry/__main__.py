"""`python -m services.registry`: the registry as a process; `--rebuild` folds a file anew with no registry running."""

import asyncio
import logging
import os
import sys
from pathlib import Path

import msgspec
import uvloop

from services.registry.fold import Fold
from services.registry.rebuild import rebuild
from services.registry.service import Registry
from services.registry.store import Damaged, Store, put_aside
from shared import process
from shared.errors import RemitError
from shared.settings import data_dir
from shared.streams import standing
from shared.subjects import EVENTS

log = logging.getLogger("remit.registry")

LEDGER = "ledger.duckdb"


def ledger() -> Path:
    """The file: the data directory's, or `REMIT_REGISTRY_FILE`, a copy of one's own that answers nobody."""
    given = os.environ.get("REMIT_REGISTRY_FILE")
    return Path(given) if given else data_dir() / LEDGER


async def main(stop: asyncio.Event) -> None:
    bus = await process.connected("registry")
    archive = os.environ.get("REMIT_ARCHIVE")
    registry = Registry(bus, ledger(), answers=not os.environ.get("REMIT_REGISTRY_FILE"), archive=archive)
    if await process.until(stop, registry.start()):
        await process.until(stop, registry.failed())
        await registry.stop()
    await bus.close()


async def offline(path: Path) -> None:
    """Drop the file and fold everything into a new one; one line of JSON for each batch, the last with the digests."""
    bus = await process.connected("rebuild")

    async def tell(**what: object) -> None:
        print(msgspec.json.encode(what).decode(), flush=True)

    before: dict[str, str] | None = None
    old_position = 0
    if path.exists():
        try:
            old = Store(path)
        except Damaged as damaged:
            log.error("%s; kept as %s, and there is nothing to compare with", damaged, put_aside(path))
        else:
            old_position = old.position()[1]
            before = None if old.is_outdated else old.digest()  # other tables cannot be compared
            old.close()
    created, until = await standing(bus)
    if old_position > until:
        raise SystemExit(
            f"{path} holds {old_position} events, the stream {until}: it is another stream; nothing is done"
        )
    fresh = path.with_name(path.name + ".rebuild")
    fresh.unlink(missing_ok=True)
    store = Store(fresh)
    store.begin(EVENTS, created)
    try:
        await rebuild(bus, store, Fold(), until, tell, os.environ.get("REMIT_ARCHIVE"))
    except RemitError as error:
        store.close()
        fresh.unlink(missing_ok=True)
        raise SystemExit(f"{error}; the file is as it was") from error
    after = store.digest()
    store.close()
    path.with_name(path.name + ".wal").unlink(missing_ok=True)  # of the old file; the new one's would not open with it
    fresh.replace(path)
    same = before == after if before is not None and old_position == until else None
    await tell(done=True, seq=until, before=before, after=after, identical=same)
    await bus.close()


if __name__ == "__main__":
    if "--rebuild" in sys.argv[1:]:
        process.prepare("registry")
        uvloop.run(offline(ledger()))
    else:
        process.run("registry", main)

"""Streams of several days for tests: the days are seconds long, all else is real."""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import msgspec

from cli.archiving import Archiver, Written
from services.sealer.service import Sealer
from shared.append import Appender
from shared.archive import parquet
from shared.archive.checking import Keys
from shared.archive.days import Calendar, Manifest, Row, file_name
from shared.archive.store import Archive, digest
from shared.bus import Bus, connect
from shared.clock import now_ns
from shared.events import AuditSealed
from shared.proof.keys import signer
from shared.proof.sealing import State
from shared.streams import ensure, events, timers
from tests.conftest import until
from tests.registry.conftest import say_runs
from tests.stack import Stack

DAYS = Calendar(day_s=2)
MARGIN_S = 1  # a limit moves on while it stands: on a busy machine by a part of a second
KEY = "key"  # the sealer's folder


async def streams(bus: Bus) -> None:
    """As `ensure` makes them; but a stream looks for duplicates among its messages, and lets none of those go."""
    await bus.api("STREAM.CREATE.TIMERS", timers(1))
    await bus.api("STREAM.CREATE.EVENTS", {**events(1), "duplicate_window": 100_000_000})
    await ensure(bus)


class Built:
    """A stream over several days, its sealer, and an archive. Everything has to happen within `async with`."""

    def __init__(self, remit: Stack) -> None:
        self.remit = remit
        self.folder = remit.folder
        self._exits = AsyncExitStack()

    async def __aenter__(self) -> "Built":
        self.bus = await connect(self.remit.url, "test")
        self._exits.push_async_callback(self.bus.close)
        self.appender = await Appender(self.bus).start()
        self._exits.callback(self.appender.stop)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._exits.aclose()

    async def seal(self, folder: str = KEY, **more: Any) -> Sealer:
        """A sealer at work, until `stop`."""
        sealer = Sealer(self.bus, self.appender, self.folder / folder, every_s=0.1, every_events=7, **more)
        await sealer.start()
        return sealer

    async def live(self, days: int, then: Callable[[int], Awaitable[None]] | None = None) -> None:
        """So many days with runs on each, sealed; then another day has begun, with an event, and all is sealed."""
        sealer = await self.seal()
        await self.past(DAYS.day_of(now_ns()))  # the first one is whole, or a margin might reach all of it
        for day in range(days + 1):
            today = DAYS.day_of(now_ns())
            for _ in range(3):
                await say_runs(self.appender, 1)
                await self.sealed()
            if then is not None:
                await then(day)
                await self.sealed()
            if day < days:
                await self.past(today)
        await sealer.stop()

    async def past(self, day: int) -> None:
        """Wait until this day is over."""
        await until(lambda: DAYS.day_of(now_ns()) > day)

    async def sealed(self) -> None:
        """Say one message more, without headers, and wait for the seal that covers it."""
        end = msgspec.json.decode(await self.bus.request("audit.test.plain", b"{}"))["seq"]

        async def covers() -> bool:
            found = await self.bus.direct("EVENTS", {"next_by_subj": "audit.sealed.>", "seq": end, "batch": 100})
            return any(int(subject.rsplit("-", 1)[1]) >= end for subject, *_ in found)

        await until(covers)

    def keys(self, folder: str = KEY) -> Keys:
        return Keys([signer(self.folder / folder).public])

    def archiver(self, to: str | Path, **more: Any) -> Archiver:
        options = {"now_ns": now_ns(), "calendar": DAYS, **more}
        return Archiver(self.bus, Archive.at(str(to), make=True), self.keys(), **options)

    async def write(self, to: str | Path = "", **more: Any) -> Written:
        return await self.archiver(to or self.archive, **more).write()

    @property
    def archive(self) -> Path:
        return self.folder / "archive"

    async def config(self) -> dict[str, Any]:
        found: dict[str, Any] = (await self.bus.api("STREAM.INFO.EVENTS"))["config"]
        return found


def build(remit: Stack, days: int = 3) -> None:
    """Streams, so many days and their archive, in a stack that stays."""

    async def go() -> None:
        async with Built(remit) as built:
            await streams(built.bus)
            await built.live(days)
            written = await built.write()
            assert len(written.days) >= days, written

    asyncio.run(go())


def fit(archive: Path, day: str, path: Path) -> None:
    """Put this file in the place of the day's own, with a manifest that says so."""
    sha256 = digest(path)
    name = file_name(day, sha256)
    edit(archive, day, sha256=sha256, size_bytes=path.stat().st_size, file=name)
    path.rename(archive / name)


def edit(archive: Path, day: str, **changes: Any) -> None:
    """Other values in a day's manifest."""
    path = archive / "events" / f"{day}.json"
    path.write_bytes(msgspec.json.encode({**msgspec.json.decode(path.read_bytes()), **changes}))


def rewrite(archive: Path, manifest: Manifest, change: Callable[[list[Row]], list[Row]], *, fixed: bool = True) -> None:
    """Another day's file in its place; `fixed`: and a manifest that fits it, as a clever hand would have it."""
    path = archive / Archive.at(str(archive)).manifest(manifest.day).file
    rows = change(list(parquet.rows(path)))
    path.unlink()
    writer = parquet.Writer(path)
    for row in rows:
        writer.add(row)
    writer.close()
    if fixed:
        fit(archive, manifest.day, path)


def manifest_of(day: str, first_at: str = "", seq: int = 1) -> Manifest:
    """The day of one message, `seq`."""
    seal = AuditSealed(size=1, root="", heads="", runs=0, previous=0, at="", stream="", key="", signature="")
    trees = [State(size=seq - 1), State(size=seq)] if seq > 1 else [State(), State(size=1)]
    return Manifest(
        day=day, stream="", first_seq=seq, last_seq=seq, events=1, first_at=first_at, last_at="", file="",
        size_bytes=0, sha256="", root="", before=trees[0], after=trees[1], seals=[], covered_by=seal, consistency=[],
    )  # fmt: skip

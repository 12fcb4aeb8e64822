"""Whole days out of the stream into an archive, each proven before it counts; then the stream's head is let go."""

import asyncio
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec

from cli.proof import read_seals
from cli.reading import read_range
from shared.archive import parquet
from shared.archive.checking import Checker, Flaw, Keys, covering
from shared.archive.days import Calendar, Manifest, Row, day_behind, encode, file_name, manifest_name
from shared.archive.store import Archive, digest
from shared.bus import Bus
from shared.clock import NS_PER_S, rfc3339
from shared.errors import NotFound, RemitError
from shared.events import AuditSealed
from shared.proof.sealing import Sealing, State
from shared.story import read_story
from shared.streams import first_seq, let_go, standing, take_off_limit
from shared.subjects import AUDIT_SEALS, EVENTS

PROGRESS_EVENTS = 100_000
# The limit that lets messages go moves on while it stands, and it must not reach what is to stay.
MARGIN_S = 3600

Tell = Callable[[str], None]


class Mismatch(RemitError):
    """The stream, or what was written of it, is not what was sealed."""

    def __init__(self, flaws: Sequence[Flaw]) -> None:
        super().__init__("\n".join(f"{flaw.day}: {flaw.what}: {flaw.text}" for flaw in flaws))
        self.flaws = list(flaws)


class Written(msgspec.Struct):
    """What one run has archived; `waits` says why a day that is over is not among it ("": none is left).

    `is_still`: it waits for nothing but the next event, as the only messages that no seal covers are seals.
    """

    days: list[Manifest] = []
    waits: str = ""
    is_still: bool = False
    not_ours: int = 0  # seals in the stream that do not count: of other keys, or not signed


class LetGo(msgspec.Struct):
    """Which messages the stream has let go, and what keeps it from letting go more ("": nothing)."""

    first_before: int
    first_after: int
    day: str = ""
    kept_by: str = ""


class Archiver:
    """Writes one stream's days to one archive."""

    def __init__(
        self,
        bus: Bus,
        archive: Archive,
        keys: Keys,
        *,
        now_ns: int,
        calendar: Calendar = Calendar(),  # noqa: B008  # immutable
        kept: Sequence[AuditSealed] = (),
        tell: Tell = lambda _text: None,
    ) -> None:
        self._bus = bus
        self._archive = archive
        self._keys = keys
        self._calendar = calendar
        self._today = calendar.day_of(now_ns)
        self._kept = kept
        self._tell = tell
        self.written = Written()

    async def write(self, until: int | None = None) -> Written:
        """Archive every day that is over (up to day `until`) and not archived yet, the oldest first."""
        written = self.written = Written()
        await take_off_limit(self._bus)  # of one that was killed: it would reach what nobody has archived
        stream, end = await standing(self._bus)
        newest = await asyncio.to_thread(self._archive.newest)
        start = await self._start(newest, stream, end)
        seals = await self._seals(stream, start, written)
        last_day = self._today - 1 if until is None else min(until, self._today - 1)
        while start <= end:
            day = day_behind(self._calendar, newest, await self._stamp(start))
            if day > last_day:
                break
            newest = await self._write_day(day, newest, stream, end, seals, written)
            if newest is None:
                break
            written.days.append(newest)
            start = newest.last_seq + 1
        return written

    async def _start(self, newest: Manifest | None, stream: str, end: int) -> int:
        """The first message that is not archived."""
        where = self._archive.place.where
        if newest is not None and newest.stream != stream:
            raise RemitError(
                f"{where} is the archive of another stream: of the one made on {newest.stream}, and this one was made "
                f"on {stream}; name an empty place for this one"
            )
        start = newest.last_seq + 1 if newest else 1
        if start > end + 1:
            raise RemitError(
                f"the stream ends at message {end}, and {where} has messages up to {start - 1}: it was cut"
            )
        begin = (await first_seq(self._bus))[0]
        if start < begin:
            has = f"ends with message {start - 1}" if newest else "is empty"
            raise RemitError(
                f"messages {start} to {begin - 1} are neither in the stream nor in {where}, which {has}: an archive "
                "has no holes; find the one that has them and go on with that"
            )
        return start

    async def _stamp(self, seq: int) -> int:
        found = await self._bus.stored(EVENTS, seq)
        if found is None:
            raise RemitError(f"message {seq} is not in the stream")
        return found[1]

    async def _seals(self, stream: str, start: int, written: Written) -> list[AuditSealed]:
        """Those that count and are larger than what is archived: the stream's, and the sealer's own file's."""
        found: dict[tuple[int, str], AuditSealed] = {}
        for seal in (*await read_seals(self._bus, start - 1), *self._kept):
            if seal.size < start:
                continue
            if self._keys.why_not(seal, stream):
                written.not_ours += 1
            else:
                found[seal.size, seal.root] = seal
        return list(found.values())

    async def _write_day(
        self, day: int, before: Manifest | None, stream: str, end: int, seals: list[AuditSealed], written: Written
    ) -> Manifest | None:
        """One day, in place and proven; None when no seal covers it yet, which `written` then tells."""
        name, state = self._calendar.name(day), before.after if before else State()
        checker = Checker(name, state, seals)
        first = state.size + 1
        stamps: list[int] = []
        trailing = 0  # so many of the last messages are seals

        with self._archive.place.staged(file_name(name)) as path:
            writer = parquet.Writer(path)

            def hear(row: Row) -> bool:
                nonlocal trailing
                subject, seq, at_ns, _, _ = row
                if self._calendar.day_of(at_ns) > day or checker.hear(row):
                    return True
                writer.add(row)
                trailing = trailing + 1 if subject.startswith(AUDIT_SEALS.removesuffix("*")) else 0
                stamps[:] = [stamps[0] if stamps else at_ns, at_ns]
                if (seq - first + 1) % PROGRESS_EVENTS == 0:
                    self._tell(f"  {name}: {seq - first + 1} events")
                return False

            try:
                await read_range(self._bus, first, end, hear)
            except BaseException:
                writer.give_up()
                raise
            last = checker.size
            cover = covering(seals, last)
            if checker.flaw is None and cover is not None and cover.size > end:
                text = f"the stream ends at message {end}, and {cover.size} were sealed: it was cut"
                raise Mismatch([Flaw(name, "missing", text, end + 1, cover.size)])
            if checker.flaw is None and cover is not None:
                later = await self._leaves(checker.state(), last + 1, cover.size)
                proof = checker.consistency(later)
                checker.covered(cover, proof)
            if checker.flaw is not None:
                writer.give_up()
                raise Mismatch([checker.flaw])
            if cover is None:
                writer.give_up()
                newest = max((seal.size for seal in seals), default=first - 1)
                written.is_still = last - trailing <= newest
                written.waits = f"{name} waits: its last message is {last}, and no seal covers more than {newest}"
                return None
            first_at, last_at = rfc3339(stamps[0]), rfc3339(stamps[-1])
            writer.close(
                day=name, stream=stream, first_seq=first, last_seq=last, first_at=first_at, last_at=last_at,
                root=checker.root,
            )  # fmt: skip
            manifest = Manifest(
                day=name,
                stream=stream,
                first_seq=first,
                last_seq=last,
                events=last - first + 1,
                first_at=first_at,
                last_at=last_at,
                file=file_name(name),
                size_bytes=path.stat().st_size,
                sha256=await asyncio.to_thread(digest, path),
                root=checker.root,
                before=state,
                after=checker.state(),
                seals=checker.passed,
                covered_by=cover,
                consistency=[one.hex() for one in proof],
            )
            await asyncio.to_thread(self._put, manifest, path)
        self._tell(f"  {name}: messages {first} to {last}, {manifest.size_bytes} bytes, sealed at {cover.size}")
        return manifest

    def _put(self, manifest: Manifest, path: Path) -> None:
        """The file in its place, read back from there and proven; only then its manifest, which makes it a day."""
        place = self._archive.place
        place.put(manifest.file, path)
        flaws = self._archive.check_day(manifest, self._keys)
        if flaws:
            place.delete(manifest.file)
            raise Mismatch(flaws)
        place.create(manifest_name(manifest.day), encode(manifest))

    async def _leaves(self, state: State, first: int, last: int) -> list[bytes]:
        """The leaves behind the day, up to the seal that covers it: what the proof of consistency needs."""
        leaves: list[bytes] = []
        sealing = Sealing(state)
        if first <= last:
            await read_range(self._bus, first, last, lambda row: leaves.append(sealing.add(*row[:4])[0]))
        return leaves

    # -- the stream's head -----------------------------------------------------------------------------------

    async def let_go(self, keep_days: int, *, margin_s: float = MARGIN_S) -> LetGo:
        """Have the stream drop the days that are older than `keep_days`, archived, proven, and needed by no run.

        No command calls it: what it lets go is not proven in every case (docs/archive.md). The tests make streams
        without their head by it.
        """
        begin = (await first_seq(self._bus))[0]
        manifests = await asyncio.to_thread(self._archive.manifests)
        fit = [one for one in manifests if self._calendar.number(one.day) + keep_days < self._today]
        kept_by = ""
        while fit and (active := await self._kept_by(fit[-1])):
            kept_by = active  # in the end the oldest of those that keep something
            fit.pop()
        still_here = [one for one in fit if one.last_seq >= begin]
        if not still_here:
            return LetGo(begin, begin, fit[-1].day if fit else "", kept_by)
        for manifest in still_here:
            self._tell(f"  {manifest.day}: looked at once more")
            if flaws := await asyncio.to_thread(self._archive.check_day, manifest, self._keys):
                raise Mismatch(flaws)
        last = still_here[-1]
        edge_ns = self._calendar.begin_ns(self._calendar.number(last.day) + 1) - int(margin_s * NS_PER_S)
        before, after = await let_go(self._bus, edge_ns)
        return LetGo(before, after, last.day, kept_by)

    async def _kept_by(self, manifest: Manifest) -> str:
        """Which run that began by the end of this day is still active; "" for none."""
        for run in sorted(map(int, manifest.after.open)):
            try:
                story = await read_story(self._bus, run)
            except NotFound:
                continue  # its goal is gone already
            if not story.run.ended:
                return f"run {run}, which is {story.run.status}"
        return ""

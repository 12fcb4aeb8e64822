"""Whole days out of the stream into an archive, each proven before it counts; then the stream's head is let go."""

import asyncio
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec

from cli.proof import read_seals
from cli.reading import read_range
from shared.age_limit import let_go, take_off_expired
from shared.archive import parquet
from shared.archive.checking import Checker, Flaw, Keys, chain_flaws, covering
from shared.archive.days import Calendar, Manifest, Row, day_behind, encode, file_name, manifest_name
from shared.archive.store import Archive, digest, stretches
from shared.asking import ask
from shared.bus import Bus
from shared.clock import NS_PER_S, rfc3339
from shared.errors import AlreadySaid, RemitError, Unavailable
from shared.events import AuditSealed
from shared.ledger import Question
from shared.proof.sealing import Links, Sealing, State
from shared.story import read_story
from shared.streams import first_seq, standing
from shared.subjects import AUDIT_SEALS, EVENTS, goal_rejected, plan_created, run_completed

PROGRESS_EVENTS = 100_000
# The limit that lets messages go moves on while it stands, and it must not reach what is to stay: where it is left
# behind, it stands for `age_limit.STANDS_S` and as long as nothing of Remit runs.
MARGIN_S = 3600
COMPARED = 20_000  # messages at a time
ASK_S = 5

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
    way_out: str = ""
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
        await take_off_expired(self._bus)
        stream, end = await standing(self._bus)
        newest = await asyncio.to_thread(self._archive.newest)
        start = await self._start(newest, stream, end)
        seals = await self._seals(stream, start, written)
        last_day = self._today - 1 if until is None else min(until, self._today - 1)
        while start <= end:
            day = day_behind(self._calendar, newest, await self._stamp(start))
            if day > last_day:
                if day > self._today:
                    written.waits = f"message {start} is stamped {self._calendar.name(day)}, which has not come yet"
                    written.way_out = "The NATS server's clock was ahead, or this one is behind"
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
                written.way_out = (
                    "Nothing but seals has come since, so the next event is waited for"
                    if written.is_still
                    else "A sealer makes one within a minute (`remit up` has one, or `remit sealer`): run it again"
                )
                return None
            first_at, last_at = rfc3339(stamps[0]), rfc3339(stamps[-1])
            writer.close(
                day=name, stream=stream, first_seq=first, last_seq=last, first_at=first_at, last_at=last_at,
                root=checker.root,
            )  # fmt: skip
            sha256 = await asyncio.to_thread(digest, path)
            manifest = Manifest(
                day=name,
                stream=stream,
                first_seq=first,
                last_seq=last,
                events=last - first + 1,
                first_at=first_at,
                last_at=last_at,
                file=file_name(name, sha256),
                size_bytes=path.stat().st_size,
                sha256=sha256,
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
        if flaws := self._archive.check_day(manifest, self._keys):
            raise Mismatch(flaws)  # the file counts for nothing, and may be another one's, too: it stays
        try:
            place.create(manifest_name(manifest.day), encode(manifest))
        except AlreadySaid:
            if self._archive.manifest(manifest.day).file != manifest.file:
                place.delete(manifest.file)
            raise

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

        The archive has to be whole and of this stream, day behind day, as far as messages are to go; each of those
        messages is compared with the one that the archive gives back, headers included; and what may go is told by
        the stamps that the stream itself has. So nothing rests on what a manifest says.
        """
        stream, _ = await standing(self._bus)
        begin, begin_ns = await first_seq(self._bus)
        today_ns = self._calendar.begin_ns(self._today)
        keep_ns = self._calendar.begin_ns(self._today - keep_days)
        runs = _Unended(self._bus)
        gone = LetGo(begin, begin)
        before: Manifest | None = None
        last: Manifest | None = None  # of the days that may go
        for manifest in await asyncio.to_thread(self._archive.manifests):
            flaws = chain_flaws(manifest, before)
            if manifest.stream != stream:
                flaws.append(Flaw(manifest.day, "stream", f"this stream was made on {stream}"))
            if flaws:
                raise Mismatch(flaws)
            before = manifest
            if manifest.last_seq < begin:
                continue  # it is gone already
            if await self._stamp(manifest.last_seq) >= keep_ns:
                break
            self._tell(f"  {manifest.day}: looked at once more")
            flaws = await asyncio.to_thread(self._archive.check_day, manifest, self._keys)
            if flaws := flaws or await self._differences(manifest, begin, runs):
                raise Mismatch(flaws)
            gone.kept_by = await runs.active() or await self._unfolded(manifest.last_seq)
            if gone.kept_by:
                break
            last = manifest
        if last is None:
            return gone
        gone.day = last.day
        behind = await self._bus.stored(EVENTS, last.last_seq + 1)
        edge_ns = min(keep_ns, behind[1] if behind else today_ns) - int(margin_s * NS_PER_S)
        if edge_ns <= begin_ns:
            return gone
        gone.first_before, gone.first_after = await let_go(self._bus, edge_ns)
        if gone.first_after > last.last_seq + 1:
            raise RemitError(
                f"the stream begins with message {gone.first_after} now, and only messages up to {last.last_seq} were "
                "to go: has somebody limited it (max_age) meanwhile?"
            )
        return gone

    async def _unfolded(self, last: int) -> str:
        """The registry, when it answers and has not folded this message; "" else. It would need the archive for it."""
        try:
            position = (await ask(self._bus, "status", Question(), timeout_s=ASK_S)).position
        except RemitError:
            return ""  # there is none, or it reads the archive just now
        return f"the registry, which has folded up to message {position}" if position < last else ""

    async def _differences(self, manifest: Manifest, begin: int, runs: "_Unended") -> list[Flaw]:
        """Compare the day's messages that the stream still has with what the archive gives back for them."""
        first, last = max(begin, manifest.first_seq), manifest.last_seq
        async for archived in stretches(self._archive.rows(first, last), COMPARED):
            here: list[Row] = []
            await read_range(self._bus, archived[0][1], archived[-1][1], here.append)
            for one, other in zip(archived, here, strict=True):
                if one != other:
                    seq = other[1]
                    text = f"message {seq} is another one in the archive, or has other headers, than in the stream"
                    return [Flaw(manifest.day, "changed", text, seq, seq)]
                runs.hear(other[0], other[1])
        return []


class _Unended:
    """The runs whose goals have been heard and whose ends have not. (One whose goal is gone is over: it could go.)"""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus
        self._links = Links()
        self._ended: set[str] = set()

    def hear(self, subject: str, seq: int) -> None:
        self._links.link(subject, seq)
        self._links.closed.clear()

    async def active(self) -> str:
        """Which of them is still active, as the whole stream has it; "" for none."""
        for run in sorted(self._links.open.keys() - self._ended, key=int):
            try:
                run_now = (await read_story(self._bus, int(run))).run
            except Unavailable:
                raise
            except RemitError as error:
                # A stranger's goal that is none, or more notes on a run than anybody reads: its end alone tells.
                if not await self._has_end(int(run)):
                    return f"run {run}, whose end has not come ({error.message})"
            else:
                if not run_now.ended:
                    return f"run {run}, which is {run_now.status}"
            self._ended.add(run)
        return ""

    async def _has_end(self, run: int) -> bool:
        """Whether the word that ends the run stands behind its goal."""
        ends = [await self._bus.last_on(EVENTS, subject) for subject in (run_completed(run), goal_rejected(run))]
        plan = await self._bus.last_on(EVENTS, plan_created(run))
        completed, rejected = (found[0] if found else 0 for found in ends)
        return completed > run or (rejected > run and (plan is None or plan[0] > rejected))

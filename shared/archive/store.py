"""An archive as it lies in its place: its days in order, their messages, and the check of all of it."""

import asyncio
import hashlib
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from shared.archive import parquet
from shared.archive.days import FOLDER, Manifest, Row, decode, is_day, manifest_name
from shared.archive.places import Place, place
from shared.errors import UNREADABLE, Malformed, NotFound, RemitError

if TYPE_CHECKING:
    from shared.archive.checking import Flaw, Keys
    from shared.events import AuditSealed


STRETCH_BYTES = 32 * 1024 * 1024


class Archive:
    """Whole days of one stream. Everything in it blocks."""

    def __init__(self, where: Place) -> None:
        self.place = where

    @classmethod
    def at(cls, where: str, *, make: bool = False) -> "Archive":
        """The archive of this folder or URL; `make` the folder that is not there yet."""
        return cls(place(where, make=make))

    # -- days ------------------------------------------------------------------------------------------------

    def days(self) -> list[str]:
        """The names of the days that have a manifest, in order."""
        names = (name.removeprefix(f"{FOLDER}/") for name in self.place.names() if name.startswith(f"{FOLDER}/"))
        days = (name.removesuffix(".json") for name in names if name.endswith(".json"))
        return sorted(day for day in days if is_day(day))

    def manifest(self, day: str) -> Manifest:
        """`NotFound`, or `Malformed` when it cannot be read."""
        name = manifest_name(day)
        try:
            return decode(self.place.read(name), day)
        except UNREADABLE as error:
            raise Malformed(f"{name} in {self.place.where}: {str(error)[:200]}", field="archive") from error

    def manifests(self) -> list[Manifest]:
        return [self.manifest(day) for day in self.days()]

    def newest(self) -> Manifest | None:
        days = self.days()
        return self.manifest(days[-1]) if days else None

    @contextmanager
    def file(self, manifest: Manifest) -> Iterator[Path]:
        """The day's file, when it is the one that was archived."""
        with self.place.fetched(manifest.file) as path:
            if (found := digest(path)) != manifest.sha256:
                raise RemitError(
                    f"{manifest.file} in {self.place.where} was changed: its digest is {found[:12]}… and not "
                    f"{manifest.sha256[:12]}…; `remit archive check` says more"
                )
            yield path

    # -- messages --------------------------------------------------------------------------------------------

    def rows(self, first: int, last: int, stream: str = "") -> Iterator[Row]:
        """Messages `first` to `last`, each once and in order. RemitError where one of them is not there.

        With `stream` (when it was made) only those of that one.
        """
        wanted = first
        for manifest in self.manifests():
            if manifest.last_seq < wanted or wanted > last:
                continue
            if stream and manifest.stream != stream:
                raise RemitError(
                    f"the archive {self.place.where} is of another stream: of the one made on {manifest.stream}, and "
                    f"this one was made on {stream}"
                )
            with self.file(manifest) as path:
                try:
                    for row in parquet.rows(path):
                        if row[1] < wanted:
                            continue
                        if row[1] != wanted:
                            raise RemitError(self._hole(wanted, row[1] - 1))
                        yield row
                        if wanted == last:
                            return
                        wanted += 1
                except ValueError as error:
                    raise RemitError(f"{manifest.file} in {self.place.where}: {error}") from error
        if wanted <= last:
            raise NotFound(self._hole(wanted, last))

    def _hole(self, first: int, last: int) -> str:
        return f"the archive {self.place.where} has no messages {first} to {last}"

    # -- checking --------------------------------------------------------------------------------------------

    def check(
        self, keys: "Keys", more: "Sequence[AuditSealed]" = (), tell: Callable[[str], None] = lambda _text: None
    ) -> tuple[list[Manifest], "list[Flaw]"]:
        """Every day against the seals; the days, and what is not as it was sealed."""
        days: list[Manifest] = []
        flaws: list[Flaw] = []
        for manifest, found in self.checks(keys, more, tell):
            days += [manifest] if manifest else []
            flaws += found
        return days, flaws

    def checks(
        self, keys: "Keys", more: "Sequence[AuditSealed]" = (), tell: Callable[[str], None] = lambda _text: None
    ) -> "Iterator[tuple[Manifest | None, list[Flaw]]]":
        """Each day in its turn (None: its manifest cannot be read) with what is not as it was sealed.

        `more` are seals of elsewhere, such as the sealer's own file: those of this stream and these keys count, too.
        Where no day has a flaw, each one's messages and its `after`, runs included, are what was sealed: the first
        begins with nothing, and each next one with what was made anew of the messages before it.
        """
        from shared.archive.checking import Flaw, chain_flaws

        before: Manifest | None = None
        for day in self.days():
            tell(day)
            try:
                manifest = self.manifest(day)
            except (Malformed, NotFound) as error:
                yield None, [Flaw(day, "manifest", error.message)]
                continue
            yield manifest, [*chain_flaws(manifest, before), *self.check_day(manifest, keys, more)]
            before = manifest

    def check_day(self, manifest: Manifest, keys: "Keys", more: "Sequence[AuditSealed]" = ()) -> "list[Flaw]":
        """One day's seals, and its file, read back from where it lies."""
        from shared.archive.checking import Checker, Flaw, seal_flaws

        day, flaws = manifest.day, seal_flaws(manifest, keys)
        seals = {
            (seal.size, seal.root): seal
            for seal in (*manifest.seals, *more)
            if seal.size <= manifest.last_seq and not keys.why_not(seal, manifest.stream)
        }
        try:
            checker = Checker(day, manifest.before, list(seals.values()), manifest.last_seq)
            proof = [bytes.fromhex(one) for one in manifest.consistency]
            bytes.fromhex(manifest.covered_by.root)
        except ValueError as error:
            return [*flaws, Flaw(day, "manifest", f"its tree is none: {error}")]
        try:
            with self.place.fetched(manifest.file) as path:
                if (found := digest(path)) != manifest.sha256:
                    text = f"its digest is {found[:12]}… and not {manifest.sha256[:12]}…"
                    flaws.append(Flaw(day, "file", f"{manifest.file} was changed: {text}"))
                try:
                    for row in parquet.rows(path):
                        if checker.hear(row):
                            break
                    else:
                        checker.ended()
                except ValueError as error:
                    checker.unreadable(str(error))
        except NotFound:
            first, last = manifest.first_seq, manifest.last_seq
            text = f"{manifest.file} is not there: messages {first} to {last} are missing"
            return [*flaws, Flaw(day, "missing", text, first, last)]
        if checker.flaw is None and not keys.why_not(manifest.covered_by, manifest.stream):
            checker.covered(manifest.covered_by, proof)
        if checker.flaw is not None:
            return [*flaws, checker.flaw]
        if checker.root != manifest.root or checker.state() != manifest.after:
            flaws.append(Flaw(day, "manifest", "it does not say the tree that its messages give"))
        if checker.stamps != (manifest.first_at, manifest.last_at):
            flaws.append(Flaw(day, "manifest", "it does not say when its first and its last message came"))
        return flaws


async def stretches(rows: Iterator[Row], most: int) -> AsyncIterator[list[Row]]:
    """The rows, so many at a time (fewer where they are large), read in a thread: an archive blocks, a loop may not."""

    def next_ones() -> list[Row]:
        found, size = list[Row](), 0
        for row in rows:
            found.append(row)
            size += len(row[3]) + len(row[4] or b"")
            if len(found) >= most or size >= STRETCH_BYTES:
                break
        return found

    while some := await asyncio.to_thread(next_ones):
        yield some


def digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()

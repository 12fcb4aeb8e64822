"""The sealer's shell: follows EVENTS, and seals it every so many events, or after a while when something is new.

A seal is said first and written down after: a sealer that is killed between the two goes on from the seal before, and
makes another one. Two sealers do each other no harm: seals are create-only by size, each signed with its own key, and
seals alone are nothing new.
"""

import asyncio
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

import msgspec

from shared.append import Appender
from shared.archive.checking import Keys
from shared.archive.days import Manifest
from shared.archive.store import Archive
from shared.bus import Bus
from shared.clock import rfc3339
from shared.errors import AlreadySaid, RemitError
from shared.events import AuditSealed, encode
from shared.proof.keys import signer
from shared.proof.sealing import SEALS_FILE, Sealing, State, signed_bytes
from shared.pull import Gone, Reader
from shared.streams import first_seq, standing
from shared.subjects import AUDIT_SEALS, EVENTS, audit_sealed

log = logging.getLogger("remit.sealer")

STATE_FILE = "sealer.json"
SEAL_BYTES_MAX = 65_536  # of a line in the file: hashes, a key, a signature, a few numbers
LOOK_S = 0.25
_SEAL = AUDIT_SEALS.removesuffix("*")


class _Kept(msgspec.Struct):
    """What the next sealer begins with: the tree at the last seal, and of which stream."""

    stream: str
    root: str
    state: State


class Sealer:
    """Folds the tree, and seals it. `failed` raises when it cannot go on."""

    def __init__(
        self,
        bus: Bus,
        appender: Appender,
        folder: Path,
        *,
        every_s: float,
        every_events: int,
        archive: str | None = None,
        trusted: Sequence[bytes] = (),
    ) -> None:
        self._bus = bus
        self._appender = appender
        self._folder = folder
        self._archive = archive
        self._trusted = trusted  # public keys of sealers before this one, whose archive is believed
        self._every_s = every_s
        self._every_events = every_events
        self._signer = signer(folder)
        self._sealing = Sealing()
        self._stream = ""
        self._sealed = 0  # the size of the last seal
        self._new = 0  # events since then that are no seals
        self._loop_s = 0.0
        self._reader: Reader
        self._sealer: asyncio.Task[None]

    async def start(self) -> None:
        self._stream, end = await standing(self._bus)
        self._take_up(end)
        await self._take_up_archived()
        log.info("sealing from event %d on, with key %s", self._sealing.size + 1, self._signer.name)
        self._loop_s = asyncio.get_running_loop().time()
        begin = self._sealing.size + 1
        self._reader = await Reader(self._bus, EVENTS, self.on_event, start_seq=begin, whole=True).start()
        self._sealer = asyncio.create_task(self._seal_for_ever())

    async def failed(self) -> None:
        await asyncio.gather(self._reader.failed(), asyncio.shield(self._sealer))

    async def stop(self) -> None:
        self._sealer.cancel()
        await self._reader.stop()

    def _take_up(self, end: int) -> None:
        """Go on from the last seal, when it is of this stream and its hashes give its root; else from the beginning."""
        path = self._folder / STATE_FILE
        try:
            kept = msgspec.json.decode(path.read_bytes(), type=_Kept)
            sealing = Sealing(kept.state)
        except FileNotFoundError:
            return
        except (ValueError, OSError) as error:
            log.warning("%s cannot be read, and the stream is read anew: %s", path, error)
            return
        if kept.stream != self._stream or sealing.size > end or sealing.root.hex() != kept.root:
            log.warning("%s is of another stream, and this one is read from its beginning", path)
            return
        self._sealing, self._sealed = sealing, sealing.size

    async def _take_up_archived(self) -> None:
        """Where the messages that are next are not in the stream any more: go on from the archive's newest day.

        It is believed only as far as a seal of this very key proves it, or of one that is trusted.
        """
        begin = (await first_seq(self._bus))[0]
        if self._sealing.size >= begin - 1:
            return
        if not self._archive:
            way_out = "start the sealer with --archive TO (or REMIT_ARCHIVE), whose days say how the tree stood"
            raise Gone(EVENTS, self._sealing.size + 1, begin - 1, way_out)
        where = await asyncio.to_thread(Archive.at, self._archive)
        newest = await self._proven(where)
        if newest.last_seq < begin - 1 or newest.stream != self._stream:
            raise RemitError(f"{self._archive} does not say how the tree of this stream stood at message {begin - 1}")
        self._sealing = Sealing(newest.after)
        self._sealed = newest.last_seq
        log.warning("going on from the archive's tree at message %d", newest.last_seq)

    async def _proven(self, where: Archive) -> Manifest:
        """The newest day, when all of the archive is proven: what is known of a run rests on every message before.

        It takes some seconds a day.
        """
        days = where.checks(Keys([self._signer.public, *self._trusted]), (), lambda day: log.info("proving %s", day))
        newest: Manifest | None = None
        while (checked := await asyncio.to_thread(next, days, None)) is not None:
            newest, flaws = checked
            for flaw in flaws:
                found = f"{flaw.what}: {flaw.text}"
                raise RemitError(
                    f"{flaw.day} in {self._archive} is not proven by this sealer's own seals: {found}. If another key "
                    "sealed it, name its public key in REMIT_SEALER_TRUSTS"
                )
        if newest is None:
            raise RemitError(f"{self._archive} is empty")
        return newest

    def on_event(self, subject: str, seq: int, at_ns: int, data: bytes) -> None:
        self._sealing.add(subject, seq, at_ns, data)
        self._new += not subject.startswith(_SEAL)

    async def _seal_for_ever(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(LOOK_S)
            waited_s = loop.time() - self._loop_s
            if self._new and (self._new >= self._every_events or waited_s >= self._every_s):
                await self._seal()
                self._loop_s = loop.time()

    async def _seal(self) -> None:
        # No await between the tree and its seal: they are of one moment.
        seal = self._sealing.seal(self._sealed, self._stream, rfc3339(self._sealing.at_ns), self._signer.name)
        kept = msgspec.json.encode(_Kept(self._stream, seal.root, self._sealing.state()))
        self._new = 0
        seal = msgspec.structs.replace(seal, signature=self._signer.sign(signed_bytes(seal)).hex())
        try:
            await self._appender.append(audit_sealed(seal.size), encode(seal))
        except AlreadySaid:
            log.info("another sealer has sealed the first %d events", seal.size)
            return  # theirs stands in the stream; ours covers the same and more, next time
        self._write(seal, kept)
        self._sealing.forget(seal.size)
        self._sealed = seal.size
        log.info("sealed the first %d events: %s", seal.size, seal.root)

    def _write(self, seal: AuditSealed, kept: bytes) -> None:
        try:
            with (self._folder / SEALS_FILE).open("ab+") as file:
                _drop_half_a_line(file)
                file.write(encode(seal) + b"\n")
                file.flush()
                os.fsync(file.fileno())
            part = self._folder / f"{STATE_FILE}.part"
            part.write_bytes(kept)
            part.replace(self._folder / STATE_FILE)
        except OSError as error:
            raise RemitError(f"a seal cannot be written down: {error}") from error


def _drop_half_a_line(file: BinaryIO) -> None:
    """Cut off what a sealer has left that ended within its write: no reader could make anything of the file."""
    end = file.seek(0, os.SEEK_END)
    begin = max(0, end - SEAL_BYTES_MAX)
    file.seek(begin)
    whole = file.read().rfind(b"\n") + 1
    if whole or not begin:  # else it is no file of seals, and not ours to cut
        file.truncate(begin + whole)

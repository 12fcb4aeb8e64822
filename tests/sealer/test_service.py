"""The sealer on a real stream: what it has written down can be read, whatever ended the sealer before it."""

import os
from pathlib import Path

from cli.proof import seals_of
from services.sealer.service import Sealer
from shared.append import Appender
from shared.bus import Bus
from shared.proof.keys import KEY_FILE, signer
from shared.proof.sealing import SEALS_FILE
from tests.conftest import until


async def test_a_seal_that_was_written_by_half_is_in_no_later_ones_way(bus: Bus, tmp_path: Path) -> None:
    """As after a kill within the write, or a disk that was full: the stream has that seal, and the file its others."""
    appender = await Appender(bus).start()
    folder = tmp_path / "sealer"
    folder.mkdir()
    file = folder / SEALS_FILE

    async def sealed(seals: int) -> None:
        sealer = Sealer(bus, appender, folder, every_s=0.1, every_events=1)
        await sealer.start()
        await bus.request("goal.submitted", b"{}")
        await until(lambda: file.is_file() and file.read_bytes().count(b"\n") == seals)
        await sealer.stop()

    await sealed(1)
    first = file.read_bytes()
    file.write_bytes(first + first[: len(first) // 2])
    await sealed(2)
    assert file.read_bytes().startswith(first)
    assert len(seals_of(file)) == 2
    appender.stop()


def test_a_key_that_was_made_by_half_is_made_anew(tmp_path: Path) -> None:
    """By a process that was killed as it wrote it, and whose number this one has: so it is in a container."""
    (tmp_path / f"{KEY_FILE}.{os.getpid()}").write_bytes(b"-----BEGIN PRIV")
    made = signer(tmp_path)
    assert signer(tmp_path).name == made.name
    assert (tmp_path / KEY_FILE).stat().st_mode & 0o777 == 0o600

"""`remit rebuild`: the tables dropped and folded again from the stream, and compared with what they were."""

import asyncio
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click
import msgspec

from cli.speak import FOLDER, archive_option, common, data, ends_well, fail, talk, with_bus
from shared.bus import Bus
from shared.errors import RemitError, Unavailable
from shared.ledger import Answer
from shared.status import EXIT_FAILED
from shared.subjects import registry

SILENCE_S = 60.0


@click.command()
@click.option("--data-dir", type=FOLDER, help="Of the file, where no registry is running.")
@archive_option
@common
@ends_well
def rebuild(output: str, data_dir: Path | None, archive: str | None) -> None:
    """Drop the registry's tables and fold the whole stream again.

    A registry that is running does it, with its own --archive; where none is, it is done here, with this one. Exit
    code 1 when the new tables differ from the old ones at the same event: the record or the fold was changed.
    """
    try:
        result = with_bus(_ask)
    except Unavailable as error:
        if "registry" not in error.message:
            raise
        talk("no registry is running; folding into its file here")
        result = _offline(data_dir, archive)
    if output == "json":
        data(result)
    else:
        for name, digest in result["after"].items():
            before = (result["before"] or {}).get(name)
            same = "" if before is None else "identical" if before == digest else f"differs: was {before}"
            click.echo(f"{name:12} {digest}  {same}")
        talk(f"rebuilt up to event {result['seq']}")
    if result["identical"] is False:
        fail("the tables are not what they were", EXIT_FAILED)


async def _ask(bus: Bus) -> dict[str, Any]:
    came: asyncio.Queue[bytes | None] = asyncio.Queue()

    def collect(_subject: str, answer: bytes, _reply: str, headers: Mapping[str, str] | None) -> None:
        came.put_nowait(None if headers and headers.get("Status") == "503" else answer)

    inbox = bus.inbox()
    await bus.subscribe(inbox, collect)
    await bus.publish(registry("rebuild"), b"", inbox)
    while True:
        try:
            answer = await asyncio.wait_for(came.get(), SILENCE_S)
        except TimeoutError:
            raise RemitError(f"the registry said nothing for {SILENCE_S:g} s") from None
        if answer is None:
            raise Unavailable("no registry answers")
        told = msgspec.json.decode(answer, type=Answer)
        if told.error:
            raise RemitError(told.error)
        if told.more.get("done"):
            return told.more
        _progress(told.more)


def _offline(data_dir: Path | None, archive: str | None) -> dict[str, Any]:
    if data_dir:
        os.environ["REMIT_DATA_DIR"] = str(data_dir.absolute())
    if archive:
        os.environ["REMIT_ARCHIVE"] = archive
    with subprocess.Popen(
        [sys.executable, "-m", "services.registry", "--rebuild"], stdout=subprocess.PIPE, text=True
    ) as child:
        last: dict[str, Any] = {}
        for line in child.stdout or ():
            last = msgspec.json.decode(line)
            if not last.get("done"):
                _progress(last)
    if child.returncode or not last.get("done"):
        raise RemitError("the rebuild did not finish; its log is above")
    return last


def _progress(more: dict[str, Any]) -> None:
    if more.get("of"):
        talk(f"  {more['position']} of {more['of']} events")

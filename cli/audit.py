"""`remit audit`: the record judged by rules of their own, read from the raw stream, and its artifacts in the store."""

import hashlib
import tempfile
from pathlib import Path
from typing import Any

import click

from cli.reading import Message, bundle_of, read_all, read_run
from cli.runs import RUN
from cli.speak import archive_option, common, data, ends_well, line, table, talk, with_bus
from shared.audit.findings import RULES, Announced, Audited, Finding
from shared.audit.of_stream import Audit
from shared.bus import Bus
from shared.errors import NotFound, RemitError, Unavailable
from shared.process import collect_seldom
from shared.status import EXIT_FAILED
from shared.subjects import ARTIFACTS_BUCKET, artifact


@click.command()
@click.argument("run", type=RUN, required=False)
@click.option("--all", "everything", is_flag=True, help="The whole stream, from its first message.")
@click.option("--bundle", type=click.Path(path_type=Path), help="A run from a file of `remit proof export`.")
@click.option("--no-artifacts", is_flag=True, help="Leave the object store out.")
@click.option("--notes", is_flag=True, help="Print what counts for nothing, too.")
@click.option("--rules", is_flag=True, help="Print the rules, and judge nothing.")
@archive_option
@common
@ends_well
def audit(
    output: str,
    run: int | None,
    everything: bool,
    bundle: Path | None,
    no_artifacts: bool,
    notes: bool,
    rules: bool,
    archive: str | None,
) -> None:
    """Check the record of RUN, or of --all, by rules that share no code with the engine.

    Each finding names its rule and the events that prove it. Exit code 1 when there is one.
    """
    if rules:
        said = [{"rule": name, "says": text} for name, text in RULES.items()]
        data(said) if output == "json" else table(said, ("rule", "says"))
        return
    if sum((run is not None, everything, bundle is not None)) != 1:
        raise click.UsageError("name one of the three: a RUN, or --all, or --bundle FILE")
    if bundle is not None:
        found = heard(bundle_of(bundle).messages)
        no_artifacts = True
    else:
        collect_seldom()
        found = with_bus(lambda bus: _audited(bus, run, archive, check_artifacts=not no_artifacts))
    if output == "json":
        data(found.told())
    else:
        _show(found, notes=notes, with_artifacts=not no_artifacts)
    raise SystemExit(EXIT_FAILED if found.findings else 0)


def heard(messages: list[Message]) -> Audited:
    """One run's messages under audit."""
    one = Audit(whole=False)
    for message in messages:
        one.hear(*message)
    return one.result()


async def _audited(bus: Bus, run: int | None, archive: str | None, *, check_artifacts: bool) -> Audited:
    if run is not None:
        found = heard(await read_run(bus, run, archive))
    else:
        whole = Audit()
        await read_all(bus, whole.hear, archive=archive)
        found = whole.result()
    if check_artifacts:
        found.findings += await in_store(bus, found.artifacts)
    return found


async def in_store(bus: Bus, announced: list[Announced]) -> list[Finding]:
    """What of the announced is not in the object store as it was announced; each object is read once."""
    by_object: dict[tuple[int, str], list[Announced]] = {}
    for one in announced:
        by_object.setdefault((one.holder, one.name), []).append(one)
    found: list[Finding] = []
    with tempfile.TemporaryDirectory() as folder:
        into = Path(folder) / "artifact"
        for (holder, name), ones in by_object.items():
            why, sha256, size_bytes = "", "", 0
            try:
                await bus.object_get(ARTIFACTS_BUCKET, artifact(holder, name), into)
                with into.open("rb") as file:
                    sha256, size_bytes = hashlib.file_digest(file, "sha256").hexdigest(), into.stat().st_size
            except Unavailable:
                raise
            except NotFound:
                why = "it is not in the store"
            except RemitError as error:
                why = error.message
            for one in ones:
                differs = why
                if not why and size_bytes != one.size_bytes:
                    differs = f"it has {size_bytes} bytes in the store, and {one.size_bytes} were announced"
                elif not why and sha256 != one.sha256.lower():
                    differs = f"its digest in the store is {sha256[:12]}…, and {one.sha256[:12]}… was announced"
                if differs:
                    what = name if holder == one.run else f"{name} of run {holder}"
                    found.append(Finding("artifact", one.run, one.step, [one.seq], f"{what}: {differs}"))
    return found


def _show(found: Audited, *, notes: bool, with_artifacts: bool) -> None:
    rows: list[dict[str, Any]] = [
        {"rule": one.rule, "run": one.run or None, "step": one.step, "events": one.events, "finding": one.text}
        for one in found.findings
    ]
    if rows:
        table(rows, ("rule", "run", "step", "events", "finding"))
    if notes:
        for note in found.notes:
            line(f"note: event {note.seq} ({note.subject}) counts for nothing: {note.text}")
    counted = f"{found.events} events, {found.runs} runs ({found.active} active)"
    if with_artifacts:
        counted += f", {len(found.artifacts)} artifacts"
    noted = f"; {found.noted} of them count for nothing" if found.noted else ""
    talk(f"{counted}: {len(rows) or 'no'} finding{'' if len(rows) == 1 else 's'}{noted}")

"""`remit archive`: whole days out of the stream, proven; their check without a NATS; what there is."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import msgspec

from cli.proof import public_of, seals_of
from cli.speak import FOLDER, common, data, ends_well, line, table, talk, with_bus
from shared.bus import Bus
from shared.errors import NotFound, RemitError
from shared.proof.sealing import SEALS_FILE
from shared.settings import data_dir as default_data_dir
from shared.status import EXIT_FAILED

KEEP_DAYS_LEAST = 7


class _Archive(click.Group):
    """`remit archive TO` is `remit archive write TO`."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if args and args[0] not in self.commands and args[0] not in ctx.help_option_names:
            args = ["write", *args]
        return super().parse_args(ctx, args)


@click.group(cls=_Archive)
def archive() -> None:
    """Write whole days of the stream to Parquet, proven against the seals, and let the stream forget them.

    \b
      remit archive TO                      the same as: remit archive write TO
      remit archive TO --keep-days 30       and let the stream drop what is older than 30 days
      remit archive check TO --key FILE     is it all there, and as it was sealed? (without a NATS)
      remit archive ls TO                   which days there are

    TO is a folder, or s3://bucket/prefix of any S3-compatible store: AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY,
    AWS_REGION and, for a store that is not Amazon's, AWS_ENDPOINT_URL say which.

    With `--archive TO` (or REMIT_ARCHIVE) the registry, `remit rebuild`, `remit audit --all` and `remit proof` read
    from it what the stream does not have any more.
    """


def _keys_option(command: Callable[..., Any]) -> Callable[..., Any]:
    return click.option(
        "--key",
        "key_texts",
        metavar="FILE|HEX",
        multiple=True,
        help="A sealer's public key: a PEM file, or 64 hex digits; more than once for several.",
    )(command)


@archive.command()
@click.argument("to")
@click.option("--until", type=click.DateTime(["%Y-%m-%d"]), metavar="DAY", help="No day after this one.")
@click.option(
    "--keep-days",
    type=click.IntRange(KEEP_DAYS_LEAST),
    metavar="N",
    help="Then have the stream drop days that are older than N days, at least 7.",
)
@_keys_option
@click.option("--data-dir", type=FOLDER, help="Of the sealer, whose key and seals are taken.")
@common
@ends_well
def write(
    output: str, to: str, until: Any, keep_days: int | None, key_texts: tuple[str, ...], data_dir: Path | None
) -> None:
    """Write every day (UTC) that is over and not yet in TO, the oldest first.

    A day counts when its file has been read back and agrees with every seal, up to one behind its last message. What
    does not agree is named by the day and the seals around it, nothing of it is archived, and the exit code is 1. A run
    that is killed is finished by the next; a day that is there is never written again.

    With --keep-days the stream then drops the days that are older, after each of their messages was compared with
    what the archive gives back for it; but none from the day on which a run began that is still active. Where the
    archive is not whole nothing is dropped, and the exit code is 1.
    """
    from cli.archiving import Archiver, LetGo, Mismatch, Written
    from shared.archive.checking import Flaw, Keys
    from shared.archive.days import Calendar
    from shared.archive.store import Archive
    from shared.clock import now_ns

    folder = data_dir or default_data_dir()
    keys, kept = Keys(_publics(key_texts, folder)), _kept_seals(folder)
    calendar = Calendar()
    last_day = calendar.number(until.strftime("%Y-%m-%d")) if until else None
    place = Archive.at(to, make=True)

    async def act(bus: Bus) -> tuple[Written, LetGo | None, RemitError | None]:
        archiver = Archiver(bus, place, keys, now_ns=now_ns(), calendar=calendar, kept=kept, tell=talk)
        let_go = None
        with place.place.held():
            try:
                await archiver.write(last_day)
                let_go = await archiver.let_go(keep_days) if keep_days else None
            except RemitError as error:
                return archiver.written, None, error  # told when the days are that have been written before it
        return archiver.written, let_go, None

    written, let_go, trouble = with_bus(act)
    flaws: list[Flaw] = trouble.flaws if isinstance(trouble, Mismatch) else []
    days = [_row(one) for one in written.days]
    if output == "json":
        data({"days": days, "waits": written.waits or None, "let_go": let_go, "flaws": flaws})
    else:
        table(days, COLUMNS)
        _show_flaws(flaws)
    if written.not_ours:
        talk(f"{written.not_ours} seals do not count: they are of other keys, or not signed")
    if written.waits:
        talk(f"{written.waits}. {written.way_out}")
    if let_go:
        _tell_let_go(let_go)
    if trouble is not None and not flaws:
        raise trouble
    raise SystemExit(EXIT_FAILED if flaws or (written.waits and not written.is_still) else 0)


COLUMNS = ("day", "first_seq", "last_seq", "events", "size_bytes", "sealed_at")


def _row(manifest: Any) -> dict[str, Any]:
    fields = {name: getattr(manifest, name) for name in COLUMNS[:-1]}
    return {**fields, "sealed_at": manifest.covered_by.size, "sha256": manifest.sha256}


def _tell_let_go(let_go: Any) -> None:
    if let_go.first_after > let_go.first_before:
        talk(f"the stream begins with message {let_go.first_after} now; it was {let_go.first_before}")
    else:
        talk(f"the stream still begins with message {let_go.first_after}")
    if let_go.kept_by:
        talk(f"more could go, were it not for {let_go.kept_by}: those events are needed still")


def _publics(texts: tuple[str, ...], folder: Path | None) -> list[bytes]:
    """The keys that were named, or the one of the sealer whose folder this is."""
    from shared.proof.keys import signer

    if texts:
        return [public_of(text) for text in texts]
    if folder is None:
        raise click.UsageError("whose seals? name the public key with --key (`remit proof key` prints it)")
    try:
        return [signer(folder, make=False).public]
    except NotFound as error:
        raise NotFound(f"{error.message}; on another host name its public key with --key") from error


def _kept_seals(folder: Path) -> list[Any]:
    """The sealer's own file, where it is at hand: a stream that was made anew has lost its seals, the file has not."""
    path = folder / SEALS_FILE
    return list(seals_of(path)) if path.is_file() else []


@archive.command()
@click.argument("to")
@_keys_option
@click.option("--seals", "seals_file", type=click.Path(path_type=Path), help="The sealer's own file, seals.jsonl.")
@click.option("-o", "--output", type=click.Choice(["text", "json"]), default="text", help="How to print the data.")
@ends_well
def check(output: str, to: str, key_texts: tuple[str, ...], seals_file: Path | None) -> None:
    """Check the archive in TO with the public key alone, without a NATS.

    It names what is changed, missing or reordered, by the messages and the seals around them. Exit code 1 when
    anything is. What is not in the archive yet it cannot know: it says up to which message it goes.
    """
    from shared.archive.checking import Keys
    from shared.archive.store import Archive

    keys = Keys(_publics(key_texts, None))
    found, flaws = Archive.at(to).check(keys, seals_of(seals_file) if seals_file else (), lambda day: talk(f"  {day}"))
    if output == "json":
        last = found[-1] if found else None
        covers = {"first_seq": found[0].first_seq, "last_seq": last.last_seq} if last else None
        data({"days": len(found), "covers": covers, "flaws": flaws})
    else:
        _show_flaws(flaws)
    if not found and not flaws:
        talk(f"{to} is empty: it proves nothing")
    elif not flaws:
        line(
            f"proven: messages {found[0].first_seq} to {found[-1].last_seq} of the stream made on {found[0].stream}, "
            f"{len(found)} days to {found[-1].day}"
        ) if output == "text" else None
    raise SystemExit(EXIT_FAILED if flaws or not found else 0)  # a folder that was not mounted is no archive


def _show_flaws(flaws: list[Any]) -> None:
    for flaw in flaws:
        line(f"{flaw.day}: {flaw.what}: {flaw.text}")


@archive.command("ls")
@click.argument("to")
@click.option("-o", "--output", type=click.Choice(["text", "json"]), default="text", help="How to print the data.")
@ends_well
def ls(output: str, to: str) -> None:
    """List the days in TO."""
    from shared.archive.store import Archive

    rows = [_row(manifest) for manifest in Archive.at(to).manifests()]
    if output == "json":
        data(msgspec.to_builtins(rows))
    else:
        table(rows, COLUMNS)

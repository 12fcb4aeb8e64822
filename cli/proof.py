"""`remit proof`: what was sealed, a run's events with their proof, and the checking of both."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import msgspec

from cli.reading import Message, bundle_of, read_all, read_run
from cli.runs import RUN
from cli.speak import FOLDER, archive_option, common, data, ends_well, line, table, talk, with_bus
from shared.archive.store import Archive
from shared.bus import Bus
from shared.errors import Malformed, NotFound, RemitError
from shared.events import AuditSealed, read
from shared.proof.bundle import Bundle, Proven, Prover, check
from shared.proof.keys import KEY_BYTES, fingerprint, is_signed, read_public, signer
from shared.proof.sealing import Sealing, closing, heads_root, signed_bytes
from shared.settings import data_dir as default_data_dir
from shared.status import EXIT_FAILED
from shared.streams import standing
from shared.subjects import AUDIT_SEALS, EVENTS

PAGE = 1_000


@click.group()
def proof() -> None:
    """Prove what a run's record is, and check such proofs without anybody's word for it."""


def _key_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """`--key`, of whoever checks one signature."""
    return click.option(
        "--key", "key_text", metavar="FILE|HEX", help="The sealer's public key: a PEM file, or 64 hex digits."
    )(command)


def public_of(text: str) -> bytes:
    """The public key that the option's text is, or whose file it names."""
    path = Path(text)
    if path.is_file():
        return read_public(path.read_text(errors="replace"))
    if not path.exists() and not text.lstrip().startswith("-----") and len(text.strip()) != 2 * KEY_BYTES:
        raise Malformed(f"there is no file {text[:200]}, and 64 hex digits it is not either", field="key")
    return read_public(text)


@proof.command()
@click.option("--data-dir", type=FOLDER, help="Of the sealer.")
@click.option("-o", "--output", type=click.Choice(["text", "json"]), default="text", help="How to print the data.")
@ends_well
def key(output: str, data_dir: Path | None) -> None:
    """Print the public key of the sealer on this host; give it to whoever is to check."""
    own = signer(data_dir or default_data_dir(), make=False)
    if output == "json":
        data({"key": own.name, "public": own.public.hex(), "pem": own.pem})
    else:
        click.echo(own.pem, nl=False)
        talk(f"key {own.name}")


@proof.command()
@common
@ends_well
def seals(output: str) -> None:
    """List the seals that lie in the stream."""
    found = with_bus(read_seals)
    rows = [msgspec.to_builtins(seal) for seal in found]
    if output == "json":
        data(rows)
    else:
        table(rows, ("size", "at", "root", "runs", "key"))


async def read_seals(bus: Bus, after: int = 0) -> list[AuditSealed]:
    """Every readable seal of the stream that lies behind message `after`, by size."""
    found: list[AuditSealed] = []
    while page := await bus.direct(EVENTS, {"next_by_subj": AUDIT_SEALS, "seq": after + 1, "batch": PAGE}):
        for message in page:
            body = read(*message).body
            if isinstance(body, AuditSealed):
                found.append(body)
        after = page[-1][1]
    return sorted(found, key=lambda seal: seal.size)


async def all_seals(bus: Bus, archive: str | None) -> list[AuditSealed]:
    """Those of the stream, and those that the archive has kept of what the stream has let go; by size."""
    found = {(one.size, one.signature): one for one in await read_seals(bus)}
    if archive is not None:
        for manifest in await asyncio.to_thread(lambda: Archive.at(archive).manifests()):
            found |= {(one.size, one.signature): one for one in (*manifest.seals, manifest.covered_by)}
    return sorted(found.values(), key=lambda seal: seal.size)


@proof.command()
@click.argument("run", type=RUN)
@click.option("--to", type=click.Path(path_type=Path), help="Write to this file instead of stdout.")
@click.option("--by", metavar="KEY", help="Only with a seal of this key (its name, as `proof seals` prints it).")
@click.option("--unsealed", is_flag=True, help="The events alone: to be replayed and audited, proving nothing.")
@archive_option
@common
@ends_well
def export(output: str, run: int, to: Path | None, by: str | None, unsealed: bool, archive: str | None) -> None:
    """Write RUN's events with the proof that they are the record's.

    Of a run that is over: all of it. Of one that is not: all up to the newest seal. It reads the stream from its
    beginning to the seal.
    """
    bundle = with_bus(lambda bus: make_bundle(bus, run, by, unsealed=unsealed, archive=archive))
    content = msgspec.json.format(msgspec.json.encode(bundle), indent=1) + b"\n"
    if to:
        to.write_bytes(content)
    else:
        click.echo(content, nl=False)
    sealed = f"sealed at message {bundle.seal.size} with key {bundle.seal.key}" if bundle.seal else "unsealed"
    talk(f"run {run}: {len(bundle.events)} events, {sealed}{f'; wrote {to}' if to else ''}")


async def make_bundle(
    bus: Bus, run: int, by: str | None = None, *, unsealed: bool = False, archive: str | None = None
) -> Bundle:
    messages = await read_run(bus, run, archive)
    if unsealed:
        return Bundle(run, [Proven(seq, at_ns, subject, content) for subject, seq, at_ns, content in messages])
    seal = seal_for(run, messages, [one for one in await all_seals(bus, archive) if by in (None, one.key)])
    prover = Prover(run, seal)
    await read_all(bus, prover.add, until=seal.size, archive=archive)
    try:
        return prover.bundle()
    except ValueError as error:
        raise RemitError(f"{error}; `remit proof check` says where") from error


def seal_for(run: int, messages: list[Message], known: list[AuditSealed]) -> AuditSealed:
    """The first seal behind the run's end, which says where it ended; or the newest of a run that is open."""
    end = closing(messages)
    fit = [seal for seal in known if seal.size >= (end or run) and (not end or seal.previous < end)]
    if not fit:
        raise NotFound(
            f"no seal covers run {run} yet: the sealer makes one a minute when something is new "
            "(--unsealed exports the events alone)"
        )
    return fit[0] if end else fit[-1]


@proof.command()
@click.argument("file", type=click.Path(path_type=Path))
@_key_option
@click.option("-o", "--output", type=click.Choice(["text", "json"]), default="text", help="How to print the data.")
@ends_well
def verify(output: str, file: Path, key_text: str | None) -> None:
    """Check a bundle with the public key alone, without a NATS. Exit code 1 when it is not what it says."""
    if not key_text:
        raise click.UsageError("whose seal? name the public key with --key (`remit proof key` prints it)")
    bundle = bundle_of(file)
    verdict = check(bundle, public_of(key_text))
    if output == "json":
        data(verdict.told())
    else:
        for flaw in verdict.flaws:
            line(f"{flaw.what}: {flaw.text}")
        if not verdict.flaws:
            line(f"proven: {verdict.proves}")
    raise SystemExit(EXIT_FAILED if verdict.flaws else 0)


@proof.command("check")
@_key_option
@click.option("--seals", "seals_file", type=click.Path(path_type=Path), help="The sealer's own file, seals.jsonl.")
@archive_option
@common
@ends_well
def check_stream(output: str, key_text: str | None, seals_file: Path | None, archive: str | None) -> None:
    """Check the whole stream against its seals. Exit code 1 when it is not what was sealed, with the place.

    With --seals against those of the sealer's file, too: a stream that was cut or made anew has lost its own.
    """
    public = public_of(key_text) if key_text else None
    kept = seals_of(seals_file) if seals_file else []
    rows = with_bus(lambda bus: _check(bus, kept, public, archive))
    flaws = [row for row in rows if row["flaw"]]
    if output == "json":
        data({"seals": len(rows), "flaws": flaws})
    else:
        for row in flaws:
            line(f"seal {row['size']}: {row['flaw']}")
        talk(f"{len(rows)} seals, {len(flaws)} of them are not as the stream is")
    raise SystemExit(EXIT_FAILED if flaws else 0)


def seals_of(path: Path) -> list[AuditSealed]:
    """The seals in the sealer's own file."""
    try:
        return [msgspec.json.decode(one, type=AuditSealed) for one in path.read_bytes().splitlines() if one.strip()]
    except FileNotFoundError as error:
        raise NotFound(f"there is no file {path}") from error
    except ValueError as error:
        raise Malformed(f"{path} holds no seals: {error}", field="seals") from error


async def _check(
    bus: Bus, kept: list[AuditSealed], public: bytes | None, archive: str | None = None
) -> list[dict[str, Any]]:
    stream, end = await standing(bus)
    found = await all_seals(bus, archive)
    known = sorted([*kept, *(one for one in found if one not in kept)], key=lambda seal: seal.size)
    sealing, at = Sealing(), 0
    rows: list[dict[str, Any]] = []
    sound = 0  # the last size at which stream and seal agreed

    def weigh(seal: AuditSealed, why: str) -> None:
        nonlocal sound
        if (
            not why
            and public is not None
            and not (seal.key == fingerprint(public) and is_signed(public, seal.signature, signed_bytes(seal)))
        ):
            why = "it is not signed with this key"
        elif not why:
            sound = seal.size
        rows.append({"size": seal.size, "key": seal.key, "flaw": why})

    def hear(subject: str, seq: int, at_ns: int, content: bytes) -> None:
        nonlocal at
        sealing.add(subject, seq, at_ns, content)
        while at < len(known) and known[at].size <= seq:
            seal = known[at]
            at += 1
            weigh(seal, _differs(seal, sealing, stream, sound))

    await read_all(bus, hear, archive=archive)
    for seal in known[at:]:
        weigh(seal, f"the stream ends at message {end}: it was cut, or it is another one")
    return rows


def _differs(seal: AuditSealed, sealing: Sealing, stream: str, sound: int) -> str:
    if seal.stream != stream:
        return f"it seals the stream of {seal.stream}; this one was made on {stream}"
    if sealing.root.hex() != seal.root:
        return f"some message from {sound + 1} to {seal.size} is not what was sealed"
    if heads_root(sealing.heads(seal.previous)).hex() != seal.heads:
        return "it gives other runs, or other last messages of them, than the stream"
    return ""

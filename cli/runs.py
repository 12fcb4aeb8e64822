"""What happened: `runs`, `show`, `watch`, `report`, `artifacts`, `events`, `tokens`, `hosts`."""

import hashlib
import sys
import tempfile
from pathlib import Path
from typing import Any, get_args

import click
import msgspec

from cli.follow import follow, summary
from cli.speak import as_json, ask, common, data, ends_well, line, plain, status, table, talk, whole, with_bus
from shared.answering import name_of
from shared.bus import Bus
from shared.clock import rfc3339
from shared.errors import NotFound, RemitError
from shared.ledger import LIMIT_MAX, Question
from shared.plan import GATE
from shared.run_approvals import ANONYMOUS
from shared.showing import Asked, asked, tokens_told
from shared.status import EXIT_OF_STATUS, RunStatus
from shared.story import Story, read_story
from shared.subjects import ARTIFACTS_BUCKET, artifact

RUN = click.IntRange(1, (1 << 62) - 1)


@click.command()
@click.option("--status", "wanted", type=click.Choice(get_args(RunStatus)), help="Only runs that are so.")
@click.option("--limit", default=20, type=click.IntRange(1, 1000), help="How many, newest first.")
@click.option("--before", type=RUN, help="Only runs before this one: the next page.")
@common
@ends_well
def runs(output: str, wanted: str | None, limit: int, before: int | None) -> None:
    """List runs, newest first."""
    answer = with_bus(lambda bus: ask(bus, "runs", Question(status=wanted, limit=limit, before=before)))
    if output == "json":
        data({"runs": answer.rows, "next": answer.next})
        return
    for row in answer.rows:
        row["what"] = _asked_for(row)
        row["took"] = f"{row['duration_s']:.2f} s" if row["duration_s"] is not None else None
        row["submitted"] = row["submitted_at"][:19].replace("T", " ")
    table(answer.rows, ("run", "status", "submitted", "took", "what"))
    if answer.next:
        talk(f"more: remit runs --before {answer.next}")


@click.command()
@click.argument("run", type=RUN)
@common
@ends_well
def show(output: str, run: int) -> None:
    """Show one run: its steps, what they found, its tokens and artifacts."""
    story = with_bus(lambda bus: read_story(bus, run))
    found = summary(story)
    if output == "json":
        data(found)
        return
    line(f"run {run} {status(found['status'])}{': ' + found['reason'] if found['reason'] else ''}")
    line(f"goal: {_asked_for(found) or f'(no plan says it; what came: remit events {run} -o json)'}")
    for one in asked(story.run):
        _show_approval(one)
    for step in found["steps"]:
        line(f"  {step['id']} {status(step['status'])}{_tail(step)}")
        for name, value in step["outputs"].items():
            line(f"    {name}: {_short(value)}")
    line(tokens_told(story.run.tokens))
    for one in found["artifacts"]:
        where = f", from run {one.from_run}" if one.from_run else ""
        line(f"artifact {one.name} ({one.size_bytes} bytes, sha256 {one.sha256[:12]}…{where})")


def _asked_for(found: dict[str, Any]) -> str:
    named = f"playbook {found['playbook']}" if found["playbook"] else ""
    again = f"run {found['retry_of']} again" if found["retry_of"] else ""
    what = found["goal"] or ", ".join(found["tasks"] or [])
    return "; ".join(part for part in (again, named, what) if part)


def _tail(step: dict[str, Any]) -> str:
    """Where a step ran, and why it stands as it does."""
    where = f" on {step['host']}" if step["host"] else ""
    if step["reused_from"]:
        return f"{where}: reused from run {step['reused_from']}"
    until = f" until {step['waits_until'][:19]}Z" if step["waits_until"] else ""
    why = [part for part in (step["error"], step["message"]) if part]
    return f"{where}{until}{': ' if why else ''}{': '.join(why)}"


def _show_approval(one: Asked) -> None:
    by = ", ".join(who or ANONYMOUS for who in one.approved_by)
    given = f" by {by} ({len(one.approved_by)} of {one.approvals_needed})" if by else ""
    why = f": {one.reason}" if one.reason else ""
    if one.status == "rejected":
        given = f" by {one.rejected_by or ANONYMOUS}"
    waits = status("awaiting_approval") if one.is_open else "unanswered"
    word = waits if one.status == "pending" else status(one.status)
    line(f"approval of {name_of(one.step)}: {word}{given}{why}")
    if one.is_open:
        step = "" if one.step == GATE else f" {one.step}"
        approvers = ", ".join(one.approvers) or "anybody"
        until = rfc3339(one.expires_ns)[:19]
        line(f"  {one.what}; {approvers} may answer until {until}Z: remit approve {one.run}{step}")


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else msgspec.json.encode(value).decode()
    return text if len(text) <= 160 else text[:157] + "..."


@click.command()
@click.argument("run", type=RUN)
@common
@ends_well
def watch(output: str, run: int) -> None:
    """Follow a run to its end; the exit code is its status."""
    ended = with_bus(lambda bus: follow(bus, run, quiet=output == "json"))
    if output == "json":
        data(ended)
    raise SystemExit(EXIT_OF_STATUS[ended["status"]])


@click.command()
@click.argument("run", type=RUN)
@common
@ends_well
def report(output: str, run: int) -> None:
    """Print the report (report.md) of a run."""
    content = with_bus(lambda bus: read_artifact(bus, run, "report.md"))
    if output == "json":
        data({"run": run, "name": "report.md", "text": content.decode(errors="replace")})
    else:
        # A terminal obeys what stands in a text: anybody may have put this one into the store.
        click.echo(plain(content.decode(errors="replace")) if sys.stdout.isatty() else content, nl=False)


@click.command()
@click.argument("run", type=RUN)
@click.argument("name", required=False)
@click.option("--to", type=click.Path(path_type=Path), help="Write to this file instead of stdout.")
@common
@ends_well
def artifacts(output: str, run: int, name: str | None, to: Path | None) -> None:
    """List what a run left behind, or get one of them by NAME."""
    if name is None:
        story = with_bus(lambda bus: read_story(bus, run))
        rows = [{"step": step, **msgspec.to_builtins(one)} for step, one in story.artifacts()]
        if output == "json":
            data({"run": run, "artifacts": rows})
        else:
            table(rows, ("name", "size_bytes", "media_type", "step", "sha256"))
        return
    content = with_bus(lambda bus: read_artifact(bus, run, name))
    if to:
        to.write_bytes(content)
        talk(f"wrote {to}")
    else:
        click.echo(content, nl=False)


async def read_artifact(bus: Bus, run: int, name: str) -> bytes:
    """The bytes of an artifact that the run has announced, checked against the announcement by their digest."""
    story: Story = await read_story(bus, run)
    announced = [one for _, one in story.artifacts() if one.name == name]
    if not announced:
        known = ", ".join(one.name for _, one in story.artifacts()) or "none"
        raise NotFound(f"run {run} ({story.run.status}) has no artifact {name}; it has: {known}")
    wanted = {one.sha256.lower() for one in announced}
    for holder in dict.fromkeys(one.from_run or run for one in reversed(announced)):
        with tempfile.TemporaryDirectory() as folder:
            into = Path(folder) / "artifact"
            await bus.object_get(ARTIFACTS_BUCKET, artifact(holder, name), into)
            content = into.read_bytes()
        if hashlib.sha256(content).hexdigest() in wanted:
            return content
    raise RemitError(f"{name} in the store is not what run {run} announced")


@click.command()
@click.argument("run", type=RUN)
@common
@ends_well
def events(output: str, run: int) -> None:
    """Print every event of a run, from the stream itself."""
    story = with_bus(lambda bus: read_story(bus, run))
    rows = [
        {
            "seq": told.event.seq,
            "at": rfc3339(told.event.at_ns),
            "subject": told.subject,
            "applied": not told.note,
            "note": told.note or None,
            "data": as_json(told.data),
        }
        for told in story.told
    ]
    if output == "json":
        data(rows)
        return
    for row in rows:
        row["time"] = str(row["at"])[11:23]
    table(rows, ("seq", "time", "subject", "note"))


@click.command()
@common
@ends_well
def hosts(output: str) -> None:
    """List the hosts whose agents answer now, and those that have worked."""

    async def find(bus: Bus) -> list[dict[str, Any]]:
        found: dict[str, dict[str, Any]] = {}
        for service in ("gpu", "logs"):
            for info in await bus.discover(service):
                name = info.host
                if name:
                    found.setdefault(name, {"host": name, "agents": []})["agents"].append(service)
        try:
            for row in (await whole(bus, "hosts", Question(limit=LIMIT_MAX)))[0]:
                found.setdefault(row["host"], {"host": row["host"], "agents": []}).update(row)
        except RemitError as error:  # agents are shown without a registry, too
            talk(f"without what hosts have worked: {error}")
        return [found[name] for name in sorted(found)]

    rows = with_bus(find)
    if output == "json":
        data(rows)
    else:
        table(rows, ("host", "agents", "steps", "failed", "last_at"))

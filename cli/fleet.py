"""What an operator allows and adds: `remit allow` and `remit tasks`."""

import hashlib

import click
import msgspec

from cli.speak import common, data, ends_well, fail, table, talk, with_bus
from shared.allow import AllowEntry, check, normal
from shared.bus import Bus
from shared.catalogue import BUILT_IN
from shared.config import Config
from shared.errors import UNREADABLE, Malformed, NotFound
from shared.plan import TaskSpec
from shared.status import EXIT_USAGE
from shared.streams import worker_queue
from shared.subjects import CONFIG_BUCKET, allow_key, task_key, token, worker_consumer


def entry_id(host: str, source: str) -> str:
    """The same host and source have the same id, so allowing twice is allowing once."""
    return hashlib.sha256(f"{host}\n{normal(source)}".encode()).hexdigest()[:10]


async def put_entry(bus: Bus, entry: AllowEntry) -> None:
    await bus.kv_put(CONFIG_BUCKET, allow_key(entry.id), msgspec.json.encode(check(entry)))


async def read_entries(bus: Bus) -> list[AllowEntry]:
    config = await Config(bus).start()
    await config.stop()
    # The key is what an entry goes by, whatever it says of itself: it would be told as removed, and go on allowing.
    return [msgspec.structs.replace(one, id=key) for key, one in config.entries(allow_key(""), AllowEntry).items()]


@click.group()
def allow() -> None:
    """Say which logs and containers may be read. Nothing is, until you allow it.

    \b
    remit allow add web                      the container `web`, on every host
    remit allow add 'docker:shop-*' --host tower
    remit allow add '/var/log/nginx/*.log'
    remit allow ls
    """


@allow.command("add")
@click.argument("source")
@click.option("--host", default="*", help="A host's name or a glob (default: every host).")
@click.option("--tag", "tags", multiple=True, help="A word for people; may be repeated.")
@common
@ends_well
def allow_add(output: str, source: str, host: str, tags: tuple[str, ...]) -> None:
    """Allow SOURCE: a container's name, docker:NAME, or a file's /PATH; globs are fine."""
    entry = check(AllowEntry(id=entry_id(host, source), host=host, source=source, tags=list(tags)))
    with_bus(lambda bus: put_entry(bus, entry))
    _print(entry, output)
    talk(f"allowed {entry.source} on {'every host' if host == '*' else host}")


@allow.command("ls")
@common
@ends_well
def allow_ls(output: str) -> None:
    """List what is allowed."""
    entries = with_bus(read_entries)
    rows = [msgspec.to_builtins(one) for one in entries]
    if output == "json":
        data(rows)
    elif not rows:
        talk("nothing is allowed yet; see `remit allow --help`, and `remit hosts` for what is there")
    else:
        table(rows, ("id", "host", "source", "enabled", "tags"))


def _print(entry: AllowEntry, output: str) -> None:
    if output == "json":
        data(entry)
    else:
        click.echo(entry.id)


async def _switch(bus: Bus, one: str, enabled: bool | None) -> AllowEntry:
    """Enable, disable or (None) remove the entry with this id, or the one for this source on every host."""
    entries = {entry.id: entry for entry in await read_entries(bus)}
    found = entries.get(one) or entries.get(entry_id("*", one))
    if found is None:
        raise NotFound(f"there is no entry {one!r}; `remit allow ls` shows them")
    if enabled is None:
        await bus.kv_delete(CONFIG_BUCKET, allow_key(found.id))
    else:
        found = msgspec.structs.replace(found, enabled=enabled)
        await put_entry(bus, found)
    return found


def _told(entry: str, enabled: bool | None, past: str, output: str) -> None:
    found = with_bus(lambda bus: _switch(bus, entry, enabled))
    _print(found, output)
    talk(f"{past} {found.source}")


@allow.command("rm")
@click.argument("entry")
@common
@ends_well
def allow_rm(output: str, entry: str) -> None:
    """Remove ENTRY (its id, or its source)."""
    _told(entry, None, "removed", output)


@allow.command("disable")
@click.argument("entry")
@common
@ends_well
def allow_disable(output: str, entry: str) -> None:
    """Keep ENTRY and let it allow nothing for now."""
    _told(entry, False, "disabled", output)


@allow.command("enable")
@click.argument("entry")
@common
@ends_well
def allow_enable(output: str, entry: str) -> None:
    """Let a disabled ENTRY allow again."""
    _told(entry, True, "enabled", output)


@click.group()
def tasks() -> None:
    """The catalogue: what can be planned, and who performs it.

    A task of your own is performed by whoever pulls from its queue, in any language: see docs/workers.md.
    """


@tasks.command("add")
@click.argument("name")
@click.option("--description", default="", help="One line for people.")
@click.option("--keyword", "keywords", multiple=True, help="A word of a goal that leads to it; may be repeated.")
@click.option("--timeout", "timeout_s", default=600, type=click.IntRange(1, 86_400), help="Seconds for one attempt.")
@click.option("--attempts", "max_attempts", default=3, type=click.IntRange(1, 100), help="Attempts at most.")
@click.option(
    "--backoff", "backoff_s", default=1, type=click.IntRange(0, 86_400), help="Seconds to the second attempt; doubled."
)
@click.option("--max-concurrent", type=click.IntRange(1, 1_000_000), help="Steps at a time, in the whole fleet.")
@common
@ends_well
def tasks_add(
    output: str,
    name: str,
    description: str,
    keywords: tuple[str, ...],
    timeout_s: int,
    max_attempts: int,
    backoff_s: int,
    max_concurrent: int | None,
) -> None:
    """Put task NAME into the catalogue and make its queue `worker-NAME`."""
    token(name, "name")
    if BUILT_IN.task(name):
        fail(f"{name} is a task of Remit's own and cannot be replaced", EXIT_USAGE)
    for word in keywords:
        if not word.isalnum():
            raise Malformed(f"{word!r} is not one word", field="--keyword")
    spec = TaskSpec(
        name=name,
        description=description,
        keywords=list(keywords),
        timeout_s=timeout_s,
        max_attempts=max_attempts,
        backoff_s=backoff_s,
        max_concurrent=max_concurrent,
    )

    async def add(bus: Bus) -> bytes | None:
        before = await bus.kv_get(CONFIG_BUCKET, task_key(name))
        await worker_queue(bus, name, at_once=max_concurrent)
        await bus.kv_put(CONFIG_BUCKET, task_key(name), msgspec.json.encode(spec))
        return before[0] if before else None

    before = with_bus(add)
    if output == "json":
        data(spec)
    else:
        click.echo(name)
    if before:
        talk(f"warning: there was a task {name}, and this replaces it{_differing(before, spec)}")
    talk(f"task {name} can be planned; its steps wait in the consumer {worker_consumer(name)} on EVENTS")


def _differing(before: bytes, after: TaskSpec) -> str:
    """What was otherwise before, so that it can be put back."""
    try:
        old = msgspec.to_builtins(msgspec.json.decode(before, type=TaskSpec))
    except UNREADABLE:
        return ""
    new = msgspec.to_builtins(after)
    changed = [f"{field} {msgspec.json.encode(old[field]).decode()}" for field in new if old[field] != new[field]]
    return f"; it had {', '.join(changed)}" if changed else ", which was the same"


@tasks.command("ls")
@common
@ends_well
def tasks_ls(output: str) -> None:
    """List the catalogue."""

    async def read(bus: Bus) -> list[TaskSpec]:
        config = await Config(bus).start()
        await config.stop()
        return list(config.catalogue.tasks)

    rows = [msgspec.to_builtins(one) for one in with_bus(read)]
    if output == "json":
        data(rows)
    else:
        table(rows, ("name", "description", "keywords", "timeout_s"))


@tasks.command("rm")
@click.argument("name")
@common
@ends_well
def tasks_rm(output: str, name: str) -> None:
    """Take task NAME out of the catalogue; steps that were dispatched stay in its queue."""

    async def remove(bus: Bus) -> None:
        if await bus.kv_get(CONFIG_BUCKET, task_key(name)) is None:
            raise NotFound(f"there is no task {name!r} that was added")
        await bus.kv_delete(CONFIG_BUCKET, task_key(name))

    with_bus(remove)
    if output == "json":
        data({"removed": name})
    talk(f"removed {name}")

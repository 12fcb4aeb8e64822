"""`remit directives`: what is allowed, under which name; versioned, and never changed under somebody's hands."""

from pathlib import Path
from typing import Any

import click
import msgspec

from cli.speak import as_json, common, data, ends_well, line, table, talk, with_bus
from shared.bus import Bus
from shared.catalogue import ANY_TASK, BUILT_IN, Catalogue
from shared.clock import rfc3339
from shared.config import Config, newest_version
from shared.errors import UNREADABLE, AlreadySaid, Malformed, NotFound, malformed
from shared.plan import BUDGET_LIMITS, Directive, Problem, directive_problems
from shared.schedule import Schedule
from shared.subjects import CONFIG_BUCKET, directive_key, schedule_key, token


def check(directive: Directive, catalogue: Catalogue) -> Directive:
    """The directive, when goals can be planned under it; else `Malformed` with every reason and its field."""
    problems = directive_problems(directive)
    if not directive.task_list:
        problems.append(Problem("it allows nothing; `*` stands for every task of the catalogue", "task_list"))
    for name in directive.task_list:
        if name != ANY_TASK and catalogue.task(name) is None:
            problems.append(Problem(f"there is no task {name!r}; `remit tasks ls` shows them", "task_list"))
    for field in BUDGET_LIMITS:
        default, most = getattr(directive.defaults, field), getattr(directive.maximum, field)
        if default > most:
            problems.append(Problem(f"the default {default} is over the maximum {most}", f"defaults.{field}"))
    if problems:
        first, *others = problems
        more = "".join(f"; {one.field}: {one.reason}" for one in others)
        raise Malformed(first.reason + more, field=first.field)
    return directive


@click.group()
def directives() -> None:
    """Say what goals may do: their tasks, budgets and hosts, how many at a time, and who has to approve.

    A run is governed by the snapshot of its directive in its plan, whatever is changed later.

    \b
    remit directives ls
    remit directives set nightly --task log_triage --task gpu_report --max-concurrent-runs 1
    remit directives set careful --approval-required deploy,migrate --approver ann --approver bob
    remit submit "check logs" --directive nightly
    """


async def _catalogue(bus: Bus) -> Catalogue:
    config = await Config(bus).start()
    await config.stop()
    return config.catalogue


@directives.command("ls")
@common
@ends_well
def directives_ls(output: str) -> None:
    """List the directives, the built-in ones among them."""
    found = with_bus(_catalogue).directives
    rows = [{**msgspec.to_builtins(found[name]), "built_in": found[name].version == 0} for name in sorted(found)]
    if output == "json":
        data(rows)
    else:
        columns = ("name", "version", "task_list", "approval_required", "max_concurrent_runs", "on_failure")
        table(rows, (*columns, "description"))


@directives.command("show")
@click.argument("name")
@common
@ends_well
def directives_show(output: str, name: str) -> None:
    """Show one directive whole."""
    found = with_bus(_catalogue).directives.get(name)
    if found is None:
        raise NotFound(f"there is no directive {name!r}; `remit directives ls` shows them")
    data(found)  # its JSON is what `set --file` takes, so it is printed in either form


@directives.command("set")
@click.argument("name")
@click.option("--file", "path", type=click.Path(path_type=Path, exists=True, dir_okay=False), help="JSON, whole.")
@click.option("--description")
@click.option("--task", "tasks", multiple=True, help="Allow this task; `*` is every one. Several, in order of rank.")
@click.option(
    "--approval-required", metavar="WHAT", help="true: before each run. NAME,NAME: before these tasks or steps. false."
)
@click.option("--approver", "approvers", multiple=True, help="A principal who may answer; several. '' lets anybody.")
@click.option("--approvals-needed", type=click.IntRange(1, 100), help="How many of them have to approve.")
@click.option("--requester-may-approve/--no-requester-may-approve", default=None, help="Whether who asks may, too.")
@click.option("--approval-expires-s", type=click.IntRange(1, 31_536_000), help="How long an answer is waited for.")
@click.option("--max-concurrent-runs", type=click.IntRange(1, 1_000_000))
@click.option("--max-parallel-steps", type=click.IntRange(1, 1_000_000), help="Steps of one run at a time.")
@click.option("--host", "hosts", multiple=True, help="Goals may name only this host; several. '' is every host.")
@click.option("--channel", "channels", multiple=True, help="Where notify steps are for; several. '' is nowhere.")
@click.option(
    "--on-failure", type=click.Choice(["stop", "continue", "rollback"]), help="What a step does that says nothing."
)
@click.option("--default", "defaults", multiple=True, metavar="FIELD=N", help="A goal's budget when it names none.")
@click.option("--maximum", "maxima", multiple=True, metavar="FIELD=N", help="What a goal may ask for at most.")
@click.option("--if-version", type=int, help="Only over this version (0: only if it is new or built in).")
@common
@ends_well
def directives_set(output: str, name: str, path: Path | None, if_version: int | None, **given: Any) -> None:
    """Make or change directive NAME: what is given is changed, the rest stays.

    Budget fields are max_steps, time_budget_s, token_budget: --default max_steps=5 --maximum token_budget=0
    """
    token(name, "name")

    async def change(bus: Bus) -> Directive:
        catalogue = await _catalogue(bus)
        stored = await bus.kv_get(CONFIG_BUCKET, directive_key(name))
        before = catalogue.directives.get(name) or Directive(name=name)
        if if_version is not None and if_version != before.version:
            raise AlreadySaid(f"directive {name} is at version {before.version}, not {if_version}: look at it again")
        after = _read(path.read_bytes()) if path else _changed(before, given)
        newest = before.version or await newest_version(bus, directive_key(name))  # it may have been removed
        after = check(msgspec.structs.replace(after, name=name, version=newest + 1), catalogue)
        await bus.kv_put(
            CONFIG_BUCKET, directive_key(name), msgspec.json.encode(after), revision=stored[1] if stored else 0
        )
        return after

    after = with_bus(change)
    if output == "json":
        data(after)
    else:
        click.echo(f"{name} version {after.version}")
    talk(f"goals submitted from now on run under version {after.version}; runs that are planned keep theirs")


def _read(content: bytes) -> Directive:
    try:
        return msgspec.json.decode(content, type=Directive)
    except UNREADABLE as error:
        raise malformed(error) from error


# What is taken as it was given.
_PLAIN = (
    "description",
    "approvals_needed",
    "requester_may_approve",
    "approval_expires_s",
    "max_concurrent_runs",
    "max_parallel_steps",
    "on_failure",
)


def _changed(before: Directive, given: dict[str, Any]) -> Directive:
    changes: dict[str, Any] = {field: given[field] for field in _PLAIN if given[field] is not None}
    for field, option in (("task_list", "tasks"), ("approvers", "approvers"), ("channels", "channels")):
        if given[option]:
            changes[field] = [name for name in given[option] if name]
    if given["hosts"]:
        changes["hosts"] = [name for name in given["hosts"] if name] or None
    if (asked := given["approval_required"]) is not None:
        names = [name.strip() for name in asked.split(",") if name.strip()]
        changes["approval_required"] = {"true": True, "false": False, "": False}.get(asked.strip().lower(), names)
    defaults, maximum = (dict(_pair(pair) for pair in given[option]) for option in ("defaults", "maxima"))
    for name, most in maximum.items():
        # A lower maximum takes an older default along; one that was asked for in the same breath is checked.
        defaults.setdefault(name, min(getattr(before.defaults, name), most))
    for field, numbers in (("defaults", defaults), ("maximum", maximum)):
        if numbers:
            changes[field] = msgspec.structs.replace(getattr(before, field), **numbers)
    # Through JSON once, so that every limit of the struct holds for what was given, too.
    return _read(msgspec.json.encode(msgspec.structs.replace(before, **changes)))


def _pair(text: str) -> tuple[str, int]:
    field, _, value = text.partition("=")
    if field not in BUDGET_LIMITS or not value.isdecimal():
        raise Malformed(f"{text!r} is not FIELD=N with one of {', '.join(BUDGET_LIMITS)}", field="budget")
    return field, int(value)


@directives.command("rm")
@click.argument("name")
@common
@ends_well
def directives_rm(output: str, name: str) -> None:
    """Remove directive NAME; a built-in one is as it was at first again."""

    async def remove(bus: Bus) -> list[str]:
        if await bus.kv_get(CONFIG_BUCKET, directive_key(name)) is None:
            why = "is built in and was never changed" if name in BUILT_IN.directives else "does not exist"
            raise NotFound(f"directive {name!r} {why}")
        await bus.kv_delete(CONFIG_BUCKET, directive_key(name))
        return [] if name in BUILT_IN.directives else await _schedules_under(bus, name)

    left = with_bus(remove)
    if output == "json":
        data({"removed": name})
    talk(f"removed {name}")
    for schedule in left:
        talk(f"warning: schedule {schedule} is under it: each of its ticks is rejected until there is a {name} again")


async def _schedules_under(bus: Bus, name: str) -> list[str]:
    config = await Config(bus).start()
    await config.stop()
    found = config.entries(schedule_key(""), Schedule)
    return [schedule for schedule in sorted(found) if found[schedule].goal.get("directive") == name]


@directives.command("history")
@click.argument("name")
@common
@ends_well
def directives_history(output: str, name: str) -> None:
    """Show what directive NAME was before, newest last (the last 64 changes)."""
    token(name, "name")

    async def read(bus: Bus) -> list[dict[str, Any]]:
        return [
            {"at": rfc3339(at_ns), "revision": seq, "directive": as_json(body) if body else None}
            for seq, at_ns, body in await bus.kv_history(CONFIG_BUCKET, directive_key(name))
        ]

    rows = with_bus(read)
    if not rows:
        raise NotFound(f"directive {name!r} has no history here: it was never set")
    if output == "json":
        data(rows)
        return
    for row in rows:
        line(f"{row['at'][:19]}  {_was(row['directive'])}")


def _was(value: Any) -> str:
    """What stood there, for a person; anybody may have put it there."""
    if value is None:
        return "removed"
    try:
        found = msgspec.convert(value, Directive)
    except msgspec.ValidationError as error:
        return f"cannot be read: {error}"
    return f"version {found.version}: {', '.join(found.task_list)}"

"""`remit schedules`: goals that are due by the clock, what will fire, and what became of each tick."""

from collections.abc import Callable
from datetime import datetime
from itertools import islice
from typing import Any, get_args
from zoneinfo import ZoneInfo

import click
import msgspec

from cli.follow import submit_goal
from cli.goals import goal_options, payload, preview
from cli.speak import common, data, ends_well, line, table, talk, with_bus
from shared.bus import Bus
from shared.clock import NS_PER_S, now, now_ns, parse_ns, rfc3339
from shared.config import Config, newest_version
from shared.errors import UNREADABLE, AlreadySaid, Malformed, NotFound, malformed
from shared.events import GoalRejected, ScheduleTicked
from shared.schedule import CatchUp, Overlap, Schedule, check_schedule, next_tick, ticks, wall_text
from shared.status import EXIT_REJECTED
from shared.streams import server_now_ns
from shared.subjects import (
    CONFIG_BUCKET,
    EVENTS,
    goal_submitted,
    is_schedule_name,
    schedule_key,
    schedule_principal,
    ticks_of,
)

PAGE = 1_000
YEARS_AHEAD_S = 51 * 366 * 86_400


@click.group()
def schedules() -> None:
    """Submit a goal by the clock. Each tick ends as one recorded fact, whatever was down: see docs/schedules.md.

    \b
    remit schedules add nightly --cron "0 2 * * *" --zone Europe/Berlin --goal "check logs and GPU"
    remit schedules next nightly --from 2027-03-27    what fires when the clock changes
    remit schedules history nightly
    """


def checked(schedule: Schedule) -> Schedule:
    """The schedule, or `Malformed` with everything that is wrong with it."""
    problems = check_schedule(schedule, now_ns() // NS_PER_S)
    if problems:
        first, *more = problems
        rest = "".join(f"; {one.field}: {one.reason}" for one in more)
        raise Malformed(first.reason + rest, field=first.field)
    return schedule


async def read_one(bus: Bus, name: str) -> tuple[Schedule, int]:
    """The schedule and its revision."""
    stored = await bus.kv_get(CONFIG_BUCKET, schedule_key(name)) if is_schedule_name(name) else None
    if stored is None:
        raise NotFound(f"there is no schedule {name!r}; `remit schedules ls` shows them")
    try:
        return msgspec.structs.replace(msgspec.json.decode(stored[0], type=Schedule), name=name), stored[1]
    except UNREADABLE as error:
        raise malformed(error) from error


async def change(bus: Bus, name: str, changed: Callable[[Schedule], Schedule]) -> Schedule:
    """Store what `changed` makes of the schedule, unless somebody else was faster."""
    before, revision = await read_one(bus, name)
    after = changed(before)
    if after is not before:
        after = msgspec.structs.replace(after, version=before.version + 1)
        await bus.kv_put(CONFIG_BUCKET, schedule_key(name), msgspec.json.encode(after), revision=revision)
    return after


@schedules.command("add")
@click.argument("name")
@click.option("--cron", required=True, help="Five fields: minute, hour, day of month, month, day of week.")
@click.option("--zone", default="UTC", help="The IANA zone of its clock (default: UTC).")
@click.option("--goal", help="The goal in words.")
@goal_options
@click.option("--overlap", type=click.Choice(get_args(Overlap)), default="skip", help="While a run of it is active.")
@click.option("--catch-up", type=click.Choice(get_args(CatchUp)), default="last", help="Of ticks that were missed.")
@click.option("--catch-up-window-s", type=int, default=86_400, help="How old a missed tick may be (with `all`).")
@click.option("--replace", is_flag=True, help="Also over a schedule that is there.")
@common
@ends_well
def schedules_add(
    output: str,
    name: str,
    cron: str,
    zone: str,
    overlap: Overlap,
    catch_up: CatchUp,
    catch_up_window_s: int,
    replace: bool,
    **given: Any,
) -> None:
    """Make schedule NAME: its goal is submitted at each tick from now on.

    What its goal names may come later: when it would be rejected as things stand, that is a warning.
    With --replace a schedule that is paused stays so; a change of its times counts from now.
    """
    goal = msgspec.json.decode(payload(**given), type=dict[str, Any])
    given_here = _limited(
        checked(
            Schedule(
                name=name,
                cron=" ".join(cron.split()),
                zone=zone,
                goal=goal,
                overlap=overlap,
                catch_up=catch_up,
                catch_up_window_s=catch_up_window_s,
                since=now(),
            )
        )
    )

    async def add(bus: Bus) -> Schedule:
        made = msgspec.structs.replace(given_here, since=rfc3339(await server_now_ns(bus)))
        try:
            before, revision = await read_one(bus, name)
        except NotFound:
            made = msgspec.structs.replace(made, version=await newest_version(bus, schedule_key(name)) + 1)
            await bus.kv_put(CONFIG_BUCKET, schedule_key(name), msgspec.json.encode(made), revision=0)
            return made
        if not replace:
            raise AlreadySaid(f"there is a schedule {name} (version {before.version}); --replace is for changing it")
        same_times = (before.cron, before.zone) == (made.cron, made.zone)
        after = msgspec.structs.replace(
            made,
            version=before.version + 1,
            paused=before.paused,
            since=before.since if same_times else made.since,
            resumed=before.resumed,
        )
        await bus.kv_put(CONFIG_BUCKET, schedule_key(name), msgspec.json.encode(after), revision=revision)
        return after

    after = with_bus(add)
    _told(after, output)
    if after.paused:
        talk("it is paused, as it was; `remit schedules resume` lets it run")
    elif (tick := next_tick(after.cron, after.zone, now_ns() // NS_PER_S)) is not None:
        talk(f"next: {wall_text(tick, after.zone)}")
    _warn(after)


def _warn(schedule: Schedule) -> None:
    """Say now what each tick would be rejected for at night."""
    answer = preview(msgspec.json.encode(schedule.goal))
    if answer.returncode == EXIT_REJECTED:
        for problem in msgspec.json.decode(answer.stdout, type=GoalRejected).problems:
            talk(f"warning: as things stand each tick is rejected: {problem['field']}: {problem['reason']}")


def _limited(schedule: Schedule) -> Schedule:
    """Through JSON once, so that every limit of the struct holds for what was given, too."""
    try:
        return msgspec.json.decode(msgspec.json.encode(schedule), type=Schedule)
    except msgspec.DecodeError as error:
        raise malformed(error) from error


def _told(schedule: Schedule, output: str) -> None:
    if output == "json":
        data(schedule)
    else:
        line(f"{schedule.name} version {schedule.version}")


@schedules.command("ls")
@common
@ends_well
def schedules_ls(output: str) -> None:
    """List the schedules: when each is due next, and what became of its last tick."""

    async def read(bus: Bus) -> list[dict[str, Any]]:
        config = await Config(bus).start()
        await config.stop()
        found = config.entries(schedule_key(""), Schedule)
        return [await _row(bus, msgspec.structs.replace(found[name], name=name)) for name in sorted(found)]

    rows = with_bus(read)
    if output == "json":
        data(rows)
    elif not rows:
        talk("there are no schedules yet; see `remit schedules add --help`")
    else:
        for row in rows:
            row["next"] = "paused" if row["paused"] else row["next_local"] or row["problem"]
        table(rows, ("name", "cron", "zone", "next", "overlap", "catch_up", "last_local", "last_outcome"))


async def _row(bus: Bus, schedule: Schedule) -> dict[str, Any]:
    problems = check_schedule(schedule, now_ns() // NS_PER_S)
    begin_s = max(now_ns() // NS_PER_S, schedule.since_s) if not problems else 0
    tick = None if problems or schedule.paused else next_tick(schedule.cron, schedule.zone, begin_s)
    last = await bus.last_on(EVENTS, ticks_of(schedule.name))
    ticked = _ticked(last[1]) if last else None
    return {
        **msgspec.to_builtins(schedule),
        "problem": "; ".join(f"{one.field}: {one.reason}" for one in problems) or None,
        "next_at": None if tick is None else _utc(tick),
        "next_local": None if tick is None else wall_text(tick, schedule.zone),
        "last_at": ticked.due if ticked else None,
        "last_local": ticked.local if ticked else None,
        "last_outcome": ticked.outcome if ticked else None,
        "last_reason": ticked.reason if ticked else None,
    }


def _utc(tick_s: int) -> str:
    return rfc3339(tick_s * NS_PER_S)


def _ticked(content: bytes) -> ScheduleTicked | None:
    try:
        return msgspec.json.decode(content, type=ScheduleTicked)
    except UNREADABLE:
        return None


@schedules.command("next")
@click.argument("name")
@click.option("--count", default=5, type=click.IntRange(1, 1000), help="How many.")
@click.option(
    "--from", "begin", metavar="TIME", help="From then on: RFC 3339, or a wall time such as 2027-03-28T00:00."
)
@common
@ends_well
def schedules_next(output: str, name: str, count: int, begin: str | None) -> None:
    """Show exactly what will fire: the wall's time and UTC, clock changes included."""
    schedule = checked(with_bus(lambda bus: read_one(bus, name))[0])
    begin_s = now_ns() // NS_PER_S if begin is None else _moment(begin, schedule.zone) - 1
    begin_s = max(begin_s, schedule.since_s)
    found = islice(ticks(schedule.cron, schedule.zone, begin_s, begin_s + YEARS_AHEAD_S), count)
    rows: list[dict[str, Any]] = [
        {"tick": tick, "at": _utc(tick), "local": wall_text(tick, schedule.zone)} for tick in found
    ]
    if output == "json":
        data(rows)
    else:
        for row in rows:
            line(f"{row['local']}  {row['at'][:19]}Z")
    if schedule.paused:
        talk(f"{name} is paused: none of them will run before `remit schedules resume {name}`")


def _moment(text: str, zone: str) -> int:
    """The epoch second of an RFC 3339 time, or of a time by the schedule's own clock."""
    try:
        return parse_ns(text) // NS_PER_S
    except ValueError:
        pass
    try:
        found = datetime.fromisoformat(text)
        return int((found if found.tzinfo else found.replace(tzinfo=ZoneInfo(zone))).timestamp())
    except (ValueError, OverflowError) as error:
        raise Malformed(
            f"{text!r} is no time such as 2027-03-28T00:00 or 2027-03-28T00:00:00Z", field="--from"
        ) from error


@schedules.command("pause")
@click.argument("name")
@common
@ends_well
def schedules_pause(output: str, name: str) -> None:
    """Let schedule NAME run nothing for now; its ticks are recorded as skipped."""

    def paused(before: Schedule) -> Schedule:
        return before if before.paused else msgspec.structs.replace(before, paused=True)

    _told(with_bus(lambda bus: change(bus, name, paused)), output)
    talk(f"{name} is paused")


@schedules.command("resume")
@click.argument("name")
@common
@ends_well
def schedules_resume(output: str, name: str) -> None:
    """Let schedule NAME run again; what came in the pause is not made up for."""

    async def resume(bus: Bus) -> Schedule:
        at = rfc3339(await server_now_ns(bus))

        def resumed(before: Schedule) -> Schedule:
            return msgspec.structs.replace(before, paused=False, resumed=at) if before.paused else before

        return await change(bus, name, resumed)

    after = with_bus(resume)
    _told(after, output)
    tick = next_tick(checked(after).cron, after.zone, now_ns() // NS_PER_S)
    talk(f"{name} runs" + (f"; next: {wall_text(tick, after.zone)}" if tick is not None else ""))


@schedules.command("run")
@click.argument("name")
@common
@ends_well
def schedules_run(output: str, name: str) -> None:
    """Submit the goal of schedule NAME now and print the run's number. It is no tick: it holds up none."""

    async def submit(bus: Bus) -> None:
        schedule, _ = await read_one(bus, name)
        await submit_goal(bus, msgspec.json.encode(schedule.goal), "", output=output, wait=False)

    with_bus(submit)


@schedules.command("rm")
@click.argument("name")
@common
@ends_well
def schedules_rm(output: str, name: str) -> None:
    """Remove schedule NAME; its runs go on, and its history stays."""

    async def remove(bus: Bus) -> None:
        await read_one(bus, name)
        await bus.kv_delete(CONFIG_BUCKET, schedule_key(name))

    with_bus(remove)
    if output == "json":
        data({"removed": name})
    talk(f"removed {name}")


@schedules.command("history")
@click.argument("name")
@click.option("--limit", default=20, type=click.IntRange(1, 1000), help="How many, the newest ones.")
@common
@ends_well
def schedules_history(output: str, name: str, limit: int) -> None:
    """Show what became of the ticks of schedule NAME, from the stream itself, newest last."""

    async def read(bus: Bus) -> list[dict[str, Any]]:
        rows = await history(bus, name, limit)
        if not rows:
            await read_one(bus, name)  # one that has not ticked yet, or none at all
        return rows

    rows = with_bus(read)
    if output == "json":
        data(rows)
    elif not rows:
        talk(f"{name} has had no tick yet")
    else:
        table(rows, ("local", "outcome", "run", "reason"))


async def history(bus: Bus, name: str, limit: int) -> list[dict[str, Any]]:
    """The newest ticks in stream order, each with the run that it began (null when none)."""
    last = await bus.last_on(EVENTS, ticks_of(name)) if is_schedule_name(name) else None
    if last is None:
        return []
    found: list[tuple[str, int, int, bytes]] = []
    reach = PAGE
    while True:  # newest first is no question that a stream answers, so further and further back
        begin = max(1, last[0] - reach)
        found = await _every(bus, name, begin)
        if len(found) >= limit or begin == 1:
            break
        reach *= 10
    found = found[-limit:]
    goals = {goal_submitted(schedule_principal(name, _tick(subject))): subject for subject, *_ in found}
    runs = {
        goals[subject]: seq for subject, seq, *_ in await bus.direct(EVENTS, {"multi_last": list(goals), "batch": PAGE})
    }
    rows = []
    for subject, seq, at_ns, content in found:
        ticked = _ticked(content)
        rows.append(
            {
                "tick": _tick(subject),
                "at": _utc(_tick(subject)),
                "local": ticked.local if ticked else None,
                "outcome": ticked.outcome if ticked else "unreadable",
                "reason": ticked.reason if ticked else "another message lies in its place",
                "run": runs.get(subject),
                "schedule_version": ticked.schedule_version if ticked else None,
                "decided_at": rfc3339(at_ns),
                "seq": seq,
            }
        )
    return rows


async def _every(bus: Bus, name: str, begin: int) -> list[tuple[str, int, int, bytes]]:
    found: list[tuple[str, int, int, bytes]] = []
    while True:
        page = await bus.direct(EVENTS, {"next_by_subj": ticks_of(name), "seq": begin, "batch": PAGE})
        if not page:
            return found
        found += page
        begin = page[-1][1] + 1


def _tick(subject: str) -> int:
    text = subject.rsplit(".", 1)[-1]
    return int(text) if text.isdigit() else 0

"""The words of schedules: when a goal is due by the clock on a wall, and what happens when it cannot run then.

Theory of operation. The calendar (which minutes of a wall clock a cron expression means) is the library cronsim's; the
change of that clock is ours. A schedule of fixed times runs once for each of them: what falls into the gap of spring
moves to the first moment behind it, what comes twice in autumn runs the first time. A schedule whose minute or hour
begins with `*` goes by real time: what falls into the gap does not exist, what comes twice runs twice. That is how
Debian's cron does it. A tick is named by its epoch second, so ticks that move to the same moment are one.
"""

import re
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from itertools import islice
from typing import Annotated, Any, Literal
from zoneinfo import ZoneInfo, available_timezones

import msgspec
from cronsim import CronSim, CronSimError

from shared.clock import NS_PER_S, parse_ns
from shared.plan import Problem, read_goal
from shared.subjects import SCHEDULE_NAME_CHARS_MAX, is_schedule_name

CRON_CHARS_MAX = 200
TICKS_MAX = 50_000  # of one look ahead; a month of a schedule that runs every minute
WINDOW_S_MAX = 31 * 86_400
# How far a clock is put back at most, and a little more: Troll station's two hours are the record.
CLOCK_CHANGE_S_MAX = 3 * 3600

ANY_DAY = datetime(2000, 1, 1, tzinfo=UTC)  # where only the fields are wanted
FIELDS = ("minute", "hour", "day-of-month", "month", "day-of-week")
Overlap = Literal["skip", "queue", "allow"]
CatchUp = Literal["none", "last", "all"]


class Schedule(msgspec.Struct, frozen=True, kw_only=True):
    """A goal and when it is due: five cron fields by the wall clock of an IANA zone.

    Ticks at or before `since` are nobody's; it is set when the schedule is made and when its times change. Ticks at or
    before `resumed` that nobody has decided are skipped, as they came in a pause.
    """

    name: str
    cron: str
    goal: dict[str, Any]
    zone: str = "UTC"
    overlap: Overlap = "skip"
    catch_up: CatchUp = "last"
    catch_up_window_s: Annotated[int, msgspec.Meta(ge=1, le=WINDOW_S_MAX)] = 86_400
    paused: bool = False
    since: str
    resumed: str = ""
    version: int = 1

    @property
    def since_s(self) -> int:
        return parse_ns(self.since) // NS_PER_S

    @property
    def resumed_s(self) -> int:
        return parse_ns(self.resumed) // NS_PER_S if self.resumed else 0


def check_schedule(schedule: Schedule, now_s: int) -> list[Problem]:
    """Every reason why this can be no schedule, with the field that it is about."""
    problems: list[Problem] = []
    if not is_schedule_name(schedule.name):
        why = f"the name must be 1 to {SCHEDULE_NAME_CHARS_MAX} letters, digits, '_' or '-', and not digits alone"
        problems.append(Problem(why, "name"))
    problems += check_cron(schedule.cron, now_s)
    if schedule.zone not in zones():
        problems.append(Problem(f"{schedule.zone[:80]!r} is no zone of the IANA data, such as Europe/Berlin", "zone"))
    for field in ("since", "resumed"):
        try:
            getattr(schedule, f"{field}_s")
        except ValueError as error:
            problems.append(Problem(str(error), field))
    _, unplannable = read_goal(msgspec.json.encode(schedule.goal))
    problems += [Problem(one.reason, one.field if one.field == "goal" else f"goal.{one.field}") for one in unplannable]
    return problems


def check_cron(cron: str, now_s: int) -> list[Problem]:
    """Each field at fault by its name; or that the whole never comes."""
    parts = cron.split()
    if len(cron) > CRON_CHARS_MAX or len(parts) != len(FIELDS):
        why = f"{cron[:80]!r} must be five fields: {', '.join(FIELDS)}"
        return [Problem(why, "cron")]
    problems = []
    for place, (field, part) in enumerate(zip(FIELDS, parts, strict=True)):
        alone = ["*"] * len(FIELDS)
        alone[place] = part
        try:
            CronSim(" ".join(alone), ANY_DAY)
        except CronSimError:
            # Day 30 alone is fine, and day 32 is not: what is wrong with the fields together shows below.
            problems.append(Problem(f"{part!r} is no {field}", f"cron.{field}"))
    if problems:
        return problems
    try:
        next(CronSim(cron, _naive_utc(now_s)))
    except (CronSimError, StopIteration, OverflowError, ValueError):
        return [Problem(f"{cron!r} never comes (looked 50 years ahead)", "cron")]
    return []


@lru_cache(maxsize=1)
def zones() -> frozenset[str]:
    """The names of the IANA zones; without those that mean another thing on another machine."""
    return frozenset(available_timezones() - {"localtime", "Factory"})


def ticks(cron: str, zone: str, after_s: int, until_s: int) -> Iterator[int]:
    """Epoch seconds of the nominal ticks after `after_s` and up to `until_s`, in order, at most `TICKS_MAX`.

    What comes out does not depend on where one begins to look.
    """
    return islice(_after(cron, ZoneInfo(zone), after_s, until_s), TICKS_MAX)


def _after(cron: str, zone: ZoneInfo, after_s: int, until_s: int) -> Iterator[int]:
    try:
        yield from (tick for tick in _ticks(cron, zone, after_s, until_s) if tick > after_s)
    except (OverflowError, ValueError):  # the calendar of Python ends with the year 9999
        return


def _ticks(cron: str, zone: ZoneInfo, after_s: int, until_s: int) -> Iterator[int]:
    minute, hour, *_ = cron.split()
    real_time = minute.startswith("*") or hour.startswith("*")
    begin = _wall(after_s, zone)
    earlier, later = (_wall(after_s + by_s, zone) for by_s in (-CLOCK_CHANGE_S_MAX, CLOCK_CHANGE_S_MAX))
    if later - earlier != timedelta(seconds=2 * CLOCK_CHANGE_S_MAX):
        begin = earlier  # what comes twice may stand before `after_s` on the wall and come behind it
    second_passes: list[int] = []
    last_s = after_s
    for wall in CronSim(cron, begin):
        moment = wall.replace(tzinfo=zone)
        if not _exists(moment):
            if real_time:
                continue
            while not _exists(moment):
                wall += timedelta(minutes=1)
                moment = wall.replace(tzinfo=zone)
        tick = int(moment.timestamp())
        while second_passes and second_passes[0] <= min(tick, until_s):
            yield second_passes.pop(0)
        if tick > until_s:
            return
        if tick > last_s:
            yield tick
            last_s = tick
        if real_time and (again := int(moment.replace(fold=1).timestamp())) != tick:
            second_passes.append(again)
    yield from (tick for tick in second_passes if tick <= until_s)


def _wall(at_s: int, zone: ZoneInfo) -> datetime:
    return datetime.fromtimestamp(at_s, zone).replace(tzinfo=None)


def _exists(moment: datetime) -> bool:
    return moment.astimezone(UTC).astimezone(moment.tzinfo).replace(tzinfo=None) == moment.replace(tzinfo=None)


def next_tick(cron: str, zone: str, after_s: int) -> int | None:
    """The next nominal tick, or None when there is none in 50 years."""
    return next(ticks(cron, zone, after_s, after_s + 51 * 366 * 86_400), None)


def wall_text(tick_s: int, zone: str) -> str:
    """`2026-11-26 02:00 CET`: what a clock on the wall shows."""
    return datetime.fromtimestamp(tick_s, ZoneInfo(zone)).strftime("%Y-%m-%d %H:%M %Z")


def six_fields(cron: str) -> str:
    """The alarm that the NATS server is asked for: six fields that fire at every tick, and perhaps more often.

    Its parser knows no day 7, no `L` and no `#`, and joins the two kinds of day by other rules, so numbers are written
    out, and what it cannot say is every day. It is an alarm only: which ticks there are is for `ticks` to say.
    """
    said = CronSim(cron, ANY_DAY)
    days = _numbers(said.days, 1, 31)
    weekdays = _numbers({day % 7 if isinstance(day, int) else day for day in said.weekdays}, 0, 6)
    if not said.day_and and "*" in (days, weekdays):
        days = weekdays = "*"  # either of the two is enough
    fields = ["0", _numbers(said.minutes, 0, 59), _numbers(said.hours, 0, 23), days, _numbers(said.months, 1, 12)]
    return " ".join([*fields, weekdays])


def _numbers(values: set[Any], least: int, most: int) -> str:
    if any(not isinstance(value, int) or value < least for value in values) or len(values) == most - least + 1:
        return "*"
    return ",".join(str(value) for value in sorted(values))


def _naive_utc(at_s: int) -> datetime:
    return datetime.fromtimestamp(at_s, UTC).replace(tzinfo=None)


_SCHEDULED = re.compile(r"schedule_(?P<name>.+)_(?P<tick>[1-9][0-9]{0,10})", re.ASCII)


def scheduled_by(principal: str) -> tuple[str, int] | None:
    """Schedule and tick of a goal, by the principal that it was said under; None for everybody else's."""
    found = _SCHEDULED.fullmatch(principal)
    if found is None or not is_schedule_name(found["name"]):
        return None
    return found["name"], int(found["tick"])

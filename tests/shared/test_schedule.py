"""When a schedule is due: the calendar, the change of the clock, and what can be no schedule."""

from datetime import UTC, datetime
from itertools import pairwise
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from cronsim import CronSim
from hypothesis import given, settings
from hypothesis import strategies as st

from shared.clock import NS_PER_S, parse_ns
from shared.schedule import (
    TICKS_MAX,
    Schedule,
    check_cron,
    check_schedule,
    next_tick,
    scheduled_by,
    six_fields,
    ticks,
    wall_text,
)
from shared.subjects import is_principal, schedule_principal
from tests import controls

BERLIN, NEW_YORK, LORD_HOWE, KOLKATA = "Europe/Berlin", "America/New_York", "Australia/Lord_Howe", "Asia/Kolkata"
NOW_S = controls.T0_NS // 10**9
DAY_S = 86_400


def at(zone: str, text: str) -> int:
    """The epoch second of a wall time."""
    return int(datetime.fromisoformat(text).replace(tzinfo=ZoneInfo(zone)).timestamp())


def walls(cron: str, zone: str, begin: str, days: float = 1) -> list[str]:
    """What the clock on the wall shows at each tick of the days that begin at `begin`, the moment itself among them."""
    begin_s = at(zone, begin)
    return [wall_text(tick, zone) for tick in ticks(cron, zone, begin_s - 1, begin_s + int(days * DAY_S) - 1)]


# -- the change of the clock ---------------------------------------------------------------------------------
# Berlin 2027-03-28 02:00 becomes 03:00, 2026-10-25 03:00 becomes 02:00; New York 2027-03-14 and 2026-11-01, both
# at two; Lord Howe moves by half an hour: 2026-10-04 02:00 becomes 02:30, 2027-04-04 02:00 becomes 01:30.

CHANGES = {
    "a fixed time in the gap moves to the first moment behind it": (
        "30 2 * * *", BERLIN, "2027-03-27", 3,
        ["2027-03-27 02:30 CET", "2027-03-28 03:00 CEST", "2027-03-29 02:30 CEST"],
    ),
    "several in the gap are one, as they are due at one moment": (
        "0,15,30,45 2 * * *", BERLIN, "2027-03-28", 1, ["2027-03-28 03:00 CEST"],
    ),
    "also with one that is due then anyway": ("0 2,3 * * *", BERLIN, "2027-03-28", 1, ["2027-03-28 03:00 CEST"]),
    "a fixed time that comes twice runs the first time": (
        "30 2 * * *", BERLIN, "2026-10-24", 3,
        ["2026-10-24 02:30 CEST", "2026-10-25 02:30 CEST", "2026-10-26 02:30 CET"],
    ),
    "every hour is every hour: none in the gap": (
        "30 * * * *", BERLIN, "2027-03-28", 4 / 24,
        ["2027-03-28 00:30 CET", "2027-03-28 01:30 CET", "2027-03-28 03:30 CEST", "2027-03-28 04:30 CEST"],
    ),
    "every hour is every hour: two in the fold": (
        "30 * * * *", BERLIN, "2026-10-25T01:00", 4 / 24,
        ["2026-10-25 01:30 CEST", "2026-10-25 02:30 CEST", "2026-10-25 02:30 CET", "2026-10-25 03:30 CET"],
    ),
    "minutes by real time come twice in their order": (
        "*/20 2 * * *", BERLIN, "2026-10-25", 1,
        [*(f"2026-10-25 02:{minute} CEST" for minute in ("00", "20", "40")),
         *(f"2026-10-25 02:{minute} CET" for minute in ("00", "20", "40"))],
    ),
    "minutes by real time that are in the gap are not there": ("*/20 2 * * *", BERLIN, "2027-03-28", 1, []),
    "New York in spring": ("30 2 * * *", NEW_YORK, "2027-03-14", 1, ["2027-03-14 03:00 EDT"]),
    "New York in autumn": ("30 1 * * *", NEW_YORK, "2026-11-01", 1, ["2026-11-01 01:30 EDT"]),
    "New York's hours in autumn": (
        "0 * * * *", NEW_YORK, "2026-11-01T01:00", 3 / 24,
        ["2026-11-01 01:00 EDT", "2026-11-01 01:00 EST", "2026-11-01 02:00 EST"],
    ),
    "half an hour is left out": ("15 2 * * *", LORD_HOWE, "2026-10-04", 1, ["2026-10-04 02:30 +11"]),
    "behind half a gap nothing is missed": (
        "*/20 3 * * *", LORD_HOWE, "2026-10-04", 1, [f"2026-10-04 03:{minute} +11" for minute in ("00", "20", "40")],
    ),
    "half an hour comes twice": (
        "*/15 1 * * *", LORD_HOWE, "2027-04-04", 1,
        [*(f"2027-04-04 01:{minute} +11" for minute in ("00", "15", "30", "45")),
         "2027-04-04 01:30 +1030", "2027-04-04 01:45 +1030"],
    ),
    "a fixed time in the half hour that comes twice": (
        "45 1 * * *", LORD_HOWE, "2027-04-04", 1, ["2027-04-04 01:45 +11"],
    ),
    "where no clock changes": (
        "30 2 * * *", KOLKATA, "2027-03-27", 3, [f"2027-03-{day} 02:30 IST" for day in (27, 28, 29)],
    ),
    "a day that a country left out": ("0 9 30 12 *", "Pacific/Apia", "2011-12-29", 3, ["2011-12-31 00:00 +14"]),
}  # fmt: skip


@pytest.mark.parametrize("what", CHANGES)
def test_a_clock_changes(what: str) -> None:
    cron, zone, begin, days, expected = CHANGES[what]
    assert walls(cron, zone, begin, days) == expected


fields = st.sampled_from(["*", "*/7", "*/20", "0", "30", "59", "0,30", "15-45", "10-50/10"])
hours = st.sampled_from(["*", "*/2", "*/5", "0", "1", "2", "3", "1,2", "2,3", "0-4", "1-23/2"])
begins = st.sampled_from(["2026-10-24T12:00", "2026-10-31T12:00", "2027-03-13T12:00", "2027-03-27T12:00"])


@settings(max_examples=100)
@given(minute=fields, hour=hours, zone=st.sampled_from([BERLIN, NEW_YORK, KOLKATA, "UTC"]), begin=begins)
def test_a_change_of_a_whole_hour_is_as_debians_cron_has_it(minute: str, hour: str, zone: str, begin: str) -> None:
    """The library mimics it, clock changes included; half an hour's change is where it loses ticks and we do not."""
    cron, begin_s = f"{minute} {hour} * * *", at(zone, begin)
    theirs = []
    for moment in CronSim(cron, datetime.fromtimestamp(begin_s, UTC if zone == "UTC" else ZoneInfo(zone))):
        if int(moment.timestamp()) > begin_s + 2 * DAY_S:
            break
        theirs.append(int(moment.timestamp()))
    assert list(ticks(cron, zone, begin_s, begin_s + 2 * DAY_S)) == theirs


@settings(max_examples=100)
@given(
    minute=fields,
    hour=hours,
    zone=st.sampled_from([BERLIN, NEW_YORK, LORD_HOWE, "Antarctica/Troll"]),
    begin=st.sampled_from(["2026-10-04", "2026-10-25", "2026-11-01", "2027-03-14", "2027-03-28", "2027-04-04"]),
    offset_s=st.integers(-4 * 3600, 8 * 3600),
)
def test_which_ticks_there_are_does_not_depend_on_where_one_looks_from(
    minute: str, hour: str, zone: str, begin: str, offset_s: int
) -> None:
    """Two executors that stand at different places must name the same ticks."""
    cron, begin_s = f"{minute} {hour} * * *", at(zone, begin)
    whole = list(ticks(cron, zone, begin_s - DAY_S, begin_s + DAY_S))
    assert all(one < other for one, other in pairwise(whole))
    after_s = begin_s + offset_s
    assert list(ticks(cron, zone, after_s, begin_s + DAY_S)) == [tick for tick in whole if tick > after_s]


@settings(max_examples=20)
@given(minute=fields, hour=hours, zone=st.sampled_from([BERLIN, LORD_HOWE, KOLKATA]), begin=begins)
def test_a_look_further_ahead_only_adds(minute: str, hour: str, zone: str, begin: str) -> None:
    cron, begin_s = f"{minute} {hour} * * *", at(zone, begin)
    whole = list(ticks(cron, zone, begin_s, begin_s + DAY_S))
    for until_s in range(begin_s, begin_s + DAY_S, 1_700):
        assert list(ticks(cron, zone, begin_s, until_s)) == [tick for tick in whole if tick <= until_s]


def test_a_look_ahead_is_bounded() -> None:
    assert sum(1 for _ in ticks("* * * * *", "UTC", 0, 10**12)) == TICKS_MAX
    assert list(ticks("* * * * *", "UTC", NOW_S, NOW_S - 1)) == []


def test_the_next_tick_may_be_years_away_and_the_calendar_ends() -> None:
    leap = next_tick("0 0 29 2 MON#5", "UTC", NOW_S)  # the 29th or a fifth Monday of February
    assert leap is not None and wall_text(leap, "UTC") == "2028-02-29 00:00 UTC"
    assert list(ticks("0 0 29 2 *", "UTC", at("UTC", "9999-01-01"), at("UTC", "9999-12-31") * 2)) == []


@pytest.mark.parametrize("zone", ["UTC", "Asia/Tokyo", "America/New_York"])
@pytest.mark.parametrize("before_end_s", [0, 3600, 86_400, 86_400 * 3])
def test_behind_the_calendar_s_end_nothing_is_due(zone: str, before_end_s: int) -> None:
    """`since` of a schedule may be any time that can be written; who looks for its ticks must not fail."""
    since_s = parse_ns("9999-12-31T23:59:59Z") // NS_PER_S - before_end_s
    assert len(list(ticks("0 2 * * *", zone, since_s, since_s + 86_400 * 10))) <= 3
    assert list(ticks("0 2 * * *", zone, since_s + 86_400 * 10, since_s + 86_400 * 20)) == []


# -- the server's alarm --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "cron,expected",
    [
        ("0 2 * * *", "0 0 2 * * *"),
        ("*/15 * * * *", "0 0,15,30,45 * * * *"),
        ("30 6 1 JAN,JUL *", "0 30 6 1 1,7 *"),
        ("0 9 * * mon-fri", "0 0 9 * * 1,2,3,4,5"),
        ("0 9 * * 7", "0 0 9 * * 0"),  # the server knows no day 7
        ("0 9 * * 0-7", "0 0 9 * * *"),
        ("0 9 13 * FRI", "0 0 9 13 * 5"),
        ("0 9 30 2 0-6", "0 0 9 * 2 *"),  # any weekday is enough; the server would find that the 30th never comes
        ("0 9 L * *", "0 0 9 * * *"),  # what it cannot say is every day
        ("0 9 * * MON#1", "0 0 9 * * *"),
        ("0 9 * * 5L", "0 0 9 * * *"),
    ],
)
def test_the_servers_cron_is_written_in_numbers(cron: str, expected: str) -> None:
    assert six_fields(cron) == expected


@settings(max_examples=100)
@given(
    minute=fields,
    hour=hours,
    day=st.sampled_from(["*", "*/2", "1", "31", "1-7", "13", "L", "LW"]),
    weekday=st.sampled_from(["*", "*/3", "MON", "0", "7", "5L", "2#2", "1-5"]),
)
def test_the_alarm_rings_at_every_tick(minute: str, hour: str, day: str, weekday: str) -> None:
    """It may ring more often; by either reading of two kinds of day it never misses one."""
    cron = f"{minute} {hour} {day} * {weekday}"
    second, minutes, hours_, days, months, weekdays = six_fields(cron).split()
    assert (second, months) == ("0", "*")
    for tick in ticks(cron, "UTC", NOW_S, NOW_S + 40 * DAY_S):
        due = datetime.fromtimestamp(tick, UTC)
        assert minutes == "*" or str(due.minute) in minutes.split(",")
        assert hours_ == "*" or str(due.hour) in hours_.split(",")
        on_day = days == "*" or str(due.day) in days.split(",")
        on_weekday = weekdays == "*" or str((due.weekday() + 1) % 7) in weekdays.split(",")
        # Where one of them is `*` the server wants both; else either.
        assert (on_day and on_weekday) if "*" in (days, weekdays) else (on_day or on_weekday)


# -- what can be no schedule ---------------------------------------------------------------------------------


def schedule(**changes: Any) -> Schedule:
    fields = {"name": "nightly", "cron": "0 2 * * *", "goal": {"tasks": ["noop"]}, "since": "2026-11-18T00:00:00Z"}
    return Schedule(**{**fields, **changes})


def test_a_good_schedule_has_no_problems() -> None:
    assert check_schedule(schedule(zone=BERLIN, goal={"goal": "check logs", "playbook": "x"}), NOW_S) == []


@pytest.mark.parametrize(
    "changes,fields_at_fault",
    [
        ({"name": "a.b"}, ["name"]),
        ({"name": "42"}, ["name"]),
        ({"name": "a" * 41}, ["name"]),
        ({"cron": "61 * * 13 *"}, ["cron.minute", "cron.month"]),
        ({"cron": "* 24 * * *"}, ["cron.hour"]),
        ({"cron": "* * 0 * *"}, ["cron.day-of-month"]),
        ({"cron": "* * * * 8"}, ["cron.day-of-week"]),
        ({"cron": "*/0 * * * *"}, ["cron.minute"]),
        ({"cron": "5-1 * * * *"}, ["cron.minute"]),
        ({"cron": "٣ * * * *"}, ["cron.minute"]),
        ({"cron": "0 0 30 2 *"}, ["cron"]),
        ({"cron": "0 0 31 4,6,9,11 *"}, ["cron"]),
        ({"cron": "* * */20 * 1L"}, ["cron"]),
        ({"cron": "* * * *"}, ["cron"]),
        ({"cron": "0 * * * * *"}, ["cron"]),
        ({"cron": "@daily"}, ["cron"]),
        ({"cron": ""}, ["cron"]),
        ({"cron": "0," * 100 + "0 * * * *"}, ["cron"]),
        ({"zone": "Berlin"}, ["zone"]),
        ({"zone": "Europe"}, ["zone"]),
        ({"zone": "../etc/passwd"}, ["zone"]),
        ({"zone": "localtime"}, ["zone"]),
        ({"zone": ""}, ["zone"]),
        ({"since": "yesterday"}, ["since"]),
        ({"resumed": "tomorrow"}, ["resumed"]),
        ({"goal": {}}, ["goal"]),
        ({"goal": {"tasks": ["a b"], "max_steps": 0}}, ["goal.tasks[0]", "goal.max_steps"]),
        ({"name": "42", "zone": "x", "cron": "x * * * *"}, ["name", "cron.minute", "zone"]),
    ],
)
def test_what_is_wrong_is_named(changes: dict[str, Any], fields_at_fault: list[str]) -> None:
    assert [problem.field for problem in check_schedule(schedule(**changes), NOW_S)] == fields_at_fault


@settings(max_examples=150)
@given(
    st.text(st.characters(codec="utf-8"), max_size=30) | st.from_regex(r"\A[0-9*/,LW#-]{1,6}( [0-9*/,LW#-]{1,6}){4}\Z")
)
def test_any_text_is_a_cron_or_is_refused(cron: str) -> None:
    """Whatever is let through can be counted out and told to the server."""
    if not check_cron(cron, NOW_S):
        assert next_tick(cron, BERLIN, NOW_S) is not None
        assert len(six_fields(cron).split()) == 6


# -- names ---------------------------------------------------------------------------------------------------


@given(
    name=st.from_regex(r"\A[A-Za-z0-9_-]{1,40}\Z").filter(lambda text: not text.isdigit()),
    tick=st.integers(1, 10**11 - 1),
)
def test_a_ticks_principal_is_one_and_tells_whose_it_is(name: str, tick: int) -> None:
    principal = schedule_principal(name, tick)
    assert is_principal(principal) and scheduled_by(principal) == (name, tick)


@pytest.mark.parametrize(
    "principal", ["", "ann", "schedule_x", "schedule__5", "schedule_x_05", "schedule_7_5", "schedule_x_"]
)
def test_other_principals_are_no_schedules(principal: str) -> None:
    assert scheduled_by(principal) is None

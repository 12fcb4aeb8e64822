"""A goal by the clock: made, missed, made up for, paused, looked at; and never run twice, whoever is killed.

Nobody waits for the night here: a schedule whose `since` lies in the past has its ticks due at once.
"""

import json
import sys
import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import msgspec
import pytest

from shared.bus import Bus, connect
from shared.clock import NS_PER_S, now_ns, rfc3339
from shared.errors import AlreadySaid, RemitError
from shared.events import ScheduleTicked
from shared.schedule import Schedule
from shared.subjects import CONFIG_BUCKET, EVENTS, SCHEDULE_ALARMS, TIMERS, schedule_alarm, schedule_key, ticks_of
from tests.auditor import audit
from tests.conftest import until
from tests.stack import Stack, stack

pytestmark = pytest.mark.usefixtures("client")
HOUR_S = 3600
SECOND = [sys.executable, "-m", "services.executor"]  # an executor besides the stack's own


def cli(remit: Stack, *argv: str, code: int = 0) -> Any:
    done = remit.remit("schedules", *argv, "-o", "json")
    assert done.returncode == code, done.stderr
    return json.loads(done.stdout) if done.stdout.strip() else done.stderr


def half_past() -> str:
    """Cron for a minute of each hour that is half an hour away: it was missed, and none comes while a test runs."""
    return f"{(now_ns() // NS_PER_S // 60 + 30) % 60} * * * *"


async def put(bus: Bus, name: str, **changes: Any) -> Schedule:
    """Make a schedule as it stands in KV: by default four ticks were missed, the newest half an hour ago."""
    since = rfc3339(now_ns() - 4 * HOUR_S * NS_PER_S)
    fields: dict[str, Any] = {"cron": half_past(), "goal": {"tasks": ["noop"]}, "since": since}
    made = Schedule(name=name, **{**fields, **changes})
    await bus.kv_put(CONFIG_BUCKET, schedule_key(name), msgspec.json.encode(made))
    return made


async def facts(bus: Bus, name: str) -> list[ScheduleTicked]:
    """What the stream holds of the schedule's ticks, in its order."""
    found = await bus.direct(EVENTS, {"multi_last": [ticks_of(name)], "batch": 1000})
    return [msgspec.json.decode(data, type=ScheduleTicked) for *_, data in found]


async def outcomes(bus: Bus, name: str, count: int) -> list[str]:
    async def there() -> bool:
        return len(await facts(bus, name)) >= count

    await until(there)
    return [one.outcome for one in await facts(bus, name)]


# -- the whole story -----------------------------------------------------------------------------------------


def test_a_nightly_goal_from_its_making_to_its_history(remit: Stack) -> None:
    made = cli(remit, "add", "nightly", "--cron", "0 2 * * *", "--zone", "Europe/Berlin", "--goal", "check logs",
               "--max-steps", "3", "--overlap", "queue")  # fmt: skip
    assert made["goal"] == {"goal": "check logs", "max_steps": 3}
    assert (made["version"], made["overlap"], made["catch_up"], made["paused"]) == (1, "queue", "last", False)
    # What fires is shown before it does, clock changes included.
    spring = cli(remit, "next", "nightly", "--from", "2027-03-27", "--count", "3")
    assert [row["local"] for row in spring] == [
        "2027-03-27 02:00 CET",
        "2027-03-28 03:00 CEST",
        "2027-03-29 02:00 CEST",
    ]
    assert spring[1]["at"] == "2027-03-28T01:00:00.000000Z"
    listed = {row["name"]: row for row in cli(remit, "ls")}["nightly"]
    assert listed["next_at"] == cli(remit, "next", "nightly", "--count", "1")[0]["at"]
    assert listed["last_outcome"] is None and cli(remit, "history", "nightly") == []
    # By hand, at once.
    run = cli(remit, "run", "nightly")["run"]
    assert remit.remit("watch", str(run)).returncode == 0
    # Changed, but not by accident.
    assert "--replace" in cli(remit, "add", "nightly", "--cron", "0 3 * * *", "--goal", "check logs", code=1)
    changed = cli(remit, "add", "nightly", "--cron", "0 3 * * *", "--task", "noop", "--replace")
    assert (changed["version"], changed["goal"]) == (2, {"tasks": ["noop"]})
    assert changed["since"] > made["since"]
    assert cli(remit, "pause", "nightly")["paused"] is True
    assert {row["name"]: row for row in cli(remit, "ls")}["nightly"]["next_at"] is None
    resumed = cli(remit, "resume", "nightly")
    assert (resumed["paused"], resumed["version"], resumed["resumed"] > made["since"]) == (False, 4, True)
    assert cli(remit, "rm", "nightly") == {"removed": "nightly"}
    assert cli(remit, "ls") == []
    again = cli(remit, "add", "nightly", "--cron", "0 2 * * *", "--task", "noop")
    assert again["version"] == 5, "ticks name the version that they were of"
    assert cli(remit, "rm", "nightly") == {"removed": "nightly"}


def test_what_the_command_prints_for_people(remit: Stack) -> None:
    made = remit.remit("schedules", "add", "papers", "--cron", "0 2 * * *", "--task", "noop")
    assert made.stdout == "papers version 1\n" and "next: " in made.stderr
    shown = remit.remit("schedules", "next", "papers", "--from", "2027-01-01T00:00:00Z", "--count", "1")
    assert shown.stdout == "2027-01-01 02:00 UTC  2027-01-01T02:00:00Z\n"
    assert "papers" in remit.remit("schedules", "ls").stdout
    assert "no tick yet" in remit.remit("schedules", "history", "papers").stderr
    assert remit.remit("schedules", "rm", "papers").returncode == 0


@pytest.mark.parametrize(
    "argv,code,words",
    [
        (["add", "x", "--cron", "61 * * * *", "--task", "noop"], 2, "cron.minute: '61' is no minute"),
        (["add", "x", "--cron", "0 0 30 2 *", "--task", "noop"], 2, "never comes"),
        (["add", "x", "--cron", "0 2 * * *", "--zone", "Berlin", "--task", "noop"], 2, "zone: 'Berlin'"),
        (["add", "42", "--cron", "0 2 * * *", "--task", "noop"], 2, "name: "),
        (["add", "x", "--cron", "0 2 * * *"], 2, "goal: "),
        (["add", "x", "--cron", "0 2 * * *", "--task", "noop", "--max-steps", "0"], 2, "max_steps: "),
        (["add", "x", "--cron", "0 2 * * *", "--task", "noop", "--catch-up-window-s", "0"], 2, "catch_up_window_s: "),
        (["next", "x"], 6, "no schedule 'x'"),
        (["pause", "x"], 6, "no schedule 'x'"),
        (["resume", "*"], 6, "no schedule '*'"),
        (["run", "x"], 6, "no schedule 'x'"),
        (["rm", "x"], 6, "no schedule 'x'"),
        (["history", "x"], 6, "no schedule 'x'"),
    ],
)
def test_what_cannot_be_is_refused(remit: Stack, argv: list[str], code: int, words: str) -> None:
    assert words in cli(remit, *argv, code=code)


async def test_of_two_changes_at_once_one_is_refused(remit: Stack, client: Bus) -> None:
    made = await put(client, "twice", since=rfc3339(now_ns()))
    stored = await client.kv_get(CONFIG_BUCKET, schedule_key("twice"))
    assert stored is not None
    cli(remit, "pause", "twice")
    with pytest.raises(AlreadySaid):
        await client.kv_put(CONFIG_BUCKET, schedule_key("twice"), msgspec.json.encode(made), revision=stored[1])
    cli(remit, "rm", "twice")


# -- missed --------------------------------------------------------------------------------------------------


async def test_what_was_missed_is_told_and_made_up_for_as_it_was_asked(remit: Stack, client: Bus) -> None:
    for catch_up in ("none", "last", "all"):
        await put(client, f"by-{catch_up}", catch_up=catch_up)
    assert await outcomes(client, "by-none", 4) == ["skipped"] * 4
    assert await outcomes(client, "by-last", 4) == ["coalesced"] * 3 + ["caught_up"]
    # One after the other, each as soon as the run before it is over.
    assert await outcomes(client, "by-all", 4) == ["caught_up"] * 4
    told = cli(remit, "history", "by-all")
    assert len({row["run"] for row in told}) == 4 and None not in [row["run"] for row in told]
    assert "made up 3 h after its time" in told[0]["reason"]
    newest = cli(remit, "history", "by-last", "--limit", "1")
    assert [row["outcome"] for row in newest] == ["caught_up"]
    assert remit.remit("watch", str(newest[0]["run"])).returncode == 0
    last = {row["name"]: row for row in cli(remit, "ls")}["by-none"]
    assert (last["last_outcome"], last["last_reason"]) == ("skipped", "it was missed, and catch-up is none")
    for catch_up in ("none", "last", "all"):
        cli(remit, "rm", f"by-{catch_up}")


async def test_a_pause_is_recorded_tick_by_tick(remit: Stack, client: Bus) -> None:
    await put(client, "resting", paused=True)
    assert await outcomes(client, "resting", 4) == ["skipped"] * 4
    assert {one.reason for one in await facts(client, "resting")} == {"the schedule is paused"}
    cli(remit, "rm", "resting")


async def test_no_second_run_while_one_is_active(remit: Stack, client: Bus) -> None:
    """Nobody performs the task of the first run, so it stays active; the ticks behind it say which run that is."""
    remit.remit("tasks", "add", "endless")
    await put(client, "busy", goal={"tasks": ["endless"]}, catch_up="all", catch_up_window_s=86_400)
    assert await outcomes(client, "busy", 1) == ["caught_up"]
    run = cli(remit, "history", "busy")[0]["run"]
    # From now on, minutely and without catching up: the next look finds a missed tick and an active run.
    await put(client, "busy", goal={"tasks": ["endless"]}, cron="* * * * *", since=rfc3339(now_ns() - 200 * NS_PER_S))
    await until(lambda: _has_reason(client, "busy", f"run {run} of "))
    assert all(one.outcome == "skipped" for one in (await facts(client, "busy"))[1:])
    cli(remit, "rm", "busy")


async def _has_reason(bus: Bus, name: str, words: str) -> bool:
    return any(words in one.reason for one in await facts(bus, name))


async def test_what_is_no_schedule_holds_up_no_other(remit: Stack, client: Bus) -> None:
    """Whatever lies in the bucket: it is left out and told."""
    await client.kv_put(CONFIG_BUCKET, schedule_key("broken"), b"{}")
    await put(client, "odd", cron="61 * * * *")
    await put(client, "fine")
    assert (await outcomes(client, "fine", 4))[-1] == "caught_up"
    assert "'61' is no minute" in {row["name"]: row for row in cli(remit, "ls")}["odd"]["problem"]
    assert "schedule odd is left out: cron.minute" in remit.log("executor")
    for name in ("broken", "odd", "fine"):
        await client.kv_delete(CONFIG_BUCKET, schedule_key(name))


# -- the server's alarm --------------------------------------------------------------------------------------


async def alarms(bus: Bus) -> dict[str, Any]:
    found = await bus.direct(TIMERS, {"multi_last": [SCHEDULE_ALARMS], "batch": 1000})
    return {subject: msgspec.json.decode(data) for subject, _, _, data in found}


async def test_the_alarm_follows_its_schedule(remit: Stack, client: Bus) -> None:
    """Set, changed and taken back by the executors, one message for each schedule."""
    subject = schedule_alarm("belled")
    cli(remit, "add", "belled", "--cron", "0 9 * * 7", "--zone", "Asia/Kolkata", "--task", "noop")

    def holds(cron: str, zone: str) -> Callable[[], Any]:
        async def so() -> bool:
            return (await alarms(client)).get(subject) == {"due": "", "cron": cron, "zone": zone}

        return so

    await until(holds("0 0 9 * * 0", "Asia/Kolkata"))
    cli(remit, "add", "belled", "--cron", "*/30 * * * *", "--task", "noop", "--replace")
    await until(holds("0 0,30 * * * *", "UTC"))
    cli(remit, "rm", "belled")

    async def gone() -> bool:
        return subject not in await alarms(client)

    await until(gone)


@pytest.mark.slow
async def test_the_server_rings_at_a_minute_of_its_own_zone(remit: Stack, client: Bus) -> None:
    """The one test that waits for a real minute: the server fires, the executor decides, the goal runs."""
    begun_s = time.time()
    cli(remit, "add", "minutely", "--cron", "* * * * *", "--zone", "Australia/Lord_Howe", "--task", "noop")

    async def ticked() -> bool:
        return bool(await facts(client, "minutely"))

    await until(ticked, within_s=90)
    fact = (await facts(client, "minutely"))[0]
    assert fact.outcome in ("ran", "late") and fact.local[:16] == _wall(fact.due, "Australia/Lord_Howe")

    async def rang() -> bool:
        return await client.last_on(EVENTS, "timer.fired.schedule.minutely") is not None

    await until(rang)
    assert time.time() - begun_s < 90
    row = cli(remit, "history", "minutely")[0]
    assert remit.remit("watch", str(row["run"])).returncode == 0
    cli(remit, "rm", "minutely")


def _wall(due: str, zone: str) -> str:
    return datetime.fromisoformat(due).astimezone(ZoneInfo(zone)).strftime("%Y-%m-%d %H:%M")


async def test_an_alarm_fires_with_every_process_of_remit_dead(remit: Stack, client: Bus) -> None:
    """By the second, as only the server's own cron can: a message in TIMERS fires into EVENTS until it is purged."""
    subject = schedule_alarm("by-itself")
    headers = {"Nats-Schedule": "* * * * * *", "Nats-Schedule-Time-Zone": "Europe/Berlin",
               "Nats-Schedule-Target": "timer.fired.schedule.by-itself"}  # fmt: skip

    async def rung() -> int:
        query = {"subjects_filter": "timer.fired.schedule.by-itself"}
        state = (await client.api(f"STREAM.INFO.{EVENTS}", query))["state"]
        return sum((state.get("subjects") or {}).values())

    async def twice() -> bool:
        return await rung() >= 2

    async def purged() -> bool:
        return subject not in await alarms(client)

    remit.kill("executor")
    await client.request(subject, b'{"due":""}', headers=headers)
    await until(twice)
    remit.start("executor")
    # It belongs to no schedule, so the first look of the new executor takes it back.
    await until(purged)


# -- killed --------------------------------------------------------------------------------------------------


async def test_two_executors_never_run_a_tick_twice_whoever_is_killed(tmp_path: Path) -> None:
    """120 ticks due at once, two executors that both decide, kill -9 of either in between, again and again."""
    names = [f"s{n}" for n in range(4)]
    since_s = (now_ns() // NS_PER_S // 60 - 31) * 60
    with stack(tmp_path, "planner", "executor", "registry") as remit:
        remit.start_as("second", SECOND)
        bus = await connect(remit.url, "test")
        await until(lambda: _has_streams(bus))
        for name in names:
            since = rfc3339(since_s * NS_PER_S + 1)
            await put(bus, name, cron="* * * * *", catch_up="all", overlap="allow", since=since)

        async def some(count: int) -> bool:
            return sum([len(await facts(bus, name)) for name in names]) >= count

        for count, victim in ((1, "executor"), (20, "second"), (60, "executor"), (100, "second")):
            await until(lambda count=count: some(count))  # type: ignore[misc]
            remit.kill(victim)
            if victim == "executor":
                remit.start("executor")
            else:
                remit.start_as("second", SECOND)

        async def each_has_thirty() -> (
            bool
        ):  # one may be ahead of another, and on a slow machine more come due meanwhile
            return min([len(await facts(bus, name)) for name in names]) >= 30

        await until(each_has_thirty, within_s=60)
        for name in names:
            await bus.kv_delete(CONFIG_BUCKET, schedule_key(name))

        async def audited() -> bool:
            nonlocal findings
            findings = audit(await _everything(bus))
            return findings == []

        findings: list[str] = []
        try:
            await until(audited, within_s=60)
        except TimeoutError:
            pytest.fail("; ".join(findings[:5]))
        for name in names:
            due = [one.due for one in await facts(bus, name)]
            assert len(due) == len(set(due)) and due == sorted(due)
            assert due[:30] == [rfc3339((since_s + 60 * n) * NS_PER_S) for n in range(1, 31)]
        await bus.close()


async def _has_streams(bus: Bus) -> bool:
    try:
        await bus.api("CONSUMER.INFO.EVENTS.worker-noop")
    except RemitError:
        return False
    return True


async def _everything(bus: Bus) -> list[tuple[str, int, int, bytes]]:
    found: list[tuple[str, int, int, bytes]] = []
    while page := await bus.direct(EVENTS, {"seq": found[-1][1] + 1 if found else 1, "batch": 1000}):
        found += page
        if len(page) < 1000:
            break
    return found

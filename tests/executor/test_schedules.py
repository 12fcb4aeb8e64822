"""What becomes of a tick: every policy, and that each tick has one fact and at most one run, whoever says it."""

from collections import Counter
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule

from services.executor import snapshot
from services.executor.engine import Engine
from services.executor.schedules import EARLY_S, FACTS_MAX, HEARD, Saying, Schedules
from shared.clock import NS_PER_S, rfc3339
from shared.events import Event, ScheduleTicked
from shared.plan import GOAL_BYTES_MAX
from shared.schedule import Schedule, scheduled_by, ticks
from shared.subjects import goal_rejected, goal_submitted, run_completed, schedule_principal, schedule_ticked
from tests import controls
from tests.controls import ACK, Stream

T0_S = controls.T0_NS // NS_PER_S
FIRST_S = 1_795_050_000  # 02:00 in Berlin, the first behind T0
DAY_S, HOUR_S, MINUTE_S = 86_400, 3600, 60
CREATED = "2026-11-18T00:00:00Z"


class Executor:
    """A process: its fold, its place in the stream, and what it is about to say."""

    def __init__(self, world: "World", mind: Engine | None = None) -> None:
        self.world = world
        self.mind = mind or Engine()
        self.outbox: list[Saying] = []
        self.stopped: set[str] = set()
        self.read()

    def read(self, count: int = 10**9) -> None:
        stream = self.world.stream
        for _ in range(min(count, stream.last_seq - self.mind.position)):
            event = stream.event(self.mind.position + 1)
            self.mind.apply(event)
            if event.kind in HEARD:
                self.mind.schedules.apply(event, self.mind.runs)

    def look(self) -> None:
        """As the keeper does: decide, and only then again when all of it is said."""
        if not self.outbox:
            self.stopped.clear()
            self.outbox = self.mind.schedules.decide(self.world.schedules, self.world.now_s, self.mind.position)

    def send(self, count: int = 10**9) -> None:
        for _ in range(min(count, len(self.outbox))):
            saying = self.outbox.pop(0)
            if saying.schedule in self.stopped:
                continue
            seq = self.world.say(saying.subject, saying.body)
            if not seq:
                seq = self.world.where(saying.subject)
                self.stopped.add(saying.schedule)
            self.mind.schedules.answered(saying, seq)


class World:
    """The stream, the clock, what an operator has configured, and the runs, which end when they are told to."""

    def __init__(self, *schedules: Schedule) -> None:
        self.stream = Stream()
        self.now_s: float = T0_S
        self.schedules = {one.name: one for one in schedules}
        self.executors = [Executor(self)]

    def say(self, subject: str, body: Any) -> int:
        self.stream.wait_until(int(self.now_s * NS_PER_S))
        return self.stream.say(subject, body)

    def put(self, subject: str, body: Any) -> int:
        self.stream.wait_until(int(self.now_s * NS_PER_S))
        return self.stream.put(subject, body)

    def where(self, subject: str) -> int:
        return max(seq for said, seq, *_ in self.stream.messages if said == subject)

    def change(self, name: str, **changes: Any) -> None:
        old = self.schedules[name]
        self.schedules[name] = controls.schedule(name, **{field: getattr(old, field) for field in old.__struct_fields__
                                                          if field not in ("name", *changes)}, **changes)  # fmt: skip

    def at(self, now_s: float) -> "World":
        """The clock goes on; every executor looks and says until nothing more follows."""
        self.now_s = now_s
        quiet = 0
        while quiet < 2:  # a word that was refused is followed by another look
            before = self.stream.last_seq
            quiet += 1
            for executor in self.executors:
                executor.read()
                executor.look()
                executor.send()
            if self.stream.last_seq != before:
                quiet = 0
        return self

    def end_runs(self, run: int | None = None) -> "World":
        for one in [run] if run else self.runs():
            self.say(run_completed(one), controls.run_over())
        return self

    def restart(self) -> "World":
        """kill -9 of all, and a new one."""
        self.executors = [Executor(self)]
        return self

    def events(self) -> list[Event]:
        return [self.stream.event(seq) for seq in range(1, self.stream.last_seq + 1)]

    def facts(self, name: str = "nightly") -> list[tuple[int, str, str]]:
        """Tick, outcome and reason of each fact of the schedule, in stream order."""
        return [
            (int(event.tail.split(".")[1]), event.body.outcome, event.body.reason)
            for event in self.events()
            if isinstance(event.body, ScheduleTicked) and event.tail.split(".")[0] == name
        ]

    def outcomes(self, name: str = "nightly") -> list[str]:
        return [outcome for _, outcome, _ in self.facts(name)]

    def goals(self) -> dict[int, tuple[str, int]]:
        """Schedule and tick by run."""
        return {
            event.seq: found
            for event in self.events()
            if event.kind == "goal.submitted" and (found := scheduled_by(event.tail))
        }

    def runs(self) -> list[int]:
        """Runs of schedules that are not over."""
        over = {event.run for event in self.events() if event.kind in ("run.completed", "goal.rejected")}
        return [run for run in self.goals() if run not in over]


# -- one tick ------------------------------------------------------------------------------------------------


def test_nothing_is_said_before_the_time() -> None:
    assert World(controls.schedule()).at(FIRST_S - 0.001).facts() == []


def test_a_tick_in_its_time_runs_its_goal_once() -> None:
    world = World(controls.schedule(goal={"goal": "check logs", "max_steps": 3})).at(FIRST_S + 1).at(FIRST_S + 2)
    assert world.facts() == [(FIRST_S, "ran", "")]
    assert list(world.goals().values()) == [("nightly", FIRST_S)]
    fact = next(event.body for event in world.events() if event.kind == "schedule.ticked")
    assert (fact.due, fact.local, fact.zone) == ("2026-11-19T01:00:00.000000Z", "2026-11-19 02:00 CET", "Europe/Berlin")
    goal = next(data for subject, _, _, data in world.stream.messages if subject.startswith("goal.submitted"))
    assert goal == b'{"goal":"check logs","max_steps":3}'


@pytest.mark.parametrize(
    "after_s,outcome,reason",
    [
        (0, "ran", ""),
        (4.9, "ran", ""),
        (5.1, "late", "decided 5 s after its time"),
        (59, "late", "decided 59 s after its time"),
        (61, "caught_up", "it was missed, and made up 61 s after its time"),
        (600, "caught_up", "it was missed, and made up 10 min after its time"),
        (10 * HOUR_S, "caught_up", "it was missed, and made up 10 h after its time"),
    ],
)
def test_how_late_a_tick_is(after_s: float, outcome: str, reason: str) -> None:
    assert World(controls.schedule()).at(FIRST_S + after_s).facts() == [(FIRST_S, outcome, reason)]


def test_ticks_at_or_before_since_are_nobodys() -> None:
    world = World(controls.schedule(since=rfc3339(FIRST_S * NS_PER_S))).at(FIRST_S + DAY_S)
    assert [tick for tick, *_ in world.facts()] == [FIRST_S + DAY_S]


def test_the_goal_is_the_one_that_was_decided() -> None:
    """Whatever becomes of the schedule between the two; also when it is gone."""
    world = World(controls.schedule(goal={"tasks": ["noop"]}))
    world.now_s = FIRST_S
    executor = world.executors[0]
    executor.look()
    executor.send()
    del world.schedules["nightly"]
    world.restart().at(FIRST_S + 100)
    assert list(world.goals().values()) == [("nightly", FIRST_S)]
    assert world.stream.messages[-1][3] == b'{"tasks":["noop"]}'


# -- missed --------------------------------------------------------------------------------------------------


def missed(catch_up: str, **changes: Any) -> World:
    """Four hourly ticks while nobody was there, and the fifth in time."""
    schedule = controls.schedule(cron="0 * * * *", catch_up=catch_up, since=rfc3339(FIRST_S * NS_PER_S), **changes)
    return World(schedule).at(FIRST_S + 4 * HOUR_S + 120)


def test_catch_up_none_skips_what_was_missed() -> None:
    world = missed("none")
    assert world.facts() == [
        (FIRST_S + n * HOUR_S, "skipped", "it was missed, and catch-up is none") for n in (1, 2, 3, 4)
    ]
    assert world.at(FIRST_S + 5 * HOUR_S).outcomes()[4:] == ["ran"]


def test_catch_up_last_makes_up_for_the_newest() -> None:
    world = missed("last")
    assert world.outcomes() == ["coalesced", "coalesced", "coalesced", "caught_up"]
    assert list(world.goals().values()) == [("nightly", FIRST_S + 4 * HOUR_S)]


def test_catch_up_last_makes_up_for_nothing_when_a_tick_is_due_now() -> None:
    """It would be skipped for the sake of the older one, or run beside it."""
    schedule = controls.schedule(cron="0 * * * *", since=rfc3339(FIRST_S * NS_PER_S))
    assert World(schedule).at(FIRST_S + 3 * HOUR_S + 2).outcomes() == ["coalesced", "coalesced", "ran"]


def test_catch_up_all_with_allow_makes_up_for_all() -> None:
    world = missed("all", overlap="allow")
    assert world.outcomes() == ["caught_up"] * 4
    assert len(world.goals()) == 4


@pytest.mark.parametrize("overlap", ["skip", "queue"])
def test_catch_up_all_makes_up_one_after_the_other(overlap: str) -> None:
    """No two at once, and none is lost; what comes due meanwhile stands in the line."""
    world = missed("all", overlap=overlap)
    for n in range(1, 5):
        # In a queue a tick's turn has come when the run before it is over.
        assert world.outcomes() == ["caught_up"] + ["caught_up" if overlap == "skip" else "late"] * (n - 1)
        assert len(world.runs()) == 1
        world.now_s += 300
        world.end_runs().at(world.now_s + 1)
    assert world.runs() == []
    assert world.at(FIRST_S + 5 * HOUR_S).outcomes()[4:] == ["ran"]


def test_catch_up_all_leaves_out_what_is_older_than_its_window() -> None:
    world = missed("all", overlap="allow", catch_up_window_s=3 * HOUR_S)
    assert world.outcomes() == ["skipped", "caught_up", "caught_up", "caught_up"]
    assert world.facts()[0][2] == "it was missed, and is older than the catch-up window"


@pytest.mark.parametrize("catch_up,goals", [("none", 0), ("last", 1), ("all", 1_000)])
def test_a_long_outage_is_told_in_bounded_looks(catch_up: str, goals: int) -> None:
    """A thousand ticks: never more than so many facts at a time, each tick once, in order."""
    begin_s = FIRST_S
    schedule = controls.schedule(
        cron="* * * * *", catch_up=catch_up, overlap="allow", since=rfc3339(begin_s * NS_PER_S)
    )
    world = World(schedule)
    world.now_s = begin_s + 1_000 * MINUTE_S + 59.5
    mind = world.executors[0].mind
    assert len(mind.schedules.decide(world.schedules, world.now_s, mind.position)) == FACTS_MAX
    world.at(world.now_s)
    assert [tick for tick, *_ in world.facts()] == [begin_s + n * MINUTE_S for n in range(1, 1_001)]
    # The last one is 59 s old: late, not missed.
    assert len(world.goals()) == (goals or 1) and world.outcomes()[-1] == "late"


# -- overlap -------------------------------------------------------------------------------------------------


def hourly(**changes: Any) -> World:
    """A run of 03:00 is active, and it is 04:00."""
    schedule = controls.schedule(cron="0 * * * *", since=rfc3339(FIRST_S * NS_PER_S), **changes)
    return World(schedule).at(FIRST_S + HOUR_S).at(FIRST_S + 2 * HOUR_S)


def test_skip_skips_while_a_run_is_active_and_says_which() -> None:
    world = hourly(overlap="skip")
    run = next(iter(world.goals()))
    assert world.facts()[1:] == [
        (FIRST_S + 2 * HOUR_S, "skipped", f"run {run} of 2026-11-19 03:00 CET is still active")
    ]
    assert world.end_runs().at(FIRST_S + 3 * HOUR_S).outcomes() == ["ran", "skipped", "ran"]


def test_skip_skips_while_a_run_is_about_to_begin() -> None:
    """Between the tick's fact and its goal the run is there as good as active."""
    world = World(controls.schedule(cron="* * * * *"))
    executor = world.executors[0]
    first_s = next(ticks("* * * * *", "UTC", T0_S, T0_S + 60))
    world.now_s = first_s
    executor.look()
    executor.send()
    executor.read()
    world.now_s = first_s + 60
    assert [one.body.outcome for one in executor.mind.schedules.decide(
        world.schedules, world.now_s, executor.mind.position) if not one.is_goal] == ["skipped"]  # fmt: skip


def test_queue_waits_and_says_for_what() -> None:
    world = hourly(overlap="queue")
    run = next(iter(world.goals()))
    assert world.outcomes() == ["ran"]
    world.at(FIRST_S + 2 * HOUR_S + 1200).end_runs().at(FIRST_S + 2 * HOUR_S + 1201)
    assert world.facts()[1:] == [(FIRST_S + 2 * HOUR_S, "late", f"it waited for run {run} of 2026-11-19 03:00 CET")]
    assert len(world.runs()) == 1


def test_queue_takes_them_in_order_one_at_a_time() -> None:
    world = hourly(overlap="queue").at(FIRST_S + 4 * HOUR_S + 600)
    assert world.outcomes() == ["ran"]
    for n in (2, 3, 4):
        world.now_s += 300
        world.end_runs().at(world.now_s + 1)
        assert [tick for tick, *_ in world.facts()][-1] == FIRST_S + n * HOUR_S
        assert len(world.runs()) == 1
    assert world.outcomes() == ["ran", "late", "late", "late"]


def test_queue_does_not_wait_for_longer_than_the_window() -> None:
    world = hourly(overlap="queue", catch_up_window_s=2 * HOUR_S).at(FIRST_S + 5 * HOUR_S)
    assert world.outcomes() == ["ran", "skipped"]
    assert world.facts()[1][2].startswith("it waited for longer than the catch-up window; run ")


def test_queue_leaves_to_catch_up_what_came_when_nobody_was_there() -> None:
    """The run had ended before: the tick waited for an executor, not for a run."""
    world = hourly(overlap="queue", catch_up="none")
    world.now_s += 60
    world.end_runs().at(FIRST_S + 2 * HOUR_S + 61)
    world.end_runs().at(FIRST_S + 5 * HOUR_S + 600)
    assert world.outcomes() == ["ran", "late", "skipped", "skipped", "skipped"]


def test_allow_runs_beside() -> None:
    world = hourly(overlap="allow")
    assert world.outcomes() == ["ran", "ran"] and len(world.runs()) == 2


def test_a_goal_that_is_rejected_is_no_active_run() -> None:
    world = World(controls.schedule(cron="0 * * * *", since=rfc3339(FIRST_S * NS_PER_S))).at(FIRST_S + HOUR_S)
    world.say(goal_rejected(next(iter(world.goals()))), controls.goal_rejected_body())
    assert world.at(FIRST_S + 2 * HOUR_S).outcomes() == ["ran", "ran"]


def test_one_schedules_run_is_nothing_to_another() -> None:
    one, other = (controls.schedule(name, cron="0 * * * *") for name in ("one", "one_1"))
    world = World(one, other).at(FIRST_S + 1)
    assert world.outcomes("one")[-1] == world.outcomes("one_1")[-1] == "ran"


# -- paused --------------------------------------------------------------------------------------------------


def test_a_paused_schedule_records_what_it_skips() -> None:
    world = World(controls.schedule(paused=True)).at(FIRST_S)
    assert world.facts() == [(FIRST_S, "skipped", "the schedule is paused")]


def test_what_came_in_a_pause_is_not_made_up_for() -> None:
    """Also when no executor was there to record it."""
    resumed = rfc3339((FIRST_S + HOUR_S) * NS_PER_S)
    world = World(controls.schedule(resumed=resumed, catch_up="all")).at(FIRST_S + DAY_S)
    assert world.facts() == [(FIRST_S, "skipped", "the schedule was paused"), (FIRST_S + DAY_S, "ran", "")]


# -- the clock changes ---------------------------------------------------------------------------------------


def test_each_tick_of_a_changed_clock_has_one_fact() -> None:
    """Spring in Berlin: 02:30 moves to 03:00. Autumn: 02:30 comes twice and runs once."""
    spring = 1_806_195_600  # 2027-03-28T01:00:00Z, the first moment behind the gap
    schedule = controls.schedule(cron="30 2 * * *", since=rfc3339((spring - HOUR_S) * NS_PER_S))
    world = World(schedule)
    for second in range(-600, 3 * HOUR_S, 600):
        world.at(spring + second).end_runs()
    assert world.facts() == [(spring, "ran", "")]
    autumn = 1_792_886_400  # 2026-10-25T00:00:00Z: 02:00 for the first time
    world = World(controls.schedule(cron="30 2 * * *", since=rfc3339(autumn * NS_PER_S)))
    for second in range(0, 4 * HOUR_S, 600):
        world.at(autumn + second).end_runs()
    assert world.facts() == [(autumn + 1800, "ran", "")]


# -- strangers -----------------------------------------------------------------------------------------------


def test_a_place_that_a_stranger_took_is_decided() -> None:
    world = World(controls.schedule())
    world.put(schedule_ticked("nightly", FIRST_S), ACK)
    assert world.at(FIRST_S + 1).facts() == [] and world.goals() == {}
    assert [tick for tick, *_ in world.at(FIRST_S + DAY_S).facts()] == [FIRST_S + DAY_S]


def test_a_tick_that_was_said_long_before_its_time_silences_no_schedule() -> None:
    world = World(controls.schedule())
    world.put(schedule_ticked("nightly", FIRST_S + 9 * DAY_S), controls.ticked(outcome="skipped"))
    world.put(schedule_ticked("nightly", 99_999_999_999), controls.ticked(outcome="skipped"))
    for day in range(12):
        world.at(FIRST_S + day * DAY_S + 1).end_runs()
    ran = [tick for tick, outcome, _ in world.facts() if outcome == "ran"]
    assert ran == [FIRST_S + day * DAY_S for day in range(12) if day != 9]


def test_a_tick_is_believed_as_early_as_a_clock_may_be_wrong() -> None:
    world = World(controls.schedule())
    world.put(schedule_ticked("nightly", T0_S + EARLY_S), controls.ticked())
    assert "nightly" in world.at(T0_S + 1).executors[0].mind.schedules.known()


def test_a_goal_that_was_said_before_its_tick_holds_nothing_up() -> None:
    """It is the tick's one run, and when it is over the next tick runs."""
    world = World(controls.schedule())
    stranger = world.put(goal_submitted(schedule_principal("nightly", FIRST_S)), b'{"tasks":["noop"]}')
    world.end_runs().at(FIRST_S)
    assert list(world.goals()) == [stranger]
    assert world.restart().at(FIRST_S + DAY_S).outcomes() == ["ran", "ran"]


def test_a_run_that_was_over_as_it_began_is_no_active_run() -> None:
    """A stranger has said its end before its goal."""
    world = World(controls.schedule())
    world.put(run_completed(3), controls.run_over())
    world.at(FIRST_S)
    assert list(world.goals()) == [3]
    assert world.at(FIRST_S + DAY_S).outcomes() == ["ran", "ran"]


# -- two that do not agree -----------------------------------------------------------------------------------


def test_who_was_not_the_first_decides_nothing_on_top_of_it() -> None:
    """One makes up for the missed tick; the other, a little later, would have let it go for the one that is due now."""
    world = World(controls.schedule(cron="0 * * * *", since=rfc3339(FIRST_S * NS_PER_S)))
    world.executors.append(Executor(world))
    early, late = world.executors
    world.now_s = FIRST_S + 2 * HOUR_S - 1
    early.look()
    world.now_s += 2
    late.look()
    assert [one.body.outcome for one in late.outbox] == ["coalesced", "ran"]
    early.send()
    late.send()
    assert world.at(world.now_s).outcomes() == ["caught_up", "skipped"]
    assert len(world.goals()) == 1


def test_an_older_tick_that_is_said_late_takes_nothing_back() -> None:
    """By an executor whose view of the schedule was an older one: it is recorded, and has its run."""
    world = World(controls.schedule()).at(FIRST_S + DAY_S).end_runs()
    world.put(schedule_ticked("nightly", FIRST_S + 5), controls.ticked(outcome="ran"))
    world.at(world.now_s + 1)
    assert ("nightly", FIRST_S + 5) in world.goals().values()
    assert world.executors[0].mind.schedules.known()["nightly"].decided_s == FIRST_S + DAY_S


# -- any number of executors ---------------------------------------------------------------------------------

POLICIES = [
    controls.schedule("skip", cron="*/10 * * * *", overlap="skip", catch_up="last"),
    controls.schedule("queue", cron="*/7 * * * *", overlap="queue", catch_up="last", catch_up_window_s=HOUR_S),
    controls.schedule("allow", cron="0,30 * * * *", overlap="allow", catch_up="none"),
    controls.schedule("each", cron="*/20 * * * *", overlap="skip", catch_up="all", catch_up_window_s=3 * HOUR_S),
    controls.schedule("pausing", cron="*/15 * * * *", zone="UTC", overlap="allow", catch_up="all"),
]


class Interleaved(RuleBasedStateMachine):
    """Up to three executors, each at a place of its own, any of them killed between two words; runs end at any time."""

    def __init__(self) -> None:
        super().__init__()
        self.world = World(*POLICIES)
        self.kept: Engine | bytes | None = None

    @rule(by_s=st.sampled_from([0.5, 1, 10, 61, 300, 600, 1200, 3600, 7200]))
    def time_goes_on(self, by_s: float) -> None:
        self.world.now_s += by_s

    @rule(who=st.integers(0, 2), count=st.integers(1, 10))
    def read(self, who: int, count: int) -> None:
        self.world.executors[who % len(self.world.executors)].read(count)

    @rule(who=st.integers(0, 2))
    def look(self, who: int) -> None:
        self.world.executors[who % len(self.world.executors)].look()

    @rule(who=st.integers(0, 2), count=st.integers(1, 8))
    def send(self, who: int, count: int) -> None:
        self.world.executors[who % len(self.world.executors)].send(count)

    @rule(who=st.integers(0, 2))
    def live(self, who: int) -> None:
        executor = self.world.executors[who % len(self.world.executors)]
        for _ in range(2):
            executor.read()
            executor.look()
            executor.send()

    @rule(data=st.data())
    def a_run_ends(self, data: st.DataObject) -> None:
        if runs := self.world.runs():
            self.world.end_runs(data.draw(st.sampled_from(runs)))

    @rule(paused=st.booleans())
    def pause(self, paused: bool) -> None:
        self.world.change("pausing", paused=paused)

    @rule()
    def one_more(self) -> None:
        if len(self.world.executors) < 3:
            self.world.executors.append(Executor(self.world))

    @rule(who=st.integers(0, 2))
    def remember(self, who: int) -> None:
        mind = self.world.executors[who % len(self.world.executors)].mind
        self.kept = snapshot.encode(snapshot.take(mind, CREATED))

    @rule(who=st.integers(0, 2), sent=st.integers(0, 3), from_snapshot=st.booleans())
    def kill(self, who: int, sent: int, from_snapshot: bool) -> None:
        at = who % len(self.world.executors)
        self.world.executors[at].send(sent)
        mind = None
        if from_snapshot and isinstance(self.kept, bytes):
            mind = snapshot.decode(self.kept, CREATED, self.world.stream.last_seq)
            assert mind is not None
        self.world.executors[at] = Executor(self.world, mind)

    def teardown(self) -> None:
        world = self.world
        for _ in range(1_000):
            before = world.stream.last_seq
            world.at(world.now_s).end_runs()
            if world.stream.last_seq == before:
                break
        else:
            raise AssertionError("the world does not come to rest")
        for schedule in world.schedules.values():
            told = [tick for tick, *_ in world.facts(schedule.name)]
            nominal = list(ticks(schedule.cron, schedule.zone, schedule.since_s, int(world.now_s)))
            assert told == nominal, f"{schedule.name}: one fact for each nominal tick, in order"
            ran = [tick for tick, outcome, _ in world.facts(schedule.name) if outcome in ("ran", "late", "caught_up")]
            goals = Counter(tick for name, tick in world.goals().values() if name == schedule.name)
            assert goals == Counter(ran), f"{schedule.name}: one goal for each tick that is to run"
        self.check_overlap()
        standings = [executor.mind.schedules.known() for executor in world.executors]
        assert all(one == standings[0] for one in standings)
        assert all(not one.owed and not one.active for one in standings[0].values())
        new = Executor(world)
        assert new.mind.schedules.known() == standings[0]
        assert new.mind.schedules.decide(world.schedules, world.now_s, new.mind.position) == []

    def check_overlap(self) -> None:
        """At no place of the stream two runs of a schedule that does not allow it."""
        active: Counter[str] = Counter()
        name_of: dict[int, str] = {}
        for event in self.world.events():
            if event.kind == "goal.submitted" and (found := scheduled_by(event.tail)):
                name_of[event.seq] = found[0]
                active[found[0]] += 1
                overlap = self.world.schedules[found[0]].overlap
                assert overlap == "allow" or active[found[0]] == 1, f"two runs of {found[0]} at {event.seq}"
            elif event.kind == "run.completed" and event.run in name_of:
                active[name_of.pop(event.run)] -= 1


TestInterleaved = Interleaved.TestCase
TestInterleaved.settings = settings(
    max_examples=100,
    stateful_step_count=40,
    phases=[Phase.explicit, Phase.reuse, Phase.generate],
    suppress_health_check=[HealthCheck.too_slow],
    report_multiple_bugs=False,
)


def test_a_goal_that_no_planner_takes_is_owed_to_nobody() -> None:
    """A stranger's tick with a goal that is larger when it is said again than it came: it would be said for ever."""
    world = World(controls.schedule("nightly"))
    large = {"goal": "x", "params": {"a": [1e15] * GOAL_BYTES_MAX}}
    world.now_s = FIRST_S
    world.put(schedule_ticked("evil", FIRST_S), controls.ticked(goal=large))
    world.at(FIRST_S)
    assert list(world.goals().values()) == [("nightly", FIRST_S)]
    assert world.executors[0].mind.schedules.known()["evil"].owed == {}


def test_what_is_kept_of_schedules_is_all_that_is_known() -> None:
    """A goal that is owed, a run that is active, one that is over: the snapshot alone tells a new executor."""
    world = World(controls.schedule("over"), controls.schedule("active", cron="30 2 * * *")).at(FIRST_S).end_runs()
    world.at(FIRST_S + 1800)
    world.now_s = FIRST_S + DAY_S
    owing = world.executors[0]
    owing.read()
    owing.look()
    owing.send()
    owing.read()
    data = snapshot.encode(snapshot.take(owing.mind, CREATED))
    begun = snapshot.decode(data, CREATED, world.stream.last_seq)
    assert begun is not None and begun.schedules.known() == owing.mind.schedules.known()
    known = begun.schedules.known()
    assert known["over"].owed == {FIRST_S + DAY_S: {"tasks": ["noop"]}} and known["over"].ended is not None
    assert list(known["active"].active.values()) == [FIRST_S + 1800]
    world.executors = [Executor(world, begun)]
    world.at(world.now_s + 1)
    assert ("over", FIRST_S + DAY_S) in world.goals().values()
    assert Schedules(known).known() == known

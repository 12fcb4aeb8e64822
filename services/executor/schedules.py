"""What becomes of every tick of every schedule: pure, folded from the stream, no clock, no I/O.

Theory of operation. A tick is decided once: `schedule.ticked.<name>.<tick>` is create-only, so of several executors
the first is believed. The fact that a tick is to run carries its goal, and the goal follows under a principal that only
this tick has. A goal is owed from the one to the other, whoever dies between them. Ticks of a schedule are decided in
their order, and nobody decides on beyond what he has read: an executor whose word was not the first says nothing more
of that schedule until it has read whose was. So `overlap` and `catch_up` hold for any number of executors.

A tick that is decided within `PUNCTUAL_S` of its time ran, within `LATE_S` is late, and older ones were missed: nobody
was there. One that waited in a `queue` counts from the end of the run that it waited for.
"""

from collections.abc import Container, Iterator, Mapping
from itertools import islice
from typing import Any, Literal, TypeGuard

import msgspec
from msgspec.structs import replace

from shared.clock import NS_PER_S, rfc3339
from shared.events import Event, ScheduleTicked, encode
from shared.plan import GOAL_BYTES_MAX
from shared.schedule import Schedule, next_tick, scheduled_by, ticks, wall_text
from shared.subjects import goal_submitted, schedule_principal, schedule_ticked

PUNCTUAL_S = 5
LATE_S = 60
# Facts of one look, over all schedules. An outage of a month is told in minutes, and nothing else waits for it.
FACTS_MAX = 200
# A tick that is said sooner than this counts for nothing: no clock of ours is so wrong, and a stranger could silence a
# schedule for ever.
EARLY_S = 3600

HEARD = frozenset(("schedule.ticked", "goal.submitted", "goal.rejected", "run.completed", "timer.fired"))

Outcome = Literal["ran", "late", "caught_up", "coalesced", "skipped"]


class Ran(msgspec.Struct, frozen=True):
    """A run of a schedule that is over."""

    run: int
    tick_s: int
    ended_s: float


class Standing(msgspec.Struct, frozen=True):
    """Where one schedule stands by the stream's word: its newest decided tick, goals that are owed and runs that are
    active (both by tick and run), and the run that ended last.
    """

    decided_s: int = 0
    owed: dict[int, dict[str, Any]] = {}
    active: dict[int, int] = {}  # run -> tick
    ended: Ran | None = None


class Saying(msgspec.Struct, frozen=True):
    """A fact to be said: a tick's, or its goal."""

    schedule: str
    tick_s: int
    subject: str
    body: Any

    @property
    def is_goal(self) -> bool:
        return not isinstance(self.body, ScheduleTicked)


class Schedules:
    """All schedules' standings. Memory grows with schedules and their active runs."""

    def __init__(self, known: Mapping[str, Standing] | None = None) -> None:
        self._standings: dict[str, Standing] = dict(known or {})
        self._schedule_of = {run: name for name, one in self._standings.items() for run in one.active}
        self._position = 0
        self.floor_s = 0  # ticks up to here are decided, whether or not the stream still has their facts
        # Of this process only: ticks whose place was taken before their time, and which one comes next, so that it is
        # not asked each second.
        self._passed: dict[str, int] = {}
        self._next: dict[str, tuple[str, str, int, int | None]] = {}

    def known(self) -> dict[str, Standing]:
        """What the stream has said, to begin another one with."""
        return dict(self._standings)

    def apply(self, event: Event, active: Container[int]) -> bool:
        """Fold an event of `HEARD`, behind the engine, whose runs are `active`; whether to look what is due."""
        self._position = event.seq
        if event.kind == "goal.submitted":
            return self._submitted(event, active)
        if event.run:
            name = self._schedule_of.get(event.run)
            if name is None or event.run in active:
                return False
            del self._schedule_of[event.run]
            self._ended(name, event.run, event)
        elif event.kind == "schedule.ticked" and event.tail:
            name, _, tick = event.tail.partition(".")
            self._ticked(name, int(tick), event)
        return bool(event.tail or event.run)

    def _ticked(self, name: str, tick_s: int, event: Event) -> None:
        if tick_s > event.at_ns // NS_PER_S + EARLY_S:
            return
        before = self._standings.get(name, Standing())
        body = event.body
        owed = before.owed
        if (
            isinstance(body, ScheduleTicked)
            and body.outcome in ("ran", "late", "caught_up")
            and _can_be_said(body.goal)
        ):
            owed = {**owed, tick_s: body.goal}
        self._standings[name] = replace(before, decided_s=max(before.decided_s, tick_s), owed=owed)

    def _submitted(self, event: Event, active: Container[int]) -> bool:
        found = scheduled_by(event.tail) if event.tail else None
        if found is None:
            return False
        name, tick_s = found
        before = self._standings.get(name, Standing())
        owed = {tick: goal for tick, goal in before.owed.items() if tick != tick_s}
        self._standings[name] = replace(before, owed=owed, active={**before.active, event.seq: tick_s})
        if event.seq in active:
            self._schedule_of[event.seq] = name
        else:
            self._ended(name, event.seq, event)  # it was over as it began
        return True

    def _ended(self, name: str, run: int, event: Event) -> None:
        before = self._standings[name]
        still = {one: tick for one, tick in before.active.items() if one != run}
        ended = Ran(run, before.active[run], event.at_ns / NS_PER_S)
        self._standings[name] = replace(before, active=still, ended=ended)

    # -- deciding ------------------------------------------------------------------------------------------

    def decide(self, schedules: Mapping[str, Schedule], now_s: float, position: int) -> list[Saying]:
        """What is to be said now: goals that are owed, then ticks that are due, each schedule's in their order.

        Events up to `position` have been read. Whoever says these stops with a schedule at the first that was said
        before: what follows was decided without knowing it.
        """
        self._position = position
        facts: list[Saying] = []
        for name, standing in self._standings.items():
            for tick_s, goal in standing.owed.items():
                subject = goal_submitted(schedule_principal(name, tick_s))
                facts.append(Saying(name, tick_s, subject, goal))
        for name, schedule in schedules.items():
            if len(facts) >= FACTS_MAX:
                break
            facts += self._decide_one(name, schedule, now_s, FACTS_MAX - len(facts))
        return facts[:FACTS_MAX]

    def answered(self, saying: Saying, seq: int) -> None:
        """The stream's answer: the message `seq` lies on the subject, ours or somebody else's.

        Mostly it is still to be read, and says what is next. One that was read long ago, and changed nothing then, was
        said by a stranger before its time: the tick has no other fact, the goal no other run.
        """
        name = saying.schedule
        if seq > self._position:
            return
        if not saying.is_goal:
            self._passed[name] = max(saying.tick_s, self._passed.get(name, 0))
        elif saying.tick_s in (standing := self._standings[name]).owed:
            owed = {tick: goal for tick, goal in standing.owed.items() if tick != saying.tick_s}
            self._standings[name] = replace(standing, owed=owed)

    def _decide_one(self, name: str, schedule: Schedule, now_s: float, most: int) -> Iterator[Saying]:
        standing = self._standings.get(name, Standing())
        begin_s = max(schedule.since_s, standing.decided_s, self._passed.get(name, 0), self.floor_s)
        if self._nothing_since(schedule, begin_s, now_s):
            return
        busy = _busy(standing, schedule)
        # One more is looked at than may be said: whether a tick is the last of those that were missed.
        due = list(islice(ticks(schedule.cron, schedule.zone, begin_s, int(now_s)), most + 1))
        for tick_s, later_s in zip(due[:most], [*due[1:], None], strict=False):
            verdict = _verdict(schedule, standing, tick_s, later_s, busy, now_s)
            if verdict is None:
                return
            outcome, reason = verdict
            runs = outcome in ("ran", "late", "caught_up")
            body = ScheduleTicked(
                due=rfc3339(tick_s * NS_PER_S),
                outcome=outcome,
                reason=reason,
                schedule_version=schedule.version,
                zone=schedule.zone,
                local=wall_text(tick_s, schedule.zone),
                goal=schedule.goal if runs else None,
            )
            yield Saying(name, tick_s, schedule_ticked(name, tick_s), body)
            if runs:
                busy = f"the run of {body.local} is about to begin"

    def _nothing_since(self, schedule: Schedule, begin_s: int, now_s: float) -> bool:
        """Whether no tick is due; asked each second of each schedule, so the next one is remembered."""
        known = self._next.get(schedule.name)
        if known is None or known[:3] != (schedule.cron, schedule.zone, begin_s):
            known = (schedule.cron, schedule.zone, begin_s, next_tick(schedule.cron, schedule.zone, begin_s))
            self._next[schedule.name] = known
        return known[3] is None or known[3] > now_s


def _can_be_said(goal: dict[str, Any] | None) -> TypeGuard[dict[str, Any]]:
    """Whether a tick's goal is owed: one that no planner takes, a stranger's, would be said again for ever."""
    return goal is not None and len(encode(goal)) <= GOAL_BYTES_MAX


def _busy(standing: Standing, schedule: Schedule) -> str:
    """Which run of the schedule is not over, for a person; "" when none is."""
    for run, tick_s in standing.active.items():
        return f"run {run} of {wall_text(tick_s, schedule.zone)} is still active"
    for tick_s in standing.owed:
        return f"the run of {wall_text(tick_s, schedule.zone)} is about to begin"
    return ""


def _verdict(
    schedule: Schedule, standing: Standing, tick_s: int, later_s: int | None, busy: str, now_s: float
) -> tuple[Outcome, str] | None:
    """Outcome and reason of a due tick, whose earlier ones are decided; None while it has to wait."""
    if schedule.paused:
        return "skipped", "the schedule is paused"
    if tick_s <= schedule.resumed_s:
        return "skipped", "the schedule was paused"
    too_old = now_s - tick_s > schedule.catch_up_window_s
    if busy and schedule.overlap == "queue":
        return ("skipped", f"it waited for longer than the catch-up window; {busy}") if too_old else None
    ended = standing.ended
    waited = ended if schedule.overlap == "queue" and ended and ended.tick_s < tick_s < ended.ended_s else None
    age_s = now_s - max(tick_s, waited.ended_s if waited else 0)
    if age_s > LATE_S:
        if schedule.catch_up == "none":
            return "skipped", "it was missed, and catch-up is none"
        if schedule.catch_up == "all" and too_old:
            return "skipped", "it was missed, and is older than the catch-up window"
        if busy and schedule.overlap == "skip":
            # With `all` none is lost, and with `skip` no two run at once: they are made up one after the other.
            return None if schedule.catch_up == "all" else ("skipped", f"it was missed, and {busy}")
        if schedule.catch_up == "last" and later_s is not None:
            return "coalesced", "it was missed, and a later tick is due, too"
        return "caught_up", f"it was missed, and made up {_span(now_s - tick_s)} after its time"
    if busy and schedule.overlap == "skip":
        return "skipped", busy
    if waited:
        return "late", f"it waited for run {waited.run} of {wall_text(waited.tick_s, schedule.zone)}"
    if age_s > PUNCTUAL_S:
        return "late", f"decided {_span(age_s)} after its time"
    return "ran", ""


def _span(seconds: float) -> str:
    whole = int(seconds)
    if whole < 120:
        return f"{whole} s"
    return f"{whole // 60} min" if whole < 7200 else f"{whole // 3600} h"

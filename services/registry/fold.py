"""Events into rows: pure, in batches, the meaning taken from `shared.run.evolve` and nowhere else.

A batch holds one row for each event, and for each run that it changed the run's rows as they stand at its end. Plans,
ended attempts, calls, artifacts and ticks are rows that never change: each is written once, with the event that it
follows from. Runs that have ended are forgotten: memory grows with active runs only.
"""

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import msgspec

from shared.clock import seconds_between
from shared.events import Artifact, Event, LlmCalled, ScheduleTicked, Unreadable, read
from shared.plan import read_goal
from shared.run import Early, Run, begin, evolve, refusal
from shared.showing import asked, waits_until_ns
from shared.status import RUN_ENDS

BODY_CHARS_MAX_UNREADABLE = 4096
GOAL_CACHED_BYTES_MAX = 4096

# The columns of each table, in the order in which rows are made.
EVENTS = (
    "seq", "said_at", "subject", "kind", "run", "step", "attempt", "size_bytes", "applied", "note", "unreadable",
    "body",
)  # fmt: skip
RUNS = (
    "run", "principal", "goal", "tasks", "directive", "status", "reason", "plan_hash", "submitted_at", "started_at",
    "ended_at", "duration_s", "steps_total", "input_tokens", "output_tokens", "unknown_calls", "playbook", "retry_of",
    "stop_reason",
)  # fmt: skip
PLANS = (
    "run", "plan_hash", "directive", "playbook", "playbook_version", "catalogue_version", "rules_version",
    "steps_total", "max_steps", "time_budget_s", "token_budget", "retry_of", "planned_at",
)  # fmt: skip
STEPS = (
    "run", "place", "step", "kind", "task", "status", "attempts", "host", "dispatched_at", "ended_at", "duration_s",
    "error", "message", "cause", "reused_from", "waits_until",
)  # fmt: skip
ENDED_ATTEMPTS = (
    "run", "step", "attempt", "task", "host", "dispatched_at", "ended_at", "duration_s", "outcome", "error",
)  # fmt: skip
APPROVALS = (
    "run", "place", "step", "what", "plan_hash", "status", "is_open", "requested_at", "expires_at", "decided_at",
    "approvers", "approvals_needed", "approved_by", "rejected_by", "requester", "reason",
)  # fmt: skip
ARTIFACTS = ("run", "step", "name", "sha256", "size_bytes", "media_type", "from_run")
LLM_CALLS = (
    "seq", "said_at", "run", "step", "call", "attempt", "directive", "task", "request_model", "response_model",
    "input_tokens", "output_tokens", "cached_tokens", "reasoning_tokens", "duration_s", "outcome",
)  # fmt: skip
TICKED = ("seq", "said_at", "schedule", "tick", "due_at", "outcome", "reason", "schedule_version", "zone")

# After these an attempt may be over; the fold's states say which.
_MAY_END_ATTEMPTS = frozenset(
    ("step.completed", "step.failed", "step.cancelled", "step.dispatched", "timer.fired", "run.completed")
)

Columns = dict[str, Sequence[Any]]


class _Asked(NamedTuple):
    """What the goal of a run says: its words, its tasks, its directive, its playbook, the run to repeat."""

    goal: str | None = None
    tasks: list[str] | None = None
    directive: str | None = None
    playbook: str | None = None
    retry_of: int | None = None


_NOTHING_ASKED = _Asked()


class Batch(msgspec.Struct):
    """Rows as columns. `rewritten` are the runs whose rows of an earlier batch these replace, `asked_again` those of
    them that have questions.
    """

    position: int
    events: Columns
    runs: Columns
    plans: Columns
    steps: Columns
    ended_attempts: Columns
    approvals: Columns
    artifacts: Columns
    llm_calls: Columns
    ticked: Columns
    rewritten: list[int]
    asked_again: list[int]


class Fold:
    """Takes messages in stream order, gives batches."""

    def __init__(self) -> None:
        self.position = 0
        self._runs: dict[int, Run] = {}
        self._goals: dict[int, _Asked] = {}
        self._stored: set[int] = set()  # active runs that have rows already
        self._changed: dict[int, Run] = {}
        self._early = Early()
        self._begin_batch()

    def _begin_batch(self) -> None:
        # Of each table the rows in one list, value by value: no row is an object that has to be made and looked at.
        self._events: list[Any] = []
        self._plans: list[Any] = []
        self._ended_attempts: list[Any] = []
        self._artifacts: list[Any] = []
        self._llm_calls: list[Any] = []
        self._ticked: list[Any] = []

    def __len__(self) -> int:
        """Events in the batch so far."""
        return len(self._events) // len(EVENTS)

    @property
    def active(self) -> int:
        return len(self._runs)

    def restore(self, subject: str, seq: int, at_us: int, data: bytes, unreadable: str | None) -> None:
        """Fold one event of a run that is active in the tables, without writing it again.

        What was unreadable is so still, whatever was kept of its bytes.
        """
        event = read(subject, seq, at_us * 1000, data)
        if unreadable is not None:
            event.body = Unreadable(unreadable)
        run = self._apply(event, data)[1]
        if run is not None:
            self._stored.add(run.id)

    def restored(self, position: int) -> None:
        self.position = position
        self._changed.clear()

    def add(self, subject: str, seq: int, at_ns: int, data: bytes) -> None:
        """Fold one message of the stream and keep its row."""
        at_us = at_ns // 1000  # the tables' precision; the fold sees the same stamps now and after a restart
        event = read(subject, seq, at_us * 1000, data)
        before, after, note = self._apply(event, data)
        self.position = seq
        kind = event.kind
        if type(event.body) is Unreadable:
            unreadable, kept, once = event.body.reason, _cut_text(data), None
        else:
            unreadable, kept, once = None, data if kind != "goal.submitted" else _text(data), _ONCE.get(kind)
        if not note:
            if kind in _MAY_END_ATTEMPTS and before is not None and after is not None:
                self._end_attempts(before, after, event)
            if once is not None:
                once(self, event, after, at_us)
        self._events += (
            seq, at_us, subject, kind, event.run or None, event.step or None, event.attempt or None, len(data),
            not note, note or None, unreadable, kept,
        )  # fmt: skip

    def take(self) -> Batch:
        """The batch so far; a new one begins."""
        runs: list[Any] = []
        steps: list[Any] = []
        approvals: list[Any] = []
        rewritten: list[int] = []
        asked_again: list[int] = []
        for run in self._changed.values():
            if run.id in self._stored:
                rewritten.append(run.id)
            self._row(run, runs, steps)
            if run.approvals:  # few runs ask anybody; the others pay nothing for it
                if run.id in self._stored:
                    asked_again.append(run.id)
                _asked_rows(run, approvals)
            if run.ended:
                self._stored.discard(run.id)
                self._goals.pop(run.id, None)
            else:
                self._stored.add(run.id)
        batch = Batch(
            position=self.position,
            events=_columns(EVENTS, self._events),
            runs=_columns(RUNS, runs),
            plans=_columns(PLANS, self._plans),
            steps=_columns(STEPS, steps),
            ended_attempts=_columns(ENDED_ATTEMPTS, self._ended_attempts),
            approvals=_columns(APPROVALS, approvals),
            artifacts=_columns(ARTIFACTS, self._artifacts),
            llm_calls=_columns(LLM_CALLS, self._llm_calls),
            ticked=_columns(TICKED, self._ticked),
            rewritten=rewritten,
            asked_again=asked_again,
        )
        self._changed = {}
        self._begin_batch()
        return batch

    def _apply(self, event: Event, data: bytes) -> tuple[Run | None, Run | None, str]:
        """The run before and after the event, and why it changed nothing ("" when it did)."""
        if event.kind == "goal.submitted":
            before, after = None, begin(event, self._early.take(event.seq))
            self._goals[after.id] = _asked(data) if len(data) <= GOAL_CACHED_BYTES_MAX else _new_asked(data)
        else:
            before = self._runs.get(event.run)
            if before is None:
                if event.run >= event.seq:
                    self._early.note(event)
                if isinstance(event.body, Unreadable):
                    return None, None, event.body.reason
                if event.run == 0:
                    return None, None, ""  # a schedule's: it belongs to no run
                return None, None, "the run has ended, or never was"
            after = evolve(before, event)
            if after is before:
                return before, before, refusal(before, event)
        self._changed[after.id] = after
        if after.status in RUN_ENDS:
            self._runs.pop(after.id, None)
        else:
            self._runs[after.id] = after
        return before, after, ""

    def _planned(self, event: Event, run: Run, at_us: int) -> None:
        for step, left in event.body.reused.items():
            self._kept(event.run, step, left.artifacts)
        plan = run.plan
        assert plan is not None  # it was accepted
        budgets = plan.budgets
        values = (
            run.id,
            plan.plan_hash,
            plan.directive.name,
            plan.playbook,
            plan.playbook_version,
            plan.catalogue_version,
            plan.rules_version,
            len(plan.steps),
            budgets.max_steps,
            budgets.time_budget_s,
            budgets.token_budget,
            plan.retry_of,
            at_us,
        )  # fmt: skip
        self._plans += values

    def _end_attempts(self, before: Run, after: Run, event: Event) -> None:
        """A row for each attempt that ran before the event and does not behind it, or that this dispatch lost."""
        if before.steps is after.steps:
            return
        for step in (event.step,) if event.step else before.steps:
            was, now = before.steps[step], after.steps[step]
            if was is now or now.status == "running":
                continue
            if was.status == "running":
                attempt, dispatched_ns = was.attempt, was.dispatched_ns
            elif now.attempt > was.attempt:
                attempt, dispatched_ns = now.attempt, 0
            else:
                continue
            outcome = "failed" if now.status == "pending" else now.status  # it rests, and is tried again
            values = (
                after.id,
                step,
                attempt,
                after.step_plan(step).task,
                now.host,
                _us(dispatched_ns),
                event.at_ns // 1000,
                seconds_between(dispatched_ns, event.at_ns),
                outcome,
                now.error or None,
            )  # fmt: skip
            self._ended_attempts += values

    def _tick(self, event: Event, run: None, at_us: int) -> None:
        body: ScheduleTicked = event.body
        schedule, _, tick = event.tail.partition(".")
        tick_s = int(tick)
        values = (
            event.seq,
            at_us,
            schedule,
            tick_s,
            tick_s * 1_000_000,
            body.outcome,
            body.reason or None,
            body.schedule_version,
            body.zone,
        )  # fmt: skip
        self._ticked += values

    def _completed(self, event: Event, run: Run, at_us: int) -> None:
        if event.body.artifacts:
            self._kept(event.run, event.step, event.body.artifacts)

    def _kept(self, run: int, step: str, artifacts: list[Artifact]) -> None:
        for one in artifacts:
            self._artifacts += (run, step, one.name, one.sha256, one.size_bytes, one.media_type, one.from_run)

    def _called(self, event: Event, run: Run, at_us: int) -> None:
        call: LlmCalled = event.body
        assert run.plan is not None  # a call counts only while its step runs
        values = (
            event.seq,
            at_us,
            event.run,
            event.step,
            event.tail,
            run.steps[event.step].attempt,
            run.plan.directive.name,
            run.step_plan(event.step).task,
            call.request_model,
            call.response_model,
            call.input_tokens,
            call.output_tokens,
            call.cached_tokens,
            call.reasoning_tokens,
            call.duration_s,
            call.outcome,
        )  # fmt: skip
        self._llm_calls += values

    def _row(self, run: Run, runs: list[Any], steps: list[Any]) -> None:
        goal, tasks, directive, playbook, retry_of = self._goals.get(run.id, _NOTHING_ASKED)
        plan = run.plan
        if plan is not None:  # what was made of it, which words may have chosen
            directive, playbook, retry_of = plan.directive.name, plan.playbook, plan.retry_of
        runs += (
            run.id, run.principal or None, goal, tasks, directive, run.status,
            run.reason or None, plan.plan_hash if plan else None, run.submitted_ns // 1000, _us(run.started_ns),
            _us(run.ended_ns), seconds_between(run.started_ns, run.ended_ns), len(run.steps), run.tokens.input,
            run.tokens.output, run.tokens.unknown_calls, playbook, retry_of, run.stop.reason if run.stop else None,
        )  # fmt: skip
        for place, step in enumerate(plan.steps if plan else ()):
            state = run.steps[step.id]
            steps += (
                run.id, place, step.id, step.kind, step.task, state.status, state.attempt, state.host,
                _us(state.dispatched_ns), _us(state.ended_ns), seconds_between(state.dispatched_ns, state.ended_ns),
                state.error or None, state.message or None, state.cause or None, state.reused_from or None,
                None if state.ended_ns else _us(waits_until_ns(run, step.id, state)),
            )  # fmt: skip


# The rows that an accepted event leaves for ever, by its kind: what is called with it, its run (a schedule's has none)
# and its stamp.
_ONCE: dict[str, Callable[[Fold, Event, Any, int], None]] = {
    "plan.created": Fold._planned,
    "step.completed": Fold._completed,
    "llm.called": Fold._called,
    "schedule.ticked": Fold._tick,
}


def _columns(names: tuple[str, ...], values: list[Any]) -> Columns:
    assert len(values) % len(names) == 0, names
    return {name: values[at :: len(names)] for at, name in enumerate(names)}


def _asked_rows(run: Run, approvals: list[Any]) -> None:
    for one in asked(run):
        approvals += (
            one.run, one.place, one.step, one.what, one.plan_hash, one.status, one.is_open, one.requested_ns // 1000,
            one.expires_ns // 1000, _us(one.decided_ns), one.approvers, one.approvals_needed, one.approved_by,
            one.rejected_by, one.requester, one.reason,
        )  # fmt: skip


def _new_asked(data: bytes) -> _Asked:
    """What a goal asks for, as far as it is one."""
    goal, _ = read_goal(data)
    return _Asked(goal.goal, goal.tasks, goal.directive, goal.playbook, goal.retry_of) if goal else _NOTHING_ASKED


# Who asks again says the same bytes; the list of tasks is shared and never changed.
_asked = lru_cache(maxsize=512)(_new_asked)


def _us(at_ns: int) -> int | None:
    return at_ns // 1000 if at_ns else None


def _text(data: bytes) -> bytes | None:
    """A goal's payload, when it is text; every other event that could be read is."""
    if data.isascii():
        return data
    try:
        data.decode()
    except UnicodeDecodeError:
        return None
    return data


def _cut_text(data: bytes) -> bytes | None:
    """What is kept of an unreadable payload: its first characters, when it is text."""
    if _text(data) is None or len(data) <= BODY_CHARS_MAX_UNREADABLE:
        return _text(data)
    return data.decode()[:BODY_CHARS_MAX_UNREADABLE].encode()

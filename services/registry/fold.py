"""Events into rows: pure, in batches, the meaning taken from `shared.run.evolve` and nowhere else.

A batch holds one row for each event, and for each run that it changed the run's rows as they stand at its end. Runs
that have ended are forgotten: memory grows with active runs only.
"""

from typing import Any

import msgspec

from shared.events import Artifact, Event, LlmCalled, Unreadable, read
from shared.plan import read_goal
from shared.run import Early, Run, begin, evolve, refusal
from shared.showing import asked, waits_until_ns

BODY_CHARS_MAX_UNREADABLE = 4096

EVENTS = (
    "seq",
    "said_at",
    "subject",
    "kind",
    "run",
    "step",
    "attempt",
    "size_bytes",
    "applied",
    "note",
    "unreadable",
    "body",
)
RUNS = (
    "run", "principal", "goal", "tasks", "directive", "status", "reason", "plan_hash", "submitted_at", "started_at",
    "ended_at", "duration_s", "steps_total", "input_tokens", "output_tokens", "unknown_calls", "playbook", "retry_of",
    "stop_reason",
)  # fmt: skip
STEPS = (
    "run", "place", "step", "kind", "task", "status", "attempts", "host", "dispatched_at", "ended_at", "duration_s",
    "error", "message", "cause", "reused_from", "waits_until",
)  # fmt: skip
APPROVALS = (
    "run", "place", "step", "what", "plan_hash", "status", "is_open", "requested_at", "expires_at", "decided_at",
    "approvers", "approvals_needed", "approved_by", "rejected_by", "requester", "reason",
)  # fmt: skip
ARTIFACTS = ("run", "step", "name", "sha256", "size_bytes", "media_type", "from_run")
LLM_CALLS = (
    "seq", "said_at", "run", "step", "call", "request_model", "response_model", "input_tokens", "output_tokens",
    "cached_tokens", "reasoning_tokens", "duration_s", "outcome",
)  # fmt: skip

Columns = dict[str, list[Any]]


class Batch(msgspec.Struct):
    """Rows as columns. `rewritten` are the runs whose rows of an earlier batch these replace, `asked_again` those of
    them that have questions.
    """

    position: int
    events: Columns
    runs: Columns
    steps: Columns
    approvals: Columns
    artifacts: Columns
    llm_calls: Columns
    rewritten: list[int]
    asked_again: list[int]


class Fold:
    """Takes messages in stream order, gives batches."""

    def __init__(self) -> None:
        self.position = 0
        self._runs: dict[int, Run] = {}
        self._goals: dict[int, tuple[str | None, list[str] | None, str | None]] = {}
        self._stored: set[int] = set()  # active runs that have rows already
        self._changed: dict[int, Run] = {}
        self._early = Early()
        self._begin_batch()

    def _begin_batch(self) -> None:
        self._events: Columns = {name: [] for name in EVENTS}
        self._artifacts: Columns = {name: [] for name in ARTIFACTS}
        self._llm_calls: Columns = {name: [] for name in LLM_CALLS}
        columns = self._events
        self._add_event = tuple(columns[name].append for name in EVENTS)

    def __len__(self) -> int:
        """Events in the batch so far."""
        return len(self._events["seq"])

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
        run = self._apply(event, data)[0]
        if run is not None:
            self._stored.add(run.id)

    def restored(self, position: int) -> None:
        self.position = position
        self._changed.clear()

    def add(self, subject: str, seq: int, at_ns: int, data: bytes) -> None:
        """Fold one message of the stream and keep its row."""
        at_us = at_ns // 1000  # the tables' precision; the fold sees the same stamps now and after a restart
        event = read(subject, seq, at_us * 1000, data)
        run, note = self._apply(event, data)
        self.position = seq
        body = event.body
        if not note and not isinstance(body, Unreadable):
            if event.kind == "llm.called":
                self._called(event, at_us)
            elif event.kind == "step.completed" and run is not None:
                self._kept(event.run, event.step, event.body.artifacts)
            elif event.kind == "plan.created":
                for step, left in event.body.reused.items():
                    self._kept(event.run, step, left.artifacts)
        seqs, ats, subjects, kinds, runs, steps, attempts, sizes, applied, notes, unreadable, bodies = self._add_event
        seqs(seq)
        ats(at_us)
        subjects(subject)
        kinds(event.kind)
        runs(event.run or None)
        steps(event.step or None)
        attempts(event.attempt or None)
        sizes(len(data))
        applied(not note)
        notes(note or None)
        unreadable(body.reason if isinstance(body, Unreadable) else None)
        bodies(_text(data, cut=isinstance(body, Unreadable)))

    def take(self) -> Batch:
        """The batch so far; a new one begins."""
        runs: Columns = {name: [] for name in RUNS}
        steps: Columns = {name: [] for name in STEPS}
        approvals: Columns = {name: [] for name in APPROVALS}
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
            events=self._events,
            runs=runs,
            steps=steps,
            approvals=approvals,
            artifacts=self._artifacts,
            llm_calls=self._llm_calls,
            rewritten=rewritten,
            asked_again=asked_again,
        )
        self._changed = {}
        self._begin_batch()
        return batch

    def _apply(self, event: Event, data: bytes) -> tuple[Run | None, str]:
        """The run after the event, and why it changed nothing ("" when it did)."""
        if event.kind == "goal.submitted":
            after = begin(event, self._early.take(event.seq))
            self._goals[after.id] = _asked(data)
        else:
            run = self._runs.get(event.run)
            if run is None:
                if event.run >= event.seq:
                    self._early.note(event)
                if isinstance(event.body, Unreadable):
                    return None, event.body.reason
                if event.run == 0:
                    return None, ""  # a schedule's: it belongs to no run
                return None, "the run has ended, or never was"
            after = evolve(run, event)
            if after is run:
                return run, refusal(run, event)
        self._changed[after.id] = after
        if after.ended:
            self._runs.pop(after.id, None)
        else:
            self._runs[after.id] = after
        return after, ""

    def _kept(self, run: int, step: str, artifacts: list[Artifact]) -> None:
        columns = self._artifacts
        for one in artifacts:
            values = (run, step, one.name, one.sha256, one.size_bytes, one.media_type, one.from_run)
            for name, value in zip(ARTIFACTS, values, strict=True):
                columns[name].append(value)

    def _called(self, event: Event, at_us: int) -> None:
        call: LlmCalled = event.body
        values = (
            event.seq, at_us, event.run, event.step, event.tail, call.request_model, call.response_model,
            call.input_tokens, call.output_tokens, call.cached_tokens, call.reasoning_tokens, call.duration_s,
            call.outcome,
        )  # fmt: skip
        for name, value in zip(LLM_CALLS, values, strict=True):
            self._llm_calls[name].append(value)

    def _row(self, run: Run, runs: Columns, steps: Columns) -> None:
        goal, tasks, directive = self._goals.get(run.id, (None, None, None))
        plan = run.plan
        values = (
            run.id, run.principal or None, goal, tasks, plan.directive.name if plan else directive, run.status,
            run.reason or None, plan.plan_hash if plan else None, run.submitted_ns // 1000, _us(run.started_ns),
            _us(run.ended_ns), _seconds(run.started_ns, run.ended_ns), len(run.steps), run.tokens.input,
            run.tokens.output, run.tokens.unknown_calls, plan.playbook if plan else None,
            plan.retry_of if plan else None, run.stop.reason if run.stop else None,
        )  # fmt: skip
        for name, value in zip(RUNS, values, strict=True):
            runs[name].append(value)
        for place, step in enumerate(plan.steps if plan else ()):
            state = run.steps[step.id]
            row = (
                run.id, place, step.id, step.kind, step.task, state.status, state.attempt, state.host,
                _us(state.dispatched_ns), _us(state.ended_ns), _seconds(state.dispatched_ns, state.ended_ns),
                state.error or None, state.message or None, state.cause or None, state.reused_from or None,
                None if state.ended_ns else _us(waits_until_ns(run, step.id, state)),
            )  # fmt: skip
            for name, value in zip(STEPS, row, strict=True):
                steps[name].append(value)


def _asked_rows(run: Run, approvals: Columns) -> None:
    for one in asked(run):
        values = (
            one.run, one.place, one.step, one.what, one.plan_hash, one.status, one.is_open, one.requested_ns // 1000,
            one.expires_ns // 1000, _us(one.decided_ns), one.approvers, one.approvals_needed, one.approved_by,
            one.rejected_by, one.requester, one.reason,
        )  # fmt: skip
        for name, value in zip(APPROVALS, values, strict=True):
            approvals[name].append(value)


def _asked(data: bytes) -> tuple[str | None, list[str] | None, str | None]:
    """Goal text, task names and directive of a goal, as far as it is one."""
    goal, _ = read_goal(data)
    return (goal.goal, goal.tasks, goal.directive) if goal else (None, None, None)


def _us(at_ns: int) -> int | None:
    return at_ns // 1000 if at_ns else None


def _seconds(from_ns: int, to_ns: int) -> float | None:
    return (to_ns - from_ns) // 1000 / 1_000_000 if from_ns and to_ns else None


def _text(data: bytes, *, cut: bool) -> str | None:
    try:
        text = data.decode()
    except UnicodeDecodeError:
        return None
    return text[:BODY_CHARS_MAX_UNREADABLE] if cut else text

"""The fold: what an event means for its run. `evolve(run, event) -> run` is the only place where that is written.

Theory of operation. `LEGAL` says in which states of a run an event may be applied; a function of the same name as
the event says what it changes. An event that is not legal, names another attempt, or cannot be read changes
nothing: `evolve` then returns the very object that it was given, and `refusal` says why. State is immutable, so a
fold can be compared with itself at any prefix of the stream.

The executor decides from this, the registry writes its rows from it, CLI and gateway show it.
"""

from collections.abc import Callable, Mapping
from typing import Any

import msgspec
from msgspec.structs import replace

from shared.clock import NS_PER_S
from shared.events import (
    Artifact,
    Event,
    GoalRejected,
    LlmCalled,
    PlanCreated,
    RunCompleted,
    StepCompleted,
    StepFailed,
    StepSkipped,
    Tokens,
    Unreadable,
)
from shared.plan import Step
from shared.status import RUN_ENDS, STEP_ENDS, RunStatus, StepStatus


class StepState(msgspec.Struct, frozen=True):
    """Where one step stands. Stamps are nanoseconds of the stream; `attempt` counts those dispatched."""

    status: StepStatus = "pending"
    attempt: int = 0
    dispatched_ns: int = 0
    ended_ns: int = 0
    error: str = ""
    message: str = ""
    host: str | None = None
    outputs: dict[str, Any] = {}
    artifacts: list[Artifact] = []
    grant: int = 0  # tokens that the running attempt may spend
    spent: int = 0  # of its grant, as reported, or all of it when a call's usage was not
    taken: int = 0  # an attempt whose dispatch cannot be said any more, because a stranger has


class Run(msgspec.Struct, frozen=True):
    """One run as its events say. `at_ns` is the stamp of the last event that was applied."""

    id: int
    submitted_ns: int
    at_ns: int
    principal: str = ""
    status: RunStatus = "pending"
    reason: str = ""
    plan: PlanCreated | None = None
    steps: dict[str, StepState] = {}
    started_ns: int = 0
    ended_ns: int = 0
    tokens: Tokens = Tokens()
    charged: int = 0  # tokens that count against the budget: what was reported, and grants that nobody accounted for
    # Flags that a decision follows from.
    timed_out: bool = False
    broken: str = ""

    @property
    def ended(self) -> bool:
        return self.status in RUN_ENDS

    @property
    def deadline_ns(self) -> int:
        """When the time budget is over; 0 before the run has started."""
        if self.plan is None or not self.started_ns:
            return 0
        return self.started_ns + self.plan.budgets.time_budget_s * NS_PER_S

    def step_plan(self, step: str) -> Step:
        assert self.plan is not None
        return next(one for one in self.plan.steps if one.id == step)


EARLY_MAX = 10_000

_PENDING = frozenset({"pending"})
_WAITING = frozenset({"pending", "queued"})
_RUNNING = frozenset({"running"})
_OPEN = frozenset({"pending", "queued", "running"})

LEGAL: dict[str, frozenset[str]] = {
    "goal.rejected": _PENDING,
    "plan.created": _PENDING,
    "run.queued": _PENDING,
    "run.started": _WAITING,
    "step.dispatched": _OPEN,
    "step.completed": _RUNNING,
    "step.failed": _RUNNING,
    "step.skipped": _RUNNING,
    "llm.called": _RUNNING,
    "timer.fired": _RUNNING,
    "run.completed": _OPEN,
}


class Early:
    """What lies on subjects of runs that have no goal yet: their own messages will be refused there for ever.

    Only a stranger says such things. The run then ends as soon as it begins, instead of waiting for a fact that can
    never be said. A fold keeps one of these; it forgets what the stream has passed.
    """

    def __init__(self, known: Mapping[int, str] | None = None) -> None:
        self._taken: dict[int, str] = dict(known or {})

    def known(self) -> dict[int, str]:
        """What is remembered, by run; to begin another one with."""
        return dict(self._taken)

    def note(self, event: Event) -> None:
        """Remember the message; when there are too many, those for the farthest runs are let go."""
        if event.kind == "run.completed" or event.run not in self._taken:
            self._taken[event.run] = event.kind
        if len(self._taken) > EARLY_MAX:
            del self._taken[max(self._taken)]

    def take(self, run: int) -> str:
        """The kind of what was said before its time, run.completed before all; "" when nothing was."""
        return self._taken.pop(run, "") if self._taken else ""


def begin(event: Event, taken: str = "") -> Run:
    """The run that `goal.submitted` begins; its id is the message's sequence. `taken` is what `Early` knows of it."""
    run = Run(id=event.seq, submitted_ns=event.at_ns, at_ns=event.at_ns, principal=event.tail)
    if not taken:
        return run
    reason = f"{taken} was said before the goal"
    if taken == "run.completed":
        return replace(run, status="failed", reason=reason, ended_ns=event.at_ns)
    return replace(run, broken=reason)


def evolve(run: Run, event: Event) -> Run:
    """The run after `event`, or the same object when the event changes nothing."""
    if run.status not in LEGAL.get(event.kind, ()):
        return run
    return _APPLY[event.kind](run, event)


def refusal(run: Run, event: Event) -> str:
    """Why `evolve` left the run as it was, for a person."""
    if event.kind not in LEGAL:
        return "no event of Remit"
    if run.status not in LEGAL[event.kind]:
        return f"a run that is {run.status} takes no {event.kind}"
    if isinstance(event.body, Unreadable):
        return event.body.reason
    if event.step and event.step not in run.steps:
        return f"the plan has no step {event.step}"
    if event.step:
        state = run.steps[event.step]
        return f"step {event.step} is {state.status} at attempt {state.attempt}"
    return "it repeats what is known"


def _rejected(run: Run, event: Event) -> Run:
    body = event.body
    if run.plan is not None:
        return run
    if isinstance(body, GoalRejected):
        reason = f"{body.field}: {body.reason}" if body.field else body.reason
    else:
        reason = "goal.rejected holds another message"
    return replace(run, status="rejected", reason=reason, at_ns=event.at_ns, ended_ns=event.at_ns)


def _planned(run: Run, event: Event) -> Run:
    if run.plan is not None or run.broken:
        return run
    if isinstance(event.body, Unreadable):
        # The planner can never say its plan here: the run has to end, and `decide` ends it.
        return replace(run, broken="plan.created holds another message", at_ns=event.at_ns)
    plan: PlanCreated = event.body
    return replace(run, plan=plan, steps={step.id: _NEW_STEP for step in plan.steps}, at_ns=event.at_ns)


def _queued(run: Run, event: Event) -> Run:
    if run.plan is None or isinstance(event.body, Unreadable):
        return run
    return replace(run, status="queued", at_ns=event.at_ns)


def _started(run: Run, event: Event) -> Run:
    if run.broken:
        return run
    if run.plan is None:
        return replace(run, broken="run.started was said before the plan", at_ns=event.at_ns)
    if isinstance(event.body, Unreadable):
        return replace(run, broken="run.started holds another message", at_ns=event.at_ns)
    return replace(run, status="running", at_ns=event.at_ns, started_ns=event.at_ns)


def _dispatched(run: Run, event: Event) -> Run:
    state = run.steps.get(event.step)
    if state is None or run.timed_out or event.attempt != state.attempt + 1:
        return run
    step = run.step_plan(event.step)
    if event.tail != step.task:
        return run  # the executor's own subject names the plan's task and is still free
    if state.status == "running" and not state.taken:
        state = replace(state, taken=event.attempt)
        return replace(run, steps={**run.steps, event.step: state}, at_ns=event.at_ns)
    if state.status != "pending":
        return run
    # What holds the attempt's subject and is no dispatch in its time: the attempt is lost, the next has its own.
    if isinstance(event.body, Unreadable):
        return _attempt_lost(run, event, state, "unreadable_dispatch", event.body.reason, retryable=True)
    if run.status != "running" or any(run.steps[need].status not in STEP_ENDS for need in step.needs):
        return _attempt_lost(run, event, state, "early_dispatch", "dispatched before its time", retryable=True)
    state = StepState(
        status="running", attempt=event.attempt, dispatched_ns=event.at_ns, grant=max(0, event.body.token_grant)
    )
    return replace(run, steps={**run.steps, event.step: state}, at_ns=event.at_ns)


def _completed(run: Run, event: Event) -> Run:
    state = run.steps.get(event.step)
    if state is None or state.status != "running" or event.attempt != state.attempt:
        return run
    if isinstance(event.body, Unreadable):
        return _attempt_lost(run, event, state, "unreadable_result", event.body.reason, retryable=True)
    body: StepCompleted = event.body
    state = StepState(
        status="succeeded",
        attempt=state.attempt,
        dispatched_ns=state.dispatched_ns,
        ended_ns=event.at_ns,
        host=body.host,
        outputs=body.outputs,
        artifacts=body.artifacts,
    )
    return replace(run, steps={**run.steps, event.step: state}, at_ns=event.at_ns)


def _failed(run: Run, event: Event) -> Run:
    state = run.steps.get(event.step)
    if state is None or state.status != "running" or event.attempt != state.attempt:
        return run
    if isinstance(event.body, Unreadable):
        return _attempt_lost(run, event, state, "unreadable_result", event.body.reason, retryable=True)
    body: StepFailed = event.body
    return _attempt_lost(run, event, state, body.error, body.message, retryable=body.retryable, host=body.host)


def _attempt_lost(
    run: Run, event: Event, state: StepState, error: str, message: str, *, retryable: bool, host: str | None = None
) -> Run:
    attempt = max(event.attempt, state.taken)
    again = retryable and not run.timed_out and attempt < run.step_plan(event.step).max_attempts
    state = StepState(
        status="pending" if again else "failed",
        attempt=attempt,
        dispatched_ns=state.dispatched_ns,
        ended_ns=0 if again else event.at_ns,
        error=error,
        message=message,
        host=host,
    )
    return replace(run, steps={**run.steps, event.step: state}, at_ns=event.at_ns)


def _skipped(run: Run, event: Event) -> Run:
    state = run.steps.get(event.step)
    if state is None or state.status != "pending":
        return run
    # Unreadable: it can never be said here that the step is skipped, so the message has to stand for it.
    body = event.body
    reason = body.reason if isinstance(body, StepSkipped) else "step.skipped holds another message"
    state = replace(state, status="skipped", ended_ns=event.at_ns, message=reason)
    return replace(run, steps={**run.steps, event.step: state}, at_ns=event.at_ns)


def _called(run: Run, event: Event) -> Run:
    """A call counts while its step runs. Unknown usage is charged as the whole grant, never as zero."""
    state = run.steps.get(event.step)
    if state is None or state.status != "running" or isinstance(event.body, Unreadable):
        return run
    body: LlmCalled = event.body
    unknown = body.input_tokens is None or body.output_tokens is None
    used = (body.input_tokens or 0) + (body.output_tokens or 0)
    charge = max(used, state.grant - state.spent) if unknown else used
    tokens = Tokens(
        input=run.tokens.input + (body.input_tokens or 0),
        output=run.tokens.output + (body.output_tokens or 0),
        unknown_calls=run.tokens.unknown_calls + unknown,
    )
    steps = {**run.steps, event.step: replace(state, spent=state.spent + charge)}
    return replace(run, tokens=tokens, steps=steps, charged=run.charged + charge, at_ns=event.at_ns)


def _fired(run: Run, event: Event) -> Run:
    """A timer ends what it was set for: nobody has to answer any more. It counts when its time has come, not before."""
    if isinstance(event.body, Unreadable):
        return run
    if event.tail == "deadline":
        if run.timed_out or event.at_ns < run.deadline_ns:
            return run
        run = replace(run, timed_out=True, at_ns=event.at_ns)
        for name, state in run.steps.items():
            if state.status == "running":
                run = _overtaken(run, event, name, state, "the run's time budget is over")
        return run
    for name, state in run.steps.items():
        if state.status == "running" and event.tail == f"step.{name}.{state.attempt}":
            timeout_s = run.step_plan(name).timeout_s
            if event.at_ns >= state.dispatched_ns + timeout_s * NS_PER_S:
                return _overtaken(run, event, name, state, f"no answer within {timeout_s} s")
    return run


def _overtaken(run: Run, event: Event, step: str, state: StepState, message: str) -> Run:
    lost = Event(event.seq, event.at_ns, event.kind, event.run, None, step=step, attempt=state.attempt)
    # Nobody can say what it has spent of its grant.
    run = replace(run, charged=run.charged + max(0, state.grant - state.spent))
    return _attempt_lost(run, lost, state, "timeout", message, retryable=True)


def _run_completed(run: Run, event: Event) -> Run:
    body = event.body
    if isinstance(body, RunCompleted) and body.status in RUN_ENDS:
        status, reason = body.status, body.reason
    else:
        # Nobody can ever say the true end on this subject: the run is over, and the record says how.
        status, reason = "failed", "run.completed holds another message"
    steps = {
        name: state if state.status in STEP_ENDS else replace(state, status="skipped", ended_ns=event.at_ns)
        for name, state in run.steps.items()
    }
    return replace(run, status=status, reason=reason, steps=steps, at_ns=event.at_ns, ended_ns=event.at_ns)


_NEW_STEP = StepState()
_APPLY: dict[str, Callable[[Run, Event], Run]] = {
    "goal.rejected": _rejected,
    "plan.created": _planned,
    "run.queued": _queued,
    "run.started": _started,
    "step.dispatched": _dispatched,
    "step.completed": _completed,
    "step.failed": _failed,
    "step.skipped": _skipped,
    "llm.called": _called,
    "timer.fired": _fired,
    "run.completed": _run_completed,
}

"""The fold: what an event means for its run. `evolve(run, event) -> run` is the only place where that is written.

Theory of operation. `LEGAL` says in which states of a run an event may be applied; a function of the same name as
the event says what it changes. An event that is not legal, names another attempt, or cannot be read changes
nothing: `evolve` then returns the very object that it was given, and `refusal` says why. State is immutable, so a
fold can be compared with itself at any prefix of the stream. The words stand in `run_state`; what happens to steps in
`run_steps`, what answers mean in `run_approvals`.

The executor decides from this, the registry writes its rows from it, CLI and gateway show it.
"""

from collections.abc import Callable, Mapping

from msgspec.structs import replace

from shared import run_approvals, run_steps
from shared.events import Event, GoalRejected, PlanCreated, RunCompleted, Unreadable
from shared.plan import GATE
from shared.run_state import Approval as Approval
from shared.run_state import Run as Run
from shared.run_state import StepState as StepState
from shared.run_state import Stop as Stop
from shared.run_tally import counted, opening
from shared.status import RUN_ENDS, STEP_ENDS

EARLY_MAX = 10_000

_PENDING = frozenset({"pending"})
_WAITING = frozenset({"pending", "queued"})
_RUNNING = frozenset({"running"})
_ASKING = frozenset({"awaiting_approval", "running"})
_OPEN = frozenset({"pending", "queued", "awaiting_approval", "running"})

LEGAL: dict[str, frozenset[str]] = {
    "goal.rejected": _PENDING,
    "plan.created": _PENDING,
    "run.queued": _PENDING,
    "run.started": _WAITING,
    "run.cancel_requested": _OPEN,
    "approval.requested": _OPEN,
    "approval.granted": _ASKING,
    "approval.rejected": _ASKING,
    "approval.expired": _ASKING,
    "step.dispatched": _OPEN,
    "step.completed": _RUNNING,
    "step.failed": _RUNNING,
    "step.cancel_requested": _RUNNING,
    "step.cancelled": _RUNNING,
    "step.skipped": _OPEN,
    "llm.called": _RUNNING,
    "timer.fired": _ASKING,
    "run.completed": _OPEN,
}

# What only an executor says, once, of a plan that it has read.
_OF_A_PLAN = frozenset({"run.started", "approval.requested", "step.dispatched", "step.skipped"})


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
    if run.plan is None and event.kind in _OF_A_PLAN:
        # A stranger's: what its subject is for can never be said there any more, so the run has to end.
        return run if run.broken else replace(run, broken=f"{event.kind} was said before the plan", at_ns=event.at_ns)
    return _APPLY[event.kind](run, event)


def touched(event: Event) -> str:
    """The one step whose state this event may change; "" when it may be several, or is none."""
    if event.kind != "timer.fired":
        return event.step
    what, _, rest = event.tail.partition(".")
    return rest if what == "approval" else rest.partition(".")[0]


def refusal(run: Run, event: Event) -> str:
    """Why `evolve` left the run as it was, for a person."""
    if event.kind not in LEGAL:
        return "no event of Remit"
    if run.status not in LEGAL[event.kind]:
        return f"a run that is {run.status} takes no {event.kind}"
    if isinstance(event.body, Unreadable):
        return event.body.reason
    if event.kind in ("approval.granted", "approval.rejected"):
        return run_approvals.refusal(run, event)
    if event.kind == "run.started" and run.stop is not None:
        return f"the run is ending: {run.stop.reason}"
    if event.kind.startswith("approval."):
        return "nothing was to be asked here, or it was asked before"
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
    steps = dict.fromkeys(plan.by_id, _NEW_STEP)
    for name, left in plan.reused.items():
        steps[name] = StepState(
            status="succeeded",
            ended_ns=event.at_ns,
            host=left.host,
            outputs=left.outputs,
            artifacts=left.artifacts,
            reused_from=plan.retry_of or 0,
        )
    tally = counted(plan, steps) if plan.reused else opening(plan)
    return replace(run, plan=plan, steps=steps, tally=tally, planned_ns=event.at_ns, at_ns=event.at_ns)


def _queued(run: Run, event: Event) -> Run:
    if run.plan is None or isinstance(event.body, Unreadable) or (run.plan.is_gated and not run.is_approved(GATE)):
        return run
    return replace(run, status="queued", at_ns=event.at_ns)


def _started(run: Run, event: Event) -> Run:
    if run.broken or run.stop is not None:
        return run  # of an executor that had not read the stop: others may be saying its end, with nothing begun
    if isinstance(event.body, Unreadable):
        return replace(run, broken="run.started holds another message", at_ns=event.at_ns)
    assert run.plan is not None
    if run.plan.is_gated and not run.is_approved(GATE):
        return replace(run, broken="run.started was said before the run was approved", at_ns=event.at_ns)
    return replace(run, status="running", at_ns=event.at_ns, started_ns=event.at_ns)


def _cancel_requested(run: Run, event: Event) -> Run:
    if run.stop is not None or isinstance(event.body, Unreadable):
        return run
    who = event.tail or run_approvals.ANONYMOUS
    why = f": {event.body.reason}" if event.body.reason else ""
    return replace(run, stop=Stop("cancelled", f"cancelled by {who}{why}"), at_ns=event.at_ns)


def _expired(run: Run, event: Event) -> Run:
    return run_approvals.expired(run, event, event.step)


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
    tally = replace(run.tally, open=0, running=0, due=0, reserved=0)
    return replace(run, status=status, reason=reason, steps=steps, tally=tally, at_ns=event.at_ns, ended_ns=event.at_ns)


_NEW_STEP = StepState()
_APPLY: dict[str, Callable[[Run, Event], Run]] = {
    "goal.rejected": _rejected,
    "plan.created": _planned,
    "run.queued": _queued,
    "run.started": _started,
    "run.cancel_requested": _cancel_requested,
    "approval.requested": run_approvals.requested,
    "approval.granted": run_approvals.answered,
    "approval.rejected": run_approvals.answered,
    "approval.expired": _expired,
    "step.dispatched": run_steps.dispatched,
    "step.completed": run_steps.completed,
    "step.failed": run_steps.failed,
    "step.cancel_requested": run_steps.cancel_requested,
    "step.cancelled": run_steps.cancelled,
    "step.skipped": run_steps.skipped,
    "llm.called": run_steps.called,
    "timer.fired": run_steps.fired,
    "run.completed": _run_completed,
}

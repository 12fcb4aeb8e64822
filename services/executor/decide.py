"""What follows: `decide(run)` is pure and says which facts a run's state calls for. No clock, no chance, no I/O.

It may be asked again and again: it names facts by their subjects, and whoever says them says each once. Two executors
that both decide therefore do no harm; the create-only stream keeps the first, and the fold lets no dispatch count that
a budget does not cover (shared/run_steps.py).

A fact whose subject begins with `timer.at.` is a message of TIMERS; all others are events.
"""

from collections.abc import Collection
from typing import Any

import msgspec

from services.executor.ends import end, end_of_all, end_stopped, skipped_states
from services.executor.performing import Fact, context, perform
from shared import conditions
from shared.clock import NS_PER_S, rfc3339
from shared.events import (
    ApprovalExpired,
    ApprovalRequested,
    StepCancelled,
    StepCancelRequested,
    StepDispatched,
    StepSkipped,
    TimerFired,
)
from shared.plan import GATE, Step
from shared.run_approvals import is_asked
from shared.run_state import Run, StepState
from shared.run_steps import CANCEL_PATIENCE_S, WAITING
from shared.run_tally import places
from shared.showing import what_is_asked
from shared.subjects import (
    approval_expired,
    approval_requested,
    step_cancel_requested,
    step_cancelled,
    step_dispatched,
    step_skipped,
    timer_at,
)

REASON_CHARS_MAX = 1_000

# After these the state of an active run can call for something new.
CONSEQUENTIAL = frozenset(
    (
        "plan.created",
        "run.started",
        "run.cancel_requested",
        "approval.requested",
        "approval.granted",
        "approval.rejected",
        "approval.expired",
        "step.dispatched",
        "step.completed",
        "step.failed",
        "step.cancel_requested",
        "step.cancelled",
        "step.skipped",
        "llm.called",
        "timer.fired",
    )
)


class Known(msgspec.Struct, frozen=True):
    """What an executor has said of a run's steps in their present states, as sets of steps (shared/run_tally.py).

    It says nothing that the run does not: without it, all is only looked at again. `decide` gives the next one, and
    who folds an event about a step takes that step out.
    """

    started: int = 0  # the dispatch of their next attempt; it counts as one, though it may not have been read back
    told: int = 0  # everything else
    slotless: int = 0  # nothing, as no slot was free for them
    tokenless: int = 0  # nothing, as no token was free for them
    is_over: bool = False  # whether that was told while nothing more may start

    def without(self, step: int) -> "Known":
        """As it is once the step at this place is in another state."""
        others = ~(1 << step)
        return Known(
            self.started & others, self.told & others, self.slotless & others, self.tokenless & others, self.is_over
        )


NOTHING = Known()


def decide(run: Run, said: Collection[str] = ()) -> list[Fact]:
    """The facts that this run calls for, in the order in which they are to be said.

    `said` are the subjects that were said and may not have been read back yet: a dispatch among them counts as one, and
    of a step that is to be skipped nothing else is said.
    """
    return follow(run, _known(run, said))[0]


def _known(run: Run, said: Collection[str]) -> Known:
    started = told = 0
    if said and run.plan is not None:
        for place in places(run.tally.open & ~run.tally.running):
            step = run.plan.steps[place]
            started |= (_dispatch(run, step, run.steps[step.id]) in said) << place
            told |= (step_skipped(run.id, step.id) in said) << place
    return Known(started=started, told=told)


def follow(run: Run, known: Known) -> tuple[list[Fact], Known]:
    """The facts that this run calls for beside those that are known, and what is known when they are said.

    Only steps are looked at that may call for something: not each of a thousand after each of their events.
    """
    if run.ended:
        return [], known
    if run.broken:
        return [end(run, "failed", run.broken, skipped_states(run))], known
    if run.status != "running":
        return _before_it_runs(run), known
    if run.plan is None:
        return [], known
    if not run.tally.open:
        # Only what the stream holds counts: a step that is still to be skipped may have been dispatched meanwhile.
        return [end_of_all(run)], known
    is_over = run.stop is not None or run.tally.ending > 0
    if is_over and not known.is_over:
        known = Known(started=known.started, is_over=True)  # all that waits is to be skipped, whatever was said of it
    return _stopping(run, known) if run.stop is not None else _going_on(run, known)


def _before_it_runs(run: Run) -> list[Fact]:
    if run.plan is None:
        return []  # the planner has the word: its plan or its no comes, and a goal has one end
    if run.stop is not None:
        return [*_expired(run), end_stopped(run)]
    return _ask(run, GATE) if run.plan.is_gated and not run.is_approved(GATE) else []


def _going_on(run: Run, known: Known) -> tuple[list[Fact], Known]:
    assert run.plan is not None
    plan, steps, tally = run.plan, run.steps, run.tally
    facts: list[Fact] = []
    stopped, rolling = _why_stopped(run)
    flow = _Flow(run, known)
    own = tally.running & ~plan.for_workers
    waiting = tally.open & ~tally.running if stopped else tally.due & ~known.started
    look = (own | waiting & ~plan.undoing) & ~known.told
    while look := look & ~flow.held:
        bit = look & -look
        look ^= bit
        step = plan.steps[bit.bit_length() - 1]
        state = steps[step.id]
        if state.status == "running":
            facts += perform(run, step, state)
            flow.told |= bit
        elif skip := stopped or _why_skipped(run, step):
            facts.append((step_skipped(run.id, step.id), skip))
            flow.told |= bit
        else:
            facts += flow.start(step, state, bit)
    if plan.undoing and not tally.open & ~plan.undoing:
        facts += _undo(flow) if rolling else _undo_nothing(run, "nothing failed")
    return facts, flow.known()


def _why_stopped(run: Run) -> tuple[StepSkipped | None, bool]:
    """Why no further step may start (None while steps may), and whether what was done is to be undone."""
    assert run.plan is not None
    for place in places(run.tally.ending):
        step = run.plan.steps[place]
        state = run.steps[step.id]
        if state.status == "failed":
            rolling = step.on_failure == "rollback"
            what = f"step {step.id} failed{', and the run is rolled back' if rolling else ''}"
            return StepSkipped(reason=what, cause="rollback" if rolling else "stopped"), rolling
        return StepSkipped(reason=f"the run ends: {state.message}", cause="stopped"), False
    return None, False


def _why_skipped(run: Run, step: Step) -> StepSkipped | None:
    """A step that needs a skipped one cannot run. (A failed need that was let pass counts as done.)"""
    for need in step.needs:
        if run.steps[need].status == "skipped":
            return StepSkipped(reason=f"it needs {need}, which was skipped", cause="need")
    return None


def _dispatch(run: Run, step: Step, state: StepState) -> str:
    """The subject of the step's next attempt."""
    return step_dispatched(run.id, step.id, max(state.attempt, state.taken) + 1, step.performs, step.host)


class _Flow:
    """Starting steps, one after the other, within what is left of the budgets; and what is known then."""

    def __init__(self, run: Run, known: Known) -> None:
        assert run.plan is not None
        self.run, self.plan = run, run.plan
        self.started, self.told, self.is_over = known.started, known.told, known.is_over
        self.slotless, self.tokenless = known.slotless, known.tokenless
        self.parallel = self.used = 0
        self.grants_under_way = False
        if not self.plan.is_plain:
            self.parallel = run.parallel + (known.started & self.plan.for_workers).bit_count()
            self.used = run.steps_used + (known.started & ~run.tally.tried & ~self.plan.undoing).bit_count()
            self.grants_under_way = known.started & self.plan.using_tokens > 0

    def known(self) -> Known:
        return Known(self.started, self.told, self.slotless, self.tokenless, self.is_over)

    @property
    def held(self) -> int:
        """The steps that have nothing to look for: what they lacked is still not there."""
        held = 0
        if self.slotless and self.parallel >= self.plan.directive.max_parallel_steps:
            held = self.slotless
        if self.tokenless and self.used < self.plan.budgets.max_steps and not self._may_grant:
            held |= self.tokenless
        return held

    @property
    def _may_grant(self) -> bool:
        """Whether a step that wants tokens gets some now, or is told that there are none."""
        return not self.grants_under_way and (self.run.tokens_free > 0 or not self.run.reserved)

    def start(self, step: Step, state: StepState, bit: int) -> list[Fact]:
        """What has to be said so that this step, whose needs are done, runs; nothing while it has to wait."""
        run = self.run
        if self.started & bit or any(run.steps[need].status not in ("succeeded", "failed") for need in step.needs):
            return []
        if step.when and not state.attempt and (skip := self._unless(step)):
            self.told |= bit
            return [(step_skipped(run.id, step.id), skip)]
        if is_asked(run, step.id) and not run.is_approved(step.id):
            self.told |= bit
            return _ask(run, step.id)
        if state.not_before_ns:
            self.told |= bit
            return [_timer(run, f"backoff.{step.id}.{state.attempt}", state.not_before_ns)]
        grant = 0
        if not self.plan.is_plain:
            if step.task and self.parallel >= self.plan.directive.max_parallel_steps:
                self.slotless |= bit
                return []
            undoes = self.plan.undoing & bit
            most = self.plan.budgets.max_steps
            if not state.attempt and self.used >= most and not undoes:
                why = f"{most} of {most} steps are used"
                self.told |= bit
                return [(step_skipped(run.id, step.id), StepSkipped(reason=why, cause="steps"))]
            if step.uses_tokens and self.plan.budgets.token_budget:
                if not self._may_grant:
                    self.tokenless |= bit
                    return []  # what is left is known when they are read back, and a running step may give some back
                grant = token_grant(run, step)
                if not grant:
                    self.told |= bit
                    return self._no_tokens(step)
            self.parallel += step.task is not None
            self.used += not state.attempt and not undoes
        self.started |= bit
        body = StepDispatched(
            inputs=step.inputs,
            deadline=rfc3339(run.deadline_ns),
            timeout_s=step.timeout_s,
            token_grant=grant,
            plan_hash=self.plan.plan_hash,
            goal=self.plan.goal,
        )
        return [(_dispatch(run, step, state), body)]

    def _unless(self, step: Step) -> StepSkipped | None:
        """Why the step's condition keeps it from running; None when it lets it."""
        text = step.when or ""
        try:
            value = conditions.evaluate(text, context(self.run, text))
        except conditions.ConditionError as error:
            why = f"its condition {text} cannot be answered: {error.message}"
            return StepSkipped(reason=why[:REASON_CHARS_MAX], cause="condition")
        why = f"{text} is {value!r}".lower()
        return None if value is True else StepSkipped(reason=why[:REASON_CHARS_MAX], cause="when")

    def _no_tokens(self, step: Step) -> list[Fact]:
        budget = self.plan.budgets.token_budget
        why = f"{self.run.charged} of {budget} tokens are used"
        return [(step_skipped(self.run.id, step.id), StepSkipped(reason=why, cause="tokens"))]


def token_grant(run: Run, step: Step) -> int:
    """What is left of the token budget, shared among the steps that may still want some; at least one if any is left.

    What running steps hold is reserved; what was charged is gone, known or not.
    """
    assert run.plan is not None
    if not step.uses_tokens:
        return 0
    sharers = (run.tally.open & ~run.tally.running & run.plan.using_tokens).bit_count()
    left = run.tokens_free
    return max(0, min(left, max(1, left // max(1, sharers))))


def _undo(flow: _Flow) -> list[Fact]:
    """The compensations of what was done, the newest first, one at a time; those of what was not done are skipped."""
    run, plan = flow.run, flow.plan
    done = [step for step in plan.steps if step.compensation and run.steps[step.id].status in ("succeeded", "failed")]
    done.sort(key=lambda step: run.steps[step.id].ended_ns, reverse=True)
    wanted = list(dict.fromkeys(step.compensation for step in done if step.compensation))
    facts = [
        (step_skipped(run.id, name), StepSkipped(reason="what it undoes was not done", cause="unneeded"))
        for name in plan.by_id
        if name in plan.compensations and name not in wanted and run.steps[name].status in WAITING
    ]
    for name in wanted:
        state = run.steps[name]
        if state.status == "running":
            break
        if state.status in WAITING:
            facts += flow.start(plan.by_id[name], state, 1 << plan.place_of[name])
            break
    return facts


def _undo_nothing(run: Run, why: str) -> list[Fact]:
    assert run.plan is not None
    return [
        (step_skipped(run.id, name), StepSkipped(reason=why, cause="unneeded"))
        for name in run.steps
        if name in run.plan.compensations and run.steps[name].status in WAITING
    ]


def _stopping(run: Run, known: Known) -> tuple[list[Fact], Known]:
    """Nothing more starts; what runs is told to end, and is overtaken when it does not answer."""
    assert run.plan is not None and run.stop is not None
    facts = _expired(run)
    for place in places(run.tally.open & ~known.told):
        step = run.plan.steps[place]
        state = run.steps[step.id]
        if state.status in WAITING:
            skip = StepSkipped(reason=run.stop.reason, cause="stopped")
            facts.append((step_skipped(run.id, step.id), skip))
        elif step.task is None:
            facts.append((step_cancelled(run.id, step.id, state.attempt), StepCancelled(reason=run.stop.reason)))
        elif state.cancel_ns:
            due_ns = state.cancel_ns + CANCEL_PATIENCE_S * NS_PER_S
            facts.append(_timer(run, f"cancel.{step.id}.{state.attempt}", due_ns))
        else:
            told = StepCancelRequested(reason=run.stop.reason)
            facts.append((step_cancel_requested(run.id, step.id, state.attempt), told))
    return facts, Known(started=known.started, told=run.tally.open, is_over=True)


def _expired(run: Run) -> list[Fact]:
    return [
        (approval_expired(run.id, step), ApprovalExpired(expired_at=rfc3339(approval.expires_ns)))
        for step, approval in run.approvals.items()
        if approval.status == "expired"
    ]


def _ask(run: Run, step: str) -> list[Fact]:
    """The question, and the timer that ends it: the timer first, so that no question stands for ever."""
    assert run.plan is not None
    plan, directive = run.plan, run.plan.directive
    known = run.approvals.get(step)
    if known is not None:
        # Asked already. The timer is there, unless a stranger has asked.
        return [_timer(run, f"approval.{step}", known.expires_ns)] if known.status == "pending" else []
    expires_ns = run.ready_ns(step) + directive.approval_expires_s * NS_PER_S
    steps = plan.steps if step == GATE else [plan.by_id[step]]
    inputs: dict[str, Any] = {} if step == GATE else steps[0].inputs
    body = ApprovalRequested(
        run=run.id,
        step=step,
        what=what_is_asked(plan, step),
        plan_hash=plan.plan_hash,
        expires_at=rfc3339(expires_ns),
        approvers=directive.approvers,
        approvals_needed=directive.approvals_needed,
        requester=run.principal,
        requester_may_approve=directive.requester_may_approve,
        goal=plan.goal,
        tasks=[one.performs for one in steps],
        hosts=sorted({one.host for one in steps if one.host}) or plan.hosts,
        inputs=inputs,
    )
    return [_timer(run, f"approval.{step}", expires_ns), (approval_requested(run.id, step), body)]


def _timer(run: Run, what: str, due_ns: int) -> Fact:
    return timer_at(run.id, what), TimerFired(due=rfc3339(due_ns))

"""What happens to the steps of a run: from dispatch to the one accepted end of each attempt.

A dispatch counts only where the budgets, the approvals and the order of the plan allow it, at its place in the stream.
So `charged + reserved` never exceeds the token budget and no more steps run than may, whoever has said the dispatch:
two executors at different places of the stream, or a stranger. An attempt that does not count is used up; the next one
has subjects of its own.
"""

from msgspec.structs import replace

from shared.clock import NS_PER_S, parse_ns
from shared.events import (
    Event,
    LlmCalled,
    StepCancelled,
    StepCompleted,
    StepDispatched,
    StepFailed,
    StepSkipped,
    Tokens,
    Unreadable,
)
from shared.plan import Step
from shared.run_approvals import expired
from shared.run_state import Run, StepState, Stop, with_step
from shared.status import StepStatus

WAITING = ("pending", "awaiting_approval")


def _running(run: Run, event: Event) -> StepState | None:
    """The step's state, if this event is about the attempt that runs."""
    state = run.steps.get(event.step)
    return state if state is not None and state.status == "running" and event.attempt == state.attempt else None


def dispatched(run: Run, event: Event) -> Run:
    state = run.steps.get(event.step)
    if state is None or event.attempt != max(state.attempt, state.taken) + 1:
        return run
    if run.stop is not None and (run.timed_out or run.status != "running"):
        return run  # it never starts, and its end is said without a word of each step: no attempt is there to be lost
    if run.broken and run.status != "running":
        return run
    assert run.plan is not None
    step = run.plan.by_id[event.step]
    if event.tail != (f"{step.performs}.{step.host}" if step.host else step.performs):
        return run  # the executor's own subject names the plan's task and is still free
    if state.status == "running":
        return with_step(run, event, event.step, replace(state, taken=event.attempt))
    if state.status not in WAITING:
        return run
    # What holds the attempt's subject and is no dispatch in its time: the attempt is lost, the next has its own.
    if isinstance(event.body, Unreadable):
        return _lost(run, event, state, "unreadable_dispatch", event.body.reason, retryable=True)
    if why := _too_early(run, step):
        return _lost(run, event, state, "early_dispatch", why, retryable=True)
    body: StepDispatched = event.body
    grant = max(0, body.token_grant)
    if not run.plan.is_plain and (over := _over(run, event.step, grant)):
        # Not the step's failure: another dispatch stood before this one, and the step waits for its turn again.
        return with_step(run, event, event.step, replace(state, taken=event.attempt, message=over))
    state = StepState(status="running", attempt=event.attempt, dispatched_ns=event.at_ns, grant=grant)
    return with_step(run, event, event.step, state)


def _too_early(run: Run, step: Step) -> str:
    """Why the plan does not let this step run yet; "" when it does."""
    if run.status != "running" or not run.needs_are_done(step.id):
        return "dispatched before its time"
    if (step.approval or step.kind == "approval") and not run.is_approved(step.id):
        return "dispatched without its approval"
    return ""


def _over(run: Run, step: str, grant: int) -> str:
    """Which budget this dispatch would overshoot; "" when none."""
    assert run.plan is not None
    plan = run.plan
    if plan.by_id[step].task and run.parallel >= plan.directive.max_parallel_steps:
        return f"{plan.directive.max_parallel_steps} steps run already"
    if not run.steps[step].attempt and step not in plan.compensations and run.steps_used >= plan.budgets.max_steps:
        return f"{plan.budgets.max_steps} steps were dispatched already"
    if grant > run.tokens_free:
        return f"{grant} tokens are more than the {run.tokens_free} that are left"
    return ""


def completed(run: Run, event: Event) -> Run:
    state = _running(run, event)
    if state is None:
        return run
    if isinstance(event.body, Unreadable):
        return _lost(run, event, state, "unreadable_result", event.body.reason, retryable=True)
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
    return with_step(run, event, event.step, state)


def failed(run: Run, event: Event) -> Run:
    state = _running(run, event)
    if state is None:
        return run
    if isinstance(event.body, Unreadable):
        return _lost(run, event, state, "unreadable_result", event.body.reason, retryable=True)
    if run.stop is None and event.at_ns >= run.deadline_ns:
        # The worker has ended it because the run's time is over, and was heard before the timer: it is the same end.
        return _deadline(run, event)
    body: StepFailed = event.body
    return _lost(run, event, state, body.error, body.message, retryable=body.retryable, host=body.host)


def _lost(
    run: Run, event: Event, state: StepState, error: str, message: str, *, retryable: bool, host: str | None = None
) -> Run:
    """The attempt is over without a result; the step rests and is tried again, or has failed."""
    step = run.step_plan(event.step)
    attempt = max(event.attempt, state.taken)
    again = retryable and run.stop is None and attempt < step.max_attempts and step.retry.covers(error)
    pause_ns = step.retry.pause_s(attempt) * NS_PER_S
    status: StepStatus = "pending" if again else "failed"
    cause = ""
    if again and state.skip is not None:
        status, again, (message, cause) = "skipped", False, state.skip
    state = StepState(
        status=status,
        attempt=attempt,
        dispatched_ns=state.dispatched_ns,
        ended_ns=0 if again else event.at_ns,
        error=error,
        message=message,
        cause=cause,
        host=host,
        not_before_ns=event.at_ns + pause_ns if again and pause_ns else 0,
    )
    return with_step(run, event, event.step, state)


def cancel_requested(run: Run, event: Event) -> Run:
    """The attempt was asked to end: by the executor, when the run is stopping. Without that it is a stranger's word."""
    state = _running(run, event)
    if state is None or state.cancel_ns or run.stop is None:
        return run
    return with_step(run, event, event.step, replace(state, cancel_ns=event.at_ns))


def cancelled(run: Run, event: Event) -> Run:
    state = _running(run, event)
    if state is None:
        return run
    body = event.body
    if run.stop is None or isinstance(body, Unreadable):
        # Nobody has asked for it: the attempt was lost, whatever its worker calls that.
        return _lost(run, event, state, "cancelled", "the worker ended it unasked", retryable=True)
    assert isinstance(body, StepCancelled)
    return _ended_by_stop(run, event, event.step, state, body.reason or run.stop.reason, host=body.host)


def _ended_by_stop(
    run: Run, event: Event, step: str, state: StepState, message: str, *, host: str | None = None
) -> Run:
    state = replace(state, status="cancelled", ended_ns=event.at_ns, message=message, host=host)
    return with_step(run, event, step, state)


def skipped(run: Run, event: Event) -> Run:
    """Whoever has said it, nobody can say it again: it stands, or a run that was to be stopped could never end.

    While the step runs, it is of somebody who had not read the dispatch: it counts when the attempt is lost.
    """
    state = run.steps.get(event.step)
    if state is None or (state.status not in WAITING and (state.status != "running" or state.skip is not None)):
        return run
    # Unreadable: it can never be said here that the step is skipped, so the message has to stand for it.
    body = event.body
    reason, cause = "step.skipped holds another message", "stopped"
    if isinstance(body, StepSkipped):
        reason, cause = body.reason, body.cause
    if state.status == "running":
        return with_step(run, event, event.step, replace(state, skip=(reason, cause)))
    state = replace(state, status="skipped", ended_ns=event.at_ns, message=reason, cause=cause)
    return with_step(run, event, event.step, state)


def called(run: Run, event: Event) -> Run:
    """A call counts while its step runs. Unknown usage is charged as the whole grant, never as zero.

    What a worker has spent beyond its grant is taken from what is free; where nothing is, the run stops.
    """
    state = run.steps.get(event.step)
    if state is None or state.status != "running" or isinstance(event.body, Unreadable):
        return run
    assert run.plan is not None
    body: LlmCalled = event.body
    unknown = body.input_tokens is None or body.output_tokens is None
    used = (body.input_tokens or 0) + (body.output_tokens or 0)
    left = max(0, state.grant - state.spent)
    charge = max(used, left) if unknown else used
    charge, beyond = min(charge, left + max(0, run.tokens_free)), charge
    tokens = Tokens(
        input=run.tokens.input + (body.input_tokens or 0),
        output=run.tokens.output + (body.output_tokens or 0),
        unknown_calls=run.tokens.unknown_calls + unknown,
    )
    stop = run.stop
    if beyond > charge:
        budget = run.plan.budgets.token_budget
        why = f"the token budget of {budget} is over: step {event.step} used {beyond} with {charge} left to it"
        stop = stop or Stop("budget_exhausted", why)
    run = replace(run, tokens=tokens, charged=run.charged + charge, stop=stop)
    return with_step(run, event, event.step, replace(state, spent=state.spent + charge))


def fired(run: Run, event: Event) -> Run:
    """A timer ends what it was set for: nobody has to answer any more. It counts when its time has come, not before."""
    if isinstance(event.body, Unreadable):
        return run
    what, _, rest = event.tail.partition(".")
    if what == "approval":
        return expired(run, event, rest)
    if run.status != "running":
        return run
    if what == "deadline":
        return _deadline(run, event)
    step, _, attempt = rest.partition(".")
    state = run.steps.get(step)
    if state is None or attempt != str(state.attempt):
        return run
    if what == "backoff" and state.status == "pending" and 0 < state.not_before_ns <= event.at_ns:
        return with_step(run, event, step, replace(state, not_before_ns=0))
    if state.status != "running":
        return run
    if what == "step":
        timeout_s = run.step_plan(step).timeout_s
        if event.at_ns >= state.dispatched_ns + timeout_s * NS_PER_S:
            return _overtaken(run, event, step, state, f"no answer within {timeout_s} s")
    elif what == "wait" and not state.is_due and event.at_ns >= wait_ends_ns(run, step, state):
        return with_step(run, event, step, replace(state, is_due=True))
    elif what == "cancel" and state.cancel_ns and event.at_ns >= state.cancel_ns + CANCEL_PATIENCE_S * NS_PER_S:
        run = _with_charged(run, state)
        return _ended_by_stop(run, event, step, state, "its worker did not answer; it is overtaken")
    return run


CANCEL_PATIENCE_S = 30  # the longest lease: a worker that is silent for so long has lost its step


def wait_ends_ns(run: Run, step: str, state: StepState) -> int:
    """When a wait step is over: `seconds` after its dispatch, or at `until`; a plan without either cannot be read."""
    inputs = run.step_plan(step).inputs
    if "until" in inputs:
        return parse_ns(inputs["until"])
    return state.dispatched_ns + int(inputs["seconds"] * NS_PER_S)


def _deadline(run: Run, event: Event) -> Run:
    if run.timed_out or event.at_ns < run.deadline_ns:
        return run
    assert run.plan is not None
    before = run.stop
    if before is not None and not run.tally.running:
        return run
    why = f"the time budget of {run.plan.budgets.time_budget_s} s is over"
    run = replace(run, stop=before or Stop("timed_out", why), at_ns=event.at_ns)
    for name, state in run.steps.items():
        if state.status == "running" and before is None:
            run = _overtaken(run, event, name, state, "the run's time budget is over")
        elif state.status == "running":
            run = _ended_by_stop(_with_charged(run, state), event, name, state, "the run's time budget is over")
    return run


def _overtaken(run: Run, event: Event, step: str, state: StepState, message: str) -> Run:
    lost = Event(event.seq, event.at_ns, event.kind, event.run, None, step=step, attempt=state.attempt)
    return _lost(_with_charged(run, state), lost, state, "timeout", message, retryable=True)


def _with_charged(run: Run, state: StepState) -> Run:
    """Nobody can say what the attempt has spent of its grant: all of it counts."""
    return replace(run, charged=run.charged + max(0, state.grant - state.spent))

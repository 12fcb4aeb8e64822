"""The steps that the executor performs itself: decisions, waits, notices, approvals. Pure, like all that it decides."""

import re
from typing import Any

import msgspec

from shared import conditions
from shared.clock import NS_PER_S, rfc3339
from shared.events import OUTPUTS_BYTES_MAX, StepCompleted, StepFailed, TimerFired
from shared.plan import Step
from shared.run_state import Run, StepState
from shared.run_steps import wait_ends_ns
from shared.subjects import step_completed, step_failed, timer_at

Fact = tuple[str, Any]  # subject and body

_PLACE = re.compile(r"\$\{([^{}]{1,200})\}")
MESSAGE_CHARS_MAX = 2_000


def perform(run: Run, step: Step, state: StepState) -> list[Fact]:
    """What follows from a step of the executor's own that was dispatched."""
    if step.kind == "wait" and not state.is_due:
        due = TimerFired(due=rfc3339(wait_ends_ns(run, step.id, state)))
        return [(timer_at(run.id, f"wait.{step.id}.{state.attempt}"), due)]
    # Of the state alone, not of the moment of deciding: every executor says the same.
    ended_ns = wait_ends_ns(run, step.id, state) if step.kind == "wait" else state.dispatched_ns
    started, ended = rfc3339(state.dispatched_ns), rfc3339(max(ended_ns, state.dispatched_ns))
    try:
        outputs = _OUTPUTS[step.kind](run, step, state)
        if (size := len(msgspec.json.encode(outputs))) > OUTPUTS_BYTES_MAX:
            raise conditions.ConditionError(f"its value has {size} bytes; at most {OUTPUTS_BYTES_MAX}")
    except conditions.ConditionError as error:
        failed = StepFailed(error="condition_error", message=error.message, started_at=started, ended_at=ended)
        return [(step_failed(run.id, step.id, state.attempt), failed)]
    done = StepCompleted(outputs=outputs, started_at=started, ended_at=ended)
    return [(step_completed(run.id, step.id, state.attempt), done)]


def _decision(run: Run, step: Step, _state: StepState) -> dict[str, Any]:
    text = str(step.inputs.get("condition", ""))
    return {"result": conditions.evaluate(text, context(run, text))}


def _wait(run: Run, step: Step, state: StepState) -> dict[str, Any]:
    waited_ns = max(0, wait_ends_ns(run, step.id, state) - state.dispatched_ns)
    return {"waited_s": round(waited_ns / NS_PER_S, 3)}


def _notify(run: Run, step: Step, _state: StepState) -> dict[str, Any]:
    """The notice is this event: whoever delivers it reads it from the stream."""
    assert run.plan is not None
    message = _filled(run, str(step.inputs.get("message", "")))
    severity = str(step.inputs.get("severity", "info"))
    return {"message": message[:MESSAGE_CHARS_MAX], "severity": severity, "channels": run.plan.directive.channels}


def _approval(run: Run, step: Step, _state: StepState) -> dict[str, Any]:
    approval = run.approvals[step.id]
    return {"approved_by": approval.approved_by, "reason": approval.reason}


_OUTPUTS = {"decision": _decision, "wait": _wait, "notify": _notify, "approval": _approval}


def _filled(run: Run, text: str) -> str:
    """`${…}` in a message replaced by the condition's value; what cannot be answered is said to be unknown."""

    def value(found: re.Match[str]) -> str:
        try:
            said = conditions.evaluate(found[1], context(run, found[1]))
        except conditions.ConditionError:
            return "(unknown)"
        return said if isinstance(said, str) else str(said).lower() if isinstance(said, bool) else str(said)

    return _PLACE.sub(value, text)


def context(run: Run, text: str) -> dict[str, Any]:
    """What a condition may ask about: the parameters, and of the steps that it names their states and decisions."""
    assert run.plan is not None
    named = [name for name in sorted(conditions.references(text)) if name in run.steps]
    return {
        "params": run.plan.params,
        "steps": {name: {"status": run.steps[name].status, "outputs": run.steps[name].outputs} for name in named},
        "decisions": {
            name: run.steps[name].outputs.get("result") for name in named if run.plan.by_id[name].kind == "decision"
        },
    }

"""What is shown of a run, pure: a `Story` in, plain structs out, named and valued as the registry's rows are."""

from typing import Any

import msgspec

from shared.clock import rfc3339, rfc3339_if_any, seconds_between
from shared.events import Artifact, Unreadable
from shared.plan import Step
from shared.run import Run
from shared.showing import asked, waits_until_ns
from shared.status import RunStatus, StepStatus
from shared.story import Story, Told

BODY_CHARS_MAX_UNREADABLE = 4_096
ARTIFACT_NAME_CHARS_MAX = 200


class StepView(msgspec.Struct, kw_only=True):
    step: str
    kind: str
    task: str | None
    status: StepStatus
    attempts: int
    host: str | None
    dispatched_at: str | None
    ended_at: str | None
    duration_s: float | None
    error: str | None
    message: str | None
    cause: str | None
    reused_from: int | None
    waits_until: str | None
    outputs: dict[str, Any]


class ArtifactView(msgspec.Struct, kw_only=True):
    name: str
    step: str
    sha256: str
    size_bytes: int
    media_type: str
    from_run: int | None


class RunView(msgspec.Struct, kw_only=True):
    """A run as it stands at event `last_seq`."""

    run: int
    status: RunStatus
    reason: str | None
    goal: str | None
    tasks: list[str] | None
    directive: str | None
    principal: str | None
    plan_hash: str | None
    submitted_at: str
    started_at: str | None
    ended_at: str | None
    duration_s: float | None
    steps_total: int
    input_tokens: int
    output_tokens: int
    unknown_calls: int
    playbook: str | None
    retry_of: int | None
    stop_reason: str | None
    approvals: list[dict[str, Any]]
    steps: list[StepView]
    artifacts: list[ArtifactView]
    last_seq: int


class EventView(msgspec.Struct, kw_only=True):
    """One event; `applied` is false where the fold let it change nothing, and `note` says why."""

    seq: int
    said_at: str
    subject: str
    kind: str
    step: str | None
    attempt: int | None
    applied: bool
    note: str | None
    body: Any


def run_view(reading: Story) -> RunView:
    run, goal, plan = reading.run, reading.goal, reading.run.plan
    return RunView(
        run=run.id,
        status=run.status,
        reason=run.reason or None,
        goal=goal.goal if goal else None,
        tasks=goal.tasks if goal else None,
        directive=plan.directive.name if plan else (goal.directive if goal else None),
        principal=run.principal or None,
        plan_hash=plan.plan_hash if plan else None,
        submitted_at=rfc3339(run.submitted_ns),
        started_at=rfc3339_if_any(run.started_ns),
        ended_at=rfc3339_if_any(run.ended_ns),
        duration_s=seconds_between(run.started_ns, run.ended_ns),
        steps_total=len(run.steps),
        input_tokens=run.tokens.input,
        output_tokens=run.tokens.output,
        unknown_calls=run.tokens.unknown_calls,
        playbook=plan.playbook if plan else None,
        retry_of=plan.retry_of if plan else None,
        stop_reason=run.stop.reason if run.stop else None,
        approvals=[one.told() for one in asked(run)],
        steps=[_step(run, step) for step in (plan.steps if plan else ())],
        artifacts=[_artifact(step, one) for step, one in announced(run)],
        last_seq=reading.last_seq,
    )


def event_view(told: Told) -> EventView:
    event = told.event
    unreadable = isinstance(event.body, Unreadable)
    return EventView(
        seq=event.seq,
        said_at=rfc3339(event.at_ns),
        subject=told.subject,
        kind=event.kind,
        step=event.step or None,
        attempt=event.attempt or None,
        applied=not told.note,
        note=told.note or None,
        body=_body(told.data, cut=unreadable),
    )


def announced(run: Run) -> list[tuple[str, Artifact]]:
    """Step and artifact, in the order in which the steps ended: only what the fold took as a step's end counts.

    A name that is no plain relative path is left out: nobody could ask for it, and nobody should.
    """
    ended = sorted(run.steps.items(), key=lambda one: one[1].ended_ns)
    return [(step, one) for step, state in ended for one in state.artifacts if is_plain(one.name)]


def is_plain(name: str) -> bool:
    """Whether an artifact's name is one that can stand in a URL and in a header: no control characters, no `..`."""
    return (
        len(name) <= ARTIFACT_NAME_CHARS_MAX
        and name.isprintable()
        and all(part not in ("", ".", "..") for part in name.split("/"))
    )


def _step(run: Run, step: Step) -> StepView:
    state = run.steps[step.id]
    return StepView(
        step=step.id,
        kind=step.kind,
        task=step.task,
        status=state.status,
        attempts=state.attempt,
        host=state.host,
        dispatched_at=rfc3339_if_any(state.dispatched_ns),
        ended_at=rfc3339_if_any(state.ended_ns),
        duration_s=seconds_between(state.dispatched_ns, state.ended_ns),
        error=state.error or None,
        message=state.message or None,
        cause=state.cause or None,
        reused_from=state.reused_from or None,
        waits_until=rfc3339_if_any(waits_until_ns(run, step.id, state)),
        outputs=state.outputs,
    )


def _artifact(step: str, one: Artifact) -> ArtifactView:
    return ArtifactView(
        name=one.name,
        step=step,
        sha256=one.sha256,
        size_bytes=one.size_bytes,
        media_type=one.media_type,
        from_run=one.from_run,
    )


def _body(data: bytes, *, cut: bool) -> Any:
    """The payload as JSON on one line, number for number as it was said; as text when it is none."""
    try:
        text = data.decode()
        if not cut:
            msgspec.json.decode(data)
            return msgspec.Raw(msgspec.json.format(data, indent=-1))
    except (msgspec.MsgspecError, RecursionError, ValueError):
        text = data.decode(errors="replace")
    return text[:BODY_CHARS_MAX_UNREADABLE]

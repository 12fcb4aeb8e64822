"""Following one run live: its events from the stream, its progress from core NATS, to its end."""

import asyncio
import contextlib
from collections.abc import Mapping
from typing import Any

import click
import msgspec

from cli.speak import data, line, status, talk
from shared.answering import name_of
from shared.append import Appender
from shared.bus import Bus
from shared.clock import rfc3339, rfc3339_if_any
from shared.errors import UNREADABLE, Unavailable
from shared.events import (
    ApprovalExpired,
    ApprovalGranted,
    ApprovalRejected,
    ApprovalRequested,
    Event,
    LlmCalled,
    PlanCreated,
    RunCancelRequested,
    StepCancelled,
    StepCancelRequested,
    StepCompleted,
    StepFailed,
    StepSkipped,
    TimerFired,
    Unreadable,
)
from shared.plan import GATE, Step
from shared.pull import Reader
from shared.run import Run
from shared.run_approvals import ANONYMOUS
from shared.showing import asked, waits_until_ns
from shared.status import EXIT_DONE, EXIT_OF_STATUS
from shared.story import Story, read_story
from shared.subjects import EVENTS, goal_submitted, of_run, progress

PATIENCE_S = 5.0
TAKEN_S = 10.0


async def submit_goal(bus: Bus, goal: bytes, principal: str, *, output: str, wait: bool) -> int:
    """Submit a goal and print its run's number, or follow the run and print what it came to; the exit code."""
    appender = await Appender(bus).start()
    try:
        run = await asyncio.wait_for(appender.append(goal_submitted(principal), goal, headers=None), TAKEN_S)
    except TimeoutError:
        raise Unavailable("the stream EVENTS did not take the goal: is `remit up` running?") from None
    finally:
        appender.stop()
    if output == "text":
        line(f"run {run}")  # before what comes of it: whoever is cut off knows where to look
    if not wait:
        if output == "json":
            data({"run": run})
        else:
            talk(f"follow it: remit watch {run}")
        return EXIT_DONE
    ended = await follow(bus, run, quiet=output == "json")
    if output == "json":
        data(ended)
    return EXIT_OF_STATUS[ended["status"]]


async def follow(bus: Bus, run: int, *, quiet: bool = False, progress_too: bool = True) -> dict[str, Any]:
    """Tell each event of the run as it happens; what the run came to comes back as `summary` gives it."""
    story = await read_story(bus, run)
    over = asyncio.Event()
    shown = _Shown(quiet)
    for told in story.told[1:]:
        shown.event(story.run, told.event, told.note)
    start = story.last_seq + 1

    def on_event(subject: str, seq: int, at_ns: int, data: bytes) -> None:
        told = story.fold(subject, seq, at_ns, data)
        shown.event(story.run, told.event, told.note)
        if story.run.ended:
            over.set()

    def on_progress(_subject: str, data: bytes, _reply: str, _headers: Mapping[str, str] | None) -> None:
        with contextlib.suppress(*UNREADABLE, AttributeError):
            shown.progress(str(msgspec.json.decode(data).get("text", "")))

    if not story.run.ended:
        stop = await bus.subscribe(progress(run, "*"), on_progress) if progress_too and not quiet else None
        reader = await Reader(bus, EVENTS, on_event, start_seq=start, subjects=of_run(run)).start()
        cut = asyncio.create_task(reader.failed())
        while not over.is_set():
            try:
                await asyncio.wait_for(over.wait(), PATIENCE_S)
            except TimeoutError:
                shown.waiting(story.run)
            if cut.done():
                cut.result()
        cut.cancel()
        await reader.stop()
        if stop:
            await stop()
    return summary(story)


def summary(story: Story) -> dict[str, Any]:
    """A run for programs: where it stands, its steps, tokens and artifacts."""
    run = story.run
    return {
        "run": run.id,
        "status": run.status,
        "reason": run.reason or (run.stop.reason if run.stop else ""),
        "goal": run.plan.goal if run.plan else None,
        "tasks": run.plan.tasks if run.plan else None,
        "directive": run.plan.directive.name if run.plan else None,
        "principal": run.principal or None,
        "playbook": run.plan.playbook if run.plan else None,
        "retry_of": run.plan.retry_of if run.plan else None,
        "plan_hash": run.plan.plan_hash if run.plan else None,
        "submitted_at": rfc3339(run.submitted_ns),
        "started_at": rfc3339_if_any(run.started_ns),
        "ended_at": rfc3339_if_any(run.ended_ns),
        "steps": [
            {
                "id": name,
                "kind": run.step_plan(name).kind,
                "task": run.step_plan(name).task,
                "status": state.status,
                "attempts": state.attempt,
                "host": state.host,
                "error": state.error or None,
                "message": state.message or None,
                "cause": state.cause or None,
                "reused_from": state.reused_from or None,
                "waits_until": rfc3339_if_any(waits_until_ns(run, name, state)),
                "outputs": state.outputs,
            }
            for name, state in run.steps.items()
        ],
        "approvals": [one.told() for one in asked(run)],
        "tokens": run.tokens,
        "artifacts": [artifact for _, artifact in story.artifacts()],
    }


class _Shown:
    """One line an event, on stderr, for a person who watches."""

    def __init__(self, quiet: bool) -> None:
        self._quiet = quiet
        self._began_ns: dict[str, int] = {}
        self._warned = False

    def event(self, run: Run, event: Event, note: str) -> None:
        if self._quiet or note or isinstance(event.body, Unreadable):
            return
        for told in _lines(run, event, self._began_ns):
            talk(told)

    def progress(self, text: str) -> None:
        talk(click.style(f"    {text[:200]}", dim=True))

    def waiting(self, run: Run) -> None:
        if self._quiet or self._warned:
            return
        self._warned = True
        if run.status == "pending":
            talk("  no planner has answered yet; is `remit up` running?")
        elif run.status == "queued":
            talk("  queued: its directive's other runs come first")


def _lines(run: Run, event: Event, began_ns: dict[str, int]) -> list[str]:
    body = event.body
    if isinstance(body, PlanCreated):
        return _planned(body)
    if isinstance(body, ApprovalRequested | ApprovalGranted | ApprovalRejected | ApprovalExpired):
        return _answers(run, event)
    if isinstance(body, RunCancelRequested):
        return [f"  the end was asked for by {event.tail or ANONYMOUS}{_because(body.reason)}"]
    if event.kind == "step.dispatched":
        began_ns[event.step] = event.at_ns
        return [_dispatched(run, event)]
    took_s = (event.at_ns - began_ns.get(event.step, event.at_ns)) / 1e9
    if isinstance(body, StepCompleted):
        host = f" on {body.host}" if body.host else ""
        return [f"  {event.step} {status('succeeded')}{host} in {took_s:.1f} s{_found(run, event.step, body)}"]
    if isinstance(body, StepFailed):
        state = run.steps.get(event.step)
        more = " (will be tried again)" if state is not None and state.status == "pending" else ""
        return [f"  {event.step} {status('failed')}: {body.error}: {body.message}{more}"]
    if isinstance(body, StepSkipped):
        return [f"  {event.step} {status('skipped')}: {body.reason}"]
    if isinstance(body, StepCancelRequested):
        return [f"  {event.step} is told to end"]
    if isinstance(body, StepCancelled):
        return [f"  {event.step} {status('cancelled')} after {took_s:.1f} s"]
    if isinstance(body, LlmCalled):
        used = [f"{n} {w}" if n is not None else f"unknown {w}" for n, w in
                ((body.input_tokens, "in"), (body.output_tokens, "out"))]  # fmt: skip
        return [f"  language model {body.request_model}: {body.outcome}, tokens {', '.join(used)}"]
    if isinstance(body, TimerFired):
        return _fired(event)
    if event.kind in ("run.completed", "goal.rejected"):
        return [f"run {run.id} {status(run.status)}: {run.reason}"]
    return []


def _planned(plan: PlanCreated) -> list[str]:
    new = [step for step in plan.steps if step.id not in plan.reused]
    lines = [f"  planned: {_names(new)}"] if new else []
    if plan.reused:
        lines.append(f"  reused from run {plan.retry_of}: {', '.join(plan.reused)}")
    return [*lines, *(f"  note: {note}" for note in plan.notes)]


def _answers(run: Run, event: Event) -> list[str]:
    """What is asked is told from the plan: the question's own message may be anybody's."""
    [one] = [one for one in asked(run) if one.step == event.step]
    name, body = name_of(event.step), event.body
    if isinstance(body, ApprovalRequested):
        who = f"{one.approvals_needed} of {', '.join(one.approvers)}" if one.approvers else "anybody"
        if not one.approvers and one.approvals_needed > 1:
            who = f"{one.approvals_needed} people"
        step = "" if event.step == GATE else f" {event.step}"
        return [
            f"  {name} {status('awaiting_approval')} by {who} until {rfc3339(one.expires_ns)[:19]}Z: {one.what}",
            f"    answer it: remit approve {run.id}{step} (or remit reject {run.id}{step})",
        ]
    if isinstance(body, ApprovalGranted):
        place = one.approved_by.index(event.tail) + 1
        who = event.tail or ANONYMOUS
        return [f"  {name} {status('approved')} by {who} ({place} of {one.approvals_needed}){_because(body.reason)}"]
    if isinstance(body, ApprovalRejected):
        return [f"  {name} {status('rejected')} by {event.tail or ANONYMOUS}{_because(body.reason)}"]
    return [f"  {name} was not approved in time: {status('expired')}"]


def _dispatched(run: Run, event: Event) -> str:
    again = f" (attempt {event.attempt})" if event.attempt > 1 else ""
    step = run.step_plan(event.step)
    if step.kind == "wait":
        inputs = step.inputs
        how_long = f"until {inputs['until']}" if "until" in inputs else f"for {inputs['seconds']} s"
        return f"  {event.step} waits {how_long}"
    return f"  {event.step} {status('running')}{again}"


def _found(run: Run, step: str, body: StepCompleted) -> str:
    """What a step came to, in a word or a line; "" where that is nothing for a line."""
    kind = run.step_plan(step).kind
    if kind == "decision":
        return f": decided {msgspec.json.encode(body.outputs.get('result')).decode()}"
    if kind == "notify":
        return f": notice ({body.outputs.get('severity')}): {body.outputs.get('message')}"
    verdict = body.outputs.get("verdict") or body.outputs.get("status")
    return f": {verdict}" if verdict else ""


def _fired(event: Event) -> list[str]:
    """Only timers that changed something come here."""
    what, _, rest = event.tail.partition(".")
    step = rest.rpartition(".")[0]
    if what == "approval":
        return [f"  {name_of(rest)} was not approved in time: {status('expired')}"]
    if what == "deadline":
        return ["  the run's time budget is over"]
    if what == "step":
        return [f"  {step} did not answer in time"]
    if what == "cancel":
        return [f"  {step} {status('cancelled')}: its worker did not answer"]
    return []


def _because(reason: str) -> str:
    return f": {reason}" if reason else ""


def _names(steps: list[Step]) -> str:
    return ", ".join(step.id for step in steps)

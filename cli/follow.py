"""Following one run live: its events from the stream, its progress from core NATS, to its end."""

import asyncio
import contextlib
from collections.abc import Mapping
from typing import Any

import click
import msgspec

from cli.speak import status, talk
from shared.bus import Bus
from shared.clock import rfc3339
from shared.events import Event, LlmCalled, PlanCreated, StepCompleted, StepFailed, StepSkipped, Unreadable
from shared.plan import Step
from shared.pull import Reader
from shared.run import Run
from shared.story import Story, read_story
from shared.subjects import EVENTS, of_run, progress

PATIENCE_S = 5.0


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
        with contextlib.suppress(msgspec.DecodeError, UnicodeDecodeError, AttributeError):
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
        "reason": run.reason,
        "goal": run.plan.goal if run.plan else None,
        "tasks": run.plan.tasks if run.plan else None,
        "directive": run.plan.directive.name if run.plan else None,
        "principal": run.principal or None,
        "plan_hash": run.plan.plan_hash if run.plan else None,
        "submitted_at": rfc3339(run.submitted_ns),
        "started_at": rfc3339(run.started_ns) if run.started_ns else None,
        "ended_at": rfc3339(run.ended_ns) if run.ended_ns else None,
        "steps": [
            {
                "id": name,
                "task": run.step_plan(name).task,
                "status": state.status,
                "attempts": state.attempt,
                "host": state.host,
                "error": state.error or None,
                "message": state.message or None,
                "outputs": state.outputs,
            }
            for name, state in run.steps.items()
        ],
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
        for line in _lines(run, event, self._began_ns):
            talk(line)

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


# What of a step's outputs is shown, the first that is there: a decision leaves `result`, a notice `message`.
_TOLD = ("verdict", "status", "result", "message")


def _lines(run: Run, event: Event, began_ns: dict[str, int]) -> list[str]:
    body = event.body
    if isinstance(body, PlanCreated):
        return [f"  planned: {_names(body.steps)}", *(f"  note: {note}" for note in body.notes)]
    if event.kind == "step.dispatched":
        began_ns[event.step] = event.at_ns
        again = f" (attempt {event.attempt})" if event.attempt > 1 else ""
        return [f"  {event.step} {status('running')}{again}"]
    took_s = (event.at_ns - began_ns.get(event.step, event.at_ns)) / 1e9
    if isinstance(body, StepCompleted):
        host = f" on {body.host}" if body.host else ""
        verdict = next((body.outputs[name] for name in _TOLD if body.outputs.get(name) is not None), "")
        verdict = str(verdict).lower() if isinstance(verdict, bool) else verdict
        return [f"  {event.step} {status('succeeded')}{host} in {took_s:.1f} s{f': {verdict}' if verdict else ''}"]
    if isinstance(body, StepFailed):
        state = run.steps.get(event.step)
        more = " (will be tried again)" if state is not None and state.status == "pending" else ""
        return [f"  {event.step} {status('failed')}: {body.error}: {body.message}{more}"]
    if isinstance(body, StepSkipped):
        return [f"  {event.step} {status('skipped')}: {body.reason}"]
    if isinstance(body, LlmCalled):
        used = [f"{n} {w}" if n is not None else f"unknown {w}" for n, w in
                ((body.input_tokens, "in"), (body.output_tokens, "out"))]  # fmt: skip
        return [f"  language model {body.request_model}: {body.outcome}, tokens {', '.join(used)}"]
    if event.kind in ("run.completed", "goal.rejected"):
        return [f"run {run.id} {status(run.status)}: {run.reason}"]
    return []


def _names(steps: list[Step]) -> str:
    return ", ".join(step.id for step in steps)

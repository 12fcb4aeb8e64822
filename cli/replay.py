"""`remit replay`: a run's story, event by event: when, by whom, what it changed, and why it followed."""

import sys
from pathlib import Path
from typing import Any

import click

from cli.reading import Message, bundle_of, read_run
from cli.runs import RUN
from cli.speak import archive_option, common, data, ends_well, line, plain, status, talk, with_bus
from shared.clock import parse_ns, rfc3339
from shared.errors import Malformed, NotFound
from shared.events import Event, Unreadable, read
from shared.plan import GATE
from shared.run import Early, Run, begin, evolve, refusal
from shared.run_approvals import ANONYMOUS
from shared.subjects import RUN_DIGITS_MAX

# Who says what, where the subject does not name somebody.
SPEAKERS = {
    "goal.submitted": "client",
    "goal.rejected": "planner",
    "plan.created": "planner",
    "step.completed": "worker",
    "step.failed": "worker or executor",
    "step.cancelled": "worker or executor",
    "llm.called": "worker",
    "timer.fired": "timer",
}
BY_PRINCIPAL = ("goal.submitted", "run.cancel_requested", "approval.granted", "approval.rejected")


@click.command()
@click.argument("run", type=RUN, required=False)
@click.option("--bundle", type=click.Path(path_type=Path), help="From a file of `remit proof export`, without a NATS.")
@click.option("--as-of", metavar="SEQ|TIME", help="Only up to this event, time (RFC 3339) or day.")
@click.option("--step", "stepping", is_flag=True, help="One event at a time, with Enter.")
@archive_option
@common
@ends_well
def replay(
    output: str, run: int | None, bundle: Path | None, as_of: str | None, stepping: bool, archive: str | None
) -> None:
    """Tell the story of RUN: each event, who said it, what it followed from, and what it changed."""
    if (run is None) == (bundle is None):
        raise click.UsageError("name a RUN, or --bundle FILE")
    if bundle is not None:
        file = bundle_of(bundle)
        run, messages = file.run, file.messages
    else:
        assert run is not None
        wanted = run
        messages = with_bus(lambda bus: read_run(bus, wanted, archive))
    told = story(run, until(messages, as_of))
    if output == "json":
        data({"run": run, "events": told})
        return
    for at, one in enumerate(told):
        _show(one)
        if stepping and sys.stdin.isatty() and at + 1 < len(told):
            talk("— Enter: the next event, q: enough ", end="")
            answer = sys.stdin.readline()
            if not answer or answer.strip().lower().startswith("q"):  # Ctrl-D is enough, too
                return


def until(messages: list[Message], as_of: str | None) -> list[Message]:
    """What had been said by then."""
    if as_of is None:
        return messages
    if as_of.isascii() and as_of.isdigit() and len(as_of) <= RUN_DIGITS_MAX:
        return [message for message in messages if message[1] <= int(as_of)]
    last = "T23:59:59.999999999Z" if len(as_of) == len("2026-11-21") else ""  # a day as it stood at its end
    try:
        until_ns = parse_ns(as_of + last)
    except ValueError as error:
        raise Malformed(f"{error}, and no sequence number either", field="as-of") from error
    # In microseconds, as times are told: the time that stands beside an event means it, too, as in `remit sql --as-of`.
    return [message for message in messages if message[2] // 1000 <= until_ns // 1000]


def story(run: int, messages: list[Message]) -> list[dict[str, Any]]:
    """The events as plain data, in order; each with the run's and the step's state before and after it."""
    early = Early()
    state: Run | None = None
    told: list[dict[str, Any]] = []
    causes = Causes()
    for subject, seq, at_ns, content in messages:
        event = read(subject, seq, at_ns, content)
        before = state
        if seq == run and event.kind == "goal.submitted":
            state = begin(event, early.take(run))
        elif state is None:
            early.note(event)
        else:
            state = evolve(state, event)
        told.append(_told(event, subject, before, state, causes.of(event)))
        causes.heard(event, before, state)
    if state is None:
        raise NotFound(f"the goal of run {run} is not among these events", field="run")
    return told


def _told(event: Event, subject: str, before: Run | None, after: Run | None, cause: int) -> dict[str, Any]:
    changed = after is not before
    note = ""
    if before is not None and not changed:
        note = refusal(before, event)
    elif after is None:
        note = "there was no such run yet"
    step = _step_of(event, after)
    return {
        "seq": event.seq,
        "at": rfc3339(event.at_ns),
        "subject": subject,
        "by": by_whom(event),
        "cause": cause or None,
        "applied": changed,
        "note": note or None,
        "run_before": before.status if before else None,
        "run_after": after.status if after else None,
        "step": step or None,
        "step_before": _state(before, step),
        "step_after": _state(after, step),
        "what": what(event, after) or None,
    }


def _step_of(event: Event, run: Run | None) -> str:
    if event.step:
        return event.step
    name = event.tail.split(".")[1] if event.kind == "timer.fired" and event.tail.count(".") else ""
    return name if run is not None and name in run.steps else ""


def _state(run: Run | None, step: str) -> str | None:
    """The step's status and attempt, or the state of the question about the whole run."""
    if run is None or not step:
        return None
    if step == GATE:
        return run.approvals[GATE].status if GATE in run.approvals else None
    state = run.steps.get(step)
    if state is None:
        return None
    return f"{state.status} ({state.attempt})" if state.attempt else state.status


def by_whom(event: Event) -> str:
    """Who has said it, by the subject; the host where the body names one."""
    if event.kind in BY_PRINCIPAL:
        return event.tail or ANONYMOUS
    speaker = SPEAKERS.get(event.kind, "executor")
    host = getattr(event.body, "host", None)
    return f"worker on {host}" if host else speaker


class Causes:
    """Which event a fact follows from: the last one that changed what it depends on."""

    def __init__(self) -> None:
        self._last = 0  # that changed the run
        self._by_kind: dict[str, int] = {}
        self._by_step: dict[str, int] = {}
        self._asked: dict[str, int] = {}

    def of(self, event: Event) -> int:
        """The sequence of the event that this one followed; 0 for what nobody in here has called for."""
        kind = event.kind
        if kind in ("goal.submitted", "run.cancel_requested"):
            return 0
        if kind in ("plan.created", "goal.rejected"):
            return self._by_kind.get("goal.submitted", 0)
        if kind in ("approval.granted", "approval.rejected"):
            return self._asked.get(event.step, 0)
        if kind in ("step.completed", "step.failed", "step.cancelled", "llm.called", "step.cancel_requested"):
            return self._by_step.get(event.step, 0)
        if kind == "timer.fired":
            what, _, rest = event.tail.partition(".")
            if what == "deadline":
                return self._by_kind.get("run.started", 0)
            if what == "approval":
                return self._asked.get(rest, 0)
            return self._by_step.get(rest.split(".")[0], 0)
        return self._last

    def heard(self, event: Event, before: Run | None, after: Run | None) -> None:
        if after is before or after is None:
            return
        self._last = event.seq
        self._by_kind[event.kind] = event.seq
        if event.kind == "approval.requested":
            self._asked[event.step] = event.seq
        elif event.step:
            self._by_step[event.step] = event.seq


def what(event: Event, run: Run | None) -> str:
    """What the event says, in one line."""
    body = event.body
    if isinstance(body, Unreadable):
        return f"cannot be read: {body.reason}"
    kind = event.kind
    if kind == "plan.created":
        return f"{len(body.steps)} steps under {body.directive.name}: {', '.join(step.id for step in body.steps)}"
    if kind == "goal.rejected":
        return f"{body.field}: {body.reason}" if body.field else str(body.reason)
    if kind == "step.dispatched":
        until = f", {body.token_grant} tokens" if body.token_grant else ""
        return f"attempt {event.attempt} of {event.step} to {event.tail}{until}"
    if kind == "step.completed":
        kept = ", ".join(one.name for one in body.artifacts)
        return f"{event.step} is done" + (f", left {kept}" if kept else "")
    if kind == "step.failed":
        return f"{event.step}: {body.error}{': ' + body.message if body.message else ''}"
    if kind == "approval.requested":
        return f"{body.what}, until {body.expires_at}"
    if kind == "llm.called":
        used = (body.input_tokens, body.output_tokens)
        return f"{body.request_model}: " + ("usage unknown" if None in used else f"{used[0]} in, {used[1]} out")
    if kind == "timer.fired":
        return event.tail
    if kind == "run.completed":
        return f"{body.status}: {body.reason}"
    return str(getattr(body, "reason", "") or "")


def _show(one: dict[str, Any]) -> None:
    head = f"{one['seq']:>6}  {one['at'][11:23]}  {one['subject']}"
    followed = f", after {one['cause']}" if one["cause"] else ""
    line(f"{head}  by {one['by']}{followed}")
    if one["what"]:
        line(f"        {plain(' '.join(str(one['what']).split()))}")
    for name, before, after in (
        ("run", one["run_before"], one["run_after"]),
        ("approval" if one["step"] == GATE else one["step"], one["step_before"], one["step_after"]),
    ):
        if before != after and after:
            line(f"        {name}: {status(before) + ' → ' if before else ''}{status(after)}")
    if not one["applied"]:
        line(f"        it changed nothing: {one['note']}")

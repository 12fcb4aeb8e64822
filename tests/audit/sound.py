"""Sound streams of every kind, made by the engine's own `decide`, and the tools that break them."""

import hashlib
import json
from collections.abc import Callable
from typing import Any

from shared.events import encode
from shared.plan import GATE, Budgets, Retry
from shared.subjects import (
    approval_granted,
    approval_rejected,
    goal_submitted,
    llm_called,
    plan_created,
    run_cancel_requested,
    run_completed,
    run_started,
    schedule_principal,
    schedule_ticked,
    step_cancelled,
    step_dispatched,
    step_failed,
    step_skipped,
)
from tests import controls
from tests.controls import Stream
from tests.executor.test_kinds_of_steps import Played, step

Message = tuple[str, int, int, bytes]
TICK_S = controls.T0_NS // 1_000_000_000


class Told(Played):
    """A run that is played with the hash of its own plan."""

    def start(self) -> None:
        self.stream.put(run_started(self.run), controls.started(plan_hash=self.plan.plan_hash))
        self.decide()

    def yes(self, step: str, who: str) -> None:
        self.put(approval_granted(self.run, step, who), controls.granted(self.run, step, plan_hash=self.plan.plan_hash))

    @property
    def messages(self) -> list[Message]:
        return self.stream.messages


def chain() -> list[Message]:
    run = Told(step("a"), step("b", needs=["a"], inputs={"n": 3}))
    run.done("a", n=1)
    run.done("b")
    return run.messages


def alone() -> list[Message]:
    run = Told(step("a"))
    run.done("a")
    return run.messages


def retried() -> list[Message]:
    run = Told(step("a", retry=Retry(backoff_s=5), max_attempts=2))
    run.put(step_failed(run.run, "a", 1), controls.failed())
    run.fire("backoff.a.1")
    run.done("a", 2)
    return run.messages


def lost() -> list[Message]:
    run = Told(step("a", max_attempts=1), step("b", needs=["a"]))
    run.lost("a")
    return run.messages


def overtaken() -> list[Message]:
    """One executor skips what another, which has not read that the run is over, has dispatched again just before."""
    run = Told(step("a"), step("b", max_attempts=1), step("c", needs=["a", "b"]))
    dispatch = next(data for subject, _, _, data in run.messages if subject.startswith("step.dispatched.1.a"))
    run.stream.put(step_failed(run.run, "a", 1), controls.failed())
    run.stream.put(step_failed(run.run, "b", 1), controls.failed())
    run.stream.put(step_dispatched(run.run, "a", 2, "noop"), dispatch)
    run.stream.put(step_skipped(run.run, "a"), controls.skipped(reason="step b failed", cause="stopped"))
    run.put(step_failed(run.run, "a", 2), controls.failed())
    return run.messages


def late() -> list[Message]:
    """One executor, which has not read that the time is over, dispatches the budget's last step and skips the next."""
    run = Told(step("a"), step("b"), step("c"), budgets=Budgets(max_steps=2, time_budget_s=60))
    at = place(run.messages, "step.dispatched.1.b.1.noop")
    over_ns = run.messages[at][2] + 60_000_000_000
    steps = {"a": "failed", "b": "skipped", "c": "skipped"}
    return numbered(
        [
            *run.messages[:at],
            ("timer.fired.1.deadline", 0, over_ns, encode(controls.fired())),
            *run.messages[at:],
            ("step.skipped.1.b", 0, over_ns, encode(controls.skipped(reason="the time is over", cause="stopped"))),
            (
                "run.completed.1",
                0,
                over_ns,
                encode(controls.run_over(status="timed_out", steps=steps, tokens=controls.Tokens())),
            ),
        ]
    )


def of_two_minds() -> list[Message]:
    """One executor skips a step of a cancelled run; the other, which has read of no cancel, dispatches all it may."""
    run = Told(step("a"), step("b"), step("c"), budgets=Budgets(max_steps=2))
    at = place(run.messages, "step.dispatched.1.a.1.noop")
    at_ns = run.messages[at][2]
    end = controls.run_over(
        status="cancelled", steps={"a": "skipped", "b": "cancelled", "c": "skipped"}, tokens=controls.Tokens()
    )
    return numbered(
        [
            *run.messages[:at],
            ("run.cancel_requested.1.ann", 0, at_ns, encode(controls.cancel_requested())),
            ("step.skipped.1.a", 0, at_ns, encode(controls.skipped(cause="stopped"))),
            *run.messages[at:],
            ("step.cancelled.1.b.1", 0, at_ns, encode(controls.cancelled())),
            ("run.completed.1", 0, at_ns, encode(end)),
        ]
    )


def gated(**directive: Any) -> list[Message]:
    fields = {"approval_required": True, "approvers": ["ann", "bob", "cy"], "approvals_needed": 2, **directive}
    run = Told(step("a"), directive=fields)
    run.yes(GATE, "ann")
    run.yes(GATE, "bob")
    run.start()
    run.done("a")
    return run.messages


def asked() -> list[Message]:
    run = Told(step("a", approval=True), directive={"approvers": ["ann"]})
    run.yes("a", "ann")
    run.done("a")
    return run.messages


def refused() -> list[Message]:
    run = Told(step("a", approval=True), directive={"approvers": ["ann"]})
    no = controls.refused(run.run, "a", plan_hash=run.plan.plan_hash)
    run.put(approval_rejected(run.run, "a", "ann"), no)
    return run.messages


def unanswered() -> list[Message]:
    run = Told(step("a", approval=True))
    run.fire("approval.a")
    return run.messages


def spending(*used: int | None, budget: int = 100) -> list[Message]:
    run = Told(
        step("a", uses_tokens=True), step("b", uses_tokens=True, needs=["a"]), budgets=Budgets(token_budget=budget)
    )
    for name, tokens in zip("ab", used or (20, 30), strict=True):
        call = controls.called(input_tokens=tokens, output_tokens=tokens)
        run.put(llm_called(run.run, name, "1-1"), call)
        if name in run.steps and run.steps[name] == "running":
            run.done(name)
    return run.messages


def fan(**changes: Any) -> list[Message]:
    run = Told(step("a"), step("b"), step("c"), **changes)
    for name in "abc":
        if run.steps[name] == "running":
            run.done(name)
    return run.messages


def narrow() -> list[Message]:
    return fan(directive={"max_parallel_steps": 1})


def used_up() -> list[Message]:
    return fan(budgets=Budgets(max_steps=2))


def undone() -> list[Message]:
    run = Told(
        step("a", compensation="undo-a"),
        step("b", needs=["a"], on_failure="rollback", max_attempts=1),
        step("undo-a"),
    )
    run.done("a")
    run.lost("b")
    run.done("undo-a")
    return run.messages


def cancelled() -> list[Message]:
    run = Told(step("a"), step("b", needs=["a"]))
    run.put(run_cancel_requested(run.run, "ann"), controls.cancel_requested())
    run.put(step_cancelled(run.run, "a", 1), controls.cancelled())
    return run.messages


def cancelled_before() -> list[Message]:
    run = Told(step("a"), directive={"approval_required": True})
    run.put(run_cancel_requested(run.run), controls.cancel_requested())
    return run.messages


def waited() -> list[Message]:
    run = Told(step("a", kind="wait", inputs={"seconds": 5}), step("b", needs=["a"]))
    run.fire("wait.a.1")
    run.done("b")
    return run.messages


def decided() -> list[Message]:
    run = Told(
        step("a"),
        step("b", kind="decision", inputs={"condition": "steps.a.outputs.n > 2"}, needs=["a"]),
        step("c", needs=["b"], when="decisions.b"),
    )
    run.done("a", n=1)
    return run.messages


def timed_out() -> list[Message]:
    run = Told(step("a"), step("b", needs=["a"]), budgets=Budgets(time_budget_s=60))
    run.fire("deadline")
    return run.messages


def kept() -> list[Message]:
    run = Told(step("a"))
    run.put(f"step.completed.{run.run}.a.1", controls.completed())
    return run.messages


def rejected() -> list[Message]:
    stream = Stream()
    stream.put(f"goal.rejected.{stream.goal()}", controls.goal_rejected_body())
    return stream.messages


def active() -> list[Message]:
    return Told(step("a"), step("b", needs=["a"])).messages


def scheduled() -> list[Message]:
    stream = Stream()
    goal = {"tasks": ["noop"]}
    stream.put(schedule_ticked("nightly", TICK_S), controls.ticked(goal=goal))
    stream.put(goal_submitted(schedule_principal("nightly", TICK_S)), encode(goal))
    stream.put(schedule_ticked("nightly", TICK_S + 60), controls.ticked(outcome="skipped", reason="busy", goal=None))
    stream.put("timer.fired.schedule.nightly", encode(controls.fired(due="")))
    stream.put("goal.rejected.2", controls.goal_rejected_body())
    return stream.messages


def one_by_one() -> list[Message]:
    """Two runs of a directive that lets one run at a time: the second starts when the first is over."""
    stream, made = Stream(), controls.plan(directive=controls.directive("single", max_concurrent_runs=1))
    runs = [stream.goal(), stream.goal()]
    for run in runs:
        stream.put(plan_created(run), made)
    stream.put(f"run.queued.{runs[1]}", controls.queued(directive="single"))
    for run in runs:
        stream.put(run_started(run), controls.started(directive="single", plan_hash=made.plan_hash))
        deadline_ns = stream.messages[-1][2] + 3600 * 1_000_000_000
        dispatch = controls.dispatched(deadline=controls.rfc3339(deadline_ns), timeout_s=60, plan_hash=made.plan_hash)
        stream.put(step_dispatched(run, "a", 1, "noop"), dispatch)
        stream.put(f"step.completed.{run}.a.1", controls.completed(artifacts=[]))
        stream.put(run_completed(run), controls.run_over(tokens=controls.Tokens()))
    return stream.messages


SOUND: dict[str, Callable[[], list[Message]]] = {
    one.__name__: one
    for one in (
        chain, alone, retried, lost, overtaken, late, of_two_minds, gated, asked, refused, unanswered, spending, fan,
        narrow, used_up, undone, cancelled, cancelled_before, waited, decided, timed_out, kept, rejected, active,
        scheduled, one_by_one,
    )
}  # fmt: skip


# -- breaking ----------------------------------------------------------------------------------------------


def numbered(messages: list[Message]) -> list[Message]:
    """The messages as one stream again, each stamp no earlier than the one before."""
    made: list[Message] = []
    for subject, _, at_ns, data in messages:
        made.append((subject, len(made) + 1, max(at_ns, made[-1][2] if made else 0), data))
    return made


def place(messages: list[Message], subject: str) -> int:
    return next(at for at, message in enumerate(messages) if message[0] == subject)


def without(messages: list[Message], *subjects: str) -> list[Message]:
    for subject in subjects:
        place(messages, subject)  # it is there
    return numbered([message for message in messages if message[0] not in subjects])


def moved(messages: list[Message], subject: str, before: str) -> list[Message]:
    """The message taken out and put in front of another one, with that one's stamp."""
    taken = messages[place(messages, subject)]
    rest = [message for message in messages if message is not taken]
    at = place(rest, before)
    return numbered([*rest[:at], (taken[0], 0, rest[at][2], taken[3]), *rest[at:]])


def added(messages: list[Message], behind: str, subject: str, body: Any) -> list[Message]:
    at = place(messages, behind) + 1
    data = body if isinstance(body, bytes) else encode(body)
    return numbered([*messages[:at], (subject, 0, messages[at - 1][2], data), *messages[at:]])


def edited(messages: list[Message], subject: str, **fields: Any) -> list[Message]:
    """The message with other values in its body."""
    at = place(messages, subject)
    body = {**json.loads(messages[at][3]), **fields}
    changed = (subject, messages[at][1], messages[at][2], json.dumps(body, separators=(",", ":")).encode())
    return [*messages[:at], changed, *messages[at + 1 :]]


def renamed(messages: list[Message], subject: str, new: str) -> list[Message]:
    at = place(messages, subject)
    return [*messages[:at], (new, *messages[at][1:]), *messages[at + 1 :]]


def later(messages: list[Message], subject: str, seconds: float) -> list[Message]:
    """The message, and all behind it, stamped that much later."""
    at = place(messages, subject)
    return [
        (name, seq, at_ns + (int(seconds * 1_000_000_000) if seq > at else 0), data)
        for name, seq, at_ns, data in messages
    ]


def replanned(messages: list[Message], change: Callable[[dict[str, Any]], None]) -> list[Message]:
    """Another plan, whose hash is its own and is named wherever the old one was."""
    at = place(messages, "plan.created.1")
    plan = json.loads(messages[at][3])
    old = plan.pop("plan_hash")
    change(plan)
    text = json.dumps(plan, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    new = hashlib.sha256(text.encode()).hexdigest()
    data = json.dumps({**plan, "plan_hash": new}).encode()
    return [
        (name, seq, at_ns, data if seq == at + 1 else body.replace(old.encode(), new.encode()))
        for name, seq, at_ns, body in messages
    ]

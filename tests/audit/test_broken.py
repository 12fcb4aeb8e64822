"""Broken streams, each by one hand's stroke, each caught by the rule that it breaks."""

from collections.abc import Callable
from typing import Any

import pytest

from shared.audit.findings import RULES
from shared.audit.of_stream import audit
from shared.plan import GATE
from tests import controls
from tests.audit.sound import (
    Message,
    added,
    alone,
    asked,
    cancelled,
    chain,
    decided,
    edited,
    fan,
    gated,
    later,
    lost,
    moved,
    narrow,
    numbered,
    one_by_one,
    overtaken,
    place,
    refused,
    renamed,
    replanned,
    retried,
    scheduled,
    spending,
    undone,
    used_up,
    waited,
    without,
)

NO_HASH = "0" * 64
YES = f"approval.granted.1.{GATE}"


def set_directive(name: str, value: Any) -> Callable[[dict[str, Any]], None]:
    return lambda plan: plan["directive"].update({name: value})


def set_budget(name: str, value: int) -> Callable[[dict[str, Any]], None]:
    return lambda plan: plan["budgets"].update({name: value})


def set_step(at: int, name: str, value: Any) -> Callable[[dict[str, Any]], None]:
    return lambda plan: plan["steps"][at].update({name: value})


def repeated(messages: list[Message], behind: str, subject: str, new: str) -> list[Message]:
    """The body of one message under another subject."""
    return added(messages, behind, new, messages[place(messages, subject)][3])


def plan_dispatched_twice() -> list[Message]:
    return added(
        alone(), "step.dispatched.1.a.1.noop", "step.dispatched.1.a.2.noop", alone_body("step.dispatched.1.a.1.noop")
    )


def alone_body(subject: str) -> bytes:
    messages = alone()
    return messages[place(messages, subject)][3]


def two_ends() -> list[Message]:
    messages = alone()
    return numbered([*messages, messages[place(messages, "run.completed.1")]])


def ended_after_rejection() -> list[Message]:
    messages = [controls_goal(), ("goal.rejected.1", 2, controls.T0_NS, b'{"reason":"no"}')]
    return numbered([*messages, ("run.completed.1", 0, controls.T0_NS, alone_body("run.completed.1"))])


def controls_goal() -> Message:
    return alone()[0]


def said_before_goal() -> list[Message]:
    messages = alone()
    stray = ("step.completed.2.a.1", 1, messages[0][2], b'{"outputs":{}}')
    return [stray, *[(again(subject), seq + 1, at_ns, data) for subject, seq, at_ns, data in messages]]


def again(subject: str) -> str:
    return subject.replace(".1", ".2", 1) if ".1" in subject else subject


def holed() -> list[Message]:
    messages = chain()
    return messages[:3] + messages[4:]


def swapped() -> list[Message]:
    messages = chain()
    return [*messages[:3], messages[4], messages[3], *messages[5:]]


def doubled() -> list[Message]:
    messages = chain()
    return [*messages[:4], messages[3], *messages[4:]]


def rested_too_little() -> list[Message]:
    return without(retried(), "timer.fired.1.backoff.a.1")


def started_together() -> list[Message]:
    messages = one_by_one()
    return moved(messages, "run.started.2", "run.started.1")


def voted_twice() -> list[Message]:
    """Ann's voice stands for bob's, too."""
    return renamed(gated(), f"{YES}.bob", f"{YES}.ann")


def too_late() -> list[Message]:
    return later(asked(), "approval.granted.1.a.ann", 100_000)


def goal_said_twice() -> list[Message]:
    messages = scheduled()
    return numbered([*messages, messages[1]])


def undone_without_need() -> list[Message]:
    """What was rolled back had not failed."""
    return replanned(undone(), set_step(1, "on_failure", "stop"))


def step_unknown() -> list[Message]:
    dispatch = alone_body("step.dispatched.1.a.1.noop")
    return added(alone(), "run.started.1", "step.dispatched.1.z.1.noop", dispatch)


def narrow_overlap() -> list[Message]:
    """The second is dispatched before the first has ended."""
    return moved(narrow(), "step.dispatched.1.b.1.noop", "step.completed.1.a.1")


def other_host(plan: dict[str, Any]) -> None:
    plan["steps"][1]["host"] = "cellar"
    plan["directive"]["hosts"] = ["attic"]


def expired_too_soon() -> list[Message]:
    word = b'{"expired_at":"2026-11-18T12:00:00Z"}'
    return added(asked(), "approval.requested.1.a", "approval.expired.1.a", word)


def run_on() -> list[Message]:
    """The step is dispatched all the same, though what it needs has failed."""
    messages = lost()
    dispatch = messages[place(messages, "step.dispatched.1.a.1.noop")][3]
    return added(messages, "step.failed.1.a.1", "step.dispatched.1.b.1.noop", dispatch)


# (what was done to a sound stream, the rule that it breaks, the stream)
BROKEN: list[tuple[str, str, Callable[[], list[Message]]]] = [
    ("an event is deleted", "sequence", holed),
    ("two events are swapped", "sequence", swapped),
    ("an event is there twice", "sequence", doubled),
    ("the stream's beginning is cut off", "sequence", lambda: chain()[2:]),
    (
        "a result is said again on its subject",
        "create_only",
        lambda: added(chain(), "step.completed.1.a.1", "step.completed.1.a.1", controls.completed()),
    ),
    (
        "a call is said twice",
        "create_only",
        lambda: added(spending(), "llm.called.1.a.1-1", "llm.called.1.a.1-1", controls.called()),
    ),
    ("a result is there before the goal", "early", said_before_goal),
    ("the run ends twice", "one_end", two_ends),
    ("a rejected goal ends as a run", "one_end", ended_after_rejection),
    ("the plan is another message", "plan", lambda: edited(alone(), "plan.created.1", steps=7)),
    ("the plan has no steps", "plan", lambda: replanned(alone(), lambda plan: plan.update(steps=[]))),
    ("a step needs a later one", "plan", lambda: replanned(chain(), set_step(0, "needs", ["b"]))),
    ("the plan was changed", "plan_hash", lambda: edited(chain(), "plan.created.1", goal="do more")),
    ("the plan's hash was changed", "plan_hash", lambda: edited(chain(), "plan.created.1", plan_hash=NO_HASH)),
    ("the run starts under another plan", "plan_hash", lambda: edited(chain(), "run.started.1", plan_hash=NO_HASH)),
    (
        "a step is dispatched under another plan",
        "plan_hash",
        lambda: edited(chain(), "step.dispatched.1.b.1.noop", plan_hash=NO_HASH),
    ),
    (
        "the question names another plan",
        "plan_hash",
        lambda: edited(asked(), "approval.requested.1.a", plan_hash=NO_HASH),
    ),
    ("a task is not allowed", "allowed", lambda: replanned(chain(), set_directive("task_list", ["fail"]))),
    (
        "the budget is over the directive's most",
        "allowed",
        lambda: replanned(chain(), lambda plan: plan["directive"]["maximum"].update(max_steps=5)),
    ),
    ("a host is not allowed", "allowed", lambda: replanned(lost(), other_host)),
    ("the run starts before its plan", "transition", lambda: moved(chain(), "run.started.1", "plan.created.1")),
    (
        "a step is dispatched before the run starts",
        "transition",
        lambda: moved(chain(), "step.dispatched.1.a.1.noop", "run.started.1"),
    ),
    ("a step is dispatched that no plan has", "transition", step_unknown),
    ("the start is missing", "transition", lambda: without(chain(), "run.started.1")),
    (
        "a step is told to end, and nobody has stopped the run",
        "transition",
        lambda: without(cancelled(), "run.cancel_requested.1.ann"),
    ),
    ("a wait is over before its timer", "transition", lambda: without(waited(), "timer.fired.1.wait.a.1")),
    ("what did not fail is undone", "transition", undone_without_need),
    (
        "a step is dispatched before what it needs",
        "needs",
        lambda: moved(chain(), "step.dispatched.1.b.1.noop", "step.completed.1.a.1"),
    ),
    ("the need's result is missing", "needs", lambda: without(chain(), "step.completed.1.a.1")),
    ("a step runs although its need has failed", "needs", run_on),
    ("a second attempt while the first runs", "attempts", plan_dispatched_twice),
    ("the first attempt is missing", "attempts", lambda: without(retried(), "step.dispatched.1.a.1.noop")),
    (
        "more attempts than the plan gives",
        "attempts",
        lambda: replanned(retried(), set_step(0, "max_attempts", 1)),
    ),
    ("a step is tried again without its rest", "backoff", rested_too_little),
    (
        "a step is given other inputs",
        "dispatch",
        lambda: edited(chain(), "step.dispatched.1.b.1.noop", inputs={"n": 4}),
    ),
    (
        "a step is given more time",
        "dispatch",
        lambda: edited(chain(), "step.dispatched.1.b.1.noop", timeout_s=600),
    ),
    (
        "a step is given another deadline",
        "dispatch",
        lambda: edited(chain(), "step.dispatched.1.b.1.noop", deadline="2030-01-01T00:00:00.000000Z"),
    ),
    (
        "a step is dispatched to another task",
        "dispatch",
        lambda: renamed(chain(), "step.dispatched.1.b.1.noop", "step.dispatched.1.b.1.fail"),
    ),
    (
        "a step is granted tokens and uses none",
        "dispatch",
        lambda: edited(alone(), "step.dispatched.1.a.1.noop", token_grant=5),
    ),
    (
        "a step is skipped, and nothing calls for it",
        "skip",
        lambda: replanned(lost(), set_step(0, "on_failure", "continue")),
    ),
    (
        "a skip that came while the step ran counts, and nothing called for it",
        "skip",
        lambda: edited(overtaken(), "step.skipped.1.a", cause="need"),
    ),
    (
        "a step that was lost after its skip is said to have failed",
        "end_steps",
        lambda: edited(overtaken(), "run.completed.1", steps={"a": "failed", "b": "failed", "c": "skipped"}),
    ),
    (
        "a step is skipped for a condition that it has not",
        "skip",
        lambda: replanned(decided(), set_step(2, "when", None)),
    ),
    (
        "a step is skipped for want of steps, and some are left",
        "skip",
        lambda: replanned(used_up(), set_budget("max_steps", 3)),
    ),
    ("a failed run is said to have succeeded", "end", lambda: edited(lost(), "run.completed.1", status="succeeded")),
    ("a succeeded run is said to have failed", "end", lambda: edited(chain(), "run.completed.1", status="failed")),
    (
        "a cancelled run is said to have succeeded",
        "end",
        lambda: edited(cancelled(), "run.completed.1", status="succeeded"),
    ),
    (
        "nobody has cancelled the run that is cancelled",
        "end",
        lambda: edited(chain(), "run.completed.1", status="cancelled"),
    ),
    ("the end is another message", "end", lambda: edited(chain(), "run.completed.1", status="splendid")),
    (
        "the end gives a step another state",
        "end_steps",
        lambda: edited(chain(), "run.completed.1", steps={"a": "succeeded", "b": "failed"}),
    ),
    ("the end forgets a step", "end_steps", lambda: edited(chain(), "run.completed.1", steps={"a": "succeeded"})),
    (
        "the end knows a step more",
        "end_steps",
        lambda: edited(alone(), "run.completed.1", steps={"a": "succeeded", "z": "succeeded"}),
    ),
    ("the last step's result is missing", "end_steps", lambda: without(chain(), "step.completed.1.b.1")),
    ("a call is missing", "tokens", lambda: without(spending(), "llm.called.1.a.1-1")),
    ("a call's tokens were changed", "tokens", lambda: edited(spending(), "llm.called.1.a.1-1", input_tokens=19)),
    (
        "the totals were changed",
        "tokens",
        lambda: edited(spending(), "run.completed.1", tokens={"input": 50, "output": 0, "unknown_calls": 0}),
    ),
    ("more steps are dispatched than the budget", "max_steps", lambda: replanned(fan(), set_budget("max_steps", 2))),
    (
        "more steps run at a time than may",
        "max_parallel_steps",
        lambda: replanned(fan(), set_directive("max_parallel_steps", 2)),
    ),
    ("more runs run at a time than may", "max_concurrent_runs", started_together),
    (
        "more tokens are granted than the budget",
        "token_budget",
        lambda: replanned(spending(), set_budget("token_budget", 60)),
    ),
    (
        "a step is dispatched behind the deadline",
        "time_budget",
        lambda: later(chain(), "step.dispatched.1.b.1.noop", 4_000),
    ),
    (
        "the run starts unasked",
        "approval",
        lambda: without(gated(), f"approval.requested.1.{GATE}", f"{YES}.ann", f"{YES}.bob"),
    ),
    ("a step is dispatched unanswered", "approval", lambda: without(asked(), "approval.granted.1.a.ann")),
    (
        "a step is dispatched before its yes",
        "approval",
        lambda: moved(asked(), "step.dispatched.1.a.1.noop", "approval.granted.1.a.ann"),
    ),
    (
        "the yes is a stranger's",
        "approver",
        lambda: renamed(asked(), "approval.granted.1.a.ann", "approval.granted.1.a.eve"),
    ),
    (
        "the no is a stranger's",
        "approver",
        lambda: renamed(refused(), "approval.rejected.1.a.ann", "approval.rejected.1.a.eve"),
    ),
    ("who asked says yes", "requester", lambda: renamed(asked(), "goal.submitted", "goal.submitted.ann")),
    ("one yes too few", "quorum", lambda: without(gated(), f"{YES}.bob")),
    ("one voice counts for two", "quorum", voted_twice),
    ("the yes came too late", "expiry", too_late),
    ("the question is said to have expired before its time", "expiry", expired_too_soon),
    (
        "the yes is to another plan",
        "answer",
        lambda: edited(asked(), "approval.granted.1.a.ann", plan_hash=NO_HASH),
    ),
    ("the yes is to another run", "answer", lambda: edited(asked(), "approval.granted.1.a.ann", run=7)),
    ("the yes is a no", "answer", lambda: edited(asked(), "approval.granted.1.a.ann", answer="rejected")),
    (
        "the question names other approvers",
        "question",
        lambda: edited(asked(), "approval.requested.1.a", approvers=["ann", "eve"]),
    ),
    (
        "the question asks for fewer",
        "question",
        lambda: edited(gated(), f"approval.requested.1.{GATE}", approvals_needed=1),
    ),
    ("a tick has two goals", "tick", goal_said_twice),
    (
        "a tick's goal was changed",
        "tick",
        lambda: edited(scheduled(), "goal.submitted.schedule_nightly_1795000000", tasks=["fail"]),
    ),
    (
        "a goal has no tick",
        "tick",
        lambda: renamed(scheduled(), "schedule.ticked.nightly.1795000000", "schedule.ticked.hourly.1795000000"),
    ),
    (
        "a skipped tick has a goal",
        "tick",
        lambda: edited(scheduled(), "schedule.ticked.nightly.1795000000", outcome="skipped"),
    ),
    ("a narrow run's steps overlap", "max_parallel_steps", narrow_overlap),
    (
        "a step that has succeeded is dispatched again behind the end",
        "attempts",
        lambda: repeated(chain(), "run.completed.1", "step.dispatched.1.a.1.noop", "step.dispatched.1.a.2.noop"),
    ),
    (
        "a dispatch is said again behind the end",
        "create_only",
        lambda: repeated(chain(), "run.completed.1", "step.dispatched.1.a.1.noop", "step.dispatched.1.a.1.noop"),
    ),
    (
        "a step that has succeeded is skipped, and nothing called for it",
        "skip",
        lambda: added(chain(), "step.completed.1.a.1", "step.skipped.1.a", controls.skipped(cause="stopped")),
    ),
    (
        "a step is told to end that was never dispatched",
        "transition",
        lambda: added(
            cancelled(), "run.cancel_requested.1.ann", "step.cancel_requested.1.b.1", controls.told_to_cancel()
        ),
    ),
    (
        "a question where the plan asks nothing",
        "question",
        lambda: added(chain(), "run.started.1", "approval.requested.1.a", controls.asked(step="a")),
    ),
    (
        "the question is open for longer than the plan says",
        "question",
        lambda: edited(asked(), "approval.requested.1.a", expires_at="2027-11-26T00:00:00.000000Z"),
    ),
    (
        "the question is open for less time than the plan says",
        "question",
        lambda: edited(asked(), "approval.requested.1.a", expires_at="2026-11-18T20:00:00.000000Z"),
    ),
    (
        "the question is said to have expired, and was answered before",
        "expiry",
        lambda: added(asked(), "approval.granted.1.a.ann", "approval.expired.1.a", b"{}"),
    ),
]


@pytest.mark.parametrize(("what", "rule", "broken"), BROKEN, ids=[what for what, _, _ in BROKEN])
def test_what_is_broken_is_named_by_its_rule(what: str, rule: str, broken: Callable[[], list[Message]]) -> None:
    messages = broken()
    found = audit(messages).findings
    assert found, what
    assert found[0].rule == rule, found
    assert found[0].text
    seqs = {seq for _, seq, _, _ in messages}
    for one in found:
        assert one.events and set(one.events) <= seqs, one


def test_there_are_forty_and_every_rule_of_the_stream_is_among_them() -> None:
    assert len(BROKEN) >= 40
    assert {rule for _, rule, _ in BROKEN} == RULES.keys() - {"artifact"}  # that one asks the store

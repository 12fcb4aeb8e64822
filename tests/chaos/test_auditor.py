"""The auditor can find: good streams pass, and every damage to one of them is named."""

import hashlib
import json
from typing import Any

import pytest

from tests.auditor import NS, Message, audit, tally_void

Told = tuple[Any, ...]  # subject and body; a third is the second at which it is stamped, else one behind the last
Stream = list[Told]


def plan(*steps: dict[str, Any], budgets: dict[str, int] | None = None, **more: Any) -> dict[str, Any]:
    directive = {
        "name": "default", "approval_required": False, "approvers": [], "approvals_needed": 1,
        "requester_may_approve": False, "approval_expires_s": 10, "max_concurrent_runs": 2, "max_parallel_steps": 5,
        **more.pop("directive", {}),
    }  # fmt: skip
    budgets = {"max_steps": 5, "time_budget_s": 60, "token_budget": 100, **(budgets or {})}
    made = {"steps": list(steps), "budgets": budgets, "directive": directive, **more}
    text = json.dumps(made, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return {**made, "plan_hash": hashlib.sha256(text.encode()).hexdigest()}


def step(name: str, *needs: str, kind: str = "task", **more: Any) -> dict[str, Any]:
    task = {"task": "noop"} if kind == "task" else {}
    made = {"id": name, "kind": kind, "inputs": {}, "needs": list(needs), "max_attempts": 2, "timeout_s": 5}
    return {**made, "on_failure": "stop", **task, **more}


def end(status: str = "succeeded", *, run: int = 1, **steps: str) -> Told:
    tokens = {"input": 0, "output": 0, "unknown_calls": 0}
    return f"run.completed.{run}", {"status": status, "reason": "so it is", "steps": steps, "tokens": tokens}


def started(made: dict[str, Any], run: int = 1) -> list[Told]:
    return [(f"plan.created.{run}", made), (f"run.started.{run}", {"plan_hash": made["plan_hash"]})]


def dispatched(made: dict[str, Any], name: str, attempt: int = 1, *, run: int = 1, **more: Any) -> Told:
    [planned] = [one for one in made["steps"] if one["id"] == name]
    what = planned.get("task") or planned["kind"]
    where = f".{planned['host']}" if "host" in planned else ""
    body = {"plan_hash": made["plan_hash"], "inputs": planned["inputs"], **more}
    return f"step.dispatched.{run}.{name}.{attempt}.{what}{where}", body


def done(name: str, attempt: int = 1, *, run: int = 1, host: str = "here", **outputs: Any) -> Told:
    return f"step.completed.{run}.{name}.{attempt}", {"outputs": outputs, "host": host}


def failed(name: str, attempt: int = 1, error: str = "e", *, retryable: bool = False) -> Told:
    return f"step.failed.1.{name}.{attempt}", {"error": error, "retryable": retryable}


def skipped(name: str, cause: str) -> Told:
    return f"step.skipped.1.{name}", {"reason": "as it is", "cause": cause}


def fired(what: str, *at_s: float) -> Told:
    return (f"timer.fired.1.{what}", {"due": "?"}, *at_s)


def asked(made: dict[str, Any], name: str, expires_s: int) -> Told:
    directive = made["directive"]
    bound = {"run": 1, "step": name, "plan_hash": made["plan_hash"], "expires_at": f"1970-01-01T00:00:{expires_s:02}Z"}
    who = {"approvers": directive["approvers"], "approvals_needed": directive["approvals_needed"]}
    return f"approval.requested.1.{name}", {**bound, **who, "what": "may it?"}


def answer(made: dict[str, Any], name: str, who: str = "", said: str = "granted", *at_s: float, **wrong: Any) -> Told:
    body = {"run": 1, "step": name, "plan_hash": made["plan_hash"], **wrong}
    return (f"approval.{said}.1.{name}{'.' if who else ''}{who}", body, *at_s)


def stream(said: Stream) -> list[Message]:
    """A message a second, unless told; an end's duration is the right one, unless told."""
    messages: list[Message] = []
    at_s = 0.0
    begun: dict[str, float] = {}
    for seq, (subject, body, *told_s) in enumerate(said, 1):
        at_s = told_s[0] if told_s else at_s + 1
        run = subject.split(".")[2] if subject.count(".") > 1 and not subject.startswith("goal.sub") else str(seq)
        if subject.startswith(("goal.submitted", "run.started")):
            begun[run] = at_s
        if subject.startswith("run.completed") and "duration_s" not in body:
            body = {**body, "duration_s": at_s - begun.get(run, at_s)}
        messages.append((subject, seq, int(at_s * NS), b"" if body is None else json.dumps(body).encode()))
    return messages


def instead(story: Stream, at: int, *other: Told) -> Stream:
    """Message `at`, from 1, replaced."""
    return [*story[: at - 1], *other, *story[at:]]


def behind(story: Stream, at: int, *more: Told) -> Stream:
    return [*story[:at], *more, *story[at:]]


GOAL = ("goal.submitted", {})

_two = plan(step("a"), step("b", "a"))
CHAIN: Stream = [
    GOAL, *started(_two), dispatched(_two, "a"), failed("a", retryable=True), dispatched(_two, "a", 2), done("a", 2),
    dispatched(_two, "b"), done("b"), end(a="succeeded", b="succeeded"),
]  # fmt: skip

_ask = plan(step("a", approval=True), directive={"approvers": ["bob", "cyd"], "approvals_needed": 2})
ASKED: Stream = [
    ("goal.submitted.ann", {}), *started(_ask), asked(_ask, "a", 14), answer(_ask, "a", "bob"),
    answer(_ask, "a", "cyd"), dispatched(_ask, "a"), done("a"), end(a="succeeded"),
]  # fmt: skip

_gate = plan(step("a"), directive={"approval_required": True})
GATED: Stream = [
    ("goal.submitted.ann", {}), started(_gate)[0], asked(_gate, "run", 13), answer(_gate, "run", "bob"),
    started(_gate)[1], dispatched(_gate, "a"), done("a"), end(a="succeeded"),
]  # fmt: skip
EXPIRED: Stream = [
    *GATED[:3], ("timer.fired.1.approval.run", {"due": "?"}, 13.0), ("approval.expired.1.run", {"expired_at": "?"}),
    end("rejected", a="skipped"),
]  # fmt: skip

CANCELLED: Stream = [
    GOAL, *started(_two), dispatched(_two, "a"), ("run.cancel_requested.1.ann", {"reason": "no"}),
    ("step.cancel_requested.1.a.1", {"reason": "no"}), skipped("b", "stopped"),
    ("step.cancelled.1.a.1", {"reason": "no"}), end("cancelled", a="cancelled", b="skipped"),
]  # fmt: skip
SILENT: Stream = [
    *CANCELLED[:7], fired("cancel.a.1", 36.0), ("step.completed.1.a.1", {"outputs": {}}), CANCELLED[8],
]  # fmt: skip
UNBEGUN: Stream = [  # a second executor had started it before it read that it is cancelled
    GOAL, started(_two)[0], ("run.cancel_requested.1", None), started(_two)[1],
    end("cancelled", a="skipped", b="skipped"), ("run.queued.1", {"directive": "default", "max_concurrent_runs": 2}),
]  # fmt: skip
LATE: Stream = [*CANCELLED[:5], dispatched(_two, "b"), *CANCELLED[5:]]

_undo = plan(
    step("a", compensation="undo-a"), step("b", "a", compensation="undo-b"), step("c", "b", on_failure="rollback"),
    step("undo-a"), step("undo-b"),
)  # fmt: skip
UNDONE: Stream = [
    GOAL, *started(_undo), dispatched(_undo, "a"), done("a"), dispatched(_undo, "b"), done("b"), dispatched(_undo, "c"),
    failed("c"), dispatched(_undo, "undo-b"), done("undo-b"), dispatched(_undo, "undo-a"), done("undo-a"),
    end("rolled_back", **{"a": "succeeded", "b": "succeeded", "c": "failed", "undo-a": "succeeded",
                          "undo-b": "succeeded"}),
]  # fmt: skip

_fan = plan(step("a"), step("b"), directive={"max_parallel_steps": 1})
RACED: Stream = [  # the second executor had not read of the first one's dispatch: its own does not count
    GOAL, *started(_fan), dispatched(_fan, "a"), dispatched(_fan, "b"), done("b"), done("a"), dispatched(_fan, "b", 2),
    done("b", 2), end(a="succeeded", b="succeeded"),
]  # fmt: skip

_few = plan(step("a"), step("b", "a", when="1 == 1"), budgets={"max_steps": 1})
BUDGET = {"budget": "steps", "used": 1.0, "allowed": 1.0}
OVER: Stream = [
    GOAL, *started(_few), dispatched(_few, "a"), done("a"), skipped("b", "steps"),
    (end()[0], {**end("budget_exhausted", a="succeeded", b="skipped")[1], **BUDGET}),
]  # fmt: skip

_tokens = plan(step("a", uses_tokens=True), step("b", uses_tokens=True))


def called(name: str, call: str, used: int | None) -> Told:
    return f"llm.called.1.{name}.{call}", {"input_tokens": used, "output_tokens": 0}


def used(status: str, tokens: int, unknown: int = 0, *, budget: dict[str, Any] | None = None, **steps: str) -> Told:
    subject, body = end(status, **steps)
    return subject, {
        **body,
        "tokens": {"input": tokens, "output": 0, "unknown_calls": unknown},
        **(budget or {}),
    }


THRIFTY: Stream = [
    GOAL, *started(_tokens), dispatched(_tokens, "a", token_grant=50), dispatched(_tokens, "b", token_grant=50),
    called("a", "1-1", 40), called("b", "1-1", None), done("a"), done("b"),
    used("succeeded", 40, 1, a="succeeded", b="succeeded"),
]  # fmt: skip
GREEDY: Stream = [
    *THRIFTY[:5], called("a", "1-1", 70), ("step.cancel_requested.1.a.1", {"reason": "tokens"}),
    ("step.cancelled.1.a.1", {"reason": "tokens"}), done("b"),
    used("budget_exhausted", 70, budget={"budget": "tokens", "used": 70, "allowed": 100}, a="cancelled", b="succeeded"),
]  # fmt: skip

TIMED: Stream = [
    *CHAIN[:4], fired("deadline", 63.0), skipped("b", "stopped"),
    (end()[0], {**end("timed_out", a="failed", b="skipped")[1], "budget": "time_s", "used": 60.0, "allowed": 60}),
]  # fmt: skip

_wait = plan(step("a", kind="wait", inputs={"seconds": 3}))
WAITED: Stream = [
    GOAL, *started(_wait), dispatched(_wait, "a"), fired("wait.a.1", 7.0), done("a", waited_s=3), end(a="succeeded"),
]  # fmt: skip

_when = plan(step("d", kind="decision", inputs={"condition": "1 > 2"}), step("n", "d", when="decisions.d"))
DECIDED: Stream = [
    GOAL, *started(_when), dispatched(_when, "d"), done("d", result=False), skipped("n", "when"),
    end(d="succeeded", n="skipped"),
]  # fmt: skip

_rest = plan(step("a", retry={"backoff_s": 2, "backoff_s_max": 60, "errors": ["e"]}))
RESTED: Stream = [
    GOAL, *started(_rest), dispatched(_rest, "a"), failed("a", retryable=True), fired("backoff.a.1", 7.0),
    dispatched(_rest, "a", 2), done("a", 2), end(a="succeeded"),
]  # fmt: skip

_one = plan(step("a", host="h1"), directive={"max_concurrent_runs": 1})
SLOTS: Stream = [
    GOAL, GOAL, *started(_one), started(_one, 2)[0],
    ("run.queued.2", {"directive": "default", "max_concurrent_runs": 1}), dispatched(_one, "a"), done("a", host="h1"),
    end(a="succeeded"), started(_one, 2)[1], dispatched(_one, "a", run=2), done("a", run=2, host="h1"),
    end(run=2, a="succeeded"),
]  # fmt: skip

_again = plan(step("a"), step("b", "a"), retry_of=1, reused={"a": {"outputs": {}}})
AGAIN: Stream = [
    *CHAIN, GOAL, *started(_again, 11), dispatched(_again, "b", run=11), done("b", run=11),
    end(run=11, a="succeeded", b="succeeded"),
]  # fmt: skip

TICK = ("schedule.ticked.nightly.60", {"outcome": "ran", "due": "1970-01-01T00:01:00Z", "goal": {}}, 60.0)
ITS_GOAL = ("goal.submitted.schedule_nightly_60", {})
REJECTED = ("goal.rejected.2", {"reason": "no such task", "field": "tasks[0]"})
ALARM = ("timer.fired.schedule.nightly", {"due": ""})

STORIES: dict[str, Stream] = {
    "a chain with a second attempt": CHAIN,
    "a rejected goal": [GOAL, ("goal.rejected.1", {"reason": "no such task"})],
    "the late word of a zombie": [*CHAIN, failed("b")],
    "two who had to approve": ASKED,
    "answers that do not count": behind(
        ASKED, 4, answer(_ask, "a", "dan"), answer(_ask, "a"), answer(_ask, "a", "bob", plan_hash="x"),
        answer(_ask, "a", "bob", run=7), answer(_ask, "a", "bob", "rejected", answer="granted"),
    ),
    "a gate": GATED,
    "nobody answered": EXPIRED,
    "an answer behind the expiry": [*EXPIRED[:3], answer(_gate, "run", "bob", "granted", 13.0), *EXPIRED[3:]],
    "a step that was cancelled": CANCELLED,
    "one that did not answer": SILENT,
    "cancelled as it started": UNBEGUN,
    "a goal that was cancelled before it was planned": [
        GOAL, ("run.cancel_requested.1", {}), end("cancelled"), ("goal.rejected.1", {"reason": "no such task"})],
    "a rollback": UNDONE,
    "a race of two dispatches": RACED,
    "a race of a dispatch with a cancel": [
        *CHAIN[:3], ("run.cancel_requested.1", None), dispatched(_two, "a"), done("a"), skipped("b", "stopped"),
        end("cancelled", a="succeeded", b="skipped")],
    "a dispatch behind its skip": [
        *CHAIN[:3], ("run.cancel_requested.1", None), skipped("a", "stopped"), dispatched(_two, "a"), done("a"),
        skipped("b", "stopped"), end("cancelled", a="skipped", b="skipped")],
    "cancelled when all was over": [*CHAIN[:9], ("run.cancel_requested.1", None), CHAIN[9]],
    "a budget of steps": OVER,
    "tokens, one call unknown": THRIFTY,
    "tokens beyond the grant": GREEDY,
    "out of time": TIMED,
    "out of time by a worker's word": instead(TIMED, 5, (*failed("a", error="timeout"), 63.0)),
    "asked when it had expired": [
        *GATED[:2], (*asked(_gate, "run", 12), 13.0), ("approval.expired.1.run", {"expired_at": "?"}),
        end("rejected", a="skipped")],
    "a wait": WAITED,
    "a decision": DECIDED,
    "a rest": RESTED,
    "a slot": SLOTS,
    "again from a step": AGAIN,
    "a seal": [*CHAIN, ("audit.sealed.1", {"last_seq": 10})],
    "a tick": [TICK, ITS_GOAL, REJECTED, ALARM, ALARM],
}  # fmt: skip


@pytest.mark.parametrize("name", STORIES)
def test_a_good_stream_has_no_findings(name: str) -> None:
    assert audit(stream(STORIES[name])) == []


def test_void_dispatches_are_counted() -> None:
    assert tally_void(stream(RACED)) == {"too many in parallel": 1}


DAMAGE: dict[str, tuple[Stream, str]] = {
    # runs end, once
    "lost": (CHAIN[:9], "has no end"),
    "never planned": (CHAIN[:1], "has no end"),
    "ended twice": ([*CHAIN, CHAIN[9]], "said at 10 and again at 11"),
    "two ends": ([*CHAIN[:1], ("goal.rejected.1", {"reason": "?"}), end("cancelled")], "ended at 2 and again at 3"),
    "rejected and planned": (behind(CHAIN, 3, ("goal.rejected.1", {"reason": "?"})), "although it has a plan"),
    "rejected without a reason": ([GOAL, ("goal.rejected.1", {})], "rejected without a reason"),
    "planned behind its end": ([GOAL, ("goal.rejected.1", {"reason": "?"}), CHAIN[1]], "comes behind its end"),
    "never started": ([*CHAIN[:2], end(a="skipped", b="skipped")], "was never started"),
    "nobody's": ([*CHAIN, ("run.started.17", {"plan_hash": "x"})], "belongs to no goal"),
    "unknown": (behind(CHAIN, 3, ("run.paused.1", {})), "does not know run.paused"),
    "no JSON": (behind(CHAIN, 3, ("run.started.1", None)), "is no JSON"),
    # the plan
    "another plan": (instead(CHAIN, 3, ("run.started.1", {"plan_hash": "x"})), "without its plan"),
    "a forged plan": (instead(CHAIN, 2, ("plan.created.1", {**_two, "goal": "other"})), "not that of its bytes"),
    "a circle": (instead(CHAIN, 2, started(plan(step("a", "b"), step("b")))[0]), "needs what does not stand before it"),
    "another task": (instead(CHAIN, 4, ("step.dispatched.1.a.1.fail", CHAIN[3][1])), "no step a with the task fail"),
    "another host": (instead(SLOTS, 8, done("a", host="h2")), "is for h1, and h2 did it"),
    "other inputs": (instead(CHAIN, 4, dispatched(_two, "a", inputs={"x": 1})), "other inputs"),
    "dispatched by another plan": (instead(CHAIN, 4, dispatched(_two, "a", plan_hash="x")), "under another plan"),
    # attempts
    "done twice": ([*CHAIN[:7], dispatched(_two, "a", 3)], "follows one that is completed"),
    "two at once": ([*CHAIN[:4], dispatched(_two, "a", 2)], "follows one that is running"),
    "an attempt left out": (instead(CHAIN, 6, dispatched(_two, "a", 3)), "attempt 3 was dispatched"),
    "too many attempts": (
        instead(RACED, 7, failed("a", retryable=True), dispatched(_fan, "a", 2), failed("a", 2, retryable=True),
                dispatched(_fan, "a", 3)), "follows one that is failed"),
    "an error that is not tried again": (instead(RESTED, 5, failed("a", error="x", retryable=True)), "is failed"),
    "before its rest was over": (instead(RESTED, 6), "before its back-off was over"),
    "a rest cut short": (instead(RESTED, 6, fired("backoff.a.1", 6.5)), "the back-off of a fired"),
    "an end of nothing": (instead(CHAIN, 4), "it was never dispatched"),
    "a second end counted": (
        instead(CHAIN, 7, failed("a", 2), done("a", 2)), "not due when the run was to stop"),
    "an end of a void attempt counted": (
        [*RACED[:7], end(a="succeeded", b="succeeded")], "still open"),
    "an answer of nobody asked": (behind(CHAIN, 3, called("a", "1-1", 1)), "never dispatched"),
    # needs, decisions
    "too soon": (instead(CHAIN, 5, dispatched(_two, "b")), "before a had ended"),
    "started too late": (instead(CHAIN, 3), "before the run was started"),
    "although it is skipped": ([*DECIDED[:6], dispatched(_when, "n"), DECIDED[6]], "although decisions.d is false"),
    "skipped although it is so": (
        instead(DECIDED, 5, done("d", result=True)), "n was skipped at 6 as 'when'"),
    "skipped for nothing": (behind(CHAIN, 7, skipped("b", "need")), "b was skipped at 8 as 'need'"),
    "skipped, and nothing stopped": (behind(CHAIN, 7, skipped("b", "stopped")), "as 'stopped', and it is not so"),
    "skipped without a reason": (instead(DECIDED, 6, ("step.skipped.1.n", {"cause": "when"})), "without a reason"),
    "behind its end": ([*CHAIN, skipped("b", "when")], "comes behind its end"),
    # approvals
    "without its approval": (instead(ASKED, 6), "without its approval"),
    "by one twice": (instead(ASKED, 6, answer(_ask, "a", "bob")), "without its approval"),
    "by one who may not": (instead(ASKED, 6, answer(_ask, "a", "dan")), "without its approval"),
    "by who asked": (instead(GATED, 4, answer(_gate, "run", "ann")), "before it was approved"),
    "by a bare word of who asked": (instead(GATED, 4, answer(_gate, "run")), "before it was approved"),
    "bound to another plan": (instead(ASKED, 6, answer(_ask, "a", "cyd", plan_hash="x")), "without its approval"),
    "bound to another run": (instead(ASKED, 6, answer(_ask, "a", "cyd", run=2)), "without its approval"),
    "bound to another step": (instead(ASKED, 6, answer(_ask, "a", "cyd", step="b")), "without its approval"),
    "approved too late": (instead(ASKED, 6, answer(_ask, "a", "cyd", "granted", 14.0)), "without its approval"),
    "approved before it was asked": (
        [*ASKED[:3], ASKED[4], ASKED[3], *ASKED[5:]], "without its approval"),
    "started although it was rejected": (
        instead(GATED, 4, answer(_gate, "run", "bob", "rejected")), "before it was approved"),
    "queued before it was approved": (
        behind(GATED, 3, ("run.queued.1", {"directive": "default", "max_concurrent_runs": 2})), "queued before it was"),
    "asked for nothing": (behind(CHAIN, 3, asked(_two, "a", 30)), "asks nothing there"),
    "a question unbound": (
        instead(ASKED, 4, (ASKED[3][0], {**ASKED[3][1], "plan_hash": "x"})), "not bound to its run, step and plan"),
    "other approvers": (instead(ASKED, 4, (ASKED[3][0], {**ASKED[3][1], "approvers": []})), "names other approvers"),
    "expired too soon": (behind(ASKED, 4, ("approval.expired.1.a", {"expired_at": "?"})), "and it had not"),
    "expired, and it went on": (
        [*ASKED[:5], fired("approval.a", 14.0), *ASKED[5:]], "without its approval"),
    # stops
    "cancelled unasked": (behind(CHAIN, 4, ("step.cancelled.1.a.1", {"reason": "?"})), "nothing has stopped the run"),
    "told to end unasked": (behind(CHAIN, 4, CANCELLED[5]), "was told at 5 to end, and nothing has stopped"),
    "went on when cancelled": (
        [*CHAIN[:7], *CHAIN[7:9], ("run.cancel_requested.1", None), end("cancelled", a="succeeded")], "its end says {"),
    "became due when cancelled": (behind(CHAIN, 6, ("run.cancel_requested.1", None)), "not due when the run was to"),
    "tried again when cancelled": (behind(CHAIN, 4, ("run.cancel_requested.1", None)), "follows one that is failed"),
    "succeeded although cancelled": (
        [*CANCELLED[:8], end(a="cancelled", b="skipped")], "its end says succeeded, the stream says cancelled"),
    "overtaken too soon": (instead(SILENT, 8, fired("cancel.a.1", 35.0)), "the patience with a fired"),
    "started although cancelled": (
        [GOAL, ("run.cancel_requested.1", None), *started(_two), end("cancelled", a="skipped", b="skipped")],
        "although it was stopped before it might"),
    "went on out of time": (
        [*CHAIN[:6], fired("deadline", 63.0), dispatched(_two, "b")], "before a had ended"),
    "out of time too soon": (instead(TIMED, 5, fired("deadline", 62.0)), "the deadline fired at 5, before its time"),
    "a timer too soon": (behind(CHAIN, 4, fired("step.a.1", 8.9)), "the timer of a fired at 5, before its time"),
    "a timer of nothing": (behind(CHAIN, 3, fired("step.a.1")), "that never was"),
    "a wait cut short": (instead(WAITED, 5), "the wait a ended"),
    "a wait's timer too soon": (instead(WAITED, 5, fired("wait.a.1", 6.0)), "the wait of a fired"),
    # rollback
    "not undone": (
        [*UNDONE[:9], *(skipped(name, "unneeded") for name in ("undo-a", "undo-b")),
         end("failed", **{**UNDONE[13][1]["steps"], "undo-a": "skipped", "undo-b": "skipped"})], "it was rolled back"),
    "undone in the wrong order": (
        [*UNDONE[:9], dispatched(_undo, "undo-a")], "undo-a was dispatched at 10, and undo-b was to be undone"),
    "two undone at once": ([*UNDONE[:10], dispatched(_undo, "undo-a")], "undo-b was to be undone"),
    "undone before it failed": ([*UNDONE[:7], dispatched(_undo, "undo-b")], "and nothing was to be undone"),
    "rolled back without a word": (instead(UNDONE, 14, end("failed", **UNDONE[13][1]["steps"])), "says rolled_back"),
    # budgets and limits
    "too many steps at once counted": (
        [*RACED[:7], end(a="succeeded", b="succeeded")], "the stream says {'a': 'succeeded', 'b': 'pending'}"),
    "too many steps counted": (
        [*OVER[:5], dispatched(_few, "b"), done("b"), end(a="succeeded", b="succeeded")], "'b': 'pending'"),
    "over before it is": (
        instead(OVER, 5, skipped("b", "tokens")), "b was skipped at 5 as 'tokens'"),
    "no budget named": (instead(OVER, 7, end("budget_exhausted", a="succeeded", b="skipped")), "names the budget None"),
    "too few steps used": (
        instead(OVER, 7, (OVER[6][0], {**OVER[6][1], "used": 0.0})), "says that 0 steps were used"),
    "a budget named for nothing": (instead(CHAIN, 10, (CHAIN[9][0], {**CHAIN[9][1], "budget": "steps"})), "and names"),
    "too many tokens granted": (
        [*THRIFTY[:4], dispatched(_tokens, "b", token_grant=51), *THRIFTY[5:]], "'b': 'pending'"),
    "a debt": (instead(THRIFTY, 4, dispatched(_tokens, "a", token_grant=-1)), "a grant of -1"),
    "tokens not counted": (instead(THRIFTY, 10, used("succeeded", 39, 1, a="succeeded", b="succeeded")), "calls say"),
    "unknown tokens not counted": (
        instead(THRIFTY, 10, used("succeeded", 40, 0, a="succeeded", b="succeeded")), "the calls say"),
    "went on without tokens": (
        [*GREEDY[:6], done("a"), done("b"), used("succeeded", 70, a="succeeded", b="succeeded")],
        "its end says succeeded, the stream says budget_exhausted"),
    "a slot too many": (
        [*SLOTS[:6], started(_one, 2)[1], *SLOTS[6:9], *SLOTS[10:]], "while 1 runs of default held the 1 slots"),
    "queued elsewhere": (
        instead(SLOTS, 6, ("run.queued.2", {"directive": "default", "max_concurrent_runs": 9})), "another directive"),
    # the end
    "wrong steps": (instead(CHAIN, 10, end(a="succeeded", b="skipped")), "its end says {'a'"),
    "wrong status": (instead(CHAIN, 10, end("failed", a="succeeded", b="succeeded")), "stream says succ"),
    "no status": (instead(CHAIN, 10, end("done", a="succeeded", b="succeeded")), "its end says 'done'"),
    "still open": (instead(CHAIN, 9), "still open"),
    "wrong duration": (instead(CHAIN, 10, (CHAIN[9][0], {**CHAIN[9][1], "duration_s": 99.0})), "says 99.0 s"),
    # runs again
    "what was not left": (
        instead(AGAIN, 12, started(plan(*_again["steps"], retry_of=1, reused={"a": {"outputs": {"x": 1}}}), 11)[0]),
        "reuses what a of run 1 has not left"),
    "again while it runs": (
        [GOAL, *started(_two), GOAL, ("plan.created.4", plan(step("a"), retry_of=1))], "repeats run 1, which was not"),
    "done again all the same": (behind(AGAIN, 13, dispatched(_again, "a", run=11)), "of run 1 stands for it"),
    # schedules
    "a tick without its goal": ([TICK], "has 0 goals"),
    "a tick that ran twice": ([TICK, ITS_GOAL, ITS_GOAL], "has 2 goals"),
    "a tick told twice": ([TICK, ITS_GOAL, REJECTED, TICK], "said at 1 and again at 4"),
    "a skipped tick that ran": ([(TICK[0], {"outcome": "skipped", "reason": "?"}, 60.0), ITS_GOAL], "has 1 goals"),
    "a tick skipped in silence": ([(TICK[0], {"outcome": "skipped"}, 60.0)], "says 'skipped', None"),
    "a goal before its tick": ([ITS_GOAL, TICK], "comes before its tick"),
    "another goal than its tick's": ([TICK, (ITS_GOAL[0], {"goal": "other"})], "is not its tick's"),
    "a goal of no tick": ([ITS_GOAL], "belongs to no tick"),
    "a tick too soon": ([(*TICK[:2], 59.0), ITS_GOAL], "said before its time"),
    "a tick of another time": ([("schedule.ticked.nightly.59", TICK[1], 60.0)], "says that it was due"),
    "ticks out of order": (
        [(TICK[0], {"outcome": "skipped", "reason": "?"}, 99.0),
         ("schedule.ticked.nightly.50", {"outcome": "skipped", "reason": "?"}, 99.0)], "comes behind the tick of 60"),
}  # fmt: skip


@pytest.mark.parametrize("name", DAMAGE)
def test_damage_is_named(name: str) -> None:
    said, words = DAMAGE[name]
    found = audit(stream(said))
    assert any(words in one for one in found), found


def test_a_hole_in_the_stream_is_named() -> None:
    messages = stream(CHAIN)
    assert "1 messages are missing, the first is 5" in audit(messages[:4] + messages[5:])


def test_a_message_that_is_there_twice_is_named() -> None:
    messages = stream(CHAIN)
    assert "message 5 is there twice" in audit([*messages, messages[4]])

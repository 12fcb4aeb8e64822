"""What a load is made of: kinds of goals with the ends that they may have, and the directives and playbooks they need.

`PLAIN` is what a chain of tasks can be. `MIX` has every kind of step, gates and limits, and people (robots, in
`tests/chaos/robot.py`) who approve, refuse, come too late or say nothing, and who cancel.
"""

import json
import os
from dataclasses import dataclass
from typing import Any

SLOW_TASK = "chaos-slow"  # done by an outsider's worker: tests/chaos/slow_worker.py
TOKENS_TASK = "chaos-tokens"  # its other task
LEASE_S = 2  # every process of the stack has it: tests/chaos/short_lease
HOST = "testhost"  # what tests/stack.py calls itself
# So long sleeps only who is to be cancelled or to run out of time; the odd number finds its processes again.
LONG_S = 100 + os.getpid() % 10_000 / 1_000


@dataclass(frozen=True)
class Kind:
    """One kind of goal. `cancel_s`: a robot cancels it so long after it was submitted, at random up to that."""

    name: str
    goal: bytes
    ends: frozenset[str]
    cancel_s: float = 0.0
    repeats: str = ""  # the kind of run that it repeats, where one is over
    principal: str = ""


def _kind(name: str, goal: dict[str, Any] | bytes, *ends: str, **more: Any) -> Kind:
    return Kind(name, goal if isinstance(goal, bytes) else json.dumps(goal).encode(), frozenset(ends), **more)


def _tasks(*tasks: str) -> dict[str, Any]:
    return {"tasks": list(tasks)}


CHAIN = _kind("chain", _tasks("noop", "noop", "noop"), "succeeded")
UNKNOWN = _kind("unknown task", _tasks("there-is-no-such-task"), "rejected")
NOT_JSON = _kind("no JSON", b"\xff not json", "rejected")
# Mostly runs that succeed, one with a failure in the middle, two that are rejected.
PLAIN: tuple[Kind, ...] = (
    CHAIN,
    _kind("one", _tasks("noop"), "succeeded"),
    _kind("failing", _tasks("noop", "fail", "noop"), "failed"),
    CHAIN,
    _kind("slow first", _tasks(SLOW_TASK, "noop"), "succeeded"),
    UNKNOWN,
    _kind("with words", {"tasks": ["noop", "noop"], "goal": "twice nothing"}, "succeeded"),
    NOT_JSON,
    CHAIN,
    _kind("slow last", _tasks("noop", SLOW_TASK), "succeeded"),
)

DIRECTIVES: dict[str, dict[str, Any]] = {
    "chaos-narrow": {"max_concurrent_runs": 2, "max_parallel_steps": 2},
    "chaos-patient": {"approvers": ["ann", "bob"], "approvals_needed": 2, "approval_expires_s": 600},
    "chaos-hasty": {"approvers": ["ann", "bob"], "approval_expires_s": 2},
    "chaos-gated": {"approval_required": True, "approval_expires_s": 2},
    "chaos-careful": {"approval_required": ["noop"], "approval_expires_s": 600},
}

PLAYBOOKS: dict[str, str] = {
    "chaos_sleep": """
        [params.seconds]
        type = "number"
        required = true
        [[steps]]
        id = "doze"
        task = "sleep"
        inputs = { seconds = "${params.seconds}" }
        [[steps]]
        id = "after"
        task = "noop"
        needs = ["doze"]
    """,
    "chaos_fan": "".join(
        f"""
        [[steps]]
        id = "{name}"
        task = "{task}"
        inputs = {{ seconds = 0.05 }}
        """
        for name, task in zip("abcdef", ("noop", "sleep", SLOW_TASK) * 2, strict=True)
    ),
    "chaos_undo": """
        [[steps]]
        id = "make"
        task = "noop"
        compensation = "unmake"
        [[steps]]
        id = "charge"
        task = "chaos-slow"
        needs = ["make"]
        compensation = "refund"
        [[steps]]
        id = "boom"
        task = "fail"
        needs = ["charge"]
        on_failure = "rollback"
        [[steps]]
        id = "unmake"
        task = "noop"
        [[steps]]
        id = "refund"
        task = "chaos-slow"
    """,
    "chaos_kept": """
        [[steps]]
        id = "make"
        task = "noop"
        compensation = "unmake"
        [[steps]]
        id = "unmake"
        task = "noop"
    """,
    "chaos_decide": """
        [params.n]
        type = "integer"
        default = 7
        [[steps]]
        id = "is_big"
        kind = "decision"
        condition = "params.n > 5"
        [[steps]]
        id = "big"
        task = "noop"
        needs = ["is_big"]
        when = "decisions.is_big"
        [[steps]]
        id = "small"
        task = "noop"
        needs = ["is_big"]
        when = "!decisions.is_big"
        [[steps]]
        id = "behind_small"
        task = "noop"
        needs = ["small"]
        [[steps]]
        id = "tell"
        kind = "notify"
        needs = ["is_big", "big"]
        severity = "warning"
        message = "${params.n} is big: ${steps.is_big.outputs.result}"
    """,
    "chaos_wait": """
        [[steps]]
        id = "rest"
        kind = "wait"
        seconds = 1
        [[steps]]
        id = "after"
        task = "noop"
        needs = ["rest"]
        host = "testhost"
    """,
    "chaos_ask": """
        [params.answer]
        required = true
        [[steps]]
        id = "before"
        task = "noop"
        [[steps]]
        id = "beside"
        task = "chaos-slow"
        [[steps]]
        id = "agreed"
        kind = "approval"
        needs = ["before"]
        message = "answer ${params.answer}"
        [[steps]]
        id = "after"
        task = "noop"
        needs = ["agreed", "beside"]
    """,
    "chaos_flaky": """
        [[steps]]
        id = "try"
        task = "chaos-slow"
        inputs = { fail = 2 }
        retry = { max_attempts = 12, backoff_s = 1, backoff_s_max = 2, errors = ["unavailable", "timeout"] }
        [[steps]]
        id = "after"
        task = "noop"
        needs = ["try"]
    """,
    "chaos_tight": """
        [params.n]
        type = "integer"
        default = 1
        [[steps]]
        id = "a"
        task = "noop"
        [[steps]]
        id = "b"
        task = "noop"
        needs = ["a"]
        [[steps]]
        id = "c"
        task = "noop"
        needs = ["a"]
        when = "params.n > 0"
        [[steps]]
        id = "d"
        task = "noop"
        needs = ["b"]
        when = "params.n > 0"
    """,
    "chaos_tokens": "".join(
        f"""
        [[steps]]
        id = "{name}"
        task = "chaos-tokens"
        inputs = {{ use = {json.dumps(use)} }}
        """
        for name, use in {"some": [10, 10], "unknown": ["unknown"], "all": ["all"], "none": []}.items()
    )
    + """
        [[steps]]
        id = "what_is_left"
        task = "chaos-tokens"
        needs = ["some", "unknown", "all", "none"]
        inputs = { use = ["all"] }
    """,
    "chaos_greed": """
        [[steps]]
        id = "greedy"
        task = "chaos-tokens"
        inputs = { use = [1000000] }
        [[steps]]
        id = "after"
        task = "chaos-tokens"
        needs = ["greedy"]
    """,
}


def _book(name: str, *, directive: str | None = None, **params: Any) -> dict[str, Any]:
    goal: dict[str, Any] = {"playbook": f"chaos_{name}", "params": params}
    return {**goal, "directive": f"chaos-{directive}"} if directive else goal


def _ask(answer: str, directive: str, *ends: str, **more: Any) -> Kind:
    return _kind(f"asks: {answer}", _book("ask", directive=directive, answer=answer), *ends, principal="carl", **more)


FAN = _book("fan", directive="narrow")
# A step that has ended its worker three times has failed, and nobody but chance decides whether a storm does so.
DOZES = ("succeeded", "failed")
MIX: tuple[Kind, ...] = (
    *PLAIN,
    _kind("short sleep", _book("sleep", seconds=0.2), *DOZES),
    _kind("fan", FAN, *DOZES),
    _kind("narrow", {**_book("sleep", seconds=0.3), "directive": "chaos-narrow"}, *DOZES),
    _kind("narrow, too", {**_book("sleep", seconds=0.4), "directive": "chaos-narrow"}, *DOZES),
    _kind("undo", _book("undo"), "rolled_back"),
    _kind("nothing to undo", _book("kept"), "succeeded"),
    _kind("decide big", _book("decide", n=9), "succeeded"),
    _kind("decide small", _book("decide", n=1), "succeeded"),
    _kind("wait", _book("wait"), "succeeded"),
    _ask("yes", "patient", "succeeded"),
    _ask("no", "patient", "rejected"),
    _ask("late", "hasty", "rejected"),
    _ask("never", "hasty", "rejected"),
    _ask("wrong", "hasty", "rejected"),
    _ask("stranger", "hasty", "rejected"),
    _ask("race", "hasty", "succeeded", "rejected"),
    _kind("gate: own", {**_tasks("noop"), "goal": "answer own", "directive": "chaos-gated"}, "rejected",
          principal="carl"),
    _kind("gate: race", {**_tasks("noop"), "goal": "answer race", "directive": "chaos-gated"}, "succeeded", "rejected",
          principal="carl"),
    _kind("each noop", {**_tasks("noop", SLOW_TASK, "noop"), "goal": "answer one", "directive": "chaos-careful"},
          "succeeded", principal="carl"),
    _kind("flaky", _book("flaky"), "succeeded"),
    _kind("tight", {**_book("tight"), "max_steps": 2}, "budget_exhausted"),
    _kind("out of time", {**_book("sleep", seconds=LONG_S), "time_budget_s": 1}, "timed_out"),
    _kind("tokens", {**_book("tokens"), "token_budget": 400}, "succeeded", "budget_exhausted"),
    _kind("greedy", {**_book("greed"), "token_budget": 400}, "budget_exhausted"),
    _kind("cancel running", _book("sleep", seconds=LONG_S), "cancelled", "failed", cancel_s=4.0),
    _kind("cancel queued", FAN, "cancelled", *DOZES, cancel_s=2.0),
    _kind("cancel asking", _book("ask", directive="patient", answer="never"), "cancelled", cancel_s=3.0),
    _kind("cancel gated", {**_tasks("noop"), "goal": "answer race", "directive": "chaos-gated"}, "cancelled",
          "succeeded", "rejected", principal="carl", cancel_s=3.0),
    _kind("cancel resting", _book("flaky"), "cancelled", "succeeded", cancel_s=3.0),
    _kind("cancel undoing", _book("undo"), "cancelled", "rolled_back", cancel_s=1.0),
    _kind("cancel at once", CHAIN.goal, "cancelled", "succeeded", cancel_s=0.02),
    _kind("again", b'{"retry_of": %d}', "succeeded", repeats="chain"),
    _kind("again from", b'{"retry_of": %d, "from_step": "boom"}', "rolled_back", repeats="undo"),
    _kind("again decided", b'{"retry_of": %d, "from_step": "big"}', "succeeded", repeats="decide big"),
)  # fmt: skip

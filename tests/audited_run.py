"""One run as the auditor reads it: its own transition code, from the rules' text and the raw messages alone.

Theory of operation. The engine's words may be late: of two executors one may stand still for seconds and then say what
it had decided long before. So each message is judged in two ways. *Might it be said at all?* What a decision rests on
(needs that have ended, an answer, a stop) never goes away again, so it must lie before the message in the stream,
however late that comes; what is decided after a stop or a failure must have been due before it. *Does it count, here?*
A dispatch beyond a budget, a skip of a step that runs, an end of an attempt that is over change nothing (they are
void), and what the engine says afterwards must agree with that: the next attempt, the steps' states, the run's end.
"""

import hashlib
import json
import re
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

NS = 1_000_000_000
ROUNDING_S = 0.001
CANCEL_PATIENCE_S = 30
STATUSES = {"succeeded", "failed", "cancelled", "rejected", "timed_out", "budget_exhausted", "rolled_back"}
WAITING, ENDED = ("pending", "awaiting_approval"), ("succeeded", "failed", "skipped", "cancelled")
GATE = "run"
DECIDED = re.compile(r"(!?)\s*decisions\.([a-z0-9_]+)")  # the only condition that the auditor can read
CANCEL_WORDS = {"reason", "run", "by", "requested_by"}


@dataclass
class Said:
    """One event of a run; `rest` are the subject's tokens behind the run."""

    kind: str
    rest: list[str]
    seq: int
    at_ns: int
    body: Any


@dataclass
class Stop:
    status: str
    seq: int


@dataclass
class Question:
    expires_ns: int
    status: str = "pending"
    approved_by: list[str] = field(default_factory=list)


@dataclass
class Step:
    planned: dict[str, Any]
    status: str = "pending"
    dispatched: dict[int, str] = field(default_factory=dict)  # attempt -> counted, or why it is void
    attempt: int = 0  # the last that counted
    dispatched_ns: int = 0
    ended: Said | None = None
    not_before_ns: int = 0
    grant: int = 0
    spent: int = 0
    is_due: bool = False
    cancel_ns: int = 0
    cause: str = ""
    outputs: Any = None

    @property
    def counted(self) -> int:
        return sum(1 for how in self.dispatched.values() if how == "counted")

    @property
    def reserved(self) -> int:
        return max(0, self.grant - self.spent) if self.status == "running" else 0


class AuditedRun:
    """One run, event by event; `found` is what is to be said against it."""

    def __init__(self, goal: Said, cancel_patience_s: float) -> None:
        self.goal = goal
        self.found: list[str] = []
        self.cancel_patience_s = cancel_patience_s
        self.requester = goal.rest[0] if goal.rest else ""
        self.plan: dict[str, Any] | None = None
        self.planned_seq = 0
        self.steps: dict[str, Step] = {}
        self.undoing: set[str] = set()
        self.questions: dict[str, Question] = {}
        self.started: Said | None = None
        self.end: Said | None = None
        self.stop: Stop | None = None
        self.charged = 0
        self.tokens = {"input": 0, "output": 0, "unknown_calls": 0}
        self.last_end = goal  # the event with which the last step ended
        # What was due when nothing more was to begin: a later dispatch of anything else has no excuse.
        self.ready_at_halt: set[str] | None = None
        self.askable_at_halt: set[str] = set()
        self.undo_at_stop: str | None = None
        self.could_start_at_stop = False

    def find(self, what: str) -> None:
        self.found.append(what)

    def hear(self, said: Said) -> None:
        """The next message of this run."""
        hear = getattr(self, "_" + said.kind.replace(".", "_"), None)
        if hear is None:
            self.find(f"the auditor does not know {said.kind}")
            return
        try:
            hear(said)
        except (KeyError, TypeError, AttributeError, ValueError, IndexError) as error:
            self.find(f"{said.kind} at {said.seq} cannot be read: {type(error).__name__} {error}")
        if self.plan and self.charged + self.reserved > self.plan["budgets"]["token_budget"]:
            self.find(
                f"{self.charged} tokens charged and {self.reserved} reserved at {said.seq}: over the token budget"
            )

    def close(self, last: str) -> None:
        """The stream is over."""
        if self.end is None:
            self.find(f"it has no end (its last event is {last})")

    # -- what follows from what was said -------------------------------------------------------------------

    @property
    def directive(self) -> dict[str, Any]:
        found: dict[str, Any] = self.plan["directive"] if self.plan else {}
        return found

    @property
    def reserved(self) -> int:
        return sum(step.reserved for step in self.steps.values())

    @property
    def free(self) -> int:
        assert self.plan is not None
        return int(self.plan["budgets"]["token_budget"]) - self.charged - self.reserved

    @property
    def steps_used(self) -> int:
        return sum(1 for name, step in self.steps.items() if step.counted and name not in self.undoing)

    @property
    def parallel(self) -> int:
        return sum(1 for step in self.steps.values() if step.status == "running" and step.planned.get("task"))

    @property
    def holds_a_slot(self) -> bool:
        """Started (in time: one that a stop has overtaken begins nothing) and not over."""
        return self.end is None and self.started is not None and not (self.stop and self.stop.seq < self.started.seq)

    def _asks(self, name: str) -> bool:
        if name == GATE:
            return self.directive.get("approval_required") is True
        planned = self.steps[name].planned
        return bool(planned.get("approval")) or planned.get("kind") == "approval"

    def _approved(self, name: str) -> bool:
        return name in self.questions and self.questions[name].status == "approved"

    def _met(self, need: str) -> bool:
        """A failed need counts as done where the plan says to continue."""
        step = self.steps[need]
        return step.status == "succeeded" or (step.status == "failed" and step.planned.get("on_failure") == "continue")

    def _needs_met(self, name: str) -> bool:
        return all(self._met(need) for need in self.steps[name].planned["needs"])

    def _ready(self, name: str) -> bool:
        step = self.steps[name]
        if step.status not in WAITING or step.not_before_ns or not self._needs_met(name):
            return False
        return not self._asks(name) or self._approved(name)

    def _failures(self) -> list[Step]:
        """What has failed and keeps the run from going on."""
        return [
            step for name, step in self.steps.items()
            if step.status == "failed" and step.planned.get("on_failure") != "continue" and name not in self.undoing
        ]  # fmt: skip

    def _rolls_back(self) -> bool:
        """The first in the plan's order says what happens."""
        for name, step in self.steps.items():
            if step.status == "failed" and step.planned.get("on_failure") != "continue" and name not in self.undoing:
                return step.planned.get("on_failure") == "rollback"
            if step.cause in ("steps", "tokens", "condition"):
                return False
        return False

    def _to_undo(self) -> list[str]:
        """The compensations of what was done, the newest first."""
        done = [
            step for step in self.steps.values()
            if step.planned.get("compensation") and step.status in ("succeeded", "failed")
        ]  # fmt: skip
        done.sort(key=lambda step: step.ended.at_ns if step.ended else 0, reverse=True)
        return list(dict.fromkeys(step.planned["compensation"] for step in done))

    def _next_undo(self) -> str | None:
        if not self._rolls_back() or not self._normal_over():
            return None
        return next((name for name in self._to_undo() if self.steps[name].status not in ENDED), None)

    def _normal_over(self) -> bool:
        return all(step.status in ENDED for name, step in self.steps.items() if name not in self.undoing)

    def _halt(self) -> None:
        """From here on no step begins: remember which might have been begun just before."""
        if self.ready_at_halt is None:
            self.ready_at_halt = {name for name in self.steps if name not in self.undoing and self._ready(name)}
            self.askable_at_halt = {
                name for name, step in self.steps.items()
                if step.status in WAITING and name not in self.undoing and self._needs_met(name)
            }  # fmt: skip

    def _stopped(self, status: str, said: Said) -> None:
        if self.stop is None:
            self.could_start_at_stop = self.plan is not None and (not self._asks(GATE) or self._approved(GATE))
            self.undo_at_stop = self._next_undo() if self.steps else None
            self._halt()
            self.stop = Stop(status, said.seq)

    def _late(self, said: Said, excuse: object) -> bool:
        """Whether it comes behind the end, where it changes nothing; it needs an excuse for that."""
        if self.end is None:
            return False
        if not excuse:
            self.find(f"{said.kind} at {said.seq} comes behind its end at {self.end.seq}")
        return True

    # -- before it runs ------------------------------------------------------------------------------------

    def _goal_rejected(self, said: Said) -> None:
        # A planner does not know that the goal was cancelled before it was planned.
        if self._late(said, self.stop and self.stop.status == "cancelled" and self.plan is None):
            return
        if self.plan is not None:
            self.find(f"it was rejected at {said.seq} although it has a plan")
        if not said.body.get("reason"):
            self.find("it was rejected without a reason")
        self.end = said

    def _plan_created(self, said: Said) -> None:
        if self._late(said, self.stop and self.stop.status == "cancelled" and self.plan is None):
            return
        fields = {name: value for name, value in said.body.items() if name != "plan_hash"}
        text = json.dumps(fields, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
        if hashlib.sha256(text.encode()).hexdigest() != said.body["plan_hash"]:
            self.find(f"the hash of its plan at {said.seq} is not that of its bytes")
        steps = said.body["steps"]
        if not steps:
            self.find("its plan is empty")
        before: set[str] = set()
        for planned in steps:
            if not before.issuperset(planned["needs"]) or planned["id"] in before or planned["id"] == GATE:
                self.find(f"the plan's step {planned['id']} is there twice, or needs what does not stand before it")
            before.add(planned["id"])
        self.plan, self.planned_seq = said.body, said.seq
        self.steps = {planned["id"]: Step(planned) for planned in steps}
        self.undoing = {planned["compensation"] for planned in steps if planned.get("compensation")}
        for name, left in (said.body.get("reused") or {}).items():
            step = self.steps[name]
            step.status, step.outputs, step.ended = "succeeded", left.get("outputs", {}), said

    def _run_queued(self, said: Said) -> None:
        if self.plan is None:
            self.find("it was queued without a plan")
        elif self._asks(GATE) and not self._approved(GATE):
            self.find("it was queued before it was approved")
        elif (said.body["directive"], said.body["max_concurrent_runs"]) != (
            self.directive["name"],
            self.directive["max_concurrent_runs"],
        ):
            self.find("it was queued under another directive than its plan's")
        self._late(said, self.stop and self.could_start_at_stop)

    def _run_started(self, said: Said) -> None:
        if self.plan is None or said.body["plan_hash"] != self.plan["plan_hash"]:
            self.find("it was started without its plan")
        elif self._asks(GATE) and not self._approved(GATE):
            self.find(f"it was started at {said.seq} before it was approved")
        if self.stop and not self.could_start_at_stop:
            self.find(f"it was started at {said.seq} although it was stopped before it might")
        if not self._late(said, self.stop):
            self.started = said

    def _run_cancel_requested(self, said: Said) -> None:
        body = {} if said.body is None else said.body
        meant = isinstance(body, dict) and (not body or CANCEL_WORDS & body.keys())
        if self.end is None and meant:
            self._stopped("cancelled", said)

    # -- approvals -----------------------------------------------------------------------------------------

    def _approval_requested(self, said: Said) -> None:
        name = said.rest[0]
        if (name != GATE and name not in self.steps) or not self._asks(name):
            self.find(f"{name} was asked about at {said.seq}, and the plan asks nothing there")
            return
        assert self.plan is not None
        body = said.body
        if (body["run"], body["step"], body["plan_hash"]) != (self.goal.seq, name, self.plan["plan_hash"]):
            self.find(f"the question about {name} at {said.seq} is not bound to its run, step and plan")
        directive = self.directive
        if (body["approvers"], body["approvals_needed"]) != (directive["approvers"], directive["approvals_needed"]):
            self.find(f"the question about {name} at {said.seq} names other approvers than its directive")
        if name != GATE and not self._needs_met(name):
            self.find(f"{name} was asked about at {said.seq} before its needs had ended")
        if name != GATE and self.ready_at_halt is not None and name not in self.askable_at_halt:
            self.find(f"{name} was asked about at {said.seq}, which was not due when the run was to stop")
        if self._late(said, self.stop or self.ready_at_halt is not None) or name in self.questions:
            return
        longest_ns = said.at_ns + directive["approval_expires_s"] * NS
        self.questions[name] = question = Question(min(longest_ns, _ns(body["expires_at"])))
        self._expire(question, said)  # whoever was to ask was away for so long
        if question.status == "expired":
            return
        if name != GATE and self.steps[name].status == "pending":
            self.steps[name].status = "awaiting_approval"

    def _approval_granted(self, said: Said) -> None:
        self._answered(said, "granted")

    def _approval_rejected(self, said: Said) -> None:
        self._answered(said, "rejected")

    def _answered(self, said: Said, answer: str) -> None:
        """Anybody may say anything here; what counts is from who may, bound to its question, and in time."""
        name, who = said.rest[0], said.rest[1] if len(said.rest) > 1 else ""
        question, body = self.questions.get(name), said.body
        if self.end is not None or question is None or question.status != "pending" or not isinstance(body, dict):
            return
        if self.stop is not None:  # the run is ending: nobody can let it go on, and its question may still expire
            return
        assert self.plan is not None
        bound = {"run": self.goal.seq, "step": name, "plan_hash": self.plan["plan_hash"]}
        if {key: body.get(key) for key in bound} != bound or body.get("answer") not in (None, answer):
            return
        if body.get("what") is not None or body.get("expires_at") is not None or said.at_ns >= question.expires_ns:
            return
        if self.directive["approvers"] and who not in self.directive["approvers"]:
            return
        if answer == "rejected":
            question.status = "rejected"
            self._stopped("rejected", said)
            return
        asked_by_somebody = self.requester and not self.requester.startswith("schedule_")
        own = asked_by_somebody and who in ("", self.requester)
        if (own and not self.directive["requester_may_approve"]) or who in question.approved_by:
            return
        question.approved_by.append(who)
        if len(question.approved_by) >= self.directive["approvals_needed"]:
            question.status = "approved"
            if name != GATE and self.steps[name].status == "awaiting_approval":
                self.steps[name].status = "pending"

    def _approval_expired(self, said: Said) -> None:
        question = self.questions.get(said.rest[0])
        if question is None or said.at_ns < question.expires_ns or question.status in ("approved", "rejected"):
            self.find(f"{said.rest[0]} was said at {said.seq} to have expired, and it had not")
        elif self.end is None:
            self._expire(question, said)

    def _expire(self, question: Question, said: Said) -> None:
        if question.status == "pending" and said.at_ns >= question.expires_ns:
            question.status = "expired"
            self._stopped("rejected", said)

    # -- steps ---------------------------------------------------------------------------------------------

    def _step_dispatched(self, said: Said) -> None:
        name, attempt, where = said.rest[0], int(said.rest[1]), said.rest[2:]
        step = self.steps.get(name)
        if step is None or where != _asked_of(step.planned):
            self.find(f"the plan has no step {name} with the task {'.'.join(where)}")
            return
        assert self.plan is not None
        self._might_be_dispatched(said, step)
        last = max(step.dispatched, default=0)
        if attempt != last + 1:
            self.find(f"{name} has {last} attempts, and attempt {attempt} was dispatched")
        elif step.status in ("running", "succeeded", "failed", "cancelled"):
            self.find(f"{name}: attempt {attempt} follows one that is {_words(step.status)}")
        elif step.counted >= step.planned.get("max_attempts", 1):
            self.find(f"{name}: attempt {attempt} is over the plan's attempts")
        elif step.not_before_ns:
            self.find(f"{name}: attempt {attempt} was dispatched at {said.seq} before its back-off was over")
        grant = int(said.body.get("token_grant") or 0)
        step.dispatched[attempt] = why = self._void(name, grant)
        if why == "counted":
            step.status, step.attempt, step.dispatched_ns = "running", attempt, said.at_ns
            step.grant, step.spent, step.is_due, step.cancel_ns = grant, 0, False, 0

    def _might_be_dispatched(self, said: Said, step: Step) -> None:
        """What it rests on never goes away, so it lies before it, however late it was said."""
        name, body, plan = said.rest[0], said.body, self.plan
        assert plan is not None
        if self.started is None and not (self.end and self.stop):
            self.find(f"{name} was dispatched before the run was started")
        if body["plan_hash"] != plan["plan_hash"]:
            self.find(f"{name} was dispatched under another plan")
        if body["inputs"] != step.planned.get("inputs", {}):
            self.find(f"{name} was dispatched with other inputs than the plan's")
        if int(body.get("token_grant") or 0) < 0:
            self.find(f"{name} was dispatched with a grant of {body['token_grant']}")
        for need in step.planned["needs"]:
            if not self._met(need):
                self.find(f"{name} was dispatched at {said.seq} before {need} had ended")
        if self._asks(name) and not self._approved(name):
            self.find(f"{name} was dispatched at {said.seq} without its approval")
        if self._decided(step) is False:
            self.find(f"{name} was dispatched at {said.seq} although {step.planned['when']} is false")
        if name in (plan.get("reused") or {}):
            self.find(f"{name} was dispatched although the result of run {plan.get('retry_of')} stands for it")
        if name in self.undoing:
            due = self.undo_at_stop if self.stop else self._next_undo()
            if name != due:
                self.find(f"{name} was dispatched at {said.seq}, and {due or 'nothing'} was to be undone")
        elif self.ready_at_halt is not None and name not in self.ready_at_halt:
            self.find(f"{name} was dispatched at {said.seq}, which was not due when the run was to stop")
        self._late(said, self.ready_at_halt is not None)

    def _void(self, name: str, grant: int) -> str:
        """Why a dispatch does not count at its place in the stream; `counted` when it does."""
        step, plan = self.steps[name], self.plan
        assert plan is not None
        if self.end is not None:
            return "the run is over"
        if self.stop is not None and self.stop.status == "timed_out":
            return "the time is over"
        if step.status not in WAITING:
            return f"it is {step.status}"
        if step.planned.get("task") and self.parallel >= self.directive["max_parallel_steps"]:
            return "too many in parallel"
        if not step.counted and name not in self.undoing and self.steps_used >= plan["budgets"]["max_steps"]:
            return "too many steps"
        if grant > self.free:
            return "too many tokens"
        return "counted"

    def _decided(self, step: Step) -> bool | None:
        """What the step's condition says, where it is nothing but a decision; None where nobody here can tell."""
        found = DECIDED.fullmatch(step.planned.get("when") or "")
        decision = self.steps.get(found[2]) if found else None
        if found is None or decision is None or not isinstance(decision.outputs, dict):
            return None
        return bool(decision.outputs.get("result") is (found[1] == ""))

    def _current(self, said: Said) -> Step | None:
        """The step, if this is about the attempt of it that runs; another's word changes nothing."""
        step, attempt = self.steps.get(said.rest[0]), int(said.rest[1])
        if step is None or attempt not in step.dispatched:
            self.find(f"{said.kind} of {said.rest[0]}, attempt {attempt}, at {said.seq}: it was never dispatched")
            return None
        return step if self.end is None and step.status == "running" and step.attempt == attempt else None

    def _step_completed(self, said: Said) -> None:
        if (step := self._current(said)) is None:
            return
        planned, outputs = step.planned, said.body["outputs"]
        kind = planned.get("kind", "task")
        if kind == "wait" and not step.is_due:
            self.find(f"the wait {said.rest[0]} ended at {said.seq}, before its time")
        elif kind == "approval" and outputs["approved_by"] != self.questions[said.rest[0]].approved_by:
            self.find(f"{said.rest[0]} says that {outputs['approved_by']} approved")
        if planned.get("host") and said.body.get("host") != planned["host"]:
            self.find(f"{said.rest[0]} is for {planned['host']}, and {said.body.get('host')} did it")
        step.outputs = outputs
        self._ended(step, "succeeded", said)

    def _step_failed(self, said: Said) -> None:
        if (step := self._current(said)) is None:
            return
        if self.started and self.stop is None and said.at_ns >= self._deadline_ns():
            self._deadline(
                said
            )  # a worker ends its step when the run's time is over, and may be heard before the timer
        else:
            self._lost(step, said, said.body["error"], retryable=said.body.get("retryable", False))

    def _lost(self, step: Step, said: Said, error: str, *, retryable: bool) -> None:
        """The attempt is over without a result: another may follow, after a rest; but none once the run is to stop."""
        attempt = max(step.dispatched)
        retry = step.planned.get("retry") or {}
        covered = retry.get("errors") is None or error in retry["errors"]
        if retryable and covered and self.stop is None and attempt < step.planned.get("max_attempts", 1):
            rest_s = min(retry.get("backoff_s", 0) * 2 ** min(attempt - 1, 32), retry.get("backoff_s_max", 60))
            step.status = "pending"
            step.not_before_ns = said.at_ns + rest_s * NS if rest_s else 0
            return
        if step.planned.get("on_failure") != "continue" and step.planned["id"] not in self.undoing:
            self._halt()
        self._ended(step, "failed", said)

    def _ended(self, step: Step, status: str, said: Said) -> None:
        step.status, step.ended, self.last_end = status, said, said

    def _step_cancel_requested(self, said: Said) -> None:
        if self.stop is None:
            self.find(f"{said.rest[0]} was told at {said.seq} to end, and nothing has stopped the run")
        self._late(said, self.stop)
        step = self._current(said)
        if step is not None and not step.cancel_ns:
            step.cancel_ns = said.at_ns

    def _step_cancelled(self, said: Said) -> None:
        if self.stop is None:
            self.find(f"{said.rest[0]} was cancelled at {said.seq}, and nothing has stopped the run")
        if (step := self._current(said)) is not None:
            self._ended(step, "cancelled", said)

    def _step_skipped(self, said: Said) -> None:
        name, cause = said.rest[0], said.body.get("cause")
        if not said.body.get("reason"):
            self.find(f"{name} was skipped without a reason")
        step = self.steps.get(name)
        if step is None:
            self.find(f"the plan has no step {name}, and it was skipped at {said.seq}")
            return
        if not self._might_be_skipped(name, cause):
            self.find(f"{name} was skipped at {said.seq} as {cause!r}, and it is not so")
        if self._late(said, self.ready_at_halt is not None) or step.status not in WAITING:
            return
        if cause in ("steps", "tokens", "condition"):
            self._halt()
        step.cause = cause
        self._ended(step, "skipped", said)

    def _might_be_skipped(self, name: str, cause: str | None) -> bool:
        step = self.steps[name]
        assert self.plan is not None
        if cause == "stopped":
            return self.ready_at_halt is not None and (name not in self.undoing or self.stop is not None)
        if cause == "rollback":
            return name not in self.undoing and any(s.planned.get("on_failure") == "rollback" for s in self._failures())
        if cause == "need":
            return any(self.steps[need].status == "skipped" for need in step.planned["needs"])
        if cause == "when":
            return bool(step.planned.get("when")) and self._needs_met(name) and self._decided(step) is not True
        if cause == "condition":
            return bool(step.planned.get("when")) and self._needs_met(name)
        if cause == "tokens":
            return bool(step.planned.get("uses_tokens")) and self.charged >= self.plan["budgets"]["token_budget"]
        if cause == "steps":
            return self.steps_used >= self.plan["budgets"]["max_steps"]
        if cause == "unneeded":
            wanted = self._rolls_back() and name in self._to_undo()
            return name in self.undoing and self._normal_over() and not wanted
        return False

    # -- tokens and times ----------------------------------------------------------------------------------

    def _llm_called(self, said: Said) -> None:
        """A call counts while its step runs: unknown usage as all that is left of the grant, what is beyond the grant
        from what is free; where nothing is, the run stops.
        """
        step = self.steps.get(said.rest[0])
        if step is None or not step.dispatched:
            self.find(f"{said.rest[0]} called a model at {said.seq} and was never dispatched")
        if self.end is not None or step is None or step.status != "running":
            return
        known = [said.body.get(f"{name}_tokens") for name in ("input", "output")]
        used, left = sum(one or 0 for one in known), max(0, step.grant - step.spent)
        wanted = max(used, left) if None in known else used
        charge = min(wanted, left + max(0, self.free))
        if wanted > charge:
            self._stopped("budget_exhausted", said)
        step.spent += charge
        self.charged += charge
        self.tokens["input"] += known[0] or 0
        self.tokens["output"] += known[1] or 0
        self.tokens["unknown_calls"] += None in known

    def _timer_fired(self, said: Said) -> None:
        if self.end is not None:
            return
        what, *rest = said.rest
        if what == "approval":
            if question := self.questions.get(rest[0]):
                self._expire(question, said)
        elif what == "deadline":
            self._deadline(said)
        else:
            step, attempt = self.steps.get(rest[0]), int(rest[1])
            if step is None or attempt not in step.dispatched:
                self.find(f"a timer fired at {said.seq} for an attempt of {rest[0]} that never was")
            elif step.attempt == attempt:
                self._step_timer(what, step, said)

    def _step_timer(self, what: str, step: Step, said: Said) -> None:
        name = said.rest[1]
        resting = what == "backoff" and step.status == "pending" and step.not_before_ns
        if resting and not self._early(said, f"the back-off of {name}", step.not_before_ns):
            step.not_before_ns = 0
        if step.status != "running":
            return
        if what == "step":
            due_ns = step.dispatched_ns + int(step.planned.get("timeout_s", 600)) * NS
            if not self._early(said, f"the timer of {name}", due_ns):
                self._charge_all(step)
                self._lost(step, said, "timeout", retryable=True)
        elif what == "wait":
            if not self._early(said, f"the wait of {name}", _wait_ends_ns(step)):
                step.is_due = True
        elif what == "cancel" and step.cancel_ns:
            due_ns = step.cancel_ns + int(self.cancel_patience_s * NS)
            if not self._early(said, f"the patience with {name}", due_ns):
                self._charge_all(step)
                self._ended(step, "cancelled", said)

    def _early(self, said: Said, what: str, due_ns: int) -> bool:
        if said.at_ns < due_ns:
            self.find(f"{what} fired at {said.seq}, before its time")
        return said.at_ns < due_ns

    def _charge_all(self, step: Step) -> None:
        """Nobody can say what it has spent of its grant."""
        self.charged += max(0, step.grant - step.spent)
        step.spent = max(step.spent, step.grant)

    def _deadline_ns(self) -> int:
        assert self.started is not None and self.plan is not None
        return self.started.at_ns + int(self.plan["budgets"]["time_budget_s"]) * NS

    def _deadline(self, said: Said) -> None:
        if self.started is None or self.plan is None:
            self.find(f"the deadline fired at {said.seq}, before its time")
            return
        if self._early(said, "the deadline", self._deadline_ns()) or (self.stop and self.stop.status == "timed_out"):
            return
        running = [step for step in self.steps.values() if step.status == "running"]
        stopped_before = self.stop is not None
        self._stopped("timed_out", said)
        for step in running:
            self._charge_all(step)
            self._ended(step, "cancelled" if stopped_before else "failed", said)

    # -- the end -------------------------------------------------------------------------------------------

    def _run_completed(self, said: Said) -> None:
        # The planner may have rejected the goal while the run ended because it was cancelled: the first word counts.
        if self.end is not None:
            if not (self.end.kind == "goal.rejected" and self.stop and self.stop.seq < self.end.seq):
                self.find(f"it ended at {self.end.seq} and again at {said.seq}")
            return
        self.end = said
        body = said.body
        if body["status"] not in STATUSES or not body["reason"]:
            self.find(f"its end says {body['status']!r}, {body['reason']!r}")
        began = self.started is not None and not (self.stop and self.stop.seq < self.started.seq)
        if not began and self.stop is None:
            self.find("it ended and was never started")
            return
        statuses = {name: step.status for name, step in self.steps.items()}
        if not began:  # what had not started ends at once
            statuses = {name: status if status in ENDED else "skipped" for name, status in statuses.items()}
        planless = self.stop is not None and self.stop.seq < self.planned_seq and body["steps"] == {}
        if body["steps"] != statuses and not planless:
            self.find(f"its end says {body['steps']}, the stream says {statuses}")
        if open_ := [name for name, status in statuses.items() if status not in ENDED]:
            self.find(f"it ended with {open_} still open")
        wanted = self._outcomes(began)
        if body["status"] not in wanted:
            self.find(f"its end says {body['status']}, the stream says {' or '.join(sorted(wanted))}")
        if {name: body["tokens"].get(name, 0) for name in self.tokens} != self.tokens:
            self.find(f"its end says {body['tokens']}, the calls say {self.tokens}")
        self._budget_says(body)
        self._is_undone(body)
        self._duration(said)

    def _outcomes(self, began: bool) -> set[str]:
        if self.stop is None:
            return {self._outcome()}
        # Whoever says the end may not have read a stop that came when everything had ended: the first end counts.
        everything_over = began and self._normal_over() and self.stop.seq > self.last_end.seq
        return {self.stop.status, self._outcome()} if everything_over else {self.stop.status}

    def _outcome(self) -> str:
        causes = {step.cause for step in self.steps.values()}
        if causes & {"steps", "tokens"}:
            return "budget_exhausted"
        failed = [s for name, s in self.steps.items() if s.status == "failed" and name not in self.undoing]
        if "condition" in causes or not failed:
            return "failed" if "condition" in causes else "succeeded"
        if any(step.planned.get("on_failure") == "rollback" for step in failed):
            undone = [self.steps[name].status for name in self.undoing]
            if "failed" not in undone and "succeeded" in undone:
                return "rolled_back"
        return "failed"

    def _budget_says(self, body: dict[str, Any]) -> None:
        """An end by a budget says which, how much was used, and how much was allowed."""
        assert self.plan is not None or self.stop is not None
        if body["status"] not in ("budget_exhausted", "timed_out"):
            if body.get("budget") is not None:
                self.find(f"its end is {body['status']} and names the budget {body['budget']}")
            return
        assert self.plan is not None
        budgets, name = self.plan["budgets"], body.get("budget")
        allowed = {"steps": budgets["max_steps"], "tokens": budgets["token_budget"], "time_s": budgets["time_budget_s"]}
        used, right = body.get("used") or 0, name in allowed and body.get("allowed") == allowed.get(name)
        if (name == "time_s") != (body["status"] == "timed_out") or not right:
            self.find(f"its end is {body['status']} and names the budget {name}, {body.get('allowed')}")
        elif name == "steps" and not used == self.steps_used == allowed["steps"]:
            self.find(f"its end says that {used} steps were used, and it were {self.steps_used}")
        elif name == "time_s" and used < allowed["time_s"] - ROUNDING_S:
            self.find(f"its time was over after {used} s of {allowed['time_s']}")

    def _is_undone(self, body: dict[str, Any]) -> None:
        """A rollback leaves out nothing that was done."""
        if self.stop is None and self._rolls_back():
            for name in self._to_undo():
                if body["steps"].get(name) not in ("succeeded", "failed"):
                    self.find(f"it was rolled back, and {name} is {body['steps'].get(name)}")

    def _duration(self, said: Said) -> None:
        """From its start (its goal's where it never started) to an event behind its last step's end."""
        begins = [self.goal.at_ns] if self.started is None else [self.started.at_ns]
        if self.started is not None and self.stop and self.stop.seq < self.started.seq:
            begins.append(self.goal.at_ns)
        least_ns = max(self.last_end.at_ns, min(begins))
        for begin in begins:
            least_s, most_s = (max(0, least_ns - begin) / NS, (said.at_ns - begin) / NS)
            if least_s - ROUNDING_S <= said.body["duration_s"] <= most_s + ROUNDING_S:
                return
        self.find(f"its end says {said.body['duration_s']} s, the stream {least_s:.6f} to {most_s:.6f} s")


def _asked_of(planned: dict[str, Any]) -> list[str]:
    """The end of its dispatch's subject: the task or the kind, and the host where it names one."""
    return [planned.get("task") or planned.get("kind", "task"), *([planned["host"]] if planned.get("host") else [])]


def _words(status: str) -> str:
    return {"succeeded": "completed"}.get(status, status)


def _wait_ends_ns(step: Step) -> int:
    inputs = step.planned["inputs"]
    if "until" in inputs:
        return _ns(inputs["until"])
    return step.dispatched_ns + int(inputs["seconds"] * NS)


def _ns(text: str) -> int:
    moment = datetime.fromisoformat(text)
    return int(moment.timestamp()) * NS + moment.microsecond * 1000

"""The example values of the tests: goals, plans and every event, made in one place so that no test invents data.

Each function gives a valid value and lets a test change what it is about. `Stream` is the order of EVENTS as a list:
it stores, numbers and stamps messages by the rules of the server (create-only or not), and nothing else.
"""

import hashlib
import json
from typing import Any

import msgspec

from services.planner.planning import plan as make_plan
from shared.catalogue import BUILT_IN, Catalogue
from shared.clock import NS_PER_S, rfc3339
from shared.events import (
    ApprovalExpired,
    ApprovalGranted,
    ApprovalRejected,
    ApprovalRequested,
    Artifact,
    Event,
    GoalRejected,
    LlmCalled,
    PlanCreated,
    RunCancelRequested,
    RunCompleted,
    RunQueued,
    RunStarted,
    ScheduleTicked,
    StepCancelled,
    StepCancelRequested,
    StepCompleted,
    StepDispatched,
    StepFailed,
    StepSkipped,
    TimerFired,
    Tokens,
    encode,
    read,
)
from shared.plan import Budgets, Directive, Goal, Problem, Step, TaskSpec, plan_hash
from shared.run import Run, begin, evolve
from shared.run_steps import CANCEL_PATIENCE_S, wait_ends_ns
from shared.schedule import Schedule
from shared.subjects import (
    approval_expired,
    approval_granted,
    approval_rejected,
    approval_requested,
    goal_rejected,
    goal_submitted,
    llm_called,
    plan_created,
    run_cancel_requested,
    run_completed,
    run_queued,
    run_started,
    step_cancel_requested,
    step_cancelled,
    step_completed,
    step_dispatched,
    step_failed,
    step_skipped,
    timer_at,
    timer_fired,
)

T0_NS = 1_795_000_000_000_000_000  # 2026-11-18, as a stream would stamp it
TICK_NS = 1_000_000

# What a server answers to a publish: the message that a client can have stored under any subject it may not publish.
ACK = b'{"stream":"EVENTS","seq":7}'
ACK_DUPLICATE = b'{"stream":"EVENTS","domain":"hub","seq":7,"duplicate":true}'
ACK_ERROR = b'{"error":{"code":400,"err_code":10071,"description":"wrong last sequence: 3"},"stream":"EVENTS","seq":0}'


def catalogue(*more: TaskSpec, directives: list[Directive] | None = None) -> Catalogue:
    """The built-in tasks and `more`; the built-in directives and those given."""
    known = {one.name: one for one in [*BUILT_IN.directives.values(), *(directives or [])]}
    return Catalogue(tasks=BUILT_IN.tasks + more, directives=known)


def directive(name: str = "default", **changes: Any) -> Directive:
    return Directive(name=name, **{"task_list": ["noop", "fail"], **changes})


def step(step_id: str = "a", **changes: Any) -> Step:
    """A step of task `noop`, or of another kind when one is given."""
    fields: dict[str, Any] = {"why": "named in the goal's tasks", "timeout_s": 60}
    if "kind" not in changes:
        fields["task"] = "noop"
    return Step(id=step_id, **{**fields, **changes})


def plan(*steps: Step, **changes: Any) -> PlanCreated:
    """A plan of these steps (one `a` when none is given) with its true hash."""
    fields: dict[str, Any] = {
        "steps": list(steps) or [step()],
        "directive": directive(),
        "budgets": Budgets(),
        "catalogue_version": BUILT_IN.version,
        "rules_version": "1",
        "tasks": ["noop"],
    }
    made = PlanCreated(**{**fields, **changes})
    return msgspec.structs.replace(made, plan_hash=plan_hash(made))


def planned(goal: Goal | str, known: Catalogue = BUILT_IN) -> PlanCreated:
    """The planner's plan for words or a goal; fails the test when there is none."""
    answer = make_plan(Goal(goal=goal) if isinstance(goal, str) else goal, known)
    assert isinstance(answer, PlanCreated), answer
    return answer


def problems(goal: Goal, known: Catalogue = BUILT_IN) -> list[Problem]:
    answer = make_plan(goal, known)
    assert isinstance(answer, list), answer
    return answer


def goal_rejected_body(**changes: Any) -> GoalRejected:
    return GoalRejected(**{"reason": "the goal is blank", "field": "goal", **changes})


def queued(**changes: Any) -> RunQueued:
    return RunQueued(**{"directive": "default", "max_concurrent_runs": 1, **changes})


def started(**changes: Any) -> RunStarted:
    return RunStarted(**{"directive": "default", "plan_hash": plan().plan_hash, **changes})


def dispatched(**changes: Any) -> StepDispatched:
    fields = {"inputs": {}, "deadline": "2026-11-18T12:00:00.000000Z", "plan_hash": plan().plan_hash}
    return StepDispatched(**{**fields, **changes})


def artifact(name: str = "report.md", data: bytes = b"# all is well\n") -> Artifact:
    return Artifact(
        name=name, sha256=hashlib.sha256(data).hexdigest(), size_bytes=len(data), media_type="text/markdown"
    )


def completed(**changes: Any) -> StepCompleted:
    return StepCompleted(**{"outputs": {"n": 1}, "artifacts": [artifact()], "host": "tower", **changes})


def failed(**changes: Any) -> StepFailed:
    return StepFailed(**{"error": "unavailable", "message": "nobody answers", "retryable": True, **changes})


def skipped(**changes: Any) -> StepSkipped:
    return StepSkipped(**{"reason": "step a failed", **changes})


def cancel_requested(**changes: Any) -> RunCancelRequested:
    return RunCancelRequested(**{"reason": "wrong host", **changes})


def told_to_cancel(**changes: Any) -> StepCancelRequested:
    return StepCancelRequested(**{"reason": "cancelled by ann: wrong host", **changes})


def cancelled(**changes: Any) -> StepCancelled:
    return StepCancelled(**{"reason": "cancelled by ann: wrong host", "host": "tower", **changes})


def asked(run: int = 1, step: str = "a", **changes: Any) -> ApprovalRequested:
    fields = {"what": "run step a (noop)", "plan_hash": plan().plan_hash, "expires_at": "2027-01-01T00:00:00.000000Z"}
    return ApprovalRequested(run=run, step=step, **{**fields, **changes})


def granted(run: int = 1, step: str = "a", **changes: Any) -> ApprovalGranted:
    return ApprovalGranted(run=run, step=step, **{"plan_hash": plan().plan_hash, "answer": "granted", **changes})


def refused(run: int = 1, step: str = "a", **changes: Any) -> ApprovalRejected:
    return ApprovalRejected(run=run, step=step, **{"plan_hash": plan().plan_hash, "answer": "rejected", **changes})


def called(**changes: Any) -> LlmCalled:
    return LlmCalled(**{"request_model": "small", "outcome": "ok", "input_tokens": 30, "output_tokens": 12, **changes})


def fired(**changes: Any) -> TimerFired:
    return TimerFired(**{"due": "2026-11-18T12:00:00.000000Z", **changes})


def ticked(**changes: Any) -> ScheduleTicked:
    fields = {"due": "2026-11-26T01:00:00.000000Z", "outcome": "ran", "goal": {"tasks": ["noop"]}}
    return ScheduleTicked(**{**fields, **changes})


def schedule(name: str = "nightly", **changes: Any) -> Schedule:
    """Each day at two in Berlin, from T0 on."""
    fields = {"cron": "0 2 * * *", "zone": "Europe/Berlin", "goal": {"tasks": ["noop"]}, "since": rfc3339(T0_NS)}
    return Schedule(name=name, **{**fields, **changes})


def run_over(**changes: Any) -> RunCompleted:
    fields = {"status": "succeeded", "reason": "1 of 1 steps succeeded", "steps": {"a": "succeeded"}}
    return RunCompleted(**{**fields, "tokens": Tokens(input=30, output=12), "duration_s": 1.5, **changes})


def every_event(run: int = 1) -> dict[str, tuple[str, Any]]:
    """One readable example of each kind: its subject and body, of run `run` and step `a`."""
    return {
        "goal.rejected": (goal_rejected(run), goal_rejected_body()),
        "plan.created": (plan_created(run), plan()),
        "run.queued": (run_queued(run), queued()),
        "run.started": (run_started(run), started()),
        "run.cancel_requested": (run_cancel_requested(run, "ann"), cancel_requested()),
        "approval.requested": (approval_requested(run, "a"), asked(run)),
        "approval.granted": (approval_granted(run, "a", "ann"), granted(run)),
        "approval.rejected": (approval_rejected(run, "a", "ann"), refused(run)),
        "approval.expired": (approval_expired(run, "a"), ApprovalExpired(expired_at="2027-01-01T00:00:00.000000Z")),
        "step.cancel_requested": (step_cancel_requested(run, "a", 1), told_to_cancel()),
        "step.cancelled": (step_cancelled(run, "a", 1), cancelled()),
        "step.dispatched": (step_dispatched(run, "a", 1, "noop"), dispatched()),
        "step.completed": (step_completed(run, "a", 1), completed()),
        "step.failed": (step_failed(run, "a", 1), failed()),
        "step.skipped": (step_skipped(run, "a"), skipped()),
        "llm.called": (llm_called(run, "a", "1-1"), called()),
        "timer.fired": (timer_fired(run, "deadline"), fired()),
        "run.completed": (run_completed(run), run_over()),
    }


class Stream:
    """EVENTS as a list. `say` is a create-only append (0: the subject was taken), `put` a plain publish.

    A timer is stored when it is due: the clock of the stream moves on to its time.
    """

    def __init__(self) -> None:
        self.messages: list[tuple[str, int, int, bytes]] = []
        self.subjects: set[str] = set()
        self.timers: dict[str, int] = {}  # what was laid down in TIMERS, in order, and when it is due
        self._events: dict[int, Event] = {}
        self._at_ns = T0_NS

    @property
    def last_seq(self) -> int:
        return len(self.messages)

    def put(self, subject: str, body: Any) -> int:
        data = body if isinstance(body, bytes) else encode(body)
        seq = len(self.messages) + 1
        self._at_ns += TICK_NS
        if isinstance(body, TimerFired):
            number, _, what = subject.split(".", 2)[2].partition(".")
            laid = timer_at(int(number), what) if what and number.isdigit() else ""  # a schedule's is not of a run
            self._at_ns = max(self._at_ns, self.timers.get(laid) or self._due_ns(subject))
        self.messages.append((subject, seq, self._at_ns, data))
        self.subjects.add(subject)
        return seq

    def wait_until(self, at_ns: int) -> None:
        """The clock of the stream moves on."""
        self._at_ns = max(self._at_ns, at_ns)

    def prefix(self, until: int) -> "Stream":
        """The stream as it stood at message `until`, stamps and all."""
        made = Stream()
        made.messages = self.messages[:until]
        made.subjects = {subject for subject, *_ in made.messages}
        made._at_ns = made.messages[-1][2] if made.messages else T0_NS
        return made

    def say(self, subject: str, body: Any) -> int:
        return 0 if subject in self.subjects else self.put(subject, body)

    def _due_ns(self, subject: str) -> int:
        """When the server would fire this timer: a step's is set a little behind its limit."""
        _, _, number, *what = subject.split(".")
        if not number.isdigit() or not 0 < int(number) <= self.last_seq:
            return 0
        run = self.fold(int(number))
        if what == ["deadline"]:
            return run.deadline_ns
        if what[0] == "approval":
            return run.approvals[what[1]].expires_ns if what[1] in run.approvals else 0
        state = run.steps.get(what[1])
        if state is None:
            return 0
        if what[0] == "backoff":
            return state.not_before_ns
        if what[0] == "wait":
            return wait_ends_ns(run, what[1], state) if run.step_plan(what[1]).kind == "wait" else 0
        if what[0] == "cancel":
            return state.cancel_ns + CANCEL_PATIENCE_S * NS_PER_S
        return state.dispatched_ns + (run.step_plan(what[1]).timeout_s + 5) * NS_PER_S

    def goal(self, goal: bytes = b'{"tasks":["noop"]}', principal: str = "") -> int:
        return self.put(goal_submitted(principal), goal)

    def planned(self, made: PlanCreated | bytes | None = None) -> int:
        """A goal and its plan; the run."""
        run = self.goal()
        self.put(plan_created(run), made or plan())
        return run

    def event(self, seq: int) -> Event:
        found = self._events.get(seq)
        if found is None:
            found = self._events[seq] = read(*self.messages[seq - 1])
        return found

    def fold(self, run: int, until: int | None = None) -> Run:
        """The run as the fold of the first `until` messages (of all) says."""
        state = begin(self.event(run))
        for message in self.messages[run : until if until is not None else None]:
            event = read(*message)
            if event.run == run and event.kind != "goal.submitted":
                state = evolve(state, event)
        return state


def outsiders_hash(plan_json: bytes) -> str:
    """The plan hash as somebody without Remit computes it: json and hashlib from the standard library."""
    fields = json.loads(plan_json)
    del fields["plan_hash"]
    text = json.dumps(fields, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()

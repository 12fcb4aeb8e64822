"""An auditor that shares no code with the engine: the raw stream in, findings out.

Theory of operation. It reads each message with `json` from the standard library and keeps, for each goal, what was
said in stream order. Where several could speak (two workers, a timer, a late zombie) the first in that order counts,
and the auditor works out by itself which end of an attempt that was; then it compares with what the engine said
followed from it: the next attempt, the skipped steps, the run's end. It knows sequential plans and `needs`, nothing of
handlers. An empty list means that it found nothing to say against the stream.
"""

import itertools
import json
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

Message = tuple[str, int, int, bytes]  # subject, sequence, stamp in nanoseconds, data

# Subjects that clients may use again and again, and those that the server says itself.
REPEATABLE = ("goal.submitted", "timer.fired.", "run.cancel_requested.", "approval.granted.", "approval.rejected.")
# What may still come for a run that is over: the late word of a worker or a timer. It changes nothing.
LATE = ("step.completed", "step.failed", "timer.fired", "llm.called", "run.cancel_requested")
STATUSES = {"succeeded", "failed", "cancelled", "rejected", "timed_out", "budget_exhausted", "rolled_back"}
NS = 1_000_000_000
ROUNDING_S = 0.001


@dataclass
class Said:
    """One event of a run."""

    kind: str
    rest: list[str]
    seq: int
    at_ns: int
    body: Any


@dataclass
class Attempt:
    dispatched: Said
    ended: str = ""  # completed, failed or retry (another attempt may follow); "" while nobody has said so


@dataclass
class Story:
    """What the auditor knows of one goal."""

    goal: Said
    said: list[Said] = field(default_factory=list)


def audit(messages: Iterable[Message]) -> list[str]:
    """Every rule that the stream breaks, in words; empty when it breaks none."""
    ordered = sorted(messages, key=lambda message: message[1])
    ticked, told = _parted(ordered)
    return [*_order(ordered), *_subjects(ordered), *_ticks(ticked, told), *_stories(told)]


def _order(messages: list[Message]) -> list[str]:
    """The stream is whole: nothing is ever deleted from it."""
    seqs = [message[1] for message in messages]
    missing = sorted(set(range(1, (seqs[-1] if seqs else 0) + 1)) - set(seqs))
    found = [f"{len(missing)} messages are missing, the first is {missing[0]}"] if missing else []
    found += [f"message {seq} is there twice" for seq, next_ in itertools.pairwise(seqs) if seq == next_]
    return found


def _subjects(messages: list[Message]) -> list[str]:
    """No engine subject holds two messages."""
    seen: dict[str, int] = {}
    found = []
    for subject, seq, _, _ in messages:
        if subject in seen and not subject.startswith(REPEATABLE):
            found.append(f"{subject} was said at {seen[subject]} and again at {seq}")
        seen.setdefault(subject, seq)
    return found


def _parted(messages: list[Message]) -> tuple[list[Message], list[Message]]:
    """The ticks of schedules, and all that belongs to runs; the alarms of schedules are left out."""
    ticked = [message for message in messages if message[0].startswith("schedule.ticked.")]
    told = [message for message in messages if not message[0].startswith(("schedule.", "timer.fired.schedule."))]
    return ticked, told


def _ticks(ticked: list[Message], told: list[Message]) -> list[str]:
    """A tick that is to run has one goal, behind it; no other tick has any."""
    goals: dict[str, list[int]] = defaultdict(list)
    for subject, seq, _, _ in told:
        if subject.startswith("goal.submitted.schedule_"):
            goals[subject].append(seq)
    found = []
    for subject, seq, _, data in ticked:
        _, _, name, tick = subject.split(".")
        runs = json.loads(data)["outcome"] in ("ran", "late", "caught_up")
        own = goals.pop(f"goal.submitted.schedule_{name}_{tick}", [])
        if len(own) != runs:
            found.append(f"{subject} at {seq} has {len(own)} goals")
        found += [f"the goal at {goal} comes before its tick at {seq}" for goal in own if goal < seq]
    return found + [f"{subject} at {seqs[0]} belongs to no tick" for subject, seqs in goals.items()]


def _stories(messages: list[Message]) -> list[str]:
    stories: dict[int, Story] = {}
    found = []
    for subject, seq, at_ns, data in messages:
        kind, rest = ".".join(subject.split(".")[:2]), subject.split(".")[2:]
        if kind == "goal.submitted":
            stories[seq] = Story(Said(kind, rest, seq, at_ns, None))
            continue
        run = int(rest[0]) if rest and rest[0].isdigit() else 0
        try:
            body = json.loads(data)
        except ValueError:
            found.append(f"{subject} at {seq} is no JSON")
            continue
        if run not in stories:
            found.append(f"{subject} at {seq} belongs to no goal")
            continue
        stories[run].said.append(Said(kind, rest[1:], seq, at_ns, body))
    for run, story in stories.items():
        found += [f"run {run}: {what}" for what in _Audit(story).findings()]
    return found


class _Audit:
    """One run, event by event."""

    def __init__(self, story: Story) -> None:
        self.story = story
        self.found: list[str] = []
        self.plan: dict[str, dict[str, Any]] = {}
        self.hash = ""
        self.budget_s = 0
        self.started: Said | None = None
        self.end: Said | None = None
        self.attempts: dict[str, dict[int, Attempt]] = defaultdict(dict)
        self.skipped: set[str] = set()
        self.tokens = {"input": 0, "output": 0}
        self.timed_out = False
        self.last_ns = story.goal.at_ns

    def findings(self) -> list[str]:
        for said in self.story.said:
            self._hear(said)
        if self.end is None:
            last = self.story.said[-1].kind if self.story.said else "goal.submitted"
            self.found.append(f"it has no end (its last event is {last})")
        return self.found

    def _hear(self, said: Said) -> None:
        if self.end is not None:
            if said.kind not in LATE:
                self.found.append(f"{said.kind} at {said.seq} comes behind its end at {self.end.seq}")
            return
        name = "_" + said.kind.replace(".", "_")
        hear = getattr(self, name, None)
        if hear is None:
            self.found.append(f"the auditor does not know {said.kind}")
        else:
            hear(said)

    # -- before it runs ----------------------------------------------------------------------------------------

    def _goal_rejected(self, said: Said) -> None:
        if self.plan:
            self.found.append(f"it was rejected at {said.seq} although it has a plan")
        elif not said.body.get("reason"):
            self.found.append("it was rejected without a reason")
        self.end = said

    def _plan_created(self, said: Said) -> None:
        self.plan = {step["id"]: step for step in said.body["steps"]}
        self.hash = said.body["plan_hash"]
        self.budget_s = said.body["budgets"]["time_budget_s"]
        if not self.plan:
            self.found.append("its plan is empty")

    def _run_queued(self, said: Said) -> None:
        if not self.plan:
            self.found.append("it was queued without a plan")

    def _run_started(self, said: Said) -> None:
        if not self.plan or said.body["plan_hash"] != self.hash:
            self.found.append("it was started without its plan")
        self.started = said

    # -- steps -------------------------------------------------------------------------------------------------

    def _step_dispatched(self, said: Said) -> None:
        step, attempt, task = said.rest[0], int(said.rest[1]), said.rest[2]
        if self.started is None:
            self.found.append(f"{step} was dispatched before the run was started")
        if step not in self.plan or self.plan[step]["task"] != task:
            self.found.append(f"the plan has no step {step} with the task {task}")
            return
        if said.body["plan_hash"] != self.hash:
            self.found.append(f"{step} was dispatched under another plan")
        for need in self.plan[step]["needs"]:
            if not self._lets_on(need):
                self.found.append(f"{step} was dispatched at {said.seq} before {need} had ended")
        if step in self.skipped:
            self.found.append(f"{step} was dispatched at {said.seq} although it is skipped")
        if self.timed_out:
            self.found.append(f"{step} was dispatched at {said.seq} behind the run's deadline")
        before = self.attempts[step]
        if attempt != len(before) + 1:
            self.found.append(f"{step} has {len(before)} attempts, and attempt {attempt} was dispatched")
        elif before and before[attempt - 1].ended != "retry":
            self.found.append(f"{step}: attempt {attempt} follows one that is {before[attempt - 1].ended or 'running'}")
        if attempt > self._attempts_max(step):
            self.found.append(f"{step}: attempt {attempt} is over the plan's attempts")
        before[attempt] = Attempt(said)

    def _lets_on(self, step: str) -> bool:
        status = self._status(step)
        return status == "succeeded" or (status == "failed" and self.plan[step].get("on_failure") == "continue")

    def _step_completed(self, said: Said) -> None:
        self._attempt_ended(said, "completed")

    def _step_failed(self, said: Said) -> None:
        lost = said.body["retryable"] and int(said.rest[1]) < self._attempts_max(said.rest[0])
        self._attempt_ended(said, "retry" if lost else "failed")

    def _attempts_max(self, step: str) -> int:
        return int(self.plan.get(step, {}).get("max_attempts", 1))

    def _attempt_ended(self, said: Said, how: str) -> None:
        step, attempt = said.rest[0], int(said.rest[1])
        attempts = self.attempts.get(step, {})
        if attempt not in attempts:
            self.found.append(f"{said.kind} of {step}, attempt {attempt}, at {said.seq}: it was never dispatched")
        elif not attempts[attempt].ended:  # else: a second voice, which changes nothing
            attempts[attempt].ended = how
            self.last_ns = said.at_ns

    def _step_skipped(self, said: Said) -> None:
        step = said.rest[0]
        if step not in self.plan or self._status(step) in ("running", "succeeded", "failed"):
            self.found.append(f"{step} was skipped at {said.seq} although it is {self._status(step)}")
        if not said.body.get("reason"):
            self.found.append(f"{step} was skipped without a reason")
        self.skipped.add(step)
        self.last_ns = said.at_ns

    def _timer_fired(self, said: Said) -> None:
        if said.rest == ["deadline"]:
            if self.started is None or said.at_ns < self.started.at_ns + self.budget_s * NS:
                self.found.append(f"the deadline fired at {said.seq}, before its time")
                return
            self.timed_out = True
            for attempts in self.attempts.values():
                for attempt in attempts.values():
                    attempt.ended = attempt.ended or "failed"
            self.last_ns = said.at_ns
        elif said.rest[0] == "step":
            step, number = said.rest[1], int(said.rest[2])
            attempt = self.attempts.get(step, {}).get(number)
            if attempt is None:
                self.found.append(f"a timer fired at {said.seq} for an attempt of {step} that never was")
            elif not attempt.ended:
                if said.at_ns < attempt.dispatched.at_ns + self.plan[step].get("timeout_s", 0) * NS:
                    self.found.append(f"the timer of {step} fired at {said.seq}, before its time")
                attempt.ended = "retry" if number < self._attempts_max(step) else "failed"
                self.last_ns = said.at_ns

    def _llm_called(self, said: Said) -> None:
        for name in self.tokens:
            self.tokens[name] += said.body.get(f"{name}_tokens") or 0

    def _run_cancel_requested(self, said: Said) -> None:
        """A client's word; what follows from it is seen in the end."""

    # -- the end -----------------------------------------------------------------------------------------------

    def _status(self, step: str) -> str:
        attempts = self.attempts.get(step)
        if not attempts:
            return "skipped" if step in self.skipped else "pending"
        last = attempts[max(attempts)]
        if last.ended == "completed":
            return "succeeded"
        if not last.ended:
            return "running"
        return "failed" if last.ended == "failed" else "skipped" if step in self.skipped else "pending"

    def _run_completed(self, said: Said) -> None:
        self.end = said
        body = said.body
        if body["status"] not in STATUSES or not body["reason"]:
            self.found.append(f"its end says {body['status']!r}, {body['reason']!r}")
        if self.started is None:
            self.found.append("it ended and was never started")
            return
        statuses = {step: self._status(step) for step in self.plan}
        if body["steps"] != statuses:
            self.found.append(f"its end says {body['steps']}, the stream says {statuses}")
        open_ = [step for step, status in statuses.items() if status in ("pending", "running")]
        if open_:
            self.found.append(f"it ended with {open_} still open")
        wanted = (
            "timed_out" if self.timed_out else "failed" if "failed" in statuses.values() else
            "succeeded" if set(statuses.values()) == {"succeeded"} else "?"
        )  # fmt: skip
        if body["status"] != wanted:
            self.found.append(f"its end says {body['status']}, the stream says {wanted}")
        if {name: body["tokens"][name] for name in self.tokens} != self.tokens:
            self.found.append(f"its end says {body['tokens']}, the calls say {self.tokens}")
        least_s, most_s = ((at - self.started.at_ns) / NS for at in (self.last_ns, said.at_ns))
        if not least_s - ROUNDING_S <= body["duration_s"] <= most_s + ROUNDING_S:
            self.found.append(f"its end says {body['duration_s']} s, the stream {least_s:.6f} to {most_s:.6f} s")

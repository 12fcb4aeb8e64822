"""An auditor that shares no code with the engine: the raw stream in, findings out.

Theory of operation. It reads each message with `json` from the standard library, in stream order. What belongs to one
run goes to its own reading of the rules (`tests/audited_run.py`); here stands what lies between runs: that the stream
is whole, that no fact is there twice, that every goal has its story, the slots of directives, results that were reused,
and schedules. An empty list means that it found nothing to say against the stream.
"""

import itertools
import json
from collections import defaultdict
from collections.abc import Iterable
from datetime import datetime

from tests.audited_run import CANCEL_PATIENCE_S, AuditedRun, Said
from tests.audited_run import NS as NS

Message = tuple[str, int, int, bytes]  # subject, sequence, stamp in nanoseconds, data

# Subjects that clients may use again and again, and those that the server says itself.
REPEATABLE = ("goal.submitted", "timer.fired.", "run.cancel_requested.", "approval.granted.", "approval.rejected.")
NO_RUNS = ("schedule.", "timer.fired.schedule.", "audit.")
OUTCOMES = {"ran", "late", "caught_up", "coalesced", "skipped"}


def audit(messages: Iterable[Message], *, cancel_patience_s: float = CANCEL_PATIENCE_S) -> list[str]:
    """Every rule that the stream breaks, in words; empty when it breaks none.

    `cancel_patience_s`: after so long without an answer a step that was told to end is taken for ended.
    """
    ordered = sorted(messages, key=lambda message: message[1])
    ticked, told = _parted(ordered)
    return [*_order(ordered), *_subjects(ordered), *_ticks(ticked, told), *_Runs(cancel_patience_s).findings(told)]


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


# -- schedules ---------------------------------------------------------------------------------------------------------


def _parted(messages: list[Message]) -> tuple[list[Message], list[Message]]:
    """The ticks of schedules, and all that belongs to runs; alarms of schedules and seals are left out."""
    ticked = [message for message in messages if message[0].startswith("schedule.ticked.")]
    told = [message for message in messages if not message[0].startswith(NO_RUNS)]
    return ticked, told


def _ticks(ticked: list[Message], told: list[Message]) -> list[str]:
    """A tick that is to run has one goal, its own, behind it; no other tick has any. Ticks are told in their order."""
    goals: dict[str, list[tuple[int, bytes]]] = defaultdict(list)
    for subject, seq, _, data in told:
        if subject.startswith("goal.submitted.schedule_"):
            goals[subject].append((seq, data))
    found = []
    newest: dict[str, int] = {}
    for subject, seq, at_ns, data in ticked:
        _, _, name, tick = subject.split(".")
        body = json.loads(data)
        if body["outcome"] not in OUTCOMES or (body["outcome"] in ("coalesced", "skipped") and not body.get("reason")):
            found.append(f"{subject} at {seq} says {body['outcome']!r}, {body.get('reason')!r}")
        if "due" in body and datetime.fromisoformat(body["due"]).timestamp() != int(tick):
            found.append(f"{subject} at {seq} says that it was due {body['due']}")
        if int(tick) <= newest.get(name, 0):
            found.append(f"{subject} at {seq} comes behind the tick of {newest[name]}")
        if int(tick) * NS > at_ns:
            found.append(f"{subject} at {seq} was said before its time")
        newest[name] = int(tick)
        runs = body["outcome"] in ("ran", "late", "caught_up")
        own = goals.pop(f"goal.submitted.schedule_{name}_{tick}", [])
        if len(own) != runs:
            found.append(f"{subject} at {seq} has {len(own)} goals")
        found += [f"the goal at {goal} comes before its tick at {seq}" for goal, _ in own if goal < seq]
        found += [f"the goal at {goal} is not its tick's" for goal, text in own if json.loads(text) != body.get("goal")]
    return found + [f"{subject} at {said[0][0]} belongs to no tick" for subject, said in goals.items()]


# -- runs --------------------------------------------------------------------------------------------------------------


class _Runs:
    """Every run by its own rules, and what runs share, in the order of the stream."""

    def __init__(self, cancel_patience_s: float) -> None:
        self.cancel_patience_s = cancel_patience_s
        self.runs: dict[int, AuditedRun] = {}
        self._open: dict[int, AuditedRun] = {}  # those without an end: only they can hold a slot
        self.last: dict[int, str] = {}
        self.found: list[str] = []

    def findings(self, messages: list[Message]) -> list[str]:
        for subject, seq, at_ns, data in messages:
            self._hear(subject, seq, at_ns, data)
        for number, run in self.runs.items():
            run.close(self.last[number])
            self.found += [f"run {number}: {what}" for what in run.found]
        return self.found

    def _hear(self, subject: str, seq: int, at_ns: int, data: bytes) -> None:
        kind, rest = ".".join(subject.split(".")[:2]), subject.split(".")[2:]
        if kind == "goal.submitted":
            self.runs[seq] = self._open[seq] = AuditedRun(Said(kind, rest, seq, at_ns, None), self.cancel_patience_s)
            self.last[seq] = kind
            return
        number = int(rest[0]) if rest and rest[0].isdigit() else 0
        try:
            body = json.loads(data) if data or kind != "run.cancel_requested" else None
        except ValueError:
            self.found.append(f"{subject} at {seq} is no JSON")
            return
        run = self.runs.get(number)
        if run is None:
            self.found.append(f"{subject} at {seq} belongs to no goal")
            return
        run.hear(Said(kind, rest[1:], seq, at_ns, body))
        self.last[number] = kind
        if run.end is not None:
            self._open.pop(number, None)
        if run.started is not None and run.started.seq == seq and run.holds_a_slot:
            self._slots(run)
        elif kind == "plan.created" and run.planned_seq == seq and (body.get("retry_of") or body.get("reused")):
            self._repeats(run)

    def _slots(self, run: AuditedRun) -> None:
        """A run that starts found one of its directive's slots free."""
        name, most = run.directive["name"], run.directive["max_concurrent_runs"]
        others = [one for one in self._open.values() if one is not run and one.plan and one.directive["name"] == name]
        held = sum(one.holds_a_slot for one in others)
        if held >= most:
            run.find(f"it was started while {held} runs of {name} held the {most} slots")

    def _repeats(self, run: AuditedRun) -> None:
        """What stands for a step that is not done again is what that step has left, in a run that is over."""
        assert run.plan is not None
        old, reused = self.runs.get(run.plan.get("retry_of") or 0), run.plan.get("reused") or {}
        if old is None or old.end is None or old.end.seq > run.planned_seq:
            run.find(f"it repeats run {run.plan.get('retry_of')}, which was not over")
            return
        for name, left in reused.items():
            step = old.steps.get(name)
            if step is None or step.status != "succeeded" or step.outputs != left.get("outputs", {}):
                run.find(f"it reuses what {name} of run {run.plan['retry_of']} has not left")


def tally_void(messages: Iterable[Message]) -> dict[str, int]:
    """How many dispatches did not count, by why: they are the races that the rules have decided."""
    runs = _Runs(CANCEL_PATIENCE_S)
    runs.findings(_parted(sorted(messages, key=lambda message: message[1]))[1])
    found: dict[str, int] = defaultdict(int)
    for run in runs.runs.values():
        for step in run.steps.values():
            for how in step.dispatched.values():
                if how != "counted":
                    found[how] += 1
    return dict(found)

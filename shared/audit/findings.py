"""What an audit says: the rules by name, a finding that breaks one, a note on what counts for nothing."""

from typing import Any

import msgspec

# Every rule, in the order in which a record is believed: the stream, the run, its steps, its budgets, its people.
RULES: dict[str, str] = {
    "sequence": "the stream is whole: its numbers go up by one, and none is there twice",
    "create_only": "a subject that only services use holds one message",
    "early": "nothing is said of a run before its goal",
    "plan": "a plan can be read, and its steps need only earlier ones",
    "plan_hash": "the plan's hash is its own, and the same wherever it is named",
    "allowed": "the plan keeps to its directive: tasks, hosts and the most that a run may use",
    "transition": "services say only what the state of the run or the step allows",
    "needs": "no step starts before those that it needs have ended",
    "attempts": "attempts are dispatched one after the other, and no more than the plan gives",
    "backoff": "a failed step rests for as long as the plan says before it is tried again",
    "dispatch": "a dispatch carries the plan's inputs, time and deadline, and tokens only where the plan uses some",
    "skip": "a step is skipped for a reason that the record bears out",
    "one_end": "a run ends once",
    "end": "the status of the end follows from what happened",
    "end_steps": "the end gives each step the state that the record gives it",
    "tokens": "the totals of the end are the sums of the calls",
    "max_steps": "no more steps are dispatched than the budget allows",
    "max_parallel_steps": "no more steps run at a time than the directive allows",
    "max_concurrent_runs": "no more runs of a directive run at a time than it allows",
    "token_budget": "tokens charged and reserved are never more than the budget",
    "time_budget": "nothing starts behind the run's deadline",
    "approval": "nothing starts without the yes that the plan asks for",
    "approver": "a yes counts only from one who may give it",
    "requester": "who asked for a run does not approve it, unless the directive lets them",
    "quorum": "as many have said yes as are needed, each counted once",
    "expiry": "a question is answered before it expires, and expires no sooner than that",
    "answer": "an answer is to its own question: run, step and plan hash",
    "question": "a question says what the plan says: who may answer, how many have to, until when",
    "artifact": "what was announced is in the store, with its size and digest",
    "tick": "a schedule's tick is one fact, and one goal at most, with the goal of the fact",
}


class Finding(msgspec.Struct, frozen=True):
    """A rule that the record breaks; `events` are the sequence numbers that prove it, run 0 is the stream itself."""

    rule: str
    run: int
    step: str
    events: list[int]
    text: str


class Note(msgspec.Struct, frozen=True):
    """A message that counts for nothing, as the rules say: kept, told, and no fault of the record."""

    seq: int
    run: int
    subject: str
    text: str


class Announced(msgspec.Struct, frozen=True):
    """An artifact of an accepted end, to be looked for in the store."""

    run: int
    step: str
    seq: int
    name: str
    sha256: str
    size_bytes: int
    holder: int  # whose name it has there: another run's, where a step was reused


class Audited(msgspec.Struct):
    """What an audit has found in so many events; `notes` are the first ones of `noted`."""

    events: int = 0
    runs: int = 0
    active: int = 0
    findings: list[Finding] = []
    noted: int = 0
    notes: list[Note] = []
    artifacts: list[Announced] = []
    last_seq: int = 0

    def told(self) -> dict[str, Any]:
        """As plain data, for a program."""
        return {
            "events": self.events,
            "runs": self.runs,
            "active": self.active,
            "last_seq": self.last_seq,
            "artifacts": len(self.artifacts),
            "findings": [msgspec.to_builtins(one) for one in self.findings],
            "noted": self.noted,
            "notes": [msgspec.to_builtins(one) for one in self.notes],
        }

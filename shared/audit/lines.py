"""Where a run stands by the audit's own rules, and the messages that brought it there; the rooms beside judge them."""

from collections.abc import Callable
from typing import Any, Protocol

from shared.audit.reading import Kept, Planned

UNPLANNED = Planned(None, None, [])
ENDED = frozenset(("succeeded", "failed", "skipped", "cancelled"))


class Says(Protocol):
    """Where a run's findings and notes go."""

    def find(self, rule: str, run: int, step: str, events: list[int], text: str) -> None: ...
    def note(self, run: int, seq: int, subject: str, text: str) -> None: ...
    def keep(self, run: int, step: str, seq: int, kept: Kept) -> None: ...


class StepLine:
    """Where one step stands, and the messages that brought it there."""

    __slots__ = (
        "attempt", "cancel_ns", "cause", "dispatched_ns", "ended_ns", "grant", "is_due", "rest_ns", "seq", "skip",
        "spent", "status", "taken", "void",
    )  # fmt: skip

    def __init__(self) -> None:
        self.status = "waiting"
        self.attempt = self.taken = 0
        self.dispatched_ns = self.ended_ns = self.rest_ns = self.cancel_ns = 0
        self.grant = self.spent = 0
        self.is_due = False
        self.cause = ""
        self.seq = 0  # the message that brought it where it is
        # A skip that came while it ran, and counts when the attempt is lost: its seq, its cause, what is wrong with it.
        self.skip: tuple[int, str, str] | None = None
        self.void: tuple[str, int, str] | None = None  # (rule, seq, text): why its last dispatch did not count


class QuestionLine:
    """One question and what was answered."""

    __slots__ = ("by", "expires_ns", "seq", "status", "voids")

    def __init__(self, seq: int, expires_ns: int) -> None:
        self.seq = seq
        self.expires_ns = expires_ns
        self.status = "pending"
        self.by: list[str] = []
        self.voids: list[tuple[str, int, str]] = []  # answers that did not count: (rule, seq, text)


class RunLine:
    """One run, from its goal on."""

    __slots__ = (
        "asked", "broken", "charged", "deadline", "deadline_ns", "id", "lines", "over", "plan",
        "plan_seq", "planned", "planned_ns", "requester", "said", "says", "settled", "started", "started_ns",
        "stop", "stop_seq", "tokens", "unended",
    )  # fmt: skip

    def __init__(self, seq: int, requester: str, says: Says) -> None:
        self.id = seq
        self.requester = requester
        self.says = says
        self.said: set[str] = set()
        self.planned = UNPLANNED
        self.plan: Any = None
        self.plan_seq = self.planned_ns = 0
        self.lines: dict[str, StepLine] = {}
        self.unended = 0
        self.asked: dict[str, QuestionLine] = {}
        self.started = 0  # seq
        self.started_ns = 0
        self.deadline = ""
        self.deadline_ns = 0
        self.stop = ""
        self.stop_seq = 0
        self.broken: tuple[str, int] | None = None
        self.tokens = [0, 0, 0]  # in, out, calls of unknown usage
        self.charged = 0
        self.settled = 0  # the message with which its last step ended
        self.over = 0

    # -- words ---------------------------------------------------------------------------------------------

    def find(self, rule: str, seqs: list[int], text: str, step: str = "") -> None:
        self.says.find(rule, self.id, step, [seq for seq in seqs if seq], text)

    def halt(self, status: str, seq: int) -> None:
        """Nothing more may start; the first reason stands."""
        if not self.stop:
            self.stop, self.stop_seq = status, seq

    def end_step(self, line: StepLine, status: str, seq: int, at_ns: int, cause: str = "") -> None:
        line.status, line.seq, line.ended_ns, line.cause = status, seq, at_ns, cause
        line.grant = line.spent = 0
        self.unended -= 1
        if not self.unended:
            self.settled = seq

    @property
    def reserved(self) -> int:
        return sum(max(0, line.grant - line.spent) for line in self.lines.values() if line.status == "running")

    @property
    def free(self) -> int:
        return int(self.plan.budgets.token_budget) - self.charged - self.reserved

    @property
    def voids(self) -> list[tuple[str, int, str]]:
        """Answers that did not count."""
        return [void for asked in self.asked.values() for void in asked.voids]

    def approved(self, step: str) -> bool:
        asked = self.asked.get(step)
        return asked is not None and asked.status == "approved"

    def unapproved(self, step: str) -> tuple[str, list[int], str]:
        """Why what is asked here has no yes: the rule, the messages, and words."""
        asked = self.asked.get(step)
        if asked is None:
            return "approval", [], "nobody was asked"
        if asked.voids:
            rule, seq, why = asked.voids[-1]
            return rule, [asked.seq, seq], why
        if asked.by and asked.status == "pending":
            needed = self.plan.directive.approvals_needed
            return "quorum", [asked.seq], f"{len(asked.by)} of {needed} have said yes"
        return (
            "approval",
            [asked.seq],
            "the question is " + ("unanswered" if asked.status == "pending" else asked.status),
        )

    def has_ended(self, step: str) -> bool:
        return self.lines[step].status in ENDED

    def unplanned(self, seq: int, what: str) -> str:
        """An executor speaks of a plan where there is none: it cannot be said there again, and the run has to end."""
        if self.broken:
            return "the run is broken"
        self.find("transition", [seq], f"{what} before the run has a plan")
        self.broken = (f"{what} before it had a plan", seq)
        return ""


Hear = Callable[[RunLine, list[str], int, int, bytes], str]  # run, tokens, seq, stamp, data -> why it does not count

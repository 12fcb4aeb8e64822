"""What a fold knows of a run: plain, immutable data, and what follows from it by counting."""

from typing import Any

import msgspec

from shared.clock import NS_PER_S
from shared.events import Artifact, PlanCreated, Tokens
from shared.plan import Step
from shared.status import RUN_ENDS, ApprovalStatus, RunStatus, StepStatus


class StepState(msgspec.Struct, frozen=True):
    """Where one step stands. Stamps are nanoseconds of the stream; `attempt` counts those dispatched."""

    status: StepStatus = "pending"
    attempt: int = 0
    dispatched_ns: int = 0
    ended_ns: int = 0
    error: str = ""
    message: str = ""
    host: str | None = None
    outputs: dict[str, Any] = {}
    artifacts: list[Artifact] = []
    grant: int = 0  # tokens that the running attempt may spend
    spent: int = 0  # of its grant, as reported, or all of it when a call's usage was not
    taken: int = 0  # an attempt whose dispatch cannot be said any more, because a stranger has
    cause: str = ""  # why it was skipped, for programs
    not_before_ns: int = 0  # it rests until then before it is tried again
    is_due: bool = False  # the time that a wait step waits for has come
    cancel_ns: int = 0  # its worker was asked to end it
    reused_from: int = 0  # the run whose result stands for its own


class Approval(msgspec.Struct, frozen=True):
    """One question and its answers so far, in the order in which they counted."""

    requested_ns: int
    expires_ns: int
    status: ApprovalStatus = "pending"
    approved_by: list[str] = []
    rejected_by: str = ""
    reason: str = ""
    decided_ns: int = 0


class Stop(msgspec.Struct, frozen=True):
    """Why nothing more may start, and how the run is to end once nothing runs any more."""

    status: RunStatus
    reason: str


class Run(msgspec.Struct, frozen=True):
    """One run as its events say. `at_ns` is the stamp of the last event that was applied."""

    id: int
    submitted_ns: int
    at_ns: int
    principal: str = ""
    status: RunStatus = "pending"
    reason: str = ""
    plan: PlanCreated | None = None
    steps: dict[str, StepState] = {}
    approvals: dict[str, Approval] = {}  # by step; that of the whole run by `run`
    planned_ns: int = 0
    started_ns: int = 0
    ended_ns: int = 0
    tokens: Tokens = Tokens()
    charged: int = 0  # tokens that count against the budget: what was reported, and grants that nobody accounted for
    # What a decision follows from.
    stop: Stop | None = None
    broken: str = ""

    @property
    def ended(self) -> bool:
        return self.status in RUN_ENDS

    @property
    def timed_out(self) -> bool:
        return self.stop is not None and self.stop.status == "timed_out"

    @property
    def deadline_ns(self) -> int:
        """When the time budget is over; 0 before the run has started."""
        if self.plan is None or not self.started_ns:
            return 0
        return self.started_ns + self.plan.budgets.time_budget_s * NS_PER_S

    def ready_ns(self, step: str) -> int:
        """Since when only an answer is wanted: since the step's needs were done, or since the run was planned."""
        if self.plan is None or step not in self.plan.by_id:
            return self.planned_ns
        needs = self.plan.by_id[step].needs
        return max([self.started_ns, *(self.steps[need].ended_ns for need in needs)])

    def step_plan(self, step: str) -> Step:
        assert self.plan is not None
        return self.plan.by_id[step]

    def is_approved(self, step: str) -> bool:
        """Whether the question of this step (or of `run`) was answered with yes."""
        approval = self.approvals.get(step)
        return approval is not None and approval.status == "approved"

    @property
    def reserved(self) -> int:
        """Tokens that running steps may still spend."""
        total = 0
        for state in self.steps.values():  # no generator: every dispatch of every fold asks
            if state.status == "running" and state.grant > state.spent:
                total += state.grant - state.spent
        return total

    @property
    def tokens_free(self) -> int:
        """Tokens that are neither charged nor reserved."""
        assert self.plan is not None
        return self.plan.budgets.token_budget - self.charged - self.reserved

    @property
    def steps_used(self) -> int:
        """Steps that count against `max_steps`: each that was dispatched, once. Undoing is never too expensive."""
        assert self.plan is not None
        undoing = self.plan.compensations
        return sum(1 for name, state in self.steps.items() if state.attempt and name not in undoing)

    @property
    def parallel(self) -> int:
        """Steps that a worker has in hand."""
        by_id = self.plan.by_id if self.plan else {}
        return sum(1 for name, state in self.steps.items() if state.status == "running" and by_id[name].task)

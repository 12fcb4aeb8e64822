"""What a fold knows of a run: plain, immutable data, and what follows from it by counting."""

import msgspec
from msgspec.structs import replace

from shared.clock import NS_PER_S
from shared.events import Event, PlanCreated, Tokens
from shared.plan import Step
from shared.run_tally import StepState as StepState
from shared.run_tally import Tally, moved
from shared.status import RUN_ENDS, ApprovalStatus, RunStatus


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


class Run(msgspec.Struct, frozen=True, gc=False):
    """One run as its events say. `at_ns` is the stamp of the last event that was applied."""

    id: int
    submitted_ns: int
    at_ns: int
    principal: str = ""
    status: RunStatus = "pending"
    reason: str = ""
    plan: PlanCreated | None = None
    steps: dict[str, StepState] = {}
    tally: Tally = Tally()  # of these steps
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

    def needs_are_done(self, step: str) -> bool:
        """Whether every step that this one needs has ended."""
        assert self.plan is not None
        return not self.plan.needs_of[self.plan.place_of[step]] & self.tally.open

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
        return self.tally.reserved

    @property
    def tokens_free(self) -> int:
        """Tokens that are neither charged nor reserved."""
        assert self.plan is not None
        return self.plan.budgets.token_budget - self.charged - self.tally.reserved

    @property
    def steps_used(self) -> int:
        """Steps that count against `max_steps`: each that was dispatched, once. Undoing is never too expensive."""
        assert self.plan is not None
        return (self.tally.tried & ~self.plan.undoing).bit_count()

    @property
    def parallel(self) -> int:
        """Steps that a worker has in hand."""
        return (self.tally.running & self.plan.for_workers).bit_count() if self.plan else 0


def with_step(run: Run, event: Event, step: str, state: StepState) -> Run:
    """The run with one step in another state: the only way in which a single step changes."""
    assert run.plan is not None
    tally = moved(run.tally, run.plan, step, run.steps[step], state)
    steps = run.steps.copy()
    steps[step] = state
    return replace(run, steps=steps, tally=tally, at_ns=event.at_ns)

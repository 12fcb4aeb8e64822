"""The status words: one algebra for wire, SQL, HTTP, CLI and pages."""

from typing import Literal

RunStatus = Literal[
    "pending",
    "queued",
    "awaiting_approval",
    "running",
    "succeeded",
    "failed",
    "cancelled",
    "rejected",
    "timed_out",
    "budget_exhausted",
    "rolled_back",
]
StepStatus = Literal["pending", "awaiting_approval", "running", "succeeded", "failed", "skipped", "cancelled"]

ApprovalStatus = Literal["pending", "approved", "rejected", "expired"]

RUN_ENDS: frozenset[RunStatus] = frozenset(
    ("succeeded", "failed", "cancelled", "rejected", "timed_out", "budget_exhausted", "rolled_back")
)
STEP_ENDS: frozenset[StepStatus] = frozenset(("succeeded", "failed", "skipped", "cancelled"))

# The exit codes of every command that waits for a run or shows one: scripts branch on these.
EXIT_DONE = 0
EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_REJECTED = 3
EXIT_UNREACHABLE = 5
EXIT_NOT_FOUND = 6
EXIT_BUDGET = 7
EXIT_INTERRUPTED = 130  # as a shell tells of who ended by SIGINT
EXIT_TERMINATED = 143

EXIT_OF_STATUS: dict[RunStatus, int] = {
    "succeeded": EXIT_DONE,
    "failed": EXIT_FAILED,
    "rolled_back": EXIT_FAILED,
    "rejected": EXIT_REJECTED,
    "cancelled": EXIT_REJECTED,
    "timed_out": EXIT_BUDGET,
    "budget_exhausted": EXIT_BUDGET,
}

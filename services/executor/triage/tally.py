"""Counts what came of one shape: how often, how bad, when, and a few of its lines as evidence."""

from services.executor.triage.model import BUCKETS_MAX, EVIDENCE_MAX

Sample = tuple[str, str | None, str]  # text, at, stream; not yet redacted


class Tally:
    """The running account of one shape (or, after a merge, of a template)."""

    __slots__ = ("buckets", "by_severity", "component", "count", "exception", "first_s", "last_s", "latest", "samples")

    def __init__(self) -> None:
        self.count = 0
        self.by_severity: dict[str, int] = {}
        self.buckets: dict[int, int] = {}
        self.first_s: int | None = None
        self.last_s: int | None = None
        self.samples: list[Sample] = []
        self.latest: Sample | None = None
        self.component = ""
        self.exception = ""

    def absorb(self, other: "Tally") -> None:
        """Adds the other's account to this one."""
        self.count += other.count
        for severity, n in other.by_severity.items():
            self.by_severity[severity] = self.by_severity.get(severity, 0) + n
        for bucket, n in other.buckets.items():
            self.buckets[bucket] = self.buckets.get(bucket, 0) + n
        if other.first_s is not None:
            self.first_s = other.first_s if self.first_s is None else min(self.first_s, other.first_s)
        if other.last_s is not None:
            self.last_s = other.last_s if self.last_s is None else max(self.last_s, other.last_s)
        self.samples = (self.samples + other.samples)[: EVIDENCE_MAX - 1]
        self.latest = other.latest or self.latest
        self.component = self.component or other.component
        self.exception = self.exception or other.exception

    def evidence(self) -> list[Sample]:
        """The first lines and the latest one."""
        return [*self.samples, *([self.latest] if self.latest is not None else [])]

    def crowded(self) -> bool:
        return len(self.buckets) > BUCKETS_MAX

    def widen(self) -> None:
        """Doubles the width of the buckets."""
        wide: dict[int, int] = {}
        for bucket, n in self.buckets.items():
            wide[bucket >> 1] = wide.get(bucket >> 1, 0) + n
        self.buckets = wide

"""All active runs and their slots, folded from the stream: events in, facts out. Pure: no clock, no I/O.

Admission. A directive lets `max_concurrent_runs` run at a time, first planned first started. The slots are counted
from the fold, so they cannot leak: a run takes one from `run.started` to its end. An executor that has said
`run.started` counts it at once; another one, at another place of the stream, picks the same run, because the order
of waiting is the stream's.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping

from services.executor.decide import CONSEQUENTIAL, NOTHING, Known, follow
from services.executor.performing import Fact
from services.executor.schedules import Schedules
from shared.events import Event, RunQueued, RunStarted
from shared.plan import GATE
from shared.run import Early, Run, begin, evolve, touched
from shared.subjects import run_queued, run_started

# The events after which a run may be admitted: it is planned, and approved where it has to be.
MAY_START = frozenset(("plan.created", "approval.granted"))


def _may_start(run: Run) -> bool:
    if run.plan is None or run.status not in ("pending", "queued") or run.stop is not None or run.broken:
        return False
    return not run.plan.is_gated or run.is_approved(GATE)


def _was_expected(run: Run, event: Event) -> bool:
    """Whether this is a dispatch after which nothing new can follow: where no limit can be met, a worker has it now."""
    if event.kind != "step.dispatched" or run.plan is None or not run.plan.is_plain or run.stop is not None:
        return False
    return run.steps[event.step].status == "running" and run.plan.by_id[event.step].task is not None


class Engine:
    """The executor's mind. Memory grows with active runs only: a run that has ended is forgotten."""

    def __init__(self) -> None:
        self.runs: dict[int, Run] = {}
        self.position = 0
        self.at_ns = 0
        # False until `due` is called: what a new executor reads of the past was answered in the past.
        self.deciding = False
        self._waiting: dict[str, dict[int, None]] = defaultdict(dict)  # by directive, in the stream's order
        self._holding: dict[str, dict[int, None]] = defaultdict(dict)  # by directive: started, or said to be
        self._said: dict[int, set[str]] = {}
        self._known: dict[int, Known] = {}  # the same by steps
        self.early = Early()
        self.schedules = Schedules()  # folded by whoever folds the engine, behind it

    @classmethod
    def restored(
        cls,
        runs: Iterable[Run],
        waiting: Mapping[str, Iterable[int]],
        early: Mapping[int, str],
        *,
        position: int,
        at_ns: int,
    ) -> "Engine":
        """The engine as it stood at `position`; like a new one it decides only when `due` is called."""
        engine = cls()
        engine.position, engine.at_ns = position, at_ns
        engine.early = Early(early)
        engine.runs = {run.id: run for run in runs}
        for directive, run_ids in waiting.items():
            engine._waiting[directive] = dict.fromkeys(run_ids)
        for run in engine.runs.values():
            if run.status == "running" and run.plan is not None:
                engine._holding[run.plan.directive.name][run.id] = None
        return engine

    def waiting(self) -> dict[str, list[int]]:
        """Planned runs that have not started by the stream's word, in the order in which they are to start.

        Whoever was said to be started and is not yet read back stands in front: the next one is to say it again.
        """
        order: dict[str, list[int]] = {}
        for directive in dict.fromkeys([*self._waiting, *self._holding]):
            held, waits = self._holding.get(directive, {}), self._waiting.get(directive, {})
            order[directive] = [*(run for run in held if self.runs[run].status in ("pending", "queued")), *waits]
        return {directive: run_ids for directive, run_ids in order.items() if run_ids}

    def apply(self, event: Event) -> list[Fact]:
        """Fold one event; the facts that follow from it and were not said before. None while it does not decide."""
        self.position, self.at_ns = event.seq, event.at_ns
        if event.kind == "goal.submitted":
            return self._begun(begin(event, self.early.take(event.seq)))
        run = self.runs.get(event.run)
        if run is None:
            if event.run >= event.seq:
                self.early.note(event)
            return []
        after = evolve(run, event)
        if after is run:
            return []
        if after.ended:
            return self._ended(after)
        self.runs[after.id] = after
        if event.kind == "run.started" and after.status == "running":
            self._hold(after)
        may_start = event.kind in MAY_START and _may_start(after)
        if may_start and after.plan is not None:
            self._waiting[after.plan.directive.name].setdefault(after.id)
        if not self.deciding or _was_expected(after, event):
            return []
        facts = self._decided(after, touched(event)) if event.kind in CONSEQUENTIAL or after.broken else []
        return facts + self._planned(after) if may_start and not facts else facts

    def _begun(self, run: Run) -> list[Fact]:
        if run.ended:
            return []
        self.runs[run.id] = run
        return self._decided(run) if run.broken and self.deciding else []

    def _decided(self, run: Run, step: str = "") -> list[Fact]:
        """What follows from the run, in which this step may be in another state than before."""
        before = self._known.get(run.id, NOTHING)
        if step and run.plan is not None and (place := run.plan.place_of.get(step)) is not None:
            before = before.without(place)
        facts, after = follow(run, before)
        if after is not NOTHING:
            self._known[run.id] = after
        return self._once(run.id, facts) if facts else facts

    def due(self) -> list[Fact]:
        """Every fact that the state calls for: what a new executor says when it has read the stream.

        From here on `apply` decides, too.
        """
        self.deciding = True
        facts: list[Fact] = []
        for run in list(self.runs.values()):
            facts += self._decided(run)
        for directive in list(self._waiting):
            facts += self._admit(directive)
            for run_id in self._waiting[directive]:
                facts += self._queue(self.runs[run_id])
        return facts

    def _planned(self, run: Run) -> list[Fact]:
        assert run.plan is not None
        name = run.plan.directive.name
        facts = self._admit(name)
        return facts + self._queue(run) if run.id in self._waiting[name] else facts

    def _queue(self, run: Run) -> list[Fact]:
        assert run.plan is not None
        if run.status != "pending":
            return []
        directive = run.plan.directive
        body = RunQueued(directive=directive.name, max_concurrent_runs=directive.max_concurrent_runs)
        return self._once(run.id, [(run_queued(run.id), body)])

    def _admit(self, directive: str) -> list[Fact]:
        """Start those who wait, in order, while the next one's own limit leaves a slot."""
        waiting, holding = self._waiting[directive], self._holding[directive]
        facts: list[Fact] = []
        while waiting:
            run = self.runs[next(iter(waiting))]
            assert run.plan is not None
            if run.stop is not None:
                del waiting[run.id]  # it ends without having begun
                continue
            if len(holding) >= run.plan.directive.max_concurrent_runs:
                break
            self._hold(run)
            body = RunStarted(directive=directive, plan_hash=run.plan.plan_hash)
            facts += self._once(run.id, [(run_started(run.id), body)])
        return facts

    def _hold(self, run: Run) -> None:
        assert run.plan is not None
        name = run.plan.directive.name
        self._waiting[name].pop(run.id, None)
        self._holding[name][run.id] = None

    def _ended(self, run: Run) -> list[Fact]:
        del self.runs[run.id]
        self._said.pop(run.id, None)
        self._known.pop(run.id, None)
        if run.plan is None:
            return []
        name = run.plan.directive.name
        self._waiting[name].pop(run.id, None)
        self._holding[name].pop(run.id, None)
        facts = self._admit(name) if self.deciding else []
        if not self._waiting[name] and not self._holding[name]:
            del self._waiting[name], self._holding[name]
        return facts

    def _once(self, run: int, facts: list[Fact]) -> list[Fact]:
        """Leave out what was said already and is only not yet read back."""
        said = self._said.setdefault(run, set())
        new = [fact for fact in facts if fact[0] not in said]
        said.update(subject for subject, _ in new)
        return new

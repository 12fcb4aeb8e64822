"""The whole stream, or one run of it, under audit: messages in, in order, and what is to be said against them.

Memory grows with active runs, and by one number for each run that is over; of the last of those more is kept, so that
what executors say behind an end is judged, too.
"""

import re
from collections import OrderedDict
from typing import Any

import msgspec

from shared.audit.findings import Announced, Audited, Finding, Note
from shared.audit.lines import RunLine
from shared.audit.of_run import HEARD
from shared.audit.reading import NS, Kept, body_of, is_name

NOTES_MAX = 1_000
EARLY_MAX = 10_000
LATELY_MAX = 1_000  # runs that have ended last: what an executor still says of one comes within moments
# What executors alone say of a run, but for its end. A worker's late word, or a planner's, is nobody's fault.
EXECUTORS = frozenset(
    (
        "run.queued", "run.started", "step.dispatched", "step.skipped", "step.cancel_requested", "approval.requested",
        "approval.expired",
    )
)  # fmt: skip
EARLY_TICK_NS = 3600 * NS  # a tick that is said sooner counts for nothing
_SCHEDULED = re.compile(r"schedule_(.{1,40})_([1-9][0-9]{0,10})")
_RUN = re.compile(r"[1-9][0-9]{0,18}")

Message = tuple[str, int, int, bytes]  # subject, sequence, stamp in nanoseconds, data


class _Tick(msgspec.Struct):
    """A schedule's tick: its fact, and the goal that followed."""

    seq: int
    runs: bool
    goal: dict[str, Any] | None
    goal_seq: int = 0


class Audit:
    """`hear` each message in stream order, then ask for the `result`. `whole`: the messages are the whole stream."""

    def __init__(self, *, whole: bool = True, first_seq: int = 1) -> None:
        self._whole = whole
        self._last = first_seq - 1
        self._runs: dict[str, RunLine] = {}
        self._over: dict[str, int] = {}
        self._lately: OrderedDict[str, RunLine] = OrderedDict()  # a dict would look for its first through all that went
        self._early: dict[str, tuple[str, int]] = {}
        self._holding: dict[str, dict[int, int]] = {}  # directive -> run -> the start that counts
        self._ticks: dict[tuple[str, int], _Tick] = {}
        self._found = Audited(findings=[], notes=[], artifacts=[])

    # -- what runs say to us -------------------------------------------------------------------------------

    def find(self, rule: str, run: int, step: str, events: list[int], text: str) -> None:
        self._found.findings.append(Finding(rule, run, step, events, text))

    def note(self, run: int, seq: int, subject: str, text: str) -> None:
        self._found.noted += 1
        if len(self._found.notes) < NOTES_MAX:
            self._found.notes.append(Note(seq, run, subject, text))

    def keep(self, run: int, step: str, seq: int, kept: Kept) -> None:
        announced = Announced(run, step, seq, kept.name, kept.sha256, kept.size_bytes, holder=kept.from_run or run)
        self._found.artifacts.append(announced)

    # -- hearing -------------------------------------------------------------------------------------------

    def hear(self, subject: str, seq: int, at_ns: int, data: bytes) -> None:
        """The next message of the stream (or of the run)."""
        self._found.events += 1
        if seq == self._last + 1:
            self._last = seq
        else:
            self._jumped(seq)
        tokens = subject.split(".")
        kind = f"{tokens[0]}.{tokens[1]}" if len(tokens) > 1 else subject
        if kind == "goal.submitted":
            self._begun(tokens, seq, data)
            return
        heard = HEARD.get(kind)
        if heard is None or len(tokens) < 3:
            self._of_no_run(kind, tokens, subject, seq, at_ns, data)
            return
        run = self._runs.get(tokens[2])
        if run is None:
            run = self._lately.get(tokens[2]) if kind in EXECUTORS else None
            if run is None:
                self._of_no_active_run(kind, tokens, subject, seq)
                return
        hear, may_repeat = heard
        if not may_repeat:
            if subject in run.said:
                self.find("create_only", run.id, "", [seq], f"{subject} is said a second time")
                return
            run.said.add(subject)
        started, ended = run.started, run.over
        why = hear(run, tokens, seq, at_ns, data)
        if ended:  # a word behind the end counts for nothing; that some moment has called for it still holds
            why = why or "the run has ended"
        if why:
            self.note(run.id, seq, subject, why)
        elif run.over:
            self._ended(tokens[2], run)
        elif run.started and not started and self._whole:
            self._admitted(run, seq)

    def result(self) -> Audited:
        """What was found in all that was heard."""
        found = self._found
        found.active = len(self._runs)
        found.runs = len(self._runs) + len(self._over)
        found.last_seq = self._last
        return found

    def _jumped(self, seq: int) -> None:
        """The message does not follow the one before: of one run it may be later, of a whole stream it may not."""
        if seq <= self._last:
            self.find("sequence", 0, "", [self._last, seq], f"message {seq} stands behind message {self._last}")
            return
        if self._whole:
            gone = f"{self._last + 1}" if seq == self._last + 2 else f"{self._last + 1} to {seq - 1}"
            self.find("sequence", 0, "", [seq], f"before message {seq} there is no {gone}")
        self._last = seq

    def _begun(self, tokens: list[str], seq: int, data: bytes) -> None:
        who = tokens[2] if len(tokens) == 3 and is_name(tokens[2]) else ""
        run = RunLine(seq, who, self)
        key = str(seq)
        if early := self._early.pop(key, None):
            kind, early_seq = early
            self.find("early", seq, "", [early_seq, seq], f"{kind} was said before the run's goal")
            run.broken = (f"{kind} was said before its goal", early_seq)
            if kind == "run.completed":
                self._over[key] = early_seq
                return
        self._runs[key] = run
        if self._whole and (scheduled := _SCHEDULED.fullmatch(who)):
            self._of_tick(scheduled[1], int(scheduled[2]), seq, data)

    def _ended(self, key: str, run: RunLine) -> None:
        del self._runs[key]
        self._over[key] = run.over
        self._lately[key] = run
        if len(self._lately) > LATELY_MAX:
            self._lately.popitem(last=False)
        if run.plan is not None:
            self._holding.get(run.plan.directive.name, {}).pop(run.id, None)

    def _admitted(self, run: RunLine, seq: int) -> None:
        """A run has started: as many of its directive may run at a time as its own plan says."""
        directive = run.plan.directive
        holding = self._holding.setdefault(directive.name, {})
        if run.stop:
            return  # whoever started it had not read that it is ending; its place is given to another
        if len(holding) >= directive.max_concurrent_runs:
            most = directive.max_concurrent_runs
            text = f"{len(holding)} runs of directive {directive.name} run, and {most} may"
            self.find("max_concurrent_runs", run.id, "", [*list(holding.values())[-3:], seq], text)
        holding[run.id] = seq

    def _of_no_active_run(self, kind: str, tokens: list[str], subject: str, seq: int) -> None:
        key = tokens[2]
        if key in self._over:
            if kind == "run.completed":
                self.find("one_end", int(key), "", [self._over[key], seq], "the run ends a second time")
                return
            self.note(int(key), seq, subject, "the run has ended")
        elif kind == "timer.fired" and key == "schedule":
            pass  # an alarm: it decides nothing
        elif not _RUN.fullmatch(key):
            self.note(0, seq, subject, "no event of Remit has this subject")
        elif int(key) >= seq:
            if kind == "run.completed" or key not in self._early:
                self._early[key] = (kind, seq)
            if len(self._early) > EARLY_MAX:
                del self._early[max(self._early, key=int)]
            self.note(int(key), seq, subject, "there is no such run yet")
        else:
            self.note(int(key), seq, subject, "there is no such run")

    # -- schedules -----------------------------------------------------------------------------------------

    def _of_no_run(self, kind: str, tokens: list[str], subject: str, seq: int, at_ns: int, data: bytes) -> None:
        if kind == "audit.sealed":
            return
        if kind != "schedule.ticked" or len(tokens) != 4 or not tokens[3].isdigit() or len(tokens[3]) > 11:
            self.note(0, seq, subject, "no event of Remit has this subject")
            return
        name, tick_s = tokens[2], int(tokens[3])
        if (name, tick_s) in self._ticks:
            before = self._ticks[name, tick_s].seq
            self.find("tick", 0, "", [before, seq], f"the tick {name} {tick_s} is decided a second time")
            return
        if tick_s * NS > at_ns + EARLY_TICK_NS:
            self.note(0, seq, subject, "it was said long before its time")
            self._ticks[name, tick_s] = _Tick(seq, False, None)
            return
        body = body_of(kind, data)
        if body is None:
            self.note(0, seq, subject, "it cannot be read as what its subject says")
        runs = body is not None and body.outcome in ("ran", "late", "caught_up")
        if runs and body.goal is None:
            self.find("tick", 0, "", [seq], f"the tick {name} {tick_s} is to run, and says no goal")
        self._ticks[name, tick_s] = _Tick(seq, runs, body.goal if runs else None)

    def _of_tick(self, name: str, tick_s: int, seq: int, data: bytes) -> None:
        """A goal that is said under a tick's name."""
        tick = self._ticks.get((name, tick_s))
        what = f"the goal of tick {name} {tick_s}"
        if tick is None:
            self.find("tick", seq, "", [seq], f"{what} comes before its tick, or there is none")
            return
        if not tick.runs:
            self.find("tick", seq, "", [tick.seq, seq], f"{what} is said, and the tick was not to run")
        elif tick.goal_seq:
            self.find("tick", seq, "", [tick.seq, tick.goal_seq, seq], f"{what} is said a second time")
        else:
            try:
                same = msgspec.json.decode(data) == tick.goal
            except (ValueError, RecursionError):
                same = False
            if not same:
                self.find("tick", seq, "", [tick.seq, seq], f"{what} is not the one that the tick says")
        tick.goal_seq = tick.goal_seq or seq


def audit(messages: list[Message], *, whole: bool = True) -> Audited:
    """What is to be said of these messages."""
    one = Audit(whole=whole)
    for message in messages:
        one.hear(*message)
    return one.result()

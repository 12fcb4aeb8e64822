"""Triage of one source: takes its lines as they come and keeps only counts, shapes and a few samples.

Theory of operation. Every line read ends in exactly one of three accounts: it starts an event, it is folded into the
open event of its stream, or it is blank. An event is closed when the next one of its stream starts; then its message
becomes a shape and the shape's tally grows. Streams are folded apart, because stdout and stderr interleave.
What is held is bounded by the limits of model.py whatever the number of lines: when the shapes of a source outgrow
theirs they are merged into templates early, and if that is not enough the rarest harmless ones are let go, counted.
"""

import re
from collections import deque
from collections.abc import Sequence
from typing import Final

from . import severity, times
from .clean import clean, cut, is_noise
from .closing import Account, report
from .fold import Trace, exception_class, opens
from .mask import DIGITS_AS_ONE, WILDCARD, shape_of
from .miner import merge_shapes
from .model import (
    EVIDENCE_MAX,
    SEVERITIES,
    SHAPES_MAX,
    STREAMS_MAX,
    TRACE_HEAD_LINES_MAX,
    TRACE_LINES_MAX,
    TRACE_TAIL_LINES_MAX,
    Line,
    SourceReport,
)
from .reading import Reading, read
from .tally import Tally

MESSAGE_CHARS_MAX: Final = 2_000  # what comes later in a message does not tell statements apart
CACHE_MAX: Final = 20_000
BUCKET_S: Final = 10
SAMPLE_CHARS_MAX: Final = 8_000
_ZERO = re.compile(r"(?<![\w.])0(?:\.0+)?(?![\w.])|[=:]\"?0(?:\.0+)?(?![\w.])")
_NOISE_SHAPE: Final = "(undecodable bytes)"


class _Open:
    """The event of one stream that may still grow."""

    __slots__ = ("at", "head", "number", "reading", "stream", "tail", "text", "trace")

    def __init__(self, line: Line, text: str, reading: Reading, number: int) -> None:
        self.at = line.at
        self.stream = line.stream
        self.text = text
        self.reading = reading
        self.number = number
        self.trace: Trace | None = None
        self.head: list[str] = []
        self.tail: deque[str] | None = None


class SourceTriage:
    """The triage of one source of one host; `known_templates` is the last report's `template_ids`, None at first."""

    def __init__(
        self, host: str, source: str, *, known_templates: frozenset[str] | None = None, keep_labels: bool = False
    ) -> None:
        self._account = Account(host, source, known_templates)
        self._open: dict[str, _Open] = {}
        self._tallies: dict[str, Tally] = {}
        self._shapes: dict[str, str] = {}
        self._words: dict[str, str] = {}
        self._spoken: dict[str, tuple[str | None, bool]] = {}
        self._second: tuple[str, int | None] = ("", None)
        self._bucket_shift = 0
        # For measuring only: which event each line went to, and its shape. Unbounded, so off unless asked for.
        self._line_events: list[int] | None = [] if keep_labels else None
        self._event_shapes: dict[int, str] = {}

    def feed(self, lines: Sequence[Line]) -> None:
        """Takes the next lines of the source, in order; any number, any size, any content."""
        account = self._account
        for line in lines:
            account.lines_read += 1
            text = clean(line.text)
            if len(text) > SAMPLE_CHARS_MAX:
                text, over = cut(text)
                if over:
                    account.cut += 1
            stream = line.stream
            current = self._open.get(stream)
            if not text or text.isspace():
                self._blank(current)
                continue
            if current is not None and text[0] in " \t" and self._folded(current, text):
                continue
            reading = read(text)
            if (
                current is not None
                and (not reading.parsed or not (reading.stamp or text[0] == "{"))
                and self._folded(current, text)
            ):
                continue
            self._start(line, text, reading)

    def finish(self) -> SourceReport:
        """The report of all lines fed; the triage takes no more lines afterwards."""
        for current in self._open.values():
            self._close(current)
        self._open.clear()
        merged = merge_shapes(self._tallies)
        if self._line_events is not None:
            self._event_shapes = {n: merged.get(s, s) for n, s in self._event_shapes.items()}
        return report(self._account, self._merge(merged), BUCKET_S << self._bucket_shift)

    def labels(self) -> list[str]:
        """The template of each line fed, in order, blank lines as ""; after `finish`, if `keep_labels` was set."""
        return [self._event_shapes.get(n, "") for n in self._line_events or ()]

    def _blank(self, current: _Open | None) -> None:
        # Counted as blank even inside a trace: it holds nothing that could be lost.
        self._account.blank += 1
        if self._line_events is not None:
            self._line_events.append(-1)
        if current is not None and current.trace is not None:
            current.trace.blanks += 1

    def _folded(self, current: _Open, text: str) -> bool:
        trace = current.trace
        if trace is None:
            reading = current.reading
            headed = reading.parsed
            bad = reading.severity in ("critical", "error", "warning")
            trace = Trace(opens(reading.message), headed, bad, reading.message)
            current.trace = trace
        if trace.lines >= TRACE_LINES_MAX or not trace.takes(text):
            return False
        self._account.folded += 1
        if self._line_events is not None:
            self._line_events.append(current.number)
        if len(current.head) < TRACE_HEAD_LINES_MAX:
            current.head.append(text[:SAMPLE_CHARS_MAX])
        else:
            if current.tail is None:
                current.tail = deque(maxlen=TRACE_TAIL_LINES_MAX)
            current.tail.append(text[:SAMPLE_CHARS_MAX])
        return True

    def _start(self, line: Line, text: str, reading: Reading) -> None:
        account = self._account
        number = account.events
        account.events += 1
        if not reading.parsed:
            account.unparsed += 1
        previous = self._open.get(line.stream)
        if previous is not None:
            self._close(previous)
        elif len(self._open) >= STREAMS_MAX:
            oldest = next(iter(self._open))
            self._close(self._open.pop(oldest))
        opened = self._open[line.stream] = _Open(line, text, reading, number)
        if not reading.parsed and opens(reading.message):
            opened.trace = Trace(opens(reading.message), False, True, reading.message)
        if self._line_events is not None:
            self._line_events.append(number)

    def _close(self, event: _Open) -> None:
        reading = event.reading
        message = reading.message
        exception = ""
        trace = event.trace
        state = reading.severity
        if reading.stack:
            exception = reading.stack.strip().rsplit("\n", 1)[-1].strip()
        if trace is not None and (trace.exception or trace.lines > 1):
            exception = trace.exception
            if trace.kind and (state is None or not reading.parsed):
                state = "critical" if trace.kind in ("go", "rust") else "error"
            if reading.parsed and reading.component and message.startswith(reading.component) and event.head:
                message = event.head[0].strip()  # the level's line names the logger only; the next is the message
        if exception and not reading.parsed:
            message = exception  # a bare trace is called by what it died of
        elif exception and exception not in message:
            message = f"{message[: MESSAGE_CHARS_MAX // 2]} {exception}"
        if len(message) > MESSAGE_CHARS_MAX:
            message = message[:MESSAGE_CHARS_MAX]
        if "\n" in message:
            message = message.partition("\n")[0]
        normal = message.translate(DIGITS_AS_ONE)
        shape = self._shapes.get(normal)
        if shape is None:
            shape = self._shape(normal, message)
        if state is None:
            state = self._said(shape, message) or ("info" if reading.parsed else "unknown")
        self._count(shape, state, event, exception)

    def _shape(self, normal: str, message: str) -> str:
        if not message.isascii() and is_noise(message):
            self._account.undecodable += 1
            return _NOISE_SHAPE
        if len(self._shapes) >= CACHE_MAX:
            self._shapes.clear()
        if len(self._words) >= CACHE_MAX:
            self._words.clear()
        shape = self._shapes[normal] = shape_of(normal, self._words) or "(empty message)"
        return shape

    def _said(self, shape: str, message: str) -> str | None:
        """What the words say, remembered by shape: only a zero can make it harmless ("0 errors", "7 errors")."""
        known = self._spoken.get(shape)
        if known is None:
            if len(self._spoken) >= CACHE_MAX:
                self._spoken.clear()
            said, of_zero = (severity.of_words(shape.replace(WILDCARD, digit)) for digit in "70")
            known = self._spoken[shape] = (said, said != of_zero)
        said, zero_matters = known
        if zero_matters and "0" in message and _ZERO.search(message) is not None:
            return severity.of_words(message)
        return said

    def _count(self, shape: str, state: str, event: _Open, exception: str) -> None:
        if self._line_events is not None:
            self._event_shapes[event.number] = shape
        account = self._account
        account.by_severity[state] += 1
        tally = self._tallies.get(shape)
        if tally is None:
            if len(self._tallies) >= SHAPES_MAX:
                self._compact()
            tally = self._tallies[shape] = Tally()
            tally.component = event.reading.component
            tally.exception = exception_class(exception)
        tally.count += 1
        tally.by_severity[state] = tally.by_severity.get(state, 0) + 1
        sample = (self._sample_text(event), event.at, event.stream)
        if len(tally.samples) < EVIDENCE_MAX - 1:
            tally.samples.append(sample)
        else:
            tally.latest = sample
        at_s = self._seconds(event)
        if at_s is None:
            return
        if tally.first_s is None:
            tally.first_s = tally.last_s = at_s
        elif at_s < tally.first_s:
            tally.first_s = at_s
        elif tally.last_s is None or at_s > tally.last_s:
            tally.last_s = at_s
        bucket = (at_s // BUCKET_S) >> self._bucket_shift
        tally.buckets[bucket] = tally.buckets.get(bucket, 0) + 1
        if tally.crowded():
            self._bucket_shift += 1
            for each in self._tallies.values():
                each.widen()

    def _sample_text(self, event: _Open) -> str:
        if not event.head:
            return event.text
        lines = [event.text[:SAMPLE_CHARS_MAX], *event.head]
        if event.tail is not None:
            trace = event.trace
            left_out = trace.lines - 1 - len(event.head) - len(event.tail) if trace is not None else 0
            if left_out > 0:
                lines.append(f"    … {left_out} lines left out …")
            lines += event.tail
        return "\n".join(lines)

    def _seconds(self, event: _Open) -> int | None:
        """When the event was, in whole seconds; the engine's stamp is trusted before the program's own."""
        stamp = event.at or event.reading.stamp
        if not stamp:
            return None
        key = stamp[:19] if event.at else stamp
        known, at_s = self._second
        if key == known:
            return at_s
        found = times.seconds_of("iso" if event.at else event.reading.kind, stamp)
        at_s = None
        if found is not None and self._account.on_scale(found[1]):
            at_s = found[0]
        self._second = (key, at_s)
        return at_s

    def _merge(self, merged: dict[str, str]) -> dict[str, Tally]:
        out: dict[str, Tally] = {}
        for shape, tally in self._tallies.items():
            template = merged.get(shape, shape)
            into = out.get(template)
            if into is None:
                out[template] = tally
            else:
                into.absorb(tally)
            if template != shape:
                self._account.merged_shapes.setdefault(template, []).append(shape)
        return out

    def _compact(self) -> None:
        """Makes room: merges shapes into templates, then lets the rarest harmless ones go."""
        merged = merge_shapes(self._tallies)
        if self._line_events is not None:
            self._event_shapes = {n: merged.get(s, s) for n, s in self._event_shapes.items()}
        self._tallies = self._merge(merged)
        self._shapes.clear()
        if len(self._tallies) <= SHAPES_MAX // 2:
            return
        order = {name: i for i, name in enumerate(SEVERITIES)}
        ranked = sorted(
            self._tallies.items(), key=lambda kv: (min(order[s] for s in kv[1].by_severity), -kv[1].count, kv[0])
        )
        self._tallies = dict(ranked[: SHAPES_MAX // 2])
        for _, tally in ranked[SHAPES_MAX // 2 :]:
            self._account.events_let_go += tally.count
            self._account.shapes_let_go += 1

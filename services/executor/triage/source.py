"""Triage of one source: takes its lines as they come and sorts each into one of three accounts.

Theory of operation. Every line read starts an event, is folded into the open event of its stream, or is blank. An
event is closed when the next one of its stream starts; then `counting` counts it by what `naming` calls it.
Streams are folded apart, because stdout and stderr interleave. What is held is bounded by the limits of model.py
whatever the number of lines.
"""

from collections.abc import Sequence
from typing import Final

from services.executor.triage.clean import clean, cut
from services.executor.triage.closing import Account, report
from services.executor.triage.counting import BUCKET_S, Counting
from services.executor.triage.fold import Trace, opens
from services.executor.triage.model import LINE_CHARS_MAX, STREAMS_MAX, TRACE_LINES_MAX, Line, SourceReport
from services.executor.triage.naming import Event
from services.executor.triage.reading import Reading
from services.executor.triage.remembered import Form, Readings

_BLANK: Final = -1


class SourceTriage:
    """The triage of one source of one host; `known_templates` is the last report's `template_ids`, None at first."""

    def __init__(
        self, host: str, source: str, *, known_templates: frozenset[str] | None = None, keep_labels: bool = False
    ) -> None:
        self._account = Account(host, source, known_templates)
        self._counting = Counting(self._account, keep_labels=keep_labels)
        self._readings = Readings()
        self._open: dict[str, Event] = {}
        # For measuring only: the event that each line went to. Unbounded, so off unless asked for.
        self._line_events: list[int] | None = [] if keep_labels else None

    def feed(self, lines: Sequence[Line]) -> None:
        """Takes the next lines of the source, in order; any number, any size, any content."""
        account, opened, form_of = self._account, self._open, self._readings.form
        account.lines_read += len(lines)
        for line in lines:
            text = line.text
            current = opened.get(line.stream)
            read: Form | Reading | None = form_of(text)
            if read is None:
                if not (text.isascii() and text.isprintable()):  # as nearly every line is
                    text = clean(text)
                if not text or text.isspace():
                    self._blank(current)
                    continue
                if len(text) > LINE_CHARS_MAX:
                    text = cut(text)
                    account.cut += 1
                if current is not None and text[0] in " \t" and self._folded(current, text):
                    continue
                read = self._readings.read(text)
            if current is not None:
                begins = read.begins if type(read) is Form else read.parsed and (read.stamp or text[0] == "{")
                if not begins and self._folded(current, text):
                    continue
                self._counting.count(current)
            elif len(opened) >= STREAMS_MAX:
                self._counting.count(opened.pop(next(iter(opened))))
            opened[line.stream] = self._started(line, text, read)

    def finish(self) -> SourceReport:
        """The report of all lines fed; the triage takes no more lines afterwards."""
        for event in self._open.values():
            self._counting.count(event)
        self._open.clear()
        return report(self._account, self._counting.templates(), BUCKET_S << self._counting.bucket_shift)

    def labels(self) -> list[str]:
        """The template of each line fed, in order, blank lines as ""; after `finish`, if `keep_labels` was set."""
        return [self._counting.labels.get(n, "") for n in self._line_events or ()]

    def _blank(self, current: Event | None) -> None:
        # Counted as blank even inside a trace: it holds nothing that could be lost.
        self._account.blank += 1
        if self._line_events is not None:
            self._line_events.append(_BLANK)
        if current is not None and current.trace is not None:
            current.trace.blanks += 1

    def _folded(self, event: Event, text: str) -> bool:
        trace = event.trace
        if trace is None:
            reading = event.reading
            bad = reading.severity in ("critical", "error", "warning")
            trace = event.trace = Trace(opens(reading.message), reading.parsed, bad, reading.message)
        if trace.lines >= TRACE_LINES_MAX or not trace.takes(text):
            return False
        self._account.folded += 1
        if self._line_events is not None:
            self._line_events.append(event.number)
        event.add(text)
        return True

    def _started(self, line: Line, text: str, read: Reading | Form) -> Event:
        account = self._account
        event = Event(text, line.at, line.stream, read, account.events)
        account.events += 1
        if not read.parsed:
            account.unparsed += 1
            if type(read) is Reading and (kind := opens(read.message)):
                event.trace = Trace(kind, False, True, read.message)
        if self._line_events is not None:
            self._line_events.append(event.number)
        return event

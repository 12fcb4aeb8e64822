"""Says what an event is called: its message, its exception, and the severity that it states itself."""

from collections import deque
from typing import Final

from msgspec import Struct

from services.executor.triage.clean import sample, shorten
from services.executor.triage.fold import Trace
from services.executor.triage.model import SAMPLE_CHARS_MAX, TRACE_HEAD_LINES_MAX, TRACE_TAIL_LINES_MAX
from services.executor.triage.reading import Reading
from services.executor.triage.remembered import Form

MESSAGE_CHARS_MAX: Final = 2_000  # what comes later in a message does not tell statements apart
EXCEPTION_CHARS_MAX: Final = 800
TRACE_LINE_CHARS_MAX: Final = 1_000


class Event(Struct, gc=False):
    """One event of one stream: its first line, and of what was folded into it the head and the tail."""

    text: str
    at: str | None
    stream: str
    read: Reading | Form  # the reading of the first line, or the form that gives it
    number: int
    trace: Trace | None = None
    head: list[str] | None = None
    tail: deque[str] | None = None

    @property
    def reading(self) -> Reading:
        """The reading of the first line."""
        if type(self.read) is Form:
            self.read = self.read.reading(self.text)
        assert type(self.read) is Reading
        return self.read

    def add(self, text: str) -> None:
        """Keeps a folded line as a sample."""
        text = sample(text, TRACE_LINE_CHARS_MAX)
        if self.head is None:
            self.head = [text]
        elif len(self.head) < TRACE_HEAD_LINES_MAX:
            self.head.append(text)
        else:
            if self.tail is None:
                self.tail = deque(maxlen=TRACE_TAIL_LINES_MAX)
            self.tail.append(text)

    def sample(self) -> str:
        """The event as it stood in the log, the middle of a long trace left out."""
        if self.head is None:
            return sample(self.text, SAMPLE_CHARS_MAX)
        lines = [sample(self.text, TRACE_LINE_CHARS_MAX), *self.head]
        if self.tail is not None:
            left_out = (self.trace.lines if self.trace is not None else 0) - 1 - len(self.head) - len(self.tail)
            if left_out > 0:
                lines.append(f"    … {left_out} lines left out …")
            lines += self.tail
        return "\n".join(lines)


class Name(Struct, frozen=True, gc=False):
    """What an event is called; `severity` is None where only its words can tell."""

    message: str
    severity: str | None
    exception: str


def named(event: Event) -> Name:
    """The name of a closed event."""
    reading = event.reading
    message, severity = reading.message, reading.severity
    exception = ""
    trace = event.trace
    if trace is None and not reading.stack and len(message) <= MESSAGE_CHARS_MAX and "\n" not in message:
        return Name(message, severity, "")
    if reading.stack:
        exception = reading.stack.strip().rsplit("\n", 1)[-1].strip()
    if trace is not None and (trace.exception or trace.lines > 1):
        exception = trace.exception
        if trace.kind and (severity is None or not reading.parsed):
            severity = "critical" if trace.kind in ("go", "rust") else "error"
        if event.head and reading.component and message.startswith(reading.component):
            message = event.head[0].strip()  # the level's line names the logger only; the next is the message
    if exception:
        exception = shorten(exception, EXCEPTION_CHARS_MAX)
        if not reading.parsed:
            message = exception  # a bare trace is called by what it died of
        elif exception not in message:
            message = f"{shorten(message, MESSAGE_CHARS_MAX - EXCEPTION_CHARS_MAX - 1)} {exception}"
    if len(message) > MESSAGE_CHARS_MAX:
        message = shorten(message, MESSAGE_CHARS_MAX)
    if "\n" in message:
        message = message.partition("\n")[0]
    return Name(message, severity, exception)

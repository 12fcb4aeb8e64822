"""The words of the triage: what goes in, what comes out, and the named limits that keep it bounded."""

from typing import Final

from msgspec import Struct

SEVERITIES: Final[tuple[str, ...]] = ("critical", "error", "warning", "info", "debug", "unknown")

LINE_CHARS_MAX: Final = 32_768  # what is longer is cut with a note: nobody reads a 10 MB line, and masks would
SHAPES_MAX: Final = 8_000  # distinct shapes held of one source; over it they are merged, then the rarest let go
TEMPLATES_REPORTED_MAX: Final = 500
TEMPLATE_IDS_MAX: Final = 8_000
TEMPLATE_CHARS_MAX: Final = 1_000
EVIDENCE_MAX: Final = 3  # of each template: two tell the kind, the third that it goes on
EVIDENCE_CHARS_MAX: Final = 2_000
SAMPLE_CHARS_MAX: Final = 8_000  # of one event while the triage runs; evidence is cut from it
SAMPLES_CHARS_MAX: Final = 16_000_000  # of all samples of a source; over it a sample keeps `SAMPLE_CHARS_SHORT`
SAMPLE_CHARS_SHORT: Final = 400
TRACE_HEAD_LINES_MAX: Final = 4
TRACE_TAIL_LINES_MAX: Final = 12  # the exception is at the end of a trace
TRACE_LINES_MAX: Final = 2_000  # a "trace" longer than this is a log without headers
STREAMS_MAX: Final = 8
BUCKETS_MAX: Final = 360  # of a template's rate; when a source outgrows it, all its buckets double in width


class Line(Struct, frozen=True):
    """One line as the log agent read it; `at` is the engine's RFC 3339 UTC stamp, `stream` stdout, stderr or ""."""

    text: str
    at: str | None = None
    stream: str = ""


class Evidence(Struct, frozen=True):
    """Redacted text of one event as it stood in the log; a folded trace is several lines."""

    text: str
    at: str | None = None
    stream: str = ""


class Burst(Struct, frozen=True):
    """A stretch where a template came far oftener than in its own rest; rates are lines a minute."""

    start: str
    end: str
    lines: int
    per_minute: float
    rest_per_minute: float


class Template(Struct, frozen=True, kw_only=True):
    """What one statement of a program wrote, with the parts that vary as `<*>`."""

    id: str
    text: str
    severity: str
    count: int
    by_severity: dict[str, int]
    new: bool = False
    exception: str = ""
    component: str = ""
    first_seen: str | None = None
    last_seen: str | None = None
    bursts: list[Burst] = []
    evidence: list[Evidence] = []


class SourceReport(Struct, frozen=True, kw_only=True):
    """All that was found in one source.

    Accounts: `lines_read = events + folded + blank`; the counts of `by_severity` sum to `events`, and so do the
    templates' counts plus `events_over_limit`. `unparsed` are the events without any header that was recognised.
    `template_ids` is what to hand to the next triage of this source as `known_templates`.
    """

    host: str
    source: str
    lines_read: int
    events: int
    folded: int
    blank: int
    unparsed: int
    cut: int
    undecodable: int
    events_over_limit: int
    by_severity: dict[str, int]
    templates: list[Template]
    templates_total: int
    template_ids: list[str]
    first_time: bool
    first_seen: str | None = None
    last_seen: str | None = None
    notes: list[str] = []


class Finding(Struct, frozen=True, kw_only=True):
    """Something a person should look at, with the reasons why it stands where it stands."""

    rank: int
    severity: str
    host: str
    source: str
    template_id: str
    title: str
    count: int
    score: float
    why: list[str]
    new: bool = False
    exception: str = ""
    component: str = ""
    first_seen: str | None = None
    last_seen: str | None = None
    bursts: list[Burst] = []
    evidence: list[Evidence] = []


class Window(Struct, frozen=True):
    """The stretch of a source that was asked for; None is open."""

    since: str | None = None
    until: str | None = None


class Unread(Struct, frozen=True):
    """A source that could not be read, and the reason."""

    host: str
    source: str
    reason: str

"""Writes a source's report from its tallies: templates, what is new, bursts, notes; everything redacted."""

import hashlib
from typing import Final

from services.executor.triage import times
from services.executor.triage.bursts import stretches
from services.executor.triage.miner import wildcard_forms
from services.executor.triage.model import (
    EVIDENCE_CHARS_MAX,
    EVIDENCE_MAX,
    SEVERITIES,
    SHAPES_MAX,
    TEMPLATE_CHARS_MAX,
    TEMPLATE_IDS_MAX,
    TEMPLATES_REPORTED_MAX,
    Burst,
    Evidence,
    SourceReport,
    Template,
)
from services.executor.triage.tally import Sample, Tally
from shared.redact import redact

MERGED_SHAPES_MAX: Final = 50
_ORDER: Final = {name: i for i, name in enumerate(SEVERITIES)}


class Account:
    """The running totals of one source."""

    def __init__(self, host: str, source: str, known: frozenset[str] | None) -> None:
        self.host = host
        self.source = source
        self.known = known
        self.lines_read = self.events = self.folded = self.blank = 0
        self.unparsed = self.cut = self.undecodable = 0
        self.events_let_go = self.shapes_let_go = 0
        self.by_severity = dict.fromkeys(SEVERITIES, 0)
        self.merged_shapes: dict[str, list[str]] = {}
        self.scale = ""
        self.off_scale = False

    def merged(self, template: str, shape: str) -> None:
        """Remembers what a template was merged from, bounded: it only serves to recognise it next time."""
        into = self.merged_shapes.setdefault(template, [])
        before = self.merged_shapes.pop(shape, [])  # a template of an earlier merge, merged further
        if len(into) < MERGED_SHAPES_MAX:
            into.append(shape)
            into += before[: MERGED_SHAPES_MAX - len(into)]

    def on_scale(self, scale: str) -> bool:
        """True when this stamp can be compared with those before it: the first scale of a source is its scale."""
        if not self.scale:
            self.scale = scale
        if scale != self.scale:
            self.off_scale = True
        return scale == self.scale


def template_id(text: str) -> str:
    """12 hex digits that stand for a template in every run."""
    return hashlib.sha256(text.encode("utf-8", "replace")).hexdigest()[:12]


def report(account: Account, tallies: dict[str, Tally], bucket_s: int) -> SourceReport:
    """The report; `bucket_s` is the width of the tallies' buckets in seconds."""
    stamped = [t for t in tallies.values() if t.first_s is not None and t.last_s is not None]
    first_s = min((t.first_s for t in stamped if t.first_s is not None), default=None)
    last_s = max((t.last_s for t in stamped if t.last_s is not None), default=None)
    texts = {shape: redact(shape)[:TEMPLATE_CHARS_MAX] for shape in tallies}
    ranked = sorted(tallies.items(), key=lambda kv: (_worst(kv[1]), -kv[1].count, kv[0]))
    window = (first_s // bucket_s, last_s // bucket_s) if first_s is not None and last_s is not None else None
    templates = [
        _template(account, texts[shape], shape, tally, window, bucket_s)
        for shape, tally in ranked[:TEMPLATES_REPORTED_MAX]
    ]
    over = sum(t.count for _, t in ranked[TEMPLATES_REPORTED_MAX:]) + account.events_let_go
    return SourceReport(
        host=redact(account.host),
        source=redact(account.source),
        lines_read=account.lines_read,
        events=account.events,
        folded=account.folded,
        blank=account.blank,
        unparsed=account.unparsed,
        cut=account.cut,
        undecodable=account.undecodable,
        events_over_limit=over,
        by_severity=account.by_severity,
        templates=templates,
        templates_total=len(tallies) + account.shapes_let_go,
        template_ids=_ids(account, texts, ranked),
        first_time=account.known is None,
        first_seen=_shown(account, first_s),
        last_seen=_shown(account, last_s),
        notes=_notes(account, len(tallies), over),
    )


def _template(
    account: Account, text: str, shape: str, tally: Tally, window: tuple[int, int] | None, bucket_s: int
) -> Template:
    bursts = _bursts(account, tally, window, bucket_s)
    by_severity: dict[str, int] = {s: tally.by_severity[s] for s in SEVERITIES if s in tally.by_severity}
    return Template(
        id=template_id(text),
        text=text,
        severity=SEVERITIES[_worst(tally)],
        count=tally.count,
        by_severity=by_severity,
        new=_is_new(account, text, shape),
        exception=redact(tally.exception)[:200],
        component=redact(tally.component)[:200],
        first_seen=_shown(account, tally.first_s),
        last_seen=_shown(account, tally.last_s),
        bursts=bursts,
        # What is harmless needs a sample, what may be a finding needs all that are kept.
        evidence=[
            _evidence(sample)
            for sample in _distinct(tally.evidence())[: EVIDENCE_MAX if _worst(tally) < 3 or bursts else 1]
        ],
    )


def _worst(tally: Tally) -> int:
    return min(_ORDER[s] for s in tally.by_severity)


def _is_new(account: Account, text: str, shape: str) -> bool:
    """Whether the last triage knew nothing that this template was or may have been a case of."""
    known = account.known
    if known is None or template_id(text) in known:
        return False
    for member in account.merged_shapes.get(shape, ()):
        if template_id(redact(member)[:TEMPLATE_CHARS_MAX]) in known:
            return False
    # Last time other values were about, so the same statement may have been merged further than now.
    return not any(template_id(form) in known for form in wildcard_forms(text))


def _ids(account: Account, texts: dict[str, str], ranked: list[tuple[str, Tally]]) -> list[str]:
    """Ids of all templates, then of the shapes that they were merged from, so that a later merge is recognised."""
    ids = dict.fromkeys(template_id(texts[shape]) for shape, _ in ranked)
    for shape, _ in ranked:
        for member in account.merged_shapes.get(shape, ()):
            if len(ids) >= TEMPLATE_IDS_MAX:
                return list(ids)
            ids.setdefault(template_id(redact(member)[:TEMPLATE_CHARS_MAX]))
    return list(ids)[:TEMPLATE_IDS_MAX]


def _bursts(account: Account, tally: Tally, window: tuple[int, int] | None, bucket_s: int) -> list[Burst]:
    if window is None:
        return []
    scale = 60 / bucket_s
    return [
        Burst(
            start=_shown(account, s.first * bucket_s) or "",
            end=_shown(account, (s.last + 1) * bucket_s) or "",
            lines=s.lines,
            per_minute=round(s.rate * scale, 2),
            rest_per_minute=round(s.rest * scale, 2),
        )
        for s in stretches(tally.buckets, *window)
    ]


def _distinct(samples: list[Sample]) -> list[Sample]:
    """The samples without those that say the same again: three equal traces are one piece of evidence."""
    seen: dict[tuple[str, str], Sample] = {}
    for one in samples:
        seen.setdefault((one[0], one[2]), one)
    return list(seen.values())


def _evidence(sample: Sample) -> Evidence:
    text, at, stream = sample
    text = redact(text)  # before the cut: half a token is not recognised as one
    if len(text) > EVIDENCE_CHARS_MAX:
        half = EVIDENCE_CHARS_MAX // 2
        text = f"{text[:half]} … {len(text) - 2 * half} characters left out … {text[-half:]}"
    return Evidence(text, at, stream)


def _shown(account: Account, at_s: int | None) -> str | None:
    return None if at_s is None else times.shown(at_s, account.scale)


def _notes(account: Account, templates: int, over: int) -> list[str]:
    notes = []
    if account.lines_read == 0:
        notes.append("no line in this window: no evidence of anything, good or bad")
    elif account.events == 0:
        notes.append("only blank lines in this window")
    elif not account.scale:
        notes.append("no line carries a time that could be read: no first and last seen, no bursts")
    elif account.scale != times.FULL:
        notes.append(f"times are shown as written: they are {account.scale}")
    if account.off_scale:
        notes.append("some times were of another kind than the first and were left out")
    if account.cut:
        notes.append(f"{account.cut} lines were longer than the limit and were cut")
    if account.undecodable:
        notes.append(f"{account.undecodable} events are mostly undecodable bytes")
    if account.events and account.unparsed * 2 > account.events:
        notes.append(f"{account.unparsed} of {account.events} events have no header that was recognised")
    if account.shapes_let_go:
        notes.append(f"more than {SHAPES_MAX} kinds of line: {account.shapes_let_go} rare harmless ones were let go")
    if over:
        notes.append(f"{over} events are counted but their templates are not listed")
    return notes

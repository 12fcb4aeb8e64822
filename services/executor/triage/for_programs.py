"""`triage.json`: the triage for programs, one struct; `report.md` is written from the same."""

from collections.abc import Mapping, Sequence

from msgspec import Struct

from services.executor.triage.clean import clean
from services.executor.triage.model import Finding, SourceReport, Unread, Window
from services.executor.triage.ranking import counted, rank
from shared.redact import redact

FORMAT: str = "remit.triage/1"
FINDINGS_MAX: int = 20


class TriagedSource(Struct, frozen=True, kw_only=True):
    """One source with the window that was asked of it."""

    report: SourceReport
    since: str | None = None
    until: str | None = None


class Document(Struct, frozen=True, kw_only=True):
    """Everything the triage of a run has to say; all text in it is redacted."""

    format: str = FORMAT
    run: str
    goal: str
    verdict: str
    lines_read: int
    findings_total: int
    findings: list[Finding]
    sources: list[TriagedSource]
    unread: list[Unread]
    summary: str | None = None
    summary_note: str | None = None


def document(
    reports: Sequence[SourceReport],
    *,
    run: str | int,
    goal: str,
    windows: Mapping[tuple[str, str], Window] | None = None,
    unread: Sequence[Unread] = (),
    summary: str | None = None,
    summary_note: str | None = None,
    findings_max: int = FINDINGS_MAX,
) -> Document:
    """The document of a run.

    `windows` is keyed by (host, source); `unread` are the sources, or whole hosts (source ""), that could not be read.
    `summary` is a language model's paragraph, `summary_note` says why there is none or what was cut.
    """
    ordered = sorted(reports, key=lambda r: (r.host, r.source))
    findings = rank(ordered, limit=findings_max)
    total = counted(ordered)
    asked = windows or {}
    sources = []
    for report in ordered:
        window = asked.get((report.host, report.source), Window())
        sources.append(TriagedSource(report=report, since=window.since, until=window.until))
    lines = sum(r.lines_read for r in ordered)
    return Document(
        run=str(run),
        goal=_said(goal),
        verdict=_verdict(ordered, findings, total, unread),
        lines_read=lines,
        findings_total=total,
        findings=findings,
        sources=sources,
        unread=[Unread(_said(u.host), _said(u.source), _said(u.reason)) for u in unread],
        summary=None if summary is None else _said(summary),
        summary_note=None if summary_note is None else _said(summary_note),
    )


def _said(text: str) -> str:
    return redact(clean(text))


def _verdict(reports: Sequence[SourceReport], findings: Sequence[Finding], total: int, unread: Sequence[Unread]) -> str:
    lines = sum(r.lines_read for r in reports)
    missed = f"; {_count(len(unread), 'source')} could not be read" if unread else ""
    if not reports:
        return f"no logs were read: nothing can be said{missed}"
    if lines == 0:
        return f"no evidence: {_count(len(reports), 'source')} read, no line in the window{missed}"
    places = len({(f.host, f.source) for f in rank(reports, limit=1_000_000)})
    if total == 0:
        return f"nothing found in {_count(len(reports), 'source')}, {_count(lines, 'line')} read{missed}"
    found = f"{_count(total, 'finding')} in {places} of {_count(len(reports), 'source')}"
    listed = f", the first {len(findings)} listed" if total > len(findings) else ""
    return f"{found}{listed}, {_count(lines, 'line')} read{missed}"


def _count(n: int, noun: str) -> str:
    return f"{n:,} {noun}{'' if n == 1 else 's'}"

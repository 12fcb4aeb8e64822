"""`report.md`: the triage for people, written from the same document as `triage.json`.

Log text is hostile: it stands only in code, in a fence longer than any run of backticks that it holds, or in inline
code of the same kind, so that no markdown or HTML of a log line is ever rendered. Words of people and models (goal,
summary, reasons) are escaped. Names, too, may hold what moves a terminal's cursor: none of that is written.
"""

import re
from collections.abc import Sequence
from typing import Final

from services.executor.triage.clean import clean
from services.executor.triage.for_programs import Document, TriagedSource
from services.executor.triage.model import SEVERITIES, Evidence, Finding, SourceReport

TITLE_CHARS_MAX: Final = 160
TEMPLATES_SHOWN_MAX: Final = 5
_TICKS = re.compile(r"`+")
_MARKUP = re.compile(r"([\\`*_{}\[\]<>#|!~&])")
_SHOWN: Final = ("critical", "error", "warning", "info", "debug", "unknown")


def markdown(document: Document) -> str:
    """The report; ends with a newline."""
    out = ["# Log triage", "", f"**{_plain(document.verdict)}**", ""]
    goal = f" · goal {_code(_short(document.goal))}" if document.goal else ""
    out += [f"Run {_code(document.run)}{goal}", ""]
    out += _summary(document)
    out += _findings(document.findings, document.findings_total)
    spoke = [s for s in document.sources if s.report.lines_read]
    silent = [s for s in document.sources if not s.report.lines_read]
    out += _sources(spoke)
    if silent:
        out += ["## No lines in the window", ""]
        out += [f"- {_place(s.report)} ({_window(s)})" for s in silent]
        out.append("")
    if document.unread:
        out += ["## Not read", ""]
        out += [
            f"- {_code(u.host)}{' ' + _code(u.source) if u.source else ''}: {_plain(u.reason)}" for u in document.unread
        ]
        out.append("")
    if not document.sources:
        out += ["## No logs", "", "No source was read, so this report is no evidence that all is well.", ""]
    return "\n".join(out).rstrip("\n") + "\n"


def _summary(document: Document) -> list[str]:
    out: list[str] = []
    if document.summary:
        out += ["## Summary", ""]
        out += [f"> {_plain(line)}" if line.strip() else ">" for line in document.summary.strip().splitlines()]
        out += ["", "_Written by a language model from the findings below; check it against their evidence._", ""]
    if document.summary_note:
        out += [f"_{_plain(document.summary_note)}_", ""]
    return out


def _findings(findings: Sequence[Finding], total: int) -> list[str]:
    if not findings:
        return []
    out = ["## Findings", ""]
    for finding in findings:
        times = f"{finding.count:,} time{'' if finding.count == 1 else 's'}"
        marks = " · **new**" if finding.new else ""
        out += [f"### {finding.rank}. {finding.severity}: {_code(_short(finding.title))}", ""]
        out += [f"{_code(finding.host)} {_code(finding.source)} · {times}{_span(finding)}{marks}  "]
        out += [f"Why: {_plain('; '.join(finding.why))}", ""]
        for evidence in finding.evidence:
            out += _fenced(evidence)
    if total > len(findings):
        out += [f"{total - len(findings):,} more findings stand in `triage.json`'s templates.", ""]
    return out


def _span(finding: Finding) -> str:
    if finding.first_seen is None:
        return ""
    if finding.first_seen == finding.last_seen:
        return f" · at {_plain(finding.first_seen)}"
    return f" · {_plain(finding.first_seen)} to {_plain(finding.last_seen or '')}"


def _sources(sources: Sequence[TriagedSource]) -> list[str]:
    if not sources:
        return []
    out = ["## Sources", ""]
    out += ["| source | lines | events | " + " | ".join(_SHOWN) + " | window | notes |"]
    out += ["|---" * (len(_SHOWN) + 5) + "|"]
    for each in sources:
        report = each.report
        cells = [_place(report, table=True), f"{report.lines_read:,}", f"{report.events:,}"]
        cells += [f"{report.by_severity.get(s, 0):,}" for s in _SHOWN]
        cells += [_window(each), _plain("; ".join(report.notes)) or "–"]
        out.append("| " + " | ".join(cells) + " |")
    out.append("")
    for each in sources:
        out += _account(each.report)
    return out


def _account(report: SourceReport) -> list[str]:
    new = sum(1 for t in report.templates if t.new)
    told = "first triage of this source, so nothing is called new" if report.first_time else f"{new:,} new"
    out = [
        f"**{_place(report)}**: {report.lines_read:,} lines = {report.events:,} events + {report.folded:,} folded into "
        f"them + {report.blank:,} blank; {report.unparsed:,} events without a known header; "
        f"{report.templates_total:,} templates ({told}). The most frequent:",
        "",
    ]
    frequent = sorted(report.templates, key=lambda t: (-t.count, SEVERITIES.index(t.severity), t.text))
    out += [f"- {t.count:,} × {t.severity} {_code(_short(t.text))}" for t in frequent[:TEMPLATES_SHOWN_MAX]]
    out.append("")
    return out


def _place(report: SourceReport, *, table: bool = False) -> str:
    return _code(f"{report.host} {report.source}", table=table)


def _window(source: TriagedSource) -> str:
    since = _plain(source.since) if source.since else "the beginning"
    until = _plain(source.until) if source.until else "now"
    return f"{since} to {until}"


def _fenced(evidence: Evidence) -> list[str]:
    longest = max((len(run) for run in _TICKS.findall(evidence.text)), default=0)
    fence = "`" * max(3, longest + 1)
    return [f"{fence}text", *evidence.text.splitlines(), fence, ""]


def _code(text: str, *, table: bool = False) -> str:
    """Inline code that shows the text as it is, whatever it holds; never spans lines."""
    flat = clean(" ".join(text.split())) or " "
    if table:
        flat = flat.replace("|", "\\|")
    longest = max((len(run) for run in _TICKS.findall(flat)), default=0)
    ticks = "`" * (longest + 1)
    pad = " " if flat.startswith("`") or flat.endswith("`") else ""
    return f"{ticks}{pad}{flat}{pad}{ticks}"


def _plain(text: str) -> str:
    """Text without any markup of its own, on one line."""
    return _MARKUP.sub(r"\\\1", clean(" ".join(text.split())))


def _short(text: str) -> str:
    flat = " ".join(text.split())
    return flat if len(flat) <= TITLE_CHARS_MAX else flat[: TITLE_CHARS_MAX - 1] + "…"

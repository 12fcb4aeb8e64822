"""Ranks what was found over all sources: severity first, then how telling it is.

Measured on public "what went wrong" cases (FACTS), severity then rarity over masked templates puts the fault among
the first five; rarity alone is useless and severity alone floods. So the severity decides the class, and within it a
score adds up: rare in its source, new since the last triage, in a burst, with an exception. Each part is written
into `why`. Below warning only bursts, and new templates where few are new (many new ones are a deployment), count.
"""

import math
from collections.abc import Sequence
from typing import Final

from services.executor.triage.model import SEVERITIES, Finding, SourceReport, Template

_CLASS: Final = {"critical": 3, "error": 2, "warning": 1}
RARITY_WEIGHT: Final = 40.0
NEW_WEIGHT: Final = 25.0
BURST_WEIGHT: Final = 20.0
EXCEPTION_WEIGHT: Final = 10.0
NEW_HARMLESS_MAX: Final = 5
NEW_HARMLESS_SHARE_MAX: Final = 0.05  # what is new and most of the log is the log's new normal
BURST_HARMLESS_LINES_MIN: Final = 50


def rank(reports: Sequence[SourceReport], *, limit: int = 20) -> list[Finding]:
    """The findings of all sources, worst first, at most `limit`; the same reports give the same order."""
    rated: list[tuple[int, float, SourceReport, Template, list[str]]] = []
    for report in reports:
        harmless_new = sum(1 for t in report.templates if t.new and t.severity not in _CLASS)
        rare_max = max(1, int(report.events * NEW_HARMLESS_SHARE_MAX))
        for template in report.templates:
            if template.severity in _CLASS or _of_note(template, harmless_new, rare_max):
                score, why = _score(report, template)
                rated.append((_CLASS.get(template.severity, 0), score, report, template, why))
    rated.sort(key=lambda r: (-r[0], -r[1], r[2].host, r[2].source, r[3].text))
    return [
        _finding(place, report, template, score, why)
        for place, (_, score, report, template, why) in enumerate(rated[:limit], 1)
    ]


def counted(reports: Sequence[SourceReport]) -> int:
    """How many findings there are without a limit."""
    return len(rank(reports, limit=1_000_000))


def _of_note(template: Template, harmless_new: int, rare_max: int) -> bool:
    if any(b.lines >= BURST_HARMLESS_LINES_MIN for b in template.bursts):
        return True
    return template.new and harmless_new <= NEW_HARMLESS_MAX and template.count <= rare_max


def _score(report: SourceReport, template: Template) -> tuple[float, list[str]]:
    why = [f"severity {template.severity}"]
    share = template.count / max(1, report.events)
    # 1 for a line alone in its source, 0 for a template that is the whole source; logarithmic, as counts are.
    spread = math.log(max(2, report.events))
    rarity = min(1.0, max(0.0, math.log(1 / share) / spread)) if report.events > 1 else 1.0
    score = RARITY_WEIGHT * rarity
    if share <= 0.01:
        why.append(f"rare: {template.count} of {report.events} events")
    if template.new:
        score += NEW_WEIGHT
        why.append("new since the last triage of this source")
    if template.bursts:
        score += BURST_WEIGHT
        burst = max(template.bursts, key=lambda b: b.lines)
        why.append(
            f"burst: {burst.per_minute:g} a minute from {burst.start} to {burst.end}, "
            f"otherwise {burst.rest_per_minute:g}"
        )
    if template.exception:
        score += EXCEPTION_WEIGHT
        why.append(f"exception {template.exception}")
    return round(score, 3), why


def _finding(place: int, report: SourceReport, template: Template, score: float, why: list[str]) -> Finding:
    return Finding(
        rank=place,
        severity=template.severity,
        host=report.host,
        source=report.source,
        template_id=template.id,
        title=template.text,
        count=template.count,
        score=score,
        why=why,
        new=template.new,
        exception=template.exception,
        component=template.component,
        first_seen=template.first_seen,
        last_seen=template.last_seen,
        bursts=template.bursts,
        evidence=template.evidence,
    )


def worst(findings: Sequence[Finding]) -> str | None:
    """The worst severity among the findings; None when there are none."""
    return min((f.severity for f in findings), key=SEVERITIES.index, default=None)

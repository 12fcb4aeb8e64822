"""Log triage: lines in, findings out. Pure and synchronous: no I/O, no clock, bounded memory.

`clean` → `remembered` or `reading` (`header` over `fields`, `structured`, `severity`) → `fold` → `naming` →
`counting` (`mask`, `tally`), line by line in `source`;
then `miner`, `bursts` and `closing` make the source's report, `ranking` the findings over all sources, and
`for_people` and `for_programs` the two artifacts.
"""

from services.executor.triage.for_people import markdown
from services.executor.triage.for_programs import Document, document
from services.executor.triage.model import (
    SEVERITIES,
    Burst,
    Evidence,
    Finding,
    Line,
    SourceReport,
    Template,
    Unread,
    Window,
)
from services.executor.triage.ranking import rank
from services.executor.triage.source import SourceTriage

__all__ = [
    "SEVERITIES",
    "Burst",
    "Document",
    "Evidence",
    "Finding",
    "Line",
    "SourceReport",
    "SourceTriage",
    "Template",
    "Unread",
    "Window",
    "document",
    "markdown",
    "rank",
]

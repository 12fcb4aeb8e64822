"""Log triage: lines in, findings out. Pure and synchronous: no I/O, no clock, bounded memory.

`clean` → `reading` (`header` over `fields`, `structured`, `severity`) → `fold` → `naming` → `counting` (`mask`,
`tally`), line by line in `source`;
then `miner`, `bursts` and `closing` make the source's report, `ranking` the findings over all sources, and
`for_people` and `for_programs` the two artifacts.
"""

from .for_people import markdown
from .for_programs import Document, document
from .model import (
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
from .ranking import rank
from .source import SourceTriage

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

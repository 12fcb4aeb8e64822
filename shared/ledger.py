"""The words of asking the registry: `registry.<question>` with a `Question`, answered by an `Answer`."""

from typing import Any

import msgspec

QUESTIONS = ("runs", "run", "events", "approvals", "tokens", "hosts", "status", "digest", "rebuild")
LIMIT_MAX = 1_000


class Question(msgspec.Struct, frozen=True, kw_only=True):
    """What is asked. Lists come a page at a time: `before` (a run; of approvals, what the last page said) or `after`
    (an event) go on where a page ended. `status` is a run's, or an approval's.

    `min_seq`: answer only when the tables hold everything up to this event, so that one may read what one has written.
    """

    run: int | None = None
    status: str | None = None
    limit: int = 50
    before: int | None = None
    after: int = 0
    min_seq: int = 0


class Answer(msgspec.Struct, kw_only=True):
    """Rows, and where the tables stand: `position` is the last event in them. `next` asks for the following page."""

    rows: list[dict[str, Any]] = []
    position: int = 0
    next: int | None = None
    more: dict[str, Any] = {}
    error: str | None = None
    field: str = ""

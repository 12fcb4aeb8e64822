"""The words of asking the registry: `registry.<question>` with a `Question`, answered by an `Answer`. Pure."""

import re
from datetime import UTC, date, datetime, timedelta
from typing import Any, Literal

import msgspec

from shared.clock import NS_PER_S, parse_ns
from shared.errors import Malformed

QUESTIONS = (
    "runs", "run", "events", "approvals", "tokens", "usage", "daily", "sql", "hosts", "status", "digest", "rebuild",
)  # fmt: skip
LIMIT_MAX = 1_000
SELECT_ROWS_MAX = 10_000
TOKENS_BY = ("day", "directive", "task", "model", "host", "run")
By = Literal["day", "directive", "task", "model", "host", "run"]


class Rate(msgspec.Struct, frozen=True, kw_only=True):
    """What a million tokens cost; a cached input token costs `input_per_million` where it has no price of its own."""

    input_per_million: float
    output_per_million: float
    cached_per_million: float | None = None


class Rates(msgspec.Struct, frozen=True, kw_only=True):
    """Prices by model (as answered, or else as asked), in one currency."""

    currency: str
    models: dict[str, Rate]


class Question(msgspec.Struct, frozen=True, kw_only=True):
    """What is asked. Lists come a page at a time: `before` (a run; of approvals, what the last page said), `after`
    (an event) or `page` (what the last answer's `next_page` said) go on where a page ended. `status` is a run's, or an
    approval's.

    `since` and `until` (not included) are days or RFC 3339 times, `day` is a day, in UTC; `as_of` is an event or a
    time. `rates` stand in place of those of the config.
    `min_seq`: answer only when the tables hold everything up to this event, so that one may read what one has written.
    """

    run: int | None = None
    status: str | None = None
    limit: int = 50
    before: int | None = None
    after: int = 0
    min_seq: int = 0
    by: By | None = None
    since: str | None = None
    until: str | None = None
    day: str | None = None
    page: str | None = None
    rates: Rates | None = None
    sql: str | None = None
    as_of: int | str | None = None


class Answer(msgspec.Struct, kw_only=True):
    """Rows, and where the tables stand: all up to event `position` is in them. `next` (of some questions `next_page`)
    asks for the following page. There are as many as were asked for, or as a message holds.
    """

    rows: list[dict[str, Any]] = []
    position: int = 0
    next: int | None = None
    next_page: str | None = None
    more: dict[str, Any] = {}
    error: str | None = None
    field: str = ""


_DAY = re.compile(r"\d{4}-\d\d-\d\d", re.ASCII)
BEGINNING = datetime(1970, 1, 1)  # noqa: DTZ001  # the tables' times are UTC without a zone
END = datetime(9999, 1, 1)  # noqa: DTZ001


def moment(text: str, field: str) -> datetime:
    """A day (its first moment) or an RFC 3339 time, as the tables hold it."""
    try:
        at_ns = parse_ns(f"{text}T00:00:00Z" if _DAY.fullmatch(text) else text)
        found = datetime.fromtimestamp(at_ns // NS_PER_S, UTC) + timedelta(microseconds=at_ns % NS_PER_S // 1000)
    except (ValueError, OverflowError, OSError) as error:
        why = f"{text[:40]!r} is neither a day such as 2026-11-21 nor a time such as 2026-11-21T09:30:00Z"
        raise Malformed(why, field=field) from error
    return found.replace(tzinfo=None)


def span(question: Question) -> tuple[datetime, datetime]:
    """From when (included) until when (not included) the question asks."""
    since = moment(question.since, "since") if question.since else BEGINNING
    until = moment(question.until, "until") if question.until else END
    if since > until:
        raise Malformed("until is before since", field="until")
    return since, until


def whole_day(text: str) -> tuple[datetime, datetime]:
    """The first moments of this day and of the next, UTC."""
    try:
        found = date.fromisoformat(text) if _DAY.fullmatch(text) else None
        if found is not None:
            begins = datetime(found.year, found.month, found.day)  # noqa: DTZ001
            return begins, begins + timedelta(days=1)
    except (ValueError, OverflowError):
        pass
    raise Malformed(f"{text[:40]!r} is no day such as 2026-11-21", field="day")


def cost(row: dict[str, Any], rates: Rates) -> float | None:
    """What the reported tokens of one model's row cost; null without a rate for it, or when nothing was reported."""
    rate = rates.models.get(row["model"])
    if rate is None or (row["input_tokens"] is None and row["output_tokens"] is None):
        return None
    read, written = row["input_tokens"] or 0, row["output_tokens"] or 0
    cached = min(row["cached_tokens"] or 0, read) if rate.cached_per_million is not None else 0
    total: float = (read - cached) * rate.input_per_million + written * rate.output_per_million
    return round((total + cached * (rate.cached_per_million or 0)) / 1e6, 6)

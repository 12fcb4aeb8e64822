"""Tokens, usage and a day's page: which queries answer them, and how their pages follow each other."""

from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Any

import msgspec

from shared.errors import Malformed
from shared.ledger import Answer, Question, Rates, cost, moment, span, whole_day

Ask = Callable[..., Awaitable[list[dict[str, Any]]]]

RUN_BEYOND_ALL = 1 << 62
GREATEST_TEXT = "\uffff"
NOBODY = "(none)"
PAGE_BYTES_MAX = 800_000  # a message holds 1 MB, and what is said beside a page's rows
GROUPS_MAX = 1_000  # models of a day, schedules of a day: kinds of things, never one for each run
GROUPS_BYTES_MAX = 200_000  # three such lists leave room for a day's failures


async def paged(
    ask: Ask, name: str, limit: int, *, room: int | None = None, **values: Any
) -> tuple[list[dict[str, Any]], bool]:
    """So many rows at most, as many as a message holds, and whether there are more: one is read beyond the page."""
    rows = await ask(name, limit=limit + 1, **values)
    page = rows[: _fitting(rows[:limit], PAGE_BYTES_MAX if room is None else room)]
    return page, len(rows) > len(page)


def _fitting(rows: list[dict[str, Any]], room: int) -> int:
    """How many of these rows are no more than `room` bytes; the first in any case, or a page would go on to itself."""
    if len(msgspec.json.encode(rows)) <= room:
        return len(rows)
    for number, row in enumerate(rows):
        room -= len(msgspec.json.encode(row)) + 1
        if room < 0:
            return max(number, 1)
    return len(rows)


async def tokens(ask: Ask, question: Question) -> Answer:
    """What the calls used: by day and model, or by one thing; the total with the first page."""
    since, until = span(question)
    values: dict[str, Any] = {"since": since, "until": until}
    if question.by is None:
        day, _, model = (question.page or f"{GREATEST_TEXT} ").partition(" ")
        rows, are_more = await paged(ask, "tokens", question.limit, **values, day=day, model=model)
        page = f"{rows[-1]['day']} {rows[-1]['model']}" if are_more else None
    else:
        first = {"day": GREATEST_TEXT, "run": str(RUN_BEYOND_ALL)}.get(question.by)
        asked = question.page if question.page is not None else first
        if question.by == "run":
            _number(asked)
        found, are_more = await paged(ask, f"tokens_by_{question.by}", question.limit, **values, page=asked)
        page = str(found[-1]["key"]) if are_more else None
        rows = [{question.by: _named(question.by, row.pop("key")), **row} for row in found]
    more = {"total": (await ask("tokens_total", **values))[0]} if question.page is None else {}
    return Answer(rows=rows, more=more, next_page=page)


async def usage(ask: Ask, question: Question) -> Answer:
    """How runs, steps and questions went; few rows each, so there are no pages."""
    since, until = span(question)
    [between] = await ask("runs_between", since=since, until=until)
    runs = await ask("usage_runs", **between)
    steps = await ask("usage_steps", **between)
    approvals = await ask("usage_approvals", **between)
    return Answer(rows=runs, more={"runs": runs, "steps": steps, "approvals": approvals})


async def daily(ask: Ask, question: Question, rates: Rates | None) -> Answer:
    """One page for a day (UTC): failures as rows, a page at a time, and the rest with the first of them."""
    if question.day is None:
        raise Malformed("which day? `day` is missing", field="day")
    since, until = whole_day(question.day)
    values: dict[str, Any] = {"since": since, "until": until}
    page = question.page if question.page is not None else str(RUN_BEYOND_ALL)
    _number(page)
    more = await _beside(ask, question.day, rates, **values) if question.page is None else {}
    room = PAGE_BYTES_MAX - len(msgspec.json.encode(more))
    failures, are_more = await paged(ask, "daily_failures", question.limit, room=room, **values, page=page)
    return Answer(rows=failures, more=more, next_page=str(failures[-1]["run"]) if are_more else None)


async def _beside(ask: Ask, day: str, rates: Rates | None, **values: Any) -> dict[str, Any]:
    """All of a day's page but its failures. `cut` says of which lists there is more than they hold."""
    cut: list[str] = []

    async def listed(what: str, name: str, **more: Any) -> list[dict[str, Any]]:
        rows, are_more = await paged(ask, name, GROUPS_MAX, room=GROUPS_BYTES_MAX, **values, **more)
        if are_more:
            cut.append(f"{what} cut at {len(rows)} rows")
        return rows

    models = await listed("tokens", "tokens_by_model", page=None)
    models = [{"model": row.pop("key"), **row} for row in models]
    costs = _costs(models, rates, are_all=not cut)
    [total] = await ask("tokens_total", **values)
    return {
        "day": day,
        "runs": await ask("daily_runs", **values),
        "approvals": await listed("approvals", "daily_approvals"),
        "ticks": await listed("ticks", "daily_ticks"),
        "tokens": models,
        "total": {**total, **costs},
        "cut": "; ".join(cut) or None,
    }


def _named(by: str, key: Any) -> Any:
    """A call on no host or for no task has the name NOBODY, which no host or task can have: it is shown as null."""
    return None if key == NOBODY and by in ("host", "task") else key


def _costs(models: list[dict[str, Any]], rates: Rates | None, *, are_all: bool) -> dict[str, Any]:
    """The cost of what was reported. `cost_is_whole` is false where usage or a price is not known: it is more then."""
    if rates is None:
        return {"currency": None, "cost": None, "cost_is_whole": False}
    for row in models:
        row["cost"] = cost(row, rates)
    known = [row["cost"] for row in models if row["cost"] is not None]
    whole = are_all and len(known) == len(models) and not any(row["unknown_calls"] for row in models)
    total = round(sum(known), 6) if known or not models else None
    return {"currency": rates.currency, "cost": total, "cost_is_whole": whole}


def _number(page: str | None) -> None:
    if page is None or not (page.isascii() and page.isdigit() and len(page) <= 19):
        raise Malformed(f"page is {str(page)[:40]!r}, which no answer has said", field="page")


async def seq_at(ask: Ask, as_of: int | str, end: int) -> int:
    """The event that `as_of` means: itself, or the last one at or before a time."""
    if isinstance(as_of, str):
        if as_of.isascii() and as_of.isdigit() and len(as_of) <= 18:
            as_of = int(as_of)
        else:
            at = moment(as_of, "as_of")
            if len(as_of) == len("2026-11-21"):
                at += timedelta(days=1) - timedelta(microseconds=1)  # a day as it stood at its end
            [row] = await ask("seq_at", at=at)
            return int(row["seq"])
    if not 0 <= as_of <= end:
        raise Malformed(f"as_of is {as_of}; the stream ends at event {end}", field="as_of")
    return as_of

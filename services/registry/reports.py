"""Tokens, usage and a day's page: which queries answer them, and how their pages follow each other."""

from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Any

from shared.errors import Malformed
from shared.ledger import Answer, Question, Rates, cost, moment, span, whole_day

Ask = Callable[..., Awaitable[list[dict[str, Any]]]]

RUN_BEYOND_ALL = 1 << 62
GREATEST_TEXT = "\uffff"
NOBODY = "(none)"
GROUPS_MAX = 1_000  # models of a day, schedules of a day: kinds of things, never one for each run


async def paged(ask: Ask, name: str, limit: int, **values: Any) -> tuple[list[dict[str, Any]], bool]:
    """So many rows at most, and whether there are more: one is read beyond the page."""
    rows = await ask(name, limit=limit + 1, **values)
    return rows[:limit], len(rows) > limit


async def tokens(ask: Ask, question: Question) -> Answer:
    """What the calls used: by day and model, or by one thing; the total with the first page."""
    since, until = span(question)
    values = {"since": since, "until": until}
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
    values = {"since": since, "until": until}
    page = question.page if question.page is not None else str(RUN_BEYOND_ALL)
    _number(page)
    failures, are_more = await paged(ask, "daily_failures", question.limit, **values, page=page)
    answer = Answer(rows=failures)
    if are_more:
        answer.next_page = str(failures[-1]["run"])
    if question.page is not None:
        return answer
    [total] = await ask("tokens_total", **values)
    models = await ask("tokens_by_model", **values, page=None, limit=GROUPS_MAX)
    models = [{"model": row.pop("key"), **row} for row in models]
    answer.more = {
        "day": question.day,
        "runs": await ask("daily_runs", **values),
        "approvals": await ask("daily_approvals", **values, limit=GROUPS_MAX),
        "ticks": await ask("daily_ticks", **values, limit=GROUPS_MAX),
        "tokens": models,
        "total": {**total, **_costs(models, rates)},
    }
    return answer


def _named(by: str, key: Any) -> Any:
    """A call on no host or for no task has the name NOBODY, which no host or task can have: it is shown as null."""
    return None if key == NOBODY and by in ("host", "task") else key


def _costs(models: list[dict[str, Any]], rates: Rates | None) -> dict[str, Any]:
    """The cost of what was reported. `cost_is_whole` is false where usage or a price is not known: it is more then."""
    if rates is None:
        return {"currency": None, "cost": None, "cost_is_whole": False}
    for row in models:
        row["cost"] = cost(row, rates)
    known = [row["cost"] for row in models if row["cost"] is not None]
    whole = len(known) == len(models) and not any(row["unknown_calls"] for row in models)
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

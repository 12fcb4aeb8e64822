"""Asking the registry and the agents, over NATS."""

import asyncio
from typing import Any

import msgspec
from aiohttp import web

from services.gateway.asked import answered, body, by, limit, word
from shared import asking
from shared.bus import Bus, ServiceInfo
from shared.clock import now
from shared.errors import Malformed, RemitError, Unavailable
from shared.ledger import LIMIT_MAX, SELECT_ROWS_MAX, Answer, Question
from shared.subjects import is_token

AGENTS = ("gpu", "logs")
REGISTRY_TIMEOUT_S = 8.0  # it waits 5 s itself for events that it has been asked to have
SQL_TIMEOUT_S = 28.0  # within the 30 s of a request: looking far back is for `remit sql`
TOKENS_DEFAULT = 100


async def ask(bus: Bus, question: str, values: Question, *, timeout_s: float = REGISTRY_TIMEOUT_S) -> Answer:
    """The registry's answer. `Malformed` when it blames a field of the question, `Unavailable` when it cannot."""
    try:
        return await asking.ask(bus, question, values, timeout_s=timeout_s)
    except (Malformed, Unavailable):
        raise
    except RemitError as error:  # its own trouble: to a client of the gateway that is a service that is not there
        raise Unavailable(error.message) from error


class HostView(msgspec.Struct, kw_only=True):
    """A host: the agents that answer for it now, and the steps that it has done."""

    host: str
    agents: list[dict[str, str]] = []
    steps: int = 0
    failed: int = 0
    last_at: str | None = None


class _Sql(msgspec.Struct, kw_only=True):
    sql: str
    as_of: int | str | None = None
    limit: int = 1000


class Questions:
    """The handlers of `/api/tokens`, `/api/usage`, `/api/daily`, `/api/sql` and `/api/hosts`."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus

    async def tokens(self, request: web.Request) -> web.Response:
        """`GET /api/tokens`: what the language models' calls used, by day and model or `by` one thing, and in all.

        `next` is the following page's `page`; the total comes with the first page.
        """
        question = Question(
            by=by(request),
            since=word(request, "since"),
            until=word(request, "until"),
            page=word(request, "page"),
            limit=limit(request, TOKENS_DEFAULT),
        )
        answer = await ask(self._bus, "tokens", question)
        total = answer.more.get("total")
        return answered({"total": total, "tokens": answer.rows, "next": answer.next_page, "position": answer.position})

    async def usage(self, request: web.Request) -> web.Response:
        """`GET /api/usage`: runs and steps by status, durations, retries, and how long answers were waited for."""
        question = Question(since=word(request, "since"), until=word(request, "until"))
        answer = await ask(self._bus, "usage", question)
        return answered({**answer.more, "position": answer.position})

    async def daily(self, request: web.Request) -> web.Response:
        """`GET /api/daily`: one page for a `day` (UTC, today's by default); failures a page at a time."""
        question = Question(
            day=word(request, "day") or now()[:10], page=word(request, "page"), limit=limit(request, TOKENS_DEFAULT)
        )
        answer = await ask(self._bus, "daily", question)
        told = {"failures": answer.rows, "next": answer.next_page, "position": answer.position}
        return answered({**answer.more, **told})

    async def sql(self, request: web.Request) -> web.Response:
        """`POST /api/sql`: one select, as of an event or a time where given. `cut` says when rows are missing."""
        wanted = await body(request, _Sql)
        if not 1 <= wanted.limit <= SELECT_ROWS_MAX:
            raise Malformed(f"limit is {wanted.limit}; it must be 1 to {SELECT_ROWS_MAX}", field="limit")
        question = Question(sql=wanted.sql, as_of=wanted.as_of, limit=wanted.limit)
        answer = await ask(self._bus, "sql", question, timeout_s=SQL_TIMEOUT_S)
        return answered({**answer.more, "rows": answer.rows, "position": answer.position})

    async def hosts(self, request: web.Request) -> web.Response:
        """`GET /api/hosts`: agents that answer now, and hosts that have worked. `notes` names what did not answer.

        By name, behind `page`; `next` is the following page's.
        """
        page, most = word(request, "page") or "", limit(request, LIMIT_MAX)
        notes: list[str] = []

        async def worked() -> Answer:
            try:
                return await ask(self._bus, "hosts", Question(page=page, limit=most))
            except Unavailable as error:
                notes.append(f"without the hosts that have worked: {error.message}")
                return Answer()

        answer, found = await asyncio.gather(worked(), asyncio.gather(*(self._bus.discover(name) for name in AGENTS)))
        agents = dict(zip(AGENTS, found, strict=True))
        # Of the registry's hosts no more are known than this page's, so agents behind it belong to a later one.
        until = answer.next_page
        known = [view for view in merged(agents, answer.rows) if page < view.host and (not until or view.host <= until)]
        following = known[most - 1].host if len(known) > most else until
        return answered({"hosts": known[:most], "next": following, "notes": notes})


def merged(agents: dict[str, list[ServiceInfo]], rows: list[dict[str, Any]]) -> list[HostView]:
    """Hosts by name: what discovery found (anybody may answer there, so only what reads as an agent counts)."""
    hosts: dict[str, HostView] = {}
    for row in rows:
        hosts[row["host"]] = msgspec.convert(row, HostView)
    for name, infos in agents.items():
        for info in infos:
            if is_token(info.host):
                agent = {"name": name, "id": info.id, "version": info.version}
                hosts.setdefault(info.host, HostView(host=info.host, agents=[])).agents.append(agent)
    for view in hosts.values():
        view.agents.sort(key=lambda agent: (agent["name"], agent["id"]))
    return [hosts[host] for host in sorted(hosts)]

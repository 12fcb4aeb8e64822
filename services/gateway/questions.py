"""Asking the registry and the agents, over NATS."""

import asyncio
from typing import Any

import msgspec
from aiohttp import web

from services.gateway.asked import answered, limit
from shared import asking
from shared.bus import Bus, ServiceInfo
from shared.errors import Malformed, RemitError, Unavailable
from shared.ledger import Answer, Question
from shared.subjects import is_token

AGENTS = ("gpu", "logs")
REGISTRY_TIMEOUT_S = 8.0  # it waits 5 s itself for events that it has been asked to have
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


class Questions:
    """The handlers of `/api/tokens` and `/api/hosts`."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus

    async def tokens(self, request: web.Request) -> web.Response:
        """`GET /api/tokens`: what the language models' calls used, by day and model, and in all."""
        answer = await ask(self._bus, "tokens", Question(limit=limit(request, TOKENS_DEFAULT)))
        total = answer.more.get("total", {})
        return answered({"total": total, "tokens": answer.rows, "position": answer.position})

    async def hosts(self, _request: web.Request) -> web.Response:
        """`GET /api/hosts`: agents that answer now, and hosts that have worked. `notes` names what did not answer."""
        notes: list[str] = []

        async def worked() -> list[dict[str, Any]]:
            try:
                return (await ask(self._bus, "hosts", Question())).rows
            except Unavailable as error:
                notes.append(f"without the hosts that have worked: {error.message}")
                return []

        rows, *found = await asyncio.gather(worked(), *(self._bus.discover(name) for name in AGENTS))
        agents = dict(zip(AGENTS, found, strict=True))
        return answered({"hosts": merged(agents, rows), "notes": notes})


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

"""`/livez`: the process answers. `/readyz`: what it stands on answers, too, and how far behind that is."""

import asyncio
from collections.abc import Awaitable
from typing import Any

from aiohttp import web

from services.gateway.asked import answered
from services.gateway.problems import Problem
from services.gateway.questions import ask
from shared.bus import Bus
from shared.errors import RemitError
from shared.ledger import Question
from shared.subjects import EVENTS

CHECK_S = 2.0


class Health:
    """The handlers of the two probes."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus

    async def live(self, _request: web.Request) -> web.Response:
        return answered({"live": True})

    async def ready(self, _request: web.Request) -> web.Response:
        """200 when NATS, the stream and the registry answer, 503 otherwise; each check is told in both."""
        nats, events, registry = await asyncio.gather(
            _checked(self._nats()), _checked(self._events()), _checked(self._registry())
        )
        checks = {"nats": nats, "events": events, "registry": registry}
        if bad := [name for name, check in checks.items() if not check["ok"]]:
            raise Problem(503, f"not ready: {', '.join(bad)}", ready=False, checks=checks)
        return answered({"ready": True, "checks": checks})

    async def _nats(self) -> dict[str, Any]:
        if not self._bus.is_connected:
            raise RemitError("the connection is down")
        await self._bus.api("INFO", timeout_s=CHECK_S)
        return {"server": self._bus.server}

    async def _events(self) -> dict[str, Any]:
        info = await self._bus.api(f"STREAM.INFO.{EVENTS}", timeout_s=CHECK_S)
        return {"last_seq": info["state"]["last_seq"]}

    async def _registry(self) -> dict[str, Any]:
        more = (await ask(self._bus, "status", Question(), timeout_s=CHECK_S)).more
        return {name: more.get(name) for name in ("last_seq", "behind_events", "active_runs", "unreadable")}


async def _checked(check: Awaitable[dict[str, Any]]) -> dict[str, Any]:
    try:
        async with asyncio.timeout(CHECK_S):
            return {"ok": True, **await check}
    except RemitError as error:
        return {"ok": False, "error": error.message}
    except TimeoutError:
        return {"ok": False, "error": f"no answer within {CHECK_S:g} s"}

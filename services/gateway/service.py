"""The gateway's shell: every path with its handler, what each response carries, and when a path gives up."""

import asyncio
from collections.abc import Awaitable, Callable

from aiohttp import web

from services.gateway.answers import Answers
from services.gateway.artifacts import Artifacts
from services.gateway.following import HEARTBEAT_S, Follower
from services.gateway.health import Health
from services.gateway.problems import ALWAYS
from services.gateway.questions import Questions
from services.gateway.runs import Runs
from services.gateway.shell import Shell
from shared.bus import Bus
from shared.errors import Unavailable
from shared.plan import GOAL_BYTES_MAX

REQUEST_S = 30.0

Handle = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Gateway:
    """Speaks HTTP on one side and NATS on the other, and keeps nothing."""

    def __init__(self, bus: Bus, *, hosts: frozenset[str] = frozenset(), heartbeat_s: float = HEARTBEAT_S) -> None:
        self._bus = bus
        self._shell = Shell(self._application(heartbeat_s), hosts)

    async def start(self, host: str, port: int) -> int:
        """Listen; the port comes back."""
        return await self._shell.start(host, port)

    async def stop(self) -> None:
        await self._shell.stop()

    def _application(self, heartbeat_s: float) -> web.Application:
        follower = Follower(self._bus, heartbeat_s)
        runs, artifacts = Runs(self._bus, follower), Artifacts(self._bus)
        questions, answers, health = Questions(self._bus), Answers(self._bus), Health(self._bus)
        app = web.Application(client_max_size=GOAL_BYTES_MAX)
        app.on_response_prepare.append(_dress)
        app.on_shutdown.append(follower.stop)
        # These two bound each wait by themselves: how long a stream or a download takes is the client's matter.
        streams = [
            # No HEAD: what follows events for as long as they come has no length to tell.
            web.get("/api/runs/{run}/events", self._connected(runs.events), allow_head=False),
            web.get("/api/runs/{run}/artifacts/{name:.+}", self._connected(artifacts.one)),
            web.get("/api/runs/{run}/report", self._connected(artifacts.report)),
        ]
        shown = {
            "/api/runs": runs.list,
            "/api/runs/{run}": runs.show,
            "/api/runs/{run}/plan": runs.plan,
            "/api/runs/{run}/artifacts": artifacts.list,
            "/api/approvals": answers.list,
            "/api/tokens": questions.tokens,
            "/api/usage": questions.usage,
            "/api/daily": questions.daily,
            "/api/hosts": questions.hosts,
        }
        app.add_routes(streams)
        app.add_routes([web.get(path, self._connected(_timed(handle))) for path, handle in shown.items()])
        changes = {
            "/api/runs": runs.submit,
            "/api/sql": questions.sql,
            "/api/runs/{run}/approvals/{step}": answers.answer,
            "/api/runs/{run}/cancel": answers.cancel,
            "/api/runs/{run}/retry": answers.retry,
        }
        app.add_routes([web.post(path, self._connected(_timed(handle))) for path, handle in changes.items()])
        app.add_routes([web.get("/livez", health.live), web.get("/readyz", _timed(health.ready))])
        return app

    def _connected(self, handle: Handle) -> Handle:
        """Refuse at once while NATS is away, instead of letting each request wait for its timeout."""

        async def answer(request: web.Request) -> web.StreamResponse:
            if not self._bus.is_connected:
                raise Unavailable("NATS is not reachable at the moment")
            return await handle(request)

        return answer


def _timed(handle: Handle) -> Handle:
    async def answer(request: web.Request) -> web.StreamResponse:
        async with asyncio.timeout(REQUEST_S):
            return await handle(request)

    return answer


async def _dress(_request: web.Request, response: web.StreamResponse) -> None:
    response.headers.update(ALWAYS)

"""`/api/runs`: a goal in, and what has become of it."""

import asyncio

import msgspec
from aiohttp import web

from services.gateway.asked import answered, last_event_id, limit, number, run_of, status, wants_stream
from services.gateway.following import Follower
from services.gateway.problems import Problem
from services.gateway.questions import ask
from services.gateway.views import event_view, run_view
from shared.bus import Bus
from shared.errors import NotFound, Unavailable
from shared.ledger import LIMIT_MAX, Question
from shared.plan import GOAL_BYTES_MAX, read_goal
from shared.story import read_story
from shared.subjects import EVENTS, goal_submitted

BODY_S = 10.0
LIST_DEFAULT = 50


class _AckError(msgspec.Struct):
    description: str = ""
    err_code: int = 0


class _Ack(msgspec.Struct):
    stream: str = ""
    seq: int = 0
    error: _AckError | None = None


class Runs:
    """The handlers of `/api/runs` and of what lies below a run, artifacts aside."""

    def __init__(self, bus: Bus, follower: Follower) -> None:
        self._bus = bus
        self._follower = follower

    async def submit(self, request: web.Request) -> web.Response:
        """`POST /api/runs`: 202 with the run's number as soon as the stream holds the goal."""
        body = await _body(request)
        goal, problems = read_goal(body)
        if goal is None:
            raise Problem(
                400 if problems[0].field == "payload" else 422,
                problems[0].reason,
                field=problems[0].field,
                problems=[{"reason": one.reason, "field": one.field} for one in problems],
            )
        run = await self._publish(body)
        url = f"/api/runs/{run}"
        told = {"run": run, "status": "pending", "url": url, "events": f"{url}/events"}
        return answered(told, status=202, headers={"Location": url})

    async def list(self, request: web.Request) -> web.Response:
        """`GET /api/runs`: newest first, a page at a time; `next` is the following page's `before`."""
        before = number(request, "before", 0, least=1)
        question = Question(
            limit=limit(request, LIST_DEFAULT),
            before=before or None,
            status=status(request),
            min_seq=number(request, "min_seq", 0),
        )
        answer = await ask(self._bus, "runs", question)
        return answered({"runs": answer.rows, "next": answer.next, "position": answer.position})

    async def show(self, request: web.Request) -> web.Response:
        """`GET /api/runs/{run}`"""
        return answered(run_view(await read_story(self._bus, run_of(request))))

    async def plan(self, request: web.Request) -> web.Response:
        """`GET /api/runs/{run}/plan`: byte for byte as the planner said it, so that its hash can be checked."""
        reading = await read_story(self._bus, run_of(request))
        run = reading.run
        if reading.plan is None:
            why = f"it was rejected: {run.reason}" if run.status == "rejected" else "it is not planned yet"
            raise NotFound(f"run {run.id} has no plan; {why}")
        return web.Response(body=reading.plan, content_type="application/json", headers={"Cache-Control": "no-store"})

    async def events(self, request: web.Request) -> web.StreamResponse:
        """`GET /api/runs/{run}/events`: a list, or a stream that ends with the run."""
        run = run_of(request)
        if wants_stream(request):
            return await self._follower.follow(request, run, last_event_id(request))
        after, most = number(request, "after", 0), limit(request, LIMIT_MAX)
        reading = await read_story(self._bus, run)
        left = [told for told in reading.told if told.event.seq > after]
        page = left[:most]
        following = page[-1].event.seq if len(left) > len(page) else None
        return answered({"run": run, "events": [event_view(told) for told in page], "next": following})

    async def _publish(self, goal: bytes) -> int:
        try:
            ack = msgspec.json.decode(await self._bus.request(goal_submitted(), goal), type=_Ack)
        except Unavailable as error:
            # A missing ack says nothing: repeating by ourselves could start the run twice.
            lost = "the goal may or may not have been stored; look at GET /api/runs before you send it again"
            raise Problem(503, f"{error.message}: {lost}", outcome="unknown") from error
        if ack.error is not None or ack.stream != EVENTS or not ack.seq:
            why = ack.error.description if ack.error else "something else than the stream answered"
            raise Problem(503, f"the stream did not take the goal: {why}", outcome="not stored")
        return ack.seq


async def _body(request: web.Request) -> bytes:
    """The JSON body, whole.

    A page's form can send no `application/json`, so a browser must; `curl -d` names another type and means JSON.
    """
    browser = "Origin" in request.headers or "Sec-Fetch-Site" in request.headers
    if browser and request.content_type != "application/json":
        raise Problem(415, "a browser must send the goal as application/json", field="Content-Type")
    if request.charset not in (None, "utf-8", "UTF-8"):
        raise Problem(415, "JSON is UTF-8", field="Content-Type")
    if request.headers.get("Content-Encoding", "identity") != "identity":
        raise Problem(415, "send the goal without compression", field="Content-Encoding")
    if (request.content_length or 0) > GOAL_BYTES_MAX:
        raise web.HTTPRequestEntityTooLarge(GOAL_BYTES_MAX, request.content_length or 0)
    try:
        async with asyncio.timeout(BODY_S):
            return await request.read()
    except TimeoutError as error:
        raise Problem(408, f"the body did not come within {BODY_S:g} s") from error

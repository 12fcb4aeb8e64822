"""`/api/runs`: a goal in, and what has become of it."""

from aiohttp import web

from services.gateway.asked import answered, last_event_id, limit, number, run_of, status, wants_stream, whole_body
from services.gateway.following import Follower
from services.gateway.goals import accepted, publish
from services.gateway.questions import ask
from services.gateway.views import event_view, run_view
from shared.bus import Bus
from shared.errors import NotFound
from shared.ledger import LIMIT_MAX, Question
from shared.story import read_story

LIST_DEFAULT = 50


class Runs:
    """The handlers of `/api/runs` and of what lies below a run, artifacts aside."""

    def __init__(self, bus: Bus, follower: Follower) -> None:
        self._bus = bus
        self._follower = follower

    async def submit(self, request: web.Request) -> web.Response:
        """`POST /api/runs`: 202 with the run's number as soon as the stream holds the goal."""
        return accepted(await publish(self._bus, await whole_body(request)))

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

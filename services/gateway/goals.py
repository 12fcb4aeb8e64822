"""A goal in: checked as everywhere, published, and answered with the run that it became."""

from aiohttp import web

from services.gateway.asked import answered
from services.gateway.problems import Problem
from shared.append import NotTaken, append_once
from shared.bus import Bus
from shared.errors import Unavailable
from shared.plan import read_goal
from shared.subjects import EVENTS, goal_submitted


def accepted(run: int) -> web.Response:
    """202: where the new run is to be found."""
    url = f"/api/runs/{run}"
    told = {"run": run, "status": "pending", "url": url, "events": f"{url}/events"}
    return answered(told, status=202, headers={"Location": url})


async def publish(bus: Bus, data: bytes) -> int:
    """The run of a goal that the stream holds now; a `Problem` with every reason when it is none."""
    goal, problems = read_goal(data)
    if goal is None:
        raise Problem(
            400 if problems[0].field == "payload" else 422,
            problems[0].reason,
            field=problems[0].field,
            problems=[{"reason": one.reason, "field": one.field} for one in problems],
        )
    try:
        return await append_once(bus, EVENTS, goal_submitted(), data)
    except NotTaken as error:
        raise Problem(503, error.message, outcome="not stored") from error
    except Unavailable as error:
        # A missing ack says nothing: repeating by ourselves could start the run twice.
        lost = "the goal may or may not have been stored; look at GET /api/runs before you send it again"
        raise Problem(503, f"{error.message}: {lost}", outcome="unknown") from error

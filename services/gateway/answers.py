"""`/api/approvals`, and what changes a run that there is: an answer, its end, its repetition.

There is no login, so nobody is named here: what is said over HTTP is said on the bare subject, by somebody. Where a
directive names its approvers that does not count, and it is refused before it is said.
"""

from typing import Literal

import msgspec
from aiohttp import web

from services.gateway.asked import answered, approval_status, body, limit, number, run_of
from services.gateway.goals import accepted, publish
from services.gateway.problems import Problem
from services.gateway.questions import ask
from shared import answering
from shared.bus import Bus
from shared.ledger import Question
from shared.showing import asked
from shared.story import read_story

LIST_DEFAULT = 50


class _Answer(msgspec.Struct, kw_only=True):
    answer: Literal["approved", "rejected"]
    plan_hash: str
    reason: str = ""


class _Cancel(msgspec.Struct, kw_only=True):
    reason: str = ""


class _Retry(msgspec.Struct, kw_only=True):
    from_step: str | None = None


class Answers:
    """The handlers of approvals, cancel and retry."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus

    async def list(self, request: web.Request) -> web.Response:
        """`GET /api/approvals`: newest runs first, a page at a time; `next` is the following page's `before`."""
        question = Question(
            run=number(request, "run", 0, least=1) or None,
            status=approval_status(request),
            limit=limit(request, LIST_DEFAULT),
            before=number(request, "before", 0, least=1) or None,
            min_seq=number(request, "min_seq", 0),
        )
        answer = await ask(self._bus, "approvals", question)
        return answered({"approvals": answer.rows, "next": answer.next, "position": answer.position})

    async def answer(self, request: web.Request) -> web.Response:
        """`POST /api/runs/{run}/approvals/{step}`: 200 once the answer was read back as one that counts."""
        said = await body(request, _Answer)
        run = (await read_story(self._bus, run_of(request))).run
        step = answering.question(run, request.match_info["step"])
        assert run.plan is not None  # whoever asks has a plan
        if said.plan_hash != run.plan.plan_hash:
            raise Problem(409, "plan_hash is that of another plan: look at what is asked now", field="plan_hash")
        granted = said.answer == "approved"
        if why := answering.refused(run, step, granted=granted):
            raise Problem(403, why)
        done = await answering.answer(self._bus, run, step, granted=granted, reason=said.reason)
        if done.why:
            raise Problem(409, f"the answer was recorded and does not count: {done.why}")
        [one] = [one for one in asked(done.run) if one.step == step]
        return answered({**one.told(), "run_status": done.run.status})

    async def cancel(self, request: web.Request) -> web.Response:
        """`POST /api/runs/{run}/cancel`: 202 once the stream holds the request; the run ends when nothing runs."""
        wanted = await body(request, _Cancel)
        run = (await read_story(self._bus, run_of(request))).run
        done = await answering.cancel(self._bus, run, reason=wanted.reason)
        if done.why and done.run.ended:
            raise Problem(409, f"run {run.id} has ended already: {done.run.status}")
        if done.why and done.run.stop is None:
            raise Problem(409, f"the request was recorded and does not count: {done.why}")
        stop = done.run.stop
        told = {"run": run.id, "status": done.run.status, "stop_reason": stop.reason if stop else None}
        return answered(told, status=202)

    async def retry(self, request: web.Request) -> web.Response:
        """`POST /api/runs/{run}/retry`: 202 with the number of the run that repeats it, once its goal is stored."""
        wanted = await body(request, _Retry)
        run = run_of(request)
        await read_story(self._bus, run)  # a number that is no run is told at once
        goal: dict[str, object] = {"retry_of": run}
        if wanted.from_step is not None:
            goal["from_step"] = wanted.from_step
        return accepted(await publish(self._bus, msgspec.json.encode(goal)))

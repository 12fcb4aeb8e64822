"""What a request asks for: the run in its path, the words in its query, its body. Each is checked in one place."""

import asyncio
from typing import TypeVar, cast, get_args

import msgspec
from aiohttp import web

from services.gateway.problems import Problem
from shared.errors import UNREADABLE, Malformed, malformed
from shared.ledger import LIMIT_MAX, By
from shared.plan import GOAL_BYTES_MAX
from shared.status import ApprovalStatus, RunStatus
from shared.subjects import RUN_DIGITS_MAX

SEQ_MAX = (1 << 62) - 1
BODY_S = 10.0

T = TypeVar("T")


def run_of(request: web.Request) -> int:
    """The run of the path."""
    return _number(request.match_info["run"], "run", least=1)


def number(request: web.Request, name: str, default: int, *, least: int = 0, most: int = SEQ_MAX) -> int:
    """A number of the query, which may stand there once."""
    text = word(request, name)
    return default if text is None else _number(text, name, least=least, most=most)


def limit(request: web.Request, default: int) -> int:
    return number(request, "limit", default, least=1, most=LIMIT_MAX)


def status(request: web.Request) -> str | None:
    """The run status of the query, one of the words that there are."""
    return _one_of(request, get_args(RunStatus))


def approval_status(request: web.Request) -> str | None:
    return _one_of(request, get_args(ApprovalStatus))


def by(request: web.Request) -> By | None:
    """What to sum by, of the query."""
    found = word(request, "by")
    if found is not None and found not in get_args(By):
        raise Malformed(f"{found[:40]!r} is nothing to sum by; there are {', '.join(get_args(By))}", field="by")
    return cast(By | None, found)


def _one_of(request: web.Request, words: tuple[str, ...]) -> str | None:
    found = word(request, "status")
    if found is not None and found not in words:
        raise Malformed(f"{found[:40]!r} is no status; they are {', '.join(words)}", field="status")
    return found


def last_event_id(request: web.Request) -> int:
    """Where an event stream goes on: the header that a browser sends on its own, or `after` of the query."""
    text = request.headers.get("Last-Event-ID", "")
    return max(_number(text, "Last-Event-ID", least=0) if text else 0, number(request, "after", 0))


def wants_stream(request: web.Request) -> bool:
    return "text/event-stream" in request.headers.get("Accept", "").lower()


def answered(body: object, *, status: int = 200, headers: dict[str, str] | None = None) -> web.Response:
    """JSON for a person's browser tab or a program: never cached, as it may be another a moment later."""
    made = web.Response(status=status, body=msgspec.json.encode(body), content_type="application/json")
    made.headers.update(headers or {})
    made.headers["Cache-Control"] = "no-store"
    return made


def word(request: web.Request, name: str) -> str | None:
    """A word of the query, which may stand there once."""
    words = request.query.getall(name, [])
    if len(words) > 1:
        raise Malformed(f"{name} stands in the query {len(words)} times", field=name)
    return words[0] if words else None


def _number(text: str, name: str, *, least: int, most: int = SEQ_MAX) -> int:
    if text.isascii() and text.isdigit() and len(text) <= RUN_DIGITS_MAX and least <= int(text) <= most:
        return int(text)
    span = f"from {least} to {most}" if most < SEQ_MAX else f"of at least {least}"
    raise Malformed(f"{name} is {text[:40]!r}; it must be a whole number {span}", field=name)


async def body(request: web.Request, struct: type[T]) -> T:
    """The JSON body as `struct`; nothing at all stands for an object without fields."""
    data = await whole_body(request)
    try:
        data.decode()  # msgspec passes over broken text in fields that it skips
        return msgspec.json.decode(data or b"{}", type=struct)
    except msgspec.ValidationError as error:
        raise malformed(error) from error
    except UNREADABLE as error:
        raise Malformed(f"the body is not JSON: {str(error)[:200]}", field="payload") from error


async def whole_body(request: web.Request) -> bytes:
    """The JSON body, whole.

    A page's form can send no `application/json`, so a browser must; `curl -d` names another type and means JSON.
    """
    browser = "Origin" in request.headers or "Sec-Fetch-Site" in request.headers
    if browser and request.content_type != "application/json":
        raise Problem(415, "a browser must send its body as application/json", field="Content-Type")
    if request.charset not in (None, "utf-8", "UTF-8"):
        raise Problem(415, "JSON is UTF-8", field="Content-Type")
    if request.headers.get("Content-Encoding", "identity") != "identity":
        raise Problem(415, "send the body without compression", field="Content-Encoding")
    if (request.content_length or 0) > GOAL_BYTES_MAX:
        raise web.HTTPRequestEntityTooLarge(GOAL_BYTES_MAX, request.content_length or 0)
    try:
        async with asyncio.timeout(BODY_S):
            return await request.read()
    except TimeoutError as error:
        raise Problem(408, f"the body did not come within {BODY_S:g} s") from error

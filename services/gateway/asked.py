"""What a request asks for: the run in its path, the numbers and words in its query. Each is checked in one place."""

from typing import get_args

import msgspec
from aiohttp import web

from shared.errors import Malformed
from shared.ledger import LIMIT_MAX
from shared.status import RunStatus
from shared.subjects import RUN_DIGITS_MAX

SEQ_MAX = (1 << 62) - 1
_STATUS_WORDS = get_args(RunStatus)


def run_of(request: web.Request) -> int:
    """The run of the path."""
    return _number(request.match_info["run"], "run", least=1)


def number(request: web.Request, name: str, default: int, *, least: int = 0, most: int = SEQ_MAX) -> int:
    """A number of the query, which may stand there once."""
    text = _word(request, name)
    return default if text is None else _number(text, name, least=least, most=most)


def limit(request: web.Request, default: int) -> int:
    return number(request, "limit", default, least=1, most=LIMIT_MAX)


def status(request: web.Request) -> str | None:
    """The run status of the query, one of the words that there are."""
    word = _word(request, "status")
    if word is not None and word not in _STATUS_WORDS:
        raise Malformed(f"{word[:40]!r} is no status; they are {', '.join(_STATUS_WORDS)}", field="status")
    return word


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


def _word(request: web.Request, name: str) -> str | None:
    words = request.query.getall(name, [])
    if len(words) > 1:
        raise Malformed(f"{name} stands in the query {len(words)} times", field=name)
    return words[0] if words else None


def _number(text: str, name: str, *, least: int, most: int = SEQ_MAX) -> int:
    if text.isascii() and text.isdigit() and len(text) <= RUN_DIGITS_MAX and least <= int(text) <= most:
        return int(text)
    span = f"from {least} to {most}" if most < SEQ_MAX else f"of at least {least}"
    raise Malformed(f"{name} is {text[:40]!r}; it must be a whole number {span}", field=name)

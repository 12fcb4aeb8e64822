"""Every error as RFC 9457 problem details, wherever it comes from: a handler, the router, a guard, or HTTP itself.

Theory of operation. `told` wraps the whole application from outside, so nothing that a handler, the router or
aiohttp's own checks raise reaches a client in another form; what cannot even be parsed as a request never gets so
far and is answered by `shell`, with the same words. The kind says who has to act: 4xx the caller, 503 nobody (try
again), 500 us.
"""

import logging
from collections.abc import Awaitable, Callable
from http import HTTPStatus
from typing import Any

import msgspec
from aiohttp import web

from shared.errors import AlreadySaid, Malformed, NotFound, Refused, RemitError, Unavailable
from shared.text import as_text

log = logging.getLogger("remit.gateway")

MEDIA_TYPE = "application/problem+json"
TYPE_PREFIX = "urn:remit:problem:"
RETRY_AFTER_S = 2
INSTANCE_CHARS_MAX = 300  # a path is echoed, so that a log line can be matched; not an 8 kB one

# What every answer carries, a problem or not.
ALWAYS = {
    "X-Content-Type-Options": "nosniff",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "Server": "remit",
}

Handler = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]

# Status -> the last part of `type`, and the title, which never changes with the occurrence.
KINDS: dict[int, tuple[str, str]] = {
    400: ("malformed", "The request cannot be read"),
    403: ("refused", "The request is not allowed"),
    404: ("not-found", "There is no such thing"),
    405: ("method-not-allowed", "This path does not take this method"),
    408: ("too-slow", "The request's body did not come in time"),
    409: ("conflict", "The run is not as the request takes it to be"),
    413: ("too-large", "The request's body is too large"),
    415: ("media-type", "The request's body is of another kind than JSON"),
    417: ("expectation", "The expectation cannot be met"),
    421: ("misdirected", "This gateway is not the host that was asked for"),
    422: ("invalid-goal", "The goal cannot be accepted"),
    500: ("internal", "The gateway failed"),
    502: ("damaged", "What is stored is not what was announced"),
    503: ("unavailable", "A part of Remit does not answer"),
}


class Problem(Exception):
    """An error with its HTTP status; `more` are extension members such as `field`."""

    def __init__(self, status: int, detail: str, **more: Any) -> None:
        super().__init__(detail)
        self.status = status
        self.detail = detail
        self.more = more


def details(status: int, detail: str, instance: str, **more: Any) -> bytes:
    """The body of a problem; extension members that are empty are left out."""
    name, title = KINDS.get(status) or ("http", HTTPStatus(status).phrase)
    body = {"type": TYPE_PREFIX + name, "title": title, "status": status, "detail": detail}
    body["instance"] = instance[:INSTANCE_CHARS_MAX]
    extra = {key: value for key, value in more.items() if value not in ("", None)}
    said = {**body, **extra}
    # A header may hold bytes that are no text: they come as lone surrogates, which no JSON can hold.
    return msgspec.json.encode({key: as_text(one) if isinstance(one, str) else one for key, one in said.items()})


def response(status: int, detail: str, instance: str, **more: Any) -> web.Response:
    """A problem as a response."""
    made = web.Response(status=status, body=details(status, detail, instance, **more), content_type=MEDIA_TYPE)
    made.headers.update(ALWAYS)
    made.headers["Cache-Control"] = "no-store"
    if status == 503:
        made.headers["Retry-After"] = str(RETRY_AFTER_S)
    return made


def told(handler: Handler) -> Handler:
    """The handler with each of its errors told as a problem."""

    async def answer(request: web.BaseRequest) -> web.StreamResponse:
        try:
            return await handler(request)
        except Exception as error:
            made = _of(error, request)
        if request.writer.output_size and request.transport:
            # An answer was begun: cutting it off is the only way left to say that it is not whole.
            request.transport.abort()
        return made

    return answer


def _of(error: Exception, request: web.BaseRequest) -> web.Response:
    path = request.rel_url.raw_path
    if isinstance(error, web.HTTPException):
        return _of_http(error, path)
    if isinstance(error, Problem):
        return response(error.status, error.detail, path, **error.more)
    if isinstance(error, RemitError | TimeoutError):
        return _of_remit(error, path)
    if isinstance(error, web.RequestPayloadError | ConnectionError):
        # The client broke its own body off, or is gone: whoever is left reads this.
        return response(400, f"the request's body cannot be read: {type(error).__name__}", path)
    log.error("%s %s failed", request.method, path[:INSTANCE_CHARS_MAX], exc_info=error)
    return response(500, "this is a bug of the gateway; its log says more", path)


def _of_remit(error: RemitError | TimeoutError, path: str) -> web.Response:
    if isinstance(error, TimeoutError):
        return response(503, "NATS or the registry did not answer in time", path)
    status = 500
    if isinstance(error, Malformed):
        status = 400
    elif isinstance(error, Refused):
        status = 403
    elif isinstance(error, NotFound):
        status = 404
    elif isinstance(error, AlreadySaid):
        status = 409
    elif isinstance(error, Unavailable):
        status = 503
    if status >= 500:
        log.warning("%s: %s", path[:INSTANCE_CHARS_MAX], error)
    return response(status, error.message, path, field=error.field)


def _of_http(error: web.HTTPException, path: str) -> web.Response:
    if isinstance(error, web.HTTPMethodNotAllowed):
        allowed = ", ".join(sorted(error.allowed_methods))
        made = response(405, f"{path[:INSTANCE_CHARS_MAX]} takes {allowed}", path)
        made.headers["Allow"] = allowed
        return made
    detail = error.text or error.reason
    if error.status == 404:
        detail = f"{path[:INSTANCE_CHARS_MAX]} is no path of this gateway"
    return response(error.status, detail, path)

"""What a request must be before any handler sees it: meant for this host, and not sent by somebody else's web page.

A gateway on loopback has no password, so every page in the operator's browser can reach it. Three things keep such
pages out. A page of another name that was re-bound to 127.0.0.1 still sends its own name as `Host`: 421. A page of
another origin says so in `Sec-Fetch-Site` or `Origin`, and no browser lets it lie: 403 for whatever changes
something. And a browser's body must be `application/json`, which no form can send: 415. Nothing is ever answered
with CORS headers, so other origins cannot read what they ask for.
"""

import ipaddress
import re

from aiohttp import web

from services.gateway.problems import Problem

SAFE_METHODS = frozenset(("GET", "HEAD", "OPTIONS"))

# host or [v6], and a port; user info, paths and spaces are no part of a Host header.
_HOST = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)(?::([0-9]{1,5}))?")


def check(request: web.BaseRequest, hosts: frozenset[str]) -> None:
    """Raise the `Problem` of a request that no handler shall see; `hosts` are the names beside loopback."""
    given = request.headers.getall("Host", [])
    match = _HOST.fullmatch(given[0]) if len(given) == 1 else None
    if match is None:
        raise Problem(400, "a request needs one Host header with a name and perhaps a port", field="Host")
    name = match.group(1).lower()
    if not is_loopback(name) and name not in hosts:
        raise Problem(421, f"{name[:80]} is not loopback; REMIT_HTTP_HOSTS names the hosts that may be asked for")
    if not str(request.raw_path).startswith("/") or request.raw_path.startswith("//"):
        raise Problem(400, "the request's target must be a path")
    if request.method not in SAFE_METHODS:
        _from_here(request, given[0].lower())


def _from_here(request: web.BaseRequest, host: str) -> None:
    """Refuse what another origin's page sends. `same-site` is another port of this machine: somebody else, too."""
    site = request.headers.get("Sec-Fetch-Site", "none")
    if site not in ("same-origin", "none"):
        raise Problem(403, f"a {site[:20]} page may not do this", field="Sec-Fetch-Site")
    origin = request.headers.get("Origin")
    if origin is not None and origin.lower() not in (f"http://{host}", f"https://{host}"):
        raise Problem(403, f"a page of {origin[:80]} may not do this", field="Origin")


def is_loopback(name: str) -> bool:
    """Whether a Host header's name can only mean this machine."""
    if name == "localhost" or name.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(name.strip("[]")).is_loopback
    except ValueError:
        return False

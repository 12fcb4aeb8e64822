"""Where the container engine answers, read from DOCKER_HOST as the docker CLI reads it. Pure.

A form that cannot be spoken here (ssh, TLS, pipes) is no reason to have no agent: files can be read without
an engine, so the address then carries its trouble, and whoever asks the engine is told it.
"""

from collections.abc import Mapping
from urllib.parse import urlsplit

from msgspec import Struct

DEFAULT = "unix:///var/run/docker.sock"


class EngineAddress(Struct, frozen=True):
    """`base_url` is the docker package's form; `http_url` and `socket_path` are for plain HTTP."""

    base_url: str = ""
    http_url: str = ""
    socket_path: str | None = None
    trouble: str | None = None


def engine_address(environment: Mapping[str, str]) -> EngineAddress:
    """Return the engine's address, or its trouble."""
    url = environment.get("DOCKER_HOST") or DEFAULT
    if url.startswith("unix://"):
        path = url.removeprefix("unix://")
        return EngineAddress(base_url=f"unix://{path}", http_url="http://docker", socket_path=path)
    if environment.get("DOCKER_TLS_VERIFY"):
        return EngineAddress(trouble="DOCKER_TLS_VERIFY is not supported: use a unix socket or a local proxy")
    try:
        parts = urlsplit(url)
        host = parts.hostname
    except ValueError:
        host = None
    if not host or parts.scheme not in ("tcp", "http"):
        return EngineAddress(trouble=f"DOCKER_HOST must be unix:// or tcp://, not {url.partition('//')[0]!r}")
    # without what stands before an @: nothing here speaks passwords, and none shall come into a log
    place = parts.netloc.rpartition("@")[2]
    return EngineAddress(base_url=f"tcp://{place}", http_url=f"http://{place}")

"""Where the container engine answers, read from DOCKER_HOST as the docker CLI reads it. Pure."""

from collections.abc import Mapping
from urllib.parse import urlsplit

from msgspec import Struct

from shared.errors import Malformed

DEFAULT = "unix:///var/run/docker.sock"


class EngineAddress(Struct, frozen=True):
    """`base_url` is the docker package's form; `http_url` and `socket_path` are for plain HTTP."""

    base_url: str
    http_url: str
    socket_path: str | None = None


def engine_address(environment: Mapping[str, str]) -> EngineAddress:
    """Return the engine's address; Malformed for forms that the log reader cannot speak (ssh, TLS, pipes)."""
    url = environment.get("DOCKER_HOST") or DEFAULT
    if url.startswith("unix://"):
        path = url.removeprefix("unix://")
        return EngineAddress(base_url=f"unix://{path}", http_url="http://docker", socket_path=path)
    if environment.get("DOCKER_TLS_VERIFY"):
        raise Malformed("DOCKER_TLS_VERIFY is not supported: use a unix socket or a local proxy", field="DOCKER_HOST")
    parts = urlsplit(url)
    if parts.scheme not in ("tcp", "http") or not parts.hostname:
        raise Malformed(f"DOCKER_HOST must be unix:// or tcp://, not {parts.scheme or url!r}", field="DOCKER_HOST")
    return EngineAddress(base_url=f"tcp://{parts.netloc}", http_url=f"http://{parts.netloc}")

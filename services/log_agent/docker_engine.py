"""The container engine's inventory, through the `docker` package. The only file that imports it.

The package's calls block, so each is made in one of the engine's own threads, with a client of its own: the package's
HTTP session is not made for several threads, and one that hangs shall hold up no other. The package's own timeout
counts from byte to byte, so the whole of a call has a deadline here.

What the engine says is read into the shapes below, and what does not fit them is an Unavailable like any other
failure: the engine may come and go, be another one behind a proxy, or lie.
"""

from collections.abc import Callable
from contextlib import closing
from functools import partial
from typing import Annotated, Any, TypeVar

import docker
import docker.errors
import msgspec
import requests.exceptions
from msgspec import Struct

from services.log_agent.engine_address import EngineAddress
from services.log_agent.engine_threads import EngineThreads
from services.log_agent.inventory import service_info
from shared.errors import NotFound, Unavailable
from shared.logs import EngineInfo, ServiceInfo
from shared.text import as_text

TIMEOUT_S = 10  # from byte to byte: gives a hung engine's thread back, long after the call was given up
CALL_S = 4.0  # for the whole of a call: under the 5 s that a requester waits, so that it hears of a slow engine
INSPECT_S = 8.0  # for many containers, one by one; the task that asks for them waits 10 s

T = TypeVar("T")
Shape = TypeVar("Shape")


class _Component(Struct, rename="pascal"):
    name: str | None = None


class _Version(Struct, rename="pascal"):
    platform: _Component | None = None
    components: list[_Component] | None = None
    version: str = ""
    api_version: str = ""


class _Listed(Struct, rename="pascal"):
    id: str
    names: list[str] | None = None
    image: str | None = None
    state: str | None = None


class _Config(Struct, rename="pascal"):
    tty: bool = False


class _State(Struct, rename="pascal"):
    running: bool = False


class _Inspected(Struct, rename="pascal"):
    id: Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{12,64}$")]  # it is to stand in a path and in a cursor
    name: str
    config: _Config | None = None
    state: _State | None = None


class _Network(Struct, rename="pascal"):
    name: str | None = None
    driver: str | None = None


class ContainerName(Struct, frozen=True):
    """A container as it stands in the engine's list."""

    name: str
    id: str
    image: str
    state: str


class Container(Struct, frozen=True):
    """What reading a container's log needs to know of it."""

    name: str
    id: str
    tty: bool
    running: bool


class DockerEngine:
    """One engine, asked off the event loop; whatever it does, a call ends within CALL_S, or INSPECT_S."""

    def __init__(self, address: EngineAddress) -> None:
        self._address = address
        self._threads = EngineThreads()

    async def overview(self) -> tuple[EngineInfo, list[ContainerName]]:
        """Return what the engine calls itself, and every container as `names` does."""

        def ask(client: Any) -> tuple[EngineInfo, list[ContainerName]]:
            said = _read(client.version, _Version)
            called = [each.name for each in [said.platform, *(said.components or [])] if each and each.name]
            listed = _read(lambda: client.containers(all=True), list[_Listed])
            info = EngineInfo(
                name=called[0] if called else "container engine",
                version=said.version,
                api_version=said.api_version,
                containers=len(listed),
            )
            return info, _names(listed)

        return await self._call(ask, CALL_S)

    async def names(self) -> list[ContainerName]:
        """Return every container, running or not, in the order of their names."""

        def ask(client: Any) -> list[ContainerName]:
            return _names(_read(lambda: client.containers(all=True), list[_Listed]))

        return await self._call(ask, CALL_S)

    async def container(self, name: str) -> Container:
        """Return the container of exactly this name; NotFound, also when `name` is an id or a part of one."""

        def ask(client: Any) -> Container:
            try:
                found = _read(lambda: client.inspect_container(name), _Inspected)
            except docker.errors.NotFound as error:
                raise NotFound(f"there is no container named {name}", field="source") from error
            if found.name.removeprefix("/") != name:
                raise NotFound(f"there is no container named {name}", field="source")
            return Container(
                name=name,
                id=found.id,
                tty=found.config is not None and found.config.tty,
                running=found.state is not None and found.state.running,
            )

        return await self._call(ask, CALL_S)

    async def services(self, names: list[ContainerName]) -> list[ServiceInfo]:
        """Return the inventory of these containers; one that is gone in the meantime is left out."""

        def ask(client: Any) -> list[ServiceInfo]:
            networks = _read(client.networks, list[_Network])
            drivers = {each.name: each.driver or "" for each in networks if each.name}
            found = []
            for each in names:
                try:
                    inspected = _read(partial(client.inspect_container, each.id), dict[str, Any])
                except docker.errors.NotFound:
                    continue
                service = service_info(inspected, drivers)
                # renamed since it was listed: nobody has allowed it under its new name
                if service.name == each.name:
                    found.append(service)
            return found

        return await self._call(ask, INSPECT_S)

    def close(self) -> None:
        """Ask nothing more; waits for no call that hangs."""
        self._threads.close()

    async def _call(self, ask: Callable[[Any], T], within_s: float) -> T:
        if self._address.trouble:
            raise Unavailable(self._address.trouble)
        return await self._threads.run(lambda: self._answer(ask), within_s)

    def _answer(self, ask: Callable[[Any], T]) -> T:
        def connect() -> docker.APIClient:
            return docker.APIClient(self._address.base_url, version="auto", timeout=TIMEOUT_S)

        try:
            with closing(_read(connect, docker.APIClient)) as client:
                answer = ask(client)
        except docker.errors.NotFound as error:
            raise Unavailable(f"the container engine refused: {_short(error.explanation or error)}") from error
        try:
            msgspec.json.encode(answer)
        except ValueError as error:  # half a surrogate pair
            raise Unavailable("the container engine's answer cannot be read: it holds what cannot be said") from error
        return answer


def _read(call: Callable[[], Any], shape: type[Shape]) -> Shape:
    """Return what the engine says as this shape; Unavailable when it says nothing, or something else.

    A 404 passes as the package's own NotFound: only the caller knows what was not there.
    """
    try:
        return msgspec.convert(call(), shape)
    except docker.errors.NotFound:
        raise
    except docker.errors.APIError as error:
        raise Unavailable(f"the container engine refused: {_short(error.explanation or error)}") from error
    except requests.exceptions.InvalidJSONError as error:
        raise Unavailable("the container engine's answer cannot be read: it is not JSON") from error
    except (docker.errors.DockerException, requests.exceptions.RequestException, OSError) as error:
        raise Unavailable(f"the container engine does not answer: {_reason(error)}") from error
    except msgspec.ValidationError as error:
        raise Unavailable(f"the container engine's answer cannot be read: {_short(error)}") from error
    except (LookupError, TypeError, AttributeError, ValueError, RecursionError) as error:
        # the package looks into some answers itself, and expects what they should be
        raise Unavailable(f"the container engine's answer cannot be read: {type(error).__name__}") from error


def _names(listed: list[_Listed]) -> list[ContainerName]:
    found = [ContainerName(_own_name(each), each.id, each.image or "", each.state or "") for each in listed]
    return sorted((each for each in found if each.name), key=lambda each: each.name)


def _own_name(listed: _Listed) -> str:
    """Return the name that is not a link's alias: `/web`, and not `/proxy/web`."""
    for name in listed.names or []:
        if name.count("/") == 1:
            return name.removeprefix("/")
    return ""


def _reason(error: BaseException) -> str:
    """Return the innermost cause in words: the outer ones are the package's layers."""
    cause: BaseException = error
    while isinstance(cause.__cause__ or cause.__context__, BaseException):
        cause = cause.__cause__ or cause.__context__ or cause
    return _short(getattr(cause, "strerror", None) or cause)


def _short(said: object) -> str:
    return as_text(str(said)[:200]) or type(said).__name__

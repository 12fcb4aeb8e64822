"""The container engine's inventory, through the `docker` package. The only file that imports it.

Every call blocks, so the service makes them in threads. The engine may come and go: a client is made on the
first call and thrown away after a failure, and each failure is an Unavailable that says what the engine said.
"""

import threading
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import docker
import docker.errors
import requests.exceptions
from msgspec import Struct

from services.log_agent.engine_address import EngineAddress
from services.log_agent.inventory import service_info
from shared.errors import NotFound, Unavailable
from shared.logs import EngineInfo, ServiceInfo

TIMEOUT_S = 10  # an engine under load answers inspect in a second or two; a hung one never does

T = TypeVar("T")


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
    """One engine, asked by one thread at a time: the package's HTTP session is not made for more."""

    def __init__(self, address: EngineAddress) -> None:
        self._address = address
        self._client: Any = None
        self._lock = threading.Lock()

    def info(self) -> EngineInfo:
        """Return what the engine calls itself, and how many containers it has."""

        def ask(client: Any) -> EngineInfo:
            version = client.version()
            platform = (version.get("Platform") or {}).get("Name") or ""
            components = version.get("Components") or []
            name = platform or (components[0].get("Name") if components else "") or "container engine"
            return EngineInfo(
                name=str(name),
                version=str(version.get("Version", "")),
                api_version=str(version.get("ApiVersion", "")),
                containers=len(client.containers(all=True)),
            )

        return self._call(ask)

    def names(self) -> list[ContainerName]:
        """Return every container, running or not, in the order of their names."""

        def ask(client: Any) -> list[ContainerName]:
            found = [
                ContainerName(_own_name(each), each["Id"], str(each.get("Image", "")), str(each.get("State", "")))
                for each in client.containers(all=True)
            ]
            return sorted((each for each in found if each.name), key=lambda each: each.name)

        return self._call(ask)

    def container(self, name: str) -> Container:
        """Return the container of exactly this name; NotFound, also when `name` is an id or a part of one."""

        def ask(client: Any) -> Container:
            found: Mapping[str, Any] = client.inspect_container(name)
            if str(found.get("Name", "")).removeprefix("/") != name:
                raise NotFound(f"there is no container named {name}", field="source")
            return Container(
                name=name,
                id=found["Id"],
                tty=bool((found.get("Config") or {}).get("Tty")),
                running=bool((found.get("State") or {}).get("Running")),
            )

        try:
            return self._call(ask)
        except docker.errors.NotFound as error:
            raise NotFound(f"there is no container named {name}", field="source") from error

    def services(self, names: list[ContainerName]) -> list[ServiceInfo]:
        """Return the inventory of these containers; one that is gone in the meantime is left out."""

        def ask(client: Any) -> list[ServiceInfo]:
            drivers = {str(each["Name"]): str(each.get("Driver", "")) for each in client.networks()}
            found = []
            for each in names:
                try:
                    inspected = client.inspect_container(each.id)
                except docker.errors.NotFound:
                    continue
                service = service_info(inspected, drivers)
                # renamed since it was listed: nobody has allowed it under its new name
                if service.name == each.name:
                    found.append(service)
            return found

        return self._call(ask)

    def close(self) -> None:
        """Let go of the connection."""
        with self._lock:
            self._drop()

    def _call(self, ask: Callable[[Any], T]) -> T:
        if self._address.trouble:
            raise Unavailable(self._address.trouble)
        with self._lock:
            try:
                if self._client is None:
                    self._client = docker.APIClient(base_url=self._address.base_url, version="auto", timeout=TIMEOUT_S)
                return ask(self._client)
            except docker.errors.NotFound:
                raise
            except (docker.errors.DockerException, requests.exceptions.RequestException, OSError) as error:
                self._drop()
                raise Unavailable(f"the container engine does not answer: {_reason(error)}") from error

    def _drop(self) -> None:
        client, self._client = self._client, None
        if client is not None:
            client.close()


def _own_name(listed: Mapping[str, Any]) -> str:
    """Return the name that is not a link's alias: `/web`, and not `/proxy/web`."""
    for name in listed.get("Names") or []:
        if str(name).count("/") == 1:
            return str(name).removeprefix("/")
    return ""


def _reason(error: BaseException) -> str:
    """Return the innermost cause in words: the outer ones are the package's layers."""
    cause: BaseException = error
    while isinstance(cause.__cause__ or cause.__context__, BaseException):
        cause = cause.__cause__ or cause.__context__ or cause
    return (getattr(cause, "strerror", None) or str(cause) or type(cause).__name__)[:200]

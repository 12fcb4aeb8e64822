"""The words of the service map: services.json as programs read it."""

from typing import Literal

from msgspec import Struct, field

from shared.logs import ServiceInfo

Reason = Literal["depends_on", "link", "network_mode", "published_port", "shared_network"]
Status = Literal["success", "partial", "no_services_available"]

DEFAULT_NETWORKS = frozenset({"bridge", "host", "none", "ingress", "docker_gwbridge", "podman"})


class MapService(ServiceInfo, frozen=True, kw_only=True):
    """A container, and the host that it runs on."""

    host: str


class MapEdge(Struct, frozen=True, kw_only=True):
    """One reason why two services belong together. `from` and `to` are service ids, or `host:HOST`."""

    from_: str = field(name="from")
    to: str
    reason: Reason
    detail: str
    host: str
    from_name: str
    to_name: str


class MapHost(Struct, frozen=True, kw_only=True):
    """What a host answered."""

    host: str
    service_count: int
    engine_error: str | None = None


class ServiceMapDocument(Struct, frozen=True, kw_only=True):
    """services.json: `partial` when a host or its engine did not answer while others did."""

    status: Status
    timestamp: str
    service_count: int
    services: list[MapService]
    edges: list[MapEdge]
    hosts: list[MapHost]
    missing_hosts: list[str]
    notes: list[str] = []


def user_networks(service: ServiceInfo) -> list[str]:
    """Return the names of the service's networks that say something about it."""
    return [network.name for network in service.networks if network.name not in DEFAULT_NETWORKS]

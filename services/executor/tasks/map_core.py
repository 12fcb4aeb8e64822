"""What runs where, and what leads to what: the document of the task service_map. Pure.

An edge is said only when both of its ends are in the map and the engine's own words prove it; `reason` says
how:

| reason | from | to | proof |
|---|---|---|---|
| `depends_on` | the dependent | what it waits for | compose's label, within one project on one host |
| `link` | the container | the linked one | the engine's legacy links |
| `network_mode` | the container | whose network it uses | `container:ID` |
| `published_port` | `host:HOST` | the container | a port bound on the host |
| `shared_network` | one (names in order) | the other | both on one user-defined network |

Everybody is on `bridge`, `host` or `none`, so these say nothing. The same replies give the same document,
in whatever order they came.
"""

from collections.abc import Iterable, Sequence
from itertools import combinations

import msgspec

from services.executor.tasks.map_drawing import mermaid
from services.executor.tasks.map_words import (
    MapEdge,
    MapHost,
    MapService,
    Reason,
    ServiceMapDocument,
    user_networks,
)
from shared.logs import ServicesReply

__all__ = ["assemble", "mermaid"]

NETWORK_PAIRS_MAX = 10_000  # a network of 142 members has as many pairs; beyond it nobody reads them


def assemble(replies: Sequence[ServicesReply], missing_hosts: Iterable[str], *, at: str) -> ServiceMapDocument:
    """Return the map of all hosts that answered; `at` is the time that it is of."""
    services = _services(replies)
    notes: list[str] = []
    edges: list[MapEdge] = []
    for host in sorted({service.host for service in services}):
        here = [service for service in services if service.host == host]
        edges += _depends_on(here) + _links(here) + _network_modes(here) + _published(here)
        edges += _shared_networks(here, notes)
    answered = {reply.host for reply in replies}
    missing = sorted(set(missing_hosts) - answered)
    hosts = _hosts(replies, services)
    troubled = bool(missing) or any(host.engine_error for host in hosts)
    return ServiceMapDocument(
        status="no_services_available" if not services else "partial" if troubled else "success",
        timestamp=at,
        service_count=len(services),
        services=services,
        edges=_each_once(edges),
        hosts=hosts,
        missing_hosts=missing,
        notes=notes,
    )


def _services(replies: Sequence[ServicesReply]) -> list[MapService]:
    """Return every container once a host: two answers for one host may name it twice."""
    found: dict[tuple[str, str], MapService] = {}
    for reply in replies:
        for service in reply.services:
            whole = MapService(host=reply.host, **msgspec.structs.asdict(service))
            key = (reply.host, service.id)
            if key not in found or msgspec.json.encode(whole) < msgspec.json.encode(found[key]):
                found[key] = whole
    return sorted(found.values(), key=lambda service: (service.host, service.name, service.id))


def _hosts(replies: Sequence[ServicesReply], services: Sequence[MapService]) -> list[MapHost]:
    found: dict[str, MapHost] = {}
    for reply in sorted(replies, key=lambda reply: (reply.host, reply.engine_error or "")):
        found[reply.host] = MapHost(
            host=reply.host,
            service_count=sum(service.host == reply.host for service in services),
            engine_error=reply.engine_error,
        )
    return list(found.values())


def _depends_on(here: Sequence[MapService]) -> list[MapEdge]:
    return [
        _edge(service, other, "depends_on", wanted.condition)
        for service in here
        for wanted in service.depends_on
        for other in here
        if service.compose_project is not None
        and other.compose_project == service.compose_project
        and other.compose_service == wanted.service
        and other.id != service.id
    ]


def _links(here: Sequence[MapService]) -> list[MapEdge]:
    return [
        _edge(service, other, "link", f"as {link.alias}" if link.alias else "")
        for service in here
        for link in service.links
        for other in here
        if other.name == link.container and other.id != service.id
    ]


def _network_modes(here: Sequence[MapService]) -> list[MapEdge]:
    found = []
    for service in here:
        kind, _, target = service.network_mode.partition(":")
        if kind != "container" or not target:
            continue
        found += [
            _edge(service, other, "network_mode", "uses its network")
            for other in here
            if target in (other.id, other.name) and other.id != service.id
        ]
    return found


def _published(here: Sequence[MapService]) -> list[MapEdge]:
    found = []
    for service in here:
        bound: dict[tuple[int, int, str], set[str]] = {}
        for port in service.ports:
            if port.host_port is not None:
                key = (port.host_port, port.container_port, port.protocol)
                address = f"[{port.host_ip}]" if ":" in (port.host_ip or "") else port.host_ip or "0.0.0.0"
                bound.setdefault(key, set()).add(f"{address}:{port.host_port}")
        for (_, container_port, protocol), addresses in sorted(bound.items()):
            found.append(
                MapEdge(
                    from_=f"host:{service.host}",
                    to=service.id,
                    reason="published_port",
                    detail=f"{', '.join(sorted(addresses))} to {container_port}/{protocol}",
                    host=service.host,
                    from_name=service.host,
                    to_name=service.name,
                )
            )
    return found


def _shared_networks(here: Sequence[MapService], notes: list[str]) -> list[MapEdge]:
    members: dict[str, list[MapService]] = {}
    for service in here:
        for name in user_networks(service):
            members.setdefault(name, []).append(service)
    found: list[MapEdge] = []
    for name, together in sorted(members.items()):
        count = len(together) * (len(together) - 1) // 2
        if len(found) + count > NETWORK_PAIRS_MAX:
            notes.append(f"network {name} of {here[0].host} has {len(together)} members: its edges are left out")
            continue
        found += [_edge(one, other, "shared_network", name) for one, other in combinations(together, 2)]
    return found


def _edge(one: MapService, other: MapService, reason: Reason, detail: str) -> MapEdge:
    return MapEdge(
        from_=one.id,
        to=other.id,
        reason=reason,
        detail=detail,
        host=one.host,
        from_name=one.name,
        to_name=other.name,
    )


def _each_once(edges: Iterable[MapEdge]) -> list[MapEdge]:
    keyed = {(e.host, e.from_name, e.to_name, e.reason, e.detail, e.from_, e.to): e for e in edges}
    return [keyed[key] for key in sorted(keyed)]

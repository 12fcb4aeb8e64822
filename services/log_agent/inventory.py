"""From the engine's inspect answers to the words of service_map. Pure; engines differ, so every part may be
missing and nothing that is missing is an error.

The environment of a container is never read. Labels whose key looks like a secret's are dropped, and what
looks like a secret inside a value is redacted.
"""

import re
from collections.abc import Mapping
from typing import Any

from shared.logs import DependsOn, LinkInfo, MountInfo, NetworkInfo, PortInfo, ServiceInfo
from shared.redact import redact

LABELS_MAX = 64  # enough for compose and a proxy's rules; a reply holds many containers
LABEL_CHARS_MAX = 512
NAMES_MAX = 256  # ports, mounts, networks of one container: beyond it the reply is no longer for people

_NEVER = "0001-01-01T00:00:00Z"
_COMPOSE = "com.docker.compose."
_SECRET_KEY = re.compile(
    r"pass(word|wd|phrase|code)?($|[^a-z])|secret|token|credential|private|auth($|[^a-z])|api[._-]?key|access[._-]?key"
    r"|(^|[^a-z])(key|pwd)($|[^a-z])|basicauth|cookie|dsn($|[^a-z])",
    re.IGNORECASE,
)

Inspected = Mapping[str, Any]


def service_info(inspected: Inspected, drivers: Mapping[str, str]) -> ServiceInfo:
    """Return what is told of one container; `drivers` maps network names to their drivers."""
    config, state, host = (_map(inspected, key) for key in ("Config", "State", "HostConfig"))
    labels = {str(key): str(value) for key, value in _map(config, "Labels").items()}
    return ServiceInfo(
        id=_text(inspected, "Id"),
        name=name_of(inspected),
        image=redact(_text(config, "Image")),
        state=_text(state, "Status"),
        health=_text(_map(state, "Health"), "Status") or None,
        started_at=_moment(_text(state, "StartedAt")),
        restart_count=_number(inspected.get("RestartCount")) or 0,
        ports=_ports(inspected),
        networks=_networks(inspected, drivers),
        network_mode=_text(host, "NetworkMode"),
        mounts=_mounts(inspected),
        compose_project=labels.get(_COMPOSE + "project"),
        compose_service=labels.get(_COMPOSE + "service"),
        depends_on=depends_on(labels.get(_COMPOSE + "depends_on", "")),
        links=_links(host),
        labels=safe_labels(labels),
    )


def name_of(inspected: Inspected) -> str:
    """Return the container's name without the engine's leading slash."""
    return _text(inspected, "Name").removeprefix("/")


def depends_on(label: str) -> list[DependsOn]:
    """Read compose's label, `db:service_healthy:false,cache:service_started:true`; older ones name services
    only.
    """
    found = []
    for item in label.split(","):
        service, _, rest = item.strip().partition(":")
        if service:
            found.append(DependsOn(service, rest.partition(":")[0]))
    return found[:NAMES_MAX]


def safe_labels(labels: Mapping[str, str]) -> dict[str, str]:
    """Return the labels that are no secrets, sorted, values bounded and redacted."""
    kept: dict[str, str] = {}
    for key in sorted(labels):
        if _SECRET_KEY.search(key) or len(key) > LABEL_CHARS_MAX:
            continue
        value = labels[key]
        # the key goes along: a value can be told to be a secret by the name that it stands under
        shown = redact(value)
        if redact(f"{key}={value}") != f"{key}={value}" and shown == value:
            continue
        kept[key] = shown if len(shown) <= LABEL_CHARS_MAX else shown[:LABEL_CHARS_MAX] + "…"
        if len(kept) == LABELS_MAX:
            break
    return kept


def _ports(inspected: Inspected) -> list[PortInfo]:
    """Published ports come with their bindings, exposed ones without; a stopped container has only its
    wishes.
    """
    settings, host = _map(inspected, "NetworkSettings"), _map(inspected, "HostConfig")
    bound = dict(_map(_map(inspected, "Config"), "ExposedPorts"))
    bound.update(_map(host, "PortBindings"))
    bound.update(_map(settings, "Ports"))
    found: list[PortInfo] = []
    for key in sorted(bound):
        number, _, protocol = str(key).partition("/")
        port = _number(number)
        if port is None:
            continue
        bindings = [each for each in bound[key] if isinstance(each, Mapping)] if isinstance(bound[key], list) else []
        for binding in bindings or [{}]:
            host_port = _number(binding.get("HostPort"))
            found.append(
                PortInfo(
                    container_port=port,
                    protocol=protocol or "tcp",
                    host_ip=_text(binding, "HostIp") or None,
                    host_port=host_port or None,  # 0 asks for any free port, which a stopped container has not got
                )
            )
    return sorted(found, key=lambda p: (p.container_port, p.protocol, p.host_ip or "", p.host_port or 0))[:NAMES_MAX]


def _networks(inspected: Inspected, drivers: Mapping[str, str]) -> list[NetworkInfo]:
    found = []
    for name, details in sorted(_map(_map(inspected, "NetworkSettings"), "Networks").items()):
        network = details if isinstance(details, Mapping) else {}
        aliases = network.get("Aliases")
        found.append(
            NetworkInfo(
                name=str(name),
                id=_text(network, "NetworkID"),
                driver=drivers.get(str(name)),
                ip=_text(network, "IPAddress") or None,
                aliases=sorted({str(alias) for alias in aliases})[:NAMES_MAX] if isinstance(aliases, list) else [],
            )
        )
    return found[:NAMES_MAX]


def _mounts(inspected: Inspected) -> list[MountInfo]:
    mounts = inspected.get("Mounts")
    found = [
        MountInfo(
            type=_text(mount, "Type"),
            source=_text(mount, "Name") or _text(mount, "Source"),
            destination=_text(mount, "Destination"),
            rw=mount.get("RW") is True,
        )
        for mount in (mounts if isinstance(mounts, list) else [])
        if isinstance(mount, Mapping)
    ]
    return sorted(found, key=lambda mount: mount.destination)[:NAMES_MAX]


def _links(host: Mapping[str, Any]) -> list[LinkInfo]:
    links = host.get("Links")
    found = []
    for link in links if isinstance(links, list) else []:
        target, _, alias = str(link).partition(":")
        found.append(LinkInfo(target.removeprefix("/"), alias.rpartition("/")[2]))
    return sorted(found, key=lambda link: (link.container, link.alias))[:NAMES_MAX]


def _map(of: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    value = of.get(key)
    return value if isinstance(value, Mapping) else {}


def _text(of: Mapping[str, Any], key: str) -> str:
    value = of.get(key)
    return value if isinstance(value, str) else ""


def _number(value: object) -> int | None:
    if isinstance(value, int):
        return value
    return int(value) if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) < 10 else None


def _moment(stamp: str) -> str | None:
    return None if not stamp or stamp == _NEVER else stamp

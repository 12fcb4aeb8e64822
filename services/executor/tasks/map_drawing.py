"""services.md: the service map as a Mermaid flowchart and tables, for people. Pure.

Names of containers and networks are others' words. In the diagram every node has an id of ours, and in
labels all but plain characters are written as Mermaid's `#code;`; in tables as HTML entities. Neither can
end a string, a fence or a cell. Mermaid refuses more than 500 edges or 50,000 characters, so a map that is
larger is drawn in part and says what is missing; a network is drawn as a node, because pairs grow with the
square of its members.
"""

import re
from collections.abc import Iterable, Sequence

from services.executor.tasks.map_words import MapEdge, MapService, ServiceMapDocument, user_networks

DRAWN_EDGES_MAX = 480
NODES_CHARS_MAX = 24_000
DRAWN_CHARS_MAX = 46_000
LABEL_CHARS_MAX = 60

LEGEND = (
    ("A --> B", "A depends on B (compose)"),
    ("A -.-> B", "A links to B"),
    ("A ==> B", "A uses B's network"),
    ("host --> A", "a port of the host leads to A"),
    ("A --- {{network}}", "A is on this network; all on it can reach each other"),
)

_ARROWS = {"depends_on": "-->", "link": "-.->", "network_mode": "==>", "published_port": "-->"}
_PLAIN = re.compile(r"[^A-Za-z0-9 _.:/@+,()-]")
_PLAIN_IN_CELL = re.compile(r"[^\w .:,/+()-]|_|(?<=:)/(?=/)|(?<=www)\.", re.ASCII)
_DOWN = frozenset({"exited", "dead", "created", "paused", "removing"})


def mermaid(document: ServiceMapDocument) -> str:
    """Return services.md."""
    parts = [f"# Services\n\n{_headline(document)}\n"]
    if document.services:
        drawn = _Drawing(document)
        parts.append("```mermaid\n" + "\n".join(drawn.lines()) + "\n```\n")
        if drawn.left_out:
            parts.append(f"The picture is too large to draw whole: {drawn.left_out} is left out.\n")
        parts.append(_table(("in the picture", "means"), [(f"`{sign}`", text) for sign, text in LEGEND]))
        parts.append(
            _table(
                ("service", "host", "project", "image", "state", "ports"),
                [_row(service) for service in document.services],
            )
        )
    troubles = [f"{host.host}: {host.engine_error}" for host in document.hosts if host.engine_error]
    troubles += [f"{host}: its log agent did not answer" for host in document.missing_hosts]
    if troubles or document.notes:
        parts.append("".join(f"- {_cell(text)}\n" for text in [*troubles, *document.notes]))
    return "\n".join(parts)


def label(text: str) -> str:
    """Return the text as the inside of a quoted Mermaid label."""
    shown = text if len(text) <= LABEL_CHARS_MAX else text[: LABEL_CHARS_MAX - 1] + "…"
    return _PLAIN.sub(lambda found: f"#{ord(found.group())};", shown)


class _Drawing:
    """The flowchart, and a count of what there was no room for."""

    def __init__(self, document: ServiceMapDocument) -> None:
        self.left_out = ""
        self._wanted = 0  # connections to draw, were there room for all of them and their ends
        self._document = document
        self._nodes: dict[tuple[str, str], str] = {}
        self._several_hosts = len({service.host for service in document.services}) > 1

    def lines(self) -> list[str]:
        nodes = self._services()
        edges = self._edges()
        room = DRAWN_CHARS_MAX - sum(len(line) + 1 for line in nodes)
        kept: list[str] = []
        drawn = 0
        for edge in edges:
            room -= sum(len(line) + 1 for line in edge)
            if room < 0 or drawn == DRAWN_EDGES_MAX:
                break
            kept += edge
            drawn += 1
        left = ((len(self._document.services) - len(self._nodes), "services"), (self._wanted - drawn, "connections"))
        self.left_out = " and ".join(f"{count} {word}" for count, word in left if count > 0)
        return ["flowchart LR", *nodes, *kept, "classDef down stroke-dasharray: 4 3,color:#888"]

    def _services(self) -> list[str]:
        lines: list[str] = []
        room = NODES_CHARS_MAX
        for group, services in self._groups():
            inside: list[str] = []
            for service in services:
                name = f"s{len(self._nodes)}"
                state = f"{service.state}, {service.health}" if service.health else service.state
                text = f'{name}["{label(service.name)}<br/>{label(state)}"]'
                text += ":::down" if service.state in _DOWN else ""
                room -= len(text) + 3
                if room < 0:
                    break
                self._nodes[(service.host, service.id)] = name
                inside.append(text)
            if not inside:
                continue
            if group is None:
                lines += inside
            else:
                lines += [f'subgraph g{len(lines)}["{label(group)}"]', *(f"  {each}" for each in inside), "end"]
        return lines

    def _groups(self) -> list[tuple[str | None, list[MapService]]]:
        groups: dict[tuple[str, str], list[MapService]] = {}
        for service in self._document.services:
            groups.setdefault((service.host, service.compose_project or ""), []).append(service)
        return [(self._title(host, project), each) for (host, project), each in sorted(groups.items())]

    def _title(self, host: str, project: str) -> str | None:
        if self._several_hosts:
            return f"{project} on {host}" if project else host
        return project or None

    def _edges(self) -> list[list[str]]:
        """Return each edge's lines: the edge itself after the node that it is the first to need."""
        others: dict[tuple[str, str], str] = {}
        drawn = [self._edge(edge, others) for edge in self._document.edges if edge.reason != "shared_network"]
        for service in self._document.services:
            node = self._nodes.get((service.host, service.id))
            for network in user_networks(service):
                if node is None:
                    drawn.append([])
                    continue
                key = (service.host, f"network {network}")
                before = [] if key in others else [f'n{len(others)}{{{{"{label(network)}"}}}}']
                drawn.append([*before, f"{node} --- {others.setdefault(key, f'n{len(others)}')}"])
        self._wanted = len(drawn)
        return [lines for lines in drawn if lines]

    def _edge(self, edge: MapEdge, others: dict[tuple[str, str], str]) -> list[str]:
        to = self._nodes.get((edge.host, edge.to))
        start = self._nodes.get((edge.host, edge.from_))
        before: list[str] = []
        if to is None:
            return []
        if edge.reason == "published_port":
            key = (edge.host, "host")
            if key not in others:
                before = [f'n{len(others)}(["host {label(edge.host)}"])']
            start = others.setdefault(key, f"n{len(others)}")
        if start is None:
            return []
        text = f'|"{label(edge.detail)}"|' if edge.detail else ""
        return [*before, f"{start} {_ARROWS[edge.reason]}{text} {to}"]


def _headline(document: ServiceMapDocument) -> str:
    hosts = len(document.hosts)
    count = document.service_count
    if not count:
        return f"No allow-listed container on {hosts} host{'' if hosts == 1 else 's'} ({document.timestamp})."
    services = "1 service" if count == 1 else f"{count} services"
    edges = "1 connection" if len(document.edges) == 1 else f"{len(document.edges)} connections"
    where = "1 host" if hosts == 1 else f"{hosts} hosts"
    return f"{services} on {where}, {edges} ({document.status}, {document.timestamp})."


def _row(service: MapService) -> tuple[str, ...]:
    ports = ", ".join(
        f"{port.host_port}:{port.container_port}/{port.protocol}"
        if port.host_port
        else f"{port.container_port}/{port.protocol}"
        for port in service.ports[:8]
    )
    state = f"{service.state} ({service.health})" if service.health else service.state
    cells = (service.name, service.host, service.compose_project or "", service.image, state, ports)
    return tuple(_cell(each) for each in cells)


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _cell(text: str) -> str:
    shown = text if len(text) <= 200 else text[:199] + "…"
    return _PLAIN_IN_CELL.sub(lambda found: f"&#{ord(found.group())};", shown)

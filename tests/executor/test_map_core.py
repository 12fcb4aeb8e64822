"""The service map says what the engines' words prove, in one order, and draws it so that nobody's name can
break it.
"""

import random
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.executor.tasks.map_core import NETWORK_PAIRS_MAX, assemble, mermaid
from services.executor.tasks.map_drawing import DRAWN_CHARS_MAX, DRAWN_EDGES_MAX, label
from services.executor.tasks.map_words import ServiceMapDocument
from shared.logs import DependsOn, LinkInfo, NetworkInfo, PortInfo, ServiceInfo, ServicesReply

AT = "2026-11-21T10:00:00Z"


def service(name: str, *, networks: tuple[str, ...] = (), **more: object) -> ServiceInfo:
    fields = {"id": f"id-{name}", "name": name, "image": "app:1", "state": "running", **more}
    return ServiceInfo(networks=[NetworkInfo(name=each) for each in networks], **fields)  # type: ignore[arg-type]


def mapped(*services: ServiceInfo, host: str = "tower", missing: tuple[str, ...] = ()) -> ServiceMapDocument:
    return assemble([ServicesReply(host=host, services=list(services))], missing, at=AT)


def edges(document: ServiceMapDocument) -> list[tuple[str, str, str, str]]:
    return [(edge.from_name, edge.reason, edge.to_name, edge.detail) for edge in document.edges]


def compose(name: str, of: str, **more: object) -> ServiceInfo:
    return service(name, compose_project=of, compose_service=name.rpartition("-")[2], **more)


def test_no_service_is_its_own_status() -> None:
    assert mapped().status == "no_services_available"
    assert assemble([], ["tower"], at=AT).status == "no_services_available"


def test_a_host_that_did_not_answer_makes_the_map_partial() -> None:
    document = mapped(service("web"), missing=("attic", "tower"))
    assert (document.status, document.missing_hosts) == ("partial", ["attic"])


def test_an_engine_that_did_not_answer_makes_the_map_partial() -> None:
    replies = [ServicesReply(host="a", services=[service("web")]), ServicesReply(host="b", engine_error="gone")]
    assert assemble(replies, [], at=AT).status == "partial"


def test_depends_on_is_within_one_project() -> None:
    wanted = [DependsOn("db", "service_healthy"), DependsOn("nowhere")]
    document = mapped(
        compose("shop-web", "shop", depends_on=wanted), compose("shop-db", "shop"), compose("blog-db", "blog")
    )
    assert edges(document) == [("shop-web", "depends_on", "shop-db", "service_healthy")]


def test_containers_without_a_project_depend_on_nothing() -> None:
    one = service("web", compose_service="web", depends_on=[DependsOn("db")])
    assert edges(mapped(one, service("db", compose_service="db"))) == []


def test_only_user_defined_networks_connect() -> None:
    nets = ("bridge", "host", "none", "back")
    document = mapped(service("a", networks=nets), service("b", networks=nets), service("c", networks=("bridge",)))
    assert edges(document) == [("a", "shared_network", "b", "back")]


def test_links_and_network_modes_lead_to_what_they_name() -> None:
    document = mapped(
        service("web", links=[LinkInfo("db", "database"), LinkInfo("gone")]),
        service("db"),
        service("sidecar", network_mode="container:id-web"),
        service("lost", network_mode="container:elsewhere"),
        service("plain", network_mode="host"),
    )
    assert edges(document) == [
        ("sidecar", "network_mode", "web", "uses its network"),
        ("web", "link", "db", "as database"),
    ]


def test_a_published_port_leads_from_the_host_once_for_all_its_addresses() -> None:
    ports = [PortInfo(container_port=80, protocol="tcp", host_ip=ip, host_port=8080) for ip in ("0.0.0.0", "::")] + [
        PortInfo(container_port=443, protocol="tcp")
    ]
    document = mapped(service("web", ports=ports))
    assert edges(document) == [("tower", "published_port", "web", "0.0.0.0:8080, [::]:8080 to 80/tcp")]
    assert document.edges[0].from_ == "host:tower" and document.edges[0].to == "id-web"


def test_hosts_are_apart_though_their_names_are_alike() -> None:
    replies = [ServicesReply(host=host, services=[service(n, networks=("back",)) for n in "ab"]) for host in "xy"]
    document = assemble(replies, [], at=AT)
    assert [(edge.host, edge.from_name, edge.to_name) for edge in document.edges] == [("x", "a", "b"), ("y", "a", "b")]


def test_the_order_of_the_answers_changes_nothing() -> None:
    replies = [
        ServicesReply(host=host, services=[service(name, networks=("back",), links=[LinkInfo("a")]) for name in "dbca"])
        for host in ("z", "x", "y")
    ]
    first = assemble(replies, ["m", "k"], at=AT)
    for seed in range(5):
        shuffled = random.Random(seed).sample(replies, len(replies))
        turned = [ServicesReply(host=r.host, services=r.services[::-1]) for r in shuffled]
        assert assemble(turned, ["k", "m"], at=AT) == first
        assert mermaid(assemble(turned, ["k", "m"], at=AT)) == mermaid(first)


def test_a_network_of_too_many_members_is_noted_and_not_squared() -> None:
    many = [service(f"s{i:03}", networks=("back",)) for i in range(150)]
    document = mapped(*many)
    assert len(document.edges) <= NETWORK_PAIRS_MAX and "back" in document.notes[0]


def test_the_drawing_groups_by_project_and_draws_each_reason() -> None:
    text = mermaid(
        mapped(
            compose("shop-web", "shop", networks=("back",), depends_on=[DependsOn("db", "service_started")]),
            compose("shop-db", "shop", networks=("back",), state="exited"),
            service("web", ports=[PortInfo(container_port=80, protocol="tcp", host_ip="::1", host_port=8080)]),
        )
    )
    assert 'subgraph g1["shop"]' in text or 'subgraph g0["shop"]' in text
    assert re.search(r's\d -->\|"service_started"\| s\d', text)
    assert re.search(r'n\d\{\{"back"\}\}\ns\d --- n\d\ns\d --- n\d', text)
    assert re.search(r'n\d\(\["host tower"\]\)\nn\d -->\|"#91;::1#93;:8080 to 80/tcp"\| s\d', text)
    assert ":::down" in text and "| in the picture | means |" in text


NASTY = '"]; click s0 "javascript:alert(1)"\n```\n<script>alert(1)</script> | [x](http://x) `code` end %% #quot; \u202e'


def test_names_cannot_break_out_of_the_drawing_or_the_tables() -> None:
    host = "to`wer|<b>"
    evil = service(
        NASTY,
        image=NASTY,
        state=NASTY,
        compose_project=NASTY,
        networks=(NASTY,),
        links=[LinkInfo("b", NASTY)],
        ports=[PortInfo(container_port=1, protocol=NASTY, host_ip=NASTY, host_port=1)],
    )
    text = mermaid(mapped(evil, service("b"), host=host, missing=(NASTY,)))
    assert text.count("```") == 2
    assert "<script" not in text
    assert '"]; click' not in text and "\u202e" not in text and "[x](" not in text
    table = text.split("```")[2]
    assert all(len(re.findall(r"(?<!\\)\|", line)) == 7 for line in table.splitlines() if line.startswith("| &"))


@given(st.text(max_size=100))
def test_a_label_is_one_line_of_plain_characters(text: str) -> None:
    assert re.fullmatch(r"[A-Za-z0-9 _.:/@+,()#;-]*", label(text))


@pytest.mark.parametrize("name", ["x", "é" * 60])
def test_a_map_too_large_to_draw_says_what_is_left_out(name: str) -> None:
    many = [service(f"{name}{i}", networks=tuple(f"n{i}-{k}" for k in range(3))) for i in range(400)]
    text = mermaid(mapped(*many))
    drawing = text.split("```")[1]
    assert len(drawing) < 50_000 and DRAWN_CHARS_MAX < 50_000
    assert len(re.findall(" --- ", drawing)) <= DRAWN_EDGES_MAX
    assert "is left out" in text and "connections" in text


def test_nothing_to_draw_says_so() -> None:
    text = mermaid(mapped(missing=("attic",)))
    assert "No allow-listed container" in text and "attic: its log agent did not answer" in text
    assert "```" not in text

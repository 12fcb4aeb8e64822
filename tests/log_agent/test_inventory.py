"""What is told of a container: what service_map needs, from any engine, and no secret."""

import json
import os
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.log_agent.docker_engine import ContainerName, DockerEngine
from services.log_agent.engine_address import engine_address
from services.log_agent.inventory import depends_on, safe_labels, service_info
from shared.errors import Unavailable
from shared.logs import DependsOn, LinkInfo, PortInfo
from tests.engine import engine

json_values: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
KEYS = ("Config", "State", "HostConfig", "NetworkSettings", "Mounts", "Name", "Id", "RestartCount")
INNER = ("Labels", "Links", "Ports", "Networks", "Health", "ExposedPorts", "PortBindings", "StartedAt", "Image", "web")


@given(
    st.dictionaries(
        st.sampled_from(KEYS), json_values | st.dictionaries(st.sampled_from(INNER), json_values, max_size=4)
    )
)
def test_whatever_an_engine_answers_is_read(inspected: dict[str, Any]) -> None:
    service_info(inspected, {})


def test_compose_s_label_names_services_and_their_conditions() -> None:
    assert depends_on("db:service_healthy:false,cache:service_started:true") == [
        DependsOn("db", "service_healthy"),
        DependsOn("cache", "service_started"),
    ]
    assert depends_on("db,cache") == [DependsOn("db"), DependsOn("cache")]
    assert depends_on("") == []


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("DB_PASSWORD", "x"),
        ("app.secret", "x"),
        ("github.token", "x"),
        ("api_key", "x"),
        ("traefik.http.middlewares.auth.basicauth.users", "ann:$apr1$x"),
        ("org.private-key", "x"),
        ("SENTRY_DSN", "x"),
    ],
)
def test_a_label_that_looks_secret_is_dropped(key: str, value: str) -> None:
    assert safe_labels({key: value}) == {}


def test_other_labels_stay_and_secrets_inside_them_are_redacted() -> None:
    kept = safe_labels(
        {
            "monkey": "banana",
            "keyboard": "qwerty",
            "com.docker.compose.project": "shop",
            "backup": "postgres://ann:hunter22@db/x",
            "note": "ghp_0123456789abcdefghijABCDEFGHIJ012345",
            "long": "é" * 1000,
        }
    )
    assert kept["monkey"] == "banana" and kept["keyboard"] == "qwerty"
    assert kept["com.docker.compose.project"] == "shop"
    assert "hunter22" not in json.dumps(kept) and "ghp_" not in json.dumps(kept)
    assert len(kept["long"]) == 513


def test_the_engine_s_address_is_read_as_the_docker_cli_reads_it() -> None:
    assert engine_address({}).socket_path == "/var/run/docker.sock"
    assert engine_address({"DOCKER_HOST": "unix:///run/x.sock"}).socket_path == "/run/x.sock"
    assert engine_address({"DOCKER_HOST": "tcp://127.0.0.1:2375"}).http_url == "http://127.0.0.1:2375"
    assert engine_address({"DOCKER_HOST": "tcp://ann:hunter22@proxy:2375"}).base_url == "tcp://proxy:2375"


@pytest.mark.parametrize("url", ["ssh://ann@x", "npipe:////./pipe/x", "tcp://", "x", "tcp://[::1"])
async def test_an_address_that_cannot_be_spoken_is_told_to_whoever_asks_the_engine(url: str) -> None:
    asked = DockerEngine(engine_address({"DOCKER_HOST": url}))
    with pytest.raises(Unavailable, match="DOCKER_HOST must be"):
        await asked.names()


@pytest.mark.docker
async def test_a_real_container_is_described_without_its_environment() -> None:
    with engine() as made:
        network = made.network(f"remit-net-{made.mark[:8]}")
        db = made.run("sleep 60", wait=False, network=network.name)
        web = made.run(
            "sleep 60",
            wait=False,
            network=network.name,
            links={db.name: "database"},
            ports={"80/tcp": ("127.0.0.1", None), "81/udp": None},
            environment={"PASSWORD": "hunter22"},
            labels={
                "com.docker.compose.project": "shop",
                "com.docker.compose.service": "web",
                "com.docker.compose.depends_on": "db:service_started:false",
                "api_token": "hunter22",
            },
            volumes={"/tmp": {"bind": "/data", "mode": "ro"}},
            healthcheck={"test": ["CMD", "/bin/true"], "interval": 10**9},
        )
        side = made.run("sleep 60", wait=False, network_mode=f"container:{web.id}")
        asked = DockerEngine(engine_address(os.environ))
        names = [each for each in await asked.names() if each.name in (db.name, web.name, side.name)]
        gone = ContainerName("gone", "0" * 64, "", "")
        found = {each.name: each for each in await asked.services([*names, gone])}
        asked.close()
    told = found[web.name]
    assert (told.state, told.compose_project, told.compose_service) == ("running", "shop", "web")
    assert told.health in ("starting", "healthy")
    assert [(each.name, each.driver) for each in told.networks] == [(network.name, "bridge")]
    assert told.networks[0].ip
    assert told.depends_on == [DependsOn("db", "service_started")]
    assert [(each.type, each.source, each.destination, each.rw) for each in told.mounts] == [
        ("bind", "/tmp", "/data", False)
    ]
    bound = {(each.container_port, each.protocol): each for each in told.ports}
    assert bound[(80, "tcp")].host_ip == "127.0.0.1" and bound[(80, "tcp")].host_port
    assert isinstance(bound[(81, "udp")], PortInfo)
    assert told.links in ([LinkInfo(db.name, "database")], [])  # on user-defined networks they become aliases
    assert found[side.name].network_mode == f"container:{web.id}" and found[side.name].networks == []
    assert "hunter22" not in repr(found)
    assert set(found) == {db.name, web.name, side.name}

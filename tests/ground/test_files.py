"""What stands at the root is true: the pins, the compose files, the licence, CI's script."""

import importlib.util
import json
import os
import re
import shutil
import subprocess
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
WANTED = [*PROJECT["dependencies"], *(one for extra in PROJECT["optional-dependencies"].values() for one in extra)]


def pins() -> dict[str, str]:
    found = {}
    for line in (ROOT / "constraints.txt").read_text().splitlines():
        requirement = Requirement(line)
        (only,) = requirement.specifier
        assert only.operator == "==", line
        found[canonicalize_name(requirement.name)] = only.version
    return found


def test_constraints_have_no_url() -> None:
    text = (ROOT / "constraints.txt").read_text()
    assert "://" not in text
    assert " @ " not in text
    assert not re.search(r"^\s*-", text, re.MULTILINE), "an option, such as an index"


@pytest.mark.parametrize("wanted", WANTED)
def test_a_dependency_has_a_pin_within_its_range(wanted: str) -> None:
    """Else: the recipe in docs/decisions/0002-installing.md."""
    requirement = Requirement(wanted)
    assert requirement.specifier.contains(pins()[canonicalize_name(requirement.name)])


def compose_commands() -> Iterator[list[str]]:
    if (docker := shutil.which("docker")) and subprocess.run(
        [docker, "compose", "version"], capture_output=True
    ).returncode == 0:
        yield [docker, "compose"]
    if standalone := shutil.which("docker-compose"):
        yield [standalone]


@pytest.mark.parametrize("files", [["compose.yaml"], ["compose.yaml", "compose.gpu.yaml"]])
def test_every_compose_here_reads_the_files(files: list[str]) -> None:
    commands = list(compose_commands())
    if not commands:
        pytest.skip("neither `docker compose` nor `docker-compose` is on this machine")
    for command in commands:
        named = [word for file in files for word in ("-f", file)]
        done = subprocess.run([*command, *named, "config", "-q"], cwd=ROOT, capture_output=True, text=True, timeout=60)
        assert (done.returncode, done.stderr) == (0, ""), command


@pytest.fixture(scope="module")
def services() -> dict[str, Any]:
    for command in compose_commands():
        if command[-1] == "compose":
            argv = [*command, "-f", "compose.yaml", "config", "--format", "json"]
            done = subprocess.run(argv, cwd=ROOT, capture_output=True, env=clean(), timeout=60, check=True)
            return dict(json.loads(done.stdout)["services"])
    pytest.skip("no Compose v2 on this machine")


def clean() -> dict[str, str]:
    """The environment without what a person may have set for compose.yaml."""
    return {name: value for name, value in os.environ.items() if not name.startswith("REMIT_")}


def test_compose_opens_loopback_ports_only(services: dict[str, Any]) -> None:
    opened = {port["published"]: port["host_ip"] for one in services.values() for port in one.get("ports", [])}
    assert opened == {"4222": "127.0.0.1", "9595": "127.0.0.1"}


def test_only_the_proxy_holds_the_engine_s_socket(services: dict[str, Any]) -> None:
    holders = [name for name, one in services.items() if "docker.sock" in json.dumps(one.get("volumes", []))]
    assert holders == ["engine-proxy"]
    neighbours = [name for name, one in services.items() if "engine" in one["networks"]]
    assert sorted(neighbours) == ["engine-proxy", "log-agent"]


ALLOWED = """/version /v1.41/version /v1.41/containers/json /v1.41/containers/web-1/json /containers/0a1b/logs
/v1.41/networks /_ping""".split()
REFUSED = """/v1.41/containers/web/archive /v1.41/containers/web/export /v1.41/containers/web/attach/ws
/v1.41/images/json /v1.41/containers/../secrets/json /v1.41/secrets /v1.41/containers/a/b/logs /v1.41/networks/x
/v1.41/containers/web/logs/ /v1.41/exec/a/json /info""".split()


def test_the_proxy_lets_through_what_the_log_agent_reads_and_no_more(services: dict[str, Any]) -> None:
    command = services["engine-proxy"]["command"]
    allowed = [one for one in command if one.startswith("-allow")]
    patterns = [one.removeprefix("-allowGET=").replace("$$", "$") for one in allowed if one.startswith("-allowGET=")]
    assert [one.partition("=")[0] for one in allowed] == ["-allowfrom", "-allowGET"]
    assert [path for path in ALLOWED if not re.fullmatch(patterns[0], path)] == []
    assert [path for path in REFUSED if re.fullmatch(patterns[0], path)] == []


def test_each_service_of_compose_is_a_verb_of_remit(services: dict[str, Any]) -> None:
    ours = {name: one for name, one in services.items() if one.get("image") == "remit-services"}
    assert sorted(ours) == ["executor", "gateway", "gpu-agent", "log-agent", "planner", "registry", "sealer"]
    for name, one in ours.items():
        assert one["command"] == [name]
        assert importlib.util.find_spec(f"services.{name.replace('-', '_')}.__main__") is not None


def test_images_are_named_without_a_registry_host(services: dict[str, Any]) -> None:
    for one in services.values():
        first, slash, _ = one["image"].partition("/")
        assert not (slash and ("." in first or ":" in first)), one["image"]


def test_ci_s_script_can_be_read_and_run() -> None:
    done = subprocess.run(["bash", "-n", str(ROOT / ".ci" / "run")], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert os.access(ROOT / ".ci" / "run", os.X_OK)


def test_the_licence_is_the_one_that_the_package_names() -> None:
    assert "Apache License\n                           Version 2.0" in (ROOT / "LICENSE").read_text()
    assert PROJECT["license"] == {"text": "Apache-2.0"}

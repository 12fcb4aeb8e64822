"""The main job on a real engine: six containers, one of them not allowed, and a triage that names the failing ones."""

import base64
import json
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from tests.engine import engine
from tests.engine.fleet import ALLOWED, Fleet, fleet
from tests.stack import SERVICES, Stack, stack, until
from tests.stories.search import files_with, tables
from tests.stories.wire import Wire

pytestmark = pytest.mark.docker

SECRET = "the-secret-of-the-private-one"  # what the container that nobody has allowed says
GOAL = "triage the logs"


@pytest.fixture(scope="module")
def six() -> Iterator[Fleet]:
    with engine() as made:
        yield fleet(made)


@pytest.fixture(scope="module")
def host(six: Fleet, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """The services and this host's log agent; five of the six containers are allowed."""
    with stack(tmp_path_factory.mktemp("stack"), *SERVICES, "log_agent") as made:
        until(lambda: hosts(made), "the log agent answers")
        for role in ALLOWED:
            assert made.remit("allow", "add", six.name(role), "--host", "testhost").returncode == 0
        yield made


def hosts(remit: Stack) -> list[str]:
    done = remit.remit("hosts", "-o", "json")
    return [one["host"] for one in json.loads(done.stdout) if "logs" in one["agents"]] if done.returncode == 0 else []


def run(remit: Stack, *argv: str) -> dict[str, Any]:
    done = remit.remit("submit", *argv, "--wait", "-o", "json")
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def artifact(remit: Stack, number: int, name: str) -> str:
    done = remit.remit("artifacts", str(number), name)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def first(host: Stack) -> dict[str, Any]:
    """The first triage of this host."""
    return run(host, GOAL)


def test_the_triage_names_the_failing_ones_and_their_evidence(host: Stack, six: Fleet, first: dict[str, Any]) -> None:
    """JSON errors, a Python traceback, and the error after binary noise; each by its container's name."""
    triage = json.loads(artifact(host, first["run"], "triage.json"))
    by_source: dict[str, list[dict[str, Any]]] = {}
    for finding in triage["findings"]:
        by_source.setdefault(finding["source"], []).append(finding)
    severe = {
        source for source, found in by_source.items() if any(one["severity"] in ("error", "critical") for one in found)
    }
    assert severe == {f"docker:{six.name(role)}" for role in ("json", "python", "noise")}
    payment = by_source[f"docker:{six.name('json')}"][0]
    assert payment["count"] == 10
    assert "cannot reach payment service" in payment["evidence"][0]["text"]
    division = by_source[f"docker:{six.name('python')}"][0]
    assert division["count"] == 3
    assert "ZeroDivisionError: division by zero" in division["evidence"][0]["text"]
    assert any(
        "ERROR after the noise" in one["evidence"][0]["text"] for one in by_source[f"docker:{six.name('noise')}"]
    )
    assert all(1 <= len(one["evidence"]) <= 3 for found in by_source.values() for one in found)
    report = artifact(host, first["run"], "report.md")
    for role in ("json", "python", "noise"):
        assert six.name(role) in report
    assert "cannot reach payment service" in report
    assert "ZeroDivisionError" in report
    assert report == host.remit("report", str(first["run"])).stdout


def test_the_silent_and_the_harmless_are_read_and_not_accused(host: Stack, six: Fleet, first: dict[str, Any]) -> None:
    triage = json.loads(artifact(host, first["run"], "triage.json"))
    read = {one["report"]["source"]: one["report"] for one in triage["sources"]}
    assert set(read) == {f"docker:{six.name(role)}" for role in ALLOWED}
    assert read[f"docker:{six.name('silent')}"]["lines_read"] == 0
    assert read[f"docker:{six.name('tty')}"]["lines_read"] == 2
    assert read[f"docker:{six.name('tty')}"]["by_severity"]["warning"] == 1
    assert triage["unread"] == []


def test_a_second_triage_finds_nothing_new_to_read(host: Stack, first: dict[str, Any]) -> None:
    """The window starts where the last successful triage ended."""
    again = run(host, GOAL)
    [step] = again["steps"]
    assert step["outputs"]["lines_read"] == 0
    assert step["outputs"]["sources_read"] == len(ALLOWED)
    assert step["outputs"]["findings"] == 0
    assert "no evidence" in artifact(host, again["run"], "report.md")


def test_a_line_that_comes_later_is_what_the_next_triage_reads(host: Stack, six: Fleet, first: dict[str, Any]) -> None:
    """A container that is started again says its lines again, and only those are new."""
    run(host, GOAL)
    six.containers["tty"].start()
    six.containers["tty"].wait(timeout=30)
    [step] = run(host, GOAL)["steps"]
    assert step["outputs"]["lines_read"] == 2


def ask(remit: Stack, subject: str, body: dict[str, Any]) -> str:
    """What the agent answers to somebody who speaks to it directly: every byte until it is quiet."""
    with closing(Wire(remit.nats_port)) as wire:
        return json.dumps(wire.request(subject, json.dumps(body).encode()))


@pytest.mark.parametrize(
    "written", ["docker:{}", "{}", "docker:/{}", "file:/var/lib/docker/containers/{}", "docker:{}*"]
)
def test_a_request_that_goes_round_the_executor_is_refused(host: Stack, six: Fleet, written: str) -> None:
    """The allow-list is enforced in the agent; a container's id is no way round its name either."""
    for name in (six.name("private"), str(six.containers["private"].id), str(six.containers["private"].short_id)):
        answer = ask(host, "logs.testhost.read", {"source": written.format(name)})
        assert json.loads(answer)["error"] in ("refused", "malformed", "not_found"), answer
        assert SECRET not in answer


def test_the_service_map_lists_the_allowed_ones_only(host: Stack, six: Fleet) -> None:
    done = run(host, "--task", "service_map")
    services = json.loads(artifact(host, done["run"], "services.json"))
    assert services["status"] == "success"
    assert {one["name"] for one in services["services"]} == {six.name(role) for role in ALLOWED}
    drawn = artifact(host, done["run"], "services.md")
    assert six.name("json") in drawn
    assert six.name("private") not in drawn + json.dumps(services)


def test_an_entry_that_is_taken_back_ends_the_reading_at_once(host: Stack, six: Fleet) -> None:
    """Disabled, enabled, removed and added: each counts for the very next request."""
    name = six.name("python")
    read = {"source": f"docker:{name}"}
    assert "error" not in json.loads(ask(host, "logs.testhost.read", read))
    entry = next(one for one in json.loads(host.remit("allow", "ls", "-o", "json").stdout) if name in one["source"])
    assert host.remit("allow", "disable", entry["id"]).returncode == 0
    assert json.loads(ask(host, "logs.testhost.read", read))["error"] == "refused"
    assert host.remit("allow", "enable", entry["id"]).returncode == 0
    assert "error" not in json.loads(ask(host, "logs.testhost.read", read))
    assert host.remit("allow", "rm", entry["id"]).returncode == 0
    assert json.loads(ask(host, "logs.testhost.read", read))["error"] == "refused"
    done = run(host, GOAL, "--param", f'sources=["docker:{name}"]')
    assert done["steps"][0]["outputs"]["sources_read"] == 0
    assert done["steps"][0]["outputs"]["sources_not_read"] == 1
    assert host.remit("allow", "add", name, "--host", "testhost").returncode == 0


def test_what_was_not_allowed_is_nowhere(host: Stack, six: Fleet, first: dict[str, Any]) -> None:
    """Not its words and not its name: in no artifact, event, table, bucket or log, in no spelling."""
    rows = json.loads(host.remit("runs", "--limit", "1000", "-o", "json").stdout)["runs"]
    assert rows
    for row in rows:
        for one in json.loads(host.remit("artifacts", str(row["run"]), "-o", "json").stdout)["artifacts"]:
            text = artifact(host, row["run"], one["name"])
            assert SECRET not in text, one
            assert six.name("private") not in text, one
    host.stop("registry")  # its file has one opener
    for name, rows in tables(host.folder):
        assert SECRET not in rows, name
        assert six.name("private") not in rows, name
    host.start("registry")
    assert files_with(host.folder, SECRET) == []


def test_the_search_would_find_it(tmp_path: Path) -> None:
    """The search itself can fail: what is hidden in base64, at whatever offset, is seen."""
    for shift in range(3):
        hidden = base64.b64encode(b"x" * shift + b"before " + SECRET.encode() + b" after")
        (tmp_path / str(shift)).write_bytes(hidden)
    assert files_with(tmp_path, SECRET) == ["0", "1", "2"]

"""A task of one's own: added to the catalogue, performed by the programs that stand in docs/workers.md."""

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.stack import ROOT, Stack, until
from tests.stories.wire import Wire

PAGE = (ROOT / "docs" / "workers.md").read_text()


def block(language: str) -> str:
    """The one block of docs/workers.md in this language."""
    [found] = re.findall(rf"^```{language}\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    return str(found)


def commands() -> list[list[str]]:
    """The command lines of the page's shell block, without their first word."""
    return [shlex.split(line)[1:] for line in block("sh").splitlines() if line.startswith("remit ")]


@contextmanager
def process(argv: Sequence[str], environment: Mapping[str, str], folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A worker that runs while the block does; what it says goes to `folder`/worker.log."""
    with (folder / "worker.log").open("ab") as log:
        made = subprocess.Popen(argv, cwd=folder, env={**os.environ, **environment}, stdout=log, stderr=log)
    try:
        yield made
    finally:
        made.kill()
        made.wait()


@contextmanager
def in_python(remit: Stack, folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    """The page's worker in Python, isolated: it sees the installed packages and nothing of this checkout."""
    (folder / "worker.py").write_text(block("python"))
    with process([sys.executable, "-I", "worker.py"], {"NATS_URL": remit.url}, folder) as made:
        yield made


@pytest.fixture(scope="module")
def node_modules(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder where the page's `npm install …` has been done."""
    if shutil.which("node") is None or shutil.which("npm") is None:
        pytest.skip("no node and npm here")
    [packages] = re.findall(r"`npm install ([^`]+)`", PAGE)
    folder = tmp_path_factory.mktemp("node")
    (folder / "package.json").write_text('{"private": true}')
    done = subprocess.run(
        ["npm", "install", "--no-audit", "--no-fund", "--fetch-retries=0", *packages.split()],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=60,
    )
    if done.returncode:
        unreachable = ("ENOTFOUND", "ECONNREFUSED", "ETIMEDOUT", "EAI_AGAIN", "ECONNRESET", "network")
        assert any(word in done.stderr for word in unreachable), done.stderr  # the page's own packages must exist
        pytest.skip("npm reaches no registry here")
    return folder


def shown(remit: Stack, run: int) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(remit.remit("show", str(run), "-o", "json").stdout)
    return found


def submitted(remit: Stack, *argv: str) -> int:
    done = remit.remit("submit", *argv, "-o", "json")
    assert done.returncode == 0, done.stderr
    return int(json.loads(done.stdout)["run"])


@pytest.fixture(scope="module")
def greet(remit: Stack) -> None:
    """The page's first command: the task is in the catalogue."""
    until(lambda: remit.remit(*commands()[0]).returncode == 0, "the task is added")
    tasks = json.loads(remit.remit("tasks", "ls", "-o", "json").stdout)
    assert any(task["name"] == "greet" and task["keywords"] == ["hello"] for task in tasks)


def test_the_page_s_worker_in_python_performs_it(remit: Stack, greet: None, tmp_path: Path) -> None:
    """Ten lines of bare nats-py do a step of a run that Remit planned."""
    with in_python(remit, tmp_path):
        done = remit.remit(*commands()[1], "-o", "json")
    assert done.returncode == 0, done.stderr
    [step] = json.loads(done.stdout)["steps"]
    assert step["outputs"] == {"greeting": "Hello, Ada!"}
    assert (step["status"], step["host"], step["attempts"]) == ("succeeded", "a-worker-in-python", 1)


def test_the_page_s_worker_in_node_performs_it(remit: Stack, greet: None, node_modules: Path, tmp_path: Path) -> None:
    """The same step, done in Node."""
    (node_modules / "worker.mjs").write_text(block("js"))
    with process(["node", "worker.mjs"], {"NATS_URL": remit.url}, node_modules):
        done = remit.remit(*commands()[1], "-o", "json")
    assert done.returncode == 0, done.stderr
    [step] = json.loads(done.stdout)["steps"]
    assert step["outputs"] == {"greeting": "Hello, Ada!"}
    assert (step["status"], step["host"], step["attempts"]) == ("succeeded", "a-worker-in-node", 1)


def test_a_word_of_the_goal_leads_to_it(remit: Stack, greet: None, tmp_path: Path) -> None:
    """`--keyword hello` makes the planner choose it for a goal in words."""
    with in_python(remit, tmp_path):
        done = remit.remit("submit", "say hello to everybody", "--wait", "-o", "json")
    assert done.returncode == 0, done.stderr
    [step] = json.loads(done.stdout)["steps"]
    assert (step["task"], step["outputs"]) == ("greet", {"greeting": "Hello, world!"})


def test_a_step_waits_for_a_worker_to_come(remit: Stack, greet: None, tmp_path: Path) -> None:
    """A step that is dispatched to nobody is in the queue, and done as soon as somebody pulls."""
    run = submitted(remit, "--task", "greet")
    until(lambda: shown(remit, run)["status"] == "running", f"run {run} is under way")
    assert [step["status"] for step in shown(remit, run)["steps"]] == ["running"]
    with in_python(remit, tmp_path):
        assert remit.remit("watch", str(run)).returncode == 0
    assert shown(remit, run)["steps"][0]["attempts"] == 1


def test_a_stopped_worker_leaves_its_step_to_the_next(remit: Stack, greet: None, tmp_path: Path) -> None:
    """A worker that is stopped while nothing is its own takes nothing with it."""
    with in_python(remit, tmp_path) as first:
        run = submitted(remit, "--task", "greet")
        until(lambda: shown(remit, run)["status"] == "succeeded", f"run {run} is done")
        first.send_signal(signal.SIGKILL)
        first.wait()
    with in_python(remit, tmp_path):
        run = submitted(remit, "--task", "greet")
        until(lambda: shown(remit, run)["status"] == "succeeded", f"run {run} is done by the second worker", 40)


def test_a_task_that_is_taken_back_cannot_be_planned(remit: Stack, greet: None) -> None:
    assert remit.remit("tasks", "add", "shortlived").returncode == 0
    assert remit.remit("submit", "--task", "shortlived").returncode == 0
    assert remit.remit("tasks", "rm", "shortlived").returncode == 0
    done = remit.remit("submit", "--task", "shortlived", "--wait")
    assert done.returncode == 3, done.stderr
    assert remit.remit("tasks", "rm", "shortlived").returncode == 6


ONCE = {"Nats-Expected-Last-Subject-Sequence": "0"}


def dispatched(wire: Wire, *, ack: bool = True) -> str:
    """Pull the next step from the queue, by hand; its `<run>.<step>.<attempt>`."""
    subject = wire.pulled("worker-greet", ack=ack)
    return subject.removeprefix("step.dispatched.").removesuffix(".greet")


def test_a_worker_that_dies_in_mid_step_leaves_it_to_another(remit: Stack, greet: None, tmp_path: Path) -> None:
    """Who has taken a step and is silent for the lease (30 s; here the operator has set one) has lost it."""
    with closing(Wire(remit.nats_port)) as wire:
        consumer = wire.request("$JS.API.CONSUMER.INFO.EVENTS.worker-greet", b"")["config"]
        body = {"stream_name": "EVENTS", "config": {**consumer, "ack_wait": 1_000_000_000}}
        wire.request("$JS.API.CONSUMER.DURABLE.CREATE.EVENTS.worker-greet", json.dumps(body).encode())
    run = submitted(remit, "--task", "greet")
    with closing(Wire(remit.nats_port)) as dying:
        assert dispatched(dying, ack=False) == f"{run}.greet.1"
    with in_python(remit, tmp_path):
        until(lambda: shown(remit, run)["status"] == "succeeded", f"run {run} is done by another")
    [step] = shown(remit, run)["steps"]
    assert (step["host"], step["attempts"]) == ("a-worker-in-python", 1)


def test_a_second_answer_is_refused_and_changes_nothing(remit: Stack, greet: None) -> None:
    """The first answer counts; a repetition and a contradiction are both told that it was said before."""
    run = submitted(remit, "--task", "greet")
    with closing(Wire(remit.nats_port)) as wire:
        subject = f"step.completed.{dispatched(wire)}"
        first = wire.request(subject, b'{"outputs": {"answer": 1}}', ONCE)
        assert first["seq"] > run
        for again in (b'{"outputs": {"answer": 1}}', b'{"outputs": {"answer": 2}}'):
            assert wire.request(subject, again, ONCE)["error"]["err_code"] == 10071
        failed = wire.request(subject.replace("completed", "failed"), b'{"error": "changed my mind"}', ONCE)
        assert failed["seq"]  # another subject, so it is stored; the step has ended, so it means nothing
    until(lambda: shown(remit, run)["status"] == "succeeded", f"run {run} ends")
    assert shown(remit, run)["steps"][0]["outputs"] == {"answer": 1}
    assert json.loads(remit.remit("rebuild", "-o", "json").stdout)["identical"] is True


def test_an_answer_that_comes_too_late_changes_nothing(remit: Stack, greet: None) -> None:
    """The run's time is over: the answer is kept, and the run stays what it was."""
    run = submitted(remit, "--task", "greet", "--time-budget", "1")
    with closing(Wire(remit.nats_port)) as wire:
        assert dispatched(wire) == f"{run}.greet.1"
        assert remit.remit("watch", str(run)).returncode == 7
        before = shown(remit, run)
        assert wire.request(f"step.completed.{run}.greet.1", b'{"outputs": {"late": true}}', ONCE)["seq"]
    assert shown(remit, run) == before
    last = json.loads(remit.remit("events", str(run), "-o", "json").stdout)[-1]
    assert (last["subject"], last["applied"]) == (f"step.completed.{run}.greet.1", False)


def test_a_failure_that_may_pass_is_tried_again_and_one_that_may_not_is_the_end(remit: Stack, greet: None) -> None:
    """`retryable` decides; each attempt has subjects of its own."""
    run = submitted(remit, "--task", "greet")
    with closing(Wire(remit.nats_port)) as wire:
        assert dispatched(wire) == f"{run}.greet.1"
        wire.request(f"step.failed.{run}.greet.1", b'{"error": "busy", "retryable": true}', ONCE)
        assert dispatched(wire) == f"{run}.greet.2"
        wire.request(f"step.failed.{run}.greet.2", b'{"error": "no_such_person", "message": "who?"}', ONCE)
    done = remit.remit("watch", str(run))
    assert done.returncode == 1
    assert "no_such_person: who?" in done.stderr

"""`remit up` and `remit demo`: everything started, kept, and ended; no process is left behind."""

import fcntl
import json
import os
import re
import signal
import socket
import subprocess
import sys
import termios
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from cli.demo import own_logs
from cli.keeper import SERVICES
from shared.allow import path_matches
from tests import forking, terminal
from tests.stack import ROOT, until

ENDED_WITHIN_S = 25


def environment(folder: Path) -> dict[str, str]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("REMIT_")}
    return {**clean, "XDG_STATE_HOME": str(folder), "REMIT_HOST": "testhost", "PYTHONPATH": str(ROOT)}


class Up:
    """One `remit up` and what it has said."""

    def __init__(self, folder: Path, *argv: str, **variables: str) -> None:
        self.folder = folder
        self.said = folder / "up.said"
        self.data = folder / "data"
        with self.said.open("ab") as said:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "cli", "up", "--data-dir", str(self.data), *argv],
                env={**environment(folder), **variables},
                cwd=ROOT,
                stdout=said,
                stderr=said,
                start_new_session=True,
            )

    def text(self) -> str:
        return self.said.read_text()

    def ready(self) -> "Up":
        until(lambda: "ready" in self.text() or self.process.poll() is not None, "the stack is ready")
        assert self.process.poll() is None, self.text()
        return self

    def port(self, what: str) -> int:
        return int(re.findall(rf"^{what} .*:(\d+)$", self.text(), re.MULTILINE)[-1])

    def children(self) -> dict[str, int]:
        """The services by name with their process ids, workers of the executor among them."""
        return {name: pid for pid, name in descendants(self.process.pid)}

    def remit(self, *argv: str) -> subprocess.CompletedProcess[str]:
        return remit(self.folder, f"nats://127.0.0.1:{self.port('NATS')}", *argv)


def remit(folder: Path, url: str, *argv: str) -> subprocess.CompletedProcess[str]:
    """Run the CLI against this NATS."""
    return forking.run([sys.executable, "-m", "cli", *argv], {**environment(folder), "REMIT_NATS_URL": url}, 60)


def submitted(folder: Path, url: str) -> int:
    """A run of one step that has ended."""
    done = remit(folder, url, "submit", "--task", "noop", "--wait", "-o", "json")
    return int(json.loads(done.stdout)["run"])


def descendants(parent: int) -> Iterator[tuple[int, str]]:
    """Every process below `parent`, with its service's name."""
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rsplit(")", 1)[1].split()
            command = (stat.parent / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue  # it has ended meanwhile
        if int(fields[1]) == parent and fields[0] != "Z":
            pid = int(stat.parent.name)
            words = [word.decode() for word in command]
            name = next((word for word in words if word.startswith("services.")), Path(words[0]).name)
            yield pid, name + ("-worker" if "--work" in words else "")
            yield from descendants(pid)


def alive(pid: int) -> bool:
    try:
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except OSError:
        return False


@contextmanager
def up(folder: Path, *argv: str, **variables: str) -> Iterator[Up]:
    """`remit up` on free ports, killed with all below it if a test leaves it running."""
    made = Up(folder, "--nats-port", "0", *(argv or ("--http-port", "0")), **variables)
    try:
        yield made
    finally:
        below = list(made.children().values())
        if made.process.poll() is None:
            made.process.kill()
        made.process.wait()
        until(lambda: not any(alive(pid) for pid in below), "the children of a killed keeper are gone")


def test_a_stack_is_started_kept_and_ended(tmp_path: Path) -> None:
    """Both ports are printed and work; a killed service comes back; Ctrl-C ends all and leaves nothing."""
    with up(tmp_path) as stack:
        stack.ready()
        with urllib.request.urlopen(f"http://127.0.0.1:{stack.port('HTTP')}/readyz", timeout=10) as answer:
            assert answer.status == 200
        assert stack.remit("submit", "check logs and GPU", "--wait").returncode == 0
        before = stack.children()
        wanted = {"nats-server", "services.executor-worker", *(f"services.{one.replace('-', '_')}" for one in SERVICES)}
        assert set(before) == wanted
        for victim in ("services.registry", "services.executor"):
            os.kill(before[victim], signal.SIGKILL)
        until(
            lambda: all(
                stack.children().get(name, before[name]) != before[name]
                for name in ("services.registry", "services.executor", "services.executor-worker")
            ),
            "what was killed is started again",
        )
        assert "registry ended (-9); starting it again" in stack.text()
        until(lambda: stack.remit("runs").returncode == 0, "the new registry answers")
        assert stack.remit("submit", "--task", "noop", "--wait").returncode == 0
        assert json.loads(stack.remit("rebuild", "-o", "json").stdout)["identical"] is True
        last = list(stack.children().values())
        stack.process.send_signal(signal.SIGINT)
        assert stack.process.wait(ENDED_WITHIN_S) == 0, stack.text()
        assert not [pid for pid in last if alive(pid)]
        assert "Traceback" not in stack.text()


def test_a_setting_that_cannot_be_read_is_told_and_ctrl_c_before_it_is_ready_ends_it_quietly(tmp_path: Path) -> None:
    """No step can run: the reason is said where `up` was called, ever less often, and the doctor sees it, too."""
    with up(tmp_path, REMIT_SLOTS="abc") as stack:
        until(lambda: stack.text().count("executor ended (1): REMIT_SLOTS='abc'") == 2, "it is told")
        answered = stack.remit("doctor", "-o", "json")
        assert answered.returncode == 1
        assert {one["what"]: one["state"] for one in json.loads(answered.stdout)}["workers"] == "failing"
        assert "ready" not in stack.text()
        stack.process.send_signal(signal.SIGINT)
        assert stack.process.wait(ENDED_WITHIN_S) == 0, stack.text()
        assert "NATS lost" not in stack.text()
        assert "Traceback" not in stack.text()


@dataclass
class Closed:
    """A stack whose terminal was closed: where its data is, a run that it had, its exit status, what it left."""

    folder: Path
    run: int
    status: int
    left: list[int]


@pytest.fixture(scope="module")
def closed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Closed]:
    folder = tmp_path_factory.mktemp("up")
    ours, theirs = terminal.opened()
    process = subprocess.Popen(
        [sys.executable, "-m", "cli", "up", "--data-dir", str(folder / "data"), "--nats-port", "0", "--http-port", "0"],
        env=environment(folder), cwd=ROOT, stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True,
        preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
    )  # fmt: skip
    os.close(theirs)
    try:
        said = b""
        while b"ready; try" not in said:
            said += os.read(ours, 4096)
        run = submitted(folder, *re.findall(r"^NATS (\S+)", said.decode(), re.MULTILINE))
        below = [pid for pid, _ in descendants(process.pid)]
        os.close(ours)
        status = process.wait(ENDED_WITHIN_S)
        yield Closed(folder, run, status, [pid for pid in below if alive(pid)])
    finally:
        process.kill()


@pytest.fixture(scope="module")
def kept(closed: Closed) -> Iterator[Up]:
    """Started under nohup on the data of one that has ended; what the tests do to it, it survives."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    with ExitStack() as started:
        try:
            stack = started.enter_context(up(closed.folder))
        finally:
            signal.signal(signal.SIGHUP, before)
        yield stack.ready()
        stack.process.send_signal(signal.SIGTERM)
        assert stack.process.wait(ENDED_WITHIN_S) == 0, stack.text()


def test_a_closed_terminal_lets_it_drain(closed: Closed) -> None:
    """The hang-up is heard like Ctrl-C, though nobody can be told any more: what runs is handed back, not cut off."""
    assert closed.status == 0
    assert not closed.left


def test_what_one_has_done_is_there_for_the_next_on_its_data(closed: Closed, kept: Up) -> None:
    assert kept.remit("show", str(closed.run)).returncode == 0


def test_under_nohup_it_outlives_its_terminal(kept: Up) -> None:
    kept.process.send_signal(signal.SIGHUP)
    assert kept.remit("submit", "--task", "noop", "--wait").returncode == 0


def test_a_second_stack_on_the_same_data_is_refused(kept: Up) -> None:
    """Two on one store would ruin it."""
    second = subprocess.run(
        [sys.executable, "-m", "cli", "up", "--data-dir", str(kept.data), "--nats-port", "0", "--http-port", "0"],
        env=environment(kept.folder),
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert second.returncode == 1
    assert str(kept.data) in second.stderr
    assert len(second.stderr.splitlines()) == 1
    assert kept.remit("submit", "--task", "noop", "--wait").returncode == 0


def test_the_gateway_comes_back_on_the_port_that_was_printed(kept: Up) -> None:
    """Any free port was asked for, once: whoever has read which one goes on using it."""
    port, before = kept.port("HTTP"), kept.children()["services.gateway"]
    os.kill(before, signal.SIGKILL)
    until(lambda: kept.children().get("services.gateway", before) != before, "it is started again")
    until(lambda: listens(port), "it listens where it did")


def listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def test_nats_itself_comes_back_on_its_port_with_its_store(kept: Up) -> None:
    port, before = kept.port("NATS"), len(kept.text())
    run = submitted(kept.folder, f"nats://127.0.0.1:{port}")
    os.kill(kept.children()["nats-server"], signal.SIGKILL)
    until(lambda: "nats-server ended (-9)" in kept.text()[before:], "it is told")
    until(lambda: kept.remit("submit", "--task", "noop", "--wait").returncode == 0, "runs run again")
    assert kept.port("NATS") == port
    assert kept.remit("show", str(run)).returncode == 0


def test_nats_comes_back_whatever_was_in_the_way(kept: Up) -> None:
    """Its configuration gone, no room for a new one, its port stolen: told with the reason, and ever less often."""
    conf, port, before = kept.data / "nats.conf", kept.port("NATS"), len(kept.text())
    conf.unlink()
    conf.mkdir()  # nothing can be put in its place, as on a full disk
    os.kill(kept.children()["nats-server"], signal.SIGKILL)
    until(lambda: "nats-server cannot be started yet: " in kept.text()[before:], "it is told")
    with socket.create_server(("127.0.0.1", port)):
        conf.rmdir()
        until(lambda: kept.text()[before:].count("its port is taken") >= 2, "the reason is told")
    told = re.findall(r"nats-server .*", kept.text()[before:])
    assert len(told) < 8, told
    until(lambda: kept.remit("submit", "--task", "noop", "--wait").returncode == 0, "runs run again")


def taken() -> socket.socket:
    """A port that somebody listens on."""
    return socket.create_server(("127.0.0.1", 0))


def test_a_taken_nats_port_gives_the_way_out(tmp_path: Path) -> None:
    with taken() as holder:
        port = str(holder.getsockname()[1])
        stack = Up(tmp_path, "--nats-port", port, "--http-port", "0")
        assert stack.process.wait(30) == 1
    assert f"port {port} is taken" in stack.text()
    assert "--nats-port 0" in stack.text()
    assert "Traceback" not in stack.text()
    assert not stack.children()


def test_a_folder_that_nats_cannot_be_told_of_is_an_error(tmp_path: Path) -> None:
    """Its configuration is text, and a folder's name may be none."""
    stack = Up(tmp_path, "--nats-port", "0", "--http-port", "0", "--data-dir", str(tmp_path / "\udcff"))
    assert stack.process.wait(30) == 1
    assert "is no UTF-8" in stack.text()
    assert len(stack.text().splitlines()) == 1


def test_a_taken_http_port_gives_the_way_out(tmp_path: Path) -> None:
    with taken() as holder:
        port = str(holder.getsockname()[1])
        stack = Up(tmp_path, "--nats-port", "0", "--http-port", port)
        assert stack.process.wait(60) == 1
    assert port in stack.text()
    assert "--http-port" in stack.text()
    assert "Traceback" not in stack.text()


@pytest.mark.parametrize("name", ["state", "a b ü", "[old] state*"])
def test_the_demo_allows_itself_its_own_logs_whatever_its_folder_is_called(name: str) -> None:
    where = Path("/home/ann") / name / "demo"
    assert path_matches(own_logs(where), str(where / "logs" / "planner.log"))


def test_the_demo_does_the_main_job_and_leaves_nothing_running(tmp_path: Path) -> None:
    """Reports where it says, and with an engine or without one a job that is real."""
    (tmp_path / "app.log").write_text("INFO all is well\nERROR the demo's own error\n")
    with subprocess.Popen(
        [sys.executable, "-m", "cli", "demo", "--logs", str(tmp_path / "*.log")],
        env=environment(tmp_path),
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as demo:
        below: dict[int, str] = {}
        until(lambda: below.update(descendants(demo.pid)) or len(below) >= len(SERVICES) + 2, "its processes run")
        said, talked = demo.communicate(timeout=90)
    assert demo.returncode == 0, talked
    assert "host testhost" in talked
    assert "GPUs: " in talked
    assert "succeeded" in talked
    assert "planned: log_triage, gpu_report, service_map, critical, notify" in talked
    named = [Path(line.strip()) for line in said.splitlines() if line.startswith("  /")]
    assert {path.name for path in named} == {
        "report.md",
        "triage.json",
        "gpu_report.json",
        "services.json",
        "services.md",
    }
    assert all(path.stat().st_size for path in named)
    assert all(path.is_relative_to(tmp_path) for path in named)
    assert "the demo's own error" in next(path for path in named if path.name == "report.md").read_text()
    assert "tokens: 0 in, 0 out" in said
    assert not [below[pid] for pid in below if alive(pid)]

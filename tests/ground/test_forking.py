"""A forked process is one as `python -m` makes it, or it is not forked."""

import os
import signal
import sys
from pathlib import Path
from tempfile import TemporaryFile

import pytest

from tests import forking
from tests.stack import stack, until

CLI = [sys.executable, "-m", "cli"]
NOBODY = "nats://127.0.0.1:1"
OURS = {**os.environ, "PYTHONPATH": str(forking.ROOT), "REMIT_NATS_URL": NOBODY}


def test_it_says_and_ends_as_one_that_was_started() -> None:
    for argv in (["--version"], ["runs"], ["runs", "--nonsense"], ["plan", "check logs", "-o", "json"]):
        forked = forking.run([*CLI, *argv], OURS, 30)
        started = forking.run([*CLI, *argv], {**OURS, "PYTHONSAFEPATH": ""}, 30)
        assert vars(forked) == vars(started)
    assert forking.run([*CLI, "runs"], OURS, 30).returncode == 5
    assert NOBODY in forking.run([*CLI, "runs"], OURS, 30).stderr


def test_it_has_an_environment_of_its_own() -> None:
    for url in (NOBODY, "nats://127.0.0.1:2"):
        assert url in forking.run([*CLI, "runs"], {**OURS, "REMIT_NATS_URL": url}, 30).stderr
    assert "REMIT_NATS_URL" not in os.environ


@pytest.mark.parametrize("variable", ["PYTHONUTF8", "LC_ALL", "LANG"])
def test_what_an_interpreter_reads_once_has_an_interpreter_started(variable: str) -> None:
    with TemporaryFile() as out:
        process = forking.start([*CLI, "--version"], {**OURS, variable: "1"}, out, out)
        assert process.wait(30) == 0
        assert not isinstance(process, forking.Forked)


def test_it_is_a_process_of_its_own_and_can_be_killed() -> None:
    with TemporaryFile() as out:
        process = forking.start([*CLI, "watch", "1", "--nats", NOBODY], OURS, out, out)
        other = forking.start([sys.executable, "-m", "services.planner"], OURS, out, out)  # it waits for its NATS
        assert isinstance(process, forking.Forked) and isinstance(other, forking.Forked)
        assert len({process.pid, other.pid, os.getpid()}) == 3
        assert process.wait(30) == 5
        until(lambda: "not reachable" in _said(out) or "nothing listens" in _said(out), "the planner waits")
        assert other.poll() is None
        other.kill()
        assert other.wait(30) == -signal.SIGKILL
        assert other.poll() == -signal.SIGKILL
        other.kill()  # it is over: nobody is hit
        assert not Path(f"/proc/{other.pid}").exists()


def _said(out: object) -> str:
    return os.pread(out.fileno(), 65_536, 0).decode()  # type: ignore[attr-defined]


def test_what_it_starts_in_its_turn_is_its_child_and_works_and_dies_with_it(tmp_path: Path) -> None:
    """An executor's worker, which runs programs itself; killed it is started again, and ends with its executor."""

    def worker(executor: forking.Process) -> int:
        children = Path(f"/proc/{executor.pid}/task/{executor.pid}/children").read_text().split()
        return int(children[0]) if children else 0

    def sleeps() -> bool:
        return remit.remit("submit", "--task", "sleep", "--param", "seconds=0.01", "--wait").returncode == 0

    with stack(tmp_path, "planner", "executor") as remit:
        executor = remit.processes["executor"]
        until(lambda: worker(executor), "it has a worker")
        first = worker(executor)
        assert b"tests.forking" in Path(f"/proc/{first}/cmdline").read_bytes()
        until(sleeps, "its worker performs")
        os.kill(first, signal.SIGKILL)
        until(lambda: worker(executor) not in (0, first), "there is another worker")
        assert '"message":"the worker ended with -9; starting it again"' in remit.log("executor")
        assert sleeps()
        second = worker(executor)
        assert remit.stop("executor") == 0
        assert not Path(f"/proc/{second}").exists()
        remit.start("executor")
        until(lambda: worker(remit.processes["executor"]), "it has a worker")
        third = worker(remit.processes["executor"])
        until(sleeps, "its worker performs")
        remit.kill("executor")
        until(lambda: not Path(f"/proc/{third}").exists(), "it has died with its executor")
        assert "worker ended" not in remit.log("executor").partition("starting it again")[2]


def test_what_python_runs_at_its_start_has_been_run(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(
        "import atexit, os\natexit.register(print, 'a lease of', os.environ['CHAOS_LEASE_S'])\n"
    )
    environment = {**OURS, "PYTHONPATH": f"{tmp_path}{os.pathsep}{forking.ROOT}"}
    for lease in ("7", "8"):
        with TemporaryFile() as out:
            process = forking.start([*CLI, "--version"], {**environment, "CHAOS_LEASE_S": lease}, out, out)
            assert isinstance(process, forking.Forked)
            assert process.wait(30) == 0
            assert f"a lease of {lease}\n" in _said(out)

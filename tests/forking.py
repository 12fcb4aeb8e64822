"""Remit's processes in a few milliseconds: one that has imported all of Remit waits, and forks whatever is wanted.

Theory of operation. `python -m cli …` computes for 0.3 s before it does anything, nearly all of it imports, and the
tests start Remit a thousand times. So each test process keeps a *nursery* (`python -m tests.forking`). Over a socket it
is told what to run, in which environment and folder, and gets the three open files; the child that it forks there runs
the module as `python -m` would have, to the interpreter's own end. It is a process as any other: with a pid, signals
and memory of its own, ended by kill -9. Its parent is the nursery, which leaves it to be a zombie until it is asked for
its status, so a pid always names the process that was meant.

Starting in the plain way is tested where it is what is tested: `up`, `demo`, the set-up, a worker beside its executor.
"""

import atexit
import gc
import importlib
import json
import os
import pkgutil
import runpy
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO, Any

ROOT = Path(__file__).parents[1]
MESSAGE_BYTES_MAX = 1 << 20
PACKAGES = ("shared", "services", "cli")
# What the interpreter reads of its environment when it starts, and never again.
READ_ONCE = ("PYTHON", "LC_", "LANG", "MALLOC_", "LD_")


class Forked:
    """A process that was forked; as much of `subprocess.Popen` as the tests use."""

    def __init__(self, nursery: "_Nursery", argv: Sequence[str], pid: int) -> None:
        self.args = list(argv)
        self.pid = pid
        self.returncode: int | None = None
        self._nursery = nursery
        self._ended = os.pidfd_open(pid)  # readable when it has ended

    def poll(self) -> int | None:
        if self.returncode is None and select.select([self._ended], [], [], 0)[0]:
            self.returncode = self._nursery.status_of(self.pid)
            os.close(self._ended)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        if self.returncode is None:
            select.select([self._ended], [], [], timeout)
        if (status := self.poll()) is None:
            raise subprocess.TimeoutExpired(self.args, timeout or 0)
        return status

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


Process = subprocess.Popen[bytes] | Forked


def start(argv: Sequence[str], environment: Mapping[str, str], out: IO[Any], error: IO[Any]) -> Process:
    """Run `argv` in the checkout: forked when it is a module of Remit in an environment such as this one's."""
    is_ours = list(argv[:2]) == [sys.executable, "-m"] and argv[2].partition(".")[0] in PACKAGES
    if is_ours and _is_like_ours(environment):
        return _nursery().start(argv, environment, (out.fileno(), error.fileno()))
    return subprocess.Popen(argv, env=dict(environment), cwd=ROOT, stdin=subprocess.DEVNULL, stdout=out, stderr=error)


def run(argv: Sequence[str], environment: Mapping[str, str], timeout_s: float) -> subprocess.CompletedProcess[str]:
    """Run `argv` to its end; what it printed, as text."""
    with TemporaryFile() as out, TemporaryFile() as error:
        process = start(argv, environment, out, error)
        try:
            status = process.wait(timeout_s)
        finally:
            process.kill()
            process.wait()
        said = []
        for file in (out, error):
            file.seek(0)
            said.append(file.read().decode())
    return subprocess.CompletedProcess(list(argv), status, *said)


def _is_like_ours(environment: Mapping[str, str]) -> bool:
    read_once = {name: value for name, value in environment.items() if name.startswith(READ_ONCE)}
    return read_once == {name: value for name, value in _own_environment().items() if name.startswith(READ_ONCE)}


def _own_environment() -> dict[str, str]:
    """This process's environment, with the path on which Remit is found."""
    return {**os.environ, "PYTHONPATH": str(ROOT)}


@cache
def _nursery() -> "_Nursery":
    return _Nursery()


class _Nursery:
    """The test process's end of the socket."""

    def __init__(self) -> None:
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._turn = threading.Lock()
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.forking", str(theirs.fileno())],
                cwd=ROOT, env=_own_environment(), pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
            )  # fmt: skip
        atexit.register(self._end)

    def start(self, argv: Sequence[str], environment: Mapping[str, str], out: tuple[int, int]) -> Forked:
        return Forked(self, argv, self._ask({"argv": argv[2:], "environment": dict(environment)}, out))

    def status_of(self, pid: int) -> int:
        """How the child has ended, as `Popen.returncode`; its pid is free then."""
        return self._ask({"ended": pid})

    def _ask(self, what: dict[str, Any], files: Sequence[int] = ()) -> int:
        try:
            with self._turn:
                socket.send_fds(self._socket, [json.dumps(what).encode()], files)
                answer = self._socket.recv(64)
        except ConnectionError:
            answer = b""
        assert answer, "the nursery has ended, or could not import Remit: its own words are on stderr"
        return int(answer)

    def _end(self) -> None:
        self._socket.close()
        self._process.wait()


def _serve(end: socket.socket) -> list[str]:
    """Answer until nobody asks any more; in a child that was forked, return what it is to run."""
    while True:
        told, files, _, _ = socket.recv_fds(end, MESSAGE_BYTES_MAX, 2)
        if not told:
            raise SystemExit(0)
        what = json.loads(told)
        if "ended" in what:
            end.send(str(os.waitstatus_to_exitcode(os.waitpid(what["ended"], 0)[1])).encode())
            continue
        pid = os.fork()
        if pid == 0:
            end.close()
            for number, file in enumerate(files, 1):
                os.dup2(file, number)
                os.close(file)
            os.environ.clear()
            os.environ.update(what["environment"])
            time.tzset()
            argv: list[str] = what["argv"]
            return argv
        for file in files:
            os.close(file)
        end.send(str(pid).encode())


def _status(code: object) -> int:
    """The exit status that `SystemExit(code)` means."""
    if code is None or isinstance(code, int):
        return (code or 0) & 0xFF
    print(code, file=sys.stderr)
    return 1


def _import_all() -> None:
    for package in PACKAGES:
        for module in pkgutil.walk_packages([str(ROOT / package)], f"{package}."):
            if not module.name.endswith("__main__"):
                importlib.import_module(module.name)


if __name__ == "__main__":
    _import_all()
    gc.collect()
    gc.freeze()  # its pages stay shared with its children
    threads = {file.read_text().strip() for file in Path("/proc/self/task").glob("[0-9]*/comm")}
    # Who has threads cannot be forked; pyarrow's allocator knows what to do about its own.
    assert len(threads - {"jemalloc_bg_thd"}) == 1, threads
    wanted = _serve(socket.socket(fileno=int(sys.argv[1])))
    sys.orig_argv = [sys.executable, "-m", *wanted]
    sys.argv = wanted
    status = 1
    try:
        runpy.run_module(wanted[0], run_name="__main__", alter_sys=True)
        status = 0
    except SystemExit as end:
        status = _status(end.code)
    except BaseException:
        sys.excepthook(*sys.exc_info())
    # All that an interpreter does at its end, but for taking every module apart: 0.2 s of a process that is a copy.
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)

"""Remit's processes in a few milliseconds: one that has imported all of Remit waits, and forks whatever is wanted.

Theory of operation. `python -m cli …` computes for 0.3 s before it does anything, nearly all of it imports, and the
tests start Remit a thousand times. So each test process keeps a *nursery* (`python -m tests.forking`). Over a socket it
is told what to run, in which environment and folder, and gets the three open files; the child that it forks there runs
the module as `python -m` would have, to the interpreter's own end. It is a process as any other: with a pid, signals
and memory of its own, ended by kill -9. Its parent is the nursery, which leaves it to be a zombie until it is asked for
its status, so a pid always names the process that was meant. What a process of Remit starts of Remit in its turn (an
executor its worker) it forks as well, so it is its child. What Python runs at its start (`sitecustomize`) cannot be run
later: where `PYTHONPATH` has one, there is a nursery that has run it.

Starting in the plain way is tested where it is what is tested: `up` with all that it keeps, `demo`, the benchmarks,
the set-up.
"""

import asyncio
import atexit
import gc
import importlib
import json
import logging
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
from collections.abc import Callable, Coroutine, Mapping, Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO, Any, NoReturn

ROOT = Path(__file__).parents[1]
MESSAGE_BYTES_MAX = 1 << 20
PACKAGES = ("shared", "services", "cli")
ALONE_S = 5.0
# What the interpreter reads of its environment when it starts, and never again.
READ_ONCE = ("PYTHON", "LC_", "LANG", "MALLOC_", "LD_")
# What a nursery is started with: where Python finds what it runs at its start, and what that reads.
AT_START = ("PYTHONPATH", "CHAOS_LEASE_S", "CHAOS_CANCEL_PATIENCE_S")


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
    like_ours = {**_own_environment(), **{name: environment[name] for name in AT_START if name in environment}}
    if _is_ours(argv) and _read_once(environment) == _read_once(like_ours):
        nursery = _nursery(tuple((name, environment[name]) for name in AT_START if name in environment))
        return nursery.start(argv, environment, (out.fileno(), error.fileno()))
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


def _is_ours(argv: Sequence[str]) -> bool:
    """Whether it is Python that runs a module of Remit or of its tests."""
    return list(argv[:2]) == [sys.executable, "-m"] and argv[2].partition(".")[0] in (*PACKAGES, "tests")


def _read_once(environment: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in environment.items() if name.startswith(READ_ONCE)}


def _own_environment() -> dict[str, str]:
    """This process's environment, with the path on which Remit is found."""
    return {**os.environ, "PYTHONPATH": str(ROOT)}


@cache
def _nursery(at_start: tuple[tuple[str, str], ...]) -> "_Nursery":
    return _Nursery(dict(at_start))


class _Nursery:
    """The test process's end of the socket."""

    def __init__(self, at_start: Mapping[str, str]) -> None:
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._turn = threading.Lock()
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.forking", str(theirs.fileno())],
                cwd=ROOT, env={**_own_environment(), **at_start}, pass_fds=[theirs.fileno()],
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
            os._exit(0)  # nothing is to be taken apart
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


def _run(argv: list[str]) -> NoReturn:
    """What `python -m argv…` does, to the end of this process."""
    sys.orig_argv = [sys.executable, "-m", *argv]
    sys.argv = argv
    status = 1
    try:
        runpy.run_module(argv[0], run_name="__main__", alter_sys=True)
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


class _Child:
    """A process that was forked by a forked one; as much of `asyncio.subprocess.Process` as Remit uses of it."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.returncode: int | None = None
        self._over = asyncio.Event()
        self._ended = os.pidfd_open(pid)
        asyncio.get_running_loop().add_reader(self._ended, self._on_end)

    def _on_end(self) -> None:
        asyncio.get_running_loop().remove_reader(self._ended)
        os.close(self._ended)
        self.returncode = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        self._over.set()

    async def wait(self) -> int | None:
        await self._over.wait()
        return self.returncode

    def terminate(self) -> None:
        if self.returncode is None:
            os.kill(self.pid, signal.SIGTERM)


_start: Callable[..., Coroutine[Any, Any, asyncio.subprocess.Process]] = asyncio.create_subprocess_exec


async def _start_or_fork(
    *argv: str, env: Mapping[str, str] | None = None, **options: Any
) -> asyncio.subprocess.Process | _Child:
    """In place of `asyncio.create_subprocess_exec` in a process that was forked."""
    environment = dict(os.environ if env is None else env)
    as_here = _is_ours(argv) and not options and _read_once(environment) == _read_once(os.environ)
    if not as_here or len(_threads()) > 1:
        return await _start(*argv, env=env, **options)
    pid = os.fork()
    if pid:
        return _Child(pid)
    try:
        _forget_the_parent()
        os.environ.clear()
        os.environ.update(environment)
        _run(list(argv[2:]))
    finally:
        os._exit(1)  # whatever happens, it does not go on as its parent


def _forget_the_parent() -> None:
    """Its loop, connections and log; what belongs to them is never taken apart, as that would be done to both."""
    gc.freeze()
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    logging.getLogger().handlers.clear()
    for file in list(Path("/proc/self/fd").iterdir()):
        with suppress(FileNotFoundError):  # that of the folder itself
            if os.readlink(file).startswith(("socket:", "anon_inode:")):  # libuv's pipe is this process's own
                os.close(int(file.name))


def _threads() -> list[str]:
    """The names of this process's threads; pyarrow's allocator knows what to do about its own when it is forked."""
    names = [file.read_text().strip() for file in Path("/proc/self/task").glob("[0-9]*/comm")]
    return [name for name in names if name != "jemalloc_bg_thd"]


def _until_alone() -> None:
    """A thread has its process's name until it has run for the first time: the allocator's may be that new."""
    end_s = time.monotonic() + ALONE_S
    while len(_threads()) > 1 and time.monotonic() < end_s:
        time.sleep(0.01)


if __name__ == "__main__":
    _import_all()
    gc.collect()
    gc.freeze()  # its pages stay shared with its children
    _until_alone()
    assert len(_threads()) == 1, f"who has threads cannot be forked: {_threads()}"
    wanted = _serve(socket.socket(fileno=int(sys.argv[1])))
    asyncio.create_subprocess_exec = _start_or_fork  # type: ignore[assignment]
    _run(wanted)

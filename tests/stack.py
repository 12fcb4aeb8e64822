"""A real stack for tests: nats-server and services as processes of their own, on free loopback ports.

Used with `with stack(tmp_path, "planner", "executor", …) as s`. What is started here is ended here; `kill` is kill -9.
"""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from tests import forking

ROOT = forking.ROOT
WITHIN_S = 30.0
SERVICES = ("planner", "executor", "registry")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def free_ports(count: int) -> list[int]:
    """So many ports, no two the same."""
    with ExitStack() as held:
        probes = [held.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [probe.getsockname()[1] for probe in probes]


def until(condition: Callable[[], object], what: str = "the condition", within_s: float = WITHIN_S) -> None:
    """Wait in code that has no loop until `condition` holds."""
    end_s = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < end_s, f"{what}: still not so after {within_s:g} s"
        time.sleep(0.02)


def _state_of(pid: int) -> str:
    """What the kernel says of a process: R, S, T (stopped), Z …"""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


class Stack:
    """Processes by name; their logs are in `folder`. NATS is one server, `nats`, or a cluster of `nats-1` and so on."""

    def __init__(self, folder: Path, environment: dict[str, str] | None = None, nodes: int = 1) -> None:
        self.folder = folder
        ports = free_ports(2 * nodes)
        names = ["nats"] if nodes == 1 else [f"nats-{i + 1}" for i in range(nodes)]
        self.nodes = dict(zip(names, ports, strict=False))
        self._routes = dict(zip(names, ports[nodes:], strict=True))
        self.nats_port = ports[0]
        self.url = ",".join(f"nats://127.0.0.1:{port}" for port in self.nodes.values())
        self.processes: dict[str, forking.Process] = {}
        self.environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("REMIT_")},
            "REMIT_NATS_URL": self.url,
            "REMIT_DATA_DIR": str(folder),
            "REMIT_HOST": "testhost",
            "REMIT_HTTP": "127.0.0.1:0",
            "REMIT_HTTP_PORT_FILE": str(folder / "http.port"),
            "PYTHONPATH": str(ROOT),
            **(environment or {}),
        }

    def start_nats(self) -> None:
        for node in self.nodes:
            self.start_node(node)

    def start_node(self, node: str) -> None:
        server = str(Path(sys.executable).with_name("nats-server"))
        port, store = self.nodes[node], self.folder / node.replace("nats", "jetstream")
        lines = [
            'host: "127.0.0.1"',
            f"port: {port}",
            f'jetstream {{ store_dir: "{store}", sync_interval: "100ms" }}',
        ]
        if len(self.nodes) > 1:
            routes = ", ".join(f'"nats://127.0.0.1:{route}"' for route in self._routes.values())
            listen = f'host: "127.0.0.1", port: {self._routes[node]}'
            lines += [f"server_name: {node}", f"cluster {{ name: tests, {listen}, routes: [{routes}] }}"]
        conf = self.folder / f"{node}.conf"
        conf.write_text("\n".join(lines) + "\n")
        self._spawn(node, [server, "-c", str(conf)], {})
        until(lambda: self._listens(port), f"{node} listens")

    def start(self, service: str, **environment: str) -> None:
        """Start `service` (planner, executor, registry, gateway, log_agent, gpu_agent)."""
        self._spawn(service, [sys.executable, "-m", f"services.{service}"], environment)

    def start_as(self, name: str, argv: list[str], **environment: str) -> None:
        """Start a program of one's own, or a service a second time, under a name of its own."""
        self._spawn(name, argv, environment)

    def freeze(self, name: str) -> None:
        """SIGSTOP, and see it stand still: it lives and does nothing, until `thaw`."""
        process = self.processes[name]
        process.send_signal(signal.SIGSTOP)
        until(lambda: _state_of(process.pid) == "T", f"{name} stands still")

    def thaw(self, name: str) -> None:
        self.processes[name].send_signal(signal.SIGCONT)

    def kill(self, name: str) -> None:
        """kill -9, and see it gone."""
        process = self.processes.pop(name)
        process.kill()
        process.wait()

    def stop(self, name: str) -> int:
        """Ask it to end; its exit status."""
        process = self.processes.pop(name)
        process.send_signal(signal.SIGTERM)
        try:
            return process.wait(25)
        finally:
            process.kill()
            process.wait()

    def ended(self) -> dict[str, int]:
        """What has ended although nobody ended it, and its exit status. Nothing here starts a process again."""
        statuses = {name: process.poll() for name, process in self.processes.items()}
        return {name: status for name, status in statuses.items() if status is not None}

    def log(self, name: str) -> str:
        return (self.folder / f"{name}.log").read_text(errors="replace")

    def remit(self, *argv: str, timeout_s: float = 60) -> subprocess.CompletedProcess[str]:
        """Run the CLI against this stack."""
        return forking.run([sys.executable, "-m", "cli", *argv], self.environment, timeout_s)

    def _spawn(self, name: str, argv: list[str], environment: dict[str, str]) -> None:
        assert name not in self.processes, f"{name} runs already"
        with (self.folder / f"{name}.log").open("ab") as log:
            self.processes[name] = forking.start(argv, {**self.environment, **environment}, log, log)

    def _listens(self, port: int) -> bool:
        with socket.socket() as probe:
            probe.settimeout(1)
            return probe.connect_ex(("127.0.0.1", port)) == 0


@contextmanager
def stack(folder: Path, *services: str, environment: dict[str, str] | None = None, nodes: int = 1) -> Iterator[Stack]:
    """NATS and the services named; everything ended afterwards, services before NATS."""
    made = Stack(folder, environment, nodes)
    try:
        made.start_nats()
        for service in services:
            made.start(service)
        yield made
    finally:
        for name in sorted(made.processes, key=lambda name: name in made.nodes):
            made.stop(name)

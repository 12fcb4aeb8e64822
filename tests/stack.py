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
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).parents[1]
WITHIN_S = 30.0
SERVICES = ("planner", "executor", "registry")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def until(condition: Callable[[], object], what: str = "the condition", within_s: float = WITHIN_S) -> None:
    """Wait in code that has no loop until `condition` holds."""
    end_s = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < end_s, f"{what}: still not so after {within_s:g} s"
        time.sleep(0.02)


class Stack:
    """Processes by name; their logs are in `folder`."""

    def __init__(self, folder: Path, environment: dict[str, str] | None = None) -> None:
        self.folder = folder
        self.nats_port = free_port()
        self.url = f"nats://127.0.0.1:{self.nats_port}"
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
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
        server = str(Path(sys.executable).with_name("nats-server"))
        conf = self.folder / "nats.conf"
        conf.write_text(
            f'host: "127.0.0.1"\nport: {self.nats_port}\n'
            f'jetstream {{ store_dir: "{self.folder / "jetstream"}", sync_interval: "100ms" }}\n'
        )
        self._spawn("nats", [server, "-c", str(conf)], {})
        until(self._nats_listens, "nats-server listens")

    def start(self, service: str, **environment: str) -> None:
        """Start `service` (planner, executor, registry, gateway, log_agent, gpu_agent)."""
        self._spawn(service, [sys.executable, "-m", f"services.{service}"], environment)

    def start_as(self, name: str, argv: list[str], **environment: str) -> None:
        """Start a program of one's own, or a service a second time, under a name of its own."""
        self._spawn(name, argv, environment)

    def freeze(self, name: str) -> None:
        """SIGSTOP: it lives and does nothing, until `thaw`."""
        self.processes[name].send_signal(signal.SIGSTOP)

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

    def log(self, name: str) -> str:
        return (self.folder / f"{name}.log").read_text(errors="replace")

    def remit(self, *argv: str, timeout_s: float = 60) -> subprocess.CompletedProcess[str]:
        """Run the CLI against this stack."""
        return subprocess.run(
            [sys.executable, "-m", "cli", *argv],
            env=self.environment,
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=timeout_s,
        )

    def _spawn(self, name: str, argv: list[str], environment: dict[str, str]) -> None:
        assert name not in self.processes, f"{name} runs already"
        with (self.folder / f"{name}.log").open("ab") as log:
            self.processes[name] = subprocess.Popen(
                argv, env={**self.environment, **environment}, cwd=ROOT, stdout=log, stderr=log
            )

    def _nats_listens(self) -> bool:
        with socket.socket() as probe:
            probe.settimeout(1)
            return probe.connect_ex(("127.0.0.1", self.nats_port)) == 0


@contextmanager
def stack(folder: Path, *services: str, environment: dict[str, str] | None = None) -> Iterator[Stack]:
    """NATS and the services named; everything ended afterwards, services before NATS."""
    made = Stack(folder, environment)
    try:
        made.start_nats()
        for service in services:
            made.start(service)
        yield made
    finally:
        for name in [name for name in made.processes if name != "nats"]:
            made.stop(name)
        if "nats" in made.processes:
            made.stop("nats")

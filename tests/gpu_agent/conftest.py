"""Cards for the tests: the NVML stand-in, compiled once, and a process that looks through the unmodified binding."""

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest

from services.gpu_agent.reading import HostSample
from shared.gpu import GpuHostReport, GpuReportRequest
from tests.standins.nvml import Host, NoCompiler, build, environment, scenario

ROOT = Path(__file__).parents[2]
REPLY_WITHIN_S = 20.0


class Watcher:
    """A process of its own with the stand-in in front: it looks when told, at the time it is told."""

    def __init__(self, folder: Path, told: Path) -> None:
        self._told = told
        self.trace = told.with_name("trace")
        self.environment = environment(folder, told, trace=self.trace)
        command = [sys.executable, "-m", "tests.gpu_agent.watcher"]
        self.process = subprocess.Popen(
            command, cwd=ROOT, env=self.environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def show(self, host: Host) -> None:
        """Change what the library shows."""
        scenario(self._told, host)

    def look(self, t_s: float) -> HostSample:
        """Take one sample at a monotonic time of the test's choice."""
        return msgspec.json.decode(self._say(f"look {t_s}"), type=HostSample)

    def start(self, interval_s: float) -> None:
        """Start the sampler's thread."""
        self._say(f"start {interval_s}")

    def answer(self, request: GpuReportRequest | None = None) -> GpuHostReport:
        """Ask the sampler."""
        asked = msgspec.json.encode(request or GpuReportRequest()).decode()
        return msgspec.json.decode(self._say(f"answer {asked}"), type=GpuHostReport)

    def answer_when(self, good: Callable[[GpuHostReport], bool], within_s: float = 15.0) -> GpuHostReport:
        """Ask until the answer is good, or fail with the last one."""
        deadline = time.monotonic() + within_s
        while not good(report := self.answer()):
            assert time.monotonic() < deadline, f"still not so after {within_s} s: {report}"
        return report

    def has_binding(self) -> bool:
        """Say whether the binding was loaded."""
        return self._say("binding") == "True"

    def close(self) -> None:
        """End the process."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.close()
        try:
            self.process.wait(REPLY_WITHIN_S)
        finally:
            self.process.kill()
            self.process.stdout.close()

    def _say(self, line: str) -> str:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()
        reply = self.process.stdout.readline()
        assert reply, f"the watcher ended at {line!r}"
        return reply.rstrip("\n")


@pytest.fixture(scope="session")
def library(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Return the builder of the stand-in, which compiles each variant once a session."""
    folder = tmp_path_factory.mktemp("nvml")

    def make(*without: str) -> Path:
        try:
            return build(folder, without=without)
        except NoCompiler as reason:
            pytest.skip(str(reason))

    return make


@pytest.fixture
def watch(library: Callable[..., Path], tmp_path: Path) -> Iterator[Callable[..., Watcher]]:
    """Return a starter of watchers: `watch(host)`, or `watch(host, without=[...])` for an old driver."""
    watchers: list[Watcher] = []

    def begin(host: Host, *, without: tuple[str, ...] = (), folder: Path | None = None) -> Watcher:
        told = scenario(tmp_path / f"cards-{len(watchers)}", host)
        watchers.append(Watcher(folder or library(*without), told))
        return watchers[-1]

    yield begin
    for watcher in watchers:
        watcher.close()

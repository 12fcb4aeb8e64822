"""A real stack for the gateway's tests: nats-server, planner, executor, registry and gateway as processes of their own,
on free loopback ports, once for the folder, and gone after it.
"""

import asyncio
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
import pytest

from shared.append import Appender
from shared.bus import Bus, connect
from shared.events import Artifact, StepCompleted, encode
from shared.plan import TaskSpec
from shared.pull import Delivery, Puller
from shared.streams import worker_queue
from shared.subjects import ARTIFACTS_BUCKET, CONFIG_BUCKET, EVENTS, artifact, step_completed, task_key, worker_consumer
from tests.stack import SERVICES, Stack, until

WITHIN_S = 20.0
HEARTBEAT_S = 0.3


class WebStack(Stack):
    """A stack with a gateway; `web` is its address."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, {"REMIT_HTTP_HOSTS": "remit.example", "REMIT_HTTP_HEARTBEAT_S": str(HEARTBEAT_S)})
        self.port = 0

    def start_gateway(self) -> None:
        port_file = Path(self.environment["REMIT_HTTP_PORT_FILE"])
        port_file.unlink(missing_ok=True)
        self.start("gateway")
        until(port_file.exists, "the gateway listens", WITHIN_S)
        self.port = int(port_file.read_text())

    @property
    def web(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def is_ready(self) -> bool:
        """Whether the gateway and all that it stands on answer."""
        try:
            with urllib.request.urlopen(f"{self.web}/readyz", timeout=WITHIN_S) as answer:
                return answer.status == 200
        except urllib.error.HTTPError as error:
            error.close()
            return False


@contextmanager
def _started(folder: Path, *services: str) -> Iterator[WebStack]:
    made = WebStack(folder)
    try:
        made.start_nats()
        for service in services:
            made.start(service)
        made.start_gateway()
        yield made
    finally:
        for name in reversed(list(made.processes)):
            made.stop(name)


@pytest.fixture(scope="session")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[WebStack]:
    with _started(tmp_path_factory.mktemp("gateway"), *SERVICES) as made:
        until(made.is_ready, "the gateway is ready", WITHIN_S)  # the registry may be slower than the first test
        yield made


@pytest.fixture
def alone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[WebStack]:
    """A stack of a test's own, with NATS and gateway only, in which things may be killed."""
    with _started(tmp_path_factory.mktemp("alone")) as made:
        yield made


@pytest.fixture
async def bus(stack: WebStack) -> AsyncIterator[Bus]:
    made = await connect(stack.url, "gateway-test")
    yield made
    await made.close()


@pytest.fixture
async def web(stack: WebStack) -> AsyncIterator[aiohttp.ClientSession]:
    """A client of the gateway; redirects and compressed answers would be a surprise."""
    timeout = aiohttp.ClientTimeout(total=WITHIN_S)
    async with aiohttp.ClientSession(stack.web, timeout=timeout) as session:
        yield session


async def problem(answer: aiohttp.ClientResponse, status: int, kind: str) -> dict[str, Any]:
    """The problem details of an answer, checked for what every problem must hold."""
    raw = await answer.read()
    assert answer.status == status, raw
    assert answer.headers["Content-Type"] == "application/problem+json", raw
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    body: dict[str, Any] = msgspec.json.decode(raw)
    assert body["type"] == f"urn:remit:problem:{kind}"
    assert body["status"] == status
    assert body["title"]
    assert body["detail"]
    assert "instance" in body
    return body


async def submitted(web: aiohttp.ClientSession, goal: dict[str, Any]) -> int:
    async with web.post("/api/runs", json=goal) as answer:
        assert answer.status == 202, await answer.text()
        run: int = (await answer.json())["run"]
        return run


async def ended(web: aiohttp.ClientSession, run: int) -> dict[str, Any]:
    """The run once it is over."""
    async with asyncio.timeout(WITHIN_S):
        while True:
            async with web.get(f"/api/runs/{run}") as answer:
                assert answer.status == 200, await answer.text()
                view: dict[str, Any] = await answer.json()
            if view["ended_at"]:
                return view
            await asyncio.sleep(0.02)


class Outsider:
    """A worker of nobody's house: performs one task by putting the given artifacts and announcing them."""

    def __init__(self, bus: Bus, task: str) -> None:
        self.bus = bus
        self.task = task
        self.artifacts: list[tuple[str, bytes, str]] = []
        self.announce: list[Artifact] = []
        self.gate = asyncio.Event()
        self.gate.set()
        self.run = 0

    async def start(self) -> "Outsider":
        spec = TaskSpec(name=self.task, description="somebody else's", timeout_s=60)
        await self.bus.kv_put(CONFIG_BUCKET, task_key(self.task), encode(spec))
        await worker_queue(self.bus, self.task)
        self._appender = await Appender(self.bus).start()
        self._working: set[asyncio.Task[None]] = set()
        self._puller = Puller(self.bus, EVENTS, worker_consumer(self.task), self._begin, batch=4)
        await self._puller.start()
        return self

    async def stop(self) -> None:
        await self._puller.stop()
        for work in list(self._working):
            await work
        self._appender.stop()

    def _begin(self, delivery: Delivery) -> None:
        work = asyncio.create_task(self._perform(delivery))
        self._working.add(work)
        work.add_done_callback(self._working.discard)

    async def _perform(self, delivery: Delivery) -> None:
        _, _, run, step, attempt, _ = delivery.subject.split(".")
        self.run = int(run)
        await self.gate.wait()
        told = list(self.announce)
        for name, data, media_type in self.artifacts:
            sha256, size = await self.bus.object_put(ARTIFACTS_BUCKET, artifact(int(run), name), data)
            told.append(Artifact(name=name, sha256=sha256, size_bytes=size, media_type=media_type))
        body = StepCompleted(outputs={"by": "an outsider"}, artifacts=told, host="elsewhere")
        await self._appender.append(step_completed(int(run), step, int(attempt)), encode(body))
        await self._puller.ack(delivery)


@pytest.fixture
async def outsider(bus: Bus) -> AsyncIterator[Outsider]:
    made = await Outsider(bus, "elsewhere").start()
    yield made
    await made.stop()

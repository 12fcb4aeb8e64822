"""An agent is whoever answers on its subjects: one that lies, is silent or talks for ever spoils nobody's report."""

import asyncio
import json
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import msgspec
import pytest

from services.executor.handlers import Outputs, Task
from services.executor.tasks import gpu_report as gpu
from services.executor.tasks import log_triage as triage
from services.executor.tasks import service_map as services
from services.executor.tasks.agents import TOLD_MAX, hosts_of
from shared import log_reading
from shared.bus import Bus
from shared.clock import NS_PER_S, now_ns
from shared.errors import Malformed, Unavailable
from shared.events import OUTPUTS_BYTES_MAX
from shared.gpu import GpuHostReport
from shared.logs import GO_ON, LogChunk, ReadRequest, ServiceInfo, ServicesReply, SourceInfo, SourcesReply
from shared.subjects import ARTIFACTS_BUCKET, artifact

NESTED = b"[" * 100_000
Answer = Callable[[bytes, str], Awaitable[None]]


def task(bus: Bus, *, within_s: float = 600, **inputs: Any) -> Task:
    async def said(_call: object) -> None:
        raise AssertionError("no model is there to be called")

    return Task(
        bus,
        run=1,
        step="a",
        task="log_triage",
        attempt=1,
        inputs=inputs,
        goal="check",
        deadline_ns=now_ns() + int(within_s * NS_PER_S),
        token_grant=0,
        said_llm=said,
    )


async def answers(bus: Bus, subject: str, say: bytes | Answer) -> None:
    async def handle(_subject: str, data: bytes, reply: str, _headers: Mapping[str, str] | None) -> None:
        if isinstance(say, bytes):
            await bus.publish(reply, say)
        else:
            await say(data, reply)

    await bus.subscribe(subject, handle)


async def kept(bus: Bus, name: str) -> Any:
    with TemporaryDirectory() as folder:
        path = Path(folder) / "artifact"
        await bus.object_get(ARTIFACTS_BUCKET, artifact(1, name), path)
        return json.loads(path.read_bytes())


def listed(*sources: str) -> bytes:
    infos = [SourceInfo(source=one, kind="file", name=one, allowed=True) for one in sources]
    return msgspec.json.encode(SourcesReply(host="any", sources=infos))


async def honest(bus: Bus, host: str, source: str = "file:/a.log") -> None:
    """A log agent with one source of one line."""
    await answers(bus, f"logs.{host}.sources", listed(source))
    line = LogChunk(text=["ERROR it broke"], at=[None], stream=[""], last=True, cursor="c1", until=None)
    await answers(bus, f"logs.{host}.read", msgspec.json.encode(line))


async def endless(bus: Bus, host: str, chunk: LogChunk) -> list[int]:
    """A log agent whose reads never come to an end; what comes back counts its chunks."""
    sent = [0]
    back = f"back.{host}"

    async def go_on(data: bytes, _reply: str) -> None:
        if data == GO_ON:
            await bus.publish(inboxes[-1], msgspec.json.encode(msgspec.structs.replace(chunk, n=sent[0])), back)
            sent[0] += 1

    inboxes: list[str] = []

    async def begin(_data: bytes, reply: str) -> None:
        inboxes.append(reply)
        sent[0] = 0
        await go_on(GO_ON, "")

    await answers(bus, back, go_on)
    await answers(bus, f"logs.{host}.sources", listed("file:/a.log"))
    await answers(bus, f"logs.{host}.read", begin)
    return sent


# -- names -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("host", ["h" * 6_000, "a b", "a.b", "*", "", "a\r\nPUB x 0\r\n\r\n"])
@pytest.mark.parametrize("handler", [gpu.gpu_report, triage.log_triage, services.service_map])
async def test_a_host_that_no_subject_can_hold_is_refused_by_name(
    bus: Bus, handler: Callable[[Task], Awaitable[Outputs]], host: str
) -> None:
    with pytest.raises(Malformed) as caught:
        await handler(task(bus, hosts=["tower", host]))
    assert caught.value.field == "params.hosts"
    assert bus.is_connected


async def test_more_hosts_than_a_goal_may_name_are_refused(bus: Bus) -> None:
    with pytest.raises(Malformed, match="1000 at most"):
        await gpu.gpu_report(task(bus, hosts=[f"h{number}" for number in range(1_001)]))


async def test_whoever_answers_discovery_under_no_name_is_no_host(bus: Bus) -> None:
    async def info(_data: bytes, reply: str) -> None:
        for host in ("h" * 6_000, "a b", "a\r\nb", "", "tower"):
            said = {"name": "gpu", "id": "x", "version": "1", "metadata": {"host": host}}
            await bus.publish(reply, json.dumps(said).encode())

    await answers(bus, "$SRV.INFO.gpu", info)
    assert await hosts_of(bus, "gpu", None) == ["tower"]


async def test_a_subject_that_no_line_can_hold_is_refused_and_ends_nothing(bus: Bus) -> None:
    """The server ends the connection of whoever says a longer line than it takes."""
    for subject in ("a" * 5_000, "é" * 2_100):
        with pytest.raises(Malformed, match="nothing can be published on"):
            await bus.publish(subject, b"")
        with pytest.raises(Malformed, match="nothing can be published on"):
            await bus.request(subject, b"")
    await bus.publish("a" * 3_500, b"")  # and one that fits is said
    await bus.api("STREAM.NAMES")
    assert bus.is_connected


# -- GPUs --------------------------------------------------------------------------------------------------


async def test_a_gpu_agent_s_nonsense_costs_its_own_host_only(bus: Bus) -> None:
    await answers(bus, "gpu.liar.report", NESTED)
    await answers(bus, "gpu.other.report", b'{"host": "x", "gpus": "' + b"y" * 100_000 + b'"}')
    report = GpuHostReport(host="another", at="2026-11-21T09:00:00Z", state="ok", nvml="ok")
    await answers(bus, "gpu.tower.report", msgspec.json.encode(report))
    outputs = await gpu.gpu_report(task(bus, hosts=["liar", "other", "tower"]))
    assert sorted(outputs["missing_hosts"]) == ["liar", "other"]
    assert len(msgspec.json.encode(outputs)) < 2_000
    assert (await kept(bus, "gpu_report.json"))["missing_hosts"] == ["liar", "other"]


@pytest.mark.parametrize("handler", [gpu.gpu_report, services.service_map])
async def test_a_large_fleet_that_is_away_is_told_within_bounds(
    bus: Bus, handler: Callable[[Task], Awaitable[Outputs]]
) -> None:
    hosts = [f"{'h' * 50}-{number:04}" for number in range(1_000)]
    outputs = await handler(task(bus, hosts=hosts))
    assert outputs["missing_hosts_total"] == 1_000
    assert list(outputs["missing_hosts"]) == hosts[:TOLD_MAX]
    assert len(msgspec.json.encode(outputs)) < OUTPUTS_BYTES_MAX / 2


# -- containers ----------------------------------------------------------------------------------------------


async def test_silent_hosts_are_waited_for_at_once(bus: Bus, monkeypatch: pytest.MonkeyPatch) -> None:
    """One after the other they would take longer than the step has."""
    monkeypatch.setattr(services, "AGENT_DEADLINE_S", 0.5)

    async def nothing(_data: bytes, _reply: str) -> None:
        """It hears, and does not answer."""

    hosts = [f"silent{number}" for number in range(12)]
    for host in hosts:
        await answers(bus, f"logs.{host}.services", nothing)
    web = ServiceInfo(id="0123456789ab", name="web", image="web", state="running")
    await answers(bus, "logs.tower.services", msgspec.json.encode(ServicesReply(host="another", services=[web])))
    async with asyncio.timeout(4):
        outputs = await services.service_map(task(bus, hosts=[*hosts, "tower"]))
    assert sorted(outputs["missing_hosts"]) == sorted(hosts)
    document = await kept(bus, "services.json")
    assert [one["host"] for one in document["hosts"]] == [one["host"] for one in document["services"]] == ["tower"]


# -- logs --------------------------------------------------------------------------------------------------


async def test_an_agent_that_talks_for_ever_is_cut_off_at_the_limits_of_the_read(bus: Bus) -> None:
    sent = await endless(bus, "liar", LogChunk(text=["x"] * 1_000, at=[None] * 1_000, stream=[""] * 1_000))
    await honest(bus, "tower")
    outputs = await triage.log_triage(task(bus, hosts=["liar", "tower"], max_lines=5_000))
    assert (outputs["sources_read"], outputs["sources_not_read"]) == (1, 1)
    assert sent[0] <= 8
    (unread,) = (await kept(bus, "triage.json"))["unread"]
    assert "more than the limits" in unread["reason"]


@pytest.mark.parametrize(
    "chunk", [LogChunk(), LogChunk(text=["x" * 100_000], at=[None], stream=[""])], ids=["of nothing", "of bytes"]
)
async def test_chunks_of_nothing_and_of_many_bytes_count_too(bus: Bus, chunk: LogChunk) -> None:
    await endless(bus, "liar", chunk)
    with pytest.raises(Unavailable, match="more than the limits"):
        async for _ in log_reading.read_log(bus, "liar", ReadRequest(source="file:/a.log", max_lines=50, max_bytes=9)):
            pass


async def test_a_slow_host_costs_the_others_nothing(bus: Bus) -> None:
    """What was read when the step's time is nearly over is reported, and what was not is named."""

    async def slow(_data: bytes, reply: str) -> None:
        await asyncio.sleep(60)

    await answers(bus, "logs.asleep.sources", listed("file:/a.log"))
    await answers(bus, "logs.asleep.read", slow)
    await honest(bus, "tower")
    async with asyncio.timeout(8):
        outputs = await triage.log_triage(task(bus, within_s=4, hosts=["asleep", "tower"]))
    assert (outputs["sources_read"], outputs["sources_not_read"]) == (1, 1)
    (unread,) = (await kept(bus, "triage.json"))["unread"]
    assert (unread["host"], "time was over" in unread["reason"]) == ("asleep", True)


async def test_a_list_without_end_is_none(bus: Bus, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log_reading, "ENTRIES_MAX", 100)
    pages = [0]

    async def another(_data: bytes, reply: str) -> None:
        pages[0] += 1
        page = msgspec.json.decode(listed(*(f"file:/{pages[0]:06}/{n}" for n in range(30))), type=SourcesReply)
        await bus.publish(reply, msgspec.json.encode(msgspec.structs.replace(page, next=f"{pages[0]:09}")))

    await answers(bus, "logs.liar.sources", another)
    with pytest.raises(Unavailable, match="more than 100 sources"):
        await log_reading.all_sources(bus, "liar")
    assert pages[0] == 4


async def test_a_cursor_that_no_agent_takes_back_costs_nobody_else_theirs(bus: Bus) -> None:
    await answers(bus, "logs.liar.sources", listed("file:/a.log"))
    last = LogChunk(last=True, cursor="c" * 600_000, notes=["n" * 100_000] * 3)
    await answers(bus, "logs.liar.read", msgspec.json.encode(last))
    await honest(bus, "tower")
    made = task(bus, hosts=["liar", "tower"])
    assert (await triage.log_triage(made))["sources_read"] == 1
    for remember in made.when_accepted:
        await remember()
    memory = await triage.recall(bus, "tower", "file:/a.log")
    assert memory is not None and memory.cursor == "c1"


async def test_an_agent_s_words_are_cut(bus: Bus) -> None:
    refusal = {"error": "refused", "message": "m" * 100_000, "field": "source"}
    await answers(bus, "logs.liar.sources", json.dumps(refusal).encode())
    outputs = await triage.log_triage(task(bus, hosts=["liar"]))
    assert outputs["sources_not_read"] == 1
    assert len((await kept(bus, "triage.json"))["unread"][0]["reason"]) < 1_000

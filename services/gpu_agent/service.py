"""The agent on the bus: the micro service `gpu`, whose metadata names the host, answers `gpu.<host>.report`.

An answer is computed off the event loop: right after the start it waits for the first sample, and a full window of many
cards takes tens of milliseconds. A request that cannot be read is answered with `{"error", "field"}`.
"""

import asyncio

import msgspec

from services.gpu_agent.asked import asked
from services.gpu_agent.sampler import Sampler
from shared import clock, subjects
from shared.bus import Bus
from shared.errors import Malformed
from shared.gpu import GpuRequestRefused

VERSION = "1.0.0"


async def serve(bus: Bus, sampler: Sampler, host: str) -> None:
    """Answer for this host from now on; the sampler is started already."""

    async def report(data: bytes, reply: str) -> None:
        await bus.publish(reply, await asyncio.to_thread(_answer, sampler, data))

    subject = subjects.gpu_report(subjects.token(host, "host"))
    await bus.serve("gpu", VERSION, {subject: report}, metadata={"host": host})


def _answer(sampler: Sampler, data: bytes) -> bytes:
    try:
        request = asked(data)
    except Malformed as error:
        return msgspec.json.encode(GpuRequestRefused(error=error.message, field=error.field))
    return msgspec.json.encode(sampler.answer(request, at=clock.now()))

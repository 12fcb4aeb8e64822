"""The GPU agent of one host: samples from the start, and answers once NATS is there.

Settings come from the environment: `REMIT_HOST`, `REMIT_NATS_URL`, `REMIT_GPU_INTERVAL_S` (seconds between two looks).
"""

import asyncio
from typing import Annotated

import msgspec

from services.gpu_agent.nvml import Nvml
from services.gpu_agent.sampler import INTERVAL_S, INTERVAL_S_MAX, INTERVAL_S_MIN, Sampler
from services.gpu_agent.service import serve
from shared.process import connected, run
from shared.settings import host_name, setting

Interval = Annotated[float, msgspec.Meta(ge=INTERVAL_S_MIN, le=INTERVAL_S_MAX)]
STOP_WITHIN_S = 2.0  # a look takes milliseconds; one that takes longer hangs in the driver


async def main(stop: asyncio.Event) -> None:
    """Sample and answer until `stop`."""
    host = host_name()
    sampler = Sampler(Nvml(), host=host, interval_s=setting("GPU_INTERVAL_S", Interval, INTERVAL_S))
    sampler.start()  # before the connection: the window fills while NATS is still starting
    try:
        bus = await connected("gpu-agent")
        try:
            await serve(bus, sampler, host)
            await stop.wait()
        finally:
            await bus.close()
    finally:
        await asyncio.to_thread(sampler.stop, STOP_WITHIN_S)


if __name__ == "__main__":
    run("gpu-agent", main)

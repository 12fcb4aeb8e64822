"""The GPU agent of one host: samples from the start, and answers once NATS is there.

Settings come from the environment: `REMIT_HOST`, `REMIT_NATS_URL`, `REMIT_GPU_INTERVAL_S` (seconds between two looks).
"""

import asyncio
import os

from services.gpu_agent.nvml import Nvml
from services.gpu_agent.sampler import INTERVAL_S, Sampler
from services.gpu_agent.service import serve
from shared.config import host_name
from shared.errors import Malformed
from shared.process import connected, run

STOP_WITHIN_S = 2.0  # a look takes milliseconds; one that takes longer hangs in the driver


async def main(stop: asyncio.Event) -> None:
    """Sample and answer until `stop`."""
    host = host_name()
    sampler = Sampler(Nvml(), host=host, interval_s=interval_s(os.environ.get("REMIT_GPU_INTERVAL_S")))
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


def interval_s(text: str | None) -> float:
    """Read the setting; Malformed when it is no number (its limits are the sampler's)."""
    try:
        return float(text) if text else INTERVAL_S
    except ValueError as error:
        raise Malformed(f"REMIT_GPU_INTERVAL_S is {text!r}, not a number", field="REMIT_GPU_INTERVAL_S") from error


if __name__ == "__main__":
    run("gpu-agent", main)

"""Run the GPU agent of one host: `python -m services.gpu_agent [--host NAME] [--nats URL] [--interval-s S]`."""

import argparse
import asyncio
import logging
import signal
import sys

from services.gpu_agent.nvml import Nvml
from services.gpu_agent.sampler import INTERVAL_S, Sampler
from services.gpu_agent.service import serve
from shared.bus import connect
from shared.config import host_name, nats_url
from shared.errors import Malformed, RemitError


async def run(url: str, host: str, interval_s: float = INTERVAL_S) -> None:
    """Sample and answer until SIGTERM or SIGINT, or until the connection has ended for good."""
    over = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, over.set)
    sampler = Sampler(Nvml(), host=host, interval_s=interval_s)
    bus = await connect(url, f"remit-gpu-agent-{host}", on_closed=over.set)
    sampler.start()
    try:
        await serve(bus, sampler, host)
        await over.wait()
    finally:
        await bus.close()
        await asyncio.to_thread(sampler.stop)


def main() -> int:
    """Read the command line and run."""
    parser = argparse.ArgumentParser(prog="remit gpu-agent", description="Answer for the GPUs of one host.")
    parser.add_argument("--host", default=host_name())
    parser.add_argument("--nats", default=nats_url())
    parser.add_argument("--interval-s", type=float, default=INTERVAL_S, help="seconds between two looks at the GPUs")
    given = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    try:
        asyncio.run(run(given.nats, given.host, given.interval_s))
    except Malformed as error:
        parser.error(error.message)
    except RemitError as error:
        print(error.message, file=sys.stderr)
        return 5
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""`python -m tests.chaos.slow_worker`: performs `chaos-slow`, a step of a few tenths of a second, as an outsider would.

It keeps to the contract of the wire and no more: pull, keep the lease, say the end create-only, ack.
"""

import asyncio
import random
import signal

import msgspec

from shared.append import Appender
from shared.bus import connect
from shared.config import nats_url
from shared.errors import AlreadySaid
from shared.pull import Delivery, Puller
from tests.chaos.load import LEASE_S, SLOW_TASK

TAKES_S = (0.05, 0.6)


async def main() -> None:
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    bus = await connect(nats_url(), "chaos-slow")
    appender = await Appender(bus).start()
    tasks: set[asyncio.Task[None]] = set()

    async def beat(delivery: Delivery) -> None:
        while True:
            await asyncio.sleep(LEASE_S / 3)
            await puller.in_progress(delivery)

    async def perform(delivery: Delivery) -> None:
        _, _, run, step, attempt, _ = delivery.subject.split(".")
        heart = asyncio.create_task(beat(delivery))
        try:
            await asyncio.sleep(random.uniform(*TAKES_S))
            try:
                body = msgspec.json.encode({"outputs": {"delivered": delivery.delivered}, "host": "outside"})
                await appender.append(f"step.completed.{run}.{step}.{attempt}", body)
            except AlreadySaid:
                pass  # somebody else's end stands, or the first try of this one
        finally:
            heart.cancel()
        await puller.ack(delivery)

    def on_delivery(delivery: Delivery) -> None:
        task = asyncio.create_task(perform(delivery))
        tasks.add(task)
        task.add_done_callback(tasks.discard)

    puller = await Puller(bus, "EVENTS", f"worker-{SLOW_TASK}", on_delivery, batch=64).start()
    await stop.wait()
    await puller.stop()
    await bus.close()


if __name__ == "__main__":
    asyncio.run(main())

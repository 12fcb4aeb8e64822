"""`python -m tests.chaos.slow_worker`: performs `chaos-slow` and `chaos-tokens`, as an outsider would.

It keeps to the contract of the wire and no more: pull, keep the lease, say the end create-only, ack. A step takes a few
tenths of a second. `fail`: the first so many attempts fail. `use`: model calls, each by so many tokens, `all` that the
grant leaves, or `unknown`. It ends a step that is cancelled, and finishes what it has in hand when it is asked to end.
`CHAOS_PERFORMED` names a file that gets a line for each time that a step is begun.
"""

import asyncio
import os
import random
import signal
from collections.abc import Mapping

import msgspec

from shared.append import Appender
from shared.bus import Bus, connect
from shared.errors import AlreadySaid, Unavailable
from shared.pull import Delivery, Puller
from shared.settings import nats_url
from tests.chaos.mix import LEASE_S, SLOW_TASK, TOKENS_TASK

TAKES_S = (0.05, 0.4)
NATS_AGAIN_S = 0.2


class Outsider:
    def __init__(self, appender: Appender, performed: str) -> None:
        self._appender = appender
        self._performed = performed
        self.in_hand: dict[str, asyncio.Task[None]] = {}

    def on_cancel(self, subject: str, _data: bytes, _reply: str, _headers: Mapping[str, str] | None) -> None:
        """Only told, and only now: a request that comes while it is away is missed, as an outsider's may be."""
        attempt = subject.removeprefix("step.cancel_requested.")
        if attempt in self.in_hand:
            self.in_hand[attempt].cancel()

    async def perform(self, puller: Puller, delivery: Delivery) -> None:
        attempt = ".".join(delivery.subject.split(".")[2:5])
        heart = asyncio.create_task(self._beat(puller, delivery))
        work = asyncio.create_task(self._work(attempt, msgspec.json.decode(delivery.data)))
        self.in_hand[attempt] = work
        try:
            await work
        except asyncio.CancelledError:
            await self._say(f"step.cancelled.{attempt}", {"reason": "it was asked to end", "host": "outside"})
        finally:
            heart.cancel()
            self.in_hand.pop(attempt, None)
        await puller.ack(delivery)

    async def _beat(self, puller: Puller, delivery: Delivery) -> None:
        while True:
            await asyncio.sleep(LEASE_S / 3)
            await puller.in_progress(delivery)

    async def _work(self, attempt: str, asked: dict[str, object]) -> None:
        if self._performed:
            with open(self._performed, "a") as file:  # noqa: ASYNC230
                file.write(f"{attempt}\n")
        inputs: dict[str, object] = asked["inputs"]  # type: ignore[assignment]
        run, step, number = attempt.split(".")
        await asyncio.sleep(random.uniform(*TAKES_S))
        left = int(asked.get("token_grant", 0))  # type: ignore[call-overload]
        for call, use in enumerate(inputs.get("use", ()), 1):  # type: ignore[call-overload,var-annotated,arg-type]
            used = left if use == "all" else use
            known = {} if used == "unknown" else {"input_tokens": used, "output_tokens": 0}
            body = {"request_model": "robot", "outcome": "ok", **known}
            await self._say(f"llm.called.{run}.{step}.{number}-{call}", body)
            left = 0 if used == "unknown" else max(0, left - used)
        if int(number) <= int(inputs.get("fail", 0)):  # type: ignore[call-overload]
            body = {"error": "unavailable", "message": "as the goal says", "retryable": True, "host": "outside"}
            await self._say(f"step.failed.{attempt}", body)
        else:
            await self._say(f"step.completed.{attempt}", {"outputs": {"attempt": int(number)}, "host": "outside"})

    async def _say(self, subject: str, body: dict[str, object]) -> None:
        try:
            await self._appender.append(subject, msgspec.json.encode(body))
        except AlreadySaid:
            return  # somebody else's stands, or the first try of this one


async def connected() -> Bus:
    """A storm starts it at any moment, also when NATS is down, and nobody starts it a second time."""
    while True:
        try:
            return await connect(nats_url(), "chaos-slow")
        except Unavailable:
            await asyncio.sleep(NATS_AGAIN_S)


async def main() -> None:
    bus = await connected()
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    outsider = Outsider(await Appender(bus).start(), os.environ.get("CHAOS_PERFORMED", ""))
    await bus.subscribe("step.cancel_requested.>", outsider.on_cancel)
    tasks: set[asyncio.Task[None]] = set()
    pullers: list[Puller] = []

    async def pull(task: str) -> None:
        def on_delivery(delivery: Delivery) -> None:
            work = asyncio.create_task(outsider.perform(puller, delivery))
            tasks.add(work)
            work.add_done_callback(tasks.discard)

        puller = Puller(bus, "EVENTS", f"worker-{task}", on_delivery, batch=64)
        pullers.append(await puller.start())

    for task in (SLOW_TASK, TOKENS_TASK):
        await pull(task)
    await stop.wait()
    for puller in pullers:
        await puller.stop()
    if tasks:
        await asyncio.wait(tasks)
    await bus.close()


if __name__ == "__main__":
    asyncio.run(main())

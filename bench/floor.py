"""The floor: what three bare nats-py processes can pass through the same NATS, and nothing else.

`python -m bench.floor planner|executor|worker` is one role. They pass the messages of a run (goal, plan, and for each
step dispatched and completed: eight of three steps) in the fastest forms known: publishes acknowledged on one wildcard
inbox, a pull request always outstanding, create-only appends, acks on the work queues. No validation, no state, no
recovery; the payloads are as long as Remit's own were in the same bench. This is the only file outside shared/ that
imports nats.
"""

import asyncio
import sys
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec
import nats
import uvloop

STREAM = "FLOOR"
CREATE_ONLY = {"Nats-Expected-Last-Subject-Sequence": "0"}
NS = 1_000_000_000


class Sizes(msgspec.Struct):
    """Bytes of each kind of payload, the steps of a run, and how many of them are under way at a time."""

    goal: int
    plan: int
    dispatched: int
    completed: int
    steps: int = 3
    width: int = 1


class Publisher:
    """Appends with their acks counted, and the work queue's ack sent when the append's has come."""

    def __init__(self, client: Any) -> None:
        self._client = client
        self._prefix = client.new_inbox()
        self._waiting: dict[str, str] = {}
        self._number = 0

    async def start(self) -> "Publisher":
        await self._client.subscribe(f"{self._prefix}.*", cb=self._acked, pending_msgs_limit=-1, pending_bytes_limit=-1)
        return self

    async def _acked(self, message: Any) -> None:
        if b'"error"' in message.data:
            raise SystemExit(f"floor: {message.data!r}")
        source = self._waiting.pop(message.subject.rsplit(".", 1)[1], "")
        if source:
            await self._client.publish(source)

    async def publish(self, subject: str, data: bytes, source: str = "") -> None:
        self._number += 1
        token = str(self._number)
        if source:
            self._waiting[token] = source
        await self._client.publish(subject, data, f"{self._prefix}.{token}", CREATE_ONLY)


async def consume(client: Any, consumer: str, handler: Callable[[Any], Awaitable[None]], batch: int) -> None:
    """Keep a pull request outstanding; ask again when half of it is used up."""
    inbox = client.new_inbox()
    subject = f"$JS.API.CONSUMER.MSG.NEXT.{STREAM}.{consumer}"
    request = msgspec.json.encode({"batch": batch, "expires": 30 * NS})
    left = batch

    async def came(message: Any) -> None:
        nonlocal left
        if message.headers and "Status" in message.headers:
            left = 0
        else:
            left -= 1
            await handler(message)
        if left <= batch // 2:
            left += batch
            await client.publish(subject, request, inbox)

    await client.subscribe(inbox, cb=came, pending_msgs_limit=-1, pending_bytes_limit=-1)
    await client.publish(subject, request, inbox)


async def create(client: Any, consumer: str, subjects: list[str], ack: str) -> None:
    config = {
        "name": consumer,
        "durable_name": consumer if ack == "explicit" else None,
        "ack_policy": ack,
        "deliver_policy": "all",
        "filter_subjects": subjects,
        "max_ack_pending": 20_000 if ack == "explicit" else None,
        "inactive_threshold": 300 * NS,
    }
    config = {name: value for name, value in config.items() if value is not None}
    body = msgspec.json.encode({"stream_name": STREAM, "config": config})
    answer = await client.request(f"$JS.API.CONSUMER.CREATE.{STREAM}.{consumer}", body, timeout=5)
    assert b'"error"' not in answer.data, answer.data


async def role(url: str, name: str, sizes: Sizes) -> None:
    client = await nats.connect(url, pending_size=64 * 1024 * 1024)
    publisher = await Publisher(client).start()
    payload = {"plan": b"p" * sizes.plan, "dispatched": b"d" * sizes.dispatched, "completed": b"c" * sizes.completed}

    async def on_goal(message: Any) -> None:
        run = message.reply.split(".")[5]
        await publisher.publish(f"floorplan.created.{run}", payload["plan"], message.reply)

    async def on_event(message: Any) -> None:
        parts = message.subject.split(".")
        if parts[0] == "floorplan":
            first, last = 1, min(sizes.width, sizes.steps)
        else:
            first = last = int(parts[3].rsplit("-", 1)[1]) + sizes.width
        for step in range(first, min(last, sizes.steps) + 1):
            await publisher.publish(f"floorstep.dispatched.{parts[2]}.noop-{step}.1.noop", payload["dispatched"])

    async def on_dispatched(message: Any) -> None:
        _, _, run, step, attempt, _ = message.subject.split(".")
        await publisher.publish(f"floorstep.completed.{run}.{step}.{attempt}", payload["completed"], message.reply)

    if name == "planner":
        await create(client, "floor-planner", ["floorgoal.submitted"], "explicit")
        await consume(client, "floor-planner", on_goal, 256)
    elif name == "executor":
        await create(client, "floor-executor", ["floorplan.>", "floorstep.completed.>"], "none")
        await consume(client, "floor-executor", on_event, 1024)
    else:
        await create(client, "floor-worker", ["floorstep.dispatched.*.*.*.noop"], "explicit")
        await consume(client, "floor-worker", on_dispatched, 256)
    await asyncio.Event().wait()


if __name__ == "__main__":
    uvloop.run(role(sys.argv[1], sys.argv[2], msgspec.json.decode(sys.argv[3], type=Sizes)))

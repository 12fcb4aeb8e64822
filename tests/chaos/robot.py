"""People, as robots: they answer questions as the run's goal says, and cancel runs at random moments."""

import asyncio
import json
import random
import re
from collections import defaultdict
from typing import Any

from shared.append import Appender
from shared.bus import Bus
from shared.clock import NS_PER_S, now_ns, parse_ns
from shared.errors import AlreadySaid
from shared.pull import Reader
from shared.subjects import EVENTS

HEARD = ("approval.requested.>", "run.completed.*")
ANSWER = re.compile(r"\banswer (\w+)")
RACE_S = 0.15  # so far from the expiry, at most, comes an answer that races it


class Robot:
    """Hears the questions of a stream and knows which runs are over."""

    def __init__(self, bus: Bus, appender: Appender, chance: random.Random) -> None:
        self._bus = bus
        self._appender = appender
        self._chance = chance
        self._tasks: set[asyncio.Task[None]] = set()
        self.over: dict[int, str] = {}
        self.answers: dict[str, int] = defaultdict(int)

    async def start(self) -> "Robot":
        self._reader = await Reader(self._bus, EVENTS, self._on_event, subjects=HEARD).start()
        return self

    async def stop(self) -> None:
        await self._reader.stop()
        for task in self._tasks:
            task.cancel()

    def cancel(self, run: int, within_s: float) -> None:
        """Cancel the run, some time within so many seconds."""
        self._do(self._cancel(run, self._chance.uniform(0, within_s)))

    def _do(self, work: Any) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _on_event(self, subject: str, _seq: int, _at_ns: int, data: bytes) -> None:
        _, verb, run, *_ = subject.split(".")
        body = json.loads(data)
        if verb == "completed":
            self.over[int(run)] = body["status"]
            return
        found = ANSWER.search(f"{body['what']} {body.get('goal') or ''}")
        if found and found[1] != "never":
            self._do(self._answer(found[1], body))

    async def _cancel(self, run: int, after_s: float) -> None:
        await asyncio.sleep(after_s)
        await self._say(f"run.cancel_requested.{run}.robot", {"reason": "a robot says so"})

    async def _answer(self, how: str, asked: dict[str, Any]) -> None:
        self.answers[how] += 1
        where = f"{asked['run']}.{asked['step']}"
        bound = {"run": asked["run"], "step": asked["step"], "plan_hash": asked["plan_hash"]}
        left_s = (parse_ns(asked["expires_at"]) - now_ns()) / NS_PER_S
        if how in ("yes", "one"):
            await asyncio.sleep(self._chance.uniform(0, 0.5))
            for who in ("ann", "bob") if how == "yes" else ("dora",):
                await self._say(f"approval.granted.{where}.{who}", {**bound, "reason": "fine"})
        elif how == "no":
            await self._say(f"approval.rejected.{where}.bob", {**bound, "reason": "not today"})
        elif how == "late":
            await asyncio.sleep(left_s + 0.5)
            await self._say(f"approval.granted.{where}.ann", bound)
        elif how == "race":
            await asyncio.sleep(max(0.0, left_s + self._chance.uniform(-RACE_S, RACE_S)))
            await self._say(f"approval.granted.{where}.ann", bound)
        elif how == "wrong":
            await self._say(f"approval.granted.{where}.ann", {**bound, "plan_hash": "0" * 64})
            await self._say(f"approval.granted.{where}.bob", {**bound, "run": 1})
        elif how == "stranger":
            await self._say(f"approval.granted.{where}.eve", bound)
            await self._say(f"approval.granted.{where}", bound)
        elif how == "own":
            await self._say(f"approval.granted.{where}.{asked['requester']}", bound)

    async def _say(self, subject: str, body: dict[str, Any]) -> None:
        """Create-only: a second try after a lost ack is no second answer."""
        try:
            await self._appender.append(subject, json.dumps(body).encode())
        except AlreadySaid:
            return

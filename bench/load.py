"""The client of `bench runs`: submits goals and sees runs end, in the same way for the floor and for Remit."""

import asyncio
import statistics
import time

import msgspec

from bench.floor import STREAM, Sizes
from shared.append import Appender
from shared.bus import Bus
from shared.pull import Reader

IN_FLIGHT = 256
ALONE = 200
PATIENCE_S = 60.0


class Measured(msgspec.Struct):
    """Runs per second with 256 in flight, and milliseconds from publish to the end seen, one at a time."""

    runs_s: float
    runs: int
    p50_ms: float
    p99_ms: float


class Client:
    """Submits to one subject, and counts the ends on another."""

    def __init__(self, bus: Bus, appender: Appender, stream: str, subject: str, payload: bytes, ends: str) -> None:
        self._bus, self._appender = bus, appender
        self._stream, self._subject, self._payload, self._ends = stream, subject, payload, ends
        self._slots = asyncio.Semaphore(0)
        self._ended = 0
        self._came = asyncio.Event()

    @classmethod
    def of_floor(cls, bus: Bus, appender: Appender, sizes: Sizes) -> "Client":
        """A run of the floor is over with its last step."""
        last = f"floorstep.completed.*.noop-{sizes.steps}.1"
        return cls(bus, appender, STREAM, "floorgoal.submitted", b"g" * sizes.goal, last)

    async def start(self, start_seq: int) -> "Client":
        self._reader = await Reader(
            self._bus, self._stream, self._on_end, start_seq=start_seq, subjects=[self._ends]
        ).start()
        return self

    async def stop(self) -> None:
        await self._reader.stop()

    def _on_end(self, _subject: str, _seq: int, _at_ns: int, _data: bytes) -> None:
        self._ended += 1
        self._slots.release()
        self._came.set()

    async def _submit(self) -> None:
        await self._appender.say(self._subject, self._payload, headers=None)

    async def saturated(self, seconds: float) -> tuple[int, float]:
        """Runs ended, and the seconds from the first submit to the last end, with 256 in flight all the time."""
        self._slots = asyncio.Semaphore(IN_FLIGHT)
        first = self._ended
        submitted = 0
        began_s = time.perf_counter()
        while time.perf_counter() - began_s < seconds:
            await self._slots.acquire()
            await self._submit()
            submitted += 1
        await self._until(first + submitted)
        return submitted, time.perf_counter() - began_s

    async def alone(self, runs: int = ALONE) -> list[float]:
        """Milliseconds from publish to the end seen, one run at a time."""
        took_ms = []
        for _ in range(runs):
            target = self._ended + 1
            began_s = time.perf_counter()
            await self._submit()
            await self._until(target)
            took_ms.append((time.perf_counter() - began_s) * 1000)
        return took_ms

    async def _until(self, ended: int) -> None:
        async with asyncio.timeout(PATIENCE_S):
            while self._ended < ended:
                self._came.clear()
                await self._came.wait()


def measured(rounds: list[tuple[int, float]], alone_ms: list[float]) -> Measured:
    runs = sum(count for count, _ in rounds)
    cuts = statistics.quantiles(alone_ms, n=100)
    return Measured(runs / sum(took for _, took in rounds), runs, cuts[49], cuts[98])

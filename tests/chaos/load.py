"""A load of mixed runs, a worker of the tests' own, and the raw stream for the auditor."""

import asyncio
import itertools
import json
import os
import random
import signal
import subprocess
import sys
import uuid
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from shared.append import Appender
from shared.bus import ApiError, Bus
from shared.errors import RemitError, Unavailable
from shared.streams import bucket, events, objects, timers, work_queue, worker_queue
from shared.subjects import EVENTS, GOALS, worker_consumer
from tests.auditor import Message
from tests.stack import Stack

# A lease of its usual 30 s would make every kill -9 a wait of 30 s; consumers that exist already are left as they are.
LEASE_S = 2
SLOW_TASK = "chaos-slow"
SLOW_TIMEOUT_S = 20
PAGE = 1_000

# One of each kind, over and over: mostly runs that succeed, one with a failure in the middle, two that are rejected.
MIX: tuple[bytes, ...] = (
    b'{"tasks": ["noop", "noop", "noop"]}',
    b'{"tasks": ["noop"]}',
    b'{"tasks": ["noop", "fail", "noop"]}',
    b'{"tasks": ["noop", "noop", "noop"]}',
    json.dumps({"tasks": [SLOW_TASK, "noop"]}).encode(),
    b'{"tasks": ["there-is-no-such-task"]}',
    b'{"tasks": ["noop", "noop"], "goal": "twice nothing"}',
    b"\xff not json",
    b'{"tasks": ["noop", "noop", "noop"]}',
    json.dumps({"tasks": ["noop", SLOW_TASK]}).encode(),
)
# What each of them must end as, when nothing but kills happens.
ENDS: tuple[str, ...] = (
    "succeeded", "succeeded", "failed", "succeeded", "succeeded", "rejected", "succeeded", "rejected", "succeeded",
    "succeeded",
)  # fmt: skip


def seed() -> int:
    """The seed of this run: `REMIT_CHAOS_SEED`, or a new one. It is printed, so that a failure can be repeated."""
    given = os.environ.get("REMIT_CHAOS_SEED")
    chosen = int(given) if given else random.SystemRandom().randrange(1 << 31)
    print(f"REMIT_CHAOS_SEED={chosen}")
    return chosen


async def prepare(bus: Bus) -> None:
    """Streams and queues with a short lease, before any service makes them with the usual one; the slow task."""
    for config in (
        timers(1), events(1), bucket("config", 1, history=64), bucket("memory", 1, history=1), objects("artifacts", 1)
    ):  # fmt: skip
        await bus.api(f"STREAM.CREATE.{config['name']}", config)
    await work_queue(bus, "planner", list(GOALS), ack_wait_s=LEASE_S)
    for task in ("noop", "fail", SLOW_TASK):
        await work_queue(bus, worker_consumer(task), [f"step.dispatched.*.*.*.{task}"], ack_wait_s=LEASE_S)
    await add_task(bus, SLOW_TASK, timeout_s=SLOW_TIMEOUT_S, max_attempts=10)


async def add_task(bus: Bus, name: str, *, timeout_s: int, max_attempts: int = 3) -> None:
    """Put a task into the catalogue that only the tests perform."""
    await worker_queue(bus, name)
    spec = {"name": name, "timeout_s": timeout_s, "max_attempts": max_attempts}
    await bus.kv_put("config", f"task.{name}", json.dumps(spec).encode())


class Load:
    """Goals, submitted so that a lost ack does not double one, and what became of them."""

    def __init__(self, bus: Bus, appender: Appender) -> None:
        self._bus = bus
        self._appender = appender
        self.runs: dict[int, bytes] = {}

    async def submit(self, goal: bytes) -> int:
        """One goal; its run. The id makes the repetition after a lost ack harmless."""
        run = await self._appender.append("goal.submitted", goal, headers={"Nats-Msg-Id": uuid.uuid4().hex})
        self.runs[run] = goal
        return run

    async def submit_mix(self, count: int, *, every_s: float = 0.0) -> None:
        """`count` goals of the mix; with `every_s`, one each so many seconds."""
        async with asyncio.TaskGroup() as group:
            for goal in itertools.islice(itertools.cycle(MIX), count):
                group.create_task(self.submit(goal))
                if every_s:
                    await asyncio.sleep(every_s)

    async def ended(self) -> bool:
        """Whether every goal has an end in the stream."""
        try:
            ends = {**await subjects(self._bus, "run.completed.*"), **await subjects(self._bus, "goal.rejected.*")}
        except (Unavailable, ApiError):
            return False  # the server is down or has not recovered its streams yet
        return self.runs.keys() <= {int(subject.rsplit(".", 1)[1]) for subject in ends}


async def subjects(bus: Bus, pattern: str) -> Mapping[str, int]:
    """How many messages each subject of EVENTS that matches `pattern` has."""
    found: dict[str, int] = {}
    while True:
        page = await bus.api(f"STREAM.INFO.{EVENTS}", {"subjects_filter": pattern, "offset": len(found)})
        found |= page["state"].get("subjects") or {}
        if len(found) >= page.get("total", 0):
            return found


async def whole_stream(bus: Bus) -> list[Message]:
    """Every message of EVENTS as it is stored."""
    last = (await bus.api(f"STREAM.INFO.{EVENTS}"))["state"]["last_seq"]
    found: list[Message] = []
    while not found or found[-1][1] < last:
        after = found[-1][1] if found else 0
        page = await bus.direct(EVENTS, {"seq": after + 1, "next_by_subj": ">", "batch": PAGE})
        if not page:
            raise RemitError(f"EVENTS has {last} messages and none behind {after}")
        found += page
    return found


def ends_of(messages: list[Message]) -> dict[int, str]:
    """The status that the stream gives each run."""
    found: dict[int, str] = {}
    for subject, _, _, data in messages:
        noun, verb, *rest = subject.split(".")
        if (noun, verb) == ("run", "completed"):
            found[int(rest[0])] = json.loads(data)["status"]
        elif (noun, verb) == ("goal", "rejected"):
            found[int(rest[0])] = "rejected"
    return found


def tally(ends: dict[int, str], runs: Mapping[int, bytes]) -> dict[str, int]:
    return dict(Counter(ends[run] for run in runs))


def start_slow_worker(stack: Stack, name: str = "slow-worker") -> None:
    """The worker of `chaos-slow` as a process of its own."""
    stack.start_as(name, [sys.executable, "-m", "tests.chaos.slow_worker"])


def children(process: subprocess.Popen[bytes]) -> list[int]:
    """The process ids of its children."""
    found = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text()
    return [int(pid) for pid in found.split()]


def kill_worker_child(stack: Stack, name: str = "executor") -> int:
    """kill -9 of the executor's worker alone; how many were killed (none when it is just starting)."""
    found = children(stack.processes[name])
    for pid in found:
        os.kill(pid, signal.SIGKILL)
    return len(found)

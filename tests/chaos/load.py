"""A load of mixed runs, a worker of the tests' own, and the raw stream for the auditor."""

import asyncio
import itertools
import json
import os
import random
import signal
import sys
import uuid
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec

from shared.append import Appender
from shared.bus import ApiError, Bus
from shared.clock import NS_PER_S, rfc3339
from shared.errors import RemitError, Unavailable
from shared.ledger import Answer, Question
from shared.streams import ensure, work_queue
from shared.subjects import (
    CONFIG_BUCKET,
    EVENTS,
    GOALS,
    directive_key,
    goal_submitted,
    playbook_key,
    step_dispatched_to,
    task_key,
    worker_consumer,
)
from tests import forking
from tests.auditor import Message, audit
from tests.chaos import mix
from tests.chaos.mix import LEASE_S, Kind
from tests.chaos.robot import Robot
from tests.conftest import WITHIN_S, until
from tests.stack import ROOT, Stack

CANCEL_PATIENCE_S = 4
# Every process of the stack gets this lease and this patience: see short_lease/sitecustomize.py.
SHORT_LEASE = {
    "CHAOS_LEASE_S": str(LEASE_S),
    "CHAOS_CANCEL_PATIENCE_S": str(CANCEL_PATIENCE_S),
    "PYTHONPATH": os.pathsep.join((str(Path(__file__).with_name("short_lease")), str(ROOT))),
}
SLOW_TIMEOUT_S = 20
PAGE = 1_000
PERFORMED = "performed"
LOG_CHARACTERS = 3_000  # of each service, where a run does not end
EVENT_BYTES = 300


def seed() -> int:
    """The seed of this run: `REMIT_CHAOS_SEED`, or a new one. It is printed, so that a failure can be repeated."""
    given = os.environ.get("REMIT_CHAOS_SEED")
    chosen = int(given) if given else random.SystemRandom().randrange(1 << 31)
    print(f"REMIT_CHAOS_SEED={chosen}")
    return chosen


async def prepare(bus: Bus, replicas: int = 1) -> None:
    """The streams, and what the goals of the mix name: the outsider's tasks, directives and playbooks."""
    await ensure(bus, replicas)
    await bus.api(f"CONSUMER.DELETE.{EVENTS}.planner")  # made just now, with the usual lease
    await work_queue(bus, "planner", list(GOALS), ack_wait_s=LEASE_S)
    await add_task(bus, mix.SLOW_TASK, timeout_s=SLOW_TIMEOUT_S, max_attempts=10)
    await add_task(bus, mix.TOKENS_TASK, timeout_s=SLOW_TIMEOUT_S, max_attempts=10, uses_tokens=True)
    for name, directive in mix.DIRECTIVES.items():
        await bus.kv_put(CONFIG_BUCKET, directive_key(name), json.dumps({"name": name, **directive}).encode())
    for name, toml in mix.PLAYBOOKS.items():
        await bus.kv_put(CONFIG_BUCKET, playbook_key(name), toml.encode())


async def add_task(bus: Bus, name: str, *, timeout_s: int, max_attempts: int = 3, uses_tokens: bool = False) -> None:
    """Put a task into the catalogue that only the tests perform."""
    await work_queue(bus, worker_consumer(name), [step_dispatched_to(name)], ack_wait_s=LEASE_S)
    spec = {"name": name, "timeout_s": timeout_s, "max_attempts": max_attempts, "uses_tokens": uses_tokens}
    await bus.kv_put(CONFIG_BUCKET, task_key(name), json.dumps(spec).encode())


async def set_lease(bus: Bus, task: str, lease_s: int) -> None:
    """Another lease for a task's queue."""
    config = (await bus.api(f"CONSUMER.INFO.{EVENTS}.{worker_consumer(task)}"))["config"]
    body = {"stream_name": EVENTS, "config": {**config, "ack_wait": lease_s * NS_PER_S}, "action": "update"}
    await bus.api(f"CONSUMER.CREATE.{EVENTS}.{worker_consumer(task)}", body)


class Load:
    """Goals, submitted so that a lost ack does not double one, and what became of them.

    With a robot the kinds that are to be cancelled are, and those that repeat a run find one.
    """

    def __init__(
        self, bus: Bus, appender: Appender, kinds: Sequence[Kind] = mix.PLAIN, robot: Robot | None = None
    ) -> None:
        self._bus = bus
        self._appender = appender
        self._mix = itertools.cycle(kinds)
        self._robot = robot
        self.runs: dict[int, Kind] = {}

    async def submit(self, goal: bytes | Kind) -> int:
        """One goal; its run. The id makes the repetition after a lost ack harmless."""
        kind = goal if isinstance(goal, Kind) else Kind("by hand", goal, frozenset())
        data = kind.goal
        if kind.repeats and self._robot:
            found = self._repeatable(kind.repeats)
            kind, data = (kind, kind.goal % found[0]) if found else (mix.CHAIN, mix.CHAIN.goal)
        run = await self._appender.append(
            goal_submitted(kind.principal), data, headers={"Nats-Msg-Id": uuid.uuid4().hex}
        )
        self.runs[run] = kind
        if kind.cancel_s and self._robot:
            self._robot.cancel(run, kind.cancel_s)
        return run

    def _repeatable(self, name: str) -> list[int]:
        """Runs of this kind that are over as they had to be, the newest first."""
        assert self._robot is not None
        over = self._robot.over
        return [run for run in sorted(over, reverse=True)
                if run in self.runs and self.runs[run].name == name and over[run] in self.runs[run].ends]  # fmt: skip

    async def say(self, subject: str, data: bytes) -> int:
        """What a worker outside says, create-only."""
        return await self._appender.append(subject, data)

    async def submit_mix(self, count: int) -> None:
        """`count` goals of the mix, as fast as they go."""
        await asyncio.gather(*(self.submit(kind) for kind in itertools.islice(self._mix, count)))

    def wrong(self, ends: Mapping[int, str]) -> dict[int, tuple[str, str]]:
        """Runs that have not ended as one of their kind may: name of the kind and end."""
        return {
            run: (kind.name, ends.get(run, "none"))
            for run, kind in self.runs.items()
            if kind.ends and ends.get(run) not in kind.ends
        }

    def tally(self, ends: Mapping[int, str]) -> dict[str, int]:
        """How many runs ended how."""
        return dict(Counter(ends[run] for run in self.runs))

    @property
    def submitted(self) -> int:
        return len(self.runs)

    async def ended(self) -> bool:
        """Whether every goal has an end in the stream."""
        try:
            ends = {**await subjects(self._bus, "run.completed.*"), **await subjects(self._bus, "goal.rejected.*")}
        except (Unavailable, ApiError):
            return False  # the server is down or has not recovered its streams yet
        return self.runs.keys() <= {int(subject.rsplit(".", 1)[1]) for subject in ends}


class Feed:
    """Goals of the load's mix, `goals` at a time with a pause between, until `stop`."""

    def __init__(self, runs: Load, *, goals: int, pause_s: float) -> None:
        self._runs = runs
        self._goals = goals
        self._pause_s = pause_s
        self._over = asyncio.Event()
        self._task = asyncio.create_task(self._go())

    async def _go(self) -> None:
        while not self._over.is_set():
            await self._runs.submit_mix(self._goals)
            with suppress(TimeoutError):
                await asyncio.wait_for(self._over.wait(), self._pause_s)

    async def stop(self) -> int:
        """No more; how many there were."""
        self._over.set()
        await self._task
        return self._runs.submitted


async def until_ended(stack: Stack, bus: Bus, runs: Load, within_s: float = WITHIN_S) -> None:
    """Wait until every run has ended. One that does not is the hardest failure to see again: all is told of it."""
    try:
        await until(lambda: stack.ended() or runs.ended(), within_s, look_s=0.1)
        assert stack.ended() == {}
    except (TimeoutError, AssertionError) as error:
        raise AssertionError("\n".join(await situation(stack, bus, runs))) from error


async def situation(stack: Stack, bus: Bus, runs: Load) -> list[str]:
    """Where a load stands: which processes have ended, their logs, the queues, the events of each run without end."""
    told = [f"ended by themselves: {stack.ended()}"]
    told += [f"{name}: {stack.log(name)[-LOG_CHARACTERS:]}" for name in stack.processes]
    for queue in (await bus.api(f"CONSUMER.LIST.{EVENTS}"))["consumers"]:
        counts = {what: count for what, count in queue.items() if what.startswith("num_") and count}
        told.append(f"consumer {queue['name']}: {counts}")
    messages = await whole_stream(bus)
    for run in sorted(runs.runs.keys() - ends_of(messages).keys()):
        told.append(f"run {run} ({runs.runs[run].name}) has no end:")
        told += [
            f"  {seq} {rfc3339(at_ns)} {subject} {data[:EVENT_BYTES].decode(errors='replace')}"
            for subject, seq, at_ns, data in messages
            if seq == run or subject.split(".")[2:3] == [str(run)]
        ]
    return told


async def subjects(bus: Bus, pattern: str) -> Mapping[str, int]:
    """How many messages each subject of EVENTS that matches `pattern` has."""
    found: dict[str, int] = {}
    while True:
        page = await bus.api(f"STREAM.INFO.{EVENTS}", {"subjects_filter": pattern, "offset": len(found)})
        found |= page["state"].get("subjects") or {}
        if len(found) >= page.get("total", 0):
            return found


async def events_stored(bus: Bus) -> int:
    """The last sequence of EVENTS."""
    return int((await bus.api(f"STREAM.INFO.{EVENTS}"))["state"]["last_seq"])


async def passed(bus: Bus, seq: int) -> bool:
    """Whether the stream has reached `seq`; False while the server is away."""
    try:
        return await events_stored(bus) >= seq
    except (Unavailable, ApiError):
        return False


async def ticks(bus: Bus, schedule: str) -> dict[int, str]:
    """What became of each tick of a schedule: its outcome by the second at which it was due."""
    return {
        int(subject.rsplit(".", 1)[1]): json.loads(data)["outcome"]
        for subject, _, _, data in await whole_stream(bus)
        if subject.startswith(f"schedule.ticked.{schedule}.")
    }


async def every_run_ended(bus: Bus) -> bool:
    """Whether every goal of the stream has an end, also those of schedules."""
    messages = await whole_stream(bus)
    return {seq for subject, seq, _, _ in messages if subject.startswith("goal.submitted")} <= ends_of(messages).keys()


async def whole_stream(bus: Bus) -> list[Message]:
    """Every message of EVENTS as it is stored."""
    await until(lambda: passed(bus, 0))  # the server may just have been started again
    last = await events_stored(bus)
    found: list[Message] = []
    while not found or found[-1][1] < last:
        after = found[-1][1] if found else 0
        found += await _page(bus, after, last)
    return found


async def _page(bus: Bus, after: int, last: int) -> list[Message]:
    """The messages behind `after`; a node of a cluster that is behind has none for a while."""
    page: list[Message] = []

    async def come() -> bool:
        nonlocal page
        page = await bus.direct(EVENTS, {"seq": after + 1, "next_by_subj": ">", "batch": PAGE})
        return bool(page)

    try:
        await until(come, within_s=5)
    except TimeoutError as error:
        raise RemitError(f"EVENTS has {last} messages and none behind {after}") from error
    return page


def ends_of(messages: list[Message]) -> dict[int, str]:
    """The status that the stream gives each run: the first end counts."""
    found: dict[int, str] = {}
    for subject, _, _, data in messages:
        noun, verb, *rest = subject.split(".")
        if (noun, verb) == ("run", "completed"):
            found.setdefault(int(rest[0]), json.loads(data)["status"])
        elif (noun, verb) == ("goal", "rejected"):
            found.setdefault(int(rest[0]), "rejected")
    return found


def start_slow_worker(stack: Stack, name: str = "slow-worker") -> None:
    """The outsider's worker as a process of its own; `performed` gets a line for each step that it begins."""
    argv = [sys.executable, "-m", "tests.chaos.slow_worker"]
    stack.start_as(name, argv, CHAOS_PERFORMED=str(stack.folder / PERFORMED))


def performed(stack: Stack) -> list[str]:
    """The attempts that the outsider's worker has begun: `<run>.<step>.<attempt>` each."""
    file = stack.folder / PERFORMED
    return file.read_text().split() if file.exists() else []


def minds(process: forking.Process) -> bool:
    """Whether it has begun to listen to SIGTERM; before that it just dies of it."""
    status = Path(f"/proc/{process.pid}/status").read_text()
    [caught] = [line.split()[1] for line in status.splitlines() if line.startswith("SigCgt:")]
    return bool(int(caught, 16) >> (signal.SIGTERM - 1) & 1)


def children(process: forking.Process) -> list[int]:
    """The process ids of its children."""
    found = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text()
    return [int(pid) for pid in found.split()]


def kill_worker_child(stack: Stack, name: str = "executor") -> int:
    """kill -9 of the executor's worker alone; how many were killed (none when it is just starting)."""
    found = children(stack.processes[name])
    for pid in found:
        os.kill(pid, signal.SIGKILL)
    return len(found)


async def digest(bus: Bus) -> dict[str, Any]:
    """The digests of the registry's tables, when they hold everything that is in the stream now."""
    last = await events_stored(bus)
    found = Answer()

    async def answered() -> bool:
        nonlocal found
        question = msgspec.json.encode(Question(min_seq=last))
        try:
            found = msgspec.json.decode(await bus.request("registry.digest", question), type=Answer)
        except Unavailable:
            return False  # it is just starting
        return found.error is None and found.position >= last

    await until(answered)
    return found.more


async def examine(stack: Stack, bus: Bus) -> dict[int, str]:
    """What must hold after any chaos: the auditor finds nothing, and a rebuild gives the tables that there are.

    The status of each run comes back.
    """
    while True:
        last = await events_stored(bus)
        live = await digest(bus)
        done = await asyncio.to_thread(stack.remit, "rebuild", "-o", "json")
        assert done.returncode == 0, done.stderr
        rebuilt = json.loads(done.stdout)
        assert rebuilt["identical"] is True, rebuilt
        assert rebuilt["before"] == rebuilt["after"], rebuilt
        if last == await events_stored(bus):
            break  # else a late word has come meanwhile, of a worker or a timer
    assert rebuilt["before"] == live, (live, rebuilt)
    messages = await whole_stream(bus)
    findings = audit(messages, cancel_patience_s=CANCEL_PATIENCE_S)
    assert not findings, "\n".join(findings)
    return ends_of(messages)

"""Approve against expire and approve against cancel, at the same moment, from several connections: one outcome each,
and the same one on every replay.

The long version, 1,000 of each, runs under `./remit test --chaos`.
"""

import asyncio
import json
import random
from collections import Counter
from collections.abc import AsyncIterator
from typing import Any

import pytest

from services.executor import snapshot
from services.executor.engine import Engine
from shared.bus import Bus, connect
from shared.clock import NS_PER_S, now_ns, parse_ns
from shared.events import read
from shared.pull import Reader
from shared.run import Run, begin, evolve
from shared.subjects import CONFIG_BUCKET, EVENTS, directive_key
from tests.auditor import Message, audit
from tests.chaos import load
from tests.chaos.load import Load
from tests.chaos.mix import CHAIN, Kind
from tests.conftest import until
from tests.stack import Stack

WAVE = 100  # runs that are raced for at a time
PUBLISHERS = 4
AT_EXPIRY_S = 0.04  # half of the answers are aimed so near at the expiry, before or behind
AHEAD_S = 0.3  # the others up to so much before it: on a busy machine what is aimed at a moment comes later
AT_CANCEL_S = 0.05  # the answers come within so long, and most cancels, so that some are first however fast all is
AFTER_S = 0.4  # the other cancels come within so long: an approved run is over soon, on a busy machine less so
PIECES = 7
LEAST = 0.05  # of the races each outcome must have: else it was none

EXPIRES_S = {"expire": 1, "cancel": 300}


def kind(name: str, *ends: str) -> Kind:
    goal = {"tasks": ["noop"], "directive": f"chaos-{name}", "goal": name}
    return Kind(name, json.dumps(goal).encode(), frozenset(ends))


EXPIRE, CANCEL = kind("expire", "succeeded", "rejected"), kind("cancel", "succeeded", "cancelled")


class Racers:
    """Hears each question and has several connections answer it, and cancel its run, at the same time."""

    def __init__(self, buses: list[Bus], chance: random.Random) -> None:
        self._buses = buses
        self._chance = chance
        self._tasks: set[asyncio.Task[None]] = set()

    def on_asked(self, _subject: str, _seq: int, _at_ns: int, data: bytes) -> None:
        asked = json.loads(data)
        expires_s = (parse_ns(asked["expires_at"]) - now_ns()) / NS_PER_S
        run, answer = asked["run"], json.dumps({name: asked[name] for name in ("run", "step", "plan_hash")}).encode()
        yes = f"approval.granted.{run}.{asked['step']}"
        if asked["goal"] == "expire":
            for who, bus in enumerate(self._buses):
                aim = (-AT_EXPIRY_S, AT_EXPIRY_S) if self._chance.random() < 0.5 else (-AHEAD_S, 0.0)
                after_s = expires_s + self._chance.uniform(*aim)
                # Some runs get one answer, some several.
                if who == 0 or self._chance.random() < 0.2:
                    self._later(bus, after_s, f"{yes}.p{who}", answer)
        else:
            cancel_s = AT_CANCEL_S if self._chance.random() < 0.6 else AFTER_S
            for who, bus in enumerate(self._buses):
                within_s, subject = (AT_CANCEL_S, yes) if who else (cancel_s, f"run.cancel_requested.{run}")
                self._later(bus, self._chance.uniform(0, within_s), f"{subject}.p{who}", answer)

    def _later(self, bus: Bus, after_s: float, subject: str, data: bytes) -> None:
        async def say() -> None:
            await asyncio.sleep(max(0.0, after_s))
            await bus.publish(subject, data)

        task = asyncio.create_task(say())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


@pytest.fixture
async def racers(remit: Stack, client: Bus, chance: random.Random) -> AsyncIterator[Racers]:
    for name, expires_s in EXPIRES_S.items():
        directive = {"name": f"chaos-{name}", "approval_required": True, "approval_expires_s": expires_s}
        await client.kv_put(CONFIG_BUCKET, directive_key(f"chaos-{name}"), json.dumps(directive).encode())
    buses = [await connect(remit.url, f"racer-{i}") for i in range(PUBLISHERS)]
    made = Racers(buses, chance)
    reader = await Reader(client, EVENTS, made.on_asked, subjects=["approval.requested.*.run"]).start()
    yield made
    await reader.stop()
    for bus in buses:
        await bus.close()


async def race(remit: Stack, bus: Bus, runs: Load, chance: random.Random, *, races: int) -> None:
    """So many of each kind, in waves; then what each has come to, by everybody who reads the stream."""
    if "executor-2" not in remit.processes:
        remit.start_as("executor-2", [*remit.processes["executor"].args])  # type: ignore[misc]
    await runs.submit(CHAIN)  # everybody is there when it has ended
    await until(runs.ended)
    for begun in range(0, races, WAVE // 2):
        wave = [kind for kind in (EXPIRE, CANCEL) for _ in range(min(WAVE // 2, races - begun))]
        await asyncio.gather(*(runs.submit(kind) for kind in wave))
        await load.until_ended(remit, bus, runs)
    messages = await load.whole_stream(bus)
    assert audit(messages, cancel_patience_s=load.CANCEL_PATIENCE_S) == []
    ends = load.ends_of(messages)
    assert len(runs.runs) == 1 + 2 * races and runs.wrong(ends) == {}
    for kind in (EXPIRE, CANCEL):
        outcomes = Counter(ends[run] for run, one in runs.runs.items() if one is kind)
        print(f"approve against {kind.name}: {dict(outcomes)}")
        assert min(outcomes[status] for status in kind.ends) >= LEAST * races, "that was no race"
    folded = fold(messages)
    assert fold(messages) == folded
    assert {run: folded[run].status for run in runs.runs} == {run: ends[run] for run in runs.runs}
    for run in (run for run, one in runs.runs.items() if one is not CHAIN):
        status = folded[run].approvals["run"].status
        assert (status == "approved") if ends[run] == "succeeded" else (ends[run] == "cancelled" or status == "expired")
    for _ in range(3):
        assert fold_in_pieces(messages, chance) == before_their_ends(messages)


def fold(messages: list[Message]) -> dict[int, Run]:
    """Every run as the fold says."""
    found: dict[int, Run] = {}
    for message in messages:
        event = read(*message)
        if event.kind == "goal.submitted":
            found[event.seq] = begin(event)
        elif event.run in found:
            found[event.run] = evolve(found[event.run], event)
    return found


def before_their_ends(messages: list[Message]) -> dict[int, tuple[Any, Any]]:
    """What each run had come to by what was said before its end: its stop, and the state of its question."""
    return {
        run: (state.stop, state.approvals)
        for run, state in fold([one for one in messages if not one[0].startswith("run.completed")]).items()
    }


def fold_in_pieces(messages: list[Message], chance: random.Random) -> dict[int, tuple[Any, Any]]:
    """The same by an executor's engine that is stopped, kept as bytes and begun again in the middle of everything."""
    cuts = {chance.randrange(len(messages)) for _ in range(PIECES)}
    engine = Engine()
    last = messages[-1][1]
    for place, message in enumerate(messages):
        if message[0].startswith("run.completed"):
            continue
        engine.apply(read(*message))
        if place in cuts:
            again = snapshot.decode(snapshot.encode(snapshot.take(engine, "now")), "now", last)
            assert again is not None
            engine = again
    return {run: (state.stop, state.approvals) for run, state in engine.runs.items()}


async def test_each_of_few_races_has_one_outcome(
    remit: Stack, client: Bus, runs: Load, racers: Racers, chance: random.Random
) -> None:
    await race(remit, client, runs, chance, races=100)


@pytest.mark.chaos
@pytest.mark.slow
async def test_each_of_a_thousand_races_has_one_outcome(
    remit: Stack, client: Bus, runs: Load, racers: Racers, chance: random.Random
) -> None:
    await race(remit, client, runs, chance, races=1_000)

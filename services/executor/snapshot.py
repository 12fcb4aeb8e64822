"""The engine's memory as bytes, so that a new executor need not read the whole stream: active runs and their place.

A snapshot is a shortcut and never the truth: it is used only when it was made of this very stream by this very fold,
and an executor that finds none reads from the beginning to the same state. Pure; `service` stores it.
"""

import hashlib
import inspect
from functools import cache

import msgspec

from services.executor import engine, schedules
from services.executor.engine import Engine
from services.executor.schedules import Schedules, Standing
from shared import events, plan, run, run_approvals, run_state, run_steps, run_tally
from shared.errors import UNREADABLE, RemitError
from shared.events import PlanCreated
from shared.run import Run
from shared.run_tally import Tally, counted


class Snapshot(msgspec.Struct, frozen=True, kw_only=True):
    """Runs without their plans, and each plan once: ten thousand runs of one nightly goal share theirs."""

    stream_created: str
    position: int
    at_ns: int
    runs: list[Run]
    plans: dict[str, PlanCreated]
    plan_of: dict[int, str]
    waiting: dict[str, list[int]]
    early: dict[int, str]
    schedules: dict[str, Standing]


@cache
def fold_version() -> str:
    """Twelve hex digits over the fold's own source: what another fold has made of the stream is not believed."""
    modules = (run, run_state, run_tally, run_steps, run_approvals, events, plan, engine, schedules)
    source = "".join(inspect.getsource(module) for module in modules)
    return hashlib.sha256(source.encode()).hexdigest()[:12]


def take(mind: Engine, stream_created: str) -> Snapshot:
    """What the engine knows now. Cheap: runs are immutable, so only references are copied."""
    planned = {one.id: one.plan for one in mind.runs.values() if one.plan is not None}
    return Snapshot(
        stream_created=stream_created,
        position=mind.position,
        at_ns=mind.at_ns,
        runs=list(mind.runs.values()),
        plans={made.plan_hash: made for made in planned.values()},
        plan_of={run_id: made.plan_hash for run_id, made in planned.items()},
        waiting=mind.waiting(),
        early=mind.early.known(),
        schedules=mind.schedules.known(),
    )


def encode(snapshot: Snapshot) -> bytes:
    """Bytes of a snapshot; takes its time, so off the loop. RemitError where it cannot be written."""
    bare = [msgspec.structs.replace(one, plan=None, tally=Tally()) for one in snapshot.runs]  # a tally follows from it
    try:
        # Not msgpack, which is quicker: parameters and outputs are anybody's JSON, whose numbers may be of any length.
        return msgspec.json.encode(msgspec.structs.replace(snapshot, runs=bare))
    except RecursionError as error:
        raise RemitError("an active run holds what is nested too deeply") from error


def decode(data: bytes, stream_created: str, last_seq: int) -> Engine | None:
    """The engine as it was, or None when the snapshot is of another stream or cannot be read."""
    try:
        snapshot = msgspec.json.decode(data, type=Snapshot)
    except UNREADABLE:
        return None
    if snapshot.stream_created != stream_created or snapshot.position > last_seq:
        return None
    runs = []
    for one in snapshot.runs:
        if name := snapshot.plan_of.get(one.id):
            made = snapshot.plans[name]
            one = msgspec.structs.replace(one, plan=made, tally=counted(made, one.steps))
        runs.append(one)
    mind = Engine.restored(runs, snapshot.waiting, snapshot.early, position=snapshot.position, at_ns=snapshot.at_ns)
    mind.schedules = Schedules(snapshot.schedules)
    return mind

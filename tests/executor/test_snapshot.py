"""A snapshot is a shortcut: an executor that begins with one comes to the same state and says the same."""

import random
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from services.executor import snapshot
from services.executor.engine import Engine
from shared.bus import connect
from shared.errors import RemitError
from shared.subjects import SNAPSHOTS_BUCKET, run_completed, run_started, step_completed, step_dispatched
from tests import controls
from tests.conftest import until as eventually
from tests.controls import ACK, Stream
from tests.executor.test_engine import Shell, limited
from tests.nested import LEVELS
from tests.stack import stack, until

CREATED = "2026-11-21T00:00:00Z"


def a_stream(seed: int) -> Stream:
    """Runs of two directives, some ended, some queued, some never planned, and a stranger's early word."""
    dice = random.Random(seed)
    stream = Stream()
    shell = Shell(stream)
    for _ in range(12):
        match dice.randrange(5):
            case 0:
                stream.goal()
            case 1:
                stream.put(run_completed(stream.last_seq + dice.randrange(3, 9)), ACK)
            case _:
                stream.planned(limited(dice.choice([1, 2]), dice.choice(["narrow", "wide"])))
        shell.catch_up()
        for subject in list(stream.subjects):
            if subject.startswith("step.dispatched.") and dice.random() < 0.4:
                _, _, run, step, attempt, _ = subject.split(".")
                stream.say(step_completed(int(run), step, int(attempt)), controls.completed())
    return stream


def read_all(engine: Engine, stream: Stream) -> Engine:
    for seq in range(engine.position + 1, stream.last_seq + 1):
        engine.apply(stream.event(seq))
    return engine


@pytest.mark.parametrize("seed", range(30))
def test_an_engine_from_a_snapshot_is_the_engine_that_read_everything(seed: int) -> None:
    """Whether the one that was kept had been deciding or not, and wherever in the stream it was kept."""
    stream = a_stream(seed)
    dice = random.Random(seed)
    kept = Engine()
    if dice.random() < 0.5:
        kept.due()
    for seq in range(1, dice.randrange(1, stream.last_seq) + 1):
        kept.apply(stream.event(seq))
    data = snapshot.encode(snapshot.take(kept, CREATED))
    begun = snapshot.decode(data, CREATED, stream.last_seq)
    assert begun is not None and begun.position == kept.position
    begun, whole = read_all(begun, stream), read_all(Engine(), stream)
    assert begun.runs == whole.runs
    assert begun.waiting() == whole.waiting()
    assert begun.early.known() == whole.early.known()
    assert begun.due() == whole.due()


def test_a_snapshot_of_another_stream_or_of_its_future_is_not_used() -> None:
    stream = a_stream(1)
    data = snapshot.encode(snapshot.take(read_all(Engine(), stream), CREATED))
    assert snapshot.decode(data, CREATED, stream.last_seq) is not None
    assert snapshot.decode(data, "2025-01-01T00:00:00Z", stream.last_seq) is None
    assert snapshot.decode(data, CREATED, stream.last_seq - 1) is None
    assert snapshot.decode(data[:-3], CREATED, stream.last_seq) is None
    assert snapshot.decode(b"\xff", CREATED, stream.last_seq) is None


def test_numbers_of_any_length_are_kept() -> None:
    """A goal's parameters and a step's outputs are JSON: one that was too long for the snapshot ended the executor."""
    stream = Stream()
    run = stream.planned(controls.plan(controls.step("a", inputs={"most": 10**30})))
    stream.put(run_started(run), controls.started())
    stream.put(step_dispatched(run, "a", 1, "noop"), controls.dispatched(token_grant=10**30))
    whole = read_all(Engine(), stream)
    assert whole.runs[run].steps["a"].grant == 10**30
    begun = snapshot.decode(snapshot.encode(snapshot.take(whole, CREATED)), CREATED, stream.last_seq)
    assert begun is not None and begun.runs == whole.runs


def test_what_is_nested_too_deeply_is_no_snapshot_and_no_bug() -> None:
    """The deepest that a message may hold stands deeper in a snapshot than in its message."""
    stream = Stream()
    run = stream.planned(controls.plan(controls.step("a")))
    engine = read_all(Engine(), stream)
    deep: list[Any] = []
    for _ in range(LEVELS):
        deep = [deep]
    steps = {"a": replace(engine.runs[run].steps["a"], outputs={"deep": deep})}
    engine.runs[run] = replace(engine.runs[run], steps=steps)
    with pytest.raises(RemitError, match="too deeply"):
        snapshot.encode(snapshot.take(engine, CREATED))


async def test_an_executor_goes_on_from_the_snapshot_of_the_one_before(tmp_path: Path) -> None:
    """kill -9 and a start: it does not read from the beginning, and runs that waited for it end."""
    with stack(tmp_path, "planner", "executor", "registry", environment={"REMIT_SNAPSHOT_EVENTS": "50"}) as remit:
        for _ in range(8):
            assert remit.remit("submit", "--task", "noop", "--task", "noop", "--wait").returncode == 0
        bus = await connect(remit.url, "test")
        name = f"executor-{snapshot.fold_version()}"

        async def kept() -> bool:
            found = await bus.direct(f"OBJ_{SNAPSHOTS_BUCKET}", {"last_by_subj": f"$O.{SNAPSHOTS_BUCKET}.M.>"})
            return bool(found) and name in found[0][3].decode()

        await eventually(kept)
        await bus.close()
        remit.kill("executor")
        submitted = remit.remit("submit", "--task", "noop")
        remit.start("executor")
        run = submitted.stdout.split()[1]
        assert remit.remit("watch", run).returncode == 0
        until(lambda: remit.log("executor").count("runs are active") == 2)
        last = [line for line in remit.log("executor").splitlines() if "began with" in line]
        assert last, "the second executor did not say that it began with a snapshot"

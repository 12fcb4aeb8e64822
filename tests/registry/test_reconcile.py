"""Tokens agree to the last one: what runs said at their end, what the tables hold, and a plain count of the stream."""

import json
import random
from collections import Counter, defaultdict
from pathlib import Path

import msgspec

from services.registry.fold import Fold
from services.registry.store import Store
from shared.events import Event
from shared.plan import Budgets
from shared.subjects import (
    llm_called,
    plan_created,
    run_cancel_requested,
    step_cancelled,
    step_completed,
    step_failed,
)
from tests import controls
from tests.controls import Stream
from tests.executor.test_engine_properties import Executor

RUNS = 1_000
UNDER_WAY = 50

Account = tuple[int, int, int]  # input, output, calls of unknown usage


class Workers:
    """They answer each dispatch with calls and an end, some twice, some late, and lose usage on the way."""

    def __init__(self, stream: Stream, chance: random.Random) -> None:
        self.stream, self.chance = stream, chance
        self.seen = 0
        self.late: list[Event] = []
        self.did: Counter[str] = Counter()

    def work(self) -> None:
        """Answer everything that was dispatched since the last time."""
        until, chance = self.stream.last_seq, self.chance
        for seq in range(self.seen + 1, until + 1):
            event = self.stream.event(seq)
            if event.kind == "step.dispatched" and event.tail == "noop":
                self._answer(event)
        self.seen = until
        if self.late and chance.random() < 0.5:
            self._call(self.late.pop(), "late")

    def _answer(self, event: Event) -> None:
        chance, stream = self.chance, self.stream
        for number in range(chance.choice([0, 1, 1, 2, 4])):
            self._call(event, f"{event.attempt}-{number}")
        if chance.random() < 0.1:
            self.did["cancel"] += 1
            stream.say(run_cancel_requested(event.run, "ann"), controls.cancel_requested())
        end = chance.choice(["completed", "completed", "completed", "failed", "failed for good", "cancelled"])
        self.did[end] += 1
        if end == "completed":
            stream.say(step_completed(event.run, event.step, event.attempt), controls.completed())
        elif end == "cancelled":
            stream.say(step_cancelled(event.run, event.step, event.attempt), controls.cancelled())
        else:
            why = controls.failed(retryable=end == "failed")
            stream.say(step_failed(event.run, event.step, event.attempt), why)
        if chance.random() < 0.1:
            self.late.append(event)

    def _call(self, event: Event, call: str) -> None:
        chance = self.chance
        usage = {"input_tokens": chance.randrange(400), "output_tokens": chance.randrange(200)}
        for name in usage:
            if chance.random() < 0.1:
                usage[name] = None  # type: ignore[assignment]  # the server did not report it
                self.did["lost usage"] += 1
        for _ in range(chance.choice([1, 1, 1, 2])):  # said again: the stream has it once
            self.stream.say(llm_called(event.run, event.step, call), controls.called(**usage))


def a_thousand_runs(seed: int) -> tuple[Stream, Counter[str]]:
    chance = random.Random(seed)
    stream = Stream()
    executor, workers = Executor(stream), Workers(stream, chance)
    steps = [controls.step(name, uses_tokens=True, max_attempts=2, on_failure="continue") for name in "abc"]
    one_by_one = [msgspec.structs.replace(one, needs=[chr(ord(one.id) - 1)] if one.id > "a" else []) for one in steps]
    plans = [
        # One step after the other: of two dispatches at once the budget may let only the first count, and the calls of
        # an attempt that does not count are in no account.
        controls.plan(*one_by_one, budgets=Budgets(token_budget=1_000_000)),
        controls.plan(*one_by_one, budgets=Budgets(token_budget=900)),
        controls.plan(steps[0], controls.step("b", needs=["a"])),
    ]
    for _ in range(RUNS // UNDER_WAY):
        for _ in range(UNDER_WAY):
            run = stream.goal()
            stream.say(plan_created(run), chance.choice(plans))
        before = -1
        while before != stream.last_seq:
            before = stream.last_seq
            executor.read(10**9)
            executor.send(10**9)
            workers.work()
    return stream, workers.did


def counted(stream: Stream) -> dict[int, Account]:
    """Each run's tokens with nothing of Remit: calls of an attempt that runs, by the order of the stream."""
    running: set[tuple[str, str]] = set()
    found: dict[int, list[int]] = defaultdict(lambda: [0, 0, 0])
    for subject, _, _, data in stream.messages:
        noun_verb, _, rest = subject.partition(".")[2].partition(".")
        kind, parts = subject.split(".")[0] + "." + noun_verb, rest.split(".")
        if kind == "step.dispatched":
            running.add((parts[0], parts[1]))
        elif kind in ("step.completed", "step.failed", "step.cancelled"):
            running.discard((parts[0], parts[1]))
        elif kind == "llm.called" and (parts[0], parts[1]) in running:
            body, account = json.loads(data), found[int(parts[0])]
            account[0] += body.get("input_tokens") or 0
            account[1] += body.get("output_tokens") or 0
            account[2] += body.get("input_tokens") is None or body.get("output_tokens") is None
    return {run: (one[0], one[1], one[2]) for run, one in found.items()}


def announced(stream: Stream) -> dict[int, Account]:
    """What each `run.completed` said."""
    found = {}
    for subject, _, _, data in stream.messages:
        if subject.startswith("run.completed."):
            tokens = json.loads(data)["tokens"]
            found[int(subject.split(".")[2])] = (tokens["input"], tokens["output"], tokens["unknown_calls"])
    return found


def test_a_thousand_runs_reconcile_to_the_token(tmp_path: Path) -> None:
    """With lost usage, retries, cancels, calls said twice and calls that came after the end of their attempt."""
    stream, did = a_thousand_runs(7)
    assert min(did[what] for what in ("cancel", "failed", "failed for good", "cancelled", "lost usage")) > 50, did
    store, fold, chance = Store(tmp_path / "ledger.duckdb"), Fold(), random.Random(8)
    store.begin("EVENTS", "2026")
    cuts = {chance.randrange(stream.last_seq) for _ in range(10)}
    for message in stream.messages:
        fold.add(*message)
        if message[1] in cuts:
            store.write(fold.take())
    store.write(fold.take())

    by_run = "select run, input_tokens as i, output_tokens as o, unknown_calls as u from runs"
    of_runs = {row["run"]: (row["i"], row["o"], row["u"]) for row in _rows(store, by_run)}
    by_call = (
        "select run, sum(coalesce(input_tokens, 0))::bigint as i, sum(coalesce(output_tokens, 0))::bigint as o, "
        "count(*) filter (where input_tokens is null or output_tokens is null) as u from llm_calls group by run"
    )
    of_calls = {row["run"]: (row["i"], row["o"], row["u"]) for row in _rows(store, by_call)}
    recount, said = counted(stream), announced(stream)
    store.close()
    assert len(of_runs) == len(said) == RUNS
    assert of_runs == said
    for run, account in of_runs.items():
        assert account == of_calls.get(run, (0, 0, 0)) == recount.get(run, (0, 0, 0)), run
    late = sum(1 for subject, *_ in stream.messages if subject.startswith("llm.called.") and subject.endswith(".late"))
    assert late > 20


def _rows(store: Store, query: str) -> list[dict[str, int]]:
    found: list[dict[str, int]] = []
    columns, rows, cut = store.select(query, rows_max=10_000, time_s=30)
    assert columns and not cut
    found += rows
    return found

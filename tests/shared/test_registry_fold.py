"""The registry's fold: rows that do not depend on where batches end or the registry was killed.

It stands here with the fold of runs that it is made of.
"""

import random
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.registry.fold import Batch, Fold
from services.registry.store import TABLES
from shared.events import encode
from shared.plan import Reused
from shared.status import RUN_ENDS
from shared.subjects import (
    approval_granted,
    approval_requested,
    goal_rejected,
    llm_called,
    plan_created,
    run_completed,
    run_queued,
    run_started,
    schedule_alarm_fired,
    schedule_ticked,
    step_completed,
    step_dispatched,
    step_failed,
    step_skipped,
    timer_fired,
)
from tests import controls
from tests.controls import ACK, Stream

Row = tuple[Any, ...]


class Tables:
    """The rows as the store keeps them: runs and steps replaced when they are rewritten, the others appended."""

    def __init__(self) -> None:
        self.rows: dict[str, list[Row]] = {table: [] for table in TABLES}
        self.position = 0

    def write(self, batch: Batch) -> None:
        for table, gone in (("runs", batch.rewritten), ("steps", batch.rewritten), ("approvals", batch.asked_again)):
            self.rows[table] = [row for row in self.rows[table] if row[0] not in gone]
        for table, kept in self.rows.items():
            kept += [_frozen(row) for row in zip(*getattr(batch, table).values(), strict=True)]
        self.position = batch.position

    def active_events(self) -> list[tuple[str, int, int, bytes, str | None]]:
        """What `active_events.sql` gives: the events of every run without an end, or without a goal."""
        active = {row[0] for row in self.rows["runs"] if row[5] not in RUN_ENDS}
        last = max((row[0] for row in self.rows["events"]), default=0)
        found = [
            (subject, seq, at_us, body or b"", unreadable)
            for seq, at_us, subject, _, run, *_, unreadable, body in self.rows["events"]
            if run in active or (run or 0) > last
        ]
        return sorted(found, key=lambda row: row[1])

    def all(self) -> dict[str, list[Row]]:
        return {table: sorted(rows, key=repr) for table, rows in self.rows.items()}


def _frozen(row: tuple[Any, ...]) -> Row:
    return tuple(tuple(value) if isinstance(value, list) else value for value in row)


def folded(stream: Stream, cuts: frozenset[int] = frozenset(), kills: frozenset[int] = frozenset()) -> Tables:
    """The tables of the whole stream: a batch ends after each of `cuts`, the registry is restarted after `kills`."""
    tables, fold = Tables(), Fold()
    for message in stream.messages:
        fold.add(*message)
        seq = message[1]
        if seq in cuts:
            tables.write(fold.take())
        if seq in kills:  # what was not written is lost with the process and read again from the stream
            fold = Fold()
            for row in tables.active_events():
                fold.restore(*row)
            fold.restored(tables.position)
            for again in stream.messages[tables.position : seq]:
                fold.add(*again)
    if len(fold):
        tables.write(fold.take())
    return tables


def a_busy_stream(seed: int, runs: int = 4, junk: bool = True) -> Stream:
    """Several runs at once, with questions, retries, failures, calls, ends, late results and messages that are none."""
    chance = random.Random(seed)
    stream = Stream()
    plain = controls.plan(controls.step("a", max_attempts=2), controls.step("b", needs=["a"]))
    gated = controls.plan(*plain.steps, directive=controls.directive(approval_required=True, approvals_needed=2))
    scripts: list[list[tuple[str, Any]]] = []
    for _ in range(runs):
        run = stream.goal(chance.choice([b'{"tasks":["noop"]}', b'{"goal":"check logs"}', b"no goal", b"\xff"]))
        asks = chance.random() < 0.4
        questions: list[tuple[str, Any]] = [
            (approval_requested(run, "run"), controls.asked(run, "run", plan_hash=gated.plan_hash)),
            (approval_granted(run, "run", "ann"), controls.granted(run, "run", plan_hash=gated.plan_hash)),
            (approval_granted(run, "run", "eve"), controls.granted(run, "run", plan_hash="another")),
            (approval_granted(run, "run", "bob"), controls.granted(run, "run", plan_hash=gated.plan_hash)),
        ]
        script: list[tuple[str, Any]] = [
            (plan_created(run), gated if asks else plain),
            *(questions if asks else []),
            (run_queued(run), controls.queued()),
            (run_started(run), controls.started()),
            (step_dispatched(run, "a", 1, "noop"), controls.dispatched()),
            (llm_called(run, "a", "1-1"), controls.called()),
            (step_failed(run, "a", 1), controls.failed()),
            (step_dispatched(run, "a", 2, "noop"), controls.dispatched()),
            (llm_called(run, "a", "2-1"), controls.called(output_tokens=None)),
            (step_completed(run, "a", 2), controls.completed()),
            (step_dispatched(run, "b", 1, "noop"), controls.dispatched()),
            (step_completed(run, "b", 1), controls.completed(artifacts=[controls.artifact("b.json")])),
            (run_completed(run), controls.run_over(steps={"a": "succeeded", "b": "succeeded"})),
            (step_failed(run, "b", 1), controls.failed()),
            (llm_called(run, "b", "1-9"), controls.called()),
        ]
        if chance.random() < 0.2:
            script = [(goal_rejected(run), controls.goal_rejected_body())]
        script = script[: chance.randint(1, len(script))]
        if junk:
            for _ in range(chance.randint(0, 3)):
                at = chance.randrange(len(script))
                script.insert(at, (script[at][0], chance.choice(JUNK)))
            if chance.random() < 0.3:
                script.append((chance.choice([timer_fired(run, "deadline"), step_skipped(run, "b")]), ACK))
        scripts.append(script)
    while scripts := [script for script in scripts if script]:
        subject, body = chance.choice(scripts).pop(0)
        stream.put(subject, body)
    return stream


JUNK = [
    ACK,
    b"",
    b"\xff\xfe",
    b'{"outputs":{},"error":"e","reason":"\xff"}',
    b'{"outputs":{}}' + b" " * 5_000 + b"x",
    encode({"reason": "x" * 6_000})[:-1],
    "🔥".encode() * 2_000,
]


@settings(max_examples=60)
@given(seed=st.integers(0, 10**6), data=st.data())
def test_rows_do_not_depend_on_where_batches_end(seed: int, data: st.DataObject) -> None:
    stream = a_busy_stream(seed)
    cuts = data.draw(st.frozensets(st.integers(1, stream.last_seq)))
    assert folded(stream, cuts).all() == folded(stream).all()


@settings(max_examples=60)
@given(seed=st.integers(0, 10**6), data=st.data())
def test_rows_do_not_depend_on_where_the_registry_was_killed(seed: int, data: st.DataObject) -> None:
    """All messages readable: kills at any place, batches cut at any other."""
    stream = a_busy_stream(seed, junk=False)
    places = st.frozensets(st.integers(1, stream.last_seq))
    assert folded(stream, data.draw(places), data.draw(places)).all() == folded(stream).all()


@settings(max_examples=60)
@given(seed=st.integers(0, 10**6), data=st.data())
def test_rows_do_not_depend_on_kills_when_there_is_junk_in_the_stream(seed: int, data: st.DataObject) -> None:
    """What is kept of an unreadable message must read again as the same unreadable message."""
    stream = a_busy_stream(seed)
    places = st.frozensets(st.integers(1, stream.last_seq))
    assert folded(stream, data.draw(places), data.draw(places)).all() == folded(stream).all()


@pytest.mark.parametrize(
    "body",
    [
        b"\xff",
        b'{"outputs":{},"zz":"\xff"}',
        b'{"outputs":{}}' + b" " * 5_000 + b"x",
        b'{"outputs":{"x":"' + b"y" * 5_000 + b'"',
        b'{"outputs":7}' + b" " * 5_000,
    ],
    ids=["not UTF-8", "not UTF-8 where nobody reads", "JSON and a far x", "cut short", "wrong type and much white"],
)
def test_a_message_reads_after_a_restart_as_it_read_before(body: bytes) -> None:
    """Each of these lies under step.completed of a running step; then the registry is killed, and the run goes on."""
    stream = Stream()
    run = stream.planned()
    stream.put(run_started(run), controls.started())
    stream.put(step_dispatched(run, "a", 1, "noop"), controls.dispatched())
    stream.put(step_completed(run, "a", 1), body)
    kill = stream.last_seq
    stream.put(run_queued(run), controls.queued())
    stream.put(llm_called(run, "a", "1-1"), controls.called())
    restarted = folded(stream, frozenset({kill}), frozenset({kill}))
    assert restarted.all() == folded(stream).all()


def test_a_stream_of_ended_runs_leaves_nothing_in_memory() -> None:
    stream = Stream()
    for _ in range(20):
        run = stream.planned()
        stream.put(run_started(run), controls.started())
        stream.put(run_completed(run), controls.run_over())
    fold = Fold()
    for message in stream.messages:
        fold.add(*message)
    fold.take()
    assert fold.active == 0 and not fold._goals and not fold._stored and not fold._changed


def test_every_message_has_its_row_readable_or_not() -> None:
    stream = a_busy_stream(3)
    assert [row[0] for row in folded(stream).rows["events"]] == list(range(1, stream.last_seq + 1))


def test_a_runs_tokens_are_the_sum_of_its_calls_that_counted() -> None:
    """A call after the end was made, and has its row; the run's account is closed. What the tables call a run's
    tokens and what they list as its calls must not part in silence: the event's row says `applied` or why not.
    """
    stream = a_busy_stream(11, junk=False)
    tables = folded(stream)
    applied = {row[0] for row in tables.rows["events"] if row[8]}
    for row in tables.rows["runs"]:
        calls = [call for call in tables.rows["llm_calls"] if call[2] == row[0] and call[0] in applied]
        assert row[13] == sum(call[10] or 0 for call in calls)
        assert row[14] == sum(call[11] or 0 for call in calls)


def test_a_question_is_a_row_with_the_answers_that_counted() -> None:
    """The stranger's answer to another question is an event and no approval."""
    approvals = [row for seed in range(20) for row in folded(a_busy_stream(seed, junk=False)).rows["approvals"]]
    approved = [row for row in approvals if row[5] == "approved"]
    assert approved and len(approved) < len(approvals)
    assert {row[12] for row in approved} == {("ann", "bob")}
    assert {row[3] for row in approvals} == {"run 2 steps: a (noop), b (noop)"}  # the plan says so, not the message


def test_a_step_that_was_reused_hands_on_its_artifacts() -> None:
    kept = msgspec.structs.replace(controls.artifact(), from_run=1)
    reused = {"a": Reused(outputs={"n": 1}, artifacts=[kept])}
    stream = Stream()
    stream.planned()
    run = stream.planned(controls.plan(controls.step("a"), controls.step("b"), retry_of=1, reused=reused))
    rows = folded(stream).rows
    assert [(row[0], row[1], row[2], row[6]) for row in rows["artifacts"]] == [(run, "a", "report.md", 1)]
    assert [row[14] for row in rows["steps"] if row[0] == run] == [1, None]


def test_a_call_of_a_run_that_never_was_is_no_call() -> None:
    """Anybody can publish `llm.called.1.x.y`: it must not stand among the tokens that were used."""
    stream = Stream()
    for _ in range(3):
        stream.put("audit.nothing.1", b"{}")
    stream.put(llm_called(2, "x", "y"), controls.called(input_tokens=10**9))
    assert folded(stream).rows["llm_calls"] == []


def test_what_a_schedule_says_has_its_row_and_belongs_to_no_run() -> None:
    stream = Stream()
    stream.put(schedule_ticked("nightly", 1_795_654_800), controls.ticked())
    stream.put(schedule_alarm_fired("nightly"), controls.fired())
    stream.put(schedule_ticked("nightly", 1_795_741_200), ACK)
    rows = [(row[3], row[4], row[8], row[10] is None) for row in folded(stream).rows["events"]]
    assert rows == [
        ("schedule.ticked", None, True, True),
        ("timer.fired", None, True, True),
        ("schedule.ticked", None, False, False),
    ]
    [tick] = folded(stream).rows["ticked"]
    assert tick[2:6] == ("nightly", 1_795_654_800, 1_795_654_800_000_000, "ran")


def test_every_attempt_has_its_row_with_its_end() -> None:
    """Two attempts of one step, the first failed; a run that ends takes what still runs with it."""
    stream = Stream()
    run = stream.planned(controls.plan(controls.step("a", max_attempts=2), controls.step("b")))
    stream.put(run_started(run), controls.started())
    for step in ("a", "b"):
        stream.put(step_dispatched(run, step, 1, "noop"), controls.dispatched())
    stream.put(step_failed(run, "a", 1), controls.failed(host="tower"))
    stream.put(step_dispatched(run, "a", 2, "noop"), controls.dispatched())
    stream.put(step_completed(run, "a", 2), controls.completed(host="attic"))
    stream.put(run_completed(run), controls.run_over(status="failed"))
    rows = [(row[1], row[2], row[4], row[8], row[9]) for row in folded(stream).rows["ended_attempts"]]
    assert rows == [
        ("a", 1, "tower", "failed", "unavailable"),
        ("a", 2, "attic", "succeeded", None),
        ("b", 1, None, "skipped", None),
    ]


def test_an_attempt_that_could_not_begin_is_one_without_a_dispatch() -> None:
    stream = Stream()
    run = stream.planned(controls.plan(controls.step("a", max_attempts=2)))
    stream.put(run_started(run), controls.started())
    stream.put(step_dispatched(run, "a", 1, "noop"), ACK)
    [row] = folded(stream).rows["ended_attempts"]
    assert (row[2], row[5], row[8], row[9]) == (1, None, "failed", "unreadable_dispatch")


def test_attempts_in_the_rows_are_those_that_the_steps_count() -> None:
    """In a busy stream: no attempt twice, and as many as the step of an ended run says."""
    for seed in range(20):
        rows = folded(a_busy_stream(seed)).rows
        named = [row[:3] for row in rows["ended_attempts"]]
        assert len(named) == len(set(named))
        ended = {row[0] for row in rows["runs"] if row[5] in RUN_ENDS}
        for row in rows["steps"]:
            if row[0] in ended:
                assert {one[2] for one in named if one[:2] == (row[0], row[2])} == set(range(1, row[6] + 1)), row


def test_a_plan_is_a_row_with_its_budgets() -> None:
    stream = Stream()
    run = stream.planned()
    stream.put(plan_created(run), controls.plan(controls.step("z")))  # a second one, which is not the plan
    [row] = folded(stream).rows["plans"]
    assert row[0] == run and row[1] == controls.plan().plan_hash and row[7:11] == (1, 10, 3600, 10_000)

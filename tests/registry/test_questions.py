"""What the registry answers: at any time, complete, and with a reason where it cannot."""

import asyncio
import itertools
import sys
import time
from typing import Any

import msgspec
import pytest

from shared.append import Appender
from shared.bus import Bus
from shared.events import PlanCreated, encode
from shared.ledger import LIMIT_MAX, Answer, Question
from shared.subjects import approval_granted, approval_requested, plan_created, run_completed, run_started
from tests import controls
from tests.conftest import until
from tests.controls import ACK
from tests.registry.conftest import EVENTS_A_RUN, ask, last_seq, say_runs
from tests.stack import Stack

STRANGE: dict[str, bytes] = {
    "step.completed.1.a.9": ACK,
    "run.completed.999999": ACK,
    "plan.created.none": b"{}",
    "audit.of.something": b"not JSON",
    "step.failed.1.a.1": b"\xff\xfe",
    "goal.submitted.ann.bob": b"{}",
    "run.started": b"[]",
}


async def test_what_cannot_be_read_is_kept_and_counted_over_a_kill(remit: Stack, bus: Bus, appender: Appender) -> None:
    """A stranger's messages are rows like any other, marked; their count does not depend on when the registry began."""
    await say_runs(appender, 1)
    for subject, data in STRANGE.items():
        await appender.append(subject, data)
    last = await last_seq(bus)
    remit.start("registry")
    before = await ask(bus, "status", Question(min_seq=last))
    assert before.rows[0]["events"] == last
    assert before.more["unreadable"] == len(STRANGE)
    remit.kill("registry")
    remit.start("registry")
    after = await ask(bus, "status", Question(min_seq=last))
    assert after.rows == before.rows
    assert after.more["unreadable"] == len(STRANGE)


async def test_questions_are_answered_while_a_backlog_is_folded(remit: Stack, bus: Bus, appender: Appender) -> None:
    """20,000 events wait; who asks meanwhile hears within a second where the tables stand, not when they are full."""
    await say_runs(appender, 2_000)
    remit.start("registry")
    positions = [(await ask(bus, "status", timeout_s=1)).position]
    asked_s = [time.monotonic()]
    while positions[-1] < 2_000 * EVENTS_A_RUN:
        positions.append((await ask(bus, "runs", Question(limit=10))).position)
        asked_s.append(time.monotonic())
    assert positions == sorted(positions)
    longest_s = max(later - earlier for earlier, later in itertools.pairwise(asked_s))
    assert longest_s < max(1.0, (asked_s[-1] - asked_s[0]) / 2)  # a busy machine makes both longer


SLOW = (
    "select (select count(*) from events) as n, (select count(*) from range(60_000_000) t(i) where i % 7 = 3) as slow"
)


async def test_an_answer_names_no_event_that_was_written_while_it_was_made(
    remit: Stack, bus: Bus, appender: Appender
) -> None:
    """Who asks for what the stream held would take rows from before for those of then."""
    await say_runs(appender, 1)
    remit.start("registry")
    await ask(bus, "status", Question(min_seq=await last_seq(bus)))
    for _ in range(5):
        asked = asyncio.create_task(ask(bus, "sql", Question(sql=SLOW, limit=1)))
        written = 0
        while not asked.done():
            await say_runs(appender, 1)
            written = (await ask(bus, "status")).position
        answer = await asked
        assert answer.position <= answer.rows[0]["n"]
        if answer.rows[0]["n"] < written:
            return
    pytest.fail("nothing was written while it was made")


BAD: dict[str, tuple[str, Any, str]] = {
    "no JSON": ("runs", b"which runs?", ""),
    "no UTF-8": ("runs", b"\xff", ""),
    "a list": ("runs", [], ""),
    "nested for ever": ("runs", b"[" * 100_000, ""),
    "nested for ever where nobody looks": ("runs", b'{"of_a_newer_client":' + b"[" * 100_000, ""),
    "a limit of nothing": ("runs", {"limit": 0}, "limit"),
    "a limit over the most": ("runs", {"limit": LIMIT_MAX + 1}, "limit"),
    "a limit in words": ("runs", {"limit": "many"}, "limit"),
    "a run before all": ("runs", {"before": -1}, "before"),
    "a run beyond all": ("run", {"run": 1 << 70}, "run"),
    "no run": ("run", {}, "run"),
    "events of no run": ("events", {}, "run"),
    "an event beyond all": ("events", {"run": 1, "after": 1 << 63}, "after"),
    "a status that is none": ("runs", {"status": 5}, "status"),
    "approvals of no number": ("approvals", {"run": "one"}, "run"),
    "approvals before all": ("approvals", {"before": -1}, "before"),
}


async def test_a_bad_question_gets_a_reason_and_its_field(remit: Stack, bus: Bus, appender: Appender) -> None:
    """Each is answered, and the next good one, too."""
    await say_runs(appender, 1)
    remit.start("registry")
    await ask(bus, "digest", Question(min_seq=EVENTS_A_RUN))
    for name, (question, body, field) in BAD.items():
        answer = await ask(bus, question, body, timeout_s=3)
        assert answer.error and "its log says why" not in answer.error, (name, answer)
        assert answer.field == field, (name, answer)
    assert (await ask(bus, "run", Question(run=1))).rows[0]["status"] == "succeeded"


async def test_a_question_ahead_of_the_stream_is_refused_in_time(remit: Stack, bus: Bus, appender: Appender) -> None:
    await say_runs(appender, 1)
    remit.start("registry")
    answer = await ask(bus, "runs", Question(min_seq=1_000), timeout_s=10)
    assert answer.error is not None and "1000" in answer.error


async def test_pages_are_complete_and_do_not_overlap(remit: Stack, bus: Bus, appender: Appender) -> None:
    """Runs from the newest back with `before`, events onward with `after`; new runs meanwhile move no page."""
    await say_runs(appender, 25)
    last = await last_seq(bus)
    remit.start("registry")
    wanted = [1 + EVENTS_A_RUN * i for i in reversed(range(25))]
    found: list[int] = []
    question = Question(limit=7, min_seq=last)
    while True:
        answer = await ask(bus, "runs", question)
        found += [row["run"] for row in answer.rows]
        if answer.next is None:
            break
        await say_runs(appender, 1)
        question = Question(limit=7, before=answer.next, min_seq=await last_seq(bus))
    assert found == wanted
    seqs: list[int] = []
    after: int | None = 0
    while after is not None:
        answer = await ask(bus, "events", Question(run=11, after=after, limit=3))
        seqs += [row["seq"] for row in answer.rows]
        after = answer.next
    assert seqs == list(range(11, 11 + EVENTS_A_RUN))
    whole = await ask(bus, "events", Question(run=11, after=0, limit=EVENTS_A_RUN))
    assert (len(whole.rows), whole.next) == (EVENTS_A_RUN, None), "a page that is just full is the last, too"


async def test_questions_of_all_runs_come_a_page_at_a_time_and_follow_their_answers(
    remit: Stack, bus: Bus, appender: Appender
) -> None:
    """Each once, the newest run's first; an answer moves its row from the open ones; a rebuild gives the same rows."""
    gated = controls.plan(controls.step("a", approval=True), controls.step("b", approval=True))
    runs = [await asking(appender, gated) for _ in range(4)]
    remit.start("registry")
    wanted = [(run, step) for run in reversed(runs) for step in ("b", "a")]
    question = Question(status="pending", limit=3, min_seq=await last_seq(bus))
    found: list[tuple[int, str]] = []
    while True:
        page = await ask(bus, "approvals", question)
        assert page.error is None, page.error
        found += [(row["run"], row["step"]) for row in page.rows]
        if page.next is None:
            break
        question = Question(status="pending", limit=3, before=page.next)
    assert found == wanted
    yes = encode(controls.granted(run=runs[1], step="a", plan_hash=gated.plan_hash, reason="fine"))
    seq = await appender.append(approval_granted(runs[1], "a", "ann"), yes)
    [row] = (await ask(bus, "approvals", Question(run=runs[1], status="approved", min_seq=seq))).rows
    assert (row["step"], row["approved_by"], row["reason"], row["is_open"]) == ("a", ["ann"], "fine", False)
    assert row["decided_at"] > row["requested_at"]
    assert len((await ask(bus, "approvals", Question(status="pending"))).rows) == len(wanted) - 1
    seq = await appender.append(run_completed(runs[0]), encode(controls.run_over(status="failed", steps={})))
    assert (await ask(bus, "approvals", Question(run=runs[0], status="pending", min_seq=seq))).rows == []
    assert [row["is_open"] for row in (await ask(bus, "approvals", Question(run=runs[0]))).rows] == [False, False]
    done = await asyncio.to_thread(remit.remit, "rebuild", "-o", "json")
    told = msgspec.json.decode(done.stdout)
    assert told["identical"] is True and told["after"]["approvals"].startswith("8:")


async def asking(appender: Appender, gated: PlanCreated) -> int:
    """A run that asks before each of its steps."""
    run = await appender.append("goal.submitted", b'{"tasks": ["noop"]}', headers={})
    await appender.append(plan_created(run), encode(gated))
    await appender.append(run_started(run), encode(controls.started()))
    for step in gated.by_id:
        question = controls.asked(run=run, step=step, plan_hash=gated.plan_hash)
        await appender.append(approval_requested(run, step), encode(question))
    return run


@pytest.mark.parametrize("question", ["runs", "run"])
async def test_one_reads_what_one_has_written(question: str, remit: Stack, bus: Bus, appender: Appender) -> None:
    """With `min_seq` the answer holds the run that was submitted a moment ago, and does not wait for the next batch."""
    remit.start("registry")
    await ask(bus, "status")
    began = time.monotonic()
    for _ in range(20):
        run = await appender.append("goal.submitted", b'{"tasks": ["noop"]}', headers={})
        answer = await ask(bus, question, Question(run=run, min_seq=run))
        assert answer.rows[0]["run"] == run
    assert time.monotonic() - began < 20 * 0.3


async def test_a_rebuild_under_load_is_identical_and_questions_go_on(
    remit: Stack, bus: Bus, appender: Appender
) -> None:
    """Folded anew while events come in, three times, with somebody asking all the time: no question is refused."""
    await say_runs(appender, 300)
    remit.start("registry")
    await ask(bus, "digest", Question(min_seq=300 * EVENTS_A_RUN))
    refused: list[Answer] = []
    over = asyncio.Event()

    async def curious() -> None:
        while not over.is_set():
            answer = await ask(bus, "runs", Question(limit=5), timeout_s=5)
            if answer.error:
                refused.append(answer)

    async def load() -> None:
        while not over.is_set():
            await say_runs(appender, 10)
            await ask(bus, "status")  # a load that leaves the rebuild some of the machine

    async with asyncio.TaskGroup() as group:
        group.create_task(curious())
        group.create_task(load())
        for _ in range(3):
            done = await asyncio.to_thread(remit.remit, "rebuild", "-o", "json")
            assert done.returncode == 0, done.stderr
            assert msgspec.json.decode(done.stdout)["identical"] is True
        over.set()
    assert refused == []
    last = await last_seq(bus)
    counted = await ask(bus, "status", Question(min_seq=last))
    assert counted.rows[0]["events"] == last


@pytest.mark.chaos
async def test_a_rebuild_over_a_server_kill_ends_one_way_or_the_other(
    remit: Stack, bus: Bus, appender: Appender
) -> None:
    """nats-server is killed while a rebuild runs: the tables stay whole, and the next rebuild works."""
    await say_runs(appender, 1_000)
    last = await last_seq(bus)
    remit.start("registry")
    await ask(bus, "digest", Question(min_seq=last))
    remit.start_as("rebuild", [sys.executable, "-m", "cli", "rebuild", "-o", "json"])
    await until((remit.folder / "ledger.duckdb.rebuild").exists)
    remit.kill("nats")
    remit.start_nats()
    counted = await ask(bus, "status", Question(min_seq=last))
    assert counted.rows[0]["events"] == last
    remit.kill("rebuild")

    async def rebuilt() -> bool:
        """Not while the one that was interrupted is still waiting for the stream."""
        return (await asyncio.to_thread(remit.remit, "rebuild", "-o", "json")).returncode == 0

    await until(rebuilt)
    done = await asyncio.to_thread(remit.remit, "rebuild", "-o", "json")
    assert done.returncode == 0, done.stderr
    assert msgspec.json.decode(done.stdout)["identical"] is True

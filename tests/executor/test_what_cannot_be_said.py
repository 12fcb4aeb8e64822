"""A stranger's words that an executor cannot say again must not end it: all runs would stand still with one of them."""

import json
from typing import Any

import msgspec

from services.executor.decide import decide
from services.planner.service import answer_to
from shared.bus import Bus
from shared.catalogue import BUILT_IN
from shared.clock import rfc3339
from shared.plan import hash_of, wait_problem
from shared.run_state import Run
from shared.subjects import approval_requested, plan_created
from tests import controls
from tests.conftest import until
from tests.controls import Stream
from tests.stack import Stack

# A time of the year 0, in UTC: it can be read, and not written.
BEFORE_ALL_TIMES = "0001-01-01T00:00:00+01:00"
# As JSON these numbers are four characters each; said again they are eighteen.
GROWS = "[" + ",".join(["1e15"] * 80_000) + "]"


def forged() -> bytes:
    """A plan whose hash is right, and whose only step's dispatch is larger than any message may be."""
    plan: dict[str, Any] = json.loads(msgspec.json.encode(answer_to(b'{"tasks":["sleep"]}', BUILT_IN)))
    plan["steps"][0]["inputs"] = {"a": "@"}
    said = json.dumps(plan).replace('"@"', GROWS)
    told = msgspec.json.decode(said)
    del told["plan_hash"]
    return said.replace(plan["plan_hash"], hash_of(told)).encode()


async def test_a_dispatch_that_no_server_takes_stops_its_own_run_alone(remit: Stack, client: Bus) -> None:
    remit.stop("planner")
    hung = json.loads(await client.request("goal.submitted", b'{"tasks":["noop"],"time_budget_s":5}'))["seq"]
    assert "seq" in json.loads(await client.request(plan_created(hung), forged()))
    await until(lambda: "can never be said" in remit.log("executor"))
    remit.start("planner")
    done = remit.remit("submit", "--task", "noop", "--wait")
    assert done.returncode == 0, done.stderr
    assert remit.ended() == {}
    remit.kill("executor")
    remit.start("executor")
    assert remit.remit("submit", "--task", "noop", "--wait").returncode == 0
    assert remit.remit("cancel", str(hung), "--wait").returncode in (0, 3)
    assert remit.ended() == {}


def asking() -> tuple[Stream, int, Run]:
    """A run with an approval behind a step that runs."""
    stream = Stream()
    plan = controls.plan(controls.step("a"), controls.step("ok", kind="approval", task=None, needs=["a"]))
    run = stream.planned(plan)
    return stream, run, stream.fold(run)


def test_a_question_that_expires_before_all_times_expires_when_the_plan_says() -> None:
    stream, run, before = asking()
    assert before.plan is not None
    question = {"run": run, "step": "ok", "what": "x", "plan_hash": before.plan.plan_hash,
                "expires_at": BEFORE_ALL_TIMES}  # fmt: skip
    stream.put(approval_requested(run, "ok"), json.dumps(question).encode())
    state = stream.fold(run)
    assert rfc3339(state.approvals["ok"].expires_ns) > "2020"
    decide(state)


def test_a_wait_until_before_all_times_is_none() -> None:
    assert "RFC 3339" in wait_problem({"until": BEFORE_ALL_TIMES})

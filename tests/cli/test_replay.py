"""The story of every kind of run, from its messages alone."""

import pytest

from cli.replay import story, until
from shared.clock import rfc3339
from shared.status import RUN_ENDS
from tests.audit.sound import SOUND, added, alone, asked, gated, retried
from tests.controls import ACK


@pytest.mark.parametrize("name", [name for name in SOUND if name not in ("scheduled", "one_by_one")])
def test_every_fact_follows_from_an_earlier_one(name: str) -> None:
    told = story(1, SOUND[name]())
    seqs = {one["seq"] for one in told}
    for one in told:
        kind = ".".join(one["subject"].split(".")[:2])
        if kind in ("goal.submitted", "run.cancel_requested"):
            assert one["cause"] is None
        else:
            assert one["cause"] in seqs and one["cause"] < one["seq"], one
    assert (told[-1]["run_after"] in RUN_ENDS) == (name != "active")


def test_an_answer_follows_its_question_and_is_somebodys() -> None:
    told = {one["subject"]: one for one in story(1, gated())}
    question = told["approval.requested.1.run"]
    for who in ("ann", "bob"):
        answer = told[f"approval.granted.1.run.{who}"]
        assert (answer["by"], answer["cause"]) == (who, question["seq"])
    assert told["approval.granted.1.run.ann"]["step_after"] == "pending"  # one of two
    assert told["approval.granted.1.run.bob"]["step_after"] == "approved"


def test_a_rest_and_a_second_attempt_are_told() -> None:
    told = {one["subject"]: one for one in story(1, retried())}
    assert told["timer.fired.1.backoff.a.1"]["by"] == "timer"
    assert told["timer.fired.1.backoff.a.1"]["cause"] == told["step.failed.1.a.1"]["seq"]
    assert told["step.dispatched.1.a.2.noop"]["step_after"] == "running (2)"


def test_what_changed_nothing_says_why() -> None:
    told = story(1, added(asked(), "approval.requested.1.a", "step.completed.1.a.1", ACK))
    stray = next(one for one in told if not one["applied"])
    assert stray["subject"] == "step.completed.1.a.1"
    assert stray["note"] and stray["run_before"] == stray["run_after"] == "running"


def test_what_cannot_be_read_is_told_as_that() -> None:
    told = story(1, added(alone(), "run.started.1", "llm.called.1.a.1-1", ACK))
    assert any((one["what"] or "").startswith("cannot be read") for one in told)


def test_the_time_that_stands_beside_an_event_means_it() -> None:
    """Stamps are finer than the times that are told."""
    messages = [(subject, seq, at_ns + 999, content) for subject, seq, at_ns, content in retried()]
    told = story(1, messages)
    for place, one in enumerate(told):
        upto = until(messages, one["at"])
        assert messages[place] in upto and all(rfc3339(at_ns) <= one["at"] for _, _, at_ns, _ in upto)
    assert until(messages, str(messages[2][1])) == messages[:3]

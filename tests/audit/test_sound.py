"""Nothing is said against a sound stream, whatever kind of run it holds; what counts for nothing is noted."""

import pytest

from shared.audit.of_stream import audit
from tests import controls
from tests.audit.sound import SOUND, added, alone, asked, cancelled, chain, kept


@pytest.mark.parametrize("name", SOUND)
def test_a_sound_stream_has_no_findings(name: str) -> None:
    found = audit(SOUND[name]())
    assert found.findings == []
    assert (found.runs, found.active) == {"active": (1, 1), "one_by_one": (2, 0)}.get(name, (1, 0))


@pytest.mark.parametrize("name", SOUND)
def test_neither_has_any_beginning_of_it(name: str) -> None:
    messages = SOUND[name]()
    for end in range(len(messages)):
        assert audit(messages[:end]).findings == [], end


def test_the_late_word_of_a_worker_is_noted() -> None:
    found = audit(added(alone(), "step.completed.1.a.1", "step.failed.1.a.1", controls.failed()))
    assert found.findings == []
    assert [(note.subject, note.text) for note in found.notes] == [
        ("step.failed.1.a.1", "attempt 1 does not run any more: the step is succeeded")
    ]


def test_an_answer_that_does_not_count_is_noted_where_nothing_rests_on_it() -> None:
    messages = asked()
    plan_hash = controls.json.loads(messages[1][3])["plan_hash"]
    answer = controls.granted(1, "a", plan_hash=plan_hash)
    found = audit(added(messages, "approval.requested.1.a", "approval.granted.1.a.eve", answer))
    assert found.findings == []
    assert [note.text for note in found.notes] == ["eve is not among the approvers"]


def test_what_cannot_be_read_is_noted() -> None:
    found = audit(added(cancelled(), "run.cancel_requested.1.ann", "approval.granted.1.a", controls.ACK))
    assert found.findings == []
    assert [note.text for note in found.notes] == ["nothing was asked here"]


def test_artifacts_are_those_of_accepted_ends() -> None:
    late = controls.completed(artifacts=[controls.artifact("other.md")])
    messages = added(kept(), "step.completed.1.a.1", "step.completed.1.a.2", late)
    assert [(one.run, one.step, one.name) for one in audit(messages).artifacts] == [(1, "a", "report.md")]


def test_one_run_is_audited_by_its_own_messages() -> None:
    messages = [(subject, seq * 10 - 9 if seq > 1 else 1, at, data) for subject, seq, at, data in chain()]
    assert audit(messages, whole=False).findings == []
    assert {one.rule for one in audit(messages).findings} == {"sequence"}

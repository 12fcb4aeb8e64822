"""Reading stored messages: never an exception, old samples for ever, and a server's ack is no event."""

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from shared.events import (
    KINDS,
    OF_SCHEDULES,
    OF_THE_STREAM,
    AuditSealed,
    Event,
    ScheduleTicked,
    TimerFired,
    Unreadable,
    encode,
    read,
)
from shared.plan import read_goal
from tests import controls

SAMPLES = Path(__file__).with_name("samples")
SEQ, AT_NS = 1_000, controls.T0_NS


def sample(kind: str) -> tuple[str, Any]:
    stored = json.loads((SAMPLES / f"{kind}.json").read_text())
    return stored["subject"], stored["data"]


def contains(whole: Any, part: Any) -> bool:
    """Whether everything in `part` stands in `whole` with the same value."""
    if isinstance(part, dict):
        return isinstance(whole, dict) and all(key in whole and contains(whole[key], part[key]) for key in part)
    if isinstance(part, list):
        return isinstance(whole, list) and len(whole) == len(part) and all(map(contains, whole, part))
    return bool(whole == part)


# -- samples -------------------------------------------------------------------------------------------------


def test_every_kind_has_a_frozen_sample_and_no_sample_is_without_a_kind() -> None:
    """An event that is added brings its sample; a sample is never removed."""
    assert {path.stem for path in SAMPLES.glob("*.json")} == {*KINDS, *OF_SCHEDULES, *OF_THE_STREAM, "goal.submitted"}


@pytest.mark.parametrize("kind", KINDS)
def test_a_frozen_sample_reads_as_its_kind_with_all_its_fields(kind: str) -> None:
    """What was once written stays readable and keeps its meaning: never edit a sample to make this pass."""
    subject, data = sample(kind)
    event = read(subject, SEQ, AT_NS, json.dumps(data).encode())
    assert isinstance(event.body, KINDS[kind][0]), event.body
    assert event.kind == kind and event.run == 7
    assert contains(json.loads(encode(event.body)), data)


def test_the_frozen_goal_reads_as_a_goal() -> None:
    subject, data = sample("goal.submitted")
    event = read(subject, SEQ, AT_NS, json.dumps(data).encode())
    assert (event.kind, event.run, event.tail) == ("goal.submitted", SEQ, "ann")
    goal, problems = read_goal(json.dumps(data).encode())
    assert problems == [] and contains(json.loads(encode(goal)), data)


def test_the_frozen_tick_of_a_schedule_reads_as_one() -> None:
    """It belongs to no run: the schedule's name and the tick stand in `tail`."""
    subject, data = sample("schedule.ticked")
    event = read(subject, SEQ, AT_NS, json.dumps({**data, "zz": [[]]}).encode())
    assert (event.kind, event.run, event.tail) == ("schedule.ticked", 0, "nightly.1795654800")
    assert isinstance(event.body, ScheduleTicked) and contains(json.loads(encode(event.body)), data)


def test_the_frozen_seal_reads_as_one() -> None:
    """It belongs to no run: what it is called stands in `tail`."""
    subject, data = sample("audit.sealed")
    event = read(subject, SEQ, AT_NS, json.dumps({**data, "zz": [[]]}).encode())
    assert (event.kind, event.run, event.tail) == ("audit.sealed", 0, "seal-9")
    assert isinstance(event.body, AuditSealed) and contains(json.loads(encode(event.body)), data)


@pytest.mark.parametrize(
    "subject",
    [
        "audit.sealed",
        "audit.sealed.9",
        "audit.sealed.seal-0",
        "audit.sealed.seal-09",
        "audit.sealed.seal-9.x",
        "audit.x",
    ],
)
def test_a_subject_of_no_seal_is_unreadable(subject: str) -> None:
    assert isinstance(read(subject, SEQ, AT_NS, json.dumps(sample("audit.sealed")[1]).encode()).body, Unreadable)


def test_a_schedules_alarm_is_a_timer_without_a_run() -> None:
    event = read("timer.fired.schedule.nightly", SEQ, AT_NS, encode(TimerFired(due="")))
    assert (event.kind, event.run, event.tail) == ("timer.fired", 0, "nightly")
    assert isinstance(event.body, TimerFired)


@pytest.mark.parametrize(
    "subject",
    [
        "schedule.ticked",
        "schedule.ticked.nightly",
        "schedule.ticked.42.1795654800",
        "schedule.ticked.nightly.0",
        "schedule.ticked.nightly.01795654800",
        "schedule.ticked.nightly.soon",
        f"schedule.ticked.nightly.{10**11}",
        "schedule.ticked.nightly.1795654800.x",
        f"schedule.ticked.{'a' * 41}.1795654800",
        "schedule.made.nightly.1795654800",
        "timer.fired.schedule",
        "timer.fired.schedule.42",
        "timer.fired.schedule.nightly.x",
        "timer.fired.schedules.nightly",
        "step.completed.schedule.nightly",
    ],
)
def test_a_subject_of_no_schedule_is_unreadable(subject: str) -> None:
    for kind in OF_SCHEDULES:
        assert isinstance(read(subject, SEQ, AT_NS, json.dumps(sample(kind)[1]).encode()).body, Unreadable)


@pytest.mark.parametrize("kind", KINDS)
def test_unknown_fields_are_ignored(kind: str) -> None:
    """Old readers survive new writers, at any depth of the new field."""
    subject, data = sample(kind)
    plain = read(subject, SEQ, AT_NS, json.dumps(data).encode())
    newer = {"aa": [1, {"b": None}], **data, "zz": {"deep": [[]]}}
    if kind == "plan.created":  # a plan's hash is over all that was said, so a newer planner's field is in it
        newer["plan_hash"] = controls.outsiders_hash(json.dumps(newer).encode())
    more = read(subject, SEQ, AT_NS, json.dumps(newer).encode())
    if kind == "plan.created":
        more.body = msgspec.structs.replace(more.body, plan_hash=plain.body.plan_hash)
    assert more == plain and not isinstance(more.body, Unreadable)


# -- what is no event ----------------------------------------------------------------------------------------


SERVER_SAYS = {
    "ack": controls.ACK,
    "duplicate ack": controls.ACK_DUPLICATE,
    "error ack": controls.ACK_ERROR,
    "empty": b"",
    "status": b'{"type":"io.nats.jetstream.api.v1.stream_info_response","total":0,"offset":0,"limit":0}',
    "pull request": b'{"batch":1,"expires":5000000000,"idle_heartbeat":1000000000}',
    "error": b'{"type":"io.nats.jetstream.api.v1.stream_msg_get_response","error":{"code":404,"err_code":10037,"description":"no message found"}}',  # noqa: E501
    "service ping": b'{"name":"gpu","id":"x","version":"0.1.0","metadata":{},"type":"io.nats.micro.v1.ping_response"}',
    "service stats": b'{"name":"gpu","id":"x","version":"0.1.0","started":"2026-11-18T12:00:00Z","endpoints":[],"type":"io.nats.micro.v1.stats_response"}',  # noqa: E501
    "watch advisory": b'{"type":"io.nats.jetstream.advisory.v1.max_deliver","id":"x","timestamp":"t","stream":"EVENTS","consumer":"c","stream_seq":1,"deliveries":5}',  # noqa: E501
}


@pytest.mark.parametrize("body", [*SERVER_SAYS.values(), b'{"due":"","outcome":"forgotten"}', b'{"outcome":"ran"}'])
def test_what_is_no_tick_still_tells_whose_place_it_takes(body: bytes) -> None:
    event = read("schedule.ticked.nightly.1795654800", SEQ, AT_NS, body)
    assert isinstance(event.body, Unreadable) and event.tail == "nightly.1795654800"


# A person who cancels by hand need not give a reason: an empty message is a request to cancel.
@pytest.mark.parametrize(
    ("kind", "says"),
    [(kind, says) for kind in KINDS for says in SERVER_SAYS if (kind, says) != ("run.cancel_requested", "empty")],
)
def test_what_a_server_says_is_no_event_of_any_kind(kind: str, says: str) -> None:
    """A client can have the server's answer stored under any subject; each kind has a field that no answer has."""
    subject, _ = sample(kind)
    assert isinstance(read(subject, SEQ, AT_NS, SERVER_SAYS[says]).body, Unreadable)


WITH_REASON = (
    "run.cancel_requested",
    "step.cancel_requested",
    "step.cancelled",
    "approval.granted",
    "approval.rejected",
)


def test_no_event_reads_as_one_of_another_kind() -> None:
    """An answer that holds a stored message (a direct get) cannot pass for an event of another kind.

    `step.skipped` and `goal.rejected` both carry a reason; each is harmless as the other, and named here.
    """
    alike = {
        ("goal.rejected", "step.skipped"),
        ("run.completed", "step.skipped"),
        ("run.completed", "goal.rejected"),
    }
    # What carries a reason can be read as a request to cancel; as a worker's word it counts only where one was made.
    alike |= {
        (kind, other) for kind in KINDS for other in ("run.cancel_requested", "step.cancel_requested", "step.cancelled")
    }
    alike |= {(kind, other) for kind in WITH_REASON for other in ("step.skipped", "goal.rejected")}
    confused = set()
    for kind in KINDS:
        data = json.dumps(sample(kind)[1]).encode()
        for other in KINDS:
            subject, _ = sample(other)
            if other != kind and not isinstance(read(subject, SEQ, AT_NS, data).body, Unreadable):
                confused.add((kind, other))
    assert confused <= alike | {("step.skipped", "goal.rejected")}


@pytest.mark.parametrize(
    "subject",
    [
        "",
        ".",
        "...",
        "goal",
        "goal.",
        "goal.rejected",
        "goal.rejected.",
        "goal.rejected.0",
        "goal.rejected.007",
        "goal.rejected.-7",
        "goal.rejected.+7",
        "goal.rejected.7.7",
        "goal.rejected.٧",
        "goal.rejected.1e3",
        f"goal.rejected.{'9' * 20}",
        f"goal.rejected.{'9' * 4_000}",
        f"goal.rejected.{SEQ}",
        f"goal.rejected.{SEQ + 1}",
        "run.completed.7.extra",
        "run.cancel_requested.7.8",
        "run.cancel_requested.7.ann.bob",
        "approval.granted.7",
        "approval.granted.7.a.8",
        "approval.granted.7.A.ann",
        "approval.requested.7.a.ann",
        "step.cancelled.7.a",
        "step.dispatched.7.a.1.noop.tower.x",
        "step.completed.7",
        "step.completed.7.a",
        "step.completed.7.A.1",
        "step.completed.7.a b.1",
        "step.completed.7..1",
        f"step.completed.7.{'a' * 65}.1",
        "step.completed.7.a.1.noop",
        "step.dispatched.7.a.1",
        "step.skipped.7",
        "llm.called.7.a",
        "timer.fired.7",
        "timer.fired.7.step.a.1.x",
        "audit.anything.7",
        "goal.submitted.42",
        "goal.submitted.ann.bob",
        "goal.submitted.*",
    ],
)
def test_a_subject_that_nobody_of_remit_says_is_unreadable(subject: str) -> None:
    """Whatever stands in it: every sample is tried under the subject."""
    for kind in [*KINDS, "goal.submitted"]:
        event = read(subject, SEQ, AT_NS, json.dumps(sample(kind)[1]).encode())
        assert isinstance(event.body, Unreadable), (subject, kind)


@pytest.mark.parametrize("attempt", ["0", "01", "-1", "x", "", "1.5", "10000", "9" * 30])
@pytest.mark.parametrize("kind", ["step.completed", "step.failed", "step.dispatched"])
def test_an_attempt_that_is_no_number_is_none(kind: str, attempt: str) -> None:
    """Attempts count from 1, so attempt 0 is nobody's."""
    if (kind, attempt) == ("step.dispatched", "1.5"):
        attempt = "1.5.6"  # one token more is a host
    subject = sample(kind)[0].split(".")
    subject[4] = attempt
    event = read(".".join(subject), SEQ, AT_NS, json.dumps(sample(kind)[1]).encode())
    assert event.attempt == 0 or isinstance(event.body, Unreadable)


@pytest.mark.parametrize("kind", KINDS)
def test_a_body_that_is_not_utf8_is_no_event(kind: str) -> None:
    """Also where the broken bytes stand in a field that nobody reads: the registry keeps text, and must read it again
    after a restart as the executor read it the first time.
    """
    subject, data = sample(kind)
    for broken in (b'{"zz":"\xff",', b'{"zz":"\xed\xa0\x80",', b'{"\xff":1,'):
        assert isinstance(read(subject, SEQ, AT_NS, broken + json.dumps(data).encode()[1:]).body, Unreadable), broken


@pytest.mark.parametrize(
    "field,value", [("input_tokens", -1), ("output_tokens", -1), ("cached_tokens", -1), ("reasoning_tokens", -1),
                    ("input_tokens", 2**64), ("output_tokens", 10**30), ("input_tokens", 2**63)]
)  # fmt: skip
def test_a_count_of_tokens_that_no_model_can_use_is_unreadable(field: str, value: int) -> None:
    """Negative or beyond 64 bits: it would stop the registry's table for ever, and give budgets back."""
    event = read("llm.called.7.a.1-1", SEQ, AT_NS, encode(controls.called(**{field: value})))
    assert isinstance(event.body, Unreadable)


@pytest.mark.parametrize("value", [-1, 2**64, 10**30])
def test_an_artifacts_size_that_no_file_has_is_unreadable(value: int) -> None:
    one = {"name": "report.md", "sha256": "0" * 64, "size_bytes": value}
    event = read("step.completed.7.a.1", SEQ, AT_NS, json.dumps({"outputs": {}, "artifacts": [one]}).encode())
    assert isinstance(event.body, Unreadable)


# -- whatever it is ------------------------------------------------------------------------------------------

tokens = st.sampled_from(
    ["goal", "schedule", "ticked", "step", "run", "llm", "timer", "completed", "fired", "submitted", "7", "a", "1", ""]
)
subjects = (
    st.text(max_size=30)
    | st.lists(tokens | st.text(max_size=3), max_size=8).map(".".join)
    | st.builds(
        lambda kind, rest: ".".join([kind, *rest]),
        st.sampled_from([*KINDS, *OF_SCHEDULES, *OF_THE_STREAM, "goal.submitted"]),
        st.lists(tokens | st.integers().map(str), max_size=5),
    )
)
bodies = st.binary(max_size=60) | st.sampled_from([encode(body) for _, body in controls.every_event(7).values()])


@settings(max_examples=400)
@given(subject=subjects, data=bodies, seq=st.integers(1, 10**6))
@example(subject="step.completed.1.a.1", data=b"[" * 100_000, seq=2)
@example(subject="plan.created.1", data=b'{"steps":' * 50_000, seq=2)
@example(
    subject="llm.called.1.a.b", data=b'{"request_model":"m","outcome":"ok","input_tokens":' + b"9" * 5000 + b"}", seq=2
)
@example(subject="timer.fired.1." + "x" * 5000, data=b"{}", seq=2)
def test_reading_never_raises(subject: str, data: bytes, seq: int) -> None:
    """Any message at all comes back as an event in its place, readable or not."""
    event = read(subject, seq, AT_NS, data)
    assert isinstance(event, Event) and event.seq == seq and event.at_ns == AT_NS
    assert isinstance(event.run, int) and event.run >= 0
    if not isinstance(event.body, Unreadable):
        assert event.run <= seq
        if event.kind != "goal.submitted":
            of_no_run = OF_SCHEDULES | OF_THE_STREAM
            kinds = {kind: struct for kind, (struct, *_) in KINDS.items()} if event.run else of_no_run
            assert isinstance(event.body, kinds[event.kind]) and event.run < seq


@settings(max_examples=150)
@given(st.sampled_from(sorted(KINDS)), st.data())
def test_half_an_event_is_unreadable_or_the_event(kind: str, data: st.DataObject) -> None:
    """Cut anywhere, an event never reads as another one. (Nothing at all is a request to cancel.)"""
    subject, body = controls.every_event(7)[kind]
    whole = encode(body)
    cut = read(subject, SEQ, AT_NS, whole[: data.draw(st.integers(1, len(whole) - 1))])
    assert isinstance(cut.body, Unreadable)

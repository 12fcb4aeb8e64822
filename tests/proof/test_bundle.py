"""A bundle proves a run by the public key alone; whatever is done to it is found, and where."""

from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
from msgspec.structs import replace

from shared.clock import rfc3339
from shared.events import AuditSealed
from shared.proof.bundle import Bundle, Prover, Verdict, check, read_bundle
from shared.proof.keys import Signer, read_public, signer
from shared.proof.sealing import Sealing, closing, signed_bytes
from shared.subjects import goal_submitted, plan_created, run_completed, run_started, step_completed
from tests import controls
from tests.controls import Stream

MADE = "2026-11-18T12:00:00.000000000Z"


def two_runs() -> Stream:
    """Two runs whose events lie between each other's; the first is over, the second is not."""
    stream, plan = Stream(), controls.plan()
    first, second = stream.put(goal_submitted("ann"), b'{"tasks":["noop"]}'), stream.goal()
    for run in (first, second):
        stream.put(plan_created(run), plan)
        stream.put(run_started(run), controls.started())
    for run in (first, second):
        stream.put(step_completed(run, "a", 1), controls.completed())
    stream.put(run_completed(first), controls.run_over())
    return stream


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Signer:
    return signer(tmp_path_factory.mktemp("key"))


def sealed(stream: Stream, own: Signer, size: int | None = None, previous: int = 0) -> AuditSealed:
    sealing = Sealing()
    for message in stream.messages[:size]:
        sealing.add(*message)
    seal = sealing.seal(previous, MADE, rfc3339(sealing.at_ns), own.name)
    return replace(seal, signature=own.sign(signed_bytes(seal)).hex())


def bundle_of(stream: Stream, seal: AuditSealed, run: int = 1) -> Bundle:
    prover = Prover(run, seal)
    for message in stream.messages:
        prover.add(*message)
    made = prover.bundle()
    return read_bundle(msgspec.json.encode(made))  # as a file holds it


@pytest.fixture
def whole(own: Signer) -> Bundle:
    stream = two_runs()
    return bundle_of(stream, sealed(stream, own))


def found(verdict: Verdict) -> list[tuple[str, int]]:
    return [(flaw.what, flaw.event) for flaw in verdict.flaws]


def test_a_run_that_is_over_is_proven_to_its_end(whole: Bundle, own: Signer) -> None:
    verdict = check(whole, own.public)
    assert verdict.flaws == []
    assert verdict.proves.startswith("every event of run 1 from its goal to its end, event 9, as sealed at message 9")
    assert [event.seq for event in whole.events] == [1, 3, 4, 7, 9]


def test_a_run_that_is_open_is_proven_up_to_the_seal(own: Signer) -> None:
    stream = two_runs()
    verdict = check(bundle_of(stream, sealed(stream, own), run=2), own.public)
    assert verdict.flaws == []
    assert "to event 8, when it was open" in verdict.proves


def test_what_was_said_behind_the_end_is_proven_to_lie_there(own: Signer) -> None:
    stream = two_runs()
    stream.put("step.failed.1.a.1", controls.failed())
    verdict = check(bundle_of(stream, sealed(stream, own)), own.public)
    assert verdict.flaws == []
    assert verdict.proves.endswith("1 later ones are in the record, and there may be others")


def test_a_later_seal_does_not_say_again_where_a_run_ended(own: Signer) -> None:
    """So `export` takes the first seal behind the end."""
    stream = two_runs()
    stream.goal()
    with pytest.raises(ValueError, match="does not say where run 1 stood"):
        bundle_of(stream, sealed(stream, own, previous=9))


def test_a_goal_that_was_rejected_is_closed_by_that_and_a_planned_run_is_not(own: Signer) -> None:
    stream = Stream()
    stream.put(f"goal.rejected.{stream.goal()}", controls.goal_rejected_body())
    assert closing(stream.messages) == 2
    planned = two_runs()
    planned.put("goal.rejected.2", controls.goal_rejected_body())
    assert closing([message for message in planned.messages if message[1] == 2 or ".2" in message[0]]) == 0


# -- what is done to a bundle --------------------------------------------------------------------------------


def at(bundle: Bundle, seq: int) -> int:
    return next(i for i, event in enumerate(bundle.events) if event.seq == seq)


def with_events(bundle: Bundle, events: list) -> Bundle:  # type: ignore[type-arg]
    return replace(bundle, events=events)


def edited(bundle: Bundle, seq: int, **changes: object) -> Bundle:
    events = list(bundle.events)
    events[at(bundle, seq)] = replace(events[at(bundle, seq)], **changes)
    return with_events(bundle, events)


def without(bundle: Bundle, *seqs: int) -> Bundle:
    return with_events(bundle, [event for event in bundle.events if event.seq not in seqs])


def inserted(bundle: Bundle) -> Bundle:
    forged = replace(bundle.events[3], seq=6, subject="step.completed.1.a.2")
    return with_events(bundle, [*bundle.events[:3], forged, *bundle.events[3:]])


def reordered(bundle: Bundle) -> Bundle:
    one, two, three, four, five = bundle.events
    return with_events(bundle, [one, three, two, four, five])


def exchanged(bundle: Bundle) -> Bundle:
    """Two events change places, numbers and all."""
    one, two, three, four, five = bundle.events
    return with_events(bundle, [one, two, three, replace(five, seq=four.seq), replace(four, seq=five.seq)])


def swapped(bundle: Bundle) -> Bundle:
    """Another run's event, rightly sealed, instead of this one's."""
    stream = two_runs()
    prover = Prover(2, bundle.seal)  # type: ignore[arg-type]
    for message in stream.messages:
        prover.add(*message)
    other = prover.bundle().events[3]
    return with_events(bundle, [*bundle.events[:3], other, bundle.events[4]])


def renamed(bundle: Bundle) -> Bundle:
    """Another run's event under this one's subject."""
    other = swapped(bundle).events[3]
    return with_events(bundle, [*bundle.events[:3], replace(other, subject="step.completed.1.a.1"), bundle.events[4]])


DONE: list[tuple[str, Callable[[Bundle], Bundle], list[tuple[str, int]]]] = [
    ("data is edited", lambda one: edited(one, 7, data=b'{"outputs":{"n":2}}'), [("changed", 7)]),
    ("a stamp is edited", lambda one: edited(one, 7, at_ns=1), [("changed", 7)]),
    ("a subject is edited", lambda one: edited(one, 7, subject="step.completed.1.b.1"), [("changed", 7)]),
    ("a link is edited", lambda one: edited(one, 7, link=3), [("changed", 7)]),
    ("a proof is edited", lambda one: edited(one, 7, path=[]), [("changed", 7)]),
    ("who asked is edited", lambda one: edited(one, 1, subject="goal.submitted.bob"), [("changed", 1)]),
    ("an event is deleted", lambda one: without(one, 4), [("missing", 4)]),
    ("the goal is deleted", lambda one: without(one, 1), [("missing", 1)]),
    ("two events are deleted", lambda one: without(one, 4, 7), [("missing", 7)]),
    ("an event is inserted", inserted, [("inserted", 6)]),
    (
        "an event is there twice",
        lambda one: with_events(one, [*one.events[:3], one.events[2], *one.events[3:]]),
        [("reordered", 4), ("inserted", 4)],
    ),
    ("events are reordered", reordered, [("reordered", 3)]),
    ("events change places", exchanged, [("changed", 7), ("changed", 9)]),
    ("the end is cut off", lambda one: without(one, 9), [("truncated", 9)]),
    ("the last three are cut off", lambda one: without(one, 4, 7, 9), [("truncated", 9)]),
    ("an event of another run stands in", swapped, [("swapped", 8), ("missing", 7)]),
    ("an event of another run under this one's name", renamed, [("changed", 8), ("missing", 7)]),
    ("the run is said to be another", lambda one: replace(one, run=2), [("seal", 0)]),
    ("all is said to have ended sooner", lambda one: ended_sooner(one), [("seal", 0)]),
    ("the seal's size is edited", lambda one: replace(one, seal=replace(one.seal, size=8)), [("seal", 0)]),
    ("the seal's root is edited", lambda one: replace(one, seal=replace(one.seal, root="00" * 32)), [("seal", 0)]),
    ("the seal is taken off", lambda one: replace(one, seal=None), [("seal", 0)]),
]


def ended_sooner(bundle: Bundle) -> Bundle:
    assert bundle.standing is not None
    return replace(without(bundle, 9), standing=replace(bundle.standing, last=7, is_over=False))


@pytest.mark.parametrize(("what", "do", "flaws"), DONE, ids=[what for what, _, _ in DONE])
def test_what_is_done_to_a_bundle_is_found(
    whole: Bundle, own: Signer, what: str, do: Callable[[Bundle], Bundle], flaws: list[tuple[str, int]]
) -> None:
    verdict = check(do(whole), own.public)
    assert found(verdict)[: len(flaws)] == flaws, (what, verdict.flaws)
    assert verdict.proves == ""


def test_a_seal_of_another_key_proves_nothing(whole: Bundle, tmp_path: Path) -> None:
    assert found(check(whole, signer(tmp_path).public)) == [("seal", 0)]


def test_a_seal_signed_anew_by_another_is_not_this_keys(own: Signer, tmp_path: Path) -> None:
    stream = two_runs()
    forged = sealed(stream, signer(tmp_path))
    assert found(check(bundle_of(stream, replace(forged, key=own.name)), own.public)) == [("seal", 0)]


def test_a_stream_that_was_changed_gives_no_bundle(own: Signer) -> None:
    stream = two_runs()
    seal = sealed(stream, own)
    subject, seq, at_ns, _ = stream.messages[7]
    stream.messages[7] = (subject, seq, at_ns, b"{}")
    with pytest.raises(ValueError, match="not the one that was sealed"):
        bundle_of(stream, seal)


# -- keys ----------------------------------------------------------------------------------------------------


def test_a_key_is_made_once_and_is_its_owners_alone(tmp_path: Path) -> None:
    made = signer(tmp_path)
    assert (tmp_path / "sealing.key").stat().st_mode & 0o777 == 0o600
    assert signer(tmp_path).public == made.public
    assert [path.name for path in tmp_path.iterdir()] == ["sealing.key"]


def test_a_public_key_is_read_as_it_is_printed(own: Signer) -> None:
    assert read_public(own.pem) == read_public(own.public.hex() + "\n") == own.public

"""The audit reads a message where the fold does, though each has shapes of its own.

What cannot be read counts for nothing: where the two differ, one of them follows a run that never was.
"""

import contextlib
import copy
import json
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest

from shared.audit.reading import body_of, cancel_of, read_plan
from shared.errors import UNREADABLE
from shared.events import KINDS, Unreadable, encode, read
from shared.nesting import LEVELS_MAX
from shared.plan import hash_of
from tests.controls import step
from tests.shared.test_events import sample

ODD: list[Any] = [
    None, True, -1, 0, 1, 1.0, 1.5, 101, 10_001, 86_401, 1_000_001, 31_536_001, 10**9 + 1, 2**53 + 1, 2**63, 10**30,
    1e300,
    "", "x", "a b", "run", "stop", "task", "2026-11-21T09:30:00Z", "x" * 65, "\x00", [], [1], ["x"], [{}], {}, {"a": 1},
    {"a": "failed"}, {"a": {}}, {"seconds": True}, {"until": "soon"},
]  # fmt: skip
BROKEN = {
    "not UTF-8": b'{"more": "\xff", ',
    "UTF-16": None,
    "a number that is none": b'{"more": NaN, ',
    "half a pair": b'{"more": "\\ud800", ',
    "as deep as may be": b'{"more": ' + b"[" * (LEVELS_MAX - 1) + b"]" * (LEVELS_MAX - 1) + b", ",
    "too deep": b'{"more": ' + b"[" * LEVELS_MAX + b"]" * LEVELS_MAX + b", ",
    "brackets in a text": b'{"more": "' + b'\\"[' * (LEVELS_MAX + 1) + b'", ',
    "brackets side by side": b'{"more": [' + b"[]," * LEVELS_MAX + b"[]], ",
}


def places(value: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Every place in a body, itself among them."""
    yield at
    for key in value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ():
        yield from places(value[key], (*at, key))


def changed(body: Any, at: tuple[Any, ...], value: Any) -> Any:
    """The body with another value at this place; without the place where it is `...`."""
    if not at:
        return value
    made = copy.deepcopy(body)
    held = made
    for key in at[:-1]:
        held = held[key]
    if value is ...:
        del held[at[-1]]
    else:
        held[at[-1]] = value
    return made


def data_of(kind: str, body: Any) -> bytes:
    """As its author would say it: a plan under its true hash."""
    if kind == "plan.created" and isinstance(body, dict):
        rest = {name: value for name, value in body.items() if name != "plan_hash"}
        body = rest | {"plan_hash": hash_of(rest)}
    return json.dumps(body).encode()


def is_read(kind: str, subject: str, data: bytes) -> tuple[bool, bool]:
    """Whether the fold reads it, and whether the audit does."""
    folded = not isinstance(read(subject, 10**6, 10**18, data).body, Unreadable)
    if kind == "plan.created":
        return folded, read_plan(data).unreadable is None
    said = cancel_of(data) if kind == "run.cancel_requested" else body_of(kind, data)
    if said is None or kind not in ("approval.granted", "approval.rejected"):
        return folded, said is not None
    # Another message under an answer's subject: the audit reads it, and its rules look at the words.
    return folded, said.what is None and said.expires_at is None and said.answer in (None, kind.split(".")[1])


def said(kind: str) -> tuple[str, Any]:
    """A subject and a body with all of its fields: a plan has a step that waits, too."""
    subject, body = sample(kind)
    body = json.loads(encode(read(subject, 10**6, 10**18, json.dumps(body).encode()).body))
    if kind == "plan.created":
        waits = json.loads(msgspec.json.encode(step("w", kind="wait", inputs={"seconds": 1})))
        body = body | {"steps": [*body["steps"], waits]}
    return subject, body


@pytest.mark.parametrize("kind", [*KINDS, "schedule.ticked"])
def test_whatever_stands_in_a_field(kind: str) -> None:
    subject, body = said(kind)
    assert is_read(kind, subject, data_of(kind, body)) == (True, True)
    unread = 0
    for at in places(body):
        for value in [*ODD, ...] if at else ODD:
            folded, audited = is_read(kind, subject, data_of(kind, changed(body, at, value)))
            assert folded == audited, (at, value)
            unread += not folded
    assert unread > len(ODD)  # of the body itself, and more


@pytest.mark.parametrize(
    "inputs",
    [{"seconds": 2_592_000}, {"seconds": 2_592_001}, {"seconds": 1, "until": "2027-01-01T00:00:00Z"},
     {"until": "2027-01-01T00:00:00Z"}, {"until": "2027-01-01"}, {"until": "2027-13-01T00:00:00Z"}, {"until": 7}],
)  # fmt: skip
def test_how_long_a_step_waits(inputs: dict[str, Any]) -> None:
    subject, body = said("plan.created")
    body["steps"][-1]["inputs"] = inputs
    folded, audited = is_read("plan.created", subject, data_of("plan.created", body))
    assert folded == audited == (inputs in ({"seconds": 2_592_000}, {"until": "2027-01-01T00:00:00Z"}))


@pytest.mark.parametrize("how", BROKEN)
@pytest.mark.parametrize("kind", [*KINDS, "schedule.ticked"])
def test_however_it_is_broken(kind: str, how: str) -> None:
    subject, body = said(kind)
    begins = BROKEN[how]
    data = data_of(kind, body)
    data = data.decode().encode("utf-16") if begins is None else begins + data[1:]
    if kind == "plan.created" and begins is not None:
        with contextlib.suppress(*UNREADABLE):  # else nobody can hash it
            data = data_of(kind, msgspec.json.decode(data))
    folded, audited = is_read(kind, subject, data)
    assert folded == audited
    assert folded == (how in ("as deep as may be", "brackets in a text", "brackets side by side")), how

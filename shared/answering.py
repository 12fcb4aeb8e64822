"""Answering a run's question and asking for its end: said create-only, then read back, for CLI and gateway.

Theory of operation. Only the stream's order decides whether an answer counts, so nobody is told that it does before it
was read back at its place. A subject that is taken holds an answer already: it is the same one, said again, when it
counts; when it means nothing (a stranger's message, an answer that came before its question), it must not keep a
better one from being said, and that one is said beside it. An ack that does not come says nothing: it is said again,
and is then found to be there.
"""

import asyncio
from typing import Any

import msgspec

from shared.append import CREATE_ONLY, NotTaken, append_once
from shared.bus import Bus
from shared.errors import AlreadySaid, Malformed, NotFound, Unavailable
from shared.events import encode, read
from shared.plan import GATE
from shared.run import Run, evolve, refusal
from shared.showing import asked
from shared.story import Story, read_story
from shared.subjects import EVENTS, approval_granted, approval_rejected, run_cancel_requested
from shared.text import is_text

REASON_CHARS_MAX = 2_000
TRIES = 2
READ_BACK_S = 3.0
PAUSE_S = 0.05


class Said(msgspec.Struct, kw_only=True):
    """What became of a message: the run as it stands behind it, and why it does not count ("" when it does)."""

    story: Story
    why: str
    was_there: bool

    @property
    def run(self) -> Run:
        return self.story.run


def question(run: Run, step: str | None) -> str:
    """The step whose question is meant: the only one that is open when `step` is None.

    `NotFound` when nothing is asked there, `Malformed` when several are open, `AlreadySaid` when it was decided.
    """
    questions = {one.step: one for one in asked(run)}
    waiting = [name for name, one in questions.items() if one.is_open]
    if step is None and len(waiting) == 1:
        return waiting[0]
    if step is None and waiting:
        raise Malformed(f"run {run.id} asks {len(waiting)} questions; which one? {', '.join(waiting)}", field="step")
    if step is None and run.ended:
        raise AlreadySaid(f"run {run.id} has ended already: {run.status}")
    if step is None or step not in questions:
        where = "" if step is None else f" for {name_of(step[:64])}"
        others = f"; it asks for {', '.join(waiting)}" if waiting else ""
        raise NotFound(f"run {run.id} ({run.status}) asks nothing{where}{others}", field="step")
    if not questions[step].is_open:
        decided = questions[step].status
        how = f"was {decided} before" if decided != "pending" else f"is not asked any more: {_ending(run)}"
        raise AlreadySaid(f"run {run.id} {how}" if step == GATE else f"step {step} of run {run.id} {how}")
    return step


def name_of(step: str) -> str:
    return "the whole run" if step == GATE else f"step {step}"


def refused(run: Run, step: str, *, granted: bool, principal: str = "") -> str:
    """Why an answer would not count if it were said now; "" when it would, expiry aside."""
    return _refused(run, _subject(run.id, step, granted, principal), _body(run, step, granted, ""))


async def answer(bus: Bus, run: Run, step: str, *, granted: bool, reason: str = "", principal: str = "") -> Said:
    """Say yes or no to the question of this run as it was read. `Unavailable` when nobody knows what became of it."""
    body = _body(run, step, granted, _checked(reason))
    return await _say(bus, run, _subject(run.id, step, granted, principal), body)


async def cancel(bus: Bus, run: Run, *, reason: str = "", principal: str = "") -> Said:
    """Ask for the end of this run. `AlreadySaid` when it has ended."""
    if run.ended:
        raise AlreadySaid(f"run {run.id} has ended already: {run.status}")
    return await _say(bus, run, run_cancel_requested(run.id, principal), encode({"reason": _checked(reason)}))


def _checked(reason: str) -> str:
    if len(reason) > REASON_CHARS_MAX:
        raise Malformed(f"it has {len(reason)} characters; at most {REASON_CHARS_MAX}", field="reason")
    if not is_text(reason):
        raise Malformed("it holds bytes that are not text", field="reason")
    return reason


def _ending(run: Run) -> str:
    if run.ended:
        return f"the run has ended: {run.status}"
    return f"the run is ending: {run.stop.reason}" if run.stop else ""


def _subject(run: int, step: str, granted: bool, principal: str) -> str:
    return approval_granted(run, step, principal) if granted else approval_rejected(run, step, principal)


def _body(run: Run, step: str, granted: bool, reason: str) -> bytes:
    assert run.plan is not None
    word = "granted" if granted else "rejected"
    body: dict[str, Any] = {"run": run.id, "step": step, "plan_hash": run.plan.plan_hash}
    return encode({**body, "reason": reason, "answer": word})


def _refused(run: Run, subject: str, data: bytes) -> str:
    event = read(subject, run.id + 1, run.at_ns, data)
    return refusal(run, event) if evolve(run, event) is run else ""


async def _say(bus: Bus, run: Run, subject: str, data: bytes) -> Said:
    if seq := await _append(bus, subject, data, CREATE_ONLY):
        return await _read_back(bus, run.id, seq)
    story = await read_story(bus, run.id)
    there = [told for told in story.told if told.subject == subject]
    if any(not told.note for told in there):
        return Said(story=story, why="", was_there=True)
    if why := _refused(story.run, subject, data):
        return Said(story=story, why=why, was_there=True)
    return await _read_back(bus, run.id, await _append(bus, subject, data, None))


async def _read_back(bus: Bus, run: int, seq: int) -> Said:
    """The run as it stands once message `seq` is in it: a replica may know of it a moment later."""
    for _ in range(int(READ_BACK_S / PAUSE_S)):
        story = await read_story(bus, run)
        if story.last_seq >= seq:
            told = next(told for told in story.told if told.event.seq == seq)
            return Said(story=story, why=told.note, was_there=False)
        await asyncio.sleep(PAUSE_S)
    raise Unavailable(f"message {seq} was stored and cannot be read back; `remit events {run}` will show it")


async def _append(bus: Bus, subject: str, data: bytes, headers: dict[str, str] | None) -> int:
    """The message's sequence; 0 when the subject was taken."""
    left = TRIES if headers else 1
    while True:
        left -= 1
        try:
            return await append_once(bus, EVENTS, subject, data, headers=headers)
        except NotTaken:
            raise
        except Unavailable as error:
            if not left:
                raise Unavailable(f"{error.message}: it may or may not have been stored") from error

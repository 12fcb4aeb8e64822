"""The limit by which a stream lets go of its oldest messages: set for a moment, noted in the stream, taken off again.

Theory of operation. EVENTS can neither be purged nor be deleted from, and that cannot be switched off: age is the one
way. A limit that stood would go on by itself, over what is in no archive yet and over runs that are still active. So
it is set for as long as the server takes, and moves on by seconds meanwhile: who asks leaves room for that. In the same
update a note goes into the stream's metadata: what the limit was before, who set it, and until when that one may be
expected to take it off. Whoever finds a note whose time is over takes the limit off: every service at its start, an
executor every half minute, the next `remit archive`. So none of kill -9, an answer that is lost or a server that
restarts leaves a limit standing for longer than that, while anything of Remit runs. Time is the server's: it stamps
the messages and the answers. Updates of a stream are not compared with what was read, so each step here does no harm
when another one comes between: a limit that is gone too early lets go of less.
"""

import asyncio
import logging
import time
from typing import Annotated, Any
from uuid import uuid4

import msgspec

from shared.bus import ApiError, Bus
from shared.clock import NS_PER_S, parse_ns, rfc3339
from shared.errors import UNREADABLE, Refused, RemitError, Unavailable
from shared.subjects import EVENTS
from shared.waiting import to_the_end

log = logging.getLogger("remit.age_limit")

NOTE = "remit-limit"  # in the stream's metadata
STANDS_S = 600  # so long one may take: from then on anybody takes the limit off
LEAST_NS = 100_000_000  # the server takes no shorter one
LOOK_S = 0.05  # a server drops what is too old as soon as it hears of the limit
LOOKS = 600
TAKE_OFF_S = 300  # a server that is being restarted, a cluster without a leader
AGAIN_S = 0.5
FRESH_S = 5  # an age is a distance from now: what was reckoned from goes stale when we are held up


_Ns = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]


class Note(msgspec.Struct):
    """Who limits the stream for a moment: `own_ns` was the limit before (0: none), `set_ns` is the one that was set."""

    by: str
    own_ns: _Ns
    set_ns: _Ns
    until_ns: _Ns


class _Found(msgspec.Struct):
    config: dict[str, Any]
    note: Note | None
    at_ns: int  # of the server's clock
    first_seq: int

    @property
    def is_over(self) -> bool:
        return self.note is not None and self.at_ns >= self.note.until_ns


async def _look(bus: Bus, stream: str) -> _Found:
    info = await bus.api(f"STREAM.INFO.{stream}")
    note = None
    if text := (info["config"].get("metadata") or {}).get(NOTE):
        try:
            note = msgspec.json.decode(text, type=Note)
        except UNREADABLE:
            log.warning("the note %s of stream %s is none: %.200s; its max_age stays as it is", NOTE, stream, text)
    return _Found(info["config"], note, parse_ns(str(info["ts"])), int(info["state"]["first_seq"]))


async def let_go(bus: Bus, before_ns: int, stream: str = EVENTS) -> tuple[int, int]:
    """Have the server drop the messages whose stamps are before `before_ns`; the first sequence before and after.

    The server goes from the oldest message on to the first one that is younger. `before_ns` has to leave room for
    `STANDS_S`. `Refused` while somebody else lets go.
    """
    await take_off_expired(bus, stream)
    looked_s = _awake_s()
    found = await _look(bus, stream)
    if found.note is not None:
        until = rfc3339(found.note.until_ns)
        raise Refused(f"another one is letting messages go from {stream}; wait until it is done (by {until})")
    config, first = found.config, found.first_seq
    own_ns = int(config.get("max_age") or 0)  # an operator's
    age_ns = found.at_ns - before_ns
    if age_ns < max(int(config.get("duplicate_window") or 0), LEAST_NS):
        raise RemitError("the messages to let go are too young: the stream still looks for duplicates among them")
    if own_ns and own_ns <= age_ns:
        return first, first
    note = Note(uuid4().hex, own_ns, age_ns, found.at_ns + STANDS_S * NS_PER_S)
    metadata = {**(config.get("metadata") or {}), NOTE: msgspec.json.encode(note).decode()}
    if _awake_s() - looked_s > FRESH_S:
        raise Unavailable(f"it took too long to look at {stream}: its messages have aged meanwhile; run it again")
    try:
        state = (await bus.api(f"STREAM.UPDATE.{stream}", {**config, "max_age": age_ns, "metadata": metadata}))["state"]
        for _ in range(LOOKS):
            if not state["messages"] or parse_ns(str(state["first_ts"])) >= before_ns:
                break
            await asyncio.sleep(LOOK_S)
            state = (await bus.api(f"STREAM.INFO.{stream}"))["state"]
    finally:
        # Also when the update had no answer: it may have been done.
        await to_the_end(_take_off(bus, stream, note))
    return first, (await _look(bus, stream)).first_seq


def _awake_s() -> float:
    """Seconds since this machine was started, those that it was asleep among them."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


async def take_off_expired(bus: Bus, stream: str = EVENTS) -> None:
    """Take off the limit of one that should have done so itself long ago, if there is any."""
    found = await _look(bus, stream)
    if found.note is not None and found.is_over:
        log.warning("a limit by which %s let go of messages was left standing: it is taken off", stream)
        try:
            await _restore(bus, stream, found.config, found.note)
        except ApiError as error:
            log.error("the limit of %s cannot be taken off: %s; see its max_age and metadata", stream, error)


async def _take_off(bus: Bus, stream: str, ours: Note) -> None:
    """Take off the limit that we have set, however long the server is away."""
    end_s = asyncio.get_running_loop().time() + TAKE_OFF_S
    while True:
        try:
            found = await _look(bus, stream)
            if found.note is None or found.note.by != ours.by:
                return
            await _restore(bus, stream, found.config, found.note)
        except (Unavailable, ApiError) as error:
            if asyncio.get_running_loop().time() > end_s or bus.is_closed:
                raise Unavailable(
                    f"{stream} still has the limit (max_age) that let its messages go, as NATS does not answer: any "
                    f"service of Remit takes it off from {rfc3339(ours.until_ns)} on ({error.message})"
                ) from error
            await asyncio.sleep(AGAIN_S)
        else:
            return


async def _restore(bus: Bus, stream: str, config: dict[str, Any], note: Note) -> None:
    """What was there before; but a limit that an operator has set meanwhile stays."""
    metadata = {name: value for name, value in (config.get("metadata") or {}).items() if name != NOTE}
    age_ns = note.own_ns if int(config.get("max_age") or 0) == note.set_ns else config["max_age"]
    await bus.api(f"STREAM.UPDATE.{stream}", {**config, "max_age": age_ns, "metadata": metadata})

"""One run as a story, read straight from the stream and folded: the truth that the registry's tables are made of.

Theory of operation. `multi_last` brings every event of a run in one request, but only the newest message of each
subject, and of two messages on one subject the fold means the first. So the server is also asked how many messages
there are: when there are more than came, somebody has spoken twice (or a new event came in between), and the run is
read in full, page by page, which takes longer: 10 ms instead of 1 ms at 300,000 messages. The count is the leader's,
so a node of a cluster that is behind is found out, too.
"""

import asyncio
from collections.abc import Mapping, Sequence

import msgspec

from shared.bus import Bus
from shared.errors import NotFound, RemitError, Unavailable
from shared.events import Artifact, Event, Unreadable, read
from shared.plan import Goal, read_goal
from shared.run import Early, Run, begin, evolve, refusal
from shared.streams import first_seq
from shared.subjects import EVENTS, GOALS, of_run

PAGE_EVENTS = 1_000
PAGE_BYTES = 8 * 1024 * 1024
BEHIND_S = 0.05
BEHIND_MOST = 40  # two seconds; a node that is further behind than that is ill
RUN_BYTES_MAX = 64 * 1024 * 1024  # more than any plan can say; strangers may say more

Message = tuple[str, int, int, bytes]  # subject, sequence, stamp in nanoseconds, data


class Told(msgspec.Struct):
    """One event as it was said: whether the fold applied it, and why not ("" when it did)."""

    event: Event
    subject: str
    data: bytes
    note: str


class Story:
    """A run as its events tell it, in stream order from its goal on; `told` is what has been kept of them."""

    def __init__(self, goal: Told, run: Run) -> None:
        self.run = run
        self.told = [goal]
        self.goal: Goal | None = read_goal(goal.data)[0]
        self.plan: bytes | None = None  # as it stands in the stream, so that its hash can be checked

    @property
    def last_seq(self) -> int:
        return self.told[-1].event.seq

    def artifacts(self) -> list[tuple[str, Artifact]]:
        """`(step, artifact)` of every accepted end."""
        return [(step, artifact) for step, state in self.run.steps.items() for artifact in state.artifacts]

    def fold(self, subject: str, seq: int, at_ns: int, data: bytes) -> Told:
        """Fold the next event of this run; whoever wants to keep it does so."""
        event = read(subject, seq, _whole_us(at_ns), data)
        after = evolve(self.run, event)
        told = Told(event, subject, data, refusal(self.run, event) if after is self.run else "")
        self.run = after
        if event.kind == "plan.created" and not told.note and not isinstance(event.body, Unreadable):
            self.plan = data
        return told


async def begun(bus: Bus, run: int) -> Story:
    """The run with its goal alone. `NotFound` when message `run` is no goal."""
    found = await bus.stored(EVENTS, run)
    if found is None:
        raise await _not_there(bus, run)
    subject, at_ns, data = found
    event = read(subject, run, _whole_us(at_ns), data)
    if event.kind != "goal.submitted" or isinstance(event.body, Unreadable):
        raise NotFound(f"message {run} of the stream is no goal, so there is no run {run}", field="run")
    return Story(Told(event, subject, data, ""), begin(event))


async def read_story(bus: Bus, run: int) -> Story:
    """The run with every event that the stream holds now."""
    story, messages = await asyncio.gather(begun(bus, run), _messages(bus, run))
    early = Early()
    for subject, seq, at_ns, data in messages:
        if seq < run:
            early.note(read(subject, seq, _whole_us(at_ns), data))
    story.run = begin(story.told[0].event, early.take(run))
    for message in messages:
        if message[1] > run:
            story.told.append(story.fold(*message))
    return story


async def read_messages(bus: Bus, run: int) -> list[Message]:
    """Every message of the run as it lies in the stream, its goal among them, in stream order. `NotFound` as above."""
    goal, messages = await asyncio.gather(bus.stored(EVENTS, run), _messages(bus, run))
    if goal is None:
        raise await _not_there(bus, run)
    if not goal[0].startswith(GOALS[0]):
        raise NotFound(f"message {run} of the stream is no goal, so there is no run {run}", field="run")
    subject, at_ns, data = goal
    return sorted([(subject, run, at_ns, data), *messages], key=lambda message: message[1])


async def _not_there(bus: Bus, run: int) -> NotFound:
    """There is no such message: not yet, or not any more."""
    begin = (await first_seq(bus))[0]
    if run < begin:
        gone = f"the stream begins with message {begin}: what is left of run {run} is in the archive and the registry"
        return NotFound(gone, field="run")
    return NotFound(f"there is no run {run}", field="run")


async def _messages(bus: Bus, run: int) -> Sequence[Message]:
    filters = of_run(run)
    messages: Sequence[Message] | None = None
    try:
        messages = await bus.direct(EVENTS, {"multi_last": list(filters), "batch": PAGE_EVENTS})
    except Unavailable:
        raise
    except RemitError:
        pass  # more than 1,024 subjects
    counts = await asyncio.gather(*(_count(bus, one) for one in filters))
    if messages is not None and sum(count for count, _ in counts) <= len(messages):
        return messages
    return await _every(bus, run, dict(zip(filters, counts, strict=True)))


async def _count(bus: Bus, subjects: str) -> tuple[int, int]:
    """How many messages there are on `subjects`, and the stream's end when that was so; the leader's word."""
    state = (await bus.api(f"STREAM.INFO.{EVENTS}", {"subjects_filter": subjects}))["state"]
    return sum((state.get("subjects") or {}).values()), state["last_seq"]


async def _every(bus: Bus, run: int, counts: Mapping[str, tuple[int, int]]) -> Sequence[Message]:
    """Every message of the run up to the moment of `counts`.

    Each page may come from another node of a cluster, and one may be behind another: what is read behind that moment
    is left out, as something before it may be missing, and what must be there by then is waited for.
    """
    found: list[Message] = []
    size = 0
    for subjects, (count, _) in counts.items():
        after = came = 0
        behind = 0
        while True:
            query = {"next_by_subj": subjects, "seq": after + 1, "batch": PAGE_EVENTS, "max_bytes": PAGE_BYTES}
            page = await bus.direct(EVENTS, query)
            if not page:
                if came >= count:
                    break
                behind += 1
                if behind > BEHIND_MOST:
                    raise Unavailable(f"a NATS server is behind the others in the events of run {run}")
                await asyncio.sleep(BEHIND_S)
                continue
            after = page[-1][1]
            came += len(page)
            size += sum(len(message[3]) for message in page)
            if size > RUN_BYTES_MAX:
                raise RemitError(f"run {run} has more than {RUN_BYTES_MAX >> 20} MiB of events; ask the registry")
            found += page
    end = min(last for _, last in counts.values())
    return sorted((message for message in found if message[1] <= end), key=lambda message: message[1])


def _whole_us(at_ns: int) -> int:
    """The registry's precision, so that both say the same times and durations."""
    return at_ns // 1000 * 1000

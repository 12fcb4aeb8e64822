"""One run, read whole from the stream: its events in order, what each meant, and where the run stands.

This is the truth that the registry's tables are made of; it needs nothing but NATS.
"""

import msgspec

from shared.bus import Bus
from shared.errors import NotFound, RemitError
from shared.events import Artifact, Event, read
from shared.pull import collect
from shared.run import Run, begin, evolve, refusal
from shared.subjects import EVENTS, of_run

SUBJECTS_PER_GET = 1000  # the server answers for at most 1,024 subjects at once


class Told(msgspec.Struct):
    """One event of a run: as it was stored, as it was read, and why it changed nothing ("" when it did)."""

    event: Event
    subject: str
    data: bytes
    note: str = ""


class Story(msgspec.Struct):
    """A run and every event of it."""

    run: Run
    told: list[Told]

    def artifacts(self) -> list[tuple[str, Artifact]]:
        """`(step, artifact)` of every accepted end."""
        return [(step, artifact) for step, state in self.run.steps.items() for artifact in state.artifacts]


async def read_story(bus: Bus, run_id: int) -> Story:
    """The run with this id. `NotFound` when no goal lies there."""
    goal = await bus.stored(EVENTS, run_id) if run_id > 0 else None
    if goal is None:
        raise NotFound(f"there is no run {run_id}")
    subject, at_ns, data = goal
    event = read(subject, run_id, at_ns, data)
    if event.kind != "goal.submitted" or event.run != run_id:
        raise NotFound(f"there is no run {run_id}: event {run_id} is {subject}")
    story = Story(begin(event), [Told(event, subject, data)])
    try:
        messages = await bus.direct(EVENTS, {"multi_last": list(of_run(run_id)), "batch": SUBJECTS_PER_GET})
    except RemitError as error:
        if "1,024" not in str(error):
            raise
        messages = await collect(bus, EVENTS, of_run(run_id), start_seq=run_id)
    if len(messages) >= SUBJECTS_PER_GET:
        messages = await collect(bus, EVENTS, of_run(run_id), start_seq=run_id)
    for message in messages:
        tell(story, *message)
    return story


def tell(story: Story, subject: str, seq: int, at_ns: int, data: bytes) -> Told:
    """Fold one more message into the story."""
    event = read(subject, seq, at_ns, data)
    after = evolve(story.run, event)
    told = Told(event, subject, data, refusal(story.run, event) if after is story.run else "")
    story.run = after
    story.told.append(told)
    return told

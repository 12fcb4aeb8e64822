"""The audit against the engine's own worlds: executors at different places, workers of every kind, kills, and lies.

Where nobody lies the audit has nothing to say, whatever the race. Where somebody does, its rules and the fold's come
to the same end all the same: two programs that share no code, and one stream.
"""

import os

from hypothesis import HealthCheck, Phase, settings

from shared.audit.of_stream import Audit
from shared.events import read
from shared.run import Early, Run, begin, evolve
from tests.controls import Stream
from tests.executor.test_engine_properties import Killed, Lied

# In these worlds time leaps to whatever timer is fired, past those that would have been due before it.
OF_TIME = "time_budget"


class Honest(Killed):
    def teardown(self) -> None:
        self.world.play_out()
        audit = heard(self.world.stream)
        found = audit.result()
        assert [one for one in found.findings if one.rule != OF_TIME] == []
        assert found.active == 0
        assert found.events == self.world.stream.last_seq


class Lying(Lied):
    def teardown(self) -> None:
        self.world.play_out()
        stream = self.world.stream
        audit = heard(stream)
        for run in folded(stream).values():
            assert (audit._over.get(str(run.id)) is not None) == run.ended, run


def heard(stream: Stream) -> Audit:
    audit = Audit()
    for message in stream.messages:
        audit.hear(*message)
    return audit


def folded(stream: Stream) -> dict[int, Run]:
    runs: dict[int, Run] = {}
    early = Early()
    for message in stream.messages:
        event = read(*message)
        if event.kind == "goal.submitted":
            runs[event.seq] = begin(event, early.take(event.seq))
        elif event.run in runs:
            runs[event.run] = evolve(runs[event.run], event)
        elif event.run >= event.seq:
            early.note(event)
    return runs


_short = settings(
    max_examples=int(os.environ.get("REMIT_EXAMPLES", "25")),
    stateful_step_count=40,
    phases=[Phase.explicit, Phase.reuse, Phase.generate],
    suppress_health_check=[HealthCheck.too_slow],
    report_multiple_bugs=False,
)
TestHonest = Honest.TestCase
TestHonest.settings = _short
TestLying = Lying.TestCase
TestLying.settings = _short

"""What has ended leaves nothing behind: the engine, its schedules and the timers hold what is active, and no more."""

import gc
import tracemalloc

from services.executor.engine import Engine
from services.executor.schedules import HEARD
from shared.events import read
from shared.plan import Budgets
from shared.subjects import TIMER_AT, llm_called, run_cancel_requested, step_cancelled, step_completed, step_failed
from tests import controls
from tests.controls import Stream

# Of 1,000 runs. A single int that is kept for each run in a dict is 100 kB.
LEFT_BYTES_MAX = 30_000


def a_life(number: int) -> Stream:
    """One run that ends, in one of several ways; a plan of its own."""
    stream = Stream()
    steps = [controls.step("a", uses_tokens=True), controls.step("b"), controls.step("c", needs=["a", "b"])]
    directive = controls.directive(f"d{number % 3}", max_parallel_steps=1)
    made = controls.plan(
        *steps, directive=directive, budgets=Budgets(max_steps=2 + number % 3), params={"number": number}
    )
    run = stream.planned(made)
    engine = Engine()
    engine.due()
    answered = 0
    while engine.position < stream.last_seq:
        for subject, body in engine.apply(stream.event(engine.position + 1)):
            if not subject.startswith(TIMER_AT):
                stream.say(subject, body)
        while answered < stream.last_seq:
            answered += 1
            event = stream.event(answered)
            if event.kind == "step.cancel_requested":
                stream.say(step_cancelled(run, event.step, event.attempt), controls.cancelled())
            elif event.kind == "step.dispatched" and number % 4 == 1:
                stream.say(run_cancel_requested(run), controls.cancel_requested())
            elif event.kind == "step.dispatched" and number % 4 == 2:
                stream.say(step_failed(run, event.step, event.attempt), controls.failed())
            elif event.kind == "step.dispatched":
                stream.say(llm_called(run, event.step, "1-1"), controls.called(input_tokens=1, output_tokens=1))
                stream.say(step_completed(run, event.step, event.attempt), controls.completed())
    assert stream.fold(run).ended, stream.fold(run).status
    return stream


LIVES = [a_life(number).messages for number in range(12)]


def live(engine: Engine, lives: int) -> None:
    """So many runs, one after the other, each at its own place of one long stream."""
    for number in range(lives):
        begin = engine.position
        for subject, seq, at_ns, data in LIVES[number % len(LIVES)]:
            parts = subject.split(".")
            if len(parts) > 2:
                parts[2] = str(begin + 1)
            event = read(".".join(parts), begin + seq, at_ns, data)
            engine.apply(event)
            if event.kind in HEARD:
                engine.schedules.apply(event, engine.runs)
        assert begin + 1 not in engine.runs


def test_finished_runs_leave_nothing_in_the_engine() -> None:
    engine = Engine()
    engine.due()
    live(engine, 200)
    tracemalloc.start()
    try:
        gc.collect()
        before, _ = tracemalloc.get_traced_memory()
        live(engine, 1_000)
        gc.collect()
        after, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert after - before < LEFT_BYTES_MAX, f"{after - before} bytes"
    assert not engine.runs and not engine._said and not engine._known and not engine._waiting and not engine._holding

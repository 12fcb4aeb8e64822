"""A stream of real shape without a NATS: runs of several kinds, interleaved as under load, the same for a same seed."""

import random
from collections.abc import Iterator
from typing import Any

import msgspec

from shared.clock import NS_PER_S, rfc3339
from shared.events import (
    ApprovalGranted,
    ApprovalRequested,
    Artifact,
    LlmCalled,
    PlanCreated,
    RunCompleted,
    RunStarted,
    ScheduleTicked,
    StepCompleted,
    StepDispatched,
    StepFailed,
    Tokens,
    encode,
)
from shared.plan import Budgets, Directive, Step, plan_hash
from shared.subjects import (
    approval_granted,
    approval_requested,
    goal_submitted,
    llm_called,
    plan_created,
    run_completed,
    run_started,
    schedule_principal,
    schedule_ticked,
    step_completed,
    step_dispatched,
    step_failed,
)

INTERLEAVED = 64  # runs under way at a time
WAVES_LEAST = 60  # so that a few hundred runs still lie on many days
T0_NS = 1_795_000_000 * NS_PER_S
DAYS = 90
HOSTS = ("tower", "attic", "cellar", "shed")
MODELS = ("small", "large", "vision")
DIRECTIVES = ("default", "nightly", "careful")
STEPS = ("a", "b", "c")
SHA = "8021280532dac0d5906adcc80c5b817553e31f5fcbe3116846d8c75e040baab0"

Message = tuple[str, int, int, bytes]
Said = tuple[str, bytes]


def stream(runs: int, *, seed: int = 0, first_ns: int = T0_NS, span_s: int = DAYS * 86_400) -> Iterator[Message]:
    """Messages of `runs` runs spread over `span_s`: about ten each, some with calls, retries, questions, schedules."""
    chance = random.Random(seed)
    plans = {name: _plan(name) for name in DIRECTIVES}
    pace_ns = span_s * NS_PER_S // max(1, runs)
    active: list[Iterator[Said]] = []
    # In waves, a second from run to run and far from wave to wave: no run lasts longer than its time budget.
    width = max(1, min(INTERLEAVED, runs // WAVES_LEAST))
    seq = begun = wave = 0
    while begun < runs or active:
        if not active:
            wave = begun
        at_ns = first_ns + wave * pace_ns + (begun - wave) * NS_PER_S + seq
        if begun < runs and begun - wave < width:
            begun += 1
            if begun % 50 == 0:  # the principal is one schedule's tick; the tick's fact comes just before
                tick_s = at_ns // NS_PER_S
                seq += 1
                ticked = ScheduleTicked(due=rfc3339(tick_s * NS_PER_S), outcome="ran", goal={"tasks": ["noop"]})
                yield schedule_ticked("nightly", tick_s), seq, at_ns, encode(ticked)
                subject = goal_submitted(schedule_principal("nightly", tick_s))
            else:
                subject = goal_submitted("ann" if begun % 3 else "")
            seq += 1
            yield subject, seq, at_ns, _GOAL
            active.append(_run(seq, at_ns, chance, plans))
            continue
        place = chance.randrange(len(active))
        said = next(active[place], None)
        if said is None:
            active[place] = active[-1]
            active.pop()
            continue
        seq += 1
        yield said[0], seq, at_ns, said[1]


def _plan(directive: str) -> tuple[PlanCreated, bytes]:
    allowed = Directive(
        name=directive, approval_required=directive == "careful", approvers=["bob"], approval_expires_s=31_536_000
    )
    steps = [Step(id=name, why="named in the goal's tasks", task=f"task-{name}", uses_tokens=True) for name in STEPS]
    made = PlanCreated(
        steps=steps,
        directive=allowed,
        budgets=Budgets(token_budget=1_000_000),
        catalogue_version="28e96b121897",
        rules_version="1",
        tasks=["noop"],
    )
    made = msgspec.structs.replace(made, plan_hash=plan_hash(made))
    return made, encode(made)


def _run(run: int, at_ns: int, chance: random.Random, plans: dict[str, tuple[PlanCreated, bytes]]) -> Iterator[Said]:
    name, span_ns = chance.choices(DIRECTIVES, (90, 8, 2))[0], 31_536_000 * NS_PER_S
    plan, planned = plans[name]
    yield plan_created(run), planned
    if name == "careful":
        asked = ApprovalRequested(
            run=run, step="run", what="run 3 steps", plan_hash=plan.plan_hash, expires_at=rfc3339(at_ns + span_ns)
        )
        yield approval_requested(run, "run"), encode(asked)
        yes = ApprovalGranted(run=run, step="run", plan_hash=plan.plan_hash, answer="granted")
        yield approval_granted(run, "run", "bob"), encode(yes)
    yield run_started(run), encode(RunStarted(directive=name, plan_hash=plan.plan_hash))
    dispatched = encode(
        StepDispatched(inputs={}, deadline=rfc3339(at_ns + NS_PER_S), plan_hash=plan.plan_hash, token_grant=10_000)
    )
    used, fails = Tokens(), chance.random() < 0.05
    ends: dict[str, Any] = {}
    for step in STEPS:
        attempt, host = 1, chance.choice(HOSTS)
        yield step_dispatched(run, step, 1, f"task-{step}"), dispatched
        if step == "c" and chance.random() < 0.5:
            call = _call(chance)
            unknown = call.input_tokens is None
            used = Tokens(
                input=used.input + (call.input_tokens or 0),
                output=used.output + (call.output_tokens or 0),
                unknown_calls=used.unknown_calls + unknown,
            )
            yield llm_called(run, step, "1-1"), encode(call)
        if step == "b" and (fails or chance.random() < 0.05):
            why = StepFailed(error="unavailable", message="nobody answers", retryable=not fails, host=host)
            yield step_failed(run, step, 1), encode(why)
            if fails:
                ends[step] = "failed"
                break
            attempt = 2
            yield step_dispatched(run, step, 2, f"task-{step}"), dispatched
        artifacts = [Artifact(name=f"{step}.json", sha256=SHA, size_bytes=253, media_type="application/json")]
        done = StepCompleted(
            outputs={"status": "success", "findings": 3},
            artifacts=artifacts if step == "a" else [],
            host=host,
            started_at=rfc3339(at_ns),
            ended_at=rfc3339(at_ns),
        )
        yield step_completed(run, step, attempt), encode(done)
        ends[step] = "succeeded"
    over = RunCompleted(
        status="failed" if fails else "succeeded",
        reason="step b failed: unavailable" if fails else "3 of 3 steps succeeded",
        steps={step: ends.get(step, "skipped") for step in STEPS},
        tokens=used,
        duration_s=0.5,
    )
    yield run_completed(run), encode(over)


def _call(chance: random.Random) -> LlmCalled:
    model = chance.choice(MODELS)
    if chance.random() < 0.02:
        return LlmCalled(request_model=model, outcome="ok", duration_s=0.4)
    return LlmCalled(
        request_model=model,
        response_model=f"{model}-2026",
        outcome="ok",
        input_tokens=chance.randrange(10, 900),
        output_tokens=chance.randrange(5, 300),
        cached_tokens=chance.choice([None, 0, 64]),
        duration_s=round(chance.random() * 2, 3),
    )


_GOAL = b'{"tasks":["noop","noop","noop"],"goal":"fill the tables","hosts":null,"max_steps":10}'

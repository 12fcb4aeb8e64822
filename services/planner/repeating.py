"""A run again: the steps and parameters of another run, under the directive of today.

With `from_step` the results of that run stand for the steps that are not done again. Not done again is a step that
had succeeded, is not `from_step`, was not undone by a rollback, and needs none that is done again. Approvals are the
exception both ways: an answer was given to the plan of its run, so whoever stood behind one and is done again waits
for a new answer; and a step whose result is kept is not done again for the sake of an answer.
"""

from msgspec.structs import replace

from services.planner.draft import Draft, behind, is_gated, on_hosts
from shared.events import Artifact
from shared.plan import Directive, Goal, Problem, Reused, Step
from shared.run import Run


def refused(goal: Goal, run: Run | None) -> list[Problem]:
    """Why this run cannot be repeated so, whatever is allowed today."""
    if run is None:
        return [Problem(f"there is no run {goal.retry_of}", "retry_of")]
    if run.plan is None:
        state = f"it was {run.status} ({run.reason})" if run.ended else "it is not planned yet"
        return [Problem(f"run {run.id} has no plan to repeat: {state}", "retry_of")]
    problems: list[Problem] = []
    if not run.ended:
        problems.append(Problem(f"run {run.id} is {run.status}; only a run that is over can be repeated", "retry_of"))
    if goal.from_step is not None and goal.from_step not in run.plan.by_id:
        known = ", ".join(run.plan.by_id)
        problems.append(Problem(f"run {run.id} has no step {goal.from_step!r}; it has {known}", "from_step"))
    elif goal.from_step in run.plan.compensations:
        why = f"step {goal.from_step!r} runs only when a run is rolled back; no run can begin with it"
        problems.append(Problem(why, "from_step"))
    for field in ("params", "hosts"):
        if getattr(goal, field):
            problems.append(Problem(f"a repeated run has the {field} of run {run.id}; leave them out", field))
    return problems


def draft(goal: Goal, run: Run, directive: Directive) -> Draft:
    """The steps of `run`, and what of its results is reused. `refused` had nothing to say."""
    assert run.plan is not None
    old = run.plan
    kept = _kept(run, goal.from_step) if goal.from_step is not None else set()
    reused = {name: _reused(run, name) for name in old.by_id if name in kept}
    needed = behind(old.steps)
    steps: list[Step] = []
    problems: list[Problem] = []
    for step in old.steps:
        if step.id not in kept:
            asked = [name for name in old.by_id if name in needed[step.id] and old.by_id[name].kind == "approval"]
            # A playbook's own gate stays; those of a directive are the ones of today.
            own = step.approval if old.playbook else False
            step, elsewhere = on_hosts(step, directive.hosts)
            outside = _outside(step, old.by_id[step.id], directive)
            problems += outside or elsewhere
            step = replace(
                step,
                needs=[*step.needs, *(name for name in asked if name not in step.needs)] if kept else step.needs,
                approval=own or is_gated(step.id, step.task, directive),
            )
        steps.append(step)
    note = f"run {run.id} again" if goal.from_step is None else f"run {run.id} again from step {goal.from_step}"
    names = f"; reused: {', '.join(reused)}" if reused else ""
    return Draft(
        source="retry_of",
        steps=steps,
        notes=[note + names],
        problems=list(dict.fromkeys(problems)),
        params=old.params,
        playbook=old.playbook,
        playbook_version=old.playbook_version,
        reused=reused,
    )


def _kept(run: Run, from_step: str) -> set[str]:
    """The steps whose results stand, in the order of the plan, so that each need is judged before its dependents."""
    assert run.plan is not None
    plan = run.plan
    needed = behind(plan.steps)
    kept: set[str] = set()
    for step in plan.steps:
        results = {name for name in needed[step.id] if plan.by_id[name].kind != "approval"}
        undone = step.compensation is not None and run.steps[step.compensation].attempt > 0
        if (
            run.steps[step.id].status == "succeeded"
            and step.id not in plan.compensations
            and not undone
            and from_step not in {step.id, *needed[step.id]}
            and kept >= results
        ):
            kept.add(step.id)
    # An approval for which something is still to run is asked again.
    again = {name for step in plan.steps if step.id not in kept for name in needed[step.id]}
    return {name for name in kept if plan.by_id[name].kind != "approval" or name not in again}


def _reused(run: Run, step: str) -> Reused:
    state = run.steps[step]
    artifacts: list[Artifact] = [
        one if one.from_run is not None else replace(one, from_run=state.reused_from or run.id)
        for one in state.artifacts
    ]
    return Reused(outputs=state.outputs, artifacts=artifacts, host=state.host)


def _outside(step: Step, old: Step, directive: Directive) -> list[Problem]:
    """The hosts of an old step that the directive does not allow any more."""
    if directive.hosts is None:
        return []
    named = old.inputs.get("hosts")
    wanted = [*(named if isinstance(named, list) else ()), *([step.host] if step.host else ())]
    outside = [name for name in wanted if name not in directive.hosts]
    if not outside:
        return []
    why = f"step {step.id} is for {', '.join(map(str, outside))}, which directive {directive.name} does not allow"
    return [Problem(why, "retry_of")]

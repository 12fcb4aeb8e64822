"""The checker beside the planner: small functions, each one thing that a plan must be. All reasons are told at once."""

from collections import Counter
from collections.abc import Sequence

from shared.plan import Budgets, Directive, Problem, Step
from shared.subjects import is_step_id


def check(steps: Sequence[Step], directive: Directive, budgets: Budgets, *, explicit: bool) -> list[Problem]:
    """Every reason why these steps are no plan under this directive and these budgets."""
    return [
        *check_allowed(steps, directive, explicit=explicit),
        *check_budget(steps, budgets),
        *check_ids(steps),
        *check_needs(steps),
    ]


def check_allowed(steps: Sequence[Step], directive: Directive, *, explicit: bool) -> list[Problem]:
    allowed = ", ".join(directive.task_list) or "no task"
    return [
        Problem(
            f"directive {directive.name} does not allow task {step.task!r}; it allows {allowed}",
            f"tasks[{i}]" if explicit else "directive",
        )
        for i, step in enumerate(steps)
        if step.task not in directive.task_list
    ]


def check_budget(steps: Sequence[Step], budgets: Budgets) -> list[Problem]:
    if len(steps) <= budgets.max_steps:
        return []
    return [Problem(f"the plan needs {len(steps)} steps; max_steps is {budgets.max_steps}", "max_steps")]


def check_ids(steps: Sequence[Step]) -> list[Problem]:
    twice = [step for step, count in Counter(step.id for step in steps).items() if count > 1]
    return [
        *(Problem(f"step id {step!r} is there twice", "steps") for step in twice),
        *(Problem(f"step id {step.id!r} is none", "steps") for step in steps if not is_step_id(step.id)),
    ]


def check_needs(steps: Sequence[Step]) -> list[Problem]:
    """Every need is a step, and following needs never leads back: what is left after peeling is a cycle."""
    known = {step.id for step in steps}
    problems = [
        Problem(f"step {step.id!r} needs {need!r}, which is no step", "steps")
        for step in steps
        for need in step.needs
        if need not in known
    ]
    left = {step.id: set(step.needs) & known for step in steps}
    while ready := [step for step, needs in left.items() if not needs]:
        for step in ready:
            del left[step]
        for needs in left.values():
            needs.difference_update(ready)
    if left:
        problems.append(Problem(f"these steps wait for each other: {', '.join(sorted(left))}", "steps"))
    return problems

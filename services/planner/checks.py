"""The checker beside the planner: small functions, each one thing that a plan must be. All reasons are told at once."""

import re
from collections import Counter
from collections.abc import Sequence

from services.planner.draft import Draft, behind
from shared import conditions
from shared.catalogue import Catalogue
from shared.plan import GATE, Budgets, Directive, Problem, Step, approval_problem, wait_problem
from shared.subjects import is_step_id

_IN_MESSAGE = re.compile(r"\$\{([^{}]{1,200})\}")  # what the executor fills in
_DECISION = re.compile(r"""\bdecisions(?:\.([A-Za-z_]\w*)|\[\s*["']([a-z0-9_-]+)["']\s*\])""")

Needed = dict[str, set[str]]  # for each step all that it needs, directly or not


def check(
    draft: Draft, directive: Directive, budgets: Budgets, catalogue: Catalogue, requester: str = ""
) -> list[Problem]:
    """Every reason why this draft is no plan under this directive and these budgets."""
    steps = draft.steps
    needed = behind(steps)
    to_run = [step for step in steps if step.id not in draft.reused]
    return [
        *check_tasks(draft, directive, catalogue),
        *check_budget(to_run, needed, budgets),
        *check_ids(steps),
        *check_needs(steps, needed),
        *check_compensations(steps),
        *check_conditions(steps, needed),
        *check_inputs(steps),
        *check_waits(to_run, budgets),
        *check_approvals(to_run, directive, requester),
    ]


def check_tasks(draft: Draft, directive: Directive, catalogue: Catalogue) -> list[Problem]:
    """Every task that is to run is known, and allowed. (What a goal's `tasks` name in vain is no step.)"""
    allowed = ", ".join(directive.task_list) or "no task"
    problems: list[Problem] = []
    for place, step in enumerate(draft.steps):
        if step.task is None or step.id in draft.reused:
            continue
        if catalogue.task(step.task) is None:
            field = f"steps.{step.id}.task" if draft.source == "playbook" else draft.field(place)
            problems.append(Problem(f"there is no task {step.task!r}; `remit tasks ls` shows them", field))
        elif step.task not in directive.task_list:
            why = f"directive {directive.name} does not allow task {step.task!r}; it allows {allowed}"
            problems.append(Problem(why, draft.field(place)))
    return list(dict.fromkeys(problems))


def check_budget(steps: Sequence[Step], needed: Needed, budgets: Budgets) -> list[Problem]:
    """The steps that run whatever the conditions say are within `max_steps`; undoing is never too expensive."""
    undoing = {step.compensation for step in steps}
    open_ends = {step.id for step in steps if step.when}
    least = sum(1 for step in steps if step.id not in undoing | open_ends and not needed[step.id] & open_ends)
    if least <= budgets.max_steps:
        return []
    at_least = "at least " if open_ends else ""
    return [Problem(f"the plan needs {at_least}{least} steps; max_steps is {budgets.max_steps}", "max_steps")]


def check_ids(steps: Sequence[Step]) -> list[Problem]:
    twice = [step for step, count in Counter(step.id for step in steps).items() if count > 1]
    return [
        *(Problem(f"step id {step!r} is there twice", f"steps.{step}.id") for step in twice),
        *(Problem(f"step id {step.id!r} is none", "steps") for step in steps if not is_step_id(step.id)),
        *(
            Problem(f"{GATE!r} stands for the whole run where it is approved; no step can be called so", "steps.run.id")
            for step in steps
            if step.id == GATE
        ),
    ]


def check_needs(steps: Sequence[Step], needed: Needed) -> list[Problem]:
    """Every need is a step that can come to its end before this one begins."""
    known = {step.id for step in steps}
    undoing = {step.compensation for step in steps}
    problems: list[Problem] = []
    for step in steps:
        for need in step.needs:
            if need not in known:
                problems.append(Problem(f"it needs {need!r}, which is no step", f"steps.{step.id}.needs"))
            elif need in undoing:
                why = f"it can never run: it needs {need!r}, which runs only when the run is rolled back"
                problems.append(Problem(why, f"steps.{step.id}.needs"))
    circle = {step.id for step in steps if step.id in needed[step.id]}
    if circle:
        names = ", ".join(sorted(circle))
        problems.append(Problem(f"these steps wait for each other, so none can run: {names}", "steps"))
    for step in steps:
        if step.id not in circle and needed[step.id] & circle:
            stuck = ", ".join(sorted(needed[step.id] & circle))
            problems.append(Problem(f"it can never run: it needs {stuck}, which never run", f"steps.{step.id}.needs"))
    return problems


def check_compensations(steps: Sequence[Step]) -> list[Problem]:
    """What undoes a step is another step, a task that needs nothing and is undone by nothing."""
    by_id = {step.id: step for step in steps}
    problems: list[Problem] = []
    for step in steps:
        name = step.compensation
        if name is None:
            continue
        undoing = by_id.get(name)
        why = ""
        if undoing is None:
            why = f"its compensation {name!r} is no step"
        elif name == step.id:
            why = "it cannot undo itself"
        elif undoing.kind != "task":
            why = f"its compensation {name!r} is a {undoing.kind}; it must be a task"
        elif undoing.needs:
            why = f"its compensation {name!r} needs other steps; a rollback waits for nothing"
        elif undoing.compensation is not None:
            why = f"its compensation {name!r} has a compensation of its own"
        if why:
            problems.append(Problem(why, f"steps.{step.id}.compensation"))
    return problems


def check_conditions(steps: Sequence[Step], needed: Needed) -> list[Problem]:
    """Conditions can be read, and ask only about steps that have ended by then."""
    by_id = {step.id: step for step in steps}
    ended = dict(needed)
    for step in steps:
        if step.compensation is not None:  # it runs when these have ended
            ended[step.compensation] = ended.get(step.compensation, set()) | {step.id} | needed[step.id]
    problems: list[Problem] = []
    for step in steps:
        for field, text in _asked(step):
            if why := conditions.check(text):
                problems.append(Problem(f"{_short(text)}: {why}", f"steps.{step.id}.{field}"))
                continue
            for name in sorted(conditions.references(text) - ended[step.id]):
                why = "it does not need: that may not have ended by then" if name in by_id else "is no step"
                problems.append(Problem(f"{_short(text)} asks about {name!r}, which {why}", f"steps.{step.id}.{field}"))
            for name in dict.fromkeys(dotted or indexed for dotted, indexed in _DECISION.findall(text)):
                if name in by_id and by_id[name].kind != "decision":
                    why = f"{_short(text)} asks for the decision {name!r}, which is a {by_id[name].kind}"
                    problems.append(Problem(why, f"steps.{step.id}.{field}"))
    return problems


def _asked(step: Step) -> list[tuple[str, str]]:
    """Every expression of a step, with the field that it stands in."""
    found = [] if step.when is None else [("when", step.when)]
    if step.kind == "decision" and isinstance(text := step.inputs.get("condition"), str):
        found.append(("condition", text))
    if step.kind == "notify" and isinstance(text := step.inputs.get("message"), str):
        found += [("message", one) for one in _IN_MESSAGE.findall(text)]
    return found


def _short(text: str) -> str:
    return text if len(text) <= 80 else f"{text[:80]}…"


def check_inputs(steps: Sequence[Step]) -> list[Problem]:
    """The steps that the executor performs itself say what it needs for that."""
    return [
        Problem(why, f"steps.{step.id}.{'until' if 'until' in step.inputs else 'seconds'}")
        for step in steps
        if step.kind == "wait" and (why := wait_problem(step.inputs))
    ]


def check_waits(steps: Sequence[Step], budgets: Budgets) -> list[Problem]:
    """No step has to wait longer than the run may last. (How far away `until` is, nobody can say without a clock.)"""
    waits = {step.id: _seconds(step) for step in steps}
    earliest: dict[str, float] = {}
    for step in steps:  # each stands behind its needs, or there is a circle, which is told elsewhere
        earliest[step.id] = waits[step.id] + max((earliest.get(need, 0.0) for need in step.needs), default=0.0)
    return [
        Problem(
            f"it ends {earliest[step.id]:g} s after the start at the earliest; "
            f"time_budget_s is {budgets.time_budget_s}",
            f"steps.{step.id}.seconds",
        )
        for step in steps
        if waits[step.id] and earliest[step.id] >= budgets.time_budget_s
    ]


def _seconds(step: Step) -> float:
    if step.kind != "wait" or "until" in step.inputs or wait_problem(step.inputs):
        return 0.0
    return float(step.inputs["seconds"])


def check_approvals(steps: Sequence[Step], directive: Directive, requester: str) -> list[Problem]:
    """Where somebody is to be asked, somebody can answer."""
    asked = directive.approval_required is True or any(step.approval or step.kind == "approval" for step in steps)
    if asked and (why := approval_problem(directive, requester)):
        return [Problem(f"directive {directive.name} can approve nothing: {why}", "directive")]
    return []

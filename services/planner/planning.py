"""Planning: `plan(goal, catalogue)` is pure, synchronous and deterministic, and changes nothing.

The same goal, directive, catalogue and rules give the same bytes and the same hash in any process. A plan leaves
the executor no choices; why each step was chosen stands in the step.
"""

from msgspec.structs import replace

from services.planner import playbooks, repeating
from services.planner.checks import check
from services.planner.draft import Draft, allowed_hosts, is_gated, keyword_forms, quoted
from services.planner.negation import affirmed
from services.planner.words import RULES_VERSION, matches
from shared.catalogue import ANY_TASK, Catalogue
from shared.events import PlanCreated, encode
from shared.plan import (
    BUDGET_LIMITS,
    GATE,
    PLAN_BYTES_MAX,
    Budgets,
    Directive,
    Goal,
    Problem,
    Retry,
    Step,
    TaskSpec,
    directive_problems,
    plan_hash,
)
from shared.run import Run

TASKS_BY_WORDS_MAX = 5  # a sentence that names more is vague; name the tasks themselves
DIRECTIVE_DEFAULT = "default"

Chosen = list[tuple[TaskSpec, str, list[str]]]  # task, why, matched words


def plan(
    goal: Goal, catalogue: Catalogue, repeated: Run | None = None, requester: str = ""
) -> PlanCreated | list[Problem]:
    """The plan for `goal`, or every reason why there is none. `goal` has passed `shared.plan.check_goal`.

    `repeated` is the run that the goal's `retry_of` names, None where there is none; `requester` the principal who
    asks, who may be one that cannot approve.
    """
    again = repeated if goal.retry_of is not None else None
    if goal.retry_of is not None and (problems := repeating.refused(goal, again)):
        return problems
    old = again.plan if again is not None else None
    name = goal.directive or (old.directive.name if old else DIRECTIVE_DEFAULT)
    directive = catalogue.directives.get(name)
    if directive is None:
        known = ", ".join(sorted(catalogue.directives))
        return [Problem(f"there is no directive {name!r}; known: {known}", "directive")]
    directive = _snapshot(directive, catalogue)
    hosts, problems = allowed_hosts(goal, directive)
    budgets, over = _budgets(goal, directive, old.budgets if old else directive.defaults)
    draft = repeating.draft(goal, again, directive) if again else _draft(goal, catalogue, directive, hosts)
    checked = [*over, *check(draft, directive, budgets, catalogue, requester)]
    problems = [
        *(Problem(f"directive {name}: {one.field}: {one.reason}", "directive") for one in _odd(directive)),
        *draft.problems,
        *problems,
        *(problem for problem in checked if not draft.doubtful(problem)),
    ]
    if problems:
        return list(dict.fromkeys(problems))
    made = PlanCreated(
        goal=goal.goal or (old.goal if old else None),
        tasks=(old.tasks if old else goal.tasks) or None,
        playbook=draft.playbook,
        playbook_version=draft.playbook_version,
        retry_of=goal.retry_of,
        from_step=goal.from_step,
        reused=draft.reused,
        params=draft.params,
        hosts=(old.hosts or directive.hosts) if old else hosts,
        steps=draft.steps,
        directive=directive,
        budgets=budgets,
        catalogue_version=catalogue.version,
        rules_version=RULES_VERSION,
        notes=draft.notes,
    )
    made = replace(made, plan_hash=plan_hash(made))
    carries = goal.params or hosts or draft.source in ("playbook", "retry_of")
    if carries and (size := len(encode(made))) > PLAN_BYTES_MAX:
        field = {"words": "params", "tasks": "params"}.get(draft.source, draft.source)
        carried = ", as every step carries them" if field == "params" else ""
        return [Problem(f"the plan has {size} bytes{carried}; at most {PLAN_BYTES_MAX}", field)]
    return made


def _odd(directive: Directive) -> list[Problem]:
    """What is wrong with the directive itself. (Whether approvals can be given is asked where some are needed.)"""
    return [problem for problem in directive_problems(directive) if problem.field != "approvals_needed"]


def _draft(goal: Goal, catalogue: Catalogue, directive: Directive, hosts: list[str] | None) -> Draft:
    if goal.playbook is not None:
        return playbooks.named(goal, catalogue, directive, hosts)
    if goal.tasks:
        chosen, problems = _named(goal, catalogue)
        return _of_tasks(chosen, goal, directive, hosts, Draft(source="tasks", problems=problems))
    words, silenced = affirmed(goal.goal or "")
    playbook, by, notes, unwanted, left = playbooks.by_words(words, silenced, catalogue, directive)
    if playbook is not None:
        made = playbooks.draft(playbook, goal, catalogue, directive, hosts, f"the goal says {quoted(by)}", by)
        return replace(made, notes=[*made.notes, *notes])
    chosen, more, problems = _matched(words, silenced, catalogue, directive, unwanted, left)
    return _of_tasks(chosen, goal, directive, hosts, Draft(source="words", notes=notes + more, problems=problems))


def _snapshot(directive: Directive, catalogue: Catalogue) -> Directive:
    """The directive as it governs a run: `*` replaced by the tasks that it stands for today."""
    if ANY_TASK not in directive.task_list:
        return directive
    first = [name for name in directive.task_list if name != ANY_TASK]
    rest = [task.name for task in catalogue.tasks if task.name not in first]
    return replace(directive, task_list=first + rest)


def _named(goal: Goal, catalogue: Catalogue) -> tuple[Chosen, list[Problem]]:
    chosen: Chosen = []
    problems: list[Problem] = []
    for i, name in enumerate(goal.tasks or []):
        task = catalogue.task(name)
        if task is None:
            problems.append(Problem(f"there is no task {name!r}; `remit tasks ls` shows them", f"tasks[{i}]"))
        else:
            chosen.append((task, "named in the goal's tasks", []))
    return chosen, problems


def _matched(
    words: list[str],
    silenced: list[str],
    catalogue: Catalogue,
    directive: Directive,
    unwanted: set[str],
    left: dict[str, str],
) -> tuple[Chosen, list[str], list[Problem]]:
    scored: list[tuple[int, int, TaskSpec, list[str]]] = []
    notes: list[str] = []
    allowed = [task for name in directive.task_list if (task := catalogue.task(name))]
    for place, task in enumerate(allowed):
        keywords = keyword_forms(tuple(task.keywords))
        hits = matches(words, keywords)
        if hits:
            scored.append((-len(hits), place, task, list(hits.values())))
        elif unsaid := matches(silenced, keywords):
            notes.append(f"{task.name} is left out: the goal negates {quoted(list(unsaid.values()))}")
    scored.sort(key=lambda one: one[:2])
    if len(scored) > TASKS_BY_WORDS_MAX:
        over = ", ".join(task.name for _, _, task, _ in scored[TASKS_BY_WORDS_MAX:])
        notes.append(f"the words name more than {TASKS_BY_WORDS_MAX} tasks; left out: {over}")
    chosen: Chosen = [
        (task, f"the goal says {quoted(hits)} (score {-score})", hits)
        for score, _, task, hits in scored[:TASKS_BY_WORDS_MAX]
    ]
    matched = {task.name for _, _, task, _ in scored}
    rest = [task for task in allowed if task.name in left and task.name not in matched]
    chosen += [(task, left[task.name], []) for task in rest[: TASKS_BY_WORDS_MAX - len(chosen)]]
    if not chosen:
        if not allowed:
            return [], notes, [Problem(f"directive {directive.name} allows no task of the catalogue", "directive")]
        if allowed[0].name in unwanted or matches(silenced, keyword_forms(tuple(allowed[0].keywords))):
            why = f"the goal only says what not to do; {allowed[0].name} is the first of them"
            return [], notes, [Problem(why, "goal")]
        notes.append(f"nothing in the goal matched a task; {allowed[0].name} is the directive's first")
        chosen = [(allowed[0], "nothing in the goal matched; this is the directive's first task", [])]
    return chosen, notes, []


def _of_tasks(chosen: Chosen, goal: Goal, directive: Directive, hosts: list[str] | None, draft: Draft) -> Draft:
    """Tasks that were named run in that order; tasks that words led to do not depend on each other."""
    steps: list[Step] = []
    seen = {GATE}
    params = dict(goal.params or {})
    inputs = params if hosts is None else {**params, "hosts": hosts}
    for task, why, matched in chosen:
        step_id = _step_id(task.name.lower(), seen)
        steps.append(
            Step(
                id=step_id,
                task=task.name,
                why=why,
                inputs=inputs,
                needs=[steps[-1].id] if goal.tasks and steps else [],
                matched=matched,
                approval=is_gated(step_id, task.name, directive),
                timeout_s=task.timeout_s,
                max_attempts=task.max_attempts,
                retry=Retry(backoff_s=task.backoff_s),
                on_failure=directive.on_failure,
                uses_tokens=task.uses_tokens,
            )
        )
    return replace(draft, steps=steps, params=params)


def _step_id(name: str, taken: set[str]) -> str:
    """The task's name, or with the first number that is free: a second `noop` is `noop-2`."""
    step_id, number = name, 1
    while step_id in taken:
        number += 1
        step_id = f"{name[:60]}-{number}"
    taken.add(step_id)
    return step_id


def _budgets(goal: Goal, directive: Directive, defaults: Budgets) -> tuple[Budgets, list[Problem]]:
    """What the goal asks for, or else the defaults, within what the directive allows at most."""
    values: dict[str, int] = {}
    problems: list[Problem] = []
    for field in BUDGET_LIMITS:
        asked = getattr(goal, field)
        most = getattr(directive.maximum, field)
        if asked is not None and asked > most:
            problems.append(Problem(f"{field} is {asked}; directive {directive.name} allows {most}", field))
        values[field] = min(getattr(defaults, field), most) if asked is None else asked
    return Budgets(**values), problems

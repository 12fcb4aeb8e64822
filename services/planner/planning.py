"""Planning: `plan(goal, catalogue)` is pure, synchronous and deterministic, and changes nothing.

The same goal, directive, catalogue and rules give the same bytes and the same hash in any process. A plan leaves
the executor no choices; why each step was chosen stands in the step.
"""

from functools import lru_cache

from msgspec.structs import replace

from services.planner.checks import check
from services.planner.words import RULES_VERSION, affirmed, forms, matches
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
    plan_hash,
)

TASKS_BY_WORDS_MAX = 5  # a sentence that names more is vague; name the tasks themselves
DIRECTIVE_DEFAULT = "default"

Chosen = list[tuple[TaskSpec, str, list[str]]]  # task, why, matched words


def plan(goal: Goal, catalogue: Catalogue) -> PlanCreated | list[Problem]:
    """The plan for `goal`, or every reason why there is none. `goal` has passed `shared.plan.check_goal`."""
    name = goal.directive or DIRECTIVE_DEFAULT
    directive = catalogue.directives.get(name)
    if directive is None:
        known = ", ".join(sorted(catalogue.directives))
        return [Problem(f"there is no directive {name!r}; known: {known}", "directive")]
    directive = _snapshot(directive, catalogue)
    chosen, notes, problems = _named(goal, catalogue) if goal.tasks else _matched(goal, catalogue, directive)
    budgets, over = _budgets(goal, directive)
    steps = _steps(chosen, goal, directive)
    problems = problems + over + check(steps, directive, budgets, explicit=bool(goal.tasks))
    if problems:
        return problems
    made = PlanCreated(
        goal=goal.goal,
        tasks=goal.tasks or None,
        params=goal.params or {},
        hosts=goal.hosts,
        steps=steps,
        directive=directive,
        budgets=budgets,
        catalogue_version=catalogue.version,
        rules_version=RULES_VERSION,
        notes=notes,
    )
    made = replace(made, plan_hash=plan_hash(made))
    if (goal.params or goal.hosts) and (size := len(encode(made))) > PLAN_BYTES_MAX:
        return [Problem(f"the plan has {size} bytes, as every step carries them; at most {PLAN_BYTES_MAX}", "params")]
    return made


def _snapshot(directive: Directive, catalogue: Catalogue) -> Directive:
    """The directive as it governs a run: `*` replaced by the tasks that it stands for today."""
    if ANY_TASK not in directive.task_list:
        return directive
    first = [name for name in directive.task_list if name != ANY_TASK]
    rest = [task.name for task in catalogue.tasks if task.name not in first]
    return replace(directive, task_list=first + rest)


def _named(goal: Goal, catalogue: Catalogue) -> tuple[Chosen, list[str], list[Problem]]:
    chosen: Chosen = []
    problems: list[Problem] = []
    for i, name in enumerate(goal.tasks or []):
        task = catalogue.task(name)
        if task is None:
            problems.append(Problem(f"there is no task {name!r}; `remit tasks ls` shows them", f"tasks[{i}]"))
        else:
            chosen.append((task, "named in the goal's tasks", []))
    return chosen, [], problems


def _matched(goal: Goal, catalogue: Catalogue, directive: Directive) -> tuple[Chosen, list[str], list[Problem]]:
    words, silenced = affirmed(goal.goal or "")
    scored: list[tuple[int, int, TaskSpec, list[str]]] = []
    notes: list[str] = []
    allowed = [task for name in directive.task_list if (task := catalogue.task(name))]
    for place, task in enumerate(allowed):
        keywords = _keyword_forms(tuple(task.keywords))
        hits = matches(words, keywords)
        if hits:
            scored.append((-len(hits), place, task, list(hits.values())))
        elif unsaid := matches(silenced, keywords):
            notes.append(f"{task.name} is left out: the goal negates {_quoted(list(unsaid.values()))}")
    scored.sort(key=lambda one: one[:2])
    if len(scored) > TASKS_BY_WORDS_MAX:
        left = ", ".join(task.name for _, _, task, _ in scored[TASKS_BY_WORDS_MAX:])
        notes.append(f"the words name more than {TASKS_BY_WORDS_MAX} tasks; left out: {left}")
    chosen: Chosen = [
        (task, f"the goal says {_quoted(hits)} (score {-score})", hits)
        for score, _, task, hits in scored[:TASKS_BY_WORDS_MAX]
    ]
    if not chosen:
        if not allowed:
            return [], notes, [Problem(f"directive {directive.name} allows no task of the catalogue", "directive")]
        if matches(silenced, _keyword_forms(tuple(allowed[0].keywords))):
            unwanted = f"the goal only says what not to do; {allowed[0].name} is the first of them"
            return [], notes, [Problem(unwanted, "goal")]
        notes.append(f"nothing in the goal matched a task; {allowed[0].name} is the directive's first")
        chosen = [(allowed[0], "nothing in the goal matched; this is the directive's first task", [])]
    return chosen, notes, []


@lru_cache(maxsize=256)
def _keyword_forms(keywords: tuple[str, ...]) -> dict[str, frozenset[str]]:
    return {keyword: forms(keyword.casefold()) for keyword in keywords if keyword}


def _quoted(words: list[str]) -> str:
    return ", ".join(f"'{word}'" for word in words)


def _steps(chosen: Chosen, goal: Goal, directive: Directive) -> list[Step]:
    """Tasks that were named run in that order; tasks that words led to do not depend on each other."""
    steps: list[Step] = []
    seen = {GATE}
    inputs = dict(goal.params or {})
    if goal.hosts is not None:
        inputs["hosts"] = goal.hosts
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
                approval=_is_gated(step_id, task.name, directive),
                timeout_s=task.timeout_s,
                max_attempts=task.max_attempts,
                retry=Retry(backoff_s=task.backoff_s),
                on_failure=directive.on_failure,
                uses_tokens=task.uses_tokens,
            )
        )
    return steps


def _is_gated(step: str, task: str, directive: Directive) -> bool:
    """Whether the directive asks for an approval before this very step."""
    asked = directive.approval_required
    return not isinstance(asked, bool) and (step in asked or task in asked)


def _step_id(name: str, taken: set[str]) -> str:
    """The task's name, or with the first number that is free: a second `noop` is `noop-2`."""
    step_id, number = name, 1
    while step_id in taken:
        number += 1
        step_id = f"{name[:60]}-{number}"
    taken.add(step_id)
    return step_id


def _budgets(goal: Goal, directive: Directive) -> tuple[Budgets, list[Problem]]:
    values: dict[str, int] = {}
    problems: list[Problem] = []
    for field in BUDGET_LIMITS:
        asked = getattr(goal, field)
        most = getattr(directive.maximum, field)
        if asked is not None and asked > most:
            problems.append(Problem(f"{field} is {asked}; directive {directive.name} allows {most}", field))
        values[field] = min(getattr(directive.defaults, field), most) if asked is None else asked
    return Budgets(**values), problems

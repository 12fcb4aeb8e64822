"""From a playbook to the steps of a plan: chosen by name or by the goal's words, its parameters given, in an order in
which every step stands behind those that it needs.
"""

from collections.abc import Iterable
from typing import Any

from services.planner.checks import check
from services.planner.draft import Draft, is_gated, keyword_forms, on_hosts, quoted
from services.planner.words import matches
from shared.catalogue import Catalogue
from shared.plan import PLAN_STEPS_MAX, Budgets, Directive, Goal, Problem, Retry, Step, TaskSpec
from shared.playbook import (
    Playbook,
    PlaybookStep,
    definition_problems,
    expand,
    read_playbook,
    resolve,
    rests_on,
    samples,
    unmeant,
)

# What a step may say and still be run by itself.
_PLAIN = frozenset(("id", "kind", "task", "inputs", "timeout_s", "retry", "on_failure", "why"))


def named(goal: Goal, catalogue: Catalogue, directive: Directive, hosts: list[str] | None) -> Draft:
    """The draft of the playbook that the goal names."""
    playbook = catalogue.playbooks.get(goal.playbook or "")
    if playbook is None:
        known = ", ".join(sorted(catalogue.playbooks)) or "none"
        why = f"there is no playbook {goal.playbook!r}; known: {known}"
        return Draft(source="playbook", problems=[Problem(why, "playbook")])
    return draft(playbook, goal, catalogue, directive, hosts, "named in the goal", [])


def by_words(
    words: list[str], silenced: list[str], catalogue: Catalogue, directive: Directive
) -> tuple[Playbook | None, list[str], list[str], set[str], dict[str, str]]:
    """The playbook that the goal's words lead to, those words, notes on others, the tasks of those negated, and what
    is left of those of which the goal negates a part.

    Every word of one of its groups has to be affirmed; the largest group wins, ties go by name.
    """
    found: list[tuple[int, str, Playbook, list[str]]] = []
    notes: list[str] = []
    unwanted: set[str] = set()
    left: dict[str, str] = {}
    for name, playbook in catalogue.playbooks.items():
        best: list[str] = []
        negated: list[str] = []
        for group in playbook.words:
            asked = keyword_forms(tuple(group))
            hits = matches(words, asked)
            if asked and len(hits) == len(asked):
                best = max(best, list(hits.values()), key=len)
            elif asked and (unsaid := matches(silenced, asked)) and len({*hits, *unsaid}) == len(asked):
                negated = list(unsaid.values())
        if not best and not negated:
            continue
        tasks = dict.fromkeys(str(step["task"]) for step in playbook.steps if "task" in step)
        if not best:
            unwanted.update(tasks)
            why = f"the goal negates {quoted(negated)}"
        elif without := _negated(tasks, silenced, catalogue):
            why = f"the goal negates {quoted(without)}"
            said = f"the goal says {quoted(best)} of playbook {name}, and negates {quoted(without)}"
            left |= dict.fromkeys(_left(tasks, playbook, silenced, catalogue), said)
        elif missing := [task for task in tasks if task not in directive.task_list and "${" not in task]:
            why = f"directive {directive.name} does not allow {', '.join(missing)}"
        else:
            found.append((-len(best), name, playbook, best))
            continue
        notes.append(f"playbook {name} is left out: {why}")
    if not found:
        return None, [], notes, unwanted, left
    _, _, chosen, by = min(found, key=lambda one: one[:2])
    return chosen, by, notes, unwanted, {}


def _negated(tasks: Iterable[str], silenced: list[str], catalogue: Catalogue) -> list[str]:
    """The words with which the goal excludes one of these tasks: it wants less than the whole playbook."""
    keywords = [word for name in tasks if (task := catalogue.task(name)) for word in task.keywords]
    return list(matches(silenced, keyword_forms(tuple(keywords))).values())


def _left(tasks: Iterable[str], playbook: Playbook, silenced: list[str], catalogue: Catalogue) -> list[str]:
    """Its tasks that the goal does not negate, where words may lead to them and would run them as the playbook does.

    None of a playbook that undoes what it does: half of it is not what anybody meant.
    """
    if any("compensation" in step for step in playbook.steps):
        return []
    bound = {str(step["task"]) for step in playbook.steps if "task" in step and not _stands_alone(step)}
    return [
        name
        for name in tasks
        if name not in bound
        and (task := catalogue.task(name))
        and task.keywords
        and not _negated([name], silenced, catalogue)
    ]


def _stands_alone(step: dict[str, Any]) -> bool:
    """Whether the step waits for nothing, asks nobody, and says nothing to its task but what the goal says to it."""
    inputs = step.get("inputs", {})
    told = inputs.values() if isinstance(inputs, dict) else [inputs]
    return step.keys() <= _PLAIN and all(isinstance(one, str) and one.startswith("${params.") for one in told)


def draft(
    playbook: Playbook,
    goal: Goal,
    catalogue: Catalogue,
    directive: Directive,
    hosts: list[str] | None,
    why: str,
    matched: list[str],
) -> Draft:
    """The playbook's steps with the goal's parameters.

    Where a parameter has no value that it could have, the steps are tried with one that it could have, so that all
    that is wrong is told at once; what then rests on that value is not told.
    """
    params, problems = resolve(playbook, goal.params or {})
    lacking = {name for name in params if any(problem.field == f"params.{name}" for problem in problems)}
    tried = {name: value for name, value in samples(playbook)[0].items() if name in lacking}
    steps, told = _steps(playbook, {**params, **tried}, catalogue, directive, matched)
    steps, elsewhere = _on_hosts(steps, hosts)
    return Draft(
        source="playbook",
        steps=steps,
        notes=[f"playbook {playbook.name} {playbook.version}: {why}"],
        problems=[*definition_problems(playbook), *problems, *told, *elsewhere],
        params=params,
        playbook=playbook.name,
        playbook_version=playbook.version,
        doubtful=lambda problem: rests_on(playbook, problem.field, lacking),
    )


def check_playbook(text: bytes, name: str, catalogue: Catalogue) -> list[Problem]:
    """Every reason why goals could not be planned with this playbook, whatever directive they are under."""
    playbook, problems = read_playbook(text, name)
    if any(problem.field == "toml" for problem in problems):
        return problems
    problems = [*problems, *unmeant(text, name)]
    if playbook is None:
        return problems
    values, made_up = samples(playbook)
    everything = Budgets(max_steps=PLAN_STEPS_MAX, time_budget_s=86_400, token_budget=1_000_000)
    directive = Directive(
        name="any", task_list=[task.name for task in catalogue.tasks], defaults=everything, maximum=everything
    )
    steps, told = _steps(playbook, values, catalogue, directive, [])
    tried = Draft(source="playbook", steps=steps)
    told = [*told, *check(tried, directive, everything, catalogue)]
    return [*problems, *(problem for problem in told if not rests_on(playbook, problem.field, made_up))]


def _steps(
    playbook: Playbook, params: dict[str, Any], catalogue: Catalogue, directive: Directive, matched: list[str]
) -> tuple[list[Step], list[Problem]]:
    made, problems = expand(playbook, params)
    return ordered([_step(one, playbook, catalogue, directive, matched) for one in made]), problems


def _step(
    one: PlaybookStep, playbook: Playbook, catalogue: Catalogue, directive: Directive, matched: list[str]
) -> Step:
    spec = (catalogue.task(one.task) if one.task else None) or _NO_TASK
    rest = one.retry
    backoff_s = spec.backoff_s if rest.backoff_s is None else rest.backoff_s
    most_s = max(backoff_s, Retry().backoff_s_max) if rest.backoff_s_max is None else rest.backoff_s_max
    is_task = one.kind == "task"
    said = {"condition": one.condition, "message": one.message, "severity": one.severity, "until": one.until}
    inputs = {**one.inputs, **{name: value for name, value in said.items() if value is not None}}
    if one.seconds is not None:
        inputs["seconds"] = one.seconds
    if one.hosts is not None:
        inputs["hosts"] = one.hosts
    return Step(
        id=one.id,
        why=one.why or f"a step of playbook {playbook.name}",
        kind=one.kind,
        task=one.task if is_task else None,
        inputs=inputs,
        needs=list(dict.fromkeys(one.needs)),
        when=one.when,
        matched=matched,
        host=one.host,
        approval=one.approval or is_gated(one.id, one.task, directive),
        timeout_s=one.timeout_s or spec.timeout_s,
        max_attempts=rest.max_attempts or spec.max_attempts,
        retry=Retry(backoff_s=min(backoff_s, most_s), backoff_s_max=most_s, errors=rest.errors) if is_task else Retry(),
        on_failure=one.on_failure or playbook.on_failure or directive.on_failure,
        compensation=one.compensation,
        uses_tokens=is_task and spec.uses_tokens,
    )


_NO_TASK = TaskSpec(name="none")  # its limits hold for the steps that no worker performs


def _on_hosts(steps: list[Step], hosts: list[str] | None) -> tuple[list[Step], list[Problem]]:
    placed = [on_hosts(step, hosts) for step in steps]
    return [step for step, _ in placed], [problem for _, told in placed for problem in told]


def ordered(steps: list[Step]) -> list[Step]:
    """Each step behind those that it needs, otherwise in the given order; steps that wait for each other come last."""
    left, done = list(steps), set[str]()
    known = {step.id for step in steps}
    found: list[Step] = []
    while left:
        step = next((one for one in left if not (set(one.needs) & known) - done), left[0])
        left.remove(step)
        found.append(step)
        done.add(step.id)
    return found

"""Goals and their plans: the golden table, and what every plan made from it holds."""

import json
import tomllib
from pathlib import Path
from typing import Any

import pytest

from services.planner.planning import TASKS_BY_WORDS_MAX
from services.planner.service import answer_to, rejected
from shared.catalogue import BUILT_IN
from shared.config import catalogue
from shared.events import PlanCreated
from shared.plan import BUDGET_LIMITS, Budgets, Directive, Goal, TaskSpec
from shared.subjects import is_step_id, is_token
from tests import controls

GOLDEN = tomllib.loads(Path(__file__).with_name("golden.toml").read_text())
MATCHED = [one for one in GOLDEN["words"] if "plan" in one]
NOT_RUN = [one for one in GOLDEN["words"] if "not_run" in one]
TIGHT = Directive(
    name="tight",
    task_list=["gpu_report", "log_triage"],
    defaults=Budgets(max_steps=3, time_budget_s=60, token_budget=100),
    maximum=Budgets(max_steps=3, time_budget_s=60, token_budget=100),
)
FIRST = BUILT_IN.tasks[0].name


def test_the_table_is_large_enough() -> None:
    assert len(GOLDEN["words"]) >= 80
    goals = [one["goal"] for one in GOLDEN["words"]]
    assert len(goals) == len(set(goals))


@pytest.mark.parametrize("case", MATCHED, ids=[one["goal"] for one in MATCHED])
def test_the_goals_words_lead_to_the_tasks(case: dict[str, Any]) -> None:
    made = controls.planned(case["goal"])
    if case["plan"]:
        assert {step.task: step.matched for step in made.steps} == case["plan"]
        assert [step.task for step in made.steps] == list(case["plan"])
        assert not any("nothing in the goal matched" in step.why for step in made.steps)
    else:
        assert [(step.task, step.matched) for step in made.steps] == [(FIRST, [])]
        assert "nothing in the goal matched" in made.steps[0].why
        assert any("nothing in the goal matched" in note for note in made.notes)


@pytest.mark.parametrize("case", NOT_RUN, ids=[one["goal"] for one in NOT_RUN])
def test_what_the_goal_negates_does_not_run_for_want_of_anything_else(case: dict[str, Any]) -> None:
    """The fallback is a guess at what was meant; the one task that was surely not meant is no guess."""
    answer = answer_to(json.dumps({"goal": case["goal"]}).encode(), BUILT_IN)
    if isinstance(answer, PlanCreated):
        assert not {step.task for step in answer.steps} & set(case["not_run"])


@pytest.mark.parametrize("case", GOLDEN["payload"], ids=[json.dumps(one["goal"]) for one in GOLDEN["payload"]])
def test_the_payload_leads_to_the_steps_or_to_the_fields_at_fault(case: dict[str, Any]) -> None:
    """All reasons are told at once; the first one stands in front."""
    answer = answer_to(json.dumps(case["goal"]).encode(), controls.catalogue(directives=[TIGHT]))
    if "steps" in case:
        assert isinstance(answer, PlanCreated), answer
        assert [step.id for step in answer.steps] == case["steps"]
    else:
        assert isinstance(answer, list)
        assert sorted({problem.field for problem in answer}) == sorted(case["fields"])
        said = rejected(answer)
        assert (said.reason, said.field) == (answer[0].reason, answer[0].field)
        assert len(said.problems) == len(answer)


def test_named_tasks_run_in_their_order_and_matched_ones_side_by_side() -> None:
    """`tasks` is a list to run in that order; words that led to tasks do not order them."""
    named = controls.planned(Goal(tasks=["noop", "fail", "noop"]))
    assert [step.needs for step in named.steps] == [[], ["noop"], ["fail"]]
    matched = controls.planned("logs, GPUs, services")
    assert [step.needs for step in matched.steps] == [[], [], []]


def test_at_most_five_tasks_come_of_words_and_the_plan_names_those_left_out() -> None:
    """Seven tasks match; the five with the highest scores are planned, ties in the catalogue's order."""
    words = "amber basil cedar dill elder fennel ginger".split()
    many = [TaskSpec(name=f"t_{word}", keywords=[word, f"{word}extra"]) for word in words]
    known = controls.catalogue(*many)
    made = controls.planned(Goal(goal=" ".join(words) + " gingerextra"), known)
    assert [step.task for step in made.steps] == ["t_ginger", "t_amber", "t_basil", "t_cedar", "t_dill"]
    assert TASKS_BY_WORDS_MAX == 5
    note = next(note for note in made.notes if "more than 5" in note)
    assert "t_elder" in note and "t_fennel" in note and "t_dill" not in note


def test_a_negated_task_is_named_in_the_notes() -> None:
    """Each choice is explained, the ones against a task, too."""
    made = controls.planned("check the logs but not the GPUs")
    assert any("gpu_report" in note and "'gpus'" in note for note in made.notes)


def test_the_star_is_replaced_by_the_tasks_of_the_day() -> None:
    """The snapshot governs the run, whatever is added to the catalogue later; what was named stays in front."""
    star = Directive(name="star", task_list=["noop", "*"])
    made = controls.planned(Goal(goal="logs", directive="star"), controls.catalogue(directives=[star]))
    assert made.directive.task_list == ["noop", *(task.name for task in BUILT_IN.tasks if task.name != "noop")]


def test_the_plan_carries_what_governs_the_run() -> None:
    made = controls.planned(Goal(goal="check logs", hosts=["tower"], params={"since_s": 60}, token_budget=5))
    assert made.budgets == Budgets(max_steps=10, time_budget_s=3600, token_budget=5)
    assert made.catalogue_version == BUILT_IN.version
    assert made.directive.name == "default"
    assert made.steps[0].inputs == {"since_s": 60, "hosts": ["tower"]}
    assert made.goal == "check logs"


def test_a_directives_default_never_exceeds_its_maximum() -> None:
    small = Directive(name="small", task_list=["*"], maximum=Budgets(max_steps=2, time_budget_s=5, token_budget=7))
    made = controls.planned(Goal(goal="logs", directive="small"), controls.catalogue(directives=[small]))
    assert made.budgets == Budgets(max_steps=2, time_budget_s=5, token_budget=7)


@pytest.mark.parametrize(
    "tasks",
    [["noop", "noop", "noop-2"], ["NOOP", "noop"], ["a" * 64, "a" * 64], ["a" * 61, "a" * 61, "a" * 62, "a" * 62]],
    ids=["a name that looks numbered", "case", "long", "long twins"],
)
def test_every_allowed_list_of_known_tasks_has_steps_with_ids_of_their_own(tasks: list[str]) -> None:
    """An id is Remit's own business: no choice of task names makes a goal unplannable."""
    known = controls.catalogue(*(TaskSpec(name=name) for name in dict.fromkeys(tasks) if name != "noop"))
    made = controls.planned(Goal(tasks=tasks), known)
    ids = [step.id for step in made.steps]
    assert len(set(ids)) == len(tasks)
    assert all(is_step_id(one) for one in ids)


SLIPS = {
    "task.odd": {"keywords": [""]},
    "task.odd-2": {"keywords": ["e", "y", "z", "log file", "ＧＰＵ", "🔥", "'", " "]},
    "task.odd.name": {"keywords": ["logs"]},
    "task.odd name>": {"keywords": ["logs"]},
    "task.": {"keywords": ["logs"]},
    "task." + "x" * 300: {"keywords": ["logs"]},
    "task.never": {"keywords": ["logs"], "max_attempts": 0},
    "task.at-once": {"keywords": ["logs"], "timeout_s": -1},
    "task.some-day": {"keywords": ["logs"], "timeout_s": 10**30},
}


@pytest.mark.parametrize("key", SLIPS, ids=lambda key: key[:20])
def test_an_odd_entry_of_the_configuration_takes_no_goal_with_it(key: str) -> None:
    """A task added with a slip is left out or harmless: "check logs" is planned, with steps that can be dispatched."""
    entry = json.dumps({"name": key.removeprefix("task."), **SLIPS[key]}).encode()
    made = controls.planned("check logs", catalogue({key: entry}))
    assert "log_triage" in [step.task for step in made.steps]
    for step in made.steps:
        assert is_token(step.task) and step.max_attempts >= 1 and 0 < step.timeout_s <= 86_400, step


@pytest.mark.parametrize(
    "entry",
    [
        {"max_concurrent_runs": 0},
        {"max_concurrent_runs": -1},
        {"defaults": {"time_budget_s": 10**18}, "maximum": {"time_budget_s": 10**18}},
        {"maximum": {"max_steps": 10_000}},
        {"defaults": {"token_budget": -5}},
    ],
    ids=json.dumps,
)
def test_an_odd_directive_gives_no_plan_beyond_the_outermost_limits(entry: dict[str, Any]) -> None:
    """Whatever a directive says: a plan's budgets are within the limits, and its run can be started."""
    known = catalogue({"directive.odd": json.dumps({"name": "odd", **entry}).encode()})
    answer = answer_to(b'{"goal":"check logs","directive":"odd"}', known)
    if isinstance(answer, PlanCreated):
        assert answer.directive.max_concurrent_runs >= 1
        for field, (least, most) in BUDGET_LIMITS.items():
            assert least <= getattr(answer.budgets, field) <= most, field

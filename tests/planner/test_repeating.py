"""A run again, whole or from a step on: what is reused, what is asked again, what is refused."""

import json
from typing import Any

import pytest
from msgspec.structs import replace

from services.planner.planning import plan as make_plan
from services.planner.service import answer_to
from shared.events import PlanCreated, RunCancelRequested, Unreadable, encode, read
from shared.plan import Budgets, Directive, Goal, Problem, Step
from shared.run import Run, StepState
from shared.subjects import goal_rejected, plan_created, run_cancel_requested, run_completed
from tests import controls
from tests.controls import Stream, step

TODAY = Directive(name="today", task_list=["*"])


def chain(*names: str, **changes: Any) -> list[Step]:
    """Steps one behind the other."""
    return [step(name, **changes, needs=[names[place - 1]] if place else []) for place, name in enumerate(names)]


def ended(
    *steps: Step, run: int = 42, undone: tuple[str, ...] = (), plan: dict[str, Any] | None = None, **states: str
) -> Run:
    """Run `run` of these steps, over: every step as `states` says (`succeeded` when it says nothing)."""
    made = controls.plan(*steps, **(plan or {}))
    found = {}
    for one in steps:
        status = states.get(one.id, "skipped" if one.id in made.compensations else "succeeded")
        status = "succeeded" if one.id in undone else status
        found[one.id] = StepState(
            status=status,  # type: ignore[arg-type]
            attempt=int(status in ("succeeded", "failed")),
            host="tower",
            outputs={"of": one.id},
            artifacts=[controls.artifact(f"{one.id}.md")] if status == "succeeded" else [],
        )
    return Run(id=run, submitted_ns=1, at_ns=9, status="failed", plan=made, steps=found, ended_ns=9)


def again(run: Run | None, *, today: Directive = TODAY, **goal: Any) -> PlanCreated | list[Problem]:
    asked = Goal(**{"retry_of": run.id if run else 42, "directive": today.name, **goal})
    return make_plan(asked, controls.catalogue(directives=[today]), run)


def planned(run: Run, **changes: Any) -> PlanCreated:
    answer = again(run, **changes)
    assert isinstance(answer, PlanCreated), answer
    return answer


def refused(run: Run | None, **changes: Any) -> list[str]:
    answer = again(run, **changes)
    assert isinstance(answer, list), answer
    assert all(problem.reason for problem in answer)
    return [problem.field for problem in answer]


# -- what is reused ----------------------------------------------------------------------------------------------

DIAMOND = [step("a"), step("b", needs=["a"]), step("c", needs=["a"]), step("d", needs=["b", "c"]), step("e")]
UNDO = [step("a", compensation="undo"), step("b", needs=["a"]), step("undo"), step("c", needs=["b"])]
ASKED = [step("a"), step("ask", kind="approval", needs=["a"]), step("b", needs=["ask"]), step("c", needs=["b"])]
SHAPES: dict[str, tuple[list[Step], dict[str, str], str | None, set[str]]] = {
    "the whole again": (chain("a", "b", "c"), {"c": "failed"}, None, set()),
    "from the step that failed": (chain("a", "b", "c"), {"c": "failed"}, "c", {"a", "b"}),
    "from one before it": (chain("a", "b", "c"), {"c": "failed"}, "b", {"a"}),
    "from the first": (chain("a", "b", "c"), {"c": "failed"}, "a", set()),
    "of a run that succeeded": (chain("a", "b", "c"), {}, "c", {"a", "b"}),
    "branches that do not depend on it stay": (DIAMOND, {"d": "failed"}, "b", {"a", "c", "e"}),
    "what failed besides is done again": (DIAMOND, {"c": "failed", "d": "skipped"}, "d", {"a", "b", "e"}),
    "and so is what was made of a failure": (DIAMOND, {"a": "failed"}, "d", {"e"}),
    "cancelled and skipped ones are done again": (DIAMOND, {"e": "cancelled", "c": "skipped"}, "d", {"a", "b"}),
    "what undoes others is not reused": (UNDO, {"c": "failed"}, "c", {"a", "b"}),
    "an approval is asked again for what is done again": (ASKED, {"c": "failed"}, "c", {"a", "b"}),
    "and for what stood right behind it": (ASKED, {"b": "failed", "c": "skipped"}, "b", {"a"}),
    "from the approval itself": (ASKED, {"ask": "cancelled"}, "ask", {"a"}),
    "an approval hides nothing that is done again": (ASKED, {"c": "failed"}, "a", set()),
    "an approval behind which nothing is left": ([*ASKED, step("z", needs=["a"])], {"z": "failed"}, "z",
                                                 {"a", "ask", "b", "c"}),
}  # fmt: skip


@pytest.mark.parametrize("name", SHAPES)
def test_a_step_is_reused_when_its_result_still_stands(name: str) -> None:
    steps, states, from_step, reused = SHAPES[name]
    made = planned(ended(*steps, **states), from_step=from_step)
    assert set(made.reused) == reused
    assert [one.id for one in made.steps] == [one.id for one in steps]
    assert made.retry_of == 42 and made.from_step == from_step
    event = read(plan_created(43), 44, 1, encode(made))
    assert event.body == made
    assert controls.outsiders_hash(encode(made)) == made.plan_hash


def test_what_a_rollback_has_undone_is_done_again() -> None:
    rolled_back = ended(*UNDO, undone=("undo",), c="failed")
    assert set(planned(rolled_back, from_step="c").reused) == set()


def test_results_come_along_and_say_where_their_bytes_are() -> None:
    made = planned(ended(*chain("a", "b"), b="failed"), from_step="b")
    left = made.reused["a"]
    assert left.outputs == {"of": "a"} and left.host == "tower"
    assert left.artifacts == [replace(controls.artifact("a.md"), from_run=42)]


def test_a_repeat_of_a_repeat_points_at_the_first() -> None:
    first = planned(ended(*chain("a", "b", "c"), b="failed", c="skipped"), from_step="b")
    stream = Stream()
    run = stream.planned(first)
    second = replace(stream.fold(run), status="failed")
    assert second.steps["a"].reused_from == 42
    made = planned(replace(second, steps={**second.steps, "b": ended(*chain("a", "b", "c")).steps["b"]}), from_step="c")
    assert [one.from_run for one in made.reused["a"].artifacts] == [42]
    assert [one.from_run for one in made.reused["b"].artifacts] == [run]
    assert made.retry_of == run


def test_whoever_stood_behind_an_approval_waits_for_the_new_answer() -> None:
    """`c` needs `b`, whose result is kept: without a need of its own it would run before anybody has answered."""
    made = planned(ended(*ASKED, c="failed"), from_step="c")
    assert made.by_id["c"].needs == ["b", "ask"]
    assert made.by_id["b"].needs == ["ask"]
    assert planned(ended(*ASKED, c="failed")).by_id["c"].needs == ["b"]


# -- what governs it ---------------------------------------------------------------------------------------------


def test_the_steps_and_parameters_are_the_old_ones() -> None:
    old = ended(
        *chain("a", "b", inputs={"x": 1}, timeout_s=7), b="failed",
        plan={"params": {"x": 1}, "goal": "do it", "tasks": None, "playbook": "gone", "playbook_version": "0" * 12,
              "hosts": ["tower"]},
    )  # fmt: skip
    made = planned(old, from_step="b")
    assert old.plan is not None and made.steps == old.plan.steps
    assert (made.params, made.goal, made.hosts) == ({"x": 1}, "do it", ["tower"])
    assert (made.playbook, made.playbook_version) == ("gone", "0" * 12)
    assert any("run 42 again from step b; reused: a" in note for note in made.notes)


def test_the_directive_is_that_of_today() -> None:
    today = replace(TODAY, max_parallel_steps=2, approval_required=["b"], approvers=["ann"])
    made = planned(ended(*chain("a", "b"), b="failed"), today=today, from_step="b")
    assert made.directive.approvers == ["ann"] and made.directive.max_parallel_steps == 2
    assert [one.approval for one in made.steps] == [False, True]


def test_without_one_it_is_the_old_one_by_name_as_it_is_now() -> None:
    old = ended(*chain("a"), plan={"directive": Directive(name="today", max_parallel_steps=1)})
    made = make_plan(Goal(retry_of=42), controls.catalogue(directives=[TODAY]), old)
    assert isinstance(made, PlanCreated) and made.directive.max_parallel_steps == 100
    assert [one.field for one in make_plan(Goal(retry_of=42), controls.catalogue(), old)] == ["directive"]  # type: ignore[union-attr]


@pytest.mark.parametrize("playbook,asked", [(None, False), ("p", True)])
def test_a_playbooks_own_gate_stays_and_a_directives_is_that_of_today(playbook: str | None, asked: bool) -> None:
    old = ended(*chain("a", approval=True), plan={"playbook": playbook})
    assert planned(old).steps[0].approval is asked


@pytest.mark.parametrize(
    "goal,budgets",
    [
        ({}, Budgets(max_steps=5, time_budget_s=50, token_budget=500)),
        ({"max_steps": 7}, Budgets(max_steps=7, time_budget_s=50, token_budget=500)),
        ({"token_budget": 0}, Budgets(max_steps=5, time_budget_s=50, token_budget=0)),
    ],
)
def test_budgets_are_the_goals_or_the_old_ones_within_what_is_allowed_today(
    goal: dict[str, Any], budgets: Budgets
) -> None:
    today = replace(TODAY, maximum=Budgets(max_steps=8, time_budget_s=50, token_budget=900))
    old = ended(*chain("a"), plan={"budgets": Budgets(max_steps=5, time_budget_s=5000, token_budget=500)})
    assert planned(old, today=today, **goal).budgets == budgets
    assert refused(old, today=today, max_steps=9) == ["max_steps"]


def test_only_what_is_done_again_counts() -> None:
    """Against the steps, the waits and the tasks that are allowed."""
    wait = step("b", kind="wait", inputs={"seconds": 100}, needs=["a"])
    old = ended(step("a"), wait, step("c", task="fail", needs=["b"]), c="failed")
    assert set(planned(old, from_step="c", max_steps=1, time_budget_s=50).reused) == {"a", "b"}
    assert refused(old, from_step="b", time_budget_s=50) == ["steps.b.seconds"]
    only_fail = replace(TODAY, task_list=["fail"])
    assert planned(old, from_step="c", today=only_fail)
    assert refused(old, from_step="a", today=only_fail) == ["retry_of"]


def test_hosts_that_are_not_allowed_any_more_are_refused() -> None:
    fenced = replace(TODAY, hosts=["mini"])
    assert refused(ended(*chain("a", inputs={"hosts": ["tower", "mini"]})), today=fenced) == ["retry_of"]
    assert refused(ended(step("a", host="tower")), today=fenced) == ["retry_of"]
    made = planned(ended(*chain("a")), today=fenced)
    assert made.steps[0].inputs == {"hosts": ["mini"]} and made.hosts == ["mini"]


# -- what is refused ---------------------------------------------------------------------------------------------


def test_a_run_that_is_not_there() -> None:
    assert refused(None) == ["retry_of"]


def test_a_run_that_is_not_over() -> None:
    stream = Stream()
    run = stream.planned()
    assert refused(stream.fold(run)) == ["retry_of"]
    stream.say(run_cancel_requested(run), RunCancelRequested())
    assert refused(stream.fold(run)) == ["retry_of"]
    stream.say(run_completed(run), controls.run_over(status="cancelled"))
    assert isinstance(again(stream.fold(run)), PlanCreated)


def test_a_run_that_had_no_plan() -> None:
    stream = Stream()
    run = stream.goal()
    assert refused(stream.fold(run)) == ["retry_of"]
    stream.say(goal_rejected(run), controls.goal_rejected_body())
    assert refused(stream.fold(run)) == ["retry_of"]


@pytest.mark.parametrize("name", ["nope", "undo"])
def test_a_step_that_no_run_can_begin_with(name: str) -> None:
    assert refused(ended(*UNDO), from_step=name) == ["from_step"]


def test_all_reasons_are_told_at_once() -> None:
    old = replace(ended(*chain("a")), status="running")
    assert refused(old, from_step="x", params={"y": 1}, hosts=["mini"]) == ["retry_of", "from_step", "params", "hosts"]


def test_a_task_that_is_not_there_any_more() -> None:
    assert refused(ended(step("a", task="gone")), today=replace(TODAY, task_list=["gone"])) == ["retry_of"]


def test_results_that_no_message_can_hold() -> None:
    old = ended(*chain("a", "b"), b="failed")
    old = replace(old, steps={**old.steps, "a": replace(old.steps["a"], outputs={"x": "y" * 600_000})})
    assert refused(old, from_step="b") == ["retry_of"]
    assert planned(old)


@pytest.mark.parametrize(
    "goal,field",
    [
        ({"retry_of": 0}, "retry_of"),
        ({"retry_of": -1}, "retry_of"),
        ({"retry_of": 1 << 62}, "retry_of"),
        ({"retry_of": "42"}, "retry_of"),
        ({"retry_of": 42, "tasks": ["noop"]}, "retry_of"),
        ({"retry_of": 42, "playbook": "fleet_health"}, "retry_of"),
        ({"retry_of": 42, "from_step": "A"}, "from_step"),
        ({"goal": "logs", "from_step": "a"}, "from_step"),
    ],
)
def test_a_goal_that_cannot_mean_a_repeat(goal: dict[str, Any], field: str) -> None:
    answer = answer_to(json.dumps(goal).encode(), controls.catalogue())
    assert isinstance(answer, list) and field in [problem.field for problem in answer]


def test_the_new_plan_begins_with_what_is_reused_done() -> None:
    """The fold takes the results for the steps' own."""
    stream = Stream()
    run = stream.planned(planned(ended(*chain("a", "b"), b="failed"), from_step="b"))
    state = stream.fold(run).steps
    assert (state["a"].status, state["a"].outputs, state["b"].status) == ("succeeded", {"of": "a"}, "pending")
    assert not isinstance(stream.event(run + 1).body, Unreadable)

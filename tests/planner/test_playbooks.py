"""Playbooks: how one is chosen, what its parameters take, what its steps become, and what is told of a broken one."""

import json
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from services.planner.planning import plan as make_plan
from services.planner.playbooks import check_playbook
from services.planner.service import answer_to
from shared.catalogue import BUILT_IN, Catalogue, playbook_texts
from shared.conditions import evaluate
from shared.config import catalogue
from shared.events import PlanCreated, Unreadable, encode, read
from shared.plan import Directive, Goal, Retry, TaskSpec
from shared.playbook import Playbook, read_playbook
from shared.subjects import plan_created
from tests import controls

ROOT = Path(__file__).resolve().parents[2]
DOCS = (ROOT / "docs" / "playbooks.md").read_text()
DEPLOYING = re.search(r"```toml\n(.*?)```", DOCS, re.S).group(1)  # type: ignore[union-attr]
OWN = [TaskSpec(name=name) for name in ("build", "deploy", "undeploy", "check_deployed")]


def known(toml: str, name: str = "p", *, directives: list[Directive] | None = None) -> Catalogue:
    """A catalogue with this playbook beside the built-in one, and the tasks of the documentation's example."""
    made = controls.catalogue(*OWN, directives=directives)
    playbook, problems = read_playbook(toml.encode(), name)
    assert playbook is not None and not problems, problems
    return Catalogue(made.tasks, made.directives, {**BUILT_IN.playbooks, name: playbook})


def steps(*lines: str, before: str = "") -> str:
    return before + "\n" + "\n".join(f"[[steps]]\n{line}" for line in lines)


def fields(answer: PlanCreated | list[Any]) -> list[str]:
    assert isinstance(answer, list), answer
    return [problem.field for problem in answer]


# -- chosen ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "words",
    ["check the fleet's health", "fleet health", "Run a FLEET HEALTH check, please", "do not forget the fleet's health",
     "health checks of the fleet", "the health of our fleets", "fleet health of the GPUs"],
)  # fmt: skip
def test_words_lead_to_a_playbook(words: str) -> None:
    made = controls.planned(words)
    assert made.playbook == "fleet_health"
    assert made.playbook_version == BUILT_IN.playbooks["fleet_health"].version
    assert made.notes[0].startswith("playbook fleet_health") and "the goal says" in made.notes[0]
    assert made.steps[0].matched


@pytest.mark.parametrize(
    "words,note",
    [
        ("check the fleet", ""),
        ("health", ""),
        ("health check", ""),
        ("map the services, no fleet health check", "negates 'fleet', 'health'"),
        ("fleet health, but not the GPUs", "negates 'gpus'"),
        ("fleetwide healthy", ""),
    ],
)
def test_other_words_do_not(words: str, note: str) -> None:
    """Every word of a group has to be affirmed, and nothing runs that the goal negates."""
    made = controls.planned(words)
    assert made.playbook is None
    assert "gpu_report" not in [step.task for step in made.steps] or "GPU" not in words
    assert any(note in one for one in made.notes) or not note


def test_a_negated_playbook_is_not_run_for_want_of_anything_else() -> None:
    assert controls.problems(Goal(goal="no fleet health check"))[0].field == "goal"


@pytest.mark.parametrize(
    "words,tasks",
    [
        ("fleet health without GPU", ["log_triage", "service_map"]),
        ("fleet health without logs and services", ["gpu_report"]),
        ("GPU memory and fleet health without logs", ["gpu_report", "service_map"]),
    ],
)
def test_what_the_goal_leaves_of_a_playbook_runs(words: str, tasks: list[str]) -> None:
    """As tasks of their own: what needs the step that is left out could not be decided."""
    made = controls.planned(words)
    assert made.playbook is None
    assert [step.task for step in made.steps] == tasks
    assert not any("nothing in the goal matched" in step.why for step in made.steps)
    assert made.steps[-1].why.startswith("the goal says 'fleet', 'health' of playbook fleet_health")


@pytest.mark.parametrize(
    "line",
    [
        "approval = true",
        'needs = ["first"]',
        'host = "tower"',
        'inputs = { hosts = ["tower"] }',
        'compensation = "undo"',
    ],
)
def test_what_is_left_of_a_playbook_does_not_run_where_it_would_be_something_else(line: str) -> None:
    """Words start a task with no approval before it, with no inputs, and with nothing to undo it."""
    toml = steps(
        'id = "first"\ntask = "log_triage"', f'id = "then"\ntask = "gpu_report"\n{line}', 'id = "undo"\ntask = "noop"',
        before='words = [["spring", "cleaning"]]',
    )  # fmt: skip
    made = controls.planned("network and spring cleaning without logs", known(toml))
    assert "gpu_report" not in [step.task for step in made.steps]


def test_a_directive_that_does_not_allow_all_of_it_gets_tasks_by_words() -> None:
    made = controls.planned(Goal(goal="fleet health of the GPUs", directive="D2"))
    assert [step.task for step in made.steps] == ["gpu_report"]
    assert any("does not allow log_triage, service_map" in note for note in made.notes)


def test_the_largest_group_wins_and_then_the_name() -> None:
    one = steps('id = "a"\ntask = "noop"', before='words = [["spring", "cleaning"]]')
    two = steps('id = "b"\ntask = "noop"', before='words = [["spring"], ["cleaning", "day", "spring"]]')
    made = known(one, "zeta")
    made.playbooks["alpha"] = known(two, "alpha").playbooks["alpha"]
    made.playbooks["beta"] = known(one, "beta").playbooks["beta"]
    assert controls.planned("spring cleaning day", made).playbook == "alpha"
    assert controls.planned("spring cleaning", made).playbook == "beta"


def test_a_named_one_is_run_whatever_the_words_say() -> None:
    made = controls.planned(Goal(goal="map the services", playbook="fleet_health"))
    assert made.playbook == "fleet_health" and made.goal == "map the services"
    assert "named in the goal" in made.notes[0]


def test_an_unknown_one_is_refused_and_the_known_ones_are_named() -> None:
    (problem,) = controls.problems(Goal(playbook="nope"))
    assert problem.field == "playbook" and "fleet_health" in problem.reason


def test_a_named_one_that_is_not_allowed_is_refused() -> None:
    told = controls.problems(Goal(playbook="fleet_health", directive="D1"))
    assert fields(told) == ["playbook", "playbook"]
    assert "'gpu_report'" in told[0].reason and "'service_map'" in told[1].reason


# -- fleet_health ------------------------------------------------------------------------------------------------


def test_fleet_health_looks_three_ways_at_once_and_then_decides() -> None:
    made = controls.planned(Goal(playbook="fleet_health", params={"window_s": 60}))
    assert [(step.id, step.kind, step.needs) for step in made.steps] == [
        ("log_triage", "task", []),
        ("gpu_report", "task", []),
        ("service_map", "task", []),
        ("critical", "decision", ["log_triage", "gpu_report", "service_map"]),
        ("notify", "notify", ["critical"]),
    ]
    assert {step.on_failure for step in made.steps[:3]} == {"continue"}
    assert made.steps[0].inputs == {}  # what was not given is left out
    assert made.steps[1].inputs == {"window_s": 60}
    assert made.steps[0].uses_tokens and made.steps[0].timeout_s == 900
    assert made.params["max_lines"] is None and made.params["hotspots_are_critical"] is True


@pytest.mark.parametrize(
    "logs,gpus,params,critical",
    [
        ({"critical": 1}, {"hotspots": []}, {}, True),
        ({"critical": 0}, {"hotspots": ["hot"]}, {}, True),
        ({"critical": 0}, {"hotspots": ["hot"]}, {"hotspots_are_critical": False}, False),
        ({"critical": 0}, {"hotspots": []}, {}, False),
        ({}, {}, {}, False),
        ({}, {"hotspots": ["hot"]}, {}, True),
        ({"critical": 3}, {}, {}, True),
    ],
)
def test_its_decision_can_be_made_whatever_the_steps_have_left(
    logs: dict[str, Any], gpus: dict[str, Any], params: dict[str, Any], critical: bool
) -> None:
    """Also when one has failed and left nothing."""
    made = controls.planned(Goal(playbook="fleet_health", params=params))
    left = {"log_triage": logs, "gpu_report": gpus, "service_map": {}}
    context = {"params": made.params, "steps": {name: {"status": "x", "outputs": out} for name, out in left.items()}}
    assert evaluate(made.by_id["critical"].inputs["condition"], context) is critical


# -- parameters --------------------------------------------------------------------------------------------------

PARAMS = """
[params.text]
required = true
min = 2
max = 4
[params.count]
type = "integer"
default = 3
min = 1
max = 9
[params.share]
type = "number"
[params.really]
type = "boolean"
default = false
[params.names]
type = "list"
choices = ["a", "b", 1]
max = 2
[params.size]
choices = ["small", "large"]
default = "small"
"""
USED = 'inputs = { text = "${params.text}", count = "${params.count}", share = "${params.share}", ' \
    'really = "${ params.really }", names = "${params.names}", ' \
    'told = "${params.text}:${params.really}/${params.share}"}'  # fmt: skip


@pytest.mark.parametrize(
    "given,problems",
    [
        ({}, ["text"]),
        ({"text": None}, ["text"]),
        ({"text": "x"}, ["text"]),
        ({"text": "xxxxx"}, ["text"]),
        ({"text": 12}, ["text"]),
        ({"text": "ok"}, []),
        ({"text": "ok", "count": 3.0}, ["count"]),
        ({"text": "ok", "count": True}, ["count"]),
        ({"text": "ok", "count": 0}, ["count"]),
        ({"text": "ok", "count": 10}, ["count"]),
        ({"text": "ok", "count": None}, []),
        ({"text": "ok", "share": 1}, []),
        ({"text": "ok", "share": "1"}, ["share"]),
        ({"text": "ok", "really": 1}, ["really"]),
        ({"text": "ok", "names": []}, []),
        ({"text": "ok", "names": ["a", 1]}, []),
        ({"text": "ok", "names": ["a", True]}, ["names"]),
        ({"text": "ok", "names": ["c"]}, ["names"]),
        ({"text": "ok", "names": ["a", "a", "a"]}, ["names"]),
        ({"text": "ok", "names": "a"}, ["names"]),
        ({"text": "ok", "size": "huge"}, ["size"]),
        ({"text": "ok", "no": 1, "nor": 2}, ["no", "nor"]),
        ({"count": 0, "share": "x", "really": "y", "names": 7, "size": "z", "no": 1}, ["no", "text", "count", "share",
                                                                                         "really", "names", "size"]),
    ],
    ids=json.dumps,
)  # fmt: skip
def test_parameters_are_checked_against_their_types_and_limits(given: dict[str, Any], problems: list[str]) -> None:
    """All at once, each by its field."""
    answer = make_plan(
        Goal(playbook="p", params=given), known(steps(f'id = "a"\ntask = "noop"\n{USED}', before=PARAMS))
    )
    if problems:
        assert fields(answer) == [f"params.{name}" for name in problems]
    else:
        assert isinstance(answer, PlanCreated)


def test_a_whole_placeholder_takes_the_value_with_its_type_and_another_its_text() -> None:
    toml = steps(f'id = "a"\ntask = "noop"\n{USED}', before=PARAMS)
    made = controls.planned(Goal(playbook="p", params={"text": "ok", "names": ["b"]}), known(toml))
    assert made.steps[0].inputs == {"text": "ok", "count": 3, "really": False, "names": ["b"], "told": "ok:false/"}
    assert made.params == {"text": "ok", "count": 3, "share": None, "really": False, "names": ["b"], "size": "small"}


def test_no_parameter_is_read_as_an_expression() -> None:
    """Neither as a placeholder of its own nor in a message that is filled in later."""
    toml = steps(
        'id = "a"\ntask = "noop"\ninputs = { x = "${params.x} and more" }',
        'id = "b"\nkind = "notify"\nneeds = ["a"]\nmessage = "it is ${params.x}"',
        before="[params.x]",
    )
    made = controls.planned(Goal(playbook="p", params={"x": "${params.x}${steps.a.status}"}), known(toml))
    assert made.steps[0].inputs == {"x": "${params.x}${steps.a.status} and more"}
    assert made.steps[1].inputs == {"message": "it is ${params.x}"}


# -- steps -------------------------------------------------------------------------------------------------------


def test_the_documentations_example_is_planned() -> None:
    made = controls.planned(Goal(playbook="p", params={"version": "1.4"}), known(DEPLOYING))
    by_id = made.by_id
    assert [step.id for step in made.steps] == ["build", "agreed", "deploy", "watch", "verify", "tell", "undeploy"]
    assert by_id["agreed"].kind == "approval" and by_id["agreed"].inputs == {"message": "roll 1.4 out to staging?"}
    assert by_id["watch"].inputs == {"seconds": 600}
    assert by_id["build"].retry == Retry(backoff_s=30) and by_id["build"].max_attempts == 2
    assert by_id["deploy"].retry == Retry(backoff_s=10, backoff_s_max=60, errors=["unavailable", "timeout"])
    assert (by_id["deploy"].compensation, by_id["deploy"].on_failure, by_id["deploy"].timeout_s) == (
        "undeploy", "rollback", 900,
    )  # fmt: skip
    assert made.compensations == {"undeploy"}
    assert by_id["verify"].retry == Retry(backoff_s=1)
    assert check_playbook(DEPLOYING.encode(), "p", known(DEPLOYING)) == []


def test_its_words_lead_to_it_and_what_it_needs_is_asked_for() -> None:
    assert fields(make_plan(Goal(goal="roll it out"), known(DEPLOYING))) == ["params.version"]


def test_needs_may_name_later_steps_and_the_plan_has_them_before() -> None:
    toml = steps(
        'id = "e"\ntask = "noop"\nneeds = ["c", "d"]', 'id = "a"\ntask = "noop"',
        'id = "d"\ntask = "noop"\nneeds = ["b"]', 'id = "c"\ntask = "noop"', 'id = "b"\ntask = "noop"\nneeds = ["a"]',
    )  # fmt: skip
    made = controls.planned(Goal(playbook="p"), known(toml))
    assert [step.id for step in made.steps] == ["a", "c", "b", "d", "e"]


@pytest.mark.parametrize(
    "step,playbook,directive,wanted",
    [
        ("rollback", "continue", "stop", "rollback"),
        ("", "continue", "stop", "continue"),
        ("", "", "rollback", "rollback"),
    ],
)
def test_on_failure_is_the_steps_or_the_playbooks_or_the_directives(
    step: str, playbook: str, directive: str, wanted: str
) -> None:
    says = 'on_failure = "{}"'
    toml = steps('id = "a"\ntask = "noop"\n' + (says.format(step) if step else ""),
                 before=says.format(playbook) if playbook else "")  # fmt: skip
    under = Directive(name="d", on_failure=directive)  # type: ignore[arg-type]
    made = controls.planned(Goal(playbook="p", directive="d"), known(toml, directives=[under]))
    assert made.steps[0].on_failure == wanted


@pytest.mark.parametrize("required,asked", [(["noop"], ["a", "c"]), (["b"], ["b", "c"]), (False, ["c"]), (True, ["c"])])
def test_approvals_are_the_directives_and_the_playbooks_own(required: Any, asked: list[str]) -> None:
    toml = steps('id = "a"\ntask = "noop"', 'id = "b"\ntask = "fail"', 'id = "c"\ntask = "fail"\napproval = true')
    under = Directive(name="d", approval_required=required)
    made = controls.planned(Goal(playbook="p", directive="d"), known(toml, directives=[under]))
    assert [step.id for step in made.steps if step.approval] == asked
    assert made.is_gated == (required is True)


# -- hosts -------------------------------------------------------------------------------------------------------

PLACED = steps('id = "a"\ntask = "noop"\nhost = "tower"', 'id = "b"\ntask = "noop"\nhosts = ["tower", "mini"]',
               'id = "c"\ntask = "noop"')  # fmt: skip
FENCED = Directive(name="fenced", hosts=["tower", "mini"])
ONLY = Directive(name="only", hosts=["mini"])


def test_hosts_are_put_into_the_inputs_of_tasks() -> None:
    made = controls.planned(Goal(playbook="p", hosts=["tower"]), known(PLACED))
    assert [step.inputs.get("hosts") for step in made.steps] == [["tower"], ["tower"], ["tower"]]
    assert made.steps[0].host == "tower"
    free = controls.planned(Goal(playbook="p"), known(PLACED))
    assert [step.inputs.get("hosts") for step in free.steps] == [None, ["tower", "mini"], None]


@pytest.mark.parametrize("goal", [Goal(playbook="p"), Goal(tasks=["noop"]), Goal(goal="check logs")])
def test_a_directives_hosts_are_the_only_ones(goal: Goal) -> None:
    here = known(PLACED, directives=[FENCED, ONLY])
    made = controls.planned(replace(goal, directive="fenced"), here)
    assert made.hosts == ["tower", "mini"]
    assert all(step.inputs["hosts"] == ["tower", "mini"] for step in made.steps)
    assert fields(make_plan(replace(goal, directive="fenced", hosts=["tower", "other"]), here)) == ["hosts"]
    fewer = controls.planned(replace(goal, directive="fenced", hosts=["tower"]), here)
    assert all(step.inputs["hosts"] == ["tower"] for step in fewer.steps)


def test_a_step_that_is_for_other_hosts_is_refused() -> None:
    told = make_plan(Goal(playbook="p", directive="only"), known(PLACED, directives=[ONLY]))
    assert fields(told) == ["hosts"]
    elsewhere = make_plan(Goal(playbook="p", hosts=["far"]), known(PLACED))
    assert fields(elsewhere) == ["hosts", "hosts"]


# -- broken ones -------------------------------------------------------------------------------------------------

NOOP = 'id = "a"\ntask = "noop"'
BROKEN: dict[str, tuple[str, list[str]]] = {
    "no TOML": ("steps = [", ["toml"]),
    "empty": ("", ["steps"]),
    "steps that are no tables": ("steps = [1]", ["steps[0]"]),
    "a step without an id": (steps('task = "noop"'), ["steps.1.id"]),
    "wrong types": (
        steps('id = "a"\ntask = 1\nneeds = "b"\ntimeout_s = 0\napproval = "yes"\nretry = { max_attempts = 0 }'),
        ["steps.a.task", "steps.a.needs", "steps.a.approval", "steps.a.timeout_s", "steps.a.retry.max_attempts"],
    ),
    "names": (
        steps('id = "A"\ntask = "a b"\nhost = "x.y"', 'id = "run"\ntask = "noop"'),
        ["steps.A.id", "steps.A.task", "steps.A.host", "steps.run.id"],
    ),
    "an id twice": (steps(NOOP, NOOP), ["steps.a.id"]),
    "an unknown kind": (steps('id = "a"\nkind = "shell"'), ["steps.a.kind", "steps.a.task"]),
    "unknown tasks": (steps('id = "a"\ntask = "nope"', 'id = "b"\ntask = "nor"'), ["steps.a.task", "steps.b.task"]),
    "unknown fields": (
        steps(NOOP + '\non_failur = "stop"\nretry = { tries = 3 }', before="color = 1\n[params.x]\nkind = 1"),
        ["color", "params.x.kind", "steps.a.on_failur", "steps.a.retry.tries"],
    ),
    "fields of other kinds": (
        steps(NOOP + "\nseconds = 1\ncondition = 'true'", 'id = "b"\nkind = "wait"\nseconds = 1\ntask = "noop"\n'
              'host = "x"\ncompensation = "a"'),
        ["steps.a.condition", "steps.a.seconds", "steps.b.task", "steps.b.host", "steps.b.compensation"],
    ),
    "what is missing": (
        steps('id = "a"', 'id = "b"\nkind = "decision"', 'id = "c"\nkind = "wait"', 'id = "d"\nkind = "notify"'),
        ["steps.a.task", "steps.b.condition", "steps.c.seconds", "steps.d.message"],
    ),
    "waits": (
        steps('id = "a"\nkind = "wait"\nseconds = -1',
              'id = "b"\nkind = "wait"\nseconds = 1\nuntil = "2030-01-01T00:00:00Z"',
              'id = "c"\nkind = "wait"\nuntil = "tomorrow"', 'id = "d"\nkind = "wait"\nseconds = 86400'),
        ["steps.a.seconds", "steps.b.until", "steps.c.until", "steps.d.seconds"],
    ),
    "a circle, and what hangs on it": (
        steps('id = "a"\ntask = "noop"\nneeds = ["b"]', 'id = "b"\ntask = "noop"\nneeds = ["a"]',
              'id = "c"\ntask = "noop"\nneeds = ["c"]', 'id = "d"\ntask = "noop"\nneeds = ["b"]'),
        ["steps", "steps.d.needs"],
    ),
    "needs that are no steps": (
        steps('id = "a"\ntask = "noop"\nneeds = ["x", "y"]'), ["steps.a.needs", "steps.a.needs"],
    ),
    "compensations": (
        steps('id = "a"\ntask = "noop"\ncompensation = "x"', 'id = "b"\ntask = "noop"\ncompensation = "b"',
              'id = "c"\ntask = "noop"\ncompensation = "w"', 'id = "w"\nkind = "wait"\nseconds = 1',
              'id = "d"\ntask = "noop"\ncompensation = "e"', 'id = "e"\ntask = "noop"\nneeds = ["a"]',
              'id = "f"\ntask = "noop"\ncompensation = "g"', 'id = "g"\ntask = "noop"\ncompensation = "h"',
              'id = "h"\ntask = "noop"', 'id = "i"\ntask = "noop"\nneeds = ["h"]'),
        ["steps.i.needs", "steps.a.compensation", "steps.b.compensation", "steps.c.compensation",
         "steps.d.compensation", "steps.f.compensation"],
    ),
    "conditions": (
        steps(NOOP + '\nwhen = "1 +"', 'id = "b"\nkind = "decision"\ncondition = "steps.a.status == \'failed\'"',
              'id = "c"\ntask = "noop"\nneeds = ["b"]\nwhen = "steps.nope.status == \'x\' || decisions.b"',
              'id = "d"\nkind = "notify"\nneeds = ["a"]\nmessage = "${decisions.a} ${steps.c.status} ${size(}"'),
        ["steps.a.when", "steps.b.condition", "steps.c.when", "steps.d.message", "steps.d.message", "steps.d.message"],
    ),
    "parameters that are not there": (
        steps(NOOP + '\ninputs = { x = "${params.y}", z = ["${params.z} ${params.w}"] }\nwhen = "params.v > 1"',
              'id = "b"\nkind = "notify"\nmessage = "${params.u}"'),
        ["steps.a.inputs", "steps.a.inputs", "steps.a.inputs", "steps.a.when", "steps.b.message"],
    ),
    "placeholders where none can be": (
        steps(NOOP + '\nwhen = "${params.x} > 1"\ninputs = { y = "${steps.a.outputs.y}", x = "${params[0]}" }',
              before="[params.x]\ntype = 'integer'\nrequired = true"),
        ["steps.a.when", "steps.a.inputs", "steps.a.inputs", "steps.a.when"],
    ),
    "definitions of parameters": (
        steps(NOOP, before="""
[params.Big]
[params.a]
type = "text"
[params.b]
type = "integer"
default = "x"
[params.c]
type = "integer"
min = 3
max = 2
[params.d]
type = "boolean"
min = 1
[params.e]
required = true
default = "x"
[params.f]
choices = []
[params.g]
type = "integer"
choices = [1, "x"]
[params.h]
choices = ["x"]
default = "y"
"""),
        ["params.a.type", "params.Big", "params.b.default", "params.c", "params.d", "params.e.default",
         "params.f.choices", "params.g.choices", "params.h.default"],
    ),
    "words": (steps(NOOP, before='words = [[], ["two words"], ["a", ""]]'), ["words[0]", "words[1]", "words[2]"]),
    "back-off": (steps(NOOP + "\nretry = { backoff_s = 9, backoff_s_max = 3 }"), ["steps.a.retry"]),
    "another name": (steps(NOOP, before='name = "other"'), ["name"]),
    "numbers that JSON has not": (
        steps(NOOP + "\ninputs = { x = inf, y = 123456789012345678901234567890 }"),
        ["steps[0].inputs.x", "steps[0].inputs.y"],
    ),
    "a number of thousands of digits": (steps(NOOP + f"\ninputs = {{ x = {'1' * 5_000} }}"), ["toml"]),
    "one that is written in few": (steps(NOOP + f"\ninputs = {{ x = 0x{'f' * 5_000} }}"), ["steps[0].inputs.x"]),
    "too large": ("#" * 70_000, ["toml"]),
    "too deep": (steps(NOOP + f"\ninputs = {{ x = {'[' * 40}{']' * 40} }}"), ["steps[0].inputs.x" + "[0]" * 12]),
}  # fmt: skip


@pytest.mark.parametrize("name", BROKEN)
def test_everything_that_is_wrong_with_a_playbook_is_told_at_once(name: str) -> None:
    toml, wanted = BROKEN[name]
    told = check_playbook(toml.encode(), "p", controls.catalogue(*OWN))
    assert sorted(problem.field for problem in told) == sorted(wanted), told
    assert all(problem.reason for problem in told)


@pytest.mark.parametrize("name", [name for name in BROKEN if name not in ("unknown fields", "another name")])
def test_a_goal_gets_no_plan_of_a_broken_playbook(name: str) -> None:
    """Left out where it cannot be read, refused with the reasons where it can; the built-in ones stay."""
    values = {"playbook.p": BROKEN[name][0].encode()}
    made = catalogue({**values, **{f"task.{one.name}": encode(one) for one in OWN}})
    goal = Goal(playbook="p", max_steps=100, time_budget_s=3600)
    assert fields(make_plan(goal, made))
    assert made.playbooks.keys() - {"p"} == {"fleet_health"}


def test_what_rests_on_a_value_that_is_not_known_yet_is_not_told() -> None:
    """`set` tries required parameters with made-up values; a goal with a wrong one is told of that alone."""
    toml = steps('id = "a"\nkind = "wait"\nuntil = "${params.until}"',
                 'id = "b"\ntask = "noop"\nhost = "${params.where}"',
                 before='[params.until]\nrequired = true\n[params.where]\nmin = 99')  # fmt: skip
    assert check_playbook(toml.encode(), "p", BUILT_IN) == []
    made = known(toml)
    assert fields(make_plan(Goal(playbook="p"), made)) == ["params.until"]
    assert fields(make_plan(Goal(playbook="p", params={"until": "tomorrow"}), made)) == ["steps.a.until"]
    assert fields(make_plan(Goal(playbook="p", params={"until": 7, "where": "x"}), made)) == [
        "params.until", "params.where",
    ]  # fmt: skip


def test_a_toml_time_is_a_time() -> None:
    made = controls.planned(Goal(playbook="p"), known(steps('id = "a"\nkind = "wait"\nuntil = 2030-01-01T00:00:00Z')))
    assert made.steps[0].inputs == {"until": "2030-01-01T00:00:00+00:00"}
    assert not isinstance(read(plan_created(1), 2, 3, encode(made)).body, Unreadable)


# -- budgets and approvals ---------------------------------------------------------------------------------------


def under(directive: Directive, toml: str, requester: str = "", **goal: Any) -> PlanCreated | list[Any]:
    made = known(toml, directives=[directive])
    return make_plan(Goal(playbook="p", directive=directive.name, **goal), made, None, requester)


def test_only_steps_that_must_run_have_to_fit_into_the_budget() -> None:
    """Those with a condition, those behind them, and what undoes others may not run at all."""
    toml = steps('id = "a"\ntask = "noop"\ncompensation = "u"', 'id = "b"\ntask = "noop"\nneeds = ["a"]\nwhen = "true"',
                 'id = "c"\ntask = "noop"\nneeds = ["b"]', 'id = "d"\ntask = "noop"',
                 'id = "u"\ntask = "noop"')  # fmt: skip
    assert isinstance(under(Directive(name="d"), toml, max_steps=2), PlanCreated)
    told = under(Directive(name="d"), toml, max_steps=1)
    assert fields(told) == ["max_steps"] and "at least 2" in told[0].reason  # type: ignore[index]


@pytest.mark.parametrize("budget_s,fits", [(151, True), (150, False), (149, False)])
def test_waits_one_after_the_other_fit_into_the_time(budget_s: int, fits: bool) -> None:
    toml = steps('id = "a"\nkind = "wait"\nseconds = 100', 'id = "b"\ntask = "noop"\nneeds = ["a"]',
                 'id = "c"\nkind = "wait"\nseconds = 50\nneeds = ["b"]',
                 'id = "d"\nkind = "wait"\nseconds = 120')  # fmt: skip
    answer = under(Directive(name="d"), toml, time_budget_s=budget_s)
    assert isinstance(answer, PlanCreated) if fits else fields(answer) == ["steps.c.seconds"]


@pytest.mark.parametrize(
    "changes,requester,possible",
    [
        ({"approvers": ["ann", "bob"], "approvals_needed": 2}, "", True),
        ({"approvers": ["ann", "ann"], "approvals_needed": 2}, "", False),
        ({"approvers": ["ann", "bob"], "approvals_needed": 3}, "", False),
        ({"approvers": [], "approvals_needed": 3}, "", True),
        ({"approvers": ["ann"]}, "ann", False),
        ({"approvers": ["ann"]}, "bob", True),
        ({"approvers": ["ann"], "requester_may_approve": True}, "ann", True),
        ({"approvers": ["ann", "bob"], "approvals_needed": 2}, "bob", False),
    ],
)
def test_an_approval_that_nobody_could_give_is_refused(changes: dict[str, Any], requester: str, possible: bool) -> None:
    asks, plain = steps(NOOP + "\napproval = true"), steps(NOOP)
    answer = under(Directive(name="d", **changes), asks, requester)
    assert isinstance(answer, PlanCreated) if possible else fields(answer) == ["directive"]
    gated = under(Directive(name="d", approval_required=True, **changes), plain, requester)
    assert isinstance(gated, PlanCreated) == possible
    assert isinstance(under(Directive(name="d", **changes), plain, requester), PlanCreated)  # nobody is asked


def test_a_directive_that_means_nothing_is_refused_by_its_name() -> None:
    told = under(Directive(name="d", hosts=[], approvers=["1"]), steps(NOOP))
    assert fields(told) == ["directive", "directive", "hosts"]


def test_a_plan_that_no_message_can_hold_is_refused() -> None:
    long = 'inputs = { x = "' + "${params.x}" * 20 + '" }'
    toml = steps(*(f'id = "s{i}"\ntask = "noop"\n{long}' for i in range(3)), before="[params.x]")
    assert fields(under(Directive(name="d"), toml, params={"x": "x" * 10_000})) == ["playbook"]


# -- configured, versioned, and whatever it is ---------------------------------------------------------------------


def test_a_configured_playbook_takes_the_place_of_a_built_in_one() -> None:
    made = catalogue({"playbook.fleet_health": steps(NOOP).encode(), "playbook.more": steps(NOOP).encode()})
    assert [step.id for step in controls.planned(Goal(playbook="fleet_health"), made).steps] == ["a"]
    assert set(made.playbooks) == {"fleet_health", "more"}
    assert made.version == BUILT_IN.version


def test_one_that_cannot_be_read_takes_no_other_with_it(caplog: pytest.LogCaptureFixture) -> None:
    """Not even the built-in one comes back in its place: that is not what was meant."""
    made = catalogue({"playbook.fleet_health": b"\xff", "playbook.a": b"steps = 1", "playbook.b": steps(NOOP).encode()})
    assert set(made.playbooks) == {"b"}
    assert "playbook.fleet_health is left out" in caplog.text and "playbook.a is left out" in caplog.text


@pytest.mark.parametrize("stored", [b"\xff", b"{", b'{"name": "default", "on_failure": "quarantine"}', b"[" * 100_000])
def test_a_directive_that_cannot_be_read_allows_nothing(stored: bytes, caplog: pytest.LogCaptureFixture) -> None:
    """The built-in one may allow what it was written to forbid: a newer writer's word, a slip of a hand."""
    made = catalogue({"directive.default": stored})
    assert "default" not in made.directives and "D1" in made.directives
    assert "directive.default is left out" in caplog.text
    (problem,) = controls.problems(Goal(goal="check logs"), made)
    assert problem.field == "directive"


def test_the_version_is_of_what_it_means_not_of_how_it_is_written() -> None:
    """Comments and the order of tables are nothing; a step's order and a default are something."""
    one = known("# so\n" + steps(NOOP, before="description = 'x'\n[params.p]\n")).playbooks["p"]
    two = known(steps('task="noop"\nid="a"', before="description = 'x'\n[params.p]\ntype = 'string'")).playbooks["p"]
    other = known(steps(NOOP, before="description = 'x'\n[params.p]\ndefault = 'y'\n")).playbooks["p"]
    assert one.version == two.version != other.version
    assert re.fullmatch("[0-9a-f]{12}", one.version)


@pytest.mark.parametrize("name", playbook_texts())
def test_every_shipped_playbook_is_whole(name: str) -> None:
    text = playbook_texts()[name]
    assert check_playbook(text, name, BUILT_IN) == []
    assert tomllib.loads(text.decode())["description"]


ids = st.sampled_from(["a", "b", "c", "d-1", "run"])
names = st.sampled_from(["x", "y", "z"])
text = st.sampled_from(
    ["x", "${params.x}", "a ${params.y} b", "${params.z}", "${steps.a.status}", "2030-01-01T00:00:00Z"]
)
conditions = st.sampled_from(["true", "steps.a.status == 'failed'", "params.x == params.y", "decisions.b", "1 +", ""])
some_step = st.fixed_dictionaries(
    {"id": ids},
    optional={
        "kind": st.sampled_from(["task", "decision", "wait", "notify", "approval", "x"]),
        "task": st.sampled_from(["noop", "fail", "nope", "${params.x}"]),
        "needs": st.lists(ids, max_size=2),
        "when": conditions,
        "condition": conditions,
        "message": text,
        "seconds": st.integers(-1, 5) | st.floats() | text,
        "until": text,
        "inputs": st.dictionaries(names, text | st.integers() | st.floats() | st.lists(text, max_size=2), max_size=2),
        "host": text,
        "hosts": st.lists(text, max_size=2),
        "approval": st.booleans(),
        "timeout_s": st.integers(0, 100_000),
        "retry": st.fixed_dictionaries(
            {}, optional={"max_attempts": st.integers(0, 3), "backoff_s": st.integers(0, 90)}
        ),
        "on_failure": st.sampled_from(["stop", "continue", "rollback"]),
        "compensation": ids,
    },
)  # fmt: skip
good_step = st.fixed_dictionaries(
    {"id": ids, "task": st.just("noop")},
    optional={"needs": st.lists(ids, max_size=2), "inputs": st.just({"x": "${params.x}"})},
)  # fmt: skip


@example(some=[{"id": "a", "kind": "task", "task": "${params.x}"}], params={"x": {}}, given_={})
@settings(max_examples=300)
@given(
    some=st.lists(good_step | some_step, max_size=4, unique_by=lambda one: one["id"]),
    params=st.dictionaries(names, st.fixed_dictionaries({}, optional={
        "type": st.sampled_from(["string", "integer", "list", "number"]), "default": st.integers(0, 3) | text,
        "required": st.booleans(), "min": st.integers(0, 2) | st.floats(allow_nan=False)}), max_size=3),
    given_=st.dictionaries(names, text | st.integers(0, 3) | st.lists(text, max_size=1), max_size=3),
)  # fmt: skip
def test_any_playbook_is_a_plan_that_can_be_said_and_read_or_is_refused_with_reasons(
    some: list[dict[str, Any]], params: dict[str, Any], given_: dict[str, Any]
) -> None:
    """And `set` lets none pass with which no goal at all could be planned."""
    toml = written({"params": params, "steps": some})
    told = check_playbook(toml.encode(), "p", BUILT_IN)
    made = catalogue({"playbook.p": toml.encode()})
    goal = json.dumps({"playbook": "p", "params": given_}).encode()
    answer = answer_to(goal, made)
    if isinstance(answer, PlanCreated):
        event = read(plan_created(1), 2, 3, encode(answer))
        assert not isinstance(event.body, Unreadable), event.body
        assert event.body == answer
        assert encode(answer_to(goal, catalogue({"playbook.p": toml.encode()}))) == encode(answer)  # type: ignore[arg-type]
    else:
        assert answer and all(problem.reason and problem.field for problem in answer)
    # A parameter that is null where nobody gives it may be an input; elsewhere (a task's name) the goal has to give it.
    nulls = [name for name, one in params.items() if "default" not in one]
    elsewhere = json.dumps([{key: value for key, value in one.items() if key != "inputs"} for one in some])
    wanted = any(one.get("required") for one in params.values()) or any(f"params.{name}" in elsewhere for name in nulls)
    if not told and not given_ and not wanted:
        assert isinstance(answer, PlanCreated), answer


def written(value: dict[str, Any]) -> str:
    """A small TOML writer: inline tables for everything but the top."""
    lines = []
    for name, param in value["params"].items():
        lines += [f"[params.{name}]", *(f"{key} = {inline(inner)}" for key, inner in param.items())]
    for step in value["steps"]:
        lines += ["[[steps]]", *(f"{key} = {inline(inner)}" for key, inner in step.items())]
    return "\n".join(lines)


def inline(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key} = {inline(inner)}" for key, inner in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(inline, value)) + "]"
    if isinstance(value, float):
        return repr(value) if value == value and abs(value) != float("inf") else str(value)
    return json.dumps(value)


def test_the_writer_of_this_test_writes_toml() -> None:
    sample = {"params": {"x": {"min": 1.5}}, "steps": [{"id": "a", "inputs": {"x": ["${params.x}", {"y": True}]}}]}
    assert tomllib.loads(written(sample)) == sample
    assert isinstance(known(written(sample)).playbooks["p"], Playbook)


def test_no_shipped_playbook_takes_a_goal_from_the_tasks_of_the_golden_table() -> None:
    golden = tomllib.loads(Path(__file__).with_name("golden.toml").read_text())["words"]
    taken = [one["goal"] for one in golden if "plan" in one and controls.planned(one["goal"]).playbook is not None]
    assert taken == []

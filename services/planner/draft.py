"""What the ways to a plan have in common: a draft of its steps, and the hosts that they may go to."""

from collections.abc import Callable
from functools import lru_cache
from typing import Any, Literal

import msgspec
from msgspec.structs import replace

from services.planner.words import forms
from shared.plan import Directive, Goal, Problem, Reused, Step

Source = Literal["words", "tasks", "playbook", "retry_of"]


class Draft(msgspec.Struct, frozen=True, kw_only=True):
    """Steps before they are checked, and what the plan is to say of where they come from."""

    source: Source
    steps: list[Step] = []
    notes: list[str] = []
    problems: list[Problem] = []
    params: dict[str, Any] = {}
    playbook: str | None = None
    playbook_version: str | None = None
    reused: dict[str, Reused] = {}
    doubtful: Callable[[Problem], bool] = lambda _problem: False

    def field(self, place: int) -> str:
        """The goal's field that has led to the step at this place."""
        return {"words": "directive", "tasks": f"tasks[{place}]"}.get(self.source, self.source)


def allowed_hosts(goal: Goal, directive: Directive) -> tuple[list[str] | None, list[Problem]]:
    """The hosts that the run is for (null: every one), or why it cannot be for those that the goal names."""
    if directive.hosts is None:
        return goal.hosts, []
    outside = [name for name in goal.hosts or () if name not in directive.hosts]
    if outside:
        allowed = ", ".join(directive.hosts)
        why = f"directive {directive.name} does not allow {', '.join(outside)}; it allows {allowed}"
        return goal.hosts, [Problem(why, "hosts")]
    return goal.hosts if goal.hosts is not None else directive.hosts, []


def on_hosts(step: Step, allowed: list[str] | None) -> tuple[Step, list[Problem]]:
    """A task's step with the hosts that it is for: those that it names itself, and of them only what is allowed."""
    if allowed is None or step.task is None:
        return step, []
    problems: list[Problem] = []
    said = ", ".join(allowed)
    if step.host is not None and step.host not in allowed:
        problems.append(Problem(f"step {step.id} runs on {step.host}; the run is for {said}", "hosts"))
    own = step.inputs.get("hosts")
    hosts = [name for name in own if name in allowed] if isinstance(own, list) else allowed
    if not hosts:
        problems.append(Problem(f"step {step.id} is for other hosts than the run, which is for {said}", "hosts"))
    return replace(step, inputs={**step.inputs, "hosts": hosts}), problems


def is_gated(step: str, task: str | None, directive: Directive) -> bool:
    """Whether the directive asks for an approval before this very step."""
    asked = directive.approval_required
    return not isinstance(asked, bool) and (step in asked or task in asked)


def behind(steps: list[Step]) -> dict[str, set[str]]:
    """For each step all that it needs, what those need, and so on; itself, where needs lead back."""
    needs = {step.id: list(step.needs) for step in steps}
    found: dict[str, set[str]] = {}
    for step in steps:
        seen: set[str] = set()
        left = list(step.needs)
        while left:
            name = left.pop()
            if name not in seen:
                seen.add(name)
                left += needs.get(name, ())
        found[step.id] = seen
    return found


@lru_cache(maxsize=256)
def keyword_forms(keywords: tuple[str, ...]) -> dict[str, frozenset[str]]:
    return {keyword: forms(keyword.casefold()) for keyword in keywords if keyword}


def quoted(words: list[str]) -> str:
    return ", ".join(f"'{word}'" for word in words)

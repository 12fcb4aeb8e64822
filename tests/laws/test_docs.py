"""The documentation is true where a machine can tell: samples are readable, named files and verbs exist."""

import re
from pathlib import Path

import pytest
from aiohttp import web

from cli.__main__ import COMMANDS, SERVICES
from services.gateway.service import Gateway
from services.registry.service import Registry
from shared.events import KINDS, OF_SCHEDULES, OF_THE_STREAM, Unreadable, read
from shared.ledger import QUESTIONS
from shared.plan import plan_hash, read_goal

ROOT = Path(__file__).parents[2]
WIRE = (ROOT / "docs" / "wire.md").read_text()
TAILS = {
    "run": "7",
    "step": "a",
    "attempt": "1",
    "task": "noop",
    "call": "1-1",
    "principal": "ann",
    "name": "nightly",
    "tick": "1795654800",
    "size": "9",
}


def sections() -> dict[str, bytes]:
    """The first subject of each heading, filled in, and its sample."""
    found = {}
    for heading, text in re.findall(r"^## ([^\s,]+)[^\n]*\n(.*?)(?=^## |\Z)", WIRE, re.M | re.S):
        sample = re.search(r"```json\n(.*?)\n```", text, re.S)
        if sample:
            found[re.sub(r"&lt;(\w+)&gt;", lambda m: TAILS[m.group(1)], heading)] = sample.group(1).encode()
    return found


def test_every_event_stands_in_the_wire() -> None:
    assert {".".join(subject.split(".")[:2]) for subject in sections()} == {
        *KINDS,
        *OF_SCHEDULES,
        *OF_THE_STREAM,
        "goal.submitted",
    }


@pytest.mark.parametrize("subject", sections())
def test_every_sample_is_the_event_of_its_subject(subject: str) -> None:
    data = sections()[subject]
    event = read(subject, 100, 1, data)
    assert not isinstance(event.body, Unreadable), event.body
    if subject == "goal.submitted":
        assert read_goal(data)[1] == []
    if event.kind == "plan.created":
        assert plan_hash(event.body) == event.body.plan_hash


def test_every_question_is_answered_and_documented() -> None:
    assert {name for name in QUESTIONS if not hasattr(Registry, f"on_{name}")} == {"rebuild"}
    named = WIRE[WIRE.index("`registry.runs`") :].splitlines()[0]
    assert {name for name in QUESTIONS if f".{name}`" not in named} == set()


def test_every_path_of_the_gateway_stands_in_its_page() -> None:
    """And the page names no path that there is not."""
    routes = Gateway(None)._application(1.0).router.routes()  # type: ignore[arg-type]  # nothing is asked of the bus
    served = {(route.method, _template(route)) for route in routes if route.method != "HEAD"}
    page = (ROOT / "docs" / "http.md").read_text()
    named = re.findall(r"`(GET|POST) (/[^` ]*)`", page)
    assert {one for one in served if one not in named} == set()
    assert {one for one in named if one not in served} == set()


def _template(route: web.AbstractRoute) -> str:
    assert route.resource is not None
    return route.resource.canonical


@pytest.mark.parametrize("page", ["README.md", *(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md"))])
def test_every_link_leads_to_a_file_and_every_verb_is_one(page: str) -> None:
    text = (ROOT / page).read_text()
    for target in re.findall(r"\]\((?!https?:|#|mailto:)([^)#]+)", text):
        assert ((ROOT / page).parent / target).exists(), target
    verbs = {*COMMANDS, *SERVICES}
    for verb in re.findall(r"^(?:\$ )?\./remit ([a-z][a-z-]*)", text, re.M):
        assert verb in verbs, verb


# Not for people: what one process of Remit tells another.
INWARD = {"REMIT_DECIDER_PID"}


def settings_read() -> set[str]:
    """Each `REMIT_…` that the code or `./remit` names, also as `setting("…")` does."""
    found = set(re.findall(r"\$\{(REMIT_[A-Z_]+)", (ROOT / "remit").read_text()))
    for path in (path for folder in ("cli", "services", "shared") for path in (ROOT / folder).rglob("*.py")):
        text = path.read_text()
        found |= set(re.findall(r"\bREMIT_[A-Z_]*[A-Z]\b", text))
        found |= {f"REMIT_{name}" for name in re.findall(r"\bsetting\(\"([A-Z_]+)\"", text)}
    return found - INWARD


def test_every_setting_stands_in_the_documentation_and_none_besides() -> None:
    told = set(re.findall(r"\bREMIT_[A-Z_]*[A-Z]\b", (ROOT / "docs" / "settings.md").read_text()))
    assert told == settings_read()

"""One word through the whole system: each event has its builder, its struct, its rule in the fold; subjects are built
in one file.
"""

import ast
import inspect
import re
from functools import cache
from pathlib import Path

import pytest

from shared import run, subjects
from shared.events import KINDS
from shared.subjects import EVENT_NOUNS
from tests.laws.source import tree

ROOT = Path(__file__).resolve().parents[2]
ROOMS = ("shared", "services", "cli")

# Where an event's kind (`noun.verb`, never a whole subject with a run in it) stands as a word, and why.
KINDS_SPOKEN = {
    "shared/subjects.py": "builds every subject",
    "shared/events.py": "the table of kinds",
    "shared/audit/of_questions.py": "the shapes of its kinds",
    "shared/audit/of_run.py": "judges by kind, with code of its own",
    "shared/audit/of_steps.py": "the shapes of its kinds",
    "shared/audit/of_stream.py": "tells goals, ticks and ends apart",
    "shared/audit/reading.py": "shapes of its own, by kind",
    "shared/proof/sealing.py": "links the messages of a run from its goal to its end",
    "shared/run.py": "the table of transitions, and the reasons that it gives",
    "shared/streams.py": "the stream's own subjects",
    "services/executor/decide.py": "the table of kinds after which something can follow",
    "services/executor/engine.py": "folds by kind",
    "services/executor/schedules.py": "folds what belongs to schedules",
    "services/executor/service.py": "takes back the timers of a run that is over",
    "services/registry/fold.py": "writes rows by kind",
}
# A story is told in words by kind; these read events and build no subject.
KINDS_TOLD = ("shared/story.py", "cli/", "services/gateway/")

_NOUNS = "|".join((*EVENT_NOUNS, "timer"))
_KIND = re.compile(rf"(?:{_NOUNS})\.[a-z_]+")
_SUBJECT = re.compile(rf"(?:{_NOUNS})\.[a-z_*]+\..*|(?:{_NOUNS})\.[*>].*", re.DOTALL)


@cache
def literals(path: Path) -> tuple[str, ...]:
    """Every string of the file that is no docstring; the fixed beginning of an f-string counts as one."""
    nodes = list(ast.walk(tree(path)))
    documents = {
        id(node.body[0].value)
        for node in nodes
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
        and node.body
        and isinstance(node.body[0], ast.Expr)
    }
    return tuple(
        node.value
        for node in nodes
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in documents
    )


FILES = sorted(str(path.relative_to(ROOT)) for room in ROOMS for path in (ROOT / room).rglob("*.py"))


@pytest.mark.parametrize("path", FILES)
def test_subjects_are_built_in_one_file(path: str) -> None:
    """A literal that begins as a whole subject (`step.completed.…`) stands in shared/subjects.py or the streams."""
    if path in ("shared/subjects.py", "shared/streams.py"):
        return
    assert [text for text in literals(ROOT / path) if _SUBJECT.fullmatch(text)] == []


@pytest.mark.parametrize("path", FILES)
def test_kinds_are_spoken_where_events_are_told_apart(path: str) -> None:
    if path in KINDS_SPOKEN or path.startswith(KINDS_TOLD):
        return
    assert [text for text in literals(ROOT / path) if _KIND.fullmatch(text)] == []


@pytest.mark.parametrize("path", sorted(KINDS_SPOKEN))
def test_the_list_of_exceptions_is_true(path: str) -> None:
    """An exception that is needed no more is taken out of the list."""
    assert any(_KIND.match(text) for text in literals(ROOT / path)), f"{path} no longer {KINDS_SPOKEN[path]}"


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_has_its_builder(kind: str) -> None:
    """`step.completed` is built by `step_completed`, and its first argument is the run."""
    build = getattr(subjects, kind.replace(".", "_"))
    names = list(inspect.signature(build).parameters)
    assert names[0] == "run"
    built = build(7, *(["a", 1, "noop"][: len(names) - 1] if kind != "llm.called" else ["a", "1-1"]))
    assert built.startswith(f"{kind}.7")


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_is_a_struct_of_the_same_name(kind: str) -> None:
    assert KINDS[kind][0].__name__ == "".join(word.title() for word in re.split("[._]", kind))


def test_every_kind_is_heard_by_the_fold() -> None:
    assert set(run.LEGAL) == set(run._APPLY) == set(KINDS)


def test_every_kind_reaches_the_stream() -> None:
    """Its noun is among the stream's subjects; timers come by sourcing, and by no other way."""
    assert {kind.split(".")[0] for kind in KINDS} - set(EVENT_NOUNS) == {"timer"}

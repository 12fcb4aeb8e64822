"""Who may import what: arrows run one way, and each outside world has one door. Read from the source."""

import ast
from functools import cache
from pathlib import Path

import pytest

from tests.laws.source import tree

ROOT = Path(__file__).resolve().parents[2]
ROOMS = ("shared", "services", "cli", "bench")
FILES = sorted(path for room in ROOMS for path in (ROOT / room).rglob("*.py"))

# Package -> the paths (files, or folders with a trailing slash) that may import it, and how many files in all.
DOORS: dict[str, tuple[tuple[str, ...], int]] = {
    "nats": (("shared/client.py",), 1),
    "pynvml": (("services/gpu_agent/",), 1),
    "docker": (("services/log_agent/",), 1),
    "duckdb": (("services/registry/store.py",), 1),
    "cel_expr_python": (("shared/conditions.py",), 1),
    "cryptography": (("shared/proof/keys.py",), 1),
    "obstore": (("shared/archive/places.py",), 1),
    "aiohttp": (("services/gateway/", "services/log_agent/", "services/executor/tasks/"), 100),
}
# The benchmark of the floor is three bare nats-py processes: measuring NATS without Remit is its purpose.
FLOOR = "bench/"
FORBIDDEN_NAMES = frozenset(("utils", "util", "helpers", "helper", "common", "base", "manager", "managers", "misc"))


@cache
def imported(path: str) -> set[str]:
    """Every module that the file imports, anywhere in it, dotted."""
    found: set[str] = set()
    for node in ast.walk(tree(ROOT / path)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            module = node.module or ""
            if node.level:
                package = path.split("/")[: -node.level]
                module = ".".join([*package, module] if module else package)
            found.add(module)
            found |= {f"{module}.{alias.name}" for alias in node.names}
    return found


PATHS = sorted(str(path.relative_to(ROOT)) for path in FILES)


def importers(package: str) -> list[str]:
    return [path for path in PATHS if any(name == package or name.startswith(f"{package}.") for name in imported(path))]


def test_there_is_something_to_check() -> None:
    """An empty list of files would keep every law."""
    assert len(FILES) > 50
    assert importers("nats") and importers("duckdb")


@pytest.mark.parametrize("package", DOORS)
def test_an_outside_world_has_its_door(package: str) -> None:
    doors, most = DOORS[package]
    found = [path for path in importers(package) if not (package == "nats" and path.startswith(FLOOR))]
    assert [path for path in found if not path.startswith(doors)] == []
    assert len(found) <= most, found


@pytest.mark.parametrize("path", [path for path in PATHS if path.startswith("services/")])
def test_no_service_imports_another_service_or_the_cli(path: str) -> None:
    own = path.split("/")[1]
    strangers = {
        name
        for name in imported(path)
        if (name.startswith("services.") and name.split(".")[1] != own)
        or name.split(".")[0] in ("cli", "bench", "tests")
    }
    assert strangers == set()


@pytest.mark.parametrize("path", [path for path in PATHS if path.startswith("shared/")])
def test_shared_imports_no_service_and_no_cli(path: str) -> None:
    assert {name for name in imported(path) if name.split(".")[0] in ("services", "cli", "bench", "tests")} == set()


@pytest.mark.parametrize("path", [path for path in PATHS if path.startswith("cli/")])
def test_the_cli_imports_no_service(path: str) -> None:
    assert {name for name in imported(path) if name.split(".")[0] in ("services", "tests")} == set()


# What plans, folds and decides reads no clock, no environment and no network. `shared/clock.py` is the clock itself:
# its pure half (text and nanoseconds) may be used; `now` and `now_ns` are for shells.
PURE = (
    "shared/allow.py",
    "shared/archive/checking.py",
    "shared/archive/days.py",
    "shared/audit/findings.py",
    "shared/audit/lines.py",
    "shared/audit/of_questions.py",
    "shared/audit/of_run.py",
    "shared/audit/of_steps.py",
    "shared/audit/of_stream.py",
    "shared/audit/reading.py",
    "shared/catalogue.py",
    "shared/conditions.py",
    "shared/errors.py",
    "shared/events.py",
    "shared/ledger.py",
    "shared/plan.py",
    "shared/playbook.py",
    "shared/proof/bundle.py",
    "shared/proof/merkle.py",
    "shared/proof/sealing.py",
    "shared/redact.py",
    "shared/run.py",
    "shared/schedule.py",
    "shared/showing.py",
    "shared/status.py",
    "shared/subjects.py",
    "services/planner/checks.py",
    "services/planner/draft.py",
    "services/planner/negation.py",
    "services/planner/planning.py",
    "services/planner/playbooks.py",
    "services/planner/repeating.py",
    "services/planner/words.py",
    "services/executor/decide.py",
    "services/executor/engine.py",
    "services/executor/schedules.py",
    "services/executor/tasks/gpu_core.py",
    "services/executor/tasks/map_core.py",
    "services/registry/fold.py",
)
WORLDLY = frozenset(
    "asyncio random secrets uuid os socket subprocess threading logging nats duckdb docker aiohttp shared.bus "
    "shared.append shared.pull shared.streams shared.config shared.process shared.clock.now shared.clock.now_ns".split()
)
CLOCKS = frozenset(("datetime.now", "datetime.utcnow", "datetime.today", "date.today", "time.time", "time.time_ns",
                    "time.monotonic", "time.monotonic_ns", "time.perf_counter"))  # fmt: skip


def calls(path: Path) -> set[str]:
    """`a.b` of every call `x.a.b(...)` in the file."""
    found = set()
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            owner = node.func.value
            name = owner.id if isinstance(owner, ast.Name) else owner.attr if isinstance(owner, ast.Attribute) else ""
            found.add(f"{name}.{node.func.attr}")
    return found


@pytest.mark.parametrize("path", PURE)
def test_a_pure_module_touches_no_world(path: str) -> None:
    worldly = {name for name in imported(path) if any(name == one or name.startswith(f"{one}.") for one in WORLDLY)}
    assert worldly == set()
    assert calls(ROOT / path) & CLOCKS == set()


@pytest.mark.parametrize("path", [path for path in PATHS if path.startswith("shared/audit/")])
def test_the_audit_shares_no_code_with_what_it_checks(path: str) -> None:
    """Not even the subjects and the events: what both got wrong could not be seen."""
    ours = {name for name in imported(path) if name.split(".")[0] in ("shared", "services", "cli")}
    assert {name for name in ours if name != "shared.audit" and not name.startswith("shared.audit.")} == set()


def test_no_room_is_a_drawer_for_everything() -> None:
    """A module is named by what it is for."""
    named = [path for path in FILES if path.stem in FORBIDDEN_NAMES or path.parent.name in FORBIDDEN_NAMES]
    assert named == []


@pytest.mark.parametrize("name", ["pyproject.toml", "constraints.txt"])
def test_pins_hold_no_address(name: str) -> None:
    """A host name of a registry in a committed file binds everybody to it."""
    path = ROOT / name
    if not path.exists():
        pytest.skip(f"{name} is not there yet")
    pins = [line.split("#")[0] for line in path.read_text().splitlines()]
    assert [line for line in pins if "://" in line or " @ " in line or "index-url" in line] == []

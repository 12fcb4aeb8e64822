"""Fixtures for every folder: waiting without sleeping, and a stack of real processes."""

import ast
import asyncio
import atexit
import gc
import importlib
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Generator, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

from cli.keeper import until_ready
from shared.bus import Bus, connect
from shared.errors import RemitError
from shared.streams import ensure
from tests.stack import SERVICES, Stack, stack

WITHIN_S = 30.0
FOLDER = Path(__file__).parent

_parse = ast.parse


def _parse_undisturbed(*args: Any, **options: Any) -> ast.AST:
    """What was left to the garbage collection is not taken up meanwhile: a finalizer that parses, as a traceback does
    that it prints, makes an error of it in CPython 3.11 ("AST constructor recursion depth mismatch").
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        return _parse(*args, **options)
    finally:
        if was_enabled:
            gc.enable()


ast.parse = _parse_undisturbed  # hypothesis and inspect parse, too

# An example that takes 200 ms says that the machine is busy, and nothing of what is tested.
settings.register_profile("remit", deadline=None)
settings.load_profile("remit")


def pytest_sessionstart(session: pytest.Session) -> None:
    """What is computed once and kept in a file is computed once, and not by each test process at the same time: the
    code of a fresh checkout, and what hypothesis knows of Unicode.
    """
    worker: dict[str, Any] | None = getattr(session.config, "workerinput", None)
    if worker and [str(Path(arg).resolve()) for arg in session.config.args] == [str(FOLDER)]:
        _import_from_elsewhere(int(worker["workerid"].removeprefix("gw")), worker["workercount"])
    elif not worker and session.config.getoption("numprocesses", None):
        made = subprocess.Popen(
            [sys.executable, "-c", "from hypothesis import strategies; strategies.text().validate()"]
        )
        session.config.add_cleanup(made.wait)


def pytest_sessionfinish() -> None:
    """pytest collects garbage five times at its end, for warnings that are ignored here: a second of each process."""
    gc.freeze()
    atexit.register(gc.unfreeze)  # the interpreter's own end gives back what extensions would complain of


def _import_from_elsewhere(number: int, workers: int) -> None:
    """Import the test modules, each process beginning at another place: the others find what it has compiled."""
    names = [".".join(path.relative_to(FOLDER.parent).with_suffix("").parts) for path in FOLDER.rglob("test_*.py")]
    names.sort()
    first = len(names) * number // workers
    for name in names[first:] + names[:first]:
        with suppress(Exception, pytest.skip.Exception):  # pytest imports it again, and tells
            importlib.import_module(name)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Some tests log what is no text; a report that goes from one test process to another has to be."""
    report = yield
    report.sections = [(title, text.encode(errors="replace").decode()) for title, text in report.sections]
    return report


# What waits longest begins first, so that no long file is left running alone at the end.
LONG_FIRST = (
    "tests/archive/test_letting_go", "tests/stories/", "tests/chaos/", "tests/archive/", "tests/cli/",
    "tests/registry/", "tests/log_agent/", "tests/shared/",
)  # fmt: skip


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    def rank(item: pytest.Item) -> int:
        return next((at for at, folder in enumerate(LONG_FIRST) if item.nodeid.startswith(folder)), len(LONG_FIRST))

    items.sort(key=rank)


async def until(
    condition: Callable[[], Awaitable[object] | object], within_s: float = WITHIN_S, *, look_s: float = 0.02
) -> None:
    """Wait until `condition` holds; it may be a coroutine function. Who reads a whole stream for it looks seldom."""
    async with asyncio.timeout(within_s):
        while True:
            found = condition()
            if await found if isinstance(found, Awaitable) else found:
                return
            await asyncio.sleep(look_s)


def engine_answers() -> bool:
    return (
        shutil.which("docker") is not None and subprocess.run(["docker", "info"], capture_output=True).returncode == 0
    )


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Stack]:
    """A nats-server of the test's own."""
    with stack(tmp_path) as made:
        yield made


@pytest.fixture
async def bus(server: Stack) -> AsyncIterator[Bus]:
    """A connection to it, with Remit's streams."""
    made = await connect(server.url, "test")
    await ensure(made)
    yield made
    await made.close()


@pytest.fixture(scope="module")
def remit(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """NATS, planner, executor and registry, once for a module, when all of them are ready."""
    with stack(tmp_path_factory.mktemp("stack"), *SERVICES) as made:
        asyncio.run(ready(made))
        yield made


async def ready(made: Stack, services: Sequence[str] = SERVICES) -> None:
    """Wait until each of these answers, takes goals or performs steps."""
    await (await until_ready(made.url, services)).close()


@pytest.fixture
async def client(remit: Stack) -> AsyncIterator[Bus]:
    """A connection to the module's stack, when its streams are there."""
    made = await connect(remit.url, "test")

    async def ready() -> bool:
        try:
            await made.api("CONSUMER.INFO.EVENTS.worker-noop")
        except RemitError:
            return False
        return True

    await until(ready)
    yield made
    await made.close()

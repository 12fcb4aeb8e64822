"""One stream of several days with its archive, for all that only look; and servers of one's own for the rest."""

import shutil
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from tests.archive.built import Built, build, streams
from tests.stack import Stack, stack


@pytest.fixture(scope="module")
def lived(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """A stack whose stream has lived three days, and their archive, in `archive`."""
    with stack(tmp_path_factory.mktemp("lived")) as made:
        build(made)
        yield made


@pytest.fixture
def archive(lived: Stack, tmp_path: Path) -> Path:
    """A copy that may be ruined."""
    shutil.copytree(lived.folder / "archive", tmp_path / "archive")
    return tmp_path / "archive"


@pytest.fixture
async def built(lived: Stack) -> AsyncIterator[Built]:
    async with Built(lived) as made:
        yield made


@pytest.fixture
def remit(tmp_path: Path) -> Iterator[Stack]:
    """A stack of a test's own: NATS, and nothing in it."""
    with stack(tmp_path) as made:
        yield made


@pytest.fixture
async def own(remit: Stack) -> AsyncIterator[Built]:
    """Its streams are there, and empty."""
    async with Built(remit) as made:
        await streams(made.bus)
        yield made

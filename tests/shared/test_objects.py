"""The object store by way of the bus: what is not there just now is told from what is damaged."""

import base64
import json
from pathlib import Path
from typing import Any

import pytest

from shared.bus import Bus
from shared.errors import NotFound, RemitError, Unavailable
from shared.subjects import ARTIFACTS_BUCKET

NAME = "run_1/report.md"


def meta(**changes: Any) -> bytes:
    """What the store keeps of an object beside its chunks, as anybody may publish it."""
    digest = "SHA-256=" + base64.urlsafe_b64encode(bytes(32)).decode()
    return json.dumps(
        {"name": NAME, "bucket": ARTIFACTS_BUCKET, "nuid": "N", "size": 3, "chunks": 1, "digest": digest, **changes}
    ).encode()


@pytest.fixture
def into(tmp_path: Path) -> Path:
    """Where an object is to be written: a folder in which there is nothing else."""
    folder = tmp_path / "into"
    folder.mkdir()
    return folder / "artifact"


async def test_a_store_that_is_not_there_is_unavailable_and_not_damaged(bus: Bus, into: Path) -> None:
    """An audit would call the artifact false, and the gateway answer 502 in place of 503."""
    await bus.api(f"STREAM.DELETE.OBJ_{ARTIFACTS_BUCKET}")
    with pytest.raises(Unavailable, match="does not exist"):
        await bus.object_get(ARTIFACTS_BUCKET, NAME, into)


async def test_an_object_that_is_not_there_is_not_found(bus: Bus, into: Path) -> None:
    with pytest.raises(NotFound):
        await bus.object_get(ARTIFACTS_BUCKET, NAME, into)
    assert list(into.parent.iterdir()) == []


@pytest.mark.parametrize(
    "said",
    [
        b"no JSON",
        meta(nuid="a b"),
        meta(nuid=""),
        meta(digest=None),
        meta(digest="SHA-256=A"),
        meta(options={"link": {}}),
        meta(options=[]),
        meta(size="three"),
        meta(),
    ],
    ids=["text", "nuid", "no-nuid", "no-digest", "odd-digest", "link", "options", "size", "other-bytes"],
)
async def test_what_a_stranger_says_of_an_object_is_one_that_is_damaged(bus: Bus, into: Path, said: bytes) -> None:
    """Whoever reads it is told so, and goes on: an executor reads its snapshot here when it starts."""
    await bus.request(f"$O.{ARTIFACTS_BUCKET}.C.N", b"abc")
    await bus.request(f"$O.{ARTIFACTS_BUCKET}.M.{base64.urlsafe_b64encode(NAME.encode()).decode()}", said)
    with pytest.raises(RemitError) as told:
        await bus.object_get(ARTIFACTS_BUCKET, NAME, into)
    assert not isinstance(told.value, Unavailable), told.value
    assert list(into.parent.iterdir()) == []

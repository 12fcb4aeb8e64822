"""The keeper's logs: none grows for ever, and none loses what its child says after it was cut."""

import asyncio
from pathlib import Path

import pytest

from cli import keeper
from cli.keeper import Keeper
from tests.conftest import until

MOST_BYTES = 10_000
LINE = "a line of thirty bytes, or so."


@pytest.mark.parametrize("has_room", [True, False])
async def test_the_log_of_a_child_that_lives_is_put_aside_when_it_is_large(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, has_room: bool
) -> None:
    monkeypatch.setattr(keeper, "LOG_BYTES_MAX", MOST_BYTES)
    monkeypatch.setattr(keeper, "LOGS_LOOK_S", 0.05)
    made = Keeper(tmp_path, print)
    log, aside = tmp_path / "logs" / "x.log", tmp_path / "logs" / "x.log.1"
    if not has_room:
        (tmp_path / "logs" / "x.log.part").mkdir(parents=True)  # nothing can be copied to where a folder is
    go = tmp_path / "go"
    says = f"""
        i=0; while [ $i -lt 400 ]; do echo "{LINE} $i"; i=$((i+1)); done
        while [ ! -e '{go}' ]; do sleep 0.02; done
        echo after; sleep 60
    """
    child = await made._start("x", ["sh", "-c", says], {})
    await made.start_services([], {})
    try:
        if has_room:
            await until(lambda: aside.exists() and log.stat().st_size < MOST_BYTES)
        else:
            await asyncio.sleep(0.3)
        go.touch()
        await until(lambda: log.read_text().endswith("after\n"))
    finally:
        child.kill()
        await child.wait()
        await made.stop()
    said = [f"{LINE} {number}" for number in range(400)] + ["after"]
    before = aside.read_text().splitlines() if has_room else []
    assert before + log.read_text().splitlines() == said
    assert made._said("x")[-1] == "after"
    assert has_room == (log.stat().st_size < MOST_BYTES)

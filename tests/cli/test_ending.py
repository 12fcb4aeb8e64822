"""How a command that waits is ended: by a signal, or by a connection that is over."""

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from cli.speak import with_bus
from shared.bus import Bus
from shared.errors import Unavailable
from shared.status import EXIT_INTERRUPTED, EXIT_TERMINATED
from tests import terminal
from tests.stack import ROOT, Stack, stack, until

PROMPT = "— Enter".encode()


@pytest.fixture
def nats(tmp_path: Path) -> Iterator[Stack]:
    with stack(tmp_path, "planner") as made:
        yield made


def watching(nats: Stack) -> subprocess.Popen[str]:
    """`remit watch` of a run that goes on for as long as nobody decides."""
    until(lambda: nats.remit("submit", "--task", "noop").returncode == 0, "a run is there")
    process = subprocess.Popen(
        [sys.executable, "-m", "cli", "watch", "1"],
        env=nats.environment, cwd=ROOT, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stderr is not None
    assert process.stdout is not None
    assert "planned" in process.stderr.readline() + process.stderr.readline()
    return process


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, EXIT_TERMINATED), (signal.SIGINT, EXIT_INTERRUPTED)])
def test_a_signal_ends_it_without_a_word(nats: Stack, number: signal.Signals, code: int) -> None:
    process = watching(nats)
    process.send_signal(number)
    said = process.communicate(timeout=20)
    assert process.returncode == code
    assert "Traceback" not in "".join(said)


def test_a_connection_that_is_closed_for_good_is_told(nats: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    """What waits for an answer over it would wait for ever."""
    monkeypatch.setenv("REMIT_NATS_URL", nats.url)

    async def wait(bus: Bus) -> None:
        asyncio.get_running_loop().call_later(0.1, lambda: asyncio.ensure_future(bus._client.close()))
        await asyncio.Event().wait()

    with pytest.raises(Unavailable, match="NATS has closed the connection"):
        with_bus(wait)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, -signal.SIGTERM), (signal.SIGINT, EXIT_INTERRUPTED)])
def test_a_signal_ends_who_waits_for_enter(nats: Stack, number: signal.Signals, code: int) -> None:
    """The connection is closed by then, and the loop that heard signals is gone."""
    until(lambda: nats.remit("submit", "--task", "noop").returncode == 0, "a run is there")
    until(lambda: len(nats.remit("replay", "1").stdout.splitlines()) > 1, "the run is planned")
    ours, theirs = terminal.opened()
    argv = [sys.executable, "-m", "cli", "replay", "1", "--step"]
    process = subprocess.Popen(
        argv, env=nats.environment, cwd=ROOT, stdin=theirs, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL,
        # As a terminal starts it: what a shell starts in the background, such as these tests, is told to ignore Ctrl-C.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip
    assert process.stderr is not None
    try:
        assert process.stderr.read(len(PROMPT)) == PROMPT
        process.send_signal(number)
        assert process.wait(20) == code
    finally:
        process.kill()
        process.stderr.close()
        os.close(ours)
        os.close(theirs)


def test_a_connection_that_is_lost_is_told_once(nats: Stack) -> None:
    """Each try to come back is not: there are five a second."""
    process = watching(nats)
    nats.kill("nats")
    time.sleep(1.5)
    process.send_signal(signal.SIGINT)
    try:
        said = process.communicate(timeout=20)[1]
    finally:
        process.kill()
        nats.start_nats()
    assert (said.count("connection to NATS lost"), said.count("[Errno")) == (1, 0), said

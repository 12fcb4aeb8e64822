"""What a service writes to its log: one JSON object a line, where an error came from, and no content."""

import asyncio
import json
import subprocess
import sys

import pytest

from shared import process
from shared.errors import Malformed, Unavailable
from shared.process import CAUSES_MAX, trace, until
from tests.canary import Flock
from tests.stack import ROOT

PROGRAM = """
from shared.process import log_to_stderr
log_to_stderr("a-service")
"""


def fail(text: str) -> None:
    raise ValueError(text)


def caught(text: str) -> Exception:
    """An error as it is when it has been through the code: with a cause, and one that came on the way."""
    try:
        try:
            fail(text)
        except ValueError:
            try:
                raise KeyError(text)
            except KeyError as error:
                raise ExceptionGroup(text, [OSError(text), Unavailable("nobody answers")]) from error
    except ExceptionGroup as error:
        return error


def test_an_error_is_told_by_kind_and_place_and_not_by_its_text() -> None:
    """With its causes, and with what a group holds; an unexpected error often quotes what was being read."""
    flock = Flock()
    told = trace(caught(flock.plant("an error's text")))
    assert flock.finds("log", told.encode()) == set()
    for kind in ("ValueError", "KeyError", "ExceptionGroup", "OSError"):
        assert kind in told
    assert "test_process.py" in told
    assert "in fail" in told


def test_an_error_of_remits_own_is_told_whole_and_redacted() -> None:
    """It says only what may be said; an address in it may hold a password all the same."""
    told = trace(Unavailable("nothing listens at nats://ann:hunter2@127.0.0.1:4222"))
    assert told == "Unavailable: nothing listens at nats://[redacted:url-credentials]@127.0.0.1:4222"


def test_causes_that_never_end_are_told_up_to_a_bound() -> None:
    first = error = ValueError()
    for _ in range(CAUSES_MAX * 3):
        error.__cause__ = ValueError()
        error = error.__cause__
    error.__cause__ = first
    assert trace(first).count("ValueError") == CAUSES_MAX


def test_a_message_is_redacted() -> None:
    written = log_of("import logging; logging.getLogger('x').warning('got %s', 'password=hunter2 from ann')")
    assert (written["level"], written["service"]) == ("warning", "a-service")
    assert written["message"] == "got password=[redacted:password] from ann"


@pytest.mark.parametrize("how", ["raise ValueError(WORD)", "import asyncio; asyncio.run(fails())"])
def test_what_ends_the_process_is_told_like_the_rest(how: str) -> None:
    """The interpreter would print the error's text."""
    word = Flock().plant("an error's text")
    written = log_of(f"WORD = {word!r}\nasync def fails():\n    raise ValueError(WORD)\n{how}", code=1)
    assert written["message"] == "the process failed"
    assert "ValueError" in written["error"]
    assert word not in json.dumps(written).replace(f"raise ValueError({word!r})", "")


def log_of(program: str, code: int = 0) -> dict[str, str]:
    """The one line that a program with Remit's logging writes."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM + program], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == code, done.stderr
    written: dict[str, str] = json.loads(done.stderr)
    return written


async def test_what_takes_long_to_start_is_cut_off_when_it_is_asked_to_end() -> None:
    stop, ends = asyncio.Event(), list[str]()

    async def start(seconds: float) -> None:
        try:
            await asyncio.sleep(seconds)
        finally:
            ends.append("ended")

    async def fail() -> None:
        raise Unavailable("nobody answers")

    assert await until(stop, start(0)) is True
    with pytest.raises(Unavailable, match="nobody answers"):
        await until(stop, fail())
    asyncio.get_running_loop().call_later(0.05, stop.set)
    assert await asyncio.wait_for(until(stop, start(3600)), 5) is False
    assert ends == ["ended", "ended"]


async def test_who_waits_for_nats_says_so_once_and_then_now_and_then(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("REMIT_NATS_URL", "nats://127.0.0.1:1")
    for name, seconds in {"CONNECT_PATIENCE_S": 1.2, "CONNECT_AGAIN_S": 0.02, "TELL_AGAIN_S": 0.5}.items():
        monkeypatch.setattr(process, name, seconds)
    with caplog.at_level("INFO"), pytest.raises(Unavailable):
        await process.connected("planner")
    assert 1 < caplog.text.count("waiting for NATS: nothing listens at") <= 3


async def test_a_setting_that_cannot_be_meant_is_told_before_nats_is_waited_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("REMIT_NATS_URL", "nats://127.0.0.1:1")
    monkeypatch.setenv("REMIT_REPLICAS", "three")
    async with asyncio.timeout(5):
        with pytest.raises(Malformed, match="REMIT_REPLICAS='three'"):
            await process.connected("planner")

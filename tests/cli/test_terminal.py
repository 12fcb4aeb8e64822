"""Where the command's words go: nowhere, a full disk, a reader who has left, a terminal with colours and without."""

import os
import pty
import subprocess
import sys

import pytest

from shared.status import EXIT_FAILED, EXIT_UNREACHABLE, EXIT_USAGE
from tests.stack import ROOT

RULES = ("audit", "--rules")  # a table that needs no NATS
NOBODY = {"REMIT_NATS_URL": "nats://127.0.0.1:1"}


def cli(
    *argv: str, through: str = '"$@"', stdout: int = subprocess.PIPE, stderr: int = subprocess.PIPE, **environment: str
) -> subprocess.CompletedProcess[str]:
    """A process of its own, as a shell starts it with these redirections."""
    return subprocess.run(
        ["sh", "-c", through, "sh", sys.executable, "-m", "cli", *argv],
        env={**os.environ, **NOBODY, **environment},
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        stdout=stdout,
        stderr=stderr,
        text=True,
        timeout=60,
    )


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_what_is_closed_is_nobody(closed: str) -> None:
    """A supervisor may close stdin: the first socket took its number, and the loop ended the process with SIGABRT."""
    assert cli("runs", through=f'"$@" {closed}').returncode == EXIT_UNREACHABLE
    assert cli(*RULES, through=f'"$@" {closed}').returncode == 0


@pytest.mark.parametrize("argv", [("--help",), ("--version",), ("runs", "--help"), RULES])
def test_a_full_disk_is_told_in_one_line(argv: tuple[str, ...]) -> None:
    done = cli(*argv, through='"$@" >/dev/full')
    assert (done.returncode, done.stderr) == (EXIT_FAILED, "remit: No space left on device\n")


def test_a_reader_of_a_table_who_has_left_is_no_error() -> None:
    reads, writes = os.pipe()
    os.close(reads)
    try:
        done = cli(*RULES, stdout=writes)
    finally:
        os.close(writes)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("argv", [RULES, ("runs",)])
def test_colours_are_for_a_terminal_that_wants_them(argv: tuple[str, ...]) -> None:
    assert "\x1b" in on_a_terminal(*argv, TERM="xterm", NO_COLOR="")
    assert "\x1b" not in on_a_terminal(*argv, TERM="xterm", NO_COLOR="1")
    assert "\x1b" not in on_a_terminal(*argv, TERM="dumb", NO_COLOR="")


def on_a_terminal(*argv: str, **environment: str) -> str:
    """What a terminal gets to see of stdout and stderr."""
    ours, theirs = pty.openpty()
    with os.fdopen(ours, "rb", buffering=0) as screen:
        try:
            cli(*argv, stdout=theirs, stderr=theirs, **environment)
        finally:
            os.close(theirs)
        shown = b""
        try:
            while part := screen.read(65_536):
                shown += part
        except OSError:  # how Linux says that the last writer has closed it
            pass
    return shown.decode()


@pytest.mark.parametrize(
    ("setting", "value"), [("REMIT_NATS_URL", "http://127.0.0.1:4222"), ("REMIT_NATS_CREDS", "/there/is/no/such.creds")]
)
def test_a_plan_names_the_setting_that_cannot_be_meant(setting: str, value: str) -> None:
    done = cli("plan", "check logs", **{setting: value})
    assert done.returncode == EXIT_USAGE
    assert done.stderr.startswith("remit: ") and done.stderr.count("\n") == 1

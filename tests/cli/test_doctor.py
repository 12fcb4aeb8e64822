"""`remit doctor`: whether goals are taken and steps performed, which no answer of an agent or the registry says."""

import json
import sys
import sysconfig
from pathlib import Path

import pytest

from cli.doctor import is_optimised
from tests.stack import Stack, stack, until


def states(made: Stack) -> dict[str, str]:
    answered = made.remit("doctor", "-o", "json")
    found = {one["what"]: one["state"] for one in json.loads(answered.stdout)}
    assert answered.returncode == ("failing" in found.values()), answered.stderr
    return found


def test_doctor_says_whether_anybody_plans_and_works(tmp_path: Path) -> None:
    """Nobody, then each as it comes; and who has been killed is missed."""
    with stack(tmp_path, "registry") as made:
        until(lambda: states(made)["registry"] == "ok", "the streams are there")
        assert (states(made)["planner"], states(made)["workers"]) == ("failing", "failing")
        made.start("planner")
        until(lambda: states(made)["planner"] == "ok", "goals are taken")
        assert states(made)["workers"] == "failing"
        made.start("executor")
        until(lambda: states(made)["workers"] == "ok", "steps are performed")
        made.kill("executor")
        until(lambda: states(made)["workers"] == "failing", "its worker has gone with it")


@pytest.mark.parametrize(
    ("prefix", "arguments", "optimised"),
    [
        ("/root/.pyenv/versions/3.11.7", "'--prefix=/root/.pyenv/versions/3.11.7' '--enable-shared'", False),
        ("/opt/python", None, False),
        ("/usr/local", "'--enable-loadable-sqlite-extensions' '--enable-optimizations' '--with-lto'", True),
        ("/usr", "'--enable-shared' '--prefix=/usr' 'CFLAGS=-g -O2'", True),
    ],
)
def test_a_python_that_was_built_slow_is_told(
    prefix: str, arguments: str | None, optimised: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "base_prefix", prefix)
    monkeypatch.setattr(sysconfig, "get_config_var", {"CONFIG_ARGS": arguments}.get)
    assert is_optimised() is optimised

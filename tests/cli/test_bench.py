"""`remit bench` measures a real stack: it starts one, runs floor and Remit through it, leaves nothing running."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.cli.test_up import environment
from tests.stack import ROOT


@pytest.mark.slow
@pytest.mark.parametrize("parallel", [(), ("--parallel", "5")], ids=["all at once", "five at a time"])
def test_a_run_of_parallel_steps_is_measured_beside_its_floor(tmp_path: Path, parallel: tuple[str, ...]) -> None:
    figures = bench(tmp_path, "fan", "--steps", "120", *parallel)
    assert (figures["steps"], figures["parallel"]) == (120, 5 if parallel else 120)
    assert figures["ratio"] == pytest.approx(figures["remit_steps_s"] / figures["floor_steps_s"], abs=0.01)
    assert figures["seconds"] == pytest.approx(120 / figures["remit_steps_s"], abs=0.01)
    assert figures["decider_cpu_s"] >= 0 and set(figures["others_cpu_s"]) == {"worker", "planner", "registry", "nats"}


@pytest.mark.slow
def test_runs_are_measured_beside_their_floor_and_the_fold_behind_the_stream(tmp_path: Path) -> None:
    figures = bench(tmp_path, "runs", "--seconds", "1")
    assert figures["ratio"] == pytest.approx(figures["remit_runs_s"] / figures["floor_runs_s"], abs=0.01)
    assert figures["p50_ratio"] == pytest.approx(figures["remit_p50_ms"] / figures["floor_p50_ms"], abs=0.01)
    assert figures["fold_events_s"] > figures["remit_runs_s"], "a run has several events"
    # It writes what it folds a few times in a second, so in a second of load some event is seen to wait.
    assert 0 < figures["fold_behind_s"] < 30


def bench(folder: Path, *argv: str) -> dict[str, Any]:
    """The figures of `remit bench …`, with nothing left in its folder."""
    env = {**environment(folder), "TMPDIR": str(folder)}
    done = subprocess.run(
        [sys.executable, "-m", "cli", "bench", *argv, "--output", "json"],
        env=env, cwd=ROOT, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert not list(folder.glob("remit-bench-*")), "its folder is left"
    figures: dict[str, Any] = json.loads(done.stdout)
    return figures

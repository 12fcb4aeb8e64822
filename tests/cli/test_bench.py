"""`remit bench fan` measures a real stack: it starts one, runs floor and Remit through it, leaves nothing running."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.test_up import environment
from tests.stack import ROOT


@pytest.mark.slow
@pytest.mark.parametrize("parallel", [(), ("--parallel", "5")], ids=["all at once", "five at a time"])
def test_a_run_of_parallel_steps_is_measured_beside_its_floor(tmp_path: Path, parallel: tuple[str, ...]) -> None:
    argv = [sys.executable, "-m", "cli", "bench", "fan", "--steps", "120", *parallel, "--output", "json"]
    env = {**environment(tmp_path), "TMPDIR": str(tmp_path)}
    done = subprocess.run(argv, env=env, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    figures = json.loads(done.stdout)
    assert (figures["steps"], figures["parallel"]) == (120, 5 if parallel else 120)
    assert figures["ratio"] == pytest.approx(figures["remit_steps_s"] / figures["floor_steps_s"], abs=0.01)
    assert figures["seconds"] == pytest.approx(120 / figures["remit_steps_s"], abs=0.01)
    assert figures["decider_cpu_s"] >= 0 and set(figures["others_cpu_s"]) == {"worker", "planner", "registry", "nats"}
    assert not list(tmp_path.glob("remit-bench-*")), "its folder is left"

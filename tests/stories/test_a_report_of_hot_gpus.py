"""GPUs of two hosts, seen through the unmodified NVML binding and a library that stands in: the hot ones are named."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.stack import SERVICES, Stack, stack, until
from tests.standins.nvml import GIB, Gpu, Host, NoCompiler, build, environment, scenario

THERMAL = 0x40  # NVML's hardware thermal slowdown
POWER = 0x04  # NVML's software power cap


def card(index: int, **looks: Any) -> Gpu:
    return Gpu(uuid=f"GPU-{index:08d}-aaaa-bbbb-cccc-000000000000", name=f"Card {index}", **looks)


CARDS = [
    card(0),  # at rest
    card(1, utilization=[70, 100]),  # 85 % on the mean
    card(2, utilization=80),  # exactly at the threshold, so not above it
    card(3, utilization=[100, 60]),  # a full second, and 80 % on the mean of both
    card(4, memory_used=23 * GIB),  # 96 % of its memory
    card(5, throttle=THERMAL, temperature=97),
    card(6, throttle=POWER),
    card(7, utilization="x", temperature="x", power_mw="x", throttle="x"),  # supports little
]


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """The services, and two GPU agents: `hot` with eight cards, `bare` with a driver and no card."""
    folder = tmp_path_factory.mktemp("nvml")
    try:
        library = build(folder)
    except NoCompiler as reason:
        pytest.skip(str(reason))
    with stack(tmp_path_factory.mktemp("stack"), *SERVICES) as made:
        for name, gpus in (("hot", CARDS), ("bare", [])):
            told = scenario(folder / f"{name}.scenario", Host(gpus=gpus))
            agent = {key: environment(library, told)[key] for key in ("LD_LIBRARY_PATH", "REMIT_NVML_STANDIN")}
            made.start("gpu_agent", REMIT_HOST=name, REMIT_GPU_INTERVAL_S="0.1", **agent)
            made.processes[f"gpu_agent_{name}"] = made.processes.pop("gpu_agent")
        until(lambda: hosts(made) == ["bare", "hot"], "both agents answer")
        until(lambda: samples(made) >= 20, "the window fills")
        yield made


def hosts(remit: Stack) -> list[str]:
    done = remit.remit("hosts", "-o", "json")
    return [one["host"] for one in json.loads(done.stdout) if "gpu" in one["agents"]] if done.returncode == 0 else []


def samples(remit: Stack) -> int:
    return int(report(remit, "--host", "hot")[1]["gpus"][0]["utilization_pct"]["samples"])


def report(remit: Stack, *argv: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """The run and its gpu_report.json."""
    done = remit.remit("submit", "report GPU usage", *argv, "--wait", "-o", "json")
    assert done.returncode == 0, done.stderr
    run = json.loads(done.stdout)
    return run, json.loads(remit.remit("artifacts", str(run["run"]), "gpu_report.json").stdout)


def test_the_hot_ones_are_named_with_their_reason(fleet: Stack) -> None:
    """Strictly above 80 % on the mean, above 90 % of the memory, held down by heat or by power; nobody else."""
    run, document = report(fleet)
    assert [step["task"] for step in run["steps"]] == ["gpu_report"]
    assert (document["status"], document["gpu_count"]) == ("success", 8)
    hot = {(spot["host"], spot["gpu"], spot["kind"]): spot for spot in document["hotspots"]}
    # Card 3 shows 100 and 60 in turn: over an odd number of samples its true mean is a hair above 80.
    mean_3 = next(gpu for gpu in document["gpus"] if gpu["index"] == 3)["utilization_pct"]["mean"]
    expected = {
        ("hot", 1, "utilization"),
        ("hot", 4, "memory"),
        ("hot", 5, "thermal_throttle"),
        ("hot", 6, "power_throttle"),
    } | ({("hot", 3, "utilization")} if mean_3 > 80 else set())
    assert set(hot) == expected
    assert 83 < hot["hot", 1, "utilization"]["value"] < 87
    assert hot["hot", 4, "memory"]["value"] > 90
    assert all(spot["why"] for spot in hot.values())
    assert {gpu["name"] for gpu in document["gpus"]} == {one.name for one in CARDS}
    assert len(run["steps"][0]["outputs"]["hotspots"]) == len(expected)


def test_what_a_card_does_not_support_is_null(fleet: Stack) -> None:
    _, document = report(fleet, "--host", "hot")
    poor = next(gpu for gpu in document["gpus"] if gpu["index"] == 7)
    assert poor["utilization_pct"]["mean"] is None
    assert poor["temperature_c"]["now"] is None
    assert poor["memory_pct"]["now"] is not None


def test_the_threshold_is_the_goal_s_to_choose(fleet: Stack) -> None:
    _, document = report(fleet, "--host", "hot", "--param", "utilization_threshold_pct=79.9")
    assert document["utilization_threshold_pct"] == 79.9
    named = {spot["gpu"] for spot in document["hotspots"] if spot["kind"] == "utilization"}
    assert {1, 2} <= named <= {1, 2, 3}


def test_a_host_that_does_not_answer_is_named_and_the_rest_reported(fleet: Stack) -> None:
    run, document = report(fleet, "--host", "hot", "--host", "nowhere")
    assert (run["status"], document["status"]) == ("succeeded", "partial")
    assert document["missing_hosts"] == ["nowhere"]
    assert document["gpu_count"] == 8
    assert set(run["steps"][0]["outputs"]["missing_hosts"]) == {"nowhere"}


def test_a_host_without_gpus_is_no_error(fleet: Stack) -> None:
    run, document = report(fleet, "--host", "bare")
    assert (run["status"], document["status"], document["gpu_count"]) == ("succeeded", "no_gpus_available", 0)
    assert (document["gpus"], document["hotspots"], document["missing_hosts"]) == ([], [], [])


def test_nobody_who_answers_is_said_and_the_run_succeeds(tmp_path: Path) -> None:
    """No agent at all: the report is there and says that there are none."""
    with stack(tmp_path, *SERVICES) as empty:
        until(lambda: empty.remit("runs").returncode == 0, "the registry answers")
        run, document = report(empty)
    assert (run["status"], document["status"], document["gpu_count"]) == ("succeeded", "no_gpus_available", 0)


@pytest.mark.parametrize("value", ['"much"', "101", "-1", "null", "true"])
def test_a_parameter_that_is_none_fails_the_step_with_its_field(fleet: Stack, value: str) -> None:
    done = fleet.remit("submit", "--task", "gpu_report", "--param", f"utilization_threshold_pct={value}", "--wait")
    assert done.returncode == 1, done.stderr
    assert "params.utilization_threshold_pct" in done.stderr

"""`remit audit`, `replay` and `proof` against a running stack: the record is judged, told and proven."""

import asyncio
import json
import os
import pty
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from cli.__main__ import main
from shared.bus import connect
from shared.subjects import ARTIFACTS_BUCKET, artifact, run_completed, step_completed
from tests.stack import ROOT, Stack, stack, until

OFTEN = {"REMIT_SEAL_EVERY_S": "0.2"}


@pytest.fixture(scope="module")
def sealing(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    with stack(tmp_path_factory.mktemp("stack"), "planner", "executor", "sealer", environment=OFTEN) as made:
        until(lambda: remit(made, "submit", "--task", "noop").exit_code == 0, "goals are taken")
        yield made


@pytest.fixture(scope="module")
def done(sealing: Stack) -> int:
    """A run that is over."""
    return int(parsed(remit(sealing, "submit", "service map", "--wait", "-o", "json"))["run"])


@pytest.fixture(scope="module")
def bundle(sealing: Stack, done: int) -> Path:
    """The run's bundle, as soon as it is sealed."""
    path = sealing.folder / "run.json"
    until(lambda: remit(sealing, "proof", "export", str(done), "--to", str(path)).exit_code == 0, "it is sealed")
    return path


@pytest.fixture(scope="module")
def key(sealing: Stack) -> Path:
    path = sealing.folder / "sealer.pem"
    path.write_text(remit(sealing, "proof", "key").stdout)
    return path


def remit(sealing: Stack, *argv: str) -> Result:
    """The command in this process: dozens of new ones would take longer than all that is tested here."""
    return CliRunner().invoke(main, argv, env=sealing.environment)


def say(sealing: Stack, subject: str, data: bytes) -> None:
    async def published() -> None:
        bus = await connect(sealing.url, "test")
        await bus.publish(subject, data)
        await bus.flush()
        await bus.close()

    asyncio.run(published())


def write_over(sealing: Stack, run: int, name: str) -> None:
    async def put() -> None:
        bus = await connect(sealing.url, "test")
        await bus.object_put(ARTIFACTS_BUCKET, artifact(run, name), b"something else")
        await bus.close()

    asyncio.run(put())


def parsed(done: Result, code: int = 0) -> Any:
    assert done.exit_code == code, done.stderr + done.stdout
    return json.loads(done.stdout)


def changed(path: Path, name: str, **fields: Any) -> Path:
    """A copy of the bundle with its second event changed."""
    said = json.loads(path.read_text())
    said["events"][1].update(fields)
    copy = path.with_name(f"{name}.json")
    copy.write_text(json.dumps(said))
    return copy


def test_a_sound_run_has_no_findings(sealing: Stack, done: int) -> None:
    found = parsed(remit(sealing, "audit", str(done), "-o", "json"))
    assert found["findings"] == []
    assert (found["runs"], found["active"]) == (1, 0)
    assert found["artifacts"] > 0


def test_the_whole_stream_is_sound(sealing: Stack, done: int) -> None:
    found = remit(sealing, "audit", "--all")
    assert (found.exit_code, found.stdout) == (0, "")
    assert "no findings" in found.stderr


def test_a_run_that_there_is_not_is_not_found(sealing: Stack, done: int) -> None:
    assert remit(sealing, "audit", "999999").exit_code == 6
    assert remit(sealing, "replay", "999999").exit_code == 6
    assert remit(sealing, "audit").exit_code == 2


def test_a_replay_tells_each_event_with_who_why_and_what_it_changed(sealing: Stack, done: int) -> None:
    told = parsed(remit(sealing, "replay", str(done), "-o", "json"))["events"]
    kinds = [one["subject"].split(f".{done}")[0] for one in told]
    assert kinds == [
        "goal.submitted",
        "plan.created",
        "run.started",
        "step.dispatched",
        "step.completed",
        "run.completed",
    ]
    goal, plan, start, dispatch, result, end = told
    assert (goal["by"], plan["by"], start["by"]) == ("somebody", "planner", "executor")
    assert [one["cause"] for one in told[1:]] == [one["seq"] for one in told[:-1]]
    assert (start["run_before"], start["run_after"]) == ("pending", "running")
    assert (dispatch["step_before"], dispatch["step_after"]) == ("pending", "running (1)")
    assert (result["by"], result["step_after"]) == ("worker on testhost", "succeeded (1)")
    assert (end["run_before"], end["run_after"]) == ("running", "succeeded")


def test_a_replay_is_told_as_of_an_event_or_a_time(sealing: Stack, done: int) -> None:
    told = parsed(remit(sealing, "replay", str(done), "-o", "json"))["events"]
    third = told[2]
    for as_of in (str(third["seq"]), third["at"].replace("Z", "999Z")):
        shorter = parsed(remit(sealing, "replay", str(done), "--as-of", as_of, "-o", "json"))["events"]
        assert shorter == told[:3]
    day = told[-1]["at"][:10]
    assert parsed(remit(sealing, "replay", str(done), "--as-of", day, "-o", "json"))["events"] == told
    assert remit(sealing, "replay", str(done), "--as-of", "2020-01-01").exit_code == 6  # there was no goal yet
    for nothing in ("yesterday", "²", "9" * 5_000):  # int() takes none of the latter two
        assert remit(sealing, "replay", str(done), "--as-of", nothing).exit_code == 2


def test_stepping_ends_with_the_input(bundle: Path) -> None:
    """One Enter, then Ctrl-D: two events are told, and nobody waits for more."""
    ours, theirs = pty.openpty()
    try:
        os.write(ours, b"\n\x04")
        argv = [sys.executable, "-m", "cli", "replay", "--bundle", str(bundle), "--step"]
        done = subprocess.run(argv, cwd=ROOT, stdin=theirs, capture_output=True, text=True, timeout=20)
    finally:
        os.close(theirs)
        os.close(ours)
    assert done.returncode == 0, done.stderr
    assert [row.split()[2] for row in done.stdout.splitlines() if "  by " in row] == [
        "goal.submitted",
        f"plan.created.{json.loads(bundle.read_text())['run']}",
    ]


def test_a_replay_on_a_pipe_is_printed_whole(sealing: Stack, done: int) -> None:
    text = remit(sealing, "replay", str(done), "--step").stdout
    assert "run: pending → running" in text and "run: running → succeeded" in text


def test_a_bundle_is_verified_by_the_key_alone(sealing: Stack, done: int, bundle: Path, key: Path) -> None:
    verdict = remit(sealing, "proof", "verify", str(bundle), "--key", str(key))
    assert verdict.exit_code == 0, verdict.stdout
    assert verdict.stdout.startswith(f"proven: every event of run {done} from its goal to its end")


def test_a_bundle_that_was_changed_is_not(sealing: Stack, bundle: Path, key: Path) -> None:
    copy = changed(bundle, "changed", data="e30=")
    found = parsed(remit(sealing, "proof", "verify", str(copy), "--key", str(key), "-o", "json"), code=1)
    assert [flaw["what"] for flaw in found["flaws"]] == ["changed"]


def test_a_bundle_is_replayed_and_audited_without_a_nats(sealing: Stack, done: int, bundle: Path) -> None:
    live = parsed(remit(sealing, "replay", str(done), "-o", "json"))
    assert parsed(remit(sealing, "replay", "--bundle", str(bundle), "-o", "json")) == live
    assert parsed(remit(sealing, "audit", "--bundle", str(bundle), "-o", "json"))["findings"] == []
    broken = changed(bundle, "broken", data="e30=")
    found = parsed(remit(sealing, "audit", "--bundle", str(broken), "-o", "json"), code=1)
    assert found["findings"][0]["rule"] == "plan"


def test_the_stream_is_checked_against_its_seals(sealing: Stack, bundle: Path, key: Path) -> None:
    seals = sealing.folder / "seals.jsonl"
    checked = remit(sealing, "proof", "check", "--key", str(key), "--seals", str(seals))
    assert checked.exit_code == 0, checked.stdout
    lines = [json.loads(line) for line in seals.read_text().splitlines()]
    forged = sealing.folder / "forged.jsonl"
    forged.write_text("".join(json.dumps({**line, "root": "00" * 32}) + "\n" for line in lines[-1:]))
    told = parsed(remit(sealing, "proof", "check", "--seals", str(forged), "-o", "json"), code=1)
    assert f"to {lines[-1]['size']} is not what was sealed" in told["flaws"][0]["flaw"]


def test_what_is_no_key_is_told(sealing: Stack, bundle: Path, tmp_path: Path) -> None:
    der = tmp_path / "sealer.der"
    der.write_bytes(bytes(range(0x80, 0x100)))
    mistyped = "0" * 63 + "x"
    for text, why in (("nowhere.pem", "there is no file nowhere.pem"), (str(der), "no public key"), (mistyped, "")):
        told = remit(sealing, "proof", "verify", str(bundle), "--key", text)
        assert told.exit_code == 2 and isinstance(told.exception, SystemExit), told.exception
        assert told.stderr.startswith("remit: key: ") and why in told.stderr


def test_a_sealer_that_was_killed_goes_on_from_its_last_seal(sealing: Stack, bundle: Path, key: Path) -> None:
    before = parsed(remit(sealing, "proof", "seals", "-o", "json"))
    sealing.kill("sealer")
    assert remit(sealing, "submit", "--task", "noop", "--wait").exit_code == 0
    sealing.start("sealer")
    until(lambda: len(parsed(remit(sealing, "proof", "seals", "-o", "json"))) > len(before), "it seals again")
    assert f"sealing from event {before[-1]['size'] + 1} on" in sealing.log("sealer")
    assert remit(sealing, "proof", "check", "--key", str(key)).exit_code == 0


def test_an_artifact_that_is_not_what_was_announced_is_found(sealing: Stack, done: int) -> None:
    run = int(parsed(remit(sealing, "submit", "service map", "--wait", "-o", "json"))["run"])
    found = parsed(remit(sealing, "artifacts", str(run), "-o", "json"))["artifacts"][0]

    write_over(sealing, run, found["name"])
    told = parsed(remit(sealing, "audit", str(run), "-o", "json"), code=1)["findings"]
    assert [(one["rule"], one["step"]) for one in told] == [("artifact", found["step"])]
    assert parsed(remit(sealing, "audit", str(run), "--no-artifacts", "-o", "json"))["findings"] == []


def test_a_reused_artifact_that_was_changed_is_found_in_the_run_that_reuses_it(sealing: Stack) -> None:
    first = parsed(remit(sealing, "submit", "--task", "service_map", "--task", "noop", "--wait", "-o", "json"))
    again = ("submit", "--retry-of", str(first["run"]), "--from-step", "noop", "--wait", "-o", "json")
    run = int(parsed(remit(sealing, *again))["run"])
    name = first["artifacts"][0]["name"]

    write_over(sealing, first["run"], name)
    told = parsed(remit(sealing, "audit", str(run), "-o", "json"), code=1)["findings"]
    assert [(one["rule"], one["run"]) for one in told] == [("artifact", run)]
    assert told[0]["text"].startswith(f"{name} of run {first['run']}: it has 14 bytes in the store")


def test_a_finding_names_the_events_that_prove_it(sealing: Stack) -> None:
    """Somebody without Remit's services says an end again on its subject."""
    run = int(parsed(remit(sealing, "submit", "--task", "noop", "--wait", "-o", "json"))["run"])
    say(sealing, step_completed(run, "noop", 1), b'{"outputs":{}}')
    say(sealing, run_completed(run), b"{}")
    until(lambda: remit(sealing, "audit", str(run)).exit_code == 1, "it is found")
    told = parsed(remit(sealing, "audit", str(run), "-o", "json"), code=1)
    assert [one["rule"] for one in told["findings"]] == ["one_end"]
    assert len(told["findings"][0]["events"]) == 2

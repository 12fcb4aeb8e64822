"""What a command shows is not older than the command before it."""

import json

import pytest

from cli import speak
from shared.bus import Bus
from tests.stack import Stack


def test_a_run_that_has_just_ended_is_in_every_list(remit: Stack, client: Bus) -> None:
    """The registry writes five times a second; who asks has it written what is there."""
    for count in range(1, 6):
        done = json.loads(remit.remit("submit", "--task", "noop", "--wait", "-o", "json").stdout)
        listed = json.loads(remit.remit("runs", "--limit", "1", "-o", "json").stdout)["runs"]
        assert [(row["run"], row["status"]) for row in listed] == [(done["run"], "succeeded")]
        remit.remit("submit", "--task", "noop", "--wait")
        counted = json.loads(remit.remit("sql", "select count(*) as n from ended_runs", "-o", "json").stdout)
        assert counted["rows"] == [{"n": 2 * count}]


async def test_a_registry_that_is_far_behind_is_told(
    client: Bus, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(speak, "FAR_BEHIND_EVENTS", -1)  # so that any registry is
    answer = await speak.ask(client, "runs")
    assert f"catching up: this is as of event {answer.position} of " in capsys.readouterr().err
    assert (await speak.ask(client, "status", as_it_stands=True)).more["behind_events"] >= 0

"""How the command is called: every verb's help, and what nobody can mean. No process and no NATS is needed for it."""

import json
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from click.testing import CliRunner, Result

from cli.__main__ import COMMANDS, SERVICES, exit_of_tests, main
from shared.audit.findings import RULES

NESTED = [("proof", "key"), ("proof", "seals"), ("proof", "export"), ("proof", "verify"), ("proof", "check"),
          ("allow", "add"), ("allow", "ls"), ("allow", "rm"), ("allow", "disable"), ("allow", "enable"),
          ("tasks", "add"), ("tasks", "ls"), ("tasks", "rm"),
          ("directives", "ls"), ("directives", "show"), ("directives", "set"), ("directives", "rm"),
          ("directives", "history"),
          ("playbooks", "ls"), ("playbooks", "show"), ("playbooks", "set"), ("playbooks", "rm"),
          ("bench", "runs"), ("bench", "fan"), ("bench", "fold"), ("bench", "restart"), ("bench", "memory"),
          ("bench", "triage")]  # fmt: skip


def invoke(*argv: str) -> Result:
    """The command in this process; an address where nobody is, so that who asks would end with 5."""
    return CliRunner(env={"REMIT_NATS_URL": "nats://127.0.0.1:1"}).invoke(main, argv, prog_name="remit")


@pytest.mark.parametrize("verb", [(), *((one,) for one in (*COMMANDS, *SERVICES)), *NESTED], ids=" ".join)
def test_every_verb_has_help(verb: tuple[str, ...]) -> None:
    done = invoke(*verb, "--help")
    assert done.exit_code == 0, done.stderr
    assert done.stdout.startswith("Usage: remit")
    assert done.stderr == ""


def test_the_tests_end_with_the_exit_codes_of_every_command() -> None:
    """pytest's own mean other things: 3 would be "rejected", 5 "unreachable"."""
    ours = {code: exit_of_tests(code) for code in pytest.ExitCode}
    assert (ours.pop(pytest.ExitCode.OK), ours.pop(pytest.ExitCode.USAGE_ERROR)) == (0, 2)
    assert set(ours.values()) == {1}
    assert exit_of_tests(-9) == 1


def test_the_version_is_told() -> None:
    assert invoke("--version").stdout.startswith("remit, version ")


@pytest.mark.parametrize(
    "argv",
    [
        ["nonsense"],
        ["runs", "--nonsense"],
        ["runs", "--limit", "0"],
        ["runs", "--status", "nonsense"],
        ["runs", "-o", "xml"],
        ["show"],
        ["show", "abc"],
        ["show", "0"],
        ["show", "-1"],
        ["show", "1.5"],
        ["show", "9" * 30],
        ["show", "1", "2"],
        ["approvals", "1", "--limit", "0"],
        ["approve"],
        ["approve", "1", "a", "b"],
        ["approve", "1", "--as", "42"],
        ["approve", "1", "--as", "a.b"],
        ["reject", "none"],
        ["cancel"],
        ["retry", "1", "--from", "A B"],
        ["submit", "check logs", "--as", "*"],
        ["submit"],
        ["submit", ""],
        ["submit", "   "],
        ["submit", "x" * 2001],
        ["submit", "check logs", "--max-steps", "0"],
        ["submit", "check logs", "--time-budget", "86401"],
        ["submit", "check logs", "--token-budget", "-1"],
        ["submit", "check logs", "--param", "novalue"],
        ["sql", "select 1", "--to", "x.txt"],
        ["daily", "-o", "json", "--to", "x.json"],
        ["submit", "check logs", "--param", "deep=" + "[" * 100_000],
        ["submit", "check logs", "--directive", "a b"],
        ["submit", "check logs", "--host", "a.b"],
        ["submit", "--playbook", "a b"],
        ["submit", "--playbook", "fleet_health", "--task", "noop"],
        ["submit", "--retry-of", "0"],
        ["submit", "--retry-of", "forty"],
        ["submit", "--from-step", "a"],
        ["submit", "--retry-of", "42", "--from-step", "A"],
        ["log-agent", "--log-glob", "/var/log/*.log:/srv/*.log"],
        ["playbooks"],
        ["playbooks", "set", "a"],
        ["playbooks", "set", "a.b", "--file", "pyproject.toml"],
        ["playbooks", "set", "a", "--file", "/nonexistent"],
        ["playbooks", "rm"],
        ["directives", "set", "a", "--approvals-needed", "0"],
        ["directives", "set", "a", "--on-failure", "panic"],
        ["plan"],
        ["plan", "check logs", "--max-steps", "ten"],
        ["allow"],
        ["allow", "add"],
        ["allow", "add", ""],
        ["allow", "add", "/a/../b"],
        ["allow", "add", "docker:"],
        ["allow", "add", "web", "--host", "a b"],
        ["tasks", "add", "a.b"],
        ["tasks", "add", ""],
        ["tasks", "add", "noop"],
        ["tasks", "add", "good", "--keyword", "two words"],
        ["tasks", "add", "good", "--timeout", "0"],
        ["bench", "runs", "--seconds", "0"],
        ["bench", "fan", "--steps", "0"],
        ["bench", "fan", "--steps", "20000"],
        ["bench", "fan", "--parallel", "0"],
        ["bench", "memory", "--runs", "1"],
        ["up", "--nats-port", "70000"],
        ["up", "--data-dir", ""],
        ["proof", "key", "--data-dir", ""],
        ["rebuild", "now"],
    ],
    ids=lambda argv: " ".join(argv)[:40],
)
def test_what_nobody_can_mean_is_a_usage_error(argv: list[str]) -> None:
    """Exit 2, a line on stderr, nothing on stdout, and nobody is asked."""
    done = invoke(*argv)
    assert done.exit_code == 2, (done.stdout, done.stderr)
    assert isinstance(done.exception, SystemExit)
    assert done.stdout == ""
    assert done.stderr


@pytest.mark.parametrize(
    ("argv", "named"),
    [
        (["allow", "add", "/var/log/\udcff*.log"], "SOURCE"),
        (["allow", "add", "web", "--tag", "fine", "--tag", "\udcff"], "--tag"),
        (["allow", "rm", "\udcff"], "ENTRY"),
        (["tasks", "add", "greet", "--description", "\udcff"], "--description"),
        (["directives", "set", "a", "--description", "\udcff"], "--description"),
        (["schedules", "add", "a", "--cron", "0 2 * * *", "--goal", "\udcff"], "--goal"),
        (["submit", "check \udcff"], "GOAL"),
        (["submit", "check logs", "--param", "a=\udcff"], "--param"),
        (["reject", "1", "--reason", "\udcff"], "--reason"),
        (["cancel", "1", "--reason", "\udcff"], "--reason"),
        (["sql", "select '\udcff'"], "QUERY"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_bytes_that_are_no_text_are_named(argv: list[str], named: str) -> None:
    """No message can hold them: exit 2, and the argument at fault with what was given."""
    done = invoke(*argv)
    assert done.exit_code == 2, (done.stdout, done.stderr, done.exception)
    assert named in done.stderr.splitlines()[-1], done.stderr
    assert "\\xff" in done.stderr.splitlines()[-1]
    assert done.stdout == ""


def test_a_file_that_holds_no_prices_is_a_usage_error(tmp_path: Path) -> None:
    for data in (b"", b"\xff", b"[]", b'{"of_a_newer_writer":' + b"[" * 100_000):
        (tmp_path / "rates.json").write_bytes(data)
        done = invoke("daily", "--rates", str(tmp_path / "rates.json"))
        assert done.exit_code == 2 and isinstance(done.exception, SystemExit), (data[:30], done.exception)
        assert "holds no prices" in done.stderr


# What prints no data: a demonstration, a stack or a service until it is ended, the checks of a checkout.
SILENT = {"demo", "up", "test", *SERVICES}


def test_every_verb_that_prints_data_prints_json() -> None:
    def leaves(command: click.Command, words: tuple[str, ...]) -> Iterator[tuple[str, click.Command]]:
        if not isinstance(command, click.Group):
            yield " ".join(words), command
            return
        context = click.Context(command)
        for name in command.list_commands(context):
            below = command.get_command(context, name)
            assert below is not None
            yield from leaves(below, (*words, name))

    def prints_json(command: click.Command) -> bool:
        kinds = [one.type for one in command.params if "--output" in one.opts]
        return any(isinstance(kind, click.Choice) and "json" in kind.choices for kind in kinds)

    without = {name for name, command in leaves(main, ()) if not prints_json(command)}
    assert without == SILENT


def test_the_rules_of_an_audit_are_data_too() -> None:
    done = invoke("audit", "--rules", "-o", "json")
    assert done.exit_code == 0
    assert [one["rule"] for one in json.loads(done.stdout)] == list(RULES)

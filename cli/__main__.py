"""The whole of the `remit` command on one screen; a command's module is imported when it is asked for."""

import importlib
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import click

from shared.status import EXIT_DONE, EXIT_FAILED, EXIT_USAGE

PYTEST_USAGE = 4  # pytest.ExitCode.USAGE_ERROR; pytest is not there where nobody has tested yet

# verb -> (module, attribute)
COMMANDS = {
    "demo": ("cli.demo", "demo"),
    "up": ("cli.stack", "up"),
    "doctor": ("cli.doctor", "doctor"),
    "plan": ("cli.goals", "plan"),
    "submit": ("cli.goals", "submit"),
    "approvals": ("cli.approvals", "approvals"),
    "approve": ("cli.approvals", "approve"),
    "reject": ("cli.approvals", "reject"),
    "cancel": ("cli.steering", "cancel"),
    "retry": ("cli.steering", "retry"),
    "runs": ("cli.runs", "runs"),
    "show": ("cli.runs", "show"),
    "watch": ("cli.runs", "watch"),
    "report": ("cli.runs", "report"),
    "artifacts": ("cli.runs", "artifacts"),
    "events": ("cli.runs", "events"),
    "replay": ("cli.replay", "replay"),
    "audit": ("cli.audit", "audit"),
    "proof": ("cli.proof", "proof"),
    "archive": ("cli.archive", "archive"),
    "tokens": ("cli.reports", "tokens"),
    "usage": ("cli.reports", "usage"),
    "daily": ("cli.reports", "daily"),
    "sql": ("cli.reports", "sql"),
    "hosts": ("cli.runs", "hosts"),
    "allow": ("cli.fleet", "allow"),
    "tasks": ("cli.fleet", "tasks"),
    "directives": ("cli.directives", "directives"),
    "playbooks": ("cli.playbooks", "playbooks"),
    "schedules": ("cli.schedules", "schedules"),
    "rebuild": ("cli.ledger", "rebuild"),
    "bench": ("cli.bench", "bench"),
    "test": ("cli.__main__", "test"),
}
SERVICES = ("planner", "executor", "registry", "sealer", "gateway", "gpu-agent", "log-agent")


class Lazy(click.Group):
    """Imports a command's module only when it is used: `remit --help` takes a tenth of a second."""

    def main(self, *args: Any, **extra: Any) -> Any:
        stand_in()
        if os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb":
            extra.setdefault("color", False)
        try:
            return super().main(*args, **extra)
        except OSError as error:  # a full disk under `--help`; a command of ours tells of its own
            from cli.speak import fail

            fail(str(error.strerror or error), 1)

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [*COMMANDS, *SERVICES]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name in COMMANDS:
            module, attribute = COMMANDS[cmd_name]
            command: click.Command = getattr(importlib.import_module(module), attribute)
            return command
        if cmd_name in SERVICES:
            from cli.stack import service_commands

            return next(one for one in service_commands() if one.name == cmd_name)
        return None


def stand_in() -> None:
    """/dev/null where stdin, stdout or stderr is closed: a socket would take its number, and uvloop aborts."""
    while (opened := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(opened, True)  # for the services that we start
    os.close(opened)
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(number, "w" if number else "r", encoding="utf-8", closefd=False))


@click.group(cls=Lazy, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(None, "--version", package_name="remit", prog_name="remit")
def main() -> None:
    """Remit runs what operators ask for, within what they allow, and can prove what happened.

    \b
    First steps:
      remit demo                              the main job, once, on this machine
      remit up                                the whole stack, until Ctrl-C
      remit allow add web                     let the logs of container `web` be read
      remit submit "check logs and GPU" --wait
      remit runs                              what ran

    Data goes to stdout, talk to stderr. Exit codes: 0 done, 1 failed, 2 usage, 3 rejected or cancelled,
    5 unreachable, 6 not found, 7 a budget ended.
    """


@click.command(context_settings={"ignore_unknown_options": True})
@click.option("--chaos", is_flag=True, help="The long chaos suite instead.")
@click.argument("rest", nargs=-1, type=click.UNPROCESSED)
def test(chaos: bool, rest: tuple[str, ...]) -> None:
    """Run the checks of a checkout: ruff, mypy, pytest. Further arguments go to pytest, without the others."""
    # What is compiled is kept (and ignored by git): the tests start Remit a thousand times.
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    root = Path(__file__).resolve().parent.parent
    if not (root / "tests").is_dir():
        raise click.UsageError("the tests are in a checkout, not in an installed package")
    os.chdir(root)
    types = None
    if not rest and not chaos:
        for argv in (["ruff", "check", "."], ["ruff", "format", "--check", "."]):
            if subprocess.run([sys.executable, "-m", *argv]).returncode:
                raise SystemExit(EXIT_FAILED)  # a "313 passed" after it would hide it
        types = subprocess.Popen([sys.executable, "-m", "mypy"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    marks = ["-m", "chaos" if chaos else "not chaos"]
    # Most tests wait for real processes: six at a time on two cores, a file's tests together, as they share a stack,
    # in the order of tests/conftest.py and not by how many a file has.
    width = ["-n", "6", "--dist", "loadfile", "--no-loadscope-reorder"] if not rest and not chaos else []
    try:
        tested = subprocess.run([sys.executable, "-m", "pytest", *marks, *width, *rest]).returncode
    except BaseException:
        if types is not None:
            types.kill()
        raise
    if types is not None:  # it takes one core for half a minute, which the tests leave it; its word comes last
        click.echo(types.communicate()[0], nl=False)
        tested = tested or bool(types.returncode)
    raise SystemExit(exit_of_tests(tested))


def exit_of_tests(code: int) -> int:
    """pytest's exit code as one of ours: its 5, no test was found, would be "unreachable"."""
    return {0: EXIT_DONE, PYTEST_USAGE: EXIT_USAGE}.get(code, EXIT_FAILED)


if __name__ == "__main__":
    main(prog_name="remit")

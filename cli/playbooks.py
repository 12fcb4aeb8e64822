"""`remit playbooks`: plans as data, built in and of one's own."""

import subprocess
import sys
from pathlib import Path
from typing import NoReturn

import click
import msgspec

from cli.speak import common, data, ends_well, table, talk, with_bus
from shared.bus import Bus
from shared.catalogue import BUILT_IN, playbook_texts
from shared.config import Config
from shared.errors import NotFound, RemitError
from shared.plan import Problem
from shared.playbook import Playbook
from shared.status import EXIT_REJECTED, EXIT_USAGE
from shared.subjects import CONFIG_BUCKET, playbook_key, token


@click.group()
def playbooks() -> None:
    """Plans as data: named, with parameters, chosen by name or by a goal's words.

    A run keeps the steps of its plan, whatever becomes of the playbook later.

    \b
    remit playbooks ls
    remit playbooks show fleet_health > mine.toml
    remit playbooks set mine --file mine.toml
    remit submit --playbook mine --param window_s=300 --wait
    """


async def _configured(bus: Bus) -> dict[str, Playbook]:
    config = await Config(bus).start()
    await config.stop()
    return config.catalogue.playbooks


@playbooks.command("ls")
@common
@ends_well
def playbooks_ls(output: str) -> None:
    """List the playbooks, the built-in ones among them."""
    found = with_bus(_configured)
    rows = [
        {
            "name": name,
            "version": found[name].version,
            "built_in": found[name] == BUILT_IN.playbooks.get(name),
            "steps": len(found[name].steps),
            "params": [f"{param}*" if spec.required else param for param, spec in found[name].params.items()],
            "words": [" ".join(group) for group in found[name].words],
            "description": found[name].description,
        }
        for name in sorted(found)
    ]
    if output == "json":
        data(rows)
    else:
        table(rows, ("name", "version", "steps", "params", "words", "description"))


@playbooks.command("show")
@click.argument("name")
@common
@ends_well
def playbooks_show(output: str, name: str) -> None:
    """Print the TOML of playbook NAME, as `set --file` takes it."""
    token(name, "name")

    async def read(bus: Bus) -> tuple[bytes, Playbook | None]:
        stored = await bus.kv_get(CONFIG_BUCKET, playbook_key(name))
        text = stored[0] if stored else playbook_texts().get(name)
        if text is None:
            raise NotFound(f"there is no playbook {name!r}; `remit playbooks ls` shows them")
        return text, (await _configured(bus)).get(name)

    text, playbook = with_bus(read)
    if output == "json":
        data({"name": name, "toml": text.decode(errors="replace"), "playbook": playbook})
    else:
        click.echo(text.decode(errors="replace"), nl=not text.endswith(b"\n"))


@playbooks.command("set")
@click.argument("name")
@click.option(
    "--file", "path", required=True, type=click.Path(path_type=Path, exists=True, dir_okay=False), help="Its TOML."
)
@common
@ends_well
def playbooks_set(output: str, name: str, path: Path) -> None:
    """Make or change playbook NAME; a built-in one is replaced until `rm NAME`.

    It is checked first, as the planner would, and all that is wrong with it is told: exit 2, and nothing is changed.
    """
    token(name, "name")
    text = path.read_bytes()
    done = subprocess.run(
        [sys.executable, "-m", "services.planner", "--check-playbook", name], input=text, stdout=subprocess.PIPE
    )
    if done.returncode == EXIT_REJECTED:
        _refuse(msgspec.json.decode(done.stdout, type=list[Problem]), output)
    if done.returncode == EXIT_USAGE:
        raise SystemExit(EXIT_USAGE)  # it has told why
    if done.returncode:
        raise RemitError(f"the playbook could not be checked (exit {done.returncode})")

    async def put(bus: Bus) -> Playbook:
        stored = await bus.kv_get(CONFIG_BUCKET, playbook_key(name))
        await bus.kv_put(CONFIG_BUCKET, playbook_key(name), text, revision=stored[1] if stored else 0)
        return (await _configured(bus))[name]

    playbook = with_bus(put)
    if output == "json":
        data({"name": name, "version": playbook.version})
    else:
        click.echo(f"{name} version {playbook.version}")
    talk(f"goals submitted from now on run it: remit submit --playbook {name}")


def _refuse(problems: list[Problem], output: str) -> NoReturn:
    if output == "json":
        data({"problems": problems})
    for problem in problems:
        talk(f"{problem.field}: {problem.reason}")
    raise SystemExit(EXIT_USAGE)


@playbooks.command("rm")
@click.argument("name")
@common
@ends_well
def playbooks_rm(output: str, name: str) -> None:
    """Remove playbook NAME; a built-in one is as it was at first again."""
    token(name, "name")

    async def remove(bus: Bus) -> None:
        if await bus.kv_get(CONFIG_BUCKET, playbook_key(name)) is None:
            why = "is built in and was never changed" if name in BUILT_IN.playbooks else "does not exist"
            raise NotFound(f"playbook {name!r} {why}")
        await bus.kv_delete(CONFIG_BUCKET, playbook_key(name))

    with_bus(remove)
    if output == "json":
        data({"removed": name})
    talk(f"removed {name}")

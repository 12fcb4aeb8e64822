"""`remit demo`: everything started, one real goal run on this machine, everything ended."""

import asyncio
import glob
import re
import shlex
import shutil
from pathlib import Path
from typing import Any

import click
import msgspec

from cli.fleet import entry_id, put_entry
from cli.follow import follow
from cli.keeper import SERVICES, Keeper, until_ready
from cli.runs import read_artifact
from cli.speak import ends_well, talk
from cli.stack import environment, held
from shared.allow import AllowEntry, normal
from shared.append import Appender
from shared.bus import Bus
from shared.errors import Unavailable
from shared.gpu import GpuHostReport, GpuReportRequest
from shared.log_reading import all_sources
from shared.plan import Goal
from shared.settings import data_dir, host_name
from shared.showing import tokens_told
from shared.status import EXIT_OF_STATUS
from shared.subjects import goal_submitted, gpu_report

GOAL = "Check logs and GPUs and map the services on this host"
PLAYBOOK = "fleet_health"
HEAD_LINES = 24
SYSTEM_LOGS = ("/var/log/*.log", "/var/log/syslog", "/var/log/messages")


@click.command()
@click.option("--logs", "globs", multiple=True, metavar="GLOB", help="Also triage these log files of this machine.")
@click.option("--goal", default=GOAL, show_default=True, help="Run this goal instead.")
@ends_well
def demo(globs: tuple[str, ...], goal: str) -> None:
    """Do the main job once, on this machine, and stop.

    Starts NATS and every service, allows itself to read this host's containers (and says so), runs one goal, shows
    where the reports are, and leaves no process behind.
    """
    where = data_dir().absolute() / "demo"
    with held(where):
        for old in where.iterdir():  # each demo is a first one, on its own store
            if old.name != "lock":
                shutil.rmtree(old) if old.is_dir() else old.unlink()
        raise SystemExit(asyncio.run(_demo(where, globs, goal)))


async def _demo(where: Path, globs: tuple[str, ...], goal: str) -> int:
    host = host_name()
    keeper = Keeper(where, talk)
    try:
        url = await keeper.start_nats(0)
        await keeper.start_services(SERVICES, environment(url, where, host, 0))
        bus = await until_ready(url, SERVICES)
        try:
            await _look(bus, host, where, globs)
            return await _run(bus, where, goal)
        finally:
            await bus.close()
    finally:
        await keeper.stop()


async def _look(bus: Bus, host: str, where: Path, globs: tuple[str, ...]) -> None:
    """Say what is here, and allow out loud what the demo reads."""
    found = await all_sources(bus, host, timeout_s=10)
    containers = [one for one in found.sources if one.kind == "docker"]
    talk(f"host {host}")
    if found.engine:
        talk(f"  containers: {found.engine.name} {found.engine.version}, {len(containers)} of them")
    else:
        talk(f"  containers: no engine answers ({found.engine_error})")
    talk(f"  GPUs: {await _gpus(bus, host)}")
    files = sorted({path for pattern in SYSTEM_LOGS for path in glob.glob(pattern)})
    chosen = sorted({path for pattern in globs for path in glob.glob(pattern)})
    talk(f"  log files: {len(files)} in /var/log" + (f", {len(chosen)} chosen with --logs" if globs else ""))
    allowed = [normal(pattern) for pattern in globs]
    if containers:
        allowed.append("docker:*")
        talk(f"allowed for this demo: the logs of all {len(containers)} containers on this host")
    for pattern in globs:
        talk(f"allowed for this demo: {pattern}")
    if not containers and not chosen:
        own = own_logs(where)
        allowed.append(f"file:{own}")
        talk(f"nothing else to read here, so the demo triages Remit's own service logs: {own}")
    if not globs and files:
        talk("  (system logs stay unread; to include them: ./remit demo --logs '/var/log/*.log')")
    for source in allowed:
        await put_entry(bus, AllowEntry(id=entry_id(host, source), host=host, source=source, tags=["demo"]))


def own_logs(where: Path) -> str:
    """A glob of the services' logs, whatever the folder is called: `[old] state*` is a name, too."""
    return f"{glob.escape(str(where / 'logs'))}/*.log"


async def _gpus(bus: Bus, host: str) -> str:
    try:
        answer = await bus.request(gpu_report(host), msgspec.json.encode(GpuReportRequest(window_s=60)))
        report = msgspec.json.decode(answer, type=GpuHostReport)
    except (Unavailable, msgspec.DecodeError) as error:
        return f"the GPU agent does not answer ({error})"
    if not report.gpus:
        return f"none ({report.nvml})"
    names: dict[str, int] = {}
    for gpu in report.gpus:
        names[gpu.name or "unknown"] = names.get(gpu.name or "unknown", 0) + 1
    return ", ".join(f"{count} × {name}" for name, count in names.items())


async def _run(bus: Bus, where: Path, goal: str) -> int:
    talk(f'goal: "{goal}"')
    appender = await Appender(bus).start()
    # The words alone would lead to the same three tasks; the playbook adds a decision on what they find.
    asked = Goal(goal=goal, playbook=PLAYBOOK if goal == GOAL else None)
    run = await appender.append(goal_submitted(), msgspec.json.encode(asked), headers=None)
    ended = await follow(bus, run)
    folder = where / f"run_{run}"
    folder.mkdir(parents=True, exist_ok=True)
    for one in ended["artifacts"]:
        (folder / one.name).write_bytes(await read_artifact(bus, run, one.name))
    talk()
    _print_head(folder / "report.md")
    _print_end(folder, ended)
    appender.stop()
    return EXIT_OF_STATUS[ended["status"]]


def _print_head(report: Path) -> None:
    """The report's beginning, cut between lines and never inside an open fence."""
    if not report.exists():
        return
    lines = report.read_text().splitlines()
    head = lines[:HEAD_LINES]
    fences = [line for line in head if re.match(r"\s*`{3,}", line)]
    click.echo("\n".join(head))
    if len(fences) % 2:
        click.echo(re.match(r"\s*`{3,}", fences[-1]).group(0))  # type: ignore[union-attr]
    if len(lines) > len(head):
        click.echo(f"… {len(lines) - len(head)} more lines")
    click.echo()


def _print_end(folder: Path, ended: dict[str, Any]) -> None:
    click.echo("reports:")
    for one in ended["artifacts"]:
        click.echo(f"  {folder / one.name}")
    click.echo(tokens_told(ended["tokens"]))
    click.echo("next:")
    if names := [one.name for one in ended["artifacts"]]:
        first = "report.md" if "report.md" in names else names[0]  # a goal may lead to no triage
        click.echo(f"  less {shlex.quote(str(folder / first))}")
    click.echo("  ./remit up                                   # keep it running")
    click.echo('  ./remit submit "check logs and GPU" --wait   # in another terminal')

"""`remit doctor`: what works here, what does not, and the way out of each."""

import asyncio
import os
import sys
import sysconfig
from collections.abc import Awaitable, Callable

import click

from cli.keeper import nats_server
from cli.speak import ask, common, data, ends_well
from shared.bus import bare, connect
from shared.errors import RemitError
from shared.settings import credentials, data_dir, nats_url
from shared.streams import AT_ONCE, PLANNER, last_seq, pulled
from shared.subjects import worker_consumer

LOOKS = 3
LOOK_S = 0.3
NO_PLANNER = "none runs, so goals wait: start `remit up` or `remit planner`, or look into its log"
NO_WORKER = "none runs, so steps wait: start `remit up` or `remit executor`, or look into its log"
UNOPTIMISED = ", built without optimisation"

Check = tuple[str, str, str]  # what, "ok" | "missing" | "failing", the rest for a person


@click.command()
@common
@ends_well
def doctor(output: str) -> None:
    """Check this machine and the running stack; exit code 1 when something is failing.

    Goals wait for ever where no planner takes them, and steps where nobody works: it looks for somebody who does.
    A stack that is not running is missing, which is no failure: nothing may have been started here yet. A watchdog asks
    the gateway's /readyz, or `remit runs`, which exits with 5 then.
    """
    checks = asyncio.run(_checks())
    if output == "json":
        data([{"what": what, "state": state, "detail": detail} for what, state, detail in checks])
    else:
        for what, state, detail in checks:
            colour = {"ok": "green", "missing": "yellow", "failing": "red"}[state]
            click.echo(f"{click.style(state.ljust(8), fg=colour)}{what}: {detail}")
    raise SystemExit(any(state == "failing" for _, state, _ in checks))


def is_optimised() -> bool:
    """Whether this Python was built with optimisation, as far as it says. A version manager's seldom is.

    Debian's does not say so, and is.
    """
    return sys.base_prefix == "/usr" or "--enable-optimizations" in (sysconfig.get_config_var("CONFIG_ARGS") or "")


async def _checks() -> list[Check]:
    slow = "" if is_optimised() else f"{UNOPTIMISED}: slower by a fifth or more (docs/performance.md: another Python)"
    found: list[Check] = [("python", "ok", f"{sys.version.split()[0]} at {sys.executable}{slow}")]
    try:
        found.append(("nats-server", "ok", nats_server()))
    except RemitError as error:
        found.append(("nats-server", "failing", error.message))
    where = data_dir()
    nearest = next(one for one in (where, *where.parents) if one.exists())
    writable = os.access(nearest, os.W_OK)
    found.append(("data", "ok" if writable else "failing", f"{where}{'' if writable else ' cannot be written'}"))
    try:
        bus = await connect(nats_url(), "remit-doctor", credentials=credentials())
    except RemitError as error:
        return [*found, ("NATS", "missing", error.message)]
    found.append(("NATS", "ok", f"{bare(nats_url())}: {bus.server}"))

    async def agents(service: str) -> str:
        hosts = [info.host for info in await bus.discover(service)]
        if not hosts:
            raise RemitError("none answers")
        return ", ".join(sorted(hosts))

    async def stream() -> str:
        return f"{await last_seq(bus)} events"

    async def registry() -> str:
        answer = await ask(bus, "status", as_it_stands=True)
        return f"{answer.more['behind_events']} events behind, {answer.more['unreadable']} unreadable"

    async def queue(durable: str, fine: str, trouble: str) -> str:
        for _ in range(LOOKS):
            if await pulled(bus, durable):
                return fine
            await asyncio.sleep(LOOK_S)  # who pulls asks anew every few seconds: it may have been just then
        raise RemitError(trouble)

    questions: tuple[tuple[str, Callable[[], Awaitable[str]]], ...] = (
        ("stream EVENTS", stream),
        ("planner", lambda: queue(PLANNER, "goals are taken", NO_PLANNER)),
        ("workers", lambda: queue(worker_consumer(AT_ONCE), "steps are performed", NO_WORKER)),
        ("registry", registry),
        ("log agents", lambda: agents("logs")),
        ("GPU agents", lambda: agents("gpu")),
    )
    for what, question in questions:
        try:
            found.append((what, "ok", await question()))
        except RemitError as error:
            found.append((what, "failing", error.message))
    await bus.close()
    return found

"""`python -m services.executor`: the decider, and its worker as a second process; with `--work`, the worker alone.

Two processes because a triage is heavy on the CPU and a decision must not wait for it. They live and die together:
the worker is killed with its decider, and started again when it dies alone.
"""

import asyncio
import logging
import os
import sys
from typing import Annotated

import msgspec

from services.executor.service import Executor
from shared import process
from shared.append import Appender
from shared.children import die_with_parent
from shared.config import Config
from shared.settings import host_name, setting

log = logging.getLogger("remit.executor")

SLOTS = {"log_triage": 2, "sleep": 16}  # CPU and memory of a triage are this machine's
HANDS_MAX = 1_000
AGAIN_S = 0.5


def hands() -> int | None:
    """`REMIT_SLOTS`, the steps at a time on this host; an error that names it when it cannot be that."""
    return setting("SLOTS", Annotated[int, msgspec.Meta(ge=1, le=HANDS_MAX)], None)


async def decide(stop: asyncio.Event) -> None:
    hands()  # a worker that cannot read it would be started again for ever, and nobody else would see it
    bus = await process.connected("executor")
    executor = Executor(bus, await Appender(bus).start(), await Config(bus).start())
    await executor.start()
    keeper = asyncio.create_task(keep_worker(stop))
    try:
        await process.until(stop, executor.failed())
    finally:
        stop.set()
        await keeper
    await executor.stop()
    await bus.close()


async def work(stop: asyncio.Event) -> None:
    die_with_parent()  # a killed decider takes its worker along
    if os.getppid() != int(os.environ.get("REMIT_DECIDER_PID", os.getppid())):
        return  # it died before the line above
    # Imported by the worker alone: the decider, for which all runs wait after a kill, starts a fifth sooner without.
    from services.executor.tasks.gpu_report import gpu_report
    from services.executor.tasks.log_triage import log_triage
    from services.executor.tasks.noop import fail, noop
    from services.executor.tasks.service_map import service_map
    from services.executor.tasks.sleep import sleep
    from services.executor.worker import HANDS_DEFAULT, Worker

    handlers = {"log_triage": log_triage, "gpu_report": gpu_report, "service_map": service_map, "sleep": sleep}
    bus = await process.connected("worker")
    instants = {"noop": noop, "fail": fail}
    most = hands() or HANDS_DEFAULT
    worker = Worker(bus, await Appender(bus).start(), host_name(), handlers, SLOTS, instants, hands=most)
    await worker.start()
    await stop.wait()
    await worker.stop()
    await bus.close()


async def keep_worker(stop: asyncio.Event) -> None:
    """A worker process, as long as this one runs."""
    while not stop.is_set():
        try:
            child = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "services.executor",
                "--work",
                env={**os.environ, "REMIT_DECIDER_PID": str(os.getpid())},
            )
        except OSError as error:  # no process or no memory to be had just now
            log.warning("no worker can be started yet: %s", error)
            await asyncio.sleep(AGAIN_S)
            continue
        ended = asyncio.create_task(child.wait())
        asked = asyncio.create_task(stop.wait())
        await asyncio.wait({ended, asked}, return_when=asyncio.FIRST_COMPLETED)
        asked.cancel()
        if stop.is_set():
            if child.returncode is None:
                child.terminate()
            await ended
        else:
            log.warning("the worker ended with %s; starting it again", child.returncode)
            await asyncio.sleep(AGAIN_S)


if __name__ == "__main__":
    if "--work" in sys.argv[1:]:
        process.run("worker", work)
    else:
        process.run("executor", decide)

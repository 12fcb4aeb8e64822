"""`python -m services.planner`: the planner as a process. With `--preview` it plans one goal from stdin and says it."""

import asyncio
import os
import sys

from services.planner.service import Planner, answer_to, rejected
from shared import process
from shared.append import Appender
from shared.bus import connect
from shared.catalogue import BUILT_IN
from shared.config import Config, nats_url
from shared.errors import Unavailable
from shared.events import encode


async def main(stop: asyncio.Event) -> None:
    bus = await process.connected("planner")
    config = await Config(bus).start()
    planner = Planner(bus, await Appender(bus).start(), config)
    await planner.start()
    await process.until(stop, config.failed())
    await planner.stop()
    await bus.close()


async def preview(goal: bytes) -> int:
    """The plan of `goal` under what is configured, or under the built-in directives where no NATS is in reach."""
    try:
        bus = await connect(nats_url(), "remit-preview", credentials=os.environ.get("REMIT_NATS_CREDS"))
        config = await Config(bus).start()
        catalogue = config.catalogue
        await config.stop()
        await bus.close()
    except Unavailable as error:
        print(f"{error}; planning under the built-in directives", file=sys.stderr)
        catalogue = BUILT_IN
    answer = answer_to(goal, catalogue)
    sys.stdout.buffer.write(encode(rejected(answer) if isinstance(answer, list) else answer) + b"\n")
    return 3 if isinstance(answer, list) else 0


if __name__ == "__main__":
    if "--preview" in sys.argv[1:]:
        raise SystemExit(asyncio.run(preview(sys.stdin.buffer.read())))
    process.run("planner", main)

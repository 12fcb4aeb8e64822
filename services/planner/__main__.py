"""`python -m services.planner`: the planner as a process.

With `--preview` it plans one goal from stdin and says it; with `--check-playbook NAME` it checks one playbook so.
"""

import asyncio
import sys
from collections.abc import Coroutine
from typing import Any

from services.planner.planning import plan
from services.planner.playbooks import check_playbook
from services.planner.service import Planner, read_run, rejected
from shared import process
from shared.append import Appender
from shared.bus import connect
from shared.catalogue import BUILT_IN, Catalogue
from shared.config import Config
from shared.errors import Malformed, RemitError, Unavailable
from shared.events import PlanCreated, encode
from shared.plan import Problem, read_goal
from shared.run import Run
from shared.settings import credentials, nats_url
from shared.status import EXIT_FAILED, EXIT_USAGE


async def main(stop: asyncio.Event) -> None:
    bus = await process.connected("planner")
    config = await Config(bus).start()
    planner = Planner(bus, await Appender(bus).start(), config)
    await planner.start()
    await process.until(stop, config.failed())
    await planner.stop()
    await bus.close()


async def _catalogue(retry_of: int | None = None) -> tuple[Catalogue, Run | list[Problem] | None]:
    """What is configured, or built in where no NATS is in reach; and the run to repeat."""
    try:
        bus = await connect(nats_url(), "remit-preview", credentials=credentials())
        try:
            config = await Config(bus).start()
            await config.stop()
            return config.catalogue, await read_run(bus, retry_of) if retry_of is not None else None
        finally:
            await bus.close()
    except Unavailable as error:
        print(f"{error}; planning with what is built-in", file=sys.stderr)
        return BUILT_IN, [Problem(f"run {retry_of} cannot be read: {error}", "retry_of")] if retry_of else None


async def preview(data: bytes) -> int:
    """The plan of a goal as it would be now, on stdout; 3 when it would be rejected."""
    goal, problems = read_goal(data)
    answer: PlanCreated | list[Problem] = problems
    if goal is not None:
        catalogue, repeated = await _catalogue(goal.retry_of)
        answer = repeated if isinstance(repeated, list) else plan(goal, catalogue, repeated)
    sys.stdout.buffer.write(encode(rejected(answer) if isinstance(answer, list) else answer) + b"\n")
    return 3 if isinstance(answer, list) else 0


async def check(name: str, text: bytes) -> int:
    """What is wrong with a playbook, as a list of problems on stdout; 3 when there are any."""
    problems = check_playbook(text, name, (await _catalogue())[0])
    sys.stdout.buffer.write(encode(problems) + b"\n")
    return 3 if problems else 0


def _answered(answer: Coroutine[Any, Any, int]) -> int:
    """The exit code; what a person can act on (a NATS URL that is none, say) is one line, and no traceback."""
    try:
        return asyncio.run(answer)
    except RemitError as error:
        where = f"{error.field}: " if error.field else ""
        print(f"remit: {where}{error.message}", file=sys.stderr)
        return EXIT_USAGE if isinstance(error, Malformed) else EXIT_FAILED


if __name__ == "__main__":
    if "--preview" in sys.argv[1:]:
        raise SystemExit(_answered(preview(sys.stdin.buffer.read())))
    if "--check-playbook" in sys.argv[1:]:
        raise SystemExit(_answered(check(sys.argv[-1], sys.stdin.buffer.read())))
    process.run("planner", main)

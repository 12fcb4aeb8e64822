"""`remit cancel` and `remit retry`: a run ended before its time, and a run done again."""

import click
import msgspec

from cli.follow import follow, submit_goal
from cli.runs import RUN
from cli.speak import common, data, ends_well, fail, line, principal_option, talk, with_bus
from shared import answering
from shared.answering import Said
from shared.bus import Bus
from shared.errors import RemitError
from shared.plan import read_goal
from shared.status import EXIT_OF_STATUS, EXIT_USAGE
from shared.story import read_story


@click.command()
@click.argument("run", type=RUN)
@click.option("--reason", default="", help="Why; it stands in the run's own reason.")
@click.option("--wait", is_flag=True, help="Follow the run to its end; the exit code is its status.")
@principal_option
@common
@ends_well
def cancel(output: str, run: int, reason: str, wait: bool, principal: str) -> None:
    """End RUN: what waits ends at once, what runs is told to end, and is waited for.

    Exit codes: 0 it is ending (3 with --wait, once it is cancelled), 1 it had ended before.
    """

    async def say(bus: Bus) -> int:
        before = (await read_story(bus, run)).run
        said = await answering.cancel(bus, before, reason=reason, principal=principal)
        if said.why and said.run.ended:
            raise RemitError(f"run {run} has ended already: {said.run.status}")
        if said.why and said.run.stop is None:
            raise RemitError(f"the request was recorded, but it does not count: {said.why}")
        if wait:
            ended = await follow(bus, run, quiet=output == "json")
            if output == "json":
                data(ended)
            return EXIT_OF_STATUS[ended["status"]]
        _tell(output, said)
        return 0

    raise SystemExit(with_bus(say))


def _tell(output: str, said: Said) -> None:
    run = said.run
    reason = run.stop.reason if run.stop else run.reason
    if output == "json":
        data({"run": run.id, "status": run.status, "reason": reason, "was_ending": bool(said.why or said.was_there)})
        return
    if run.ended:
        line(f"run {run.id} {run.status}: {reason}")
    else:
        already = " already" if said.why or said.was_there else ""
        line(f"run {run.id} is ending{already}: {reason}")
        talk(f"follow it: remit watch {run.id}")


@click.command()
@click.argument("run", type=RUN)
@click.option("--from", "from_step", metavar="STEP", help="Do this step and what comes after it; reuse what is before.")
@click.option("--wait", is_flag=True, help="Follow the new run to its end; the exit code is its status.")
@principal_option
@common
@ends_well
def retry(output: str, run: int, from_step: str | None, wait: bool, principal: str) -> None:
    """Do RUN again as a new run with the same plan, and print the new run's number.

    \b
    remit retry 42 --from verify --wait
    """
    fields = {"retry_of": run, "from_step": from_step}
    body = msgspec.json.encode({name: value for name, value in fields.items() if value is not None})
    _, problems = read_goal(body)
    if problems:
        fail("; ".join(f"{one.field}: {one.reason}" for one in problems), EXIT_USAGE)

    async def say(bus: Bus) -> int:
        await read_story(bus, run)  # a number that is no run is told at once
        return await submit_goal(bus, body, principal, output=output, wait=wait)

    raise SystemExit(with_bus(say))

"""`remit approvals`, `remit approve`, `remit reject`: what waits for an answer, and the answer."""

from collections.abc import Callable
from typing import Any, NoReturn

import click

from cli.runs import RUN
from cli.speak import ask, common, data, ends_well, fail, line, principal_option, status, table, talk, with_bus
from shared import answering
from shared.answering import Said, name_of
from shared.bus import Bus
from shared.errors import AlreadySaid
from shared.ledger import Question
from shared.run_approvals import ANONYMOUS
from shared.showing import asked
from shared.status import EXIT_REJECTED
from shared.story import read_story


@click.command()
@click.argument("run", type=RUN, required=False)
@click.option("--all", "every", is_flag=True, help="Those that were answered, too.")
@click.option("--limit", default=50, type=click.IntRange(1, 1000), help="How many, of the newest runs first.")
@click.option("--before", type=RUN, help="The next page: what the last one said.")
@common
@ends_well
def approvals(output: str, run: int | None, every: bool, limit: int, before: int | None) -> None:
    """List what waits for somebody's approval, of RUN or of all runs."""
    question = Question(run=run, status=None if every else "pending", limit=limit, before=before)
    answer = with_bus(lambda bus: ask(bus, "approvals", question))
    if output == "json":
        data({"approvals": answer.rows, "next": answer.next})
        return
    for row in answer.rows:
        row["given"] = f"{len(row['approved_by'])} of {row['approvals_needed']}"
        row["approvers"] = row["approvers"] or "anybody"
        row["expires"] = row["expires_at"][:19].replace("T", " ")
        if row["status"] == "pending" and not row["is_open"]:
            row["status"] = "unanswered"
    columns = ("run", "step", "status", "given", "approvers", "requester", "expires", "what")
    table(answer.rows, columns if every else tuple(name for name in columns if name != "status"))
    if answer.next:
        talk(f"more: remit approvals{f' {run}' if run else ''}{' --all' if every else ''} --before {answer.next}")


def _answer(command: Callable[..., Any]) -> Callable[..., Any]:
    for option in (
        click.option("--reason", default="", help="Why; it is kept with the answer."),
        click.argument("step", required=False),
        click.argument("run", type=RUN),
    ):
        command = option(command)
    return command


@click.command()
@_answer
@principal_option
@common
@ends_well
def approve(output: str, run: int, step: str | None, reason: str, principal: str) -> None:
    """Say yes to what RUN asks; STEP may be left out when it asks one thing (`run` is the whole run).

    \b
    remit approve 42 --reason "looked at it"
    remit approve 42 deploy --as ann
    Exit codes: 0 it counts (more may be needed), 3 it does not, 6 nothing is asked there.
    """
    _say(output, run, step, granted=True, reason=reason, principal=principal)


@click.command()
@_answer
@principal_option
@common
@ends_well
def reject(output: str, run: int, step: str | None, reason: str, principal: str) -> None:
    """Say no to what RUN asks, which ends the run; STEP may be left out when it asks one thing.

    Exit codes: 0 it counts, 3 it does not, 6 nothing is asked there.
    """
    _say(output, run, step, granted=False, reason=reason, principal=principal)


def _say(output: str, run: int, step: str | None, *, granted: bool, reason: str, principal: str) -> NoReturn:
    async def say(bus: Bus) -> tuple[str, Said]:
        before = (await read_story(bus, run)).run
        asked_of = answering.question(before, step)
        said = await answering.answer(bus, before, asked_of, granted=granted, reason=reason, principal=principal)
        return asked_of, said

    try:
        named, said = with_bus(say)
    except AlreadySaid as error:
        fail(error.message, EXIT_REJECTED)
    [one] = [one for one in asked(said.run) if one.step == named]
    if output == "json":
        data({"counts": not said.why, "why": said.why or None, **one.told()})
    if said.why:
        recorded = "said before" if said.was_there else "recorded"
        fail(f"{recorded}, but it does not count: {said.why}", EXIT_REJECTED)
    if output == "text":
        again = f" ({principal or ANONYMOUS} had said so before)" if said.was_there else ""
        given = f"{len(one.approved_by)} of {one.approvals_needed}"
        stands = f"has {given} approvals" if one.status == "pending" else f"is {status(one.status)}"
        line(f"run {run}: {name_of(named)} {stands}{again}")
    if granted and said.run.stop is not None:
        talk(f"the run is ending all the same: {said.run.stop.reason}")
    raise SystemExit(0)

"""How the command speaks: data on stdout, talk on stderr, an exit code that scripts can branch on."""

import asyncio
import os
import re
import signal
import sys
import threading
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from functools import wraps
from pathlib import Path
from typing import Any, NoReturn, ParamSpec, TypeVar

import click
import msgspec
import uvloop
from msgspec.structs import replace

from shared import asking
from shared.bus import Bus, connect
from shared.errors import UNREADABLE, Malformed, NotFound, RemitError, Unavailable
from shared.ledger import Answer, Question
from shared.settings import credentials, nats_url
from shared.status import (
    EXIT_FAILED,
    EXIT_INTERRUPTED,
    EXIT_NOT_FOUND,
    EXIT_TERMINATED,
    EXIT_UNREACHABLE,
    EXIT_USAGE,
)
from shared.streams import last_seq
from shared.subjects import is_principal
from shared.text import is_text

PAGE_S = 15.0
FAR_BEHIND_EVENTS = 10_000  # the registry folds so many within about a second
PATIENCE = 2  # signals that only ask; who sends more does not want to wait for the tidying up

P = ParamSpec("P")
T = TypeVar("T")


class _Folder(click.Path):
    """A folder that need not be there; an empty name is a script's variable that is not set, and not this folder."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if value == "":
            self.fail("the name of the folder is empty", param, ctx)
        return super().convert(value, param, ctx)


FOLDER = _Folder(path_type=Path)

STATUS_COLOURS = {
    "succeeded": "green",
    "failed": "red",
    "rejected": "red",
    "timed_out": "red",
    "budget_exhausted": "red",
    "cancelled": "yellow",
    "rolled_back": "yellow",
    "skipped": "yellow",
    "running": "cyan",
    "queued": "blue",
    "pending": "blue",
    "awaiting_approval": "magenta",
    "approved": "green",
    "expired": "red",
}


# Goals, errors and names come from anybody: nothing of theirs may move a cursor, set a title or write a clipboard.
# Colours are let through, as they are ours, too. Bidirectional controls would show one text and mean another.
_CONTROL = re.compile("\x1b\\[[0-9;]*m|([\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069])")


def plain(text: str) -> str:
    """The text with every control character but line breaks, tabs and colours made visible."""
    return _CONTROL.sub(lambda found: "\ufffd" if found.group(1) else found.group(), text)


def talk(text: str = "", *, end: str = "\n") -> None:
    """Say something to the person; never part of the data."""
    click.echo(plain(text), err=True, nl=end == "\n")


def line(text: str) -> None:
    """Print a line of data for a person."""
    click.echo(plain(text))


def status(word: str) -> str:
    return click.style(word, fg=STATUS_COLOURS.get(word))


def data(value: Any) -> None:
    """Print a value as JSON."""
    click.echo(msgspec.json.format(msgspec.json.encode(value)).decode())


def as_json(content: bytes) -> Any:
    """What anybody has published, as JSON; as text where it is none."""
    try:
        return msgspec.json.decode(content)
    except UNREADABLE:
        return content.decode(errors="replace")


def table(rows: Iterable[dict[str, Any]], columns: Sequence[str], *, titles: dict[str, str] | None = None) -> None:
    """Print rows under their titles; what is null is an empty cell, and no cell breaks its line."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    made = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        made.add_column((titles or {}).get(column, column.replace("_", " ")), overflow="fold")
    for row in rows:
        cells = []
        for column in columns:
            value = row.get(column)
            text = "" if value is None else ", ".join(map(str, value)) if isinstance(value, list) else str(value)
            cells.append(
                Text(plain(" ".join(text.split())), style=STATUS_COLOURS.get(text, "") if column == "status" else "")
            )
        made.add_row(*cells)
    width = None if sys.stdout.isatty() else 200  # a pipe gets whole lines, not an imagined terminal's
    console = Console(width=width, highlight=False)
    with console.capture() as printed:  # rich would end the process with 1 when its reader has left
        console.print(made)
    click.echo(printed.get(), nl=False)


def fail(message: str, code: int) -> NoReturn:
    talk(click.style("remit: ", fg="red") + message)
    forget_unsaid()  # it may be what failed
    raise SystemExit(code)


def forget_unsaid() -> None:
    """Drop what cannot be said: the terminal has gone, the disk is full. Python would fail over it at its very end."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def ends_well(code: Callable[P, T]) -> Callable[P, T]:
    """Errors that a person can act on become one line and an exit code."""

    @wraps(code)
    def run(*args: P.args, **kwargs: P.kwargs) -> T:
        _check_text(kwargs)
        try:
            return code(*args, **kwargs)
        except Unavailable as error:
            fail(error.message, EXIT_UNREACHABLE)
        except NotFound as error:
            fail(error.message, EXIT_NOT_FOUND)
        except Malformed as error:
            fail(f"{error.field}: {error.message}" if error.field else error.message, EXIT_USAGE)
        except RemitError as error:
            fail(error.message, EXIT_FAILED)
        except KeyboardInterrupt:  # where no connection hears it
            raise SystemExit(EXIT_INTERRUPTED) from None
        except BrokenPipeError:  # `remit events 1 | head`
            forget_unsaid()
            raise SystemExit(0) from None
        except OSError as error:  # a disk that is full, a folder that may not be read
            where = f"{error.filename}: " if error.filename else ""
            fail(f"{where}{error.strerror or error}", EXIT_FAILED)

    return run


def _check_text(given: Mapping[str, Any]) -> None:
    """A usage error that names the argument whose bytes are no UTF-8: no message holds them. A file's path may."""
    context = click.get_current_context(silent=True)
    for name, value in given.items():
        for text in value if isinstance(value, tuple) else (value,):
            if isinstance(text, str) and not is_text(text):  # bytes that the system could not read
                parameters = context.command.params if context else ()
                at_fault = next((one for one in parameters if one.name == name), None)
                raise click.BadParameter(f"{os.fsencode(text)[:80]!r} is no UTF-8", ctx=context, param=at_fault)


def with_bus(action: Callable[[Bus], Coroutine[Any, Any, T]]) -> T:
    """Run `action` with a connection, closed afterwards. Ctrl-C and SIGTERM cut it off, and it tidies up.

    `Unavailable` when the server ends the connection for good: what waits for an answer would wait for ever.
    """
    asked: list[int] = []  # to end, with these codes
    in_main = threading.current_thread() is threading.main_thread()  # elsewhere no signal can be heard
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM) if in_main}

    async def main() -> T:
        closed = asyncio.Event()
        bus = await connect(nats_url(), "remit-cli", credentials=credentials(), on_closed=closed.set)
        acting = asyncio.ensure_future(action(bus))
        watching = asyncio.ensure_future(closed.wait())

        def end(code: int) -> None:
            asked.append(code)
            if len(asked) > PATIENCE:
                os._exit(code)
            acting.cancel()

        if in_main:
            loop = asyncio.get_running_loop()
            loop.add_signal_handler(signal.SIGTERM, end, EXIT_TERMINATED)
            loop.add_signal_handler(signal.SIGINT, end, EXIT_INTERRUPTED)
        try:
            await asyncio.wait({acting, watching}, return_when=asyncio.FIRST_COMPLETED)
            if not acting.done():
                acting.cancel()
                await asyncio.wait({acting})
                if acting.cancelled() or not isinstance(acting.exception(), RemitError):
                    raise Unavailable("NATS has closed the connection: are these credentials still allowed?")
            return await acting
        finally:
            watching.cancel()
            acting.cancel()
            await asyncio.wait({acting})
            await bus.close()

    try:
        found: T = uvloop.run(main())
    except KeyboardInterrupt:
        raise SystemExit(EXIT_INTERRUPTED) from None
    except asyncio.CancelledError:
        if not asked:
            raise
        raise SystemExit(asked[0]) from None
    finally:
        # The loop that heard them is gone, and what it leaves there hears nothing: who waits on could not be ended.
        for number, handler in before.items():
            signal.signal(number, handler)
    return found


async def ask(
    bus: Bus, name: str, question: Question | None = None, *, timeout_s: float = 10, as_it_stands: bool = False
) -> Answer:
    """Ask the registry; its error is ours.

    The answer holds what the stream held when it was asked, so that a script sees what its line before has done; unless
    the registry is far behind, which is told, or is asked how it stands.
    """
    question = question or Question()
    end = 0 if as_it_stands else await last_seq(bus)
    try:
        answer = await asking.ask(bus, name, question, timeout_s=timeout_s)
        behind = end - answer.position
        if behind > FAR_BEHIND_EVENTS:
            talk(f"the registry is catching up: this is as of event {answer.position} of {end}")
        elif behind > 0:
            answer = await asking.ask(bus, name, replace(question, min_seq=end), timeout_s=timeout_s)
        return answer
    except Unavailable as error:
        raise Unavailable(f"the registry does not answer ({error.message}); is `remit up` running?") from error


async def whole(bus: Bus, name: str, question: Question) -> tuple[list[dict[str, Any]], Answer]:
    """Every page's rows, and the first answer."""
    first = answer = await ask(bus, name, question, timeout_s=PAGE_S)
    rows = list(first.rows)
    while answer.next_page is not None:
        answer = await ask(bus, name, replace(question, page=answer.next_page), timeout_s=PAGE_S)
        rows += answer.rows
    return rows, first


def common(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options of every command that speaks to NATS and prints data."""
    command = click.option(
        "-o", "--output", type=click.Choice(["text", "json"]), default="text", help="How to print the data."
    )(command)
    return nats_option(command)


def principal_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """`--as`: the name under which something is said. Whether it is true is for the NATS server to know."""

    def checked(_context: click.Context, _option: click.Parameter, value: str | None) -> str:
        if value and not is_principal(value):
            raise click.BadParameter(f"{value[:80]!r} must be 1 to 64 letters, digits, '_' or '-', and not all digits")
        return value or ""

    return click.option(
        "--as",
        "principal",
        metavar="PRINCIPAL",
        envvar="REMIT_PRINCIPAL",
        callback=checked,
        help="Who says it (default: REMIT_PRINCIPAL, or nobody in particular).",
    )(command)


def archive_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """`--archive`: where the messages lie that the stream does not have any more."""
    return click.option(
        "--archive",
        metavar="TO",
        envvar="REMIT_ARCHIVE",
        help="Read what the stream does not have any more from this archive: a folder, or s3://bucket/prefix "
        "(default: REMIT_ARCHIVE).",
    )(command)


def nats_option(command: Callable[..., Any]) -> Callable[..., Any]:
    def remember(_context: click.Context, _option: click.Parameter, value: str | None) -> None:
        if value:
            os.environ["REMIT_NATS_URL"] = value

    return click.option(
        "--nats",
        metavar="URL",
        callback=remember,
        expose_value=False,
        is_eager=True,
        help="The NATS to speak to, or URL,URL,… of a cluster (default: REMIT_NATS_URL, or nats://127.0.0.1:4222).",
    )(command)

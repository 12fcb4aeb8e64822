"""`remit up`, and one service alone: `remit planner`, `remit executor`, …"""

import asyncio
import fcntl
import os
import signal
import socket
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import click

from cli.keeper import SERVICES, Keeper, module, until_ready
from cli.speak import FOLDER, archive_option, ends_well, forget_unsaid, nats_option, talk
from shared.bus import PORT, bare, connect
from shared.errors import RemitError
from shared.settings import HTTP_DEFAULT, credentials, data_dir, host_name
from shared.streams import REPLICAS, ensure

REPLICAS_HELP = (
    "On how many servers of a NATS cluster each stream is kept: with 3, one may die, with 5 two. It needs a cluster of "
    "at least so many. Streams that exist with fewer get more, never fewer."
)
HTTP_PORT = int(HTTP_DEFAULT.rsplit(":", 1)[1])


@contextmanager
def held(directory: Path) -> Iterator[None]:
    """Hold a data directory: two stacks on one store would ruin it."""
    directory.mkdir(parents=True, exist_ok=True)
    with (directory / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RemitError(f"another `remit up` or `remit demo` runs on {directory}") from None
        yield


@click.command()
@click.option("--data-dir", type=FOLDER, help="Where everything is kept (default: XDG state).")
@click.option("--nats", metavar="URL[,URL]", help="Use the NATS at this URL, or the cluster at these.")
@click.option("--nats-port", default=PORT, type=click.IntRange(0, 65535), help="0: any free one.")
@click.option("--http-port", default=HTTP_PORT, type=click.IntRange(0, 65535), help="0: any free one.")
@click.option("--host", help="This host's name in Remit (default: the machine's).")
@click.option(
    "--replicas",
    default="1",
    show_default=True,
    envvar="REMIT_REPLICAS",
    show_envvar=True,
    type=click.Choice([str(count) for count in REPLICAS]),
    help=REPLICAS_HELP,
)
@archive_option
@ends_well
def up(
    data_dir: Path | None,
    nats: str | None,
    nats_port: int,
    http_port: int,
    host: str | None,
    replicas: str,
    archive: str | None,
) -> None:
    """Run the whole stack in the foreground until Ctrl-C.

    One process a service, started again when it dies; Ctrl-C, SIGTERM or a closed terminal lets what runs finish for
    ten seconds; what does not is taken up again by the next `up` on the same data. With nohup it outlives its terminal.
    """
    if int(replicas) > 1 and not nats:
        raise click.UsageError(
            f"--replicas {replicas} (or REMIT_REPLICAS) needs a NATS cluster; name its servers: --nats URL,URL,URL"
        )
    if archive:
        os.environ["REMIT_ARCHIVE"] = archive  # the services have it of us
    where = _directory(data_dir)
    with held(where):
        raise SystemExit(asyncio.run(_up(where, nats, nats_port, http_port, host_name(host), int(replicas))))


def _directory(given: Path | None) -> Path:
    return (given or data_dir()).absolute()


def environment(url: str, where: Path, host: str, http_port: int, replicas: int = 1) -> dict[str, str]:
    """What every service of a stack is told."""
    return {
        "REMIT_NATS_URL": url,
        "REMIT_DATA_DIR": str(where),
        "REMIT_HOST": host,
        "REMIT_HTTP": f"127.0.0.1:{http_port}",
        "REMIT_HTTP_PORT_FILE": str(where / "http.port"),
        "REMIT_REPLICAS": str(replicas),
    }


async def _up(where: Path, nats: str | None, nats_port: int, http_port: int, host: str, replicas: int) -> int:
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:  # nohup has us ignore it
            asyncio.get_running_loop().add_signal_handler(number, stop.set)
    _check_free(http_port)
    keeper = Keeper(where, talk)
    try:
        if nats:
            bus = await connect(nats, "remit-up", credentials=credentials())
            if replicas > 1:  # what cannot be is told here, not in the log of each service
                await ensure(bus, replicas)
            await bus.close()
            url = nats
        else:
            url = await keeper.start_nats(nats_port)
        click.echo(f"NATS {bare(url)}")  # the two addresses are data: a script that starts a stack reads them
        (where / "http.port").unlink(missing_ok=True)
        told = environment(url, where, host, http_port, replicas)
        await keeper.start_services(SERVICES, told)
        ready = asyncio.create_task(until_ready(url, SERVICES))
        asked = asyncio.create_task(stop.wait())
        await asyncio.wait({ready, asked}, return_when=asyncio.FIRST_COMPLETED)
        if stop.is_set():
            ready.cancel()
            await asyncio.wait({ready})
        else:
            await (await ready).close()
            port = await http_port_of(where)
            told.update(environment(url, where, host, port, replicas))  # a gateway that dies comes back where it was
            click.echo(f"HTTP http://127.0.0.1:{port}")
            talk(f"host {host}, data and logs under {where}")
            talk('ready; try: ./remit submit "check logs and GPU" --wait   (Ctrl-C ends it all)')
        await asked
        with suppress(OSError):  # the terminal may be what has gone
            talk("draining")
    finally:
        await keeper.stop()
        forget_unsaid()
    return 0


def _check_free(http_port: int) -> None:
    """Tell a taken port before anything is started: the gateway could only die of it, again and again."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as the gateway listens
        try:
            probe.bind(("127.0.0.1", http_port))
        except OSError as error:
            raise RemitError(f"HTTP port {http_port}: {error.strerror}; choose another with --http-port 0") from error


async def http_port_of(where: Path, patience_s: float = 20.0) -> int:
    """The port that the gateway says it listens on."""
    end_s = asyncio.get_running_loop().time() + patience_s
    while True:
        try:
            return int((where / "http.port").read_text())
        except (OSError, ValueError):
            if asyncio.get_running_loop().time() > end_s:
                raise RemitError(f"the gateway does not listen; see {where / 'logs' / 'gateway.log'}") from None
            await asyncio.sleep(0.05)


_HELP = {
    "planner": "Run the planner alone: goals in, plans out.",
    "executor": "Run an executor alone: decides and performs tasks. Any number may run, anywhere.",
    "registry": "Run the registry alone: every event into DuckDB under --data-dir.",
    "sealer": "Run the sealer alone: it signs what the stream holds, with a key under --data-dir.",
    "gateway": "Run the HTTP gateway alone.",
    "gpu-agent": "Run this host's GPU agent alone.",
    "log-agent": "Run this host's log agent alone.",
}


def service_commands() -> Sequence[click.Command]:
    """One command a service; the process becomes the service."""
    return [_service(name) for name in SERVICES]


def _globs(_context: click.Context, _option: click.Parameter, globs: tuple[str, ...]) -> tuple[str, ...]:
    if apart := [one for one in globs if not one or ":" in one]:
        raise click.BadParameter(f"{apart[0]!r}: a glob is not empty and has no ':'")
    return globs


def _service(name: str) -> click.Command:
    @click.command(name, help=_HELP[name])
    @click.option("--host", help="This host's name in Remit (default: the machine's).")
    @click.option("--data-dir", type=FOLDER, help="Where files are kept (default: XDG state).")
    @click.option(
        "--http",
        metavar="HOST:PORT",
        hidden=name != "gateway",
        help=f"Where the gateway listens (default: {HTTP_DEFAULT}).",
    )
    @click.option(
        "--replicas",
        type=click.Choice([str(count) for count in REPLICAS]),
        help=f"{REPLICAS_HELP}  [env var: REMIT_REPLICAS; default: 1]",
    )
    @click.option(
        "--slots",
        type=click.IntRange(1, 1_000),
        hidden=name != "executor",
        help="Steps at a time on this host, of all tasks together.  [env var: REMIT_SLOTS; default: 16]",
    )
    @click.option(
        "--log-glob",
        "globs",
        metavar="GLOB",
        multiple=True,
        callback=_globs,
        hidden=name != "log-agent",
        help="Files to list beside containers, such as '/var/log/*.log'; may be repeated. Listed is not allowed: "
        "`remit allow add` allows.  [env var: REMIT_LOG_GLOBS, with ':' between them]",
    )
    @click.option(
        "--file",
        type=click.Path(path_type=Path),
        hidden=name != "registry",
        help="Of a registry that is a replica and answers nobody.",
    )
    @click.option(
        "--archive",
        metavar="TO",
        hidden=name not in ("registry", "sealer"),
        help="Where the events lie that the stream does not have any more: a folder, or s3://bucket/prefix.  "
        "[env var: REMIT_ARCHIVE]",
    )
    @nats_option
    def run(
        host: str | None,
        data_dir: Path | None,
        http: str | None,
        replicas: str | None,
        slots: int | None,
        globs: tuple[str, ...],
        file: Path | None,
        archive: str | None,
    ) -> None:
        for variable, value in (
            ("REMIT_REGISTRY_FILE", str(file.absolute()) if file else None),
            ("REMIT_ARCHIVE", archive),
            ("REMIT_HOST", host),
            ("REMIT_DATA_DIR", str(data_dir.absolute()) if data_dir else None),
            ("REMIT_HTTP", http),
            ("REMIT_REPLICAS", replicas),
            ("REMIT_SLOTS", str(slots) if slots else None),
            ("REMIT_LOG_GLOBS", ":".join(globs)),
        ):
            if value:
                os.environ[variable] = value
        os.execv(sys.executable, [sys.executable, "-m", module(name)])

    return run

"""`remit bench`: how fast, measured beside what it stands on."""

import asyncio
import os
import platform
from pathlib import Path
from typing import Any

import click

from cli.doctor import UNOPTIMISED, is_optimised
from cli.speak import data, ends_well, talk

OUTPUT = click.option("-o", "--output", type=click.Choice(["text", "json"]), default="text", help="How to print it.")


@click.group()
def bench() -> None:
    """Measure Remit on this machine, each figure beside its floor in the same run."""


def machine() -> str:
    """This machine in a few words, to stand beside a figure."""
    python = f"Python {platform.python_version()}{'' if is_optimised() else UNOPTIMISED}"
    return f"{os.cpu_count()} × {_processor()}, {platform.system()} {platform.release()}, {python}"


def _processor() -> str:
    """Its name, and its family and model where the kernel tells them: of two called `AMD EPYC` one is twice as fast."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    told = {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    name = told.get("model name") or platform.processor() or platform.machine()
    return f"{name} (family {told['cpu family']}, model {told['model']})" if "cpu family" in told else name


def _print(figures: dict[str, Any], output: str) -> None:
    figures["machine"] = machine()
    if output == "json":
        data(figures)
        return
    for name, value in figures.items():
        click.echo(f"{name:18} {value}")


@bench.command()
@click.option("--seconds", default=10.0, type=click.FloatRange(1, 600), help="Of load on each side.")
@OUTPUT
@ends_well
def runs(seconds: float, output: str) -> None:
    """Runs of three noop steps, beside three bare nats-py processes that pass the same messages."""
    from bench.runs import run

    _print(asyncio.run(run(seconds, talk)), output)


FAN_MAX = 1_600  # steps; a plan has 512 KiB at most, and a step of it 306 bytes


@bench.command()
@click.option("--steps", default=1_000, type=click.IntRange(1, FAN_MAX), help="Of the one run.")
@click.option("--parallel", type=click.IntRange(1, FAN_MAX), help="At a time (default: all).")
@OUTPUT
@ends_well
def fan(steps: int, parallel: int | None, output: str) -> None:
    """One run of many parallel noop steps, beside three bare nats-py processes that pass the same messages."""
    from bench.fan import run

    _print(asyncio.run(run(steps, min(parallel or steps, steps), talk)), output)


@bench.command()
@click.option("--events", default=1_000_000, type=click.IntRange(1_000, 100_000_000), help="How many to fold.")
@OUTPUT
@ends_well
def fold(events: int, output: str) -> None:
    """Rebuild the registry's tables from a stream, on one core."""
    from bench.fold import run

    _print(asyncio.run(run(events, talk)), output)


@bench.command()
@click.option("--seconds", default=20.0, type=click.FloatRange(1, 600), help="Of load that makes the stream.")
@OUTPUT
@ends_well
def audit(seconds: float, output: str) -> None:
    """The audit of a whole stream that a real load has left, on one core, beside reading it bare."""
    from bench.audit import run

    _print(asyncio.run(run(seconds, talk)), output)


@bench.command()
@click.option("--runs", default=100_000, type=click.IntRange(100, 10_000_000), help="In the file.")
@OUTPUT
@ends_well
def ask(runs: int, output: str) -> None:
    """Every listed question over a large ledger, while a fold goes on writing into it: the 95th percentile of each."""
    from bench.ask import run

    _print(run(runs, talk), output)


@bench.command()
@click.option("--runs", default=10_000, type=click.IntRange(1, 1_000_000), help="Active ones to take up.")
@OUTPUT
@ends_well
def restart(runs: int, output: str) -> None:
    """kill -9 of the only executor with many active runs: seconds until the next decision."""
    from bench.restart import run

    _print(asyncio.run(run(runs, talk)), output)


@bench.command()
@click.option("--runs", default=100_000, type=click.IntRange(50, 10_000_000), help="To be finished.")
@OUTPUT
@ends_well
def memory(runs: int, output: str) -> None:
    """What finished runs leave in the executor's memory: nothing."""
    from bench.memory import run

    _print(asyncio.run(run(runs, talk)), output)


@bench.command()
@click.argument("directory", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.option("--predictions", type=click.Path(path_type=Path), help="Write SET.csv files here, fit to be scored.")
@OUTPUT
@ends_well
def triage(directory: Path, predictions: Path | None, output: str) -> None:
    """Group the log sets under DIRECTORY (…/SET/SET_2k.log) as the log triage does."""
    from bench.triage import run

    figures = run(directory, predictions)
    if output == "json":
        figures["machine"] = machine()
        data(figures)

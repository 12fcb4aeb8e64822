"""What the processes of a measured stack use, read from /proc."""

import os
from pathlib import Path

from cli.keeper import Keeper

_TICKS_S = os.sysconf("SC_CLK_TCK")


def pids_of(keeper: Keeper) -> dict[str, int]:
    """Who takes part by name; the executor is its decider, and keeps the worker."""
    pids = keeper.pids()
    decider = pids.pop("executor")
    worker = int(Path(f"/proc/{decider}/task/{decider}/children").read_text().split()[0])
    return {"decider": decider, "worker": worker, **pids}


def cpu_s(pid: int) -> float:
    """CPU that the process itself has used, in user and system; its children count for themselves."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS_S


def resident_mib(pid: int) -> float:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return round(int(line.split()[1]) / 1024, 1)
    raise ProcessLookupError(pid)

"""Which of the pids that NVML lists are processes, and what they are called.

NVML tells the pids of the host's own namespace, and among them dead ones, 0, 2^32-1 and (where binding and
driver disagree about a struct) scrambled ones. An agent in a container therefore needs the host's pid
namespace; without it every pid looks dead and the list stays empty.
"""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from shared.gpu import GpuProcess

PID_MAX = 4_194_304
"""Linux gives no pid above it, so whatever is larger is scrambled."""

PROCESSES_MAX = 256
"""Keeps an answer far below a message's size; the largest users of memory are told."""


def living(lists: Mapping[str, Sequence[tuple[int, int | None]]]) -> list[GpuProcess]:
    """Merge lists of (pid, used bytes) by kind into one entry a living process, lowest pid first."""
    used: dict[int, int | None] = {}
    kinds: dict[int, list[str]] = {}
    for kind, listed in lists.items():
        for pid, used_bytes in listed:
            before = used.get(pid)
            # each list tells a process's whole use, so the larger one is it, and a sum would count twice
            used[pid] = before if used_bytes is None else max(before or 0, used_bytes)
            kinds[pid] = sorted({*kinds.get(pid, []), kind})
    alive = [pid for pid in used if lives(pid)]
    told = sorted(alive, key=lambda pid: (-(used[pid] or 0), pid))[:PROCESSES_MAX]
    return [GpuProcess(pid, name_of(pid), used[pid], kinds[pid]) for pid in sorted(told)]


def lives(pid: int) -> bool:
    """Say whether a process of this pid is there (another user's counts too)."""
    if not 0 < pid <= PID_MAX:
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def name_of(pid: int) -> str | None:
    """Return the kernel's short name of a process; null where /proc does not tell."""
    try:
        return Path(f"/proc/{pid}/comm").read_text("utf-8", "replace").strip() or None
    except OSError:
        return None

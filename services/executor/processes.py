"""Running a program for a step, so that nothing of it is left when the step is over.

The program gets a process group of its own. Whoever stops waiting for it (a cancelled step, a deadline, a worker that
drains) ends the whole group: asked first, killed after `GRACE_S`, and seen gone before the wait returns. It also dies
with a worker that is killed with -9. A descendant that has made a session of its own is out of reach: that is what
containers are for.
"""

import asyncio
import os
import signal
from collections.abc import Sequence
from pathlib import Path

import msgspec

from shared.children import die_with_parent
from shared.waiting import to_the_end

GRACE_S = 3.0
LOOK_S = 0.05
GONE_WITHIN_S = 10.0
LAST_WORDS_S = 1.0  # for what lies in the pipe when all of the group has ended
OUTPUT_BYTES_MAX = 1_000_000


class Finished(msgspec.Struct, frozen=True):
    """Its exit status (negative: the signal that ended it), and the end of what it wrote to both its outputs."""

    status: int
    output: bytes


class StillThere(Exception):
    """Processes of the step cannot be ended (they hang in the kernel): nobody may say that they are gone."""


async def run_process(
    argv: Sequence[str], *, folder: Path | None = None, env: dict[str, str] | None = None
) -> Finished:
    """Run `argv` to its end. Raises OSError when it cannot be started."""
    # A pipe of our own: asyncio's would keep `wait` from returning while anybody else holds the program's output.
    ours, its = os.pipe()
    try:
        tail = await _Tail.of(ours)
    except BaseException:
        os.close(its)
        raise
    try:
        try:
            child = await asyncio.create_subprocess_exec(
                *argv,
                cwd=folder,
                env=env,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=its,
                stderr=asyncio.subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=die_with_parent,
            )
        finally:
            os.close(its)
        try:
            status = await child.wait()
        finally:
            # Also after a normal end: what it has left in its group is nobody's any more.
            await to_the_end(_end(child))
        return Finished(status, await tail.whole(LAST_WORDS_S))
    finally:
        tail.close()


class _Tail:
    """The end of what comes out of a pipe."""

    def __init__(self, stream: asyncio.StreamReader, transport: asyncio.BaseTransport) -> None:
        self._transport = transport
        self._output = b""
        self._reading = asyncio.create_task(self._read(stream))

    @classmethod
    async def of(cls, pipe: int) -> "_Tail":
        stream = asyncio.StreamReader()
        opened = os.fdopen(pipe, "rb", buffering=0)
        transport, _ = await asyncio.get_running_loop().connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(stream), opened
        )
        return cls(stream, transport)

    async def _read(self, stream: asyncio.StreamReader) -> None:
        while part := await stream.read(65_536):
            self._output = (self._output + part)[-OUTPUT_BYTES_MAX:]

    async def whole(self, patience_s: float) -> bytes:
        """All of it; or what has come until then, where somebody out of reach holds the other end."""
        await asyncio.wait({self._reading}, timeout=patience_s)
        return self._output

    def close(self) -> None:
        self._reading.cancel()
        self._transport.close()


async def _end(child: asyncio.subprocess.Process) -> None:
    group = child.pid  # a session's first process leads its group
    for number, patience_s in ((signal.SIGTERM, GRACE_S), (signal.SIGKILL, GONE_WITHIN_S)):
        if not _living(group):
            break
        _signal(group, number)
        waited_s = 0.0
        while waited_s < patience_s and _living(group):
            await asyncio.sleep(LOOK_S)
            waited_s += LOOK_S
    if _living(group):
        raise StillThere(f"process group {group} is still there {GONE_WITHIN_S:g} s after SIGKILL")
    await child.wait()


def _signal(group: int, number: int) -> None:
    try:
        os.killpg(group, number)
    except ProcessLookupError:
        return


def _living(group: int) -> bool:
    """Whether a process of the group still runs; one that is only not yet waited for does not."""
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _parent, of_group, *_ = stat.read_text(errors="replace").rpartition(")")[2].split()
        except (OSError, ValueError):
            continue  # it ended while we looked
        if int(of_group) == group and state not in "ZX":
            return True
    return False

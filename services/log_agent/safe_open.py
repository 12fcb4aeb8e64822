"""Open a log file that the allow-list names, and no other, whoever moves links and names about meanwhile.

The path asked for is resolved, the resolved path is checked, and what was opened is checked once more: the
open itself follows no link in its last part, and the kernel is asked which path the descriptor really leads
to, since a directory on the way may have become a link between check and open. Only regular files are read:
a FIFO or a device would block or never end. A hard link cannot be told from the file; the kernel's
`protected_hardlinks` keeps others from making one to what they cannot read.
"""

import errno
import os
import stat
from collections.abc import Callable

from shared.errors import NotFound, Refused, Unavailable

Permits = Callable[[str], bool]


def resolve(path: str, permits: Permits) -> str:
    """Return the real path when it is allowed; Refused otherwise, without saying where a link leads."""
    try:
        real = os.path.realpath(path, strict=False)
    except OSError as error:  # a name too long for the file system
        raise NotFound(f"{path[:200]} cannot be resolved: {error.strerror}", field="source") from error
    if not permits(real):
        raise Refused(f"{path[:200]} is not on the allow-list, or leads to a file that is not", field="source")
    return real


def open_allowed(path: str, permits: Permits) -> int:
    """Return a descriptor of the regular file; Refused, NotFound or Unavailable otherwise. Blocks on the
    disk.
    """
    real = resolve(path, permits)
    try:
        # NONBLOCK: opening a FIFO that nobody writes to would hang
        descriptor = os.open(real, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError as error:
        raise NotFound(f"there is no file {path[:200]}", field="source") from error
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise Refused(f"{path[:200]} became a link while it was opened", field="source") from error
        raise Unavailable(f"{path[:200]} cannot be opened: {error.strerror}", field="source") from error
    try:
        _check_opened(descriptor, path, real, permits)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _check_opened(descriptor: int, path: str, real: str, permits: Permits) -> None:
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        raise Refused(f"{path[:200]} is not a regular file", field="source")
    try:
        opened = os.readlink(f"/proc/self/fd/{descriptor}")
    except OSError as error:
        raise Unavailable("without /proc a file cannot be checked after it is opened", field="source") from error
    if opened != real or not permits(opened):
        raise Refused(f"{path[:200]} was moved while it was opened", field="source")

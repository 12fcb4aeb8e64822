"""Children that do not outlive the process which has started them, not even when that is killed with -9."""

import ctypes
import signal

PR_SET_PDEATHSIG = 1

_libc = ctypes.CDLL(None)  # looked up here: between fork and exec is no time for it


def die_with_parent() -> None:
    """Let the kernel kill this process when the one that has started it dies."""
    _libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)

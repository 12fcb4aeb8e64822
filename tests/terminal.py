"""A terminal for those tests that need one."""

import pty

import pytest


def opened() -> tuple[int, int]:
    """Its two ends, as `pty.openpty`; the test is skipped where no terminal can be made (a chroot without devpts)."""
    try:
        return pty.openpty()
    except OSError as error:
        pytest.skip(f"no terminal can be made here: {error} (mount -t devpts devpts /dev/pts)")

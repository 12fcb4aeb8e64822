"""Where a file was written, and where it only seems to be full of NULs. Blocking, as everything about a disk.

A writer that does not append goes on at its old offset after `logrotate copytruncate`: the file then begins with
a hole, which takes no blocks and would take hours to read.
"""

import errno
import os


def written(descriptor: int, position: int, end: int) -> tuple[int, int]:
    """Return the next stretch [start, stop) of what was written from `position` on; (end, end) when there is none.

    A stretch is whole blocks: NULs may stand at both its edges. A file system that tells no holes has written all.
    """
    if not hasattr(os, "SEEK_DATA"):
        return position, end
    try:
        start = os.lseek(descriptor, position, os.SEEK_DATA)
        stop = os.lseek(descriptor, start, os.SEEK_HOLE)
    except OSError as error:
        return (end, end) if error.errno == errno.ENXIO else (position, end)
    return min(start, end), min(stop, end)

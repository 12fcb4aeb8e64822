"""Find the log files that globs name, within bounds. Blocking: the service calls it in a thread.

Links are not followed, neither to files nor to directories: what a link leads to has a path of its own, and
is listed if that path is named. Names that are no UTF-8 cannot be said in JSON and are left out.
"""

import os
import re
import stat
from collections.abc import Iterable, Iterator

from msgspec import Struct

from shared.allow import path_matches, segment_matches

FILES_MAX = 1_000  # more than a person reads or a triage can go through
VISITED_MAX = 50_000  # `/**` must not walk a whole disk
_MAGIC = re.compile(r"[*?\[]")


class LogFile(Struct, frozen=True):
    """A regular file that a glob names."""

    path: str
    size_bytes: int


class FoundFiles(Struct, frozen=True):
    """The files in the order of their paths, and what was left out and why."""

    files: list[LogFile]
    notes: list[str]


class _Walk:
    def __init__(self) -> None:
        self.visited = 0
        self.notes: list[str] = []

    def exhausted(self) -> bool:
        return self.visited >= VISITED_MAX

    def directory(self, path: str) -> Iterator[os.DirEntry[str]]:
        """Yield the entries of a directory that can be read and named."""
        try:
            with os.scandir(path) as entries:
                found = sorted(entries, key=lambda entry: entry.name)
        except OSError:
            return  # not a directory, gone, or not ours to read: there is nothing in it for us
        for entry in found:
            self.visited += 1
            if self.exhausted():
                return
            if _sayable(entry.name):
                yield entry


def find(patterns: Iterable[str]) -> FoundFiles:
    """Return the files that any of the patterns names."""
    walk = _Walk()
    files: dict[str, LogFile] = {}
    for pattern in patterns:
        for path in _matching(walk, pattern):
            if len(files) >= FILES_MAX or walk.exhausted():
                break
            file = _regular(path)
            if file is not None:
                files[path] = file
    if walk.exhausted():
        walk.notes.append(f"the search ended after {VISITED_MAX} directory entries; name narrower patterns")
    if len(files) >= FILES_MAX:
        walk.notes.append(f"only the first {FILES_MAX} files are listed; name narrower patterns")
    return FoundFiles([files[path] for path in sorted(files)], walk.notes)


def _matching(walk: _Walk, pattern: str) -> Iterator[str]:
    segments = pattern.split("/")[1:]
    literal = 0
    while literal < len(segments) and not _MAGIC.search(segments[literal]):
        literal += 1
    start = "/" + "/".join(segments[:literal])
    directory = start if literal < len(segments) else os.path.dirname(start)
    if os.path.realpath(directory) != directory:
        walk.notes.append(f"{pattern}: {directory} is or leads through a link; name the path that it leads to")
        return
    if literal == len(segments):
        yield start
        return
    yield from _below(walk, directory, pattern, segments[literal:])


def _below(walk: _Walk, directory: str, pattern: str, segments: list[str]) -> Iterator[str]:
    if segments[0] == "**":
        for path in _tree(walk, directory):
            if path_matches(pattern, path):
                yield path
        return
    for entry in walk.directory(directory):
        if not segment_matches(segments[0], entry.name):
            continue
        if len(segments) == 1:
            yield entry.path
        elif entry.is_dir(follow_symlinks=False):
            yield from _below(walk, entry.path, pattern, segments[1:])


def _tree(walk: _Walk, directory: str) -> Iterator[str]:
    """Yield every file below; a list of directories, not recursion, so depth is no trouble."""
    todo = [directory]
    while todo:
        for entry in walk.directory(todo.pop()):
            if entry.is_dir(follow_symlinks=False):
                todo.append(entry.path)
            else:
                yield entry.path


def _regular(path: str) -> LogFile | None:
    try:
        status = os.stat(path, follow_symlinks=False)
    except OSError:
        return None
    return LogFile(path, status.st_size) if stat.S_ISREG(status.st_mode) else None


def _sayable(name: str) -> bool:
    try:
        name.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True

"""The allow-list: which log sources may be read on which host. Nothing is allowed until an enabled entry
allows it.

A source has one written form: `docker:NAME` or `file:/PATH`. People may leave the kind out: a bare NAME is
a container, a leading `/` is a file. Entries may hold globs, requests never do: they name one source, and a
glob character in a request is an ordinary character.

Paths are compared segment by segment, so `*` cannot cross `/`; the segment `**` stands for any number of
directories. As in a shell, a wildcard does not match a leading dot (`/srv/app/**` is not `/srv/app/.env`).
A path that is not in its plain form (`..`, `//`, a trailing `/`) is never allowed: this file is pure and
cannot follow it, so the agent resolves the path first and asks about what it found.
"""

import posixpath
import re
from collections.abc import Iterable
from fnmatch import fnmatchcase

import msgspec

from shared.errors import Malformed

DOCKER = "docker:"
FILE = "file:"

SOURCE_CHARS_MAX = 4096  # Linux' PATH_MAX: nothing longer can be opened
HOST_CHARS_MAX = 253  # a DNS name's limit

_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")
_HOST_GLOB = re.compile(r"[A-Za-z0-9_.*?\[\]!-]+")
_CONTAINER_GLOB = re.compile(r"[A-Za-z0-9_.*?\[\]!-]+")
_CONTAINER_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")


class AllowEntry(msgspec.Struct, frozen=True, kw_only=True):
    """One line of the allow-list, kept in KV `config` under `allow.<id>`; `tags` are for people and decide
    nothing.
    """

    id: str
    host: str = "*"
    source: str
    enabled: bool = True
    tags: list[str] = []


def normal(source: str) -> str:
    """Return the source with its kind written out: `web` is `docker:web`, `/var/log/x` is
    `file:/var/log/x`.
    """
    if source.startswith((DOCKER, FILE)):
        return source
    return (FILE if source.startswith("/") else DOCKER) + source


def container_name(source: str) -> str | None:
    """Return the container that a source names, or None when it names none that an engine could have."""
    whole = normal(source)
    name = whole.removeprefix(DOCKER)
    return name if whole.startswith(DOCKER) and _CONTAINER_NAME.fullmatch(name) else None


def file_path(source: str) -> str | None:
    """Return the absolute path that a source names, or None when it names none."""
    whole = normal(source)
    path = whole.removeprefix(FILE)
    return path if whole.startswith(FILE) and path.startswith("/") and "\0" not in path else None


def check(entry: AllowEntry) -> AllowEntry:
    """Return the entry with its source written out; Malformed, with the field, when it could never mean
    anything.
    """
    if not _ID.fullmatch(entry.id):
        raise Malformed("an allow entry's id is 1 to 64 letters, digits, '_' or '-'", field="id")
    if not _HOST_GLOB.fullmatch(entry.host) or len(entry.host) > HOST_CHARS_MAX:
        raise Malformed(f"host {entry.host[:80]!r} is neither a host name nor a glob", field="host")
    source = normal(entry.source)
    if len(source) > SOURCE_CHARS_MAX:
        raise Malformed(f"a source has at most {SOURCE_CHARS_MAX} characters", field="source")
    if source.startswith(DOCKER):
        if not _CONTAINER_GLOB.fullmatch(source.removeprefix(DOCKER)):
            raise Malformed(f"{source[:80]!r} names no container and is no glob of names", field="source")
    else:
        path = source.removeprefix(FILE)
        if not path.startswith("/"):
            raise Malformed(f"{source[:80]!r} is not an absolute path", field="source")
        if "\0" in path or not _plain(path):
            message = f"{source[:80]!r} is not a plain path: no '..', '.', '//' or trailing '/'"
            raise Malformed(message, field="source")
    return msgspec.structs.replace(entry, source=source)


def allowed(entries: Iterable[AllowEntry], host: str, source: str) -> bool:
    """Say whether an enabled entry allows this one source of this host; for files, `source` is the resolved
    path.
    """
    whole = normal(source)
    if whole.startswith(DOCKER) and container_name(whole) is None:
        return False
    return any(_names(entry, host, whole) for entry in entries)


def file_patterns(entries: Iterable[AllowEntry], host: str) -> list[str]:
    """Return the path globs that the enabled entries allow on this host, sorted, each once."""
    return sorted(
        {
            entry.source.removeprefix(FILE)
            for entry in entries
            if entry.enabled and normal(entry.source).startswith(FILE) and fnmatchcase(host, entry.host)
        }
    )


def path_matches(pattern: str, path: str) -> bool:
    """Match an absolute plain path against a glob whose `*` stays inside one segment."""
    if not _plain(path):
        return False
    # `reached[i]`: the first i segments of the pattern can match the part of the path walked so far. Linear
    # in both, whatever the pattern: no backtracking for a hostile name to exploit.
    wanted = pattern.split("/")[1:]
    if wanted[-1] == "**":
        wanted.append("*")  # what lies below a directory, not the directory itself
    reached = _through_stars({0}, wanted)
    for segment in path.split("/")[1:]:
        step: set[int] = set()
        for at in reached:
            if at < len(wanted) and wanted[at] == "**":
                if not segment.startswith("."):
                    step.add(at)
            elif at < len(wanted) and segment_matches(wanted[at], segment):
                step.add(at + 1)
        reached = _through_stars(step, wanted)
        if not reached:
            return False
    return len(wanted) in reached


def segment_matches(pattern: str, segment: str) -> bool:
    """Match one path segment as a shell does: a wildcard never stands for a leading dot."""
    if segment.startswith(".") and not pattern.startswith("."):
        return False
    return fnmatchcase(segment, pattern)


def _names(entry: AllowEntry, host: str, whole: str) -> bool:
    if not entry.enabled or not fnmatchcase(host, entry.host):
        return False
    pattern = normal(entry.source)
    if whole.startswith(DOCKER):
        return pattern.startswith(DOCKER) and fnmatchcase(whole.removeprefix(DOCKER), pattern.removeprefix(DOCKER))
    return pattern.startswith(FILE) and path_matches(pattern.removeprefix(FILE), whole.removeprefix(FILE))


def _plain(path: str) -> bool:
    return path.startswith("/") and not path.startswith("//") and path != "/" and posixpath.normpath(path) == path


def _through_stars(at: set[int], wanted: list[str]) -> set[int]:
    """Add the positions that are reached when a `**` stands for nothing."""
    grown = set(at)
    for position in sorted(at):
        while position < len(wanted) and wanted[position] == "**":
            position += 1
            grown.add(position)
    return grown

"""What an operator has configured: a live view of the KV bucket `config`.

The view is a fold of the bucket's stream, read like any other stream, so it survives what a KV watcher does not.
An entry that cannot be read is left out and told; it never takes the service with it.
"""

import asyncio
import contextlib
import logging
from typing import TypeVar

import msgspec

from shared.bus import Bus
from shared.catalogue import BUILT_IN, Catalogue
from shared.errors import UNREADABLE, Unavailable
from shared.plan import Directive, TaskSpec
from shared.playbook import Playbook, read_playbook
from shared.pull import Reader
from shared.subjects import CONFIG_BUCKET, directive_key, is_token, playbook_key

log = logging.getLogger("remit.config")

T = TypeVar("T")


class Config:
    """The bucket `config` as it stands: raw values by key, and the words made of them."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus
        self._values: dict[str, bytes] = {}
        self._prefix = f"$KV.{CONFIG_BUCKET}."
        self._reader: Reader | None = None
        self._moved = asyncio.Condition()
        self._catalogue: Catalogue | None = None
        self.revision = 0

    async def start(self) -> "Config":
        """Read all there is; the view is whole when this returns, and follows from then on."""
        # Deletions are messages with an empty body here: a value of Remit is never empty.
        self._reader = await Reader(self._bus, f"KV_{CONFIG_BUCKET}", self._changed, batch=256).start()
        await self.catch_up()
        return self

    async def stop(self) -> None:
        if self._reader:
            await self._reader.stop()

    async def failed(self) -> None:
        """Wait until the view cannot follow any more, and raise why: an old view is not to be acted on."""
        if self._reader:
            await self._reader.failed()

    async def catch_up(self, timeout_s: float = 5.0) -> None:
        """Wait until everything that was in the bucket when this was called is in the view; `Unavailable` if it is not.

        Who goes on with an older view would allow what was taken back.
        """
        # The newest message, and not the stream's own count: where messages were purged, nobody has its number.
        newest = await self._bus.last_on(f"KV_{CONFIG_BUCKET}", f"{self._prefix}>")
        wanted = newest[0] if newest else 0
        async with self._moved:
            try:
                await asyncio.wait_for(self._moved.wait_for(lambda: self.revision >= wanted), timeout_s)
            except TimeoutError as error:
                raise Unavailable(f"the config cannot be read up to revision {wanted} just now") from error

    async def _changed(self, subject: str, seq: int, _at_ns: int, data: bytes) -> None:
        key = subject.removeprefix(self._prefix)
        if data:
            self._values[key] = data
        else:
            self._values.pop(key, None)
        self._catalogue = None
        async with self._moved:
            self.revision = seq
            self._moved.notify_all()

    def entries(self, prefix: str, struct: type[T]) -> dict[str, T]:
        """Every readable value under `prefix`, by the rest of its key."""
        return entries(self._values, prefix, struct)

    @property
    def catalogue(self) -> Catalogue:
        """Tasks, directives and playbooks, the built-in ones overlaid with the configured ones."""
        if self._catalogue is None:
            self._catalogue = catalogue(self._values)
        return self._catalogue


class _Versioned(msgspec.Struct):
    version: int = 0


async def newest_version(bus: Bus, key: str) -> int:
    """The highest version that was ever stored under `key`, as far as that is kept: who comes back goes on counting.

    Else two that differ would bear the same name and version, and a run names what it ran under by these.
    """
    found = 0
    for _, _, data in await bus.kv_history(CONFIG_BUCKET, key):
        with contextlib.suppress(*UNREADABLE):
            found = max(found, msgspec.json.decode(data, type=_Versioned).version)
    return found


def entries(values: dict[str, bytes], prefix: str, struct: type[T]) -> dict[str, T]:
    found: dict[str, T] = {}
    for key in sorted(values):
        if key.startswith(prefix):
            try:
                found[key[len(prefix) :]] = msgspec.json.decode(values[key], type=struct)
            except UNREADABLE as error:
                log.warning("config %s is left out: %s", key, error)
    return found


def catalogue(values: dict[str, bytes]) -> Catalogue:
    tasks = {task.name: task for task in BUILT_IN.tasks}
    for name, task in entries(values, "task.", TaskSpec).items():
        if not is_token(name):
            log.warning("config task.%s is left out: no subject can hold its name", name[:80])
            continue
        tasks.setdefault(name, msgspec.structs.replace(task, name=name))  # a built-in task keeps its meaning
    return Catalogue(tasks=tuple(tasks.values()), directives=_directives(values), playbooks=_playbooks(values))


def _directives(values: dict[str, bytes]) -> dict[str, Directive]:
    """The built-in ones, and those configured in place of them or beside them.

    One that cannot be read is none: what stood in its place before it was written may allow what it does not.
    """
    prefix = directive_key("")
    found = {name: one for name, one in BUILT_IN.directives.items() if f"{prefix}{name}" not in values}
    for name, directive in entries(values, prefix, Directive).items():
        found[name] = msgspec.structs.replace(directive, name=name)
    return found


def _playbooks(values: dict[str, bytes]) -> dict[str, Playbook]:
    """The built-in ones, and those configured in place of them or beside them; one that cannot be read is left out."""
    found = dict(BUILT_IN.playbooks)
    prefix = playbook_key("")
    for key in sorted(values):
        if not key.startswith(prefix):
            continue
        name = key.removeprefix(prefix)
        playbook, problems = read_playbook(values[key], name)
        if playbook is not None and not problems:
            found[name] = playbook
        else:
            found.pop(name, None)  # what was to stand in its place is not what was meant any more
            told = "; ".join(f"{one.field}: {one.reason}" for one in problems)
            log.warning("config %s is left out: %s", key, told[:1000])
    return found

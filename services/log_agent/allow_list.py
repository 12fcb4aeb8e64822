"""The allow-list as it stands in KV `config`, live. A broken entry allows nothing and is told once."""

import logging

from services.log_agent.safe_open import Permits
from shared import allow
from shared.config import Config
from shared.errors import Malformed

log = logging.getLogger("remit.log_agent.allow")

PREFIX = "allow."


class AllowList:
    """What this host may have read; the agent asks it for every request and again for every chunk."""

    def __init__(self, config: Config, host: str) -> None:
        self._config = config
        self._host = host
        self._revision = -1
        self._entries: list[allow.AllowEntry] = []

    async def current(self) -> "AllowList":
        """Wait for what was written before now, so that an entry taken back no longer counts."""
        await self._config.catch_up()
        return self

    def allows(self, source: str) -> bool:
        """Say whether this source may be read; a file by its resolved path."""
        return allow.allowed(self._now(), self._host, source)

    def permits_path(self) -> Permits:
        """Return the check for resolved paths."""
        return lambda path: self.allows(allow.FILE + path)

    def file_patterns(self) -> list[str]:
        """Return the path globs allowed on this host."""
        return allow.file_patterns(self._now(), self._host)

    def _now(self) -> list[allow.AllowEntry]:
        if self._revision != self._config.revision:
            self._revision = self._config.revision
            self._entries = []
            for key, entry in self._config.entries(PREFIX, allow.AllowEntry).items():
                try:
                    self._entries.append(allow.check(entry))
                except Malformed as error:
                    log.warning("allow entry %s counts as nothing: %s", key, error)
        return self._entries

"""What a host could have read, and what runs on it: the answers to `sources` and `services`, a page at a
time.
"""

import asyncio
from collections.abc import Sequence

from services.log_agent.allow_list import AllowList
from services.log_agent.docker_engine import ContainerName, DockerEngine
from services.log_agent.files import find
from shared.allow import DOCKER, FILE
from shared.errors import Unavailable
from shared.logs import EngineInfo, ServicesReply, SourceInfo, SourcesReply, page
from shared.redact import redact

SERVICES_AT_ONCE = 50  # containers inspected for one page; their replies stay under a page's bytes


async def sources(host: str, engine: DockerEngine, allow: AllowList, globs: Sequence[str], after: str) -> SourcesReply:
    """Name the containers, allowed or not, and the files that an entry or this agent's own globs name."""
    info, containers, trouble = await _engine(engine)
    found = await asyncio.to_thread(find, [*allow.file_patterns(), *globs])
    listed = [_container(each, allow.allows(DOCKER + each.name)) for each in containers]
    for file in found.files:
        source = FILE + file.path
        listed.append(
            SourceInfo(
                source=source,
                kind="file",
                name=file.path,
                size_bytes=file.size_bytes,
                allowed=allow.allows(source),
            )
        )
    rest = [each for each in sorted(listed, key=lambda each: each.source) if each.source > after]
    shown = page(rest)
    return SourcesReply(
        host=host,
        engine=info,
        engine_error=trouble,
        sources=shown,
        notes=found.notes,
        next=shown[-1].source if len(shown) < len(rest) else None,
    )


async def services(host: str, engine: DockerEngine, allow: AllowList, after: str) -> ServicesReply:
    """Describe the allow-listed containers."""
    try:
        names = await engine.names()
        rest = [each for each in names if each.name > after and allow.allows(DOCKER + each.name)]
        asked = rest[:SERVICES_AT_ONCE]
        found = await engine.services(asked)
    except Unavailable as error:
        return ServicesReply(host=host, engine_error=error.message)
    shown = page(found)
    if len(shown) < len(found):
        following: str | None = shown[-1].name
    else:
        following = asked[-1].name if len(asked) < len(rest) else None
    return ServicesReply(host=host, services=shown, next=following)


async def _engine(engine: DockerEngine) -> tuple[EngineInfo | None, list[ContainerName], str | None]:
    try:
        info, names = await engine.overview()
    except Unavailable as error:
        return None, [], error.message
    return info, names, None


def _container(each: ContainerName, allowed: bool) -> SourceInfo:
    return SourceInfo(
        source=DOCKER + each.name,
        kind="docker",
        name=each.name,
        allowed=allowed,
        image=redact(each.image),
        state=each.state,
    )

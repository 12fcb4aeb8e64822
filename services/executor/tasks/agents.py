"""Asking the agents of many hosts one question each, and naming those that did not answer."""

import asyncio
from collections.abc import Callable, Mapping

from shared.bus import Bus
from shared.errors import RemitError
from shared.subjects import is_token

AGENT_DEADLINE_S = 10.0  # an agent answers from memory; a slow engine gets this long
HOSTS_AT_ONCE = 16  # that a task has answers of under way: a host that is silent does not make the others wait
TOLD_MAX = 50  # hosts whose reasons a step hands on; the artifact names all
REASON_CHARS_MAX = 200


async def hosts_of(bus: Bus, service: str, wanted: list[str] | None) -> list[str]:
    """The hosts asked for, or else every host on which an agent of `service` answers discovery now."""
    if wanted is not None:
        return sorted(set(wanted))
    return sorted({info.host for info in await bus.discover(service) if is_token(info.host)})


def told(reasons: Mapping[str, str]) -> dict[str, str]:
    """Hosts and what is to be said of each, as a step's outputs hold them: agents' words may be of any length."""
    return {host: reasons[host][:REASON_CHARS_MAX] for host in sorted(reasons)[:TOLD_MAX]}


async def ask_all(
    bus: Bus, hosts: list[str], subject_of: Callable[[str], str], question: bytes
) -> tuple[dict[str, bytes], dict[str, str]]:
    """The answers by host, and for each host without one the reason."""

    async def ask(host: str) -> bytes:
        return await bus.request(subject_of(host), question, timeout_s=AGENT_DEADLINE_S)

    results = await asyncio.gather(*(ask(host) for host in hosts), return_exceptions=True)
    answers: dict[str, bytes] = {}
    missing: dict[str, str] = {}
    for host, result in zip(hosts, results, strict=True):
        if isinstance(result, bytes):
            answers[host] = result
        elif isinstance(result, RemitError):
            missing[host] = result.message
        else:
            raise result
    return answers, missing

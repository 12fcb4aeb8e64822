"""Asking the agents of many hosts one question each, and naming those that did not answer."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import TypeVar

from shared.bus import Bus
from shared.errors import RemitError
from shared.plan import HOSTS_MAX
from shared.subjects import is_token

AGENT_DEADLINE_S = 10.0  # an agent answers from memory; a slow engine gets this long
HOSTS_AT_ONCE = 16  # that a task has answers of under way: a host that is silent does not make the others wait
TOLD_MAX = 50  # hosts whose reasons a step hands on; the artifact names all
REASON_CHARS_MAX = 200

T = TypeVar("T")


async def hosts_of(bus: Bus, service: str, wanted: list[str] | None) -> list[str]:
    """The hosts asked for, or else every host on which an agent of `service` answers discovery now."""
    if wanted is not None:
        return sorted(set(wanted))
    return sorted({info.host for info in await bus.discover(service) if is_token(info.host)})


def told(reasons: Mapping[str, str]) -> dict[str, str]:
    """Hosts and what is to be said of each, as a step's outputs hold them: agents' words may be of any length."""
    return {host: reasons[host][:REASON_CHARS_MAX] for host in sorted(reasons)[:TOLD_MAX]}


async def ask_all(
    hosts: Sequence[str], ask: Callable[[str], Awaitable[T]], *, at_once: int = HOSTS_MAX
) -> tuple[dict[str, T], dict[str, str]]:
    """The answers by host, and for each host without one the reason; so many hosts are asked at once."""
    places = asyncio.Semaphore(at_once)

    async def in_turn(host: str) -> T:
        async with places:
            return await ask(host)

    results = await asyncio.gather(*(in_turn(host) for host in hosts), return_exceptions=True)
    answers: dict[str, T] = {}
    missing: dict[str, str] = {}
    for host, result in zip(hosts, results, strict=True):
        if isinstance(result, RemitError):
            missing[host] = result.message
        elif isinstance(result, BaseException):
            raise result
        else:
            answers[host] = result
    return answers, missing

"""`service_map`: asks every host's log agent for its allow-listed containers and draws what connects them.

Parameters: `hosts` (names; default: every host that discovery finds).
"""

import asyncio

import msgspec
from msgspec.structs import replace

from services.executor.handlers import Outputs, Task
from services.executor.tasks.agents import AGENT_DEADLINE_S, HOSTS_AT_ONCE, hosts_of, told
from services.executor.tasks.map_core import assemble, mermaid
from shared.clock import now
from shared.errors import RemitError
from shared.log_reading import all_services
from shared.logs import ServicesReply


async def service_map(task: Task) -> Outputs:
    hosts = await hosts_of(task.bus, "logs", task.hosts())
    found: dict[str, ServicesReply] = {}
    missing: dict[str, str] = {}
    places = asyncio.Semaphore(HOSTS_AT_ONCE)

    async def ask(host: str) -> None:
        async with places:
            await task.progress(f"asking {host} for its containers")
            try:
                reply = await all_services(task.bus, host, timeout_s=AGENT_DEADLINE_S)
                # The name that was asked counts, so that no agent can answer for another host.
                found[host] = replace(reply, host=host)
            except RemitError as error:
                missing[host] = error.message

    await asyncio.gather(*(ask(host) for host in hosts))
    replies = [found[host] for host in sorted(found)]
    document = assemble(replies, sorted(missing), at=now())
    await task.keep("services.json", msgspec.json.format(msgspec.json.encode(document)), "application/json")
    await task.keep("services.md", mermaid(document).encode(), "text/markdown")
    return {
        "status": document.status,
        "service_count": len(document.services),
        "edge_count": len(document.edges),
        "missing_hosts": told(missing),
        "missing_hosts_total": len(missing),
        "engine_errors": told({host: reply.engine_error for host, reply in found.items() if reply.engine_error}),
    }

"""`service_map`: asks every host's log agent for its allow-listed containers and draws what connects them.

Parameters: `hosts` (names; default: every host that discovery finds).
"""

import msgspec
from msgspec.structs import replace

from services.executor.handlers import Outputs, Task
from services.executor.tasks.agents import AGENT_DEADLINE_S, HOSTS_AT_ONCE, ask_all, hosts_of, told
from services.executor.tasks.map_core import assemble, mermaid
from shared.clock import now
from shared.log_reading import all_services
from shared.logs import ServicesReply


async def service_map(task: Task) -> Outputs:
    hosts = await hosts_of(task.bus, "logs", task.hosts())

    async def ask(host: str) -> ServicesReply:
        await task.progress(f"asking {host} for its containers")
        # The name that was asked counts, so that no agent can answer for another host.
        return replace(await all_services(task.bus, host, timeout_s=AGENT_DEADLINE_S), host=host)

    found, missing = await ask_all(hosts, ask, at_once=HOSTS_AT_ONCE)
    replies = list(found.values())
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

"""`service_map`: asks every host's log agent for its allow-listed containers and draws what connects them.

Parameters: `hosts` (names; default: every host that discovery finds).
"""

import msgspec

from services.executor.handlers import Outputs, Task
from services.executor.tasks.agents import AGENT_DEADLINE_S, hosts_of
from services.executor.tasks.map_core import assemble, mermaid
from shared.clock import now
from shared.errors import RemitError
from shared.log_reading import all_services
from shared.logs import ServicesReply


async def service_map(task: Task) -> Outputs:
    hosts = await hosts_of(task.bus, "logs", task.names("hosts"))
    replies: list[ServicesReply] = []
    missing: dict[str, str] = {}
    for host in hosts:
        await task.progress(f"asking {host} for its containers")
        try:
            replies.append(await all_services(task.bus, host, timeout_s=AGENT_DEADLINE_S))
        except RemitError as error:
            missing[host] = error.message
    document = assemble(replies, sorted(missing), at=now())
    await task.keep("services.json", msgspec.json.format(msgspec.json.encode(document)), "application/json")
    await task.keep("services.md", mermaid(document).encode(), "text/markdown")
    return {
        "status": document.status,
        "service_count": len(document.services),
        "edge_count": len(document.edges),
        "missing_hosts": missing,
        "engine_errors": {reply.host: reply.engine_error for reply in replies if reply.engine_error},
    }

"""`service_map`: asks every host's log agent for its allow-listed containers and draws what connects them.

Parameters: `hosts` (names; default: every host that discovery finds).
"""

import msgspec

from services.executor.handlers import Outputs, Task
from services.executor.tasks.agents import AGENT_DEADLINE_S, hosts_of
from services.executor.tasks.map_core import assemble, mermaid
from shared.bus import Bus
from shared.clock import now
from shared.errors import RemitError
from shared.logs import ServicesReply, ServicesRequest
from shared.subjects import logs

PAGES_MAX = 1_000  # an agent whose pages never end is wrong or lying


async def service_map(task: Task) -> Outputs:
    hosts = await hosts_of(task.bus, "logs", task.names("hosts"))
    replies: list[ServicesReply] = []
    missing: dict[str, str] = {}
    for host in hosts:
        await task.progress(f"asking {host} for its containers")
        try:
            replies.append(await _services_of(task.bus, host))
        except (RemitError, msgspec.DecodeError, UnicodeDecodeError) as error:
            missing[host] = str(error)
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


async def _services_of(bus: Bus, host: str) -> ServicesReply:
    """All pages of one host as one reply."""
    whole: ServicesReply | None = None
    after = ""
    for _ in range(PAGES_MAX):
        question = msgspec.json.encode(ServicesRequest(after=after))
        answer = await bus.request(logs(host, "services"), question, timeout_s=AGENT_DEADLINE_S)
        reply = msgspec.json.decode(answer, type=ServicesReply)
        if whole is None:
            whole = reply
        else:
            whole.services.extend(reply.services)
        if reply.next is None:
            return whole
        after = reply.next
    raise RemitError(f"{host} sent more than {PAGES_MAX} pages")

"""`gpu_report`: asks every host's GPU agent for its last minutes and writes `gpu_report.json`.

Parameters: `hosts` (names; default: every host that discovery finds), `window_s`, `utilization_threshold_pct`,
`memory_threshold_pct`.
"""

import msgspec

from services.executor.handlers import Outputs, Task
from services.executor.tasks.agents import AGENT_DEADLINE_S, ask_all, hosts_of, told
from services.executor.tasks.gpu_core import assemble
from shared import subjects
from shared.clock import now
from shared.errors import UNREADABLE
from shared.gpu import MEMORY_ABOVE_PCT, UTILIZATION_ABOVE_PCT, GpuHostReport, GpuReportRequest

WINDOW_S = 900


async def gpu_report(task: Task) -> Outputs:
    window_s = task.number("window_s", WINDOW_S, 1, WINDOW_S)
    utilization_pct = task.number("utilization_threshold_pct", UTILIZATION_ABOVE_PCT, 0, 100)
    memory_pct = task.number("memory_threshold_pct", MEMORY_ABOVE_PCT, 0, 100)
    hosts = await hosts_of(task.bus, "gpu", task.hosts())
    await task.progress(f"asking {len(hosts)} GPU agent{'s' if len(hosts) != 1 else ''}")
    question = msgspec.json.encode(
        GpuReportRequest(window_s=window_s, utilization_above_pct=utilization_pct, memory_above_pct=memory_pct)
    )

    async def ask(host: str) -> bytes:
        return await task.bus.request(subjects.gpu_report(host), question, timeout_s=AGENT_DEADLINE_S)

    answers, missing = await ask_all(hosts, ask)
    reports: list[GpuHostReport] = []
    for host, answer in answers.items():
        try:
            report = msgspec.json.decode(answer, type=GpuHostReport)
            # The name that was asked counts, so that no agent can answer for another host.
            reports.append(msgspec.structs.replace(report, host=host))
        except UNREADABLE as error:
            missing[host] = f"its answer cannot be read: {error}"
    document = assemble(
        reports,
        sorted(missing),
        at=now(),
        utilization_threshold_pct=utilization_pct,
        memory_threshold_pct=memory_pct,
    )
    await task.keep("gpu_report.json", msgspec.json.format(msgspec.json.encode(document)), "application/json")
    return {
        "status": document.status,
        "gpu_count": document.gpu_count,
        "hotspots": [f"{spot.host} GPU {spot.gpu}: {spot.why}" for spot in document.hotspots][:50],
        "missing_hosts": told(missing),
        "missing_hosts_total": len(missing),
    }

"""`python -m services.log_agent`: the log agent of one host as a process.

Settings come from the environment: `REMIT_HOST`, `REMIT_NATS_URL`, `REMIT_LOG_GLOBS` (with `:` between them),
`DOCKER_HOST`.
"""

import asyncio
import os

from services.log_agent.allow_list import AllowList
from services.log_agent.docker_engine import DockerEngine
from services.log_agent.docker_logs import EngineLogs
from services.log_agent.engine_address import engine_address
from services.log_agent.service import Agent
from shared.config import Config
from shared.process import connected, run, until
from shared.settings import host_name


async def main(stop: asyncio.Event) -> None:
    """Answer until `stop`."""
    host = host_name()
    globs = [one for one in os.environ.get("REMIT_LOG_GLOBS", "").split(":") if one]
    address = engine_address(os.environ)
    engine, logs = DockerEngine(address), EngineLogs(address)
    bus = await connected("log-agent")
    config = await Config(bus).start()
    try:
        await Agent(bus, host, AllowList(config, host), engine, logs, globs=globs).serve()
        await until(stop, config.failed())  # an allow-list that stands still would go on allowing
    finally:
        await config.stop()
        await bus.close()
        await logs.close()
        engine.close()


if __name__ == "__main__":
    run("log-agent", main)

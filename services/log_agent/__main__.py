"""Run the log agent of one host: `python -m services.log_agent [--host NAME] [--nats URL] [--log-glob
GLOB]`.
"""

import argparse
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


async def main(stop: asyncio.Event, *, host: str, globs: list[str]) -> None:
    """Answer until `stop`."""
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
    parser = argparse.ArgumentParser(prog="remit log-agent", description="Read one host's logs, as allowed.")
    parser.add_argument("--host", default=host_name())
    parser.add_argument("--nats", help="the server's URL (default: REMIT_NATS_URL)")
    parser.add_argument(
        "--log-glob",
        action="append",
        default=[g for g in os.environ.get("REMIT_LOG_GLOBS", "").split(":") if g],
        help="also list, but do not allow, files such as '/var/log/*.log'; may be repeated",
    )
    given = parser.parse_args()
    if given.nats:
        os.environ["REMIT_NATS_URL"] = given.nats
    run("log-agent", lambda stop: main(stop, host=given.host, globs=given.log_glob))

"""`python -m services.gateway`: the gateway as a process."""

import asyncio
import logging
import os
from pathlib import Path

from services.gateway.service import Gateway
from services.gateway.shell import address, write_port
from shared import process
from shared.settings import HTTP_DEFAULT, Seconds, setting

log = logging.getLogger("remit.gateway")


async def main(stop: asyncio.Event) -> None:
    host, port = address(os.environ.get("REMIT_HTTP") or HTTP_DEFAULT)
    hosts = os.environ.get("REMIT_HTTP_HOSTS", "").replace(",", " ").lower().split()
    heartbeat_s = setting("HTTP_HEARTBEAT_S", Seconds, 15.0)
    bus = await process.connected("gateway")
    gateway = Gateway(bus, hosts=frozenset(hosts), heartbeat_s=heartbeat_s)
    bound = await gateway.start(host, port)
    if port_file := os.environ.get("REMIT_HTTP_PORT_FILE"):
        write_port(Path(port_file), bound)
    log.info("listening on http://%s:%d", f"[{host}]" if ":" in host else host, bound)
    await stop.wait()
    await gateway.stop()
    await bus.close()


if __name__ == "__main__":
    process.run("gateway", main)

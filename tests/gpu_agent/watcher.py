"""The agent's eyes in a process of their own, driven line by line over stdin (see `Watcher` in conftest)."""

import sys
import time

import msgspec

from services.gpu_agent.nvml import Nvml
from services.gpu_agent.sampler import Sampler
from shared.gpu import GpuReportRequest


def main() -> None:
    """Obey each line and answer with one."""
    source = Nvml()
    sampler: Sampler | None = None
    for line in sys.stdin:
        verb, _, rest = line.strip().partition(" ")
        if verb == "look":
            reply = msgspec.json.encode(source.sample(float(rest))).decode()
        elif verb == "start":
            sampler = Sampler(source, host="tower", interval_s=float(rest))
            sampler.start()
            reply = "started"
        elif verb == "answer" and sampler is not None:
            request = msgspec.json.decode(rest, type=GpuReportRequest)
            reply = msgspec.json.encode(sampler.answer(request, at="2026-11-21T09:30:00.000000Z")).decode()
        elif verb == "binding":
            reply = str("pynvml" in sys.modules)
        elif verb == "cost":
            reply = f"{time.process_time()}"
        else:
            raise SystemExit(f"what is {line!r}?")
        print(reply, flush=True)
    if sampler is not None:
        sampler.stop(timeout_s=0.5)


if __name__ == "__main__":
    main()

"""`python -m tests.stories.leaky_worker`: Remit's own worker, with a task that trips over what it was reading.

What it reads is in its environment, so that the record of the run does not hold it: `LEAKY_…`, said as `how` says.
"""

import asyncio
import os

from services.executor.handlers import Outputs, Task, TaskFailed
from services.executor.worker import Worker
from shared import process
from shared.append import Appender

SECRET = f"password={os.environ.get('LEAKY_SECRET')}"


async def leaky(task: Task) -> Outputs:
    if task.inputs["how"] == "told":
        raise TaskFailed("broken", f"cannot log in with {SECRET}")
    try:
        raise KeyError(os.environ["LEAKY_CAUSE"])
    except KeyError as error:
        if task.inputs["how"] == "group":
            raise ExceptionGroup(SECRET, [ValueError(os.environ["LEAKY_GROUP"])]) from error
        raise ValueError(f"the line {os.environ['LEAKY_SAID']} cannot be read, {SECRET}") from error


async def work(stop: asyncio.Event) -> None:
    bus = await process.connected("leaky")
    worker = Worker(bus, await Appender(bus).start(), "testhost", {"leaky": leaky}, {}, {})
    await worker.start()
    await stop.wait()
    await worker.stop()
    await bus.close()


if __name__ == "__main__":
    process.run("leaky", work)

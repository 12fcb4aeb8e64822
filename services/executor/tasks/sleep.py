"""`sleep`: a real process that does nothing for a while; for trying out deadlines, cancelling and limits."""

from services.executor.handlers import Outputs, Task, TaskFailed
from services.executor.processes import run_process

SECONDS_MAX = 86_400


async def sleep(task: Task) -> Outputs:
    """Sleep for `seconds` (default 1) in a child process."""
    seconds = task.number("seconds", 1, 0, SECONDS_MAX)
    done = await run_process(["sleep", f"{seconds:g}"])
    if done.status:
        raise TaskFailed("process_failed", f"sleep ended with {done.status}", retryable=True)
    return {"slept_s": seconds}

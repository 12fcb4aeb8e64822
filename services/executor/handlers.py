"""What a task handler gets and may raise: the words between the worker and the tasks."""

import re
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

import msgspec

from shared.bus import Bus
from shared.errors import Malformed
from shared.events import Artifact, LlmCalled
from shared.plan import HOSTS_MAX
from shared.subjects import ARTIFACTS_BUCKET, MEMORY_BUCKET, artifact, progress, token

Outputs = dict[str, Any]


class TaskFailed(Exception):
    """The task could not do its work: an error type for programs, a message for people (already redacted)."""

    def __init__(self, error: str, message: str, *, retryable: bool = False) -> None:
        super().__init__(message)
        self.error = error
        self.message = message
        self.retryable = retryable


def numbered(name: str, step: str, task: str) -> str:
    """An artifact's name: `report-2.md` of `log_triage-2`, as the planner calls the second of a task in one goal.

    Under the first one's name its bytes would take the place of what was announced before.
    """
    again = re.fullmatch(rf"{re.escape(task)}-([2-9]|[1-9][0-9]+)", step)
    stem, dot, ending = name.partition(".")
    return f"{stem}-{again[1]}{dot}{ending}" if again else name


class Task:
    """One attempt of one step, as its handler sees it."""

    def __init__(
        self,
        bus: Bus,
        *,
        run: int,
        step: str,
        task: str,
        attempt: int,
        inputs: dict[str, Any],
        goal: str | None,
        deadline_ns: int,
        token_grant: int,
        said_llm: Callable[[LlmCalled], Awaitable[None]],
    ) -> None:
        self.bus = bus
        self.run = run
        self.step = step
        self.task = task
        self.attempt = attempt
        self.inputs = inputs
        self.goal = goal
        self.deadline_ns = deadline_ns
        self.token_grant = token_grant
        self.say_llm_called = said_llm
        self.artifacts: list[Artifact] = []
        self._calls_begun = 0
        # Run once the stream has accepted the result as the attempt's end, and not otherwise.
        self.when_accepted: list[Callable[[], Awaitable[None]]] = []

    async def progress(self, text: str) -> None:
        """One line for whoever watches; not stored."""
        await self.bus.publish(progress(self.run, self.step), msgspec.json.encode({"text": text}))

    async def keep(self, name: str, data: bytes, media_type: str) -> None:
        """Put an artifact into the store; it is announced with the step's result, after its bytes are there."""
        name = numbered(name, self.step, self.task)
        sha256, size = await self.bus.object_put(ARTIFACTS_BUCKET, artifact(self.run, name), data)
        self.artifacts.append(Artifact(name=name, sha256=sha256, size_bytes=size, media_type=media_type))

    async def begin_llm_call(self) -> None:
        """Leave a mark before a call of a model: if this worker is killed within it, the next one knows of the call."""
        self._calls_begun += 1
        await self.bus.kv_put(MEMORY_BUCKET, self._mark, str(self._calls_begun).encode())

    async def llm_calls_begun(self) -> int:
        """How many calls this attempt has begun, in whichever worker."""
        if not self.token_grant:
            return 0
        stored = await self.bus.kv_get(MEMORY_BUCKET, self._mark)
        self._calls_begun = int(stored[0]) if stored and stored[0].isdigit() else 0
        return self._calls_begun

    async def forget_llm_calls(self) -> None:
        """The attempt has its end: nobody looks for its mark any more."""
        if self._calls_begun:
            await self.bus.kv_forget(MEMORY_BUCKET, self._mark)

    @property
    def _mark(self) -> str:
        return f"llm.{self.run}.{self.step}.{self.attempt}"

    def number(self, name: str, default: float, least: float, most: float) -> float:
        """A numeric parameter of the goal; `Malformed` with its field when it is none or out of range."""
        value = self.inputs.get(name, default)
        if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value <= most:
            raise Malformed(
                f"{name} is {value!r}; it must be a number from {least:g} to {most:g}", field=f"params.{name}"
            )
        return float(value)

    def names(self, name: str) -> list[str] | None:
        """A list of names among the inputs, or None when it is absent."""
        value = self.inputs.get(name)
        if value is None:
            return None
        if not isinstance(value, list) or not all(isinstance(one, str) for one in value):
            raise Malformed(f"{name} must be a list of names", field=f"params.{name}")
        return value

    def hosts(self) -> list[str] | None:
        """The hosts that the goal names, or None for all of them."""
        names = self.names("hosts")
        if names is None:
            return None
        if len(names) > HOSTS_MAX:
            raise Malformed(f"hosts has {len(names)} names; {HOSTS_MAX} at most", field="params.hosts")
        return [token(name, "params.hosts") for name in names]


Handler = Callable[[Task], Coroutine[Any, Any, Outputs]]
Instant = Callable[[], Outputs]

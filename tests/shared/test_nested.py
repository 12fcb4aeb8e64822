"""JSON that is nested too deeply is one more thing that cannot be read: no service ends of it, no asker waits of it."""

from collections.abc import Awaitable, Callable

import pytest

from services.executor import snapshot
from services.executor.tasks.log_triage import _key, recall
from services.gpu_agent.asked import asked
from services.log_agent.docker_logs import _refusal
from services.registry.service import _question
from shared.asking import ask
from shared.bus import Bus
from shared.config import newest_version
from shared.errors import Malformed, Unavailable
from shared.ledger import Question
from shared.subjects import CONFIG_BUCKET, MEMORY_BUCKET, directive_key, registry
from tests import nested

DEEP = b'{"deep":' + nested.DEEP.encode() + b"}"


@pytest.mark.parametrize("read", [asked, _question])
def test_a_request_is_malformed(read: Callable[[bytes], object]) -> None:
    with pytest.raises(Malformed):
        read(DEEP)


def test_an_engine_that_refuses_so_has_given_no_reason() -> None:
    assert isinstance(_refusal(500, DEEP), Unavailable)


def test_a_snapshot_is_none() -> None:
    assert snapshot.decode(DEEP, "now", 1) is None


async def test_what_is_kept_so_is_as_if_it_were_not_there(bus: Bus) -> None:
    await bus.kv_put(CONFIG_BUCKET, directive_key("a"), DEEP)
    assert await newest_version(bus, directive_key("a")) == 0
    await bus.kv_put(MEMORY_BUCKET, _key("tower", "docker:web"), DEEP)
    assert await recall(bus, "tower", "docker:web") is None


async def test_an_answer_of_the_registry_is_none(bus: Bus) -> None:
    def answer(_subject: str, _data: bytes, reply: str, _headers: object) -> Awaitable[None]:
        return bus.publish(reply, DEEP)

    stop = await bus.subscribe(registry("runs"), answer)
    with pytest.raises(Unavailable, match="cannot be read"):
        await ask(bus, "runs", Question(), timeout_s=5)
    await stop()

"""The view of the config: it is whole when it says so, whatever has become of the bucket's messages."""

import msgspec
import pytest

from shared.bus import Bus
from shared.config import Config
from shared.subjects import CONFIG_BUCKET, directive_key

MINE = directive_key("mine")


async def put(bus: Bus) -> None:
    await bus.kv_put(CONFIG_BUCKET, MINE, msgspec.json.encode({"name": "mine"}))


@pytest.mark.parametrize("puts", [0, 1], ids=["nothing", "one"])
async def test_a_bucket_whose_newest_messages_were_purged_is_read_to_its_end(bus: Bus, puts: int) -> None:
    """As after `nats stream purge`: its sequence goes on from where it was, and no message has it."""
    await put(bus)
    await bus.kv_put(CONFIG_BUCKET, "rates", b"{}")
    await bus.api(f"STREAM.PURGE.KV_{CONFIG_BUCKET}", {"filter": f"$KV.{CONFIG_BUCKET}.rates"})
    if not puts:
        await bus.api(f"STREAM.PURGE.KV_{CONFIG_BUCKET}")
    config = await Config(bus).start()
    assert ("mine" in config.catalogue.directives) is bool(puts)
    await put(bus)
    await config.catch_up()
    assert "mine" in config.catalogue.directives
    await config.stop()

"""No number that somebody says stops the registry: what it can hold is held, and all else cannot be read.

A service that ended over a message would meet it again at each start.
"""

from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from services.registry.fold import Fold
from services.registry.store import Store
from shared.events import USAGE_MAX
from tests.audit import sound
from tests.audit.test_readable import changed, data_of, places

TOLD = (sound.retried, sound.kept, sound.asked, sound.spending, sound.scheduled, sound.waited, sound.cancelled)
HUGE = (2**32, 2**63, 10**30)


def variants(told: list[list[sound.Message]]) -> Iterator[tuple[str, list[sound.Message]]]:
    """A stream for each number that any of these holds, with another one in its place."""
    seen: set[str] = set()
    for messages in told:
        for i, (subject, seq, at_ns, data) in enumerate(messages):
            kind = ".".join(subject.split(".")[:2])
            body = msgspec.json.decode(data)
            for at in places(body):
                value = body
                for key in at:
                    value = value[key]
                name = f"{kind}: {'.'.join(str(key) for key in at if isinstance(key, str))}"
                if isinstance(value, bool) or not isinstance(value, int | float) or name in seen:
                    continue
                seen.add(name)
                for huge in HUGE:
                    message = (subject, seq, at_ns, data_of(kind, changed(body, at, huge)))
                    yield f"{name} is {huge}", [*messages[:i], message, *messages[i + 1 :]]
    assert len(seen) >= 35


def test_any_number_is_held_or_cannot_be_read(tmp_path: Path) -> None:
    store = Store(tmp_path / "ledger.duckdb")
    store.begin("EVENTS", "test")
    for name, messages in variants([told() for told in TOLD]):
        fold = Fold()
        for message in messages:
            fold.add(*message)
        try:
            store.write(fold.take())
        except Exception as error:
            pytest.fail(f"{name}: {error}")
    store.close()


@pytest.mark.parametrize(("used", "counted"), [(USAGE_MAX, USAGE_MAX), (USAGE_MAX + 1, 0)])
def test_a_call_says_as_much_as_any_may_or_counts_for_nothing(used: int, counted: int) -> None:
    fold = Fold()
    for message in sound.spending(used, None):
        fold.add(*message)
    runs = fold.take().runs
    assert list(runs["input_tokens"]) == [counted]

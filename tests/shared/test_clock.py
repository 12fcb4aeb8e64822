"""Times on the wire: text and nanoseconds, there and back, from any thread."""

import sys
import threading
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.audit.reading import time_ns
from shared.clock import NS_PER_S, parse_ns, rfc3339

# hypothesis takes its bounds without a zone.
EPOCH, FAR = (datetime.fromisoformat(day) for day in ("1970-01-01", "2200-01-01"))


@given(st.integers(0, 4_000_000_000 * NS_PER_S))
def test_a_stamp_comes_back_to_the_microsecond(at_ns: int) -> None:
    assert parse_ns(rfc3339(at_ns)) == at_ns // 1000 * 1000


@given(st.datetimes(min_value=EPOCH, max_value=FAR, timezones=st.just(UTC)))
def test_the_text_is_what_python_says(at: datetime) -> None:
    whole = int(at.replace(microsecond=0).timestamp()) * NS_PER_S + at.microsecond * 1000
    assert rfc3339(whole) == at.strftime("%Y-%m-%dT%H:%M:%S.%fZ")


@pytest.mark.parametrize(
    "text,at_ns",
    [
        ("1970-01-01T00:00:00Z", 0),
        ("2023-11-14T22:13:20.123456789Z", 1_700_000_000_123_456_789),
        ("2023-11-14T22:13:20.1Z", 1_700_000_000_100_000_000),
        ("2023-11-15T00:13:20+02:00", 1_700_000_000_000_000_000),
        ("2023-11-14t22:13:20z", 1_700_000_000_000_000_000),
        ("1969-12-31T23:59:59.5Z", -500_000_000),
        ("0001-01-01T00:00:00Z", -62_135_596_800_000_000_000),
        ("9999-12-31T23:59:59.999999999Z", 253_402_300_799_999_999_999),
    ],
)
def test_any_rfc3339_spelling_is_read(text: str, at_ns: int) -> None:
    assert parse_ns(text) == at_ns


@pytest.mark.parametrize(
    "text",
    ["", "now", "2023-11-14", "2023-11-14T22:13:20", "2023-13-14T22:13:20Z", "2023-02-30T22:13:20Z",
     "2023-11-14T25:13:20Z", "2023-11-14T22:13:20+99:99", "0000-01-01T00:00:00Z", "20231114T221320Z",
     "2023-11-14T22:13:20Z\n", "２０２３-11-14T22:13:20Z", "2023-11-14T22:13:20.٣Z",
     "0001-01-01T00:00:00+00:01", "9999-12-31T23:59:59-00:01"],
)  # fmt: skip
def test_what_is_no_time_is_refused(text: str) -> None:
    with pytest.raises(ValueError):
        parse_ns(text)


@pytest.mark.parametrize("text", ["0001-01-01T00:00:00Z", "9999-12-31T23:59:59.999999999Z"])
def test_whatever_can_be_read_can_be_written(text: str) -> None:
    """A time that is read of a payload is said again: who reads it must not fail over that."""
    assert parse_ns(rfc3339(parse_ns(text))) == parse_ns(text) // 1000 * 1000
    assert time_ns(text) == parse_ns(text)


@pytest.mark.parametrize("text", ["0001-01-01T00:00:00+00:01", "9999-12-31T23:59:59-00:01"])
def test_the_audit_reads_no_other_times(text: str) -> None:
    assert time_ns(text) is None


def test_threads_do_not_lend_each_other_the_wrong_second() -> None:
    """The last second is remembered; two threads that ask for different ones must each get their own."""
    wrong: list[str] = []

    def ask(second: int) -> None:
        wanted = datetime.fromtimestamp(second, UTC).strftime("%Y-%m-%dT%H:%M:%S.000000Z")
        for _ in range(20_000):
            said = rfc3339(second * NS_PER_S)
            if said != wanted:
                wrong.append(said)

    switch_s = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)  # threads change places as often as the interpreter can
    threads = [threading.Thread(target=ask, args=(1_700_000_000 + i * 86_400,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    sys.setswitchinterval(switch_s)
    assert not wrong

"""What is remembered of a line is what reading it anew would give, whatever its digits are."""

import random

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from msgspec.structs import replace

from services.executor.triage.clean import clean
from services.executor.triage.mask import digits_as_one
from services.executor.triage.reading import Reading, read
from services.executor.triage.remembered import REMEMBERED_MAX, Readings
from services.executor.triage.times import seconds_of
from tests.executor.triage.controls import LINES, lines, triaged

# Where a digit tells: stamps that name one, levels and statuses by number, fields that stand twice, keys that differ.
DIGITS_TELL = [
    "20261121-09:00:00:606|App_Step|30002312|steps 5",
    "19261121-09:00:00:606|App_Step|30002312|steps 5",
    "1795251600 node-246 unix.hw state_change 1077804742 1 up",
    "2795251600 node-246 unix.hw state 3077804742 1 up",
    "1795251600.123 2026 host app[1]: x",
    "081109 204655 556 INFO dfs.Data: size of 67108864 from /10.0.0.1",
    "081109 204655 556 INFO dfs.Data: size of 20108864 from /10.0.0.1",
    "<11>Jun 14 15:16:01 combo app[1]: x",
    "<3>Jun 14 15:16:01 combo app[1]: x",
    "2026-11-21T09:00:00Z DEBUG5 main: x",
    "09:00 2026-11-21 09:00:00 twice",
    "2026-11-21 09:00:00 2026-11-21 09:00:00 host web1 web1[12]: x",
    "web1 2026-11-21 09:00:00 web1: x",
    'h - - [21/Nov/2026:09:00:00 +0000] "GET /a HTTP/1.1" 500 1',
    'h - - [21/Nov/2026:09:00:00 +0000] "GET /a HTTP/1.1" 900 1',
    "msg=x a1=1 a1=2",
    "msg=x a1=1 a2=2",
    '2026-11-21 09:00:00 {"n":10}',
    '2026-11-21 09:00:00 {"n":01}',
    '{"msg":10}',
    '{"msg":01}',
    "1",
    "000000000000",
    "12:34PM up",
    "[ 12.345678] usb 1-1: x",
    "I1121 09:00:00.678901 1 a.go:1] x",
]
CORPUS = [clean(line) for line, *_ in LINES] + DIGITS_TELL


def with_other_digits(line: str, chance: random.Random) -> str:
    return "".join(chance.choice("0123456789") if char in "0123456789" else char for char in line)


def same(remembered: Reading, line: str) -> None:
    assert replace(remembered, normal="") == read(line), line
    assert remembered.normal in ("", digits_as_one(remembered.message)), line


def test_each_line_is_read_as_anew_whatever_its_digits_were_before() -> None:
    """Lines of every shape with forty other sets of digits each, through one memory."""
    chance, readings = random.Random(3), Readings()
    for line in CORPUS:
        for other in (line, *(with_other_digits(line, chance) for _ in range(40)), line):
            same(readings.read(other), other)


@given(st.sampled_from(CORPUS), st.sampled_from(CORPUS), st.randoms(use_true_random=False), st.integers(0, 60))
@example(CORPUS[0], CORPUS[-1], random.Random(1), 0)
def test_lines_of_two_shapes_put_together(one: str, other: str, chance: random.Random, cut: int) -> None:
    """Stamps deep in a line, two of them, halves of them; and then the same with other digits."""
    line, readings = clean(one[:cut] + other), Readings()
    if line:
        for each in (line, *(with_other_digits(line, chance) for _ in range(5))):
            same(readings.read(each), each)


@pytest.mark.parametrize(
    "line", ["日本 2026-11-21 09:00:00 ERROR ü: 12 ø3", "٣٤ 2026-11-21 09:00:00 INFO a.b: ٣ of 12"]
)
def test_digits_of_other_scripts_are_letters(line: str) -> None:
    readings = Readings()
    for each in (line, line.replace("2", "7")):
        same(readings.read(each), each)
    assert digits_as_one(line) == line.translate({ord(digit): "0" for digit in "123456789"})


def test_the_memory_is_bounded() -> None:
    readings = Readings()
    for number in range(REMEMBERED_MAX + 10):
        readings.read(
            f"2026-11-21 09:00:00 INFO a.b: {'x' * (number % 50)}{number:b}".replace("0", "a").replace("1", "b")
        )
    assert len(readings._known) <= REMEMBERED_MAX
    readings.read("y" * 30_000)
    assert max(map(len, readings._known)) < 2_000


@pytest.mark.parametrize(
    "form", ["2026-11-21 09:00:{:02}", "Nov 21 09:00:{:02}", "261121 0900{:02}", "I1121 09:00:{:02}.12"]
)
def test_seconds_of_a_minute_are_those_of_each_stamp(form: str) -> None:
    """Counted from the minute's, and the same; a second that is none counts as the last one."""
    said = [0, 1, 59, 7, 60, 75, 30]
    report = triaged(lines("\n".join(f"{form.format(second)} INFO app.a: x" for second in said)))
    kinds = {read(f"{form.format(second)} INFO app.a: x").kind for second in said}
    (kind,) = kinds
    stamps = [read(f"{form.format(second)} INFO app.a: x").stamp for second in said]
    found = [at[0] for stamp in stamps if (at := seconds_of(kind, stamp)) is not None]
    (template,) = report.templates
    assert template.count == len(said)
    assert (template.first_seen or "").endswith("09:00:00") or (template.first_seen or "").endswith("09:00:00Z")
    assert max(found) - min(found) == 59
    assert (template.last_seen or "").removesuffix("Z").endswith("09:00:59")

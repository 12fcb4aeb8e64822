"""What is remembered of a line is what reading it anew would give, whatever its digits are."""

import random

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from msgspec.structs import replace

from services.executor.triage import SEVERITIES, Line, SourceTriage, counting
from services.executor.triage.clean import clean
from services.executor.triage.mask import digits_as_one
from services.executor.triage.model import SHAPES_MAX
from services.executor.triage.reading import Reading, read
from services.executor.triage.remembered import REMEMBERED_MAX, Form, Readings
from services.executor.triage.times import seconds_of, shown
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


def same(found: Form | Reading, line: str) -> None:
    remembered = found.reading(line) if isinstance(found, Form) else found
    assert replace(remembered, normal="") == read(line), line
    assert remembered.normal in ("", digits_as_one(remembered.message)), line


def test_each_line_is_read_as_anew_whatever_its_digits_were_before() -> None:
    """Lines of every shape with forty other sets of digits each, through one memory."""
    chance, readings = random.Random(3), Readings()
    for line in CORPUS:
        for other in (line, *(with_other_digits(line, chance) for _ in range(40)), line):
            same(readings.read(other), other)
            if (form := readings.form(other)) is not None:
                same(form, other)


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


@pytest.mark.parametrize("dirt", ["\x1b[31m", "\x00", "\u200b", "\r", "\ud800", "\x9b"])
def test_what_has_to_be_cleaned_is_of_no_form(dirt: str) -> None:
    """A line that has a form is taken as it is."""
    readings, line = Readings(), "2026-11-21 09:00:00 INFO app.a: took 12 of ü"
    readings.read(line)
    assert readings.form(line.replace("12", "47")) is not None
    for at in (0, 20, len(line)):
        assert readings.form(line[:at] + dirt + line[at:]) is None


MIXED = [
    *CORPUS,
    "2026-11-21 09:00:00 INFO job.a: failed=0",
    "2026-11-21 09:00:00 job.a: 7 errors",
    "7 errors",
    "Traceback (most recent call last):",
    '  File "/app/a.py", line 12, in run',
    "ValueError: bad value 7",
    "panic: runtime error: index out of range [7]",
    "goroutine 12 [running]:",
    "2026-11-21 09:00:07 ERROR app.b: lost 3 of 12",
    "",
    "    indented 12",
]


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("shapes_max", [SHAPES_MAX, 20])
def test_lines_are_counted_by_their_form_as_by_their_words(
    seed: int, shapes_max: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same report with and without what forms remember; also when shapes are merged and let go on the way."""
    monkeypatch.setattr(counting, "SHAPES_MAX", shapes_max)
    chance = random.Random(seed)
    texts = [with_other_digits(line, chance) for line in chance.choices(MIXED, k=900)]
    fed = [Line(text, None, chance.choice(["stdout", "stderr"])) for text in texts]
    by_words = SourceTriage("tower", "docker:api", keep_labels=True)  # labels are asked of each line
    by_words.feed(fed)
    assert triaged(fed) == by_words.finish()
    assert len(set(by_words.labels())) > 10


def test_a_zero_is_weighed_in_each_line() -> None:
    said = ["2026-11-21 09:00:00 job.a: 0 errors", "2026-11-21 09:00:01 job.a: 7 errors"]
    for texts in (said * 3, said[::-1] * 3):
        assert triaged(lines("\n".join(texts))).by_severity == {**dict.fromkeys(SEVERITIES, 0), "error": 3, "info": 3}


def test_the_minutes_of_a_zone_are_no_seconds() -> None:
    """Behind a fraction the zone's last two digits stand where another stamp has its seconds."""
    forms = ["2026-11-21T09:00:10.123+01:00 INFO app.a: x", "2026-11-21T09:00:10.123+01:30 INFO app.a: x"]
    (template,) = triaged(lines("\n".join(forms))).templates
    assert (template.first_seen, template.last_seen) == ("2026-11-21T07:30:10Z", "2026-11-21T08:00:10Z")


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
    "form",
    [
        "2026-11-21 09:{:02}:{:02}",
        "2026-11-21 09:{:02}:{:02},250",
        "Nov 21 09:{:02}:{:02}",
        "261121 09{:02}{:02}",
        "I1121 09:{:02}:{:02}.12",
    ],
)
def test_the_time_within_an_hour_is_that_of_each_stamp(form: str) -> None:
    """Counted from the hour's, and the same; a second that is none counts as the last one, a minute as no time."""
    said = [(0, 0), (0, 1), (59, 59), (0, 7), (59, 60), (7, 75), (30, 30), (60, 1), (99, 99), (12, 0)]
    texts = [f"{form.format(*time)} INFO app.a: x" for time in said]
    stamps = [read(text) for text in texts]
    found = [at for one in stamps if (at := seconds_of(one.kind, one.stamp)) is not None]
    assert len(found) == 8
    for first in range(len(texts)):
        fed = texts[first:] + texts[:first]
        (template,) = triaged(lines("\n".join([*fed, *fed]))).templates
        assert template.count == 2 * len(said)
        assert template.first_seen == shown(*min(found))
        assert template.last_seen == shown(*max(found))

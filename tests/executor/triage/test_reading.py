"""What a line says of itself: header, level, message, time."""

import pytest

from services.executor.triage.clean import clean
from services.executor.triage.header import parse_header
from services.executor.triage.reading import read
from services.executor.triage.severity import of_level, of_words
from services.executor.triage.times import seconds_of, shown
from tests.executor.triage.controls import LINES, lines, triaged

NINE = 1795251600  # 2026-11-21T09:00:00Z


@pytest.mark.parametrize(("line", "severity", "message"), LINES)
def test_each_shape_of_line_has_its_severity(line: str, severity: str, message: str | None) -> None:
    report = triaged(lines(line))
    assert [s for s, n in report.by_severity.items() if n] == [severity]
    if message is not None:
        assert read(line).message.strip() == message


def test_stderr_alone_is_no_error() -> None:
    assert triaged(lines("listening on port 80", stream="stderr")).by_severity["unknown"] == 1


@pytest.mark.parametrize(
    ("line", "component"),
    [
        ("Jun 14 15:16:01 combo sshd(pam_unix)[19939]: x", "sshd(pam_unix)"),
        ("2026-11-21 09:00:00,978 INFO [main] org.apache.app.Master: x", "org.apache.app.Master"),
        ("E1121 09:00:00.678901       1 reflector.go:324] x", "reflector.go:324"),
        ("WARNING:app.jobs:careful", "app.jobs"),
        ("2026-11-21T09:00:00.000Z ERROR mycrate::x: bad", "mycrate::x"),
    ],
)
def test_the_component_is_the_process_or_the_logger(line: str, component: str) -> None:
    assert parse_header(line).component == component


@pytest.mark.parametrize(
    ("kind", "stamp", "at_s"),
    [
        ("iso", "2026-11-21T09:00:00.123456789Z", NINE),
        ("iso", "2026-11-21 10:00:00+01:00", NINE),
        ("iso", "2026-11-21T04:00:00-0500", NINE),
        ("iso", "2026/11/21 09:00:00", NINE),
        ("compact", "20261121-09:00:00:606", NINE),
        ("compact", "20261121 090000", NINE),
        ("compact", "20261121-9:0:0:6", NINE),
        ("clf", "21/Nov/2026:09:00:00 +0000", NINE),
        ("clf", "21/Nov/2026:10:00:00 +0100", NINE),
        ("syslog", "Sat Nov 21 09:00:00 2026", NINE),
        ("epoch", "1795251600", NINE),
        ("epoch", "1795251600123", NINE),
        ("short", "26/11/21 09:00:00", NINE),
        ("short", "11/21/2026 09:00:00", NINE),
        ("digits", "261121 090000", NINE),
    ],
)
def test_a_stamp_is_seconds_since_the_epoch(kind: str, stamp: str, at_s: int) -> None:
    assert seconds_of(kind, stamp) == (at_s, "full")


@pytest.mark.parametrize(
    ("kind", "stamp", "text"),
    [
        ("syslog", "Jun 14 15:16:01", "Jun 14 15:16:01"),
        ("klog", "E1121 09:00:00.1", "Nov 21 09:00:00"),
        ("clock", "10:00PM", "22:00:00"),
        ("iso", "2026-11-21T09:00:00Z", "2026-11-21T09:00:00Z"),
    ],
)
def test_a_time_is_shown_as_far_as_it_is_known(kind: str, stamp: str, text: str) -> None:
    found = seconds_of(kind, stamp)
    assert found is not None
    assert shown(*found) == text


@pytest.mark.parametrize("stamp", ["2026-99-99 09:00:00", "2026-02-30T09:00:00Z", "nonsense"])
def test_what_only_looks_like_a_stamp_is_no_time(stamp: str) -> None:
    assert seconds_of("iso", stamp) is None


def test_level_words_and_numbers_of_loggers_are_known() -> None:
    assert [of_level(level) for level in ("WARN", "Err", 60, "40", "E", "severe", True, None, "banana", 3)] == [
        "warning", "error", "critical", "warning", "error", "error", None, None, None, None,
    ]  # fmt: skip


def test_words_inside_identifiers_say_nothing() -> None:
    assert of_words("metric http_errors updated") is None
    assert of_words("errors happened") == "error"


def test_colours_and_control_characters_are_taken_out() -> None:
    assert clean("\x1b[31mERROR\x1b[0m boom\x00 \x1b]0;title\x07x\r\n") == "ERROR boom x"
    assert clean("10%\r50%\r100% done\r") == "100% done"
    assert clean("\ud800x") == "\ufffdx"
    assert clean("a\u202eb") == "ab"

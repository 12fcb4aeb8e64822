"""The triage of a source: every line is accounted for, templates, what is new, bursts, limits."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.executor.triage import Line, SourceReport, SourceTriage, counting, model
from tests.executor.triage.controls import LINES, lines, stamped, triaged


def accounts_balance(report: SourceReport) -> None:
    assert report.lines_read == report.events + report.folded + report.blank
    assert sum(report.by_severity.values()) == report.events
    assert sum(t.count for t in report.templates) + report.events_over_limit == report.events
    for template in report.templates:
        assert sum(template.by_severity.values()) == template.count


_PIECES = st.sampled_from(
    [line for line, _, _ in LINES]
    + [
        "",
        "   ",
        "\t",
        "Traceback (most recent call last):",
        '  File "x.py", line 1',
        "ValueError: x",
        "\tat a.b(C.java:1)",
    ]
    + [
        "Caused by: x.YError: z",
        "goroutine 1 [running]:",
        "panic: x",
        "/a/b.js:1",
        "    ^",
        "}",
        "\x1b[0m",
        "\x00",
        "{",
        "[]",
    ]
)
_TEXTS = st.one_of(_PIECES, st.text(max_size=60), st.characters(codec=None).map(lambda c: c * 3))


@settings(max_examples=200)
@given(
    st.lists(st.builds(Line, _TEXTS, st.none(), st.sampled_from(["", "stdout", "stderr"])), max_size=40),
    st.integers(1, 7),
)
def test_every_line_is_accounted_for(fed: list[Line], step: int) -> None:
    triage = SourceTriage("tower", "docker:api")
    for start in range(0, len(fed), step):
        triage.feed(fed[start : start + step])
    report = triage.finish()
    assert report.lines_read == len(fed)
    accounts_balance(report)
    assert report == triaged(fed), "how the lines were cut into chunks changes nothing"


def test_nothing_read_is_no_evidence() -> None:
    report = triaged([])
    assert report.events == 0
    assert "no evidence" in report.notes[0]


def test_lines_that_differ_in_numbers_are_one_template() -> None:
    report = triaged(lines("\n".join(f"job {i} took {i * 3} ms on 10.0.0.{i}" for i in range(300))))
    assert [(t.text, t.count) for t in report.templates] == [("job <*> took <*> on <*>", 300)]


def test_users_are_a_parameter_and_states_are_not() -> None:
    users = [f"login of {name} accepted" for name in ("ann", "bob", "cyd", "dan", "eve")]
    states = ["link went up", "link went down"]
    report = triaged(lines("\n".join(users + states)))
    assert sorted(t.text for t in report.templates) == ["link went down", "link went up", "login of <*> accepted"]


def test_a_template_has_the_same_id_in_every_run() -> None:
    one = triaged(lines("\n".join(f"job {i} done" for i in range(5)))).templates[0]
    two = triaged(lines("noise\njob 77 done")).templates[0]
    assert two.text != one.text or two.id == one.id
    assert one.id in triaged(lines("job 1 done")).template_ids
    assert len(one.id) == 12


def test_the_first_time_nothing_is_new() -> None:
    report = triaged(lines("a thing happened\nanother thing failed"))
    assert report.first_time
    assert not any(t.new for t in report.templates)


def test_what_the_last_triage_did_not_know_is_new() -> None:
    before = triaged(lines("job 1 done\nqueue is empty"))
    after = triaged(lines("job 2 done\ndisk 3 failed\nqueue is empty"), known=frozenset(before.template_ids))
    assert [t.text for t in after.templates if t.new] == ["disk <*> failed"]


def test_a_statement_is_not_new_because_fewer_values_were_about() -> None:
    """Yesterday five users merged into a wildcard; today there is only one of them, or a sixth."""
    before = triaged(lines("\n".join(f"login of {n} accepted" for n in ("ann", "bob", "cyd", "dan", "eve"))))
    after = triaged(lines("login of zoe accepted"), known=frozenset(before.template_ids))
    assert not after.templates[0].new


def test_a_statement_is_not_new_because_more_values_were_about() -> None:
    before = triaged(lines("login of ann accepted"))
    after = triaged(
        lines("\n".join(f"login of {n} accepted" for n in ("ann", "bob", "cyd", "dan", "eve"))),
        known=frozenset(before.template_ids),
    )
    assert [(t.text, t.new) for t in after.templates] == [("login of <*> accepted", False)]


def test_first_and_last_seen_come_from_the_engine() -> None:
    report = triaged(stamped([f"tick {i}" for i in range(100)]))
    assert (report.first_seen, report.last_seen) == ("2026-11-21T09:00:00Z", "2026-11-21T09:01:39Z")


def test_without_the_engines_stamp_the_headers_time_serves() -> None:
    report = triaged(lines("Jun 14 15:16:01 combo app[1]: x 1\nJun 14 15:17:01 combo app[1]: x 2"))
    assert (report.first_seen, report.last_seen) == ("Jun 14 15:16:01", "Jun 14 15:17:01")
    assert any("yearless" in note for note in report.notes)


def test_times_of_another_kind_are_left_out_aloud() -> None:
    report = triaged(lines("Jun 14 15:16:01 combo app[1]: x\n2026-11-21 09:00:00 INFO y"))
    assert report.last_seen == "Jun 14 15:16:01"
    assert any("another kind" in note for note in report.notes)


def test_a_stretch_far_above_its_own_rest_is_a_burst() -> None:
    quiet = stamped(["request served"] * 1800)
    slow = stamped([f"slow query took {i} ms" for i in range(60)], start_s=600)
    rest = stamped([f"slow query took {i} ms" for i in range(6)], step_s=300)
    report = triaged(quiet + slow + rest)
    bursts = {t.text: t.bursts for t in report.templates}
    assert bursts["request served"] == []
    (burst,) = bursts["slow query took <*>"]
    assert (burst.start, burst.end) == ("2026-11-21T09:10:00Z", "2026-11-21T09:11:00Z")
    assert burst.lines == 61
    assert burst.per_minute > 20 * burst.rest_per_minute


def test_a_steady_rate_is_no_burst() -> None:
    assert not any(t.bursts for t in triaged(stamped([f"tick {i}" for i in range(2000)])).templates)


def test_a_long_window_keeps_few_buckets() -> None:
    triage = SourceTriage("tower", "docker:api")
    triage.feed(
        [Line("tick", f"2026-{m:02d}-{d:02d}T09:00:00Z") for m in range(1, 13) for d in range(1, 29) for _ in "ab"]
    )
    triage.feed([Line("tick", f"2026-05-05T{h:02d}:{m:02d}:00Z") for h in range(24) for m in range(60)])
    triage.finish()
    tally = next(iter(triage._counting._tallies.values()))
    assert len(tally.buckets) <= model.BUCKETS_MAX
    assert sum(tally.buckets.values()) == tally.count == 12 * 28 * 2 + 24 * 60


def test_shapes_over_the_limit_are_let_go_and_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(counting, "SHAPES_MAX", 100)
    rnd = random.Random(7)
    words = ["".join(rnd.choices("bcdfghjklm", k=7)) for _ in range(3000)]
    fed = lines(
        "\n".join(f"{words[i]} {words[-i]} {words[i // 2]}" for i in range(1, 2000)) + "\nfatal error: it broke"
    )
    triage = SourceTriage("tower", "docker:api")
    triage.feed(fed)
    assert len(triage._counting._tallies) <= 100
    report = triage.finish()
    accounts_balance(report)
    assert report.events_over_limit > 0
    assert report.templates[0].severity == "critical", "what is bad is never let go for what is harmless"
    assert any("let go" in note for note in report.notes)


def test_early_merging_loses_no_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(counting, "SHAPES_MAX", 50)
    rnd = random.Random(7)
    names = ["".join(rnd.choices("bcdfghjklm", k=7)) for _ in range(500)]
    report = triaged(lines("\n".join(f"login of {name} was accepted" for name in names)))
    assert [(t.text, t.count) for t in report.templates] == [("login of <*> was accepted", 500)]
    accounts_balance(report)


def test_evidence_is_the_first_two_events_and_the_latest() -> None:
    report = triaged(lines("\n".join(f"disk {i} failed" for i in range(10))))
    assert [e.text for e in report.templates[0].evidence] == ["disk 0 failed", "disk 1 failed", "disk 9 failed"]

"""Findings and the two artifacts."""

import msgspec

from services.executor.triage import Document, Unread, Window, document, markdown, rank
from tests.executor.triage.controls import lines, stamped, triaged

FAILING = "\n".join(["all good"] * 50 + ["disk 3 failed"] + ["cache is slow, retrying"] * 5 + ["panic: gone"])


def test_the_worst_comes_first_and_harmless_lines_are_no_findings() -> None:
    found = rank([triaged(lines(FAILING))])
    assert [(f.rank, f.severity, f.title) for f in found] == [
        (1, "critical", "panic: gone"),
        (2, "error", "disk <*> failed"),
        (3, "warning", "cache is slow, retrying"),
    ]


def test_among_equals_the_rare_one_comes_first() -> None:
    report = triaged(lines("\n".join(["upstream call failed"] * 40 + ["disk 3 failed"] + ["fine"] * 100)))
    assert [f.title for f in rank([report])] == ["disk <*> failed", "upstream call failed"]


def test_what_is_new_goes_before_what_was_always_there() -> None:
    before = triaged(lines("disk 3 failed\nfine"))
    after = triaged(lines("disk 3 failed\nfan 9 failed\nfine"), known=frozenset(before.template_ids))
    found = rank([after])
    assert [(f.title, f.new) for f in found] == [("fan <*> failed", True), ("disk <*> failed", False)]
    assert "new since the last triage of this source" in found[0].why


def test_a_rare_new_harmless_line_is_of_note_and_a_deployment_of_them_is_not() -> None:
    before = triaged(lines("\n".join(["fine"] * 200)))
    known = frozenset(before.template_ids)
    few = triaged(lines("\n".join(["fine"] * 200 + ["switched to backup"])), known=known)
    many = triaged(
        lines("\n".join(["fine"] * 200 + [f"new statement called {w}" * (i + 1) for i, w in enumerate("abcdefghij")])),
        known=known,
    )
    assert [f.title for f in rank([few])] == ["switched to backup"]
    assert rank([many]) == []


def test_a_burst_of_harmless_lines_is_of_note() -> None:
    report = triaged(stamped(["fine"] * 1800) + stamped(["cache flushed"] * 60, start_s=900))
    assert [f.title for f in rank([report])] == ["cache flushed"]


def test_the_limit_is_held_and_said() -> None:
    texts = ["the step failed" + " again" * i for i in range(26)]
    made = document([triaged(lines("\n".join(texts)))], run=1, goal="g", findings_max=5)
    assert (len(made.findings), made.findings_total) == (5, 26)
    assert "26 findings in 1 of 1 source, the first 5 listed" in made.verdict
    assert "21 more findings" in markdown(made)


def test_the_order_of_the_reports_changes_nothing() -> None:
    a, b = triaged(lines(FAILING), source="docker:a"), triaged(lines(FAILING), source="docker:b")
    assert markdown(document([a, b], run=1, goal="g")) == markdown(document([b, a], run=1, goal="g"))


def test_the_report_for_people_says_all_that_a_reader_needs() -> None:
    reports = [triaged(lines(FAILING)), triaged([], source="docker:silent")]
    made = document(
        reports,
        run=42,
        goal="check logs",
        windows={("tower", "docker:api"): Window("2026-11-21T09:00:00Z", "2026-11-21T10:00:00Z")},
        unread=[Unread("nas", "", "no answer within 5 s"), Unread("tower", "file:/x.log", "refused: not allowed")],
        summary="One disk failed.",
        summary_note="the summary was cut at 100 tokens",
    )
    text = markdown(made)
    for part in (
        "**3 findings in 1 of 2 sources, 57 lines read; 2 sources could not be read**",
        "Run `42` · goal `check logs`",
        "> One disk failed.",
        "_the summary was cut at 100 tokens_",
        "### 1. critical: `panic: gone`",
        "| `tower docker:api` | 57 | 57 | 1 | 1 | 5 | 0 | 0 | 50 | 2026-11-21T09:00:00Z to 2026-11-21T10:00:00Z |",
        "57 lines = 57 events + 0 folded into them + 0 blank",
        "## No lines in the window\n\n- `tower docker:silent` (the beginning to now)",
        "- `nas`: no answer within 5 s",
        "- `tower` `file:/x.log`: refused: not allowed",
    ):
        assert part in text, part


def test_no_name_moves_the_cursor_of_who_reads_the_report() -> None:
    """A file's name and an agent's notes are anybody's: a terminal obeys them, and an override turns text round."""
    evil = "a\x1b]0;OWNED\x07\x1bc\x9b31m\u202eb"
    unread = [Unread(evil, evil, f"cannot be read: {evil}")]
    reports = [msgspec.structs.replace(triaged(lines(FAILING), source=evil), notes=[evil])]
    text = markdown(document(reports, run=1, goal=evil, unread=unread, summary=evil, summary_note=evil))
    assert not set(text) & set("\x1b\x07\x9b\u202e")
    assert "acb" in text


def test_without_logs_the_report_says_so() -> None:
    text = markdown(document([], run=1, goal="check logs", unread=[Unread("nas", "", "no answer")]))
    assert "no logs were read: nothing can be said; 1 source could not be read" in text
    assert "no evidence that all is well" in text


def test_sources_without_lines_are_no_evidence() -> None:
    assert document([triaged([])], run=1, goal="g").verdict == "no evidence: 1 source read, no line in the window"


def test_a_clean_log_has_no_findings() -> None:
    assert (
        document([triaged(lines("fine\nfine"))], run=1, goal="g").verdict == "nothing found in 1 source, 2 lines read"
    )


def test_the_document_survives_the_wire() -> None:
    made = document([triaged(lines(FAILING))], run=1, goal="g", unread=[Unread("a", "b", "c")])
    assert msgspec.json.decode(msgspec.json.encode(made), type=Document) == made

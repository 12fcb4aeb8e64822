"""Lines that mean harm, or are merely broken: bounded time and memory, nothing leaks, nothing breaks out."""

import json
import random
import time
import tracemalloc

import msgspec
import pytest

from services.executor.triage import Line, SourceTriage, document, markdown, model
from tests.executor.triage.controls import lines, triaged

HUGE = {
    "one word": "x" * 10_000_000,
    "numbers": "0 " * 5_000_000,
    "json": '{"a":"' + "b" * 10_000_000 + '"}',
    "deep json": '{"a":' * 100_000,
    "brackets": "2026-11-21 09:00:00 " + "[" * 1_000_000,
    "dots": "2026-11-21 09:00:00 ERROR " + "a." * 500_000,
    "request": '"GET ' + "/a" * 500_000,
    "pairs": "level=info " + 'k="' * 300_000,
    "blank": " " * 1_000_000,
}


@pytest.mark.parametrize("text", HUGE.values(), ids=HUGE.keys())
def test_a_huge_line_is_cut_aloud_and_costs_little(text: str) -> None:
    start = time.process_time()
    report = triaged([Line(text)])
    assert time.process_time() - start < 2
    assert report.cut + report.blank == 1
    assert len(msgspec.json.encode(report)) < 20_000


def _hostile_lines() -> list[Line]:
    rnd = random.Random(5)
    texts = [
        "\x00" * 100, "a\x00b", "\x1b[31mERROR\x1b[0m boom", "\ud800 error \udfff", "a\r", "b\r\n", "1%\r2%\r",
        "\u202eevil", "[" * 300, "{" * 300, '{"a":' * 30_000 + "1" + "}" * 30_000, '{"level":"error"}', '{"msg":null}',
        '{"level":{"a":1},"msg":["x"],"time":{}}', "[1,2]", "null", '"x"', "<0>", "<999>1 x",
        "2026-99-99 99:99:99 ERROR x",
        "```", "| a | b |", "<script>alert(1)</script>", "![x](http://evil)", "error ~~~~ ````` x",
        "ERROR x\n# not a heading",
        "Traceback (most recent call last):", "Caused by:", "=" * 200, ":" * 200, "%" * 200, "level=",
        "msg=\"", "1" * 400,
        "9" * 25 + " x", "1" + "0" * 9 + ".1 x", "19999999999999 ERROR x", "Jan 99 99:99:99 h p: x",
        "[99999999.999999] x",
    ]  # fmt: skip
    texts += ["".join(chr(rnd.randrange(256)) for _ in range(120)) for _ in range(200)]
    texts += [rnd.randbytes(120).decode("utf-8", "replace") for _ in range(200)]
    texts += ["".join(chr(rnd.randrange(0x110000)) for _ in range(60)) for _ in range(100)]
    return [Line(text, rnd.choice([None, "2026-11-21T09:00:00Z", "rubbish", ""])) for text in texts]


def test_broken_lines_neither_raise_nor_leave_the_artifacts_unreadable() -> None:
    report = triaged(_hostile_lines())
    assert report.lines_read == report.events + report.folded + report.blank
    made = document([report], run=1, goal="\ud800`x`\n# y")
    text = markdown(made)
    text.encode("utf-8")
    assert json.loads(msgspec.json.encode(made))["lines_read"] == report.lines_read
    assert not any(ord(c) < 32 and c not in "\n\t" for c in text)


def test_undecodable_bytes_are_one_template_and_no_finding() -> None:
    rnd = random.Random(3)
    report = triaged(
        [Line(bytes(rnd.randrange(128, 256) for _ in range(80)).decode("utf-8", "replace")) for _ in range(50)]
    )
    assert report.undecodable == 50
    assert report.templates_total == 1
    assert document([report], run=1, goal="g").findings == []


def test_log_text_cannot_break_out_of_its_fence() -> None:
    evil = "ERROR ``` ```` </details>\n````\n# heading\n<img src=x>"
    text = markdown(document([triaged([Line(evil)])], run=1, goal="g"))
    inside = outside = ""
    fence = None
    for line in text.splitlines():
        if fence is None and line.startswith("```"):
            fence = line.removesuffix("text")
        elif fence is not None and line == fence:
            fence = None
        elif fence is None:
            outside += line + "\n"
        else:
            inside += line + "\n"
    assert fence is None
    assert "# heading\n<img src=x>" in inside
    for line in outside.splitlines():
        assert "<img" not in line
        assert not line.startswith("# heading")


def test_a_pipe_in_a_name_cannot_break_the_table() -> None:
    text = markdown(document([triaged(lines("x"), source="file:/a|b`c")], run=1, goal="g"))
    row = next(line for line in text.splitlines() if line.startswith("| ``tower"))
    assert row.replace("\\|", "").count("|") == 12


def test_markup_in_words_of_people_is_shown_not_obeyed() -> None:
    text = markdown(document([], run=1, goal="<b> `x`", summary="# no\n<script>x</script> [a](http://b) ![i](j)"))
    assert "<script>" not in text
    assert "[a](" not in text
    assert "\n# no" not in text


SECRETS = ["hunter2hunter2", "ghp_abcdefghijklmnopqrstuvwxyz0123456789", "eyJhbGciOiJIUzI1.eyJzdWIiOiIx.c2lnbmF0"]


@pytest.mark.parametrize(
    "text",
    [
        "ERROR login with password={0} failed, {1} and {2}",
        '{{"level":"error","msg":"call failed with {1}","password":"{0}","jwt":"{2}"}}',
        'level=error msg="bad password={0}" token={1} auth={2}',
        "ERROR x\n  password: {0}\n  {1}\nCaused by: a.b.CError: token {2} secret={0}",
        "Traceback (most recent call last):\n  File x\nValueError: {1} {2} password={0}",
        "ERROR http://bob:{0}@db/x {1} {2}",
        'x - - [21/Nov/2026:09:00:00 +0000] "GET /{1}/x?password={0}&jwt={2} HTTP/1.1" 500 1',
        "ERROR " + "word " * 390 + "{1} password={0} {2}",
        "ERROR " + "y" * 32_700 + " {1}{1}{1} password={0} {2}",
    ],
)
def test_no_secret_leaves_the_triage(text: str) -> None:
    report = triaged(lines(text.format(*SECRETS)), known=frozenset())
    made = document([report], run=1, goal=f"find password={SECRETS[0]}", summary=f"token {SECRETS[1]}")
    for out in (markdown(made), msgspec.json.encode(made).decode()):
        for secret in SECRETS:
            for start in range(len(secret) - 8):
                assert secret[start : start + 8] not in out


def test_a_secret_at_the_cut_of_a_long_line_leaks_no_part() -> None:
    for pad in range(model.LINE_CHARS_MAX - 60, model.LINE_CHARS_MAX + 5, 3):
        report = triaged([Line("ERROR " + "y" * (pad - 7) + " " + SECRETS[1])])
        assert "ghp_" not in msgspec.json.encode(report).decode()


def test_memory_does_not_grow_with_the_lines() -> None:
    triage = SourceTriage("tower", "docker:api")

    def feed(n: int) -> None:
        for start in range(0, n, 1000):
            triage.feed([Line(f"job {i} of user u{i % 7} failed after {i} ms") for i in range(start, start + 1000)])

    feed(20_000)
    tracemalloc.start()
    feed(60_000)
    grown, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert grown < 1_000_000
    assert triage.finish().templates[0].count == 80_000


def test_long_distinct_lines_keep_within_the_samples_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    from services.executor.triage import counting

    monkeypatch.setattr(counting, "SAMPLES_CHARS_MAX", 100_000)
    rnd = random.Random(1)
    triage = SourceTriage("tower", "docker:api")
    triage.feed([Line("".join(rnd.choices("bcdfgh ", k=7_000))) for _ in range(200)])
    assert triage._counting._sample_chars < 100_000 + 8_000 + 200 * model.SAMPLE_CHARS_SHORT

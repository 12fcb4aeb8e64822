"""Stack traces become one event, called by what it died of."""

import pytest

from services.executor.triage import Line
from tests.executor.triage.controls import lines, triaged

PYTHON = """Traceback (most recent call last):
  File "/app/jobs.py", line 12, in run
    do()
KeyError: 'x'

During handling of the above exception, another exception occurred:

Traceback (most recent call last):
  File "/app/jobs.py", line 15, in run
    do2()
app.errors.JobError: could not run job 7"""
JAVA = """Exception in thread "main" java.lang.IllegalStateException: boom
\tat com.acme.Foo.bar(Foo.java:12)
\tat com.acme.Main.main(Main.java:3)
Caused by: java.sql.SQLException: no connection
\tat com.acme.Db.open(Db.java:1)
\t... 12 more"""
GO = """panic: runtime error: index out of range [5] with length 3

goroutine 1 [running]:
main.work(0x5)
\t/app/main.go:12 +0x1d
created by main.main in goroutine 1
\t/app/main.go:3 +0x2
exit status 2"""
NODE = """/app/server.js:12
    throw new TypeError('no')
    ^

TypeError: no
    at Object.<anonymous> (/app/server.js:12:9)
    at node:internal/main/run_main_module:28:49 {
  code: 'X'
}

Node.js v22.0.0"""
RUST = """thread 'main' panicked at src/main.rs:2:5:
index out of bounds: the len is 3 but the index is 99
stack backtrace:
   0: rust_begin_unwind
             at /rustc/x/library/std/src/panicking.rs:697:5
note: run with `RUST_BACKTRACE=full` for a verbose backtrace"""
DOTNET = """Unhandled exception. System.InvalidOperationException: bad state
 ---> System.IO.IOException: disk gone
   at Foo.Read() in /app/Foo.cs:line 3
   --- End of inner exception stack trace ---
   at Foo.Main(String[] args) in /app/Program.cs:line 3"""


@pytest.mark.parametrize(
    ("trace", "severity", "template", "exception"),
    [
        (PYTHON, "error", "app.errors.JobError: could not run job <*>", "JobError"),
        (JAVA, "error", "java.sql.SQLException: no connection", "SQLException"),
        (GO, "critical", "panic: runtime error: index out of range [<*>] with length <*>", ""),
        (NODE, "error", "TypeError: no", "TypeError"),
        (RUST, "critical", "index out of bounds: the len is <*> but the index is <*>", ""),
        (DOTNET, "error", "System.IO.IOException: disk gone", "IOException"),
    ],
    ids=["python", "java", "go", "node", "rust", "dotnet"],
)
def test_a_trace_is_one_event_named_by_its_exception(trace: str, severity: str, template: str, exception: str) -> None:
    report = triaged(lines(trace + "\nnext line"))
    assert [(t.severity, t.text, t.exception) for t in report.templates] == [
        (severity, template, exception),
        ("unknown", "next line", ""),
    ]
    assert report.events == 2
    assert report.folded + report.blank + report.events == report.lines_read


@pytest.mark.parametrize("trace", [PYTHON, JAVA, GO, NODE, RUST, DOTNET])
def test_the_evidence_keeps_the_end_of_the_trace(trace: str) -> None:
    evidence = triaged(lines(trace)).templates[0].evidence[0].text
    assert evidence.splitlines()[0] == trace.splitlines()[0]
    assert evidence.splitlines()[-1] == trace.splitlines()[-1]


def test_a_trace_belongs_to_the_line_that_logged_it() -> None:
    head = "2026-11-21 09:00:00,123 ERROR app.jobs: job 12 failed"
    report = triaged(lines(f"{head}\n{PYTHON}\n2026-11-21 09:00:01,123 INFO app.jobs: next"))
    assert report.events == 2
    assert report.templates[0].text == "job <*> failed app.errors.JobError: could not run job <*>"


def test_an_unindented_java_exception_belongs_to_the_warning_above() -> None:
    report = triaged(
        lines("09:00:00.1 WARN [main] c.a.Foo - no db\njava.net.ConnectException: refused\n\tat a.B(C.java:1)")
    )
    assert [(t.text, t.severity) for t in report.templates] == [("no db java.net.ConnectException: refused", "warning")]


def test_an_info_line_does_not_swallow_the_trace_below() -> None:
    report = triaged(lines(f"2026-11-21 09:00:00,123 INFO app: all well\n{PYTHON}"))
    assert [t.severity for t in report.templates] == ["error", "info"]


def test_streams_that_interleave_are_folded_apart() -> None:
    trace, talk = PYTHON.split("\n"), [f"tick {i} of the clock" for i in range(11)]
    fed = [
        line
        for pair in zip(trace, talk, strict=True)
        for line in (Line(pair[0], None, "stderr"), Line(pair[1], None, "stdout"))
    ]
    report = triaged(fed)
    assert [(t.text, t.count) for t in report.templates] == [
        ("app.errors.JobError: could not run job <*>", 1),
        ("tick <*> of the clock", 11),
    ]


def test_a_trace_cut_into_two_feeds_is_still_one() -> None:
    from services.executor.triage import SourceTriage

    triage = SourceTriage("tower", "docker:api")
    for line in lines(PYTHON):
        triage.feed([line])
    assert triage.finish().events == 1


def test_a_long_trace_keeps_head_and_tail_and_says_what_is_left_out() -> None:
    frames = "\n".join(f"\tat a.B.c{i}(D.java:{i})" for i in range(300))
    report = triaged(lines(f"java.lang.RuntimeException: x\n{frames}\nCaused by: java.io.IOException: disk"))
    evidence = report.templates[0].evidence[0].text
    assert "285 lines left out" in evidence
    assert evidence.endswith("Caused by: java.io.IOException: disk")
    assert report.folded == 301


def test_an_indented_continuation_belongs_to_its_line() -> None:
    report = triaged(lines("2026-11-21 09:00:00.0 UTC [1] ERROR:  bad query\n\tselect 1\n\tfrom x\nplain"))
    assert (report.events, report.folded) == (2, 2)


def test_the_console_logger_of_dotnet_says_its_message_on_the_next_line() -> None:
    report = triaged(lines("info: Microsoft.Hosting.Lifetime[14]\n      Now listening on: http://[::]:80"))
    assert report.templates[0].text.startswith("Now listening on:")

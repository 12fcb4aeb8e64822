"""Nothing is allowed: the triage succeeds, and says that it is no evidence and what to do."""

from pathlib import Path

from tests.stack import stack, until


def test_a_report_without_logs_says_why_and_the_way_out(tmp_path: Path) -> None:
    """No source is allowed on the only host; where an engine answers, the way out is named."""
    with stack(tmp_path, "planner", "executor", "registry", "log_agent") as remit:
        until(lambda: "logs" in remit.remit("hosts", "-o", "json").stdout)
        done = remit.remit("submit", "check the logs", "--wait")
        assert done.returncode == 0, done.stderr
        report = remit.remit("report", "1").stdout
        assert "no evidence that all is well" in report
        assert "## Not read" in report
        assert "remit allow add" in report or "engine" in report.lower()

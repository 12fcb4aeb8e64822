"""A pytest plugin for .ci/run: where there is an engine, a test marked `docker` that did not run is a fault.

A skip looks like a pass in the closing line. This plugin counts the tests marked `docker`, names those that were
skipped, and fails the session when there is one, or when there was none to run at all.
"""

import pytest

_MARK = "docker"


class EngineTests:
    def __init__(self, whole: bool) -> None:
        self.whole = whole  # every test was asked for: that none needs the engine would be a fault
        self.ran: set[str] = set()
        self.skipped: dict[str, str] = {}
        self.unseen: list[str] = []  # modules skipped as a whole: their tests, marked or not, were never collected

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.skipped:
            self.unseen.append(f"{report.nodeid}: {_reason(report)}")

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if _MARK not in report.keywords:  # the report knows, also when another process ran the test
            return
        if report.skipped:
            self.skipped[report.nodeid] = _reason(report)
        elif report.when == "call":
            self.ran.add(report.nodeid)

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self, session: pytest.Session, exitstatus: int) -> None:
        if exitstatus == pytest.ExitCode.OK and self.faults():
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        terminalreporter.write_line(f"engine tests: {len(self.ran)} ran, {len(self.skipped)} were skipped")
        for fault in self.faults():
            terminalreporter.write_line(f"FAULT: {fault}", red=True)

    def faults(self) -> list[str]:
        found = [f"needs the engine, but was skipped: {test}: {why}" for test, why in sorted(self.skipped.items())]
        found += [f"a whole module was skipped: {module}" for module in self.unseen]
        if not self.ran and self.whole:
            found.append("no test that needs the engine ran at all")
        return found


def _reason(report: pytest.TestReport | pytest.CollectReport) -> str:
    return str(report.longrepr[2]) if isinstance(report.longrepr, tuple) else str(report.longrepr)


def pytest_configure(config: pytest.Config) -> None:
    if hasattr(config, "workerinput"):
        return  # a worker of pytest-xdist; its reports come to the one that counts
    whole = config.args_source is pytest.Config.ArgsSource.TESTPATHS
    whole = whole and not config.getoption("keyword") and config.getoption("markexpr") != "chaos"
    config.pluginmanager.register(EngineTests(whole), "remit-engine-tests")

"""`noop` and `fail`: tasks without any effect, for measuring and for tests."""

from services.executor.handlers import Outputs, TaskFailed


def noop() -> Outputs:
    """Does nothing and succeeds."""
    return {}


def fail() -> Outputs:
    """Fails, always, and not for a passing reason."""
    raise TaskFailed("failed_on_purpose", "the task `fail` always fails")

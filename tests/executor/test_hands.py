"""`REMIT_SLOTS`, as the executor reads it before it does anything else."""

import pytest

from services.executor.__main__ import HANDS_MAX, hands
from shared.errors import Malformed


@pytest.mark.parametrize(("text", "meant"), [("", None), ("1", 1), ("1000", HANDS_MAX)])
def test_a_number_of_steps_is_taken(monkeypatch: pytest.MonkeyPatch, text: str, meant: int | None) -> None:
    monkeypatch.setenv("REMIT_SLOTS", text)
    assert hands() == meant


@pytest.mark.parametrize("text", ["0", "-1", "1001", "abc", "1.5"])
def test_what_no_step_could_run_with_is_refused(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    """With none, every step would wait for ever."""
    monkeypatch.setenv("REMIT_SLOTS", text)
    with pytest.raises(Malformed, match=f"REMIT_SLOTS='{text}'"):
        hands()

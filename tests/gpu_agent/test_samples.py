"""What was once on the wire is read for ever: these files are never changed, a new shape gets a new file."""

from pathlib import Path

import msgspec
import pytest

from shared.gpu import GpuHostReport, GpuReportRequest, GpuRequestRefused

SAMPLES = Path(__file__).with_name("samples")
WORDS: dict[str, type[msgspec.Struct]] = {
    "host_report": GpuHostReport,
    "report_request": GpuReportRequest,
    "request_refused": GpuRequestRefused,
}


@pytest.mark.parametrize("path", sorted(SAMPLES.glob("*.json")), ids=lambda path: path.stem)
def test_a_frozen_sample_is_read_with_nothing_lost(path: Path) -> None:
    told = msgspec.json.decode(path.read_bytes())
    read = msgspec.json.decode(path.read_bytes(), type=WORDS[path.stem.rpartition("_")[0]])
    assert _within(told, msgspec.to_builtins(read)), path.stem


def test_each_word_has_a_sample() -> None:
    assert {path.stem.rpartition("_")[0] for path in SAMPLES.glob("*.json")} == set(WORDS)


def test_a_reader_of_today_takes_a_report_of_tomorrow() -> None:
    told = msgspec.json.decode((SAMPLES / "host_report_1.json").read_bytes())
    told["gpus"][0]["fan_pct"] = 30
    told["weather"] = {"is": "fine"}
    assert msgspec.convert(told, GpuHostReport).gpus[0].uuid == "GPU-0c1d"


def _within(told: object, read: object) -> bool:
    """Say whether all that was told was read; what was read may hold newer fields."""
    if isinstance(told, dict) and isinstance(read, dict):
        return all(key in read and _within(value, read[key]) for key, value in told.items())
    if isinstance(told, list) and isinstance(read, list):
        return len(told) == len(read) and all(map(_within, told, read))
    return told == read

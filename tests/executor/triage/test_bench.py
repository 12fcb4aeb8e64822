"""`bench triage` on a small made-up set: it scores what it should and writes what the scorer reads."""

import csv
from pathlib import Path

import pytest

from bench import triage as bench


def _set(directory: Path) -> Path:
    log = directory / "Made" / "Made_2k.log"
    log.parent.mkdir(parents=True)
    rows = [(f"2026-11-21 09:00:{i:02d} INFO app.jobs: job {i} done", "E1") for i in range(20)]
    rows += [(f"2026-11-21 09:01:{i:02d} WARN app.disks: disk {i} slow", "E2") for i in range(10)]
    log.write_text("".join(f"{text}\r\n" for text, _ in rows))
    with log.with_name("Made_2k.log_structured.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("LineId", "EventId"))
        writer.writerows((n, event) for n, (_, event) in enumerate(rows, 1))
    return directory


def test_the_bench_scores_and_writes_predictions(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result = bench.run(_set(tmp_path / "sets"), tmp_path / "out")
    assert result["mean_ga"] == 1.0
    assert result["lines_s"] > 0
    with (tmp_path / "out" / "Made.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["LineId"] for row in rows] == [str(n) for n in range(1, 31)]
    assert {row["EventTemplate"] for row in rows} == {"job <*> done", "disk <*> slow"}
    out, err = capsys.readouterr()
    assert "Made" in out
    assert "…" in err


def test_accuracy_counts_lines_of_groups_that_are_exactly_right() -> None:
    assert bench.grouping_accuracy(["a", "a", "b", "b"], ["1", "1", "2", "3"]) == 0.5


def test_a_directory_without_sets_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        bench.run(tmp_path)

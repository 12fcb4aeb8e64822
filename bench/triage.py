"""`remit bench triage DIR`: how well whole lines are grouped, and how fast, through the code that production runs.

DIR holds one folder a log set with `<set>_2k.log` and, for scoring, `<set>_2k.log_structured.csv`
(LineId, EventId). Each set is one source fed as a log agent would feed it; there is one configuration and no
knowledge of any set. Grouping accuracy is the share of lines whose group holds exactly the lines of the true group.
Every pass makes a new triage, so caches are as cold as in production.
"""

import csv
import sys
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from services.executor.triage import Line, SourceTriage
from services.executor.triage.closing import template_id

PASS_LINES = 20_000  # each set is repeated to about this many lines for a stable figure
PASSES = 3


def run(directory: Path, predictions: Path | None = None) -> dict[str, Any]:
    """Measures every set under `directory`; writes `<set>.csv` under `predictions`; prints a table to stdout."""
    logs = sorted(directory.glob("*/*_2k.log")) or sorted(directory.glob("*_2k.log"))
    if not logs:
        raise FileNotFoundError(f"no *_2k.log under {directory}")
    if predictions is not None:
        predictions.mkdir(parents=True, exist_ok=True)
    sets: list[dict[str, Any]] = []
    for log in logs:
        name = log.name.removesuffix("_2k.log")
        print(f"{name} …", file=sys.stderr)
        lines = _lines(log)
        labels = _labels(lines)
        truth = _truth(log.with_name(f"{log.name}_structured.csv"))
        if predictions is not None:
            _write(predictions / f"{name}.csv", labels)
        sets.append(
            {
                "set": name,
                "lines": len(lines),
                "groups": len(set(labels)),
                "groups_true": len(set(truth)) if truth else None,
                "ga": round(grouping_accuracy(labels, truth), 4) if truth else None,
                "lines_s": round(_speed(lines)),
            }
        )
    scored = [s["ga"] for s in sets if s["ga"] is not None]
    result: dict[str, Any] = {
        "sets": sets,
        "mean_ga": round(sum(scored) / len(scored), 4) if scored else None,
        # Over all lines: the sum of lines by the sum of times, so that a slow set is not hidden by a fast one.
        "lines_s": round(sum(s["lines"] for s in sets) / sum(s["lines"] / s["lines_s"] for s in sets)),
        "lines_s_min": min(s["lines_s"] for s in sets),
    }
    _print(result)
    return result


def grouping_accuracy(predicted: Sequence[str], truth: Sequence[str]) -> float:
    """Share of lines in groups that are exactly right; the two sequences run over the same lines."""
    ours: dict[str, set[int]] = defaultdict(set)
    theirs: dict[str, set[int]] = defaultdict(set)
    for at, (label, true) in enumerate(zip(predicted, truth, strict=True)):
        ours[label].add(at)
        theirs[true].add(at)
    right = sum(len(group) for group in ours.values() if theirs[truth[next(iter(group))]] == group)
    return right / len(truth) if truth else 0.0


def _lines(log: Path) -> list[Line]:
    text = log.read_bytes().decode("utf-8", "replace")
    return [Line(line.removesuffix("\r")) for line in text.removesuffix("\n").split("\n")]


def _labels(lines: Sequence[Line]) -> list[str]:
    triage = SourceTriage("bench", "file", keep_labels=True)
    for part in _parts(lines):
        triage.feed(part)
    triage.finish()
    return triage.labels()


def _parts(lines: Sequence[Line]) -> Iterator[Sequence[Line]]:
    for start in range(0, len(lines), 1_000):
        yield lines[start : start + 1_000]


def _speed(lines: Sequence[Line]) -> float:
    """Lines a second from text to finished report, best of the passes (others' noise only ever slows one)."""
    best = 0.0
    repeats = max(1, PASS_LINES // len(lines))
    for _ in range(PASSES):
        spent = 0.0
        for _ in range(repeats):
            triage = SourceTriage("bench", "file")
            start = time.process_time()
            for part in _parts(lines):
                triage.feed(part)
            triage.finish()
            spent += time.process_time() - start
        best = max(best, repeats * len(lines) / spent)
    return best


def _truth(path: Path) -> list[str]:
    if not path.exists():
        return []
    with path.open(newline="", encoding="utf-8", errors="replace") as file:
        rows = sorted(csv.DictReader(file), key=lambda row: int(row["LineId"]))
    return [row["EventId"] for row in rows]


def _write(path: Path, labels: Sequence[str]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(("LineId", "EventId", "EventTemplate"))
        for number, label in enumerate(labels, 1):
            writer.writerow((number, template_id(label), label))


def _print(result: dict[str, Any]) -> None:
    print(f"{'set':14} {'lines':>6} {'groups':>6} {'true':>6} {'GA':>6} {'lines/s':>9}")
    for each in result["sets"]:
        ga = "–" if each["ga"] is None else f"{each['ga']:.3f}"
        true = "–" if each["groups_true"] is None else each["groups_true"]
        print(f"{each['set']:14} {each['lines']:>6} {each['groups']:>6} {true:>6} {ga:>6} {each['lines_s']:>9,}")
    mean = "–" if result["mean_ga"] is None else f"{result['mean_ga']:.3f}"
    print(f"{'mean':14} {'':>6} {'':>6} {'':>6} {mean:>6} {result['lines_s']:>9,}")

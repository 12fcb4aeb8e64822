"""`remit bench ask`: every listed question over a large file, while a fold goes on writing into it."""

import asyncio
import tempfile
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, get_args

from bench.made import DAYS, Message, stream
from services.registry import reports
from services.registry.fold import Fold
from services.registry.store import Store
from shared.clock import NS_PER_S
from shared.ledger import By, Question

BATCH = 50_000
WRITE_EVERY_S = 0.5  # as the registry does
WRITE_EVENTS = 2_000  # a load of 4,000 events/s beside the questions
ASKED = 40
BEYOND = 1 << 62


def run(runs: int, tell: Callable[[str], None]) -> dict[str, Any]:
    """Fill a file with `runs` runs, then ask each question many times beside a writer."""
    with tempfile.TemporaryDirectory(prefix="remit-bench-") as folder:
        store, fold = Store(Path(folder) / "ledger.duckdb"), Fold()
        store.begin("EVENTS", "bench")
        tell(f"filling a file with {runs} runs")
        began_s = time.process_time()
        coming = stream(runs + runs // 10)
        for message in coming:
            fold.add(*message)
            if len(fold) >= BATCH:
                store.write(fold.take())
                if fold.position >= runs * 10:
                    break
        filled_s = time.process_time() - began_s
        events = fold.position
        over = threading.Event()
        writer = threading.Thread(target=_write, args=(store, fold, coming, over))
        writer.start()
        try:
            tell(f"asking, {events} events in the file")
            figures = asyncio.run(_ask_all(store))
        finally:
            over.set()
            writer.join()
        worst = max(figures, key=lambda name: figures[name])
        told = {
            "runs": store.ask("counts", {})[0]["runs"],
            "events": events,
            "written_meanwhile_events": fold.position - events,
            "make_and_fold_events_s": round(events / filled_s, 1),
            "file_bytes": store.path.stat().st_size,
            **{f"p95_ms {name}": value for name, value in figures.items()},
            "worst": f"{worst}: {figures[worst]} ms",
        }
        store.close()
        return told


def _write(store: Store, fold: Fold, coming: Iterator[Message], over: threading.Event) -> None:
    while not over.wait(WRITE_EVERY_S):
        messages: list[Message] = list(islice(coming, WRITE_EVENTS))
        for message in messages:
            fold.add(*message)
        if messages:
            store.write(fold.take())


async def _ask_all(store: Store) -> dict[str, float]:
    async def ask(name: str, **values: Any) -> list[dict[str, Any]]:
        return await asyncio.to_thread(store.ask, name, values)

    last = (await ask("runs", before=BEYOND, status=None, limit=1))[0]
    middle, day = int(last["run"]) // 2, str(last["submitted_at"])[:10]
    middle = int((await ask("runs", before=middle, status=None, limit=1))[0]["run"])
    week_ns = (1_795_000_000 + (DAYS - 7) * 86_400) * NS_PER_S
    since = time.strftime("%Y-%m-%d", time.gmtime(week_ns // NS_PER_S))
    questions: dict[str, Callable[[], Awaitable[Any]]] = {
        "runs": partial(ask, "runs", before=BEYOND, status=None, limit=50),
        "runs failed": partial(ask, "runs", before=BEYOND, status="failed", limit=50),
        "run": partial(ask, "run", run=middle),
        "run steps": partial(ask, "run_steps", run=middle),
        "run artifacts": partial(ask, "run_artifacts", run=middle),
        "run events": partial(ask, "run_events", run=middle, after=0, limit=50),
        "approvals": partial(ask, "approvals", before=BEYOND, run=None, status=None, limit=50),
        "hosts": partial(ask, "hosts", page=None, limit=50),
        "status": partial(ask, "counts"),
        "tokens": partial(reports.tokens, ask, Question(limit=100)),
        **{f"tokens by {by}": partial(reports.tokens, ask, Question(by=by, limit=100)) for by in get_args(By)},
        "usage": partial(reports.usage, ask, Question()),
        "usage of a week": partial(reports.usage, ask, Question(since=since)),
        "daily": partial(reports.daily, ask, Question(day=day, limit=100), None),
    }
    figures: dict[str, float] = {}
    for name, question in questions.items():
        took_ms: list[float] = []
        for _ in range(ASKED):
            began_s = time.perf_counter()
            await question()
            took_ms.append((time.perf_counter() - began_s) * 1000)
        figures[name] = round(sorted(took_ms)[int(ASKED * 0.95)], 1)
    return figures

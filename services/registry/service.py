"""The registry's shell: follows EVENTS, writes batches, answers `registry.…`.

The fold runs on the loop, DuckDB in one thread of its own, questions in another: a long question does not hold up
the fold, and the file sees one writer.
"""

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import msgspec

from services.registry import reports
from services.registry.fold import Fold
from services.registry.rebuild import WAY_OUT, from_archive, rebuild
from services.registry.store import Damaged, Store, put_aside
from shared.bus import Bus
from shared.errors import UNREADABLE, Malformed, RemitError, malformed
from shared.ledger import LIMIT_MAX, SELECT_ROWS_MAX, Answer, Question, Rates
from shared.pull import Gone, Reader
from shared.streams import last_seq, standing
from shared.subjects import CONFIG_BUCKET, EVENTS, registry
from shared.waiting import to_the_end

log = logging.getLogger("remit.registry")

# From one batch's beginning to the next one's, at least: a commit costs the same for 1 event and for 1,000. An event is
# in the tables after this and two writes at most; who waits for an event has it flushed at once.
FLUSH_S = 0.2
FLUSH_EVENTS = 20_000
BACKLOG_EVENTS_MAX = 100_000  # the reader waits for the disk before memory grows further
PATIENCE_S = 5.0
READERS = 2  # questions at a time
ANSWER_BYTES_MAX = 1_000_000
SELECT_S = 10.0  # how long somebody's own query may take
AS_OF_EVENTS_MAX = 5_000_000  # about two minutes of folding
RATES_KEY = "rates"


class Registry:
    """Folds, and answers what is in the tables."""

    def __init__(self, bus: Bus, path: Path, *, answers: bool = True, archive: str | None = None) -> None:
        self._bus = bus
        self._archive = archive  # where the events lie that the stream does not have any more
        self._answers = answers
        self._path = path
        self._fold = Fold()
        self._writing = ThreadPoolExecutor(1, "duckdb-write")
        self._reading = ThreadPoolExecutor(READERS, "duckdb-read")
        self._asking = asyncio.Semaphore(READERS)
        self._store: Store
        self._reader: Reader
        self._flushing = asyncio.Lock()
        self._full = asyncio.Event()
        self._written = asyncio.Condition()
        self._rebuilding = asyncio.Lock()
        self._meanwhile: list[tuple[str, int, int, bytes]] | None = None  # what comes while a rebuild ends
        self._selects = ThreadPoolExecutor(1, "duckdb-select")
        self._selecting = asyncio.Lock()
        self._looking_back = asyncio.Lock()
        self._past: tuple[int, Store] | None = None
        self._lost: Exception | None = None
        self._behind = 0  # the event at which it will have caught up with what was there when it began
        self.position = 0

    async def start(self) -> None:
        try:
            self._store = await self._in(self._writing, Store, self._path)
        except Damaged as damaged:
            log.error("%s; kept as %s, and folded anew", damaged, put_aside(self._path))
            self._store = await self._in(self._writing, Store, self._path)
        await self._take_up()
        self._flusher = asyncio.create_task(self._flush_for_ever())
        if not self._answers:
            log.info("a replica: %s follows the stream, and the registry answers for it", self._path)
            return
        endpoints: dict[str, Callable[[Question], Awaitable[Answer]]] = {
            "runs": self.on_runs,
            "run": self.on_run,
            "events": self.on_events,
            "approvals": self.on_approvals,
            "tokens": self.on_tokens,
            "usage": self.on_usage,
            "daily": self.on_daily,
            "sql": self.on_sql,
            "hosts": self.on_hosts,
            "status": self.on_status,
            "digest": self.on_digest,
        }
        served = {registry(name): self._endpoint(answer) for name, answer in endpoints.items()}
        served[registry("rebuild")] = self._on_rebuild
        await self._bus.serve("registry", "0.1.0", served)

    async def failed(self) -> None:
        """Wait until the fold cannot go on, and raise why. What cannot be written must not be forgotten in silence."""
        try:
            await asyncio.gather(self._reader.failed(), asyncio.shield(self._flusher))
        except Gone as gone:
            raise Gone(EVENTS, gone.first, gone.last, WAY_OUT) from gone

    async def stop(self) -> None:
        self._flusher.cancel()
        await self._reader.stop()
        await self.flush()
        await self._forget_past()
        if not self._answers:
            digest = await self._in(self._writing, self._store.digest)
            log.info("the replica ends at event %d: %s", self.position, digest)
        await self._in(self._writing, self._store.close)

    async def _in(self, pool: ThreadPoolExecutor, call: Callable[..., Any], *args: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(pool, call, *args)

    # -- folding -------------------------------------------------------------------------------------------

    async def _take_up(self) -> None:
        """Go on where the tables end. A file of another stream, or of another Remit's tables, is put aside."""
        stream_created, end = await standing(self._bus)
        created, position = await self._in(self._writing, self._store.position)
        if self._store.is_outdated:
            await self._put_aside(created, f"has the tables of another Remit ({self._store.shape})")
            created = ""
        if created and (created != stream_created or position > end):
            await self._put_aside(created, f"folds another stream (of {created})")
            created = ""
        if not created:
            await self._in(self._writing, self._store.begin, EVENTS, stream_created)
            position = 0
        self._fold = Fold()
        for message in await self._in(self._writing, self._store.active_events):
            self._fold.restore(*message)
        self._fold.restored(position)
        self.position = position
        self._behind = end if position < end else 0
        log.info("folding from event %d on, %d runs are active", position + 1, self._fold.active)
        await from_archive(self._bus, self._fold, self._archive, self._write_archived)
        begin = self._fold.position + 1
        self._reader = await Reader(self._bus, EVENTS, self.on_event, start_seq=begin, batch=4096, whole=True).start()

    async def _write_archived(self) -> None:
        await self.flush()
        log.info("folded from the archive up to event %d", self.position)

    async def _put_aside(self, created: str, why: str) -> None:
        """Keep the file under another name, and begin a new one."""
        await self._in(self._writing, self._store.close)
        aside = put_aside(self._path, f"{created.replace(':', '')[:17] or 'empty'}.{self._store.shape}.old")
        log.warning("%s %s: kept as %s, and folded anew", self._path, why, aside.name)
        self._store = await self._in(self._writing, Store, self._path)

    def on_event(self, subject: str, seq: int, at_ns: int, data: bytes) -> Awaitable[None] | None:
        self._fold.add(subject, seq, at_ns, data)
        if self._meanwhile is not None:
            self._meanwhile.append((subject, seq, at_ns, data))
        waiting = len(self._fold)
        if waiting >= FLUSH_EVENTS:
            self._full.set()
            if waiting >= BACKLOG_EVENTS_MAX:
                return self.flush()
        return None

    async def flush(self) -> None:
        """Write what has been folded since the last time."""
        async with self._flushing:
            if self._lost:
                raise self._lost
            if not len(self._fold):
                return
            batch = self._fold.take()
            try:
                # A write that was begun is waited for, whoever stops waiting for this: the next one goes behind it.
                await to_the_end(self._in(self._writing, self._store.write, batch))
            except Exception as error:
                # Whoever asked for this flush, a question even: the fold is past what is written nowhere, so nothing
                # may be written behind it. The flusher ends the process; the next one folds it again.
                self._lost = error
                self._full.set()
                raise
            async with self._written:
                self.position = batch.position
                self._written.notify_all()
            if self._behind and self.position >= self._behind:
                self._behind = 0
                log.info("caught up at event %d", self.position)

    async def _flush_for_ever(self) -> None:
        loop = asyncio.get_running_loop()
        next_s = loop.time() + FLUSH_S
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout_at(next_s):
                    await self._full.wait()
            self._full.clear()
            next_s = loop.time() + FLUSH_S
            await self.flush()

    # -- answering -----------------------------------------------------------------------------------------

    def _endpoint(self, answer: Callable[[Question], Awaitable[Answer]]) -> Callable[[bytes, str], Awaitable[None]]:
        async def handle(data: bytes, reply: str) -> None:
            try:
                question = _question(data)
                await self._until(question.min_seq)
                # Before it is asked: a batch may be written while it is answered, of which the rows hold nothing.
                position = self.position
                answered = await answer(question)
                answered.position = answered.more.get("as_of", answered.position or position)
            except RemitError as error:
                answered = Answer(error=error.message, field=error.field, position=self.position)
            except Exception:
                # A bug in one question must neither end the fold nor leave the asker waiting.
                log.exception("a question could not be answered")
                answered = Answer(error="the registry failed to answer; its log says why", position=self.position)
            said = msgspec.json.encode(answered)
            if len(said) > ANSWER_BYTES_MAX:  # the server would refuse it, and the asker wait for nothing
                why = f"the answer has {len(said)} bytes, and a message holds {ANSWER_BYTES_MAX}: ask for fewer rows"
                said = msgspec.json.encode(Answer(error=why, field="limit", position=self.position))
            await self._bus.publish(reply, said)

        return handle

    async def _until(self, seq: int) -> None:
        if seq > self.position:
            if self._fold.position >= seq:
                await self.flush()
            async with self._written:
                try:
                    await asyncio.wait_for(self._written.wait_for(lambda: self.position >= seq), PATIENCE_S)
                except TimeoutError:
                    raise RemitError(f"event {seq} is not in the tables yet (they end at {self.position})") from None

    async def _ask(self, name: str, **values: Any) -> list[dict[str, Any]]:
        async with self._asking:
            rows: list[dict[str, Any]] = await self._in(self._reading, self._store.ask, name, values)
        return rows

    async def on_runs(self, question: Question) -> Answer:
        before = question.before or 1 << 62
        rows, more = await reports.paged(self._ask, "runs", question.limit, before=before, status=question.status)
        return Answer(rows=rows, next=rows[-1]["run"] if more else None)

    async def on_run(self, question: Question) -> Answer:
        run = _run(question)
        rows = await self._ask("run", run=run)
        if not rows:
            return Answer()
        steps = await self._ask("run_steps", run=run)
        more = {
            "steps": steps,
            "approvals": await self._ask("run_approvals", run=run),
            "artifacts": await self._ask("run_artifacts", run=run),
        }
        return Answer(rows=rows, more=more)

    async def on_events(self, question: Question) -> Answer:
        run = _run(question)
        rows, more = await reports.paged(self._ask, "run_events", question.limit, run=run, after=question.after)
        return Answer(rows=rows, next=rows[-1]["seq"] if more else None)

    async def on_approvals(self, question: Question) -> Answer:
        before = question.before or 1 << 62
        rows, more = await reports.paged(
            self._ask, "approvals", question.limit, before=before, run=question.run, status=question.status
        )
        cursors = [row.pop("cursor") for row in rows]
        return Answer(rows=rows, next=cursors[-1] if more else None)

    async def on_tokens(self, question: Question) -> Answer:
        return await reports.tokens(self._ask, question)

    async def on_usage(self, question: Question) -> Answer:
        return await reports.usage(self._ask, question)

    async def on_daily(self, question: Question) -> Answer:
        return await reports.daily(self._ask, question, question.rates or await self._rates())

    async def _rates(self) -> Rates | None:
        """The prices of the config, if there are any."""
        found = await self._bus.kv_get(CONFIG_BUCKET, RATES_KEY)
        if found is None:
            return None
        try:
            return msgspec.json.decode(found[0], type=Rates)
        except UNREADABLE as error:
            raise RemitError(f"the config's `{RATES_KEY}` cannot be read: {error}") from error

    async def on_sql(self, question: Question) -> Answer:
        """Somebody's select, over the tables as they stand or as they stood."""
        if not question.sql or not question.sql.strip():
            raise Malformed("which query? `sql` is missing", field="sql")
        if question.as_of is None:
            return await self._select(None, question)
        until = await reports.seq_at(self._ask, question.as_of, await last_seq(self._bus))
        async with self._looking_back:
            began_s = asyncio.get_running_loop().time()
            store = await self._as_it_stood(until)
            folded_s = round(asyncio.get_running_loop().time() - began_s, 3)
            answer = await self._select(store, question)
            answer.more |= {"as_of": until, "folded_s": folded_s}
            return answer

    async def _select(self, store: Store | None, question: Question) -> Answer:
        async with self._selecting:  # one at a time: the listed questions keep a thread for themselves
            columns, rows, cut = await self._in(
                self._selects,
                partial((store or self._store).select, question.sql or "", rows_max=question.limit, time_s=SELECT_S),
            )
        return Answer(rows=rows, more={"columns": columns, "cut": cut or None})

    async def _as_it_stood(self, until: int) -> Store:
        """The tables up to event `until`, folded anew from the stream; the last ones are kept for the next question."""
        if self._past is not None and self._past[0] == until:
            return self._past[1]
        if until > AS_OF_EVENTS_MAX:
            raise Malformed(f"as_of reaches back over the first {AS_OF_EVENTS_MAX} events only", field="as_of")
        await self._forget_past()
        path = self._path.with_name(f"{self._path.name}.as-of")
        path.unlink(missing_ok=True)
        store: Store = await self._in(self._selects, Store, path)

        async def tell(**_what: object) -> None:
            """Nobody waits for a progress here."""

        try:
            await self._in(self._selects, store.begin, EVENTS, "as-of")
            await rebuild(self._bus, store, Fold(), until, tell, self._archive)
        except BaseException:
            await self._in(self._selects, store.close)
            raise
        self._past = (until, store)
        return store

    async def _forget_past(self) -> None:
        if self._past is not None:
            store, self._past = self._past[1], None
            await self._in(self._selects, store.close)
            store.path.unlink(missing_ok=True)

    async def on_hosts(self, question: Question) -> Answer:
        rows, are_more = await reports.paged(self._ask, "hosts", question.limit, page=question.page)
        return Answer(rows=rows, next_page=rows[-1]["host"] if are_more else None)

    async def on_status(self, question: Question) -> Answer:
        last = await last_seq(self._bus)
        counts = await self._ask("counts")
        status = {
            "last_seq": last,
            "behind_events": max(0, last - self.position),
            "active_runs": self._fold.active,
            "unreadable": counts[0]["unreadable"],
            "file": str(self._path),
        }
        return Answer(rows=counts, more=status)

    async def on_digest(self, question: Question) -> Answer:
        async with self._flushing:  # the tables hold still while they are digested
            return Answer(more=await self._in(self._reading, self._store.digest), position=self.position)

    async def _on_rebuild(self, data: bytes, reply: str) -> None:
        """Fold everything again into a new file, compare, put it in place; progress goes to the asker as it comes."""

        async def tell(**what: Any) -> None:
            await self._bus.publish(reply, msgspec.json.encode(Answer(more=what, position=self.position)))

        if self._rebuilding.locked():
            await self._bus.publish(reply, msgspec.json.encode(Answer(error="a rebuild is under way already")))
            return
        async with self._rebuilding:
            fresh = self._path.with_name(self._path.name + ".rebuild")
            fresh.unlink(missing_ok=True)
            store: Store | None = None
            try:
                # In the writer's thread: the connection is the writer's, and two at a time is an error for either.
                created = (await self._in(self._writing, self._store.position))[0]
                store = await self._in(self._reading, Store, fresh)
                await self._in(self._reading, store.begin, EVENTS, created)
                # Catch up with the live tables while they grow, then hold them still for the last stretch.
                position = await rebuild(self._bus, store, Fold(), self.position, tell, self._archive)
                self._meanwhile = []
                await self.flush()  # all that came before is in the tables, and what comes now is kept
                async with self._flushing:
                    fold = Fold()
                    for message in await self._in(self._reading, store.active_events):
                        fold.restore(*message)
                    fold.restored(position)
                    await rebuild(self._bus, store, fold, self.position, tell, self._archive)
                    before = await self._in(self._reading, self._store.digest)
                    after = await self._in(self._reading, store.digest)
                    await self._in(self._reading, store.close)
                    await self._put_in_place(fresh)
                    self._go_on_with(fold)
            except Exception as error:
                log.exception("the rebuild failed")
                if store is not None:  # open, it would be in the next one's way
                    await self._in(self._reading, store.close)
                fresh.unlink(missing_ok=True)
                why = (
                    error.message
                    if isinstance(error, RemitError)
                    else "the rebuild failed; the registry's log says why"
                )
                await self._bus.publish(reply, msgspec.json.encode(Answer(error=why, position=self.position)))
                return
            finally:
                self._meanwhile = None
            await tell(done=True, seq=self.position, before=before, after=after, identical=before == after)

    def _go_on_with(self, fold: Fold) -> None:
        """The live fold was begun from the old tables, and would go on to write what was wrong in them."""
        for message in self._meanwhile or ():
            if message[1] > fold.position:
                fold.add(*message)
        self._fold = fold

    async def _put_in_place(self, fresh: Path) -> None:
        """The new file instead of the old one, between two questions: who asks meanwhile waits a moment."""
        self._store.interrupt_strangers()  # whoever asks a listed question does not wait for them
        await self._selecting.acquire()
        for _ in range(READERS):
            await self._asking.acquire()
        try:
            await self._in(self._writing, self._store.close)
            fresh.replace(self._path)
            self._path.with_name(self._path.name + ".wal").unlink(missing_ok=True)
            self._store = await self._in(self._writing, Store, self._path)
        finally:
            self._selecting.release()
            for _ in range(READERS):
                self._asking.release()


def _question(data: bytes) -> Question:
    try:
        question = msgspec.json.decode(data, type=Question) if data.strip() else Question()
    except UNREADABLE as error:
        raise malformed(error) from error
    most = SELECT_ROWS_MAX if question.sql is not None else LIMIT_MAX
    if not 1 <= question.limit <= most:
        raise Malformed(f"limit is {question.limit}; it must be 1 to {most}", field="limit")
    for name in ("run", "before", "after", "min_seq"):
        value = getattr(question, name)
        if value is not None and not 0 <= value < 1 << 62:
            raise Malformed(f"{name} is {value}, which is no sequence number", field=name)
    return question


def _run(question: Question) -> int:
    if question.run is None:
        raise Malformed("which run? `run` is missing", field="run")
    return question.run

"""`log_triage`: reads every allow-listed source of every host since its last triage, and ranks what went wrong.

Parameters: `hosts` (names; default: every host that discovery finds), `sources` (names such as `docker:web`; default:
all that are allowed), `max_lines`, `max_bytes` (of one source).

Where a source was read up to, and the templates that it has shown, are kept in the KV bucket `memory` and written
only when the stream has accepted the step's end: a triage that is lost is done over, never skipped.
"""

import asyncio
import hashlib
import logging
from collections.abc import Coroutine, Sequence
from contextlib import aclosing
from typing import Any

import msgspec

from services.executor.handlers import Outputs, Task
from services.executor.tasks import llm
from services.executor.tasks.agents import AGENT_DEADLINE_S, HOSTS_AT_ONCE, hosts_of
from services.executor.triage import Document, Line, SourceReport, SourceTriage, Unread, Window, document, markdown
from shared.bus import Bus
from shared.clock import NS_PER_S, now_ns
from shared.errors import UNREADABLE, RemitError
from shared.log_reading import all_sources, read_log
from shared.logs import READ_BYTES_DEFAULT, READ_BYTES_MAX, READ_LINES_DEFAULT, READ_LINES_MAX, LogChunk, ReadRequest
from shared.subjects import MEMORY_BUCKET

log = logging.getLogger("remit.triage")

REPORT_SPARE_S = 60.0  # what reading must leave of the step's time
LLM_SPARE_S = 30.0  # what a summary must leave of the step's time for writing the report
FINDINGS_FOR_LLM = 12


class Memory(msgspec.Struct, frozen=True, kw_only=True):
    """What the last successful triage left for the next one of the same source."""

    run: int
    host: str
    source: str
    cursor: str | None = None
    until: str | None = None
    template_ids: list[str] = []


class Read(msgspec.Struct):
    """One source, read and triaged."""

    report: SourceReport
    window: Window
    memory: Memory


class Logs:
    """What was read of one host, and what was not."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.done: list[Read] = []
        self.is_read = False  # to its end
        self._left_out: list[Unread] = []

    def leave_out(self, source: str, why: str) -> None:
        self._left_out.append(Unread(self.name, source, why))

    def not_read(self) -> list[Unread]:
        if self.is_read:
            return self._left_out
        return [*self._left_out, Unread(self.name, "", "the step's time was over before all of it was read")]


async def log_triage(task: Task) -> Outputs:
    max_lines = int(task.number("max_lines", READ_LINES_DEFAULT, 1, READ_LINES_MAX))
    max_bytes = int(task.number("max_bytes", READ_BYTES_DEFAULT, 1, READ_BYTES_MAX))
    wanted = task.names("sources")
    hosts = await hosts_of(task.bus, "logs", task.hosts())
    logs = {host: Logs(host) for host in hosts}
    places = asyncio.Semaphore(HOSTS_AT_ONCE)

    async def read(host: Logs) -> None:
        async with places:
            await _read_host(task, host, wanted, max_lines, max_bytes)

    await _within(task, [read(logs[host]) for host in hosts])
    done = [one for host in hosts for one in logs[host].done]
    unread = [one for host in hosts for one in logs[host].not_read()]
    for source in wanted or ():
        if not any(read.report.source == source for read in done) and not any(u.source == source for u in unread):
            unread.append(Unread("", source, "no host has it, or it is not allowed (`remit allow ls` shows what is)"))
    return await _report(task, done, unread)


async def _within(task: Task, reading: Sequence[Coroutine[Any, Any, None]]) -> None:
    """Read until what is left of the step's time is needed for the report: one slow host costs nobody theirs."""
    left_s = (task.deadline_ns - now_ns()) / NS_PER_S
    begun = [asyncio.ensure_future(one) for one in reading]
    if not begun:
        return
    try:
        await asyncio.wait(begun, timeout=left_s - min(REPORT_SPARE_S, left_s / 2))
    finally:
        for one in begun:
            one.cancel()
        ended = await asyncio.gather(*begun, return_exceptions=True)
    for error in ended:
        if isinstance(error, Exception):
            raise error


async def _read_host(task: Task, host: Logs, wanted: list[str] | None, max_lines: int, max_bytes: int) -> None:
    """Read every source of one host that is allowed, and is wanted."""
    try:
        found = await all_sources(task.bus, host.name, timeout_s=AGENT_DEADLINE_S)
    except RemitError as error:
        host.leave_out("", error.message)
        host.is_read = True
        return
    if found.engine_error:
        host.leave_out("", found.engine_error)
    allowed = [one.source for one in found.sources if one.allowed]
    if not allowed and wanted is None and not found.engine_error:
        there = f"none of its {len(found.sources)} sources is" if found.sources else "nothing of it is"
        host.leave_out("", f"{there} allowed; `remit allow add NAME` (or /PATH) allows one")
    if wanted is not None:
        allowed = [source for source in allowed if source in wanted]
    for source in allowed:
        await task.progress(f"reading {source} on {host.name}")
        try:
            host.done.append(await _read(task, host.name, source, max_lines, max_bytes))
        except RemitError as error:
            host.leave_out(source, error.message)
    host.is_read = True


async def _read(task: Task, host: str, source: str, max_lines: int, max_bytes: int) -> Read:
    """Read and triage one source; the loop stays free, so the lease is kept and the step can be ended."""
    before = await recall(task.bus, host, source)
    known = frozenset(before.template_ids) if before else None
    triage = SourceTriage(host, source, known_templates=known)
    request = ReadRequest(
        source=source, cursor=before.cursor if before else None, max_lines=max_lines, max_bytes=max_bytes
    )
    last = LogChunk()
    async with aclosing(read_log(task.bus, host, request)) as chunks:
        async for chunk in chunks:
            await asyncio.to_thread(triage.feed, _lines(chunk))
            last = chunk
    report = await asyncio.to_thread(triage.finish)
    notes = [*report.notes, *last.notes]
    if last.truncated:
        notes.append(f"there is more: this triage ends at its limit of {last.truncated}; the next goes on from there")
    if last.older_skipped:
        notes.append("older lines were left out: a first triage takes the newest within its limits")
    memory = Memory(
        run=task.run,
        host=host,
        source=source,
        cursor=last.cursor,
        until=last.until,
        template_ids=report.template_ids,
    )
    report = msgspec.structs.replace(report, notes=notes)
    return Read(report, Window(since=before.until if before else None, until=last.until), memory)


def _lines(chunk: LogChunk) -> list[Line]:
    return [Line(text, at, stream) for text, at, stream in zip(chunk.text, chunk.at, chunk.stream, strict=True)]


async def _report(task: Task, done: list[Read], unread: list[Unread]) -> Outputs:
    def write(summary: str | None = None, note: str | None = None) -> Document:
        return document(
            [read.report for read in done],
            run=task.run,
            goal=task.goal or "",
            windows={(read.report.host, read.report.source): read.window for read in done},
            unread=unread,
            summary=summary,
            summary_note=note,
        )

    paper = await asyncio.to_thread(write)
    where = llm.endpoint()
    if where is not None and paper.findings:
        await task.progress("asking the language model for a summary")
        left_s = (task.deadline_ns - now_ns()) / NS_PER_S - LLM_SPARE_S
        reply = await llm.summarise(
            where,
            _for_llm(paper),
            grant=task.token_grant,
            timeout_s=max(1.0, left_s),
            before=task.begin_llm_call,
        )
        if reply.call is not None:
            await task.say_llm_called(reply.call)
        paper = await asyncio.to_thread(write, reply.text, reply.note or None)
    await task.keep("report.md", markdown(paper).encode(), "text/markdown")
    await task.keep("triage.json", msgspec.json.format(msgspec.json.encode(paper)), "application/json")

    async def remember() -> None:
        for read in done:
            memory = read.memory
            try:
                await task.bus.kv_put(MEMORY_BUCKET, _key(memory.host, memory.source), msgspec.json.encode(memory))
            except RemitError as error:  # of one source: the others are not to be read again for it
                log.warning("where %s on %s was read up to is not kept: %s", memory.source, memory.host, error)

    task.when_accepted.append(remember)
    severities: dict[str, int] = {}
    for read in done:
        for severity, count in read.report.by_severity.items():
            severities[severity] = severities.get(severity, 0) + count
    # Counts only: titles are log lines, and part of what a language model is asked; such content is in no event.
    return {
        "verdict": paper.verdict,
        "findings": paper.findings_total,
        "critical": sum(1 for finding in paper.findings if finding.severity == "critical"),
        "by_severity": severities,
        "lines_read": paper.lines_read,
        "sources_read": len(done),
        "sources_not_read": len(unread),
        "summarised": paper.summary is not None,
    }


def _for_llm(paper: Document) -> str:
    """The findings as text, redacted as they are in the report."""
    parts = [paper.verdict]
    for finding in paper.findings[:FINDINGS_FOR_LLM]:
        parts.append(
            f"\n#{finding.rank} {finding.severity} in {finding.source} on {finding.host}, {finding.count} times: "
            f"{finding.title} ({'; '.join(finding.why)})"
        )
        parts += [evidence.text for evidence in finding.evidence[:1]]
    return "\n".join(parts)


def _key(host: str, source: str) -> str:
    return "triage." + hashlib.sha256(f"{host}\n{source}".encode()).hexdigest()[:32]


async def recall(bus: Bus, host: str, source: str) -> Memory | None:
    """What the last successful triage of this source left, None at the first time."""
    found = await bus.kv_get(MEMORY_BUCKET, _key(host, source))
    if found is None:
        return None
    try:
        memory = msgspec.json.decode(found[0], type=Memory)
    except UNREADABLE as error:
        log.warning("the memory of %s on %s cannot be read, so it is triaged as at first: %s", source, host, error)
        return None
    return memory if (memory.host, memory.source) == (host, source) else None

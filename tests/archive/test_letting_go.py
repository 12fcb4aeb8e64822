"""What the stream lets go is in the archive, message by message; and no limit is left on it, whatever happens."""

import asyncio
import os
import random
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from msgspec.structs import replace

from cli.archiving import LetGo, Mismatch
from services.executor.service import Executor
from shared import age_limit
from shared.age_limit import NOTE, Note
from shared.archive.checking import Keys
from shared.archive.days import Manifest
from shared.archive.store import Archive
from shared.bus import Bus, connect
from shared.clock import NS_PER_S, now_ns
from shared.config import Config
from shared.errors import Refused, RemitError, Unavailable
from shared.ledger import Answer
from shared.proof.keys import signer
from shared.pull import Gone
from shared.streams import ensure, first_seq, last_seq
from tests.archive.built import DAYS, KEY, MARGIN_S, Built, edit, rewrite, streams
from tests.conftest import until
from tests.nested import DEEP
from tests.registry.conftest import say_runs
from tests.stack import ROOT, Stack

DAY_NS = 86_400 * NS_PER_S


async def let_go(built: Built, to: Path | None = None, keep_days: int = 1, margin_s: float = MARGIN_S) -> LetGo:
    return await built.archiver(to or built.archive).let_go(keep_days, margin_s=margin_s)


async def limit_of(built: Built) -> tuple[int, bool]:
    config = await built.config()
    return config.get("max_age", 0), NOTE in (config.get("metadata") or {})


async def begin_of(built: Built) -> int:
    return (await first_seq(built.bus))[0]


# -- which messages ------------------------------------------------------------------------------------------


async def test_what_goes_is_what_is_old_and_archived(own: Built) -> None:
    """The tail begins at most a margin before a day's end; twice is as good as once; a large margin keeps all."""
    await own.live(3)
    days = (await own.write()).days
    kept = await let_go(own, margin_s=3600)
    assert (kept.first_before, kept.first_after, kept.day != "") == (1, 1, True)
    gone = await let_go(own)
    last = next(one for one in days if one.day == gone.day)
    assert 1 < gone.first_after == await begin_of(own) <= last.last_seq + 1
    end_ns = DAYS.begin_ns(DAYS.number(last.day) + 1)
    (newest_gone,) = Archive.at(str(own.archive)).rows(gone.first_after - 1, gone.first_after - 1)
    assert newest_gone[2] < end_ns
    if gone.first_after <= last.last_seq:
        (oldest,) = Archive.at(str(own.archive)).rows(gone.first_after, gone.first_after)
        assert oldest[2] >= end_ns - MARGIN_S * NS_PER_S
    assert DAYS.number(gone.day) < DAYS.day_of(now_ns()) - 1
    again = await let_go(own)
    assert again.first_after >= gone.first_after
    assert await limit_of(own) == (0, False)


async def test_a_run_that_is_active_keeps_its_day_and_all_behind_it(own: Built) -> None:
    active: list[int] = []

    async def leave_one_open(day: int) -> None:
        if day == 1:
            before = await last_seq(own.bus)
            await say_runs(own.appender, 1, leave_open=1.0, chance=random.Random(1))
            active.append(before + 1)

    await own.live(4, leave_one_open)
    await own.write()
    gone = await let_go(own)
    assert f"run {active[0]}, which is" in gone.kept_by
    assert 1 < await begin_of(own) <= active[0], "what lies before the run may go, and the run may not"


@pytest.mark.parametrize("end", ["goal.rejected", "run.completed", ""])
async def test_a_goal_that_is_none_keeps_nothing_when_it_has_its_end(own: Built, end: str) -> None:
    """A stranger's, whose story nobody can read; its end came on the next day. Without one it keeps its day."""
    goals: list[int] = []

    async def strange(day: int) -> None:
        if day == 0:
            ack = await own.bus.request("goal.submitted.a.b", b"{}")
            goals.append(msgspec.json.decode(ack)["seq"])
        if day == 1 and end:
            await own.bus.request(f"{end}.{goals[0]}", b'{"reason": "no goal"}')

    await own.live(4, strange)
    await own.write()
    gone = await let_go(own)
    if end:
        assert gone.kept_by == "" and gone.first_after > goals[0]
    else:
        assert f"run {goals[0]}, whose end has not come" in gone.kept_by
        assert gone.first_after <= goals[0]


@pytest.mark.parametrize("position", [0, 10_000])
async def test_a_registry_that_has_not_caught_up_keeps_what_it_needs(own: Built, position: int) -> None:
    await own.live(3)
    await own.write()

    async def answer(_data: bytes, reply: str) -> None:
        await own.bus.publish(reply, msgspec.json.encode(Answer(position=position)))

    await own.bus.serve("registry", "0.1.0", {"registry.status": answer})
    gone = await let_go(own)
    if position:
        assert gone.first_after > 1 and gone.kept_by == ""
    else:
        assert gone.first_after == 1 and gone.kept_by == "the registry, which has folded up to message 0"


async def test_nothing_goes_that_no_archive_has(own: Built) -> None:
    """Days that have come since are not in it, however old they are by now."""
    await own.live(1)
    days = (await own.write()).days
    await own.live(2)
    await own.past(DAYS.day_of(now_ns()) + 1)
    gone = await let_go(own)
    assert 1 < gone.first_after <= days[-1].last_seq + 1


def without_its_manifest(archive: Path, days: list[Manifest]) -> None:
    (archive / "events" / f"{days[1].day}.json").unlink()


def without_its_file(archive: Path, days: list[Manifest]) -> None:
    (archive / days[0].file).unlink()


def with_a_byte_changed(archive: Path, days: list[Manifest]) -> None:
    path = archive / days[0].file
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def with_other_data(archive: Path, days: list[Manifest]) -> None:
    seq = days[0].first_seq + 3
    rewrite(archive, days[0], lambda rows: [(*row[:3], b"{}" if row[1] == seq else row[3], row[4]) for row in rows])


def with_other_headers(archive: Path, days: list[Manifest]) -> None:
    """No seal covers them: only the comparison with the stream knows."""
    seq = days[0].first_seq + 3
    block = b"NATS/1.0\r\nA: b\r\n\r\n"
    rewrite(archive, days[0], lambda rows: [(*row[:4], block if row[1] == seq else row[4]) for row in rows])


def under_a_false_day(archive: Path, days: list[Manifest]) -> None:
    """The newest day says that it is an old one, so that it would be old enough to go."""
    text = (archive / "events" / f"{days[-1].day}.json").read_text()
    (archive / "events" / "1999-01-01T000000.json").write_text(text)


def with_a_day_that_is_longer_than_it_is(archive: Path, days: list[Manifest]) -> None:
    edit(archive, days[0].day, last_seq=days[0].last_seq + 2, events=days[0].last_seq + 2)


def of_another_stream(archive: Path, days: list[Manifest]) -> None:
    for one in days:
        edit(archive, one.day, stream="2026-01-01T00:00:00Z")


def with_runs_that_are_none(archive: Path, days: list[Manifest]) -> None:
    edit(archive, days[0].day, before={**msgspec.to_builtins(days[0].before), "open": {"5": -1}})


def with_a_manifest_that_is_deep(archive: Path, days: list[Manifest]) -> None:
    path = archive / "events" / f"{days[0].day}.json"
    text = path.read_text().rstrip()
    path.write_text(f'{text[:-1]}, "more": {DEEP}}}')


def with_an_older_seal(archive: Path, days: list[Manifest]) -> None:
    day = next(one for one in days if one.seals and one.seals[0].size < one.last_seq)
    edit(archive, day.day, covered_by=msgspec.to_builtins(day.seals[0]))


def with_other_runs_open(archive: Path, days: list[Manifest]) -> None:
    edit(archive, days[0].day, after={**msgspec.to_builtins(days[0].after), "open": {}, "planned": ["9"]})


RUINS = [
    with_runs_that_are_none, with_a_manifest_that_is_deep,
    without_its_manifest, without_its_file, with_a_byte_changed, with_other_data, with_other_headers, under_a_false_day,
    with_a_day_that_is_longer_than_it_is, of_another_stream, with_an_older_seal, with_other_runs_open,
]  # fmt: skip


@pytest.mark.parametrize("ruin", RUINS, ids=[one.__name__ for one in RUINS])
async def test_an_archive_that_is_not_whole_lets_nothing_go(
    built: Built, archive: Path, ruin: Callable[[Path, list[Manifest]], None]
) -> None:
    ruin(archive, Archive.at(str(archive)).manifests())
    with pytest.raises(RemitError):
        await let_go(built, archive)
    assert await begin_of(built) == 1
    assert await limit_of(built) == (0, False)


async def test_seals_of_another_key_let_nothing_go(built: Built, archive: Path, tmp_path: Path) -> None:
    archiver = built.archiver(archive)
    archiver._keys = Keys([signer(tmp_path / "another").public])
    with pytest.raises(Mismatch, match=r"seal of .* its key is"):
        await archiver.let_go(1, margin_s=MARGIN_S)
    assert await begin_of(built) == 1


async def test_what_is_sealed_of_another_stream_lets_nothing_go(plain: Built, archive: Path, lived: Stack) -> None:
    """By the very same key: the sealer had another stream before."""
    archiver = plain.archiver(archive)
    archiver._keys = Keys([signer(lived.folder / KEY).public])
    with pytest.raises(Mismatch, match="this stream was made on"):
        await archiver.let_go(1, margin_s=0)
    assert await begin_of(plain) == 1


# -- the limit -----------------------------------------------------------------------------------------------


@pytest.fixture
async def plain(remit: Stack) -> AsyncIterator[Built]:
    """A stream of 40 messages, half of which may go: a second lies between, as the limit moves on meanwhile."""
    async with Built(remit) as made:
        await streams(made.bus)
        for number in range(40):
            await made.bus.request(f"audit.test.{number}", b"{}")
            await asyncio.sleep(1 if number == 19 else 0)
        await asyncio.sleep(0.3)
        yield made


async def half_ns(built: Built) -> int:
    found = await built.bus.stored("EVENTS", 21)
    assert found is not None
    return found[1] - 800_000_000


async def test_an_operators_own_limit_is_put_back_and_left_alone_by_remit(plain: Built) -> None:
    await plain.bus.api("STREAM.UPDATE.EVENTS", {**await plain.config(), "max_age": 30 * DAY_NS})
    await ensure(plain.bus)
    assert await age_limit.let_go(plain.bus, await half_ns(plain)) == (1, 21)
    assert await limit_of(plain) == (30 * DAY_NS, False)


class _Api:
    """What stands between a bus and the API of JetStream: it may delay, lose an answer, or lose a request."""

    def __init__(self, bus: Bus, monkeypatch: pytest.MonkeyPatch) -> None:
        self._api = bus.api
        self.calls: list[str] = []
        self.meanwhile: Callable[[str, int], Awaitable[None]] | None = None
        self.is_slow = False  # the server has not let go yet when it answers
        self.lost_answers: set[int] = set()  # numbers of updates, from 1
        self.lost_requests: set[int] = set()
        monkeypatch.setattr(bus, "api", self.call)

    async def call(self, what: str, body: Any = None, **more: Any) -> dict[str, Any]:
        self.calls.append(what)
        if not what.startswith("STREAM.UPDATE"):
            return await self._api(what, body, **more)
        number = sum(one.startswith("STREAM.UPDATE") for one in self.calls)
        if number in self.lost_requests:
            raise Unavailable("lost on its way")
        answer = await self._api(what, body, **more)
        if self.is_slow:
            answer["state"]["first_ts"] = "2001-01-01T00:00:00Z"
        if self.meanwhile is not None:
            await self.meanwhile(what, number)
        if number in self.lost_answers:
            raise Unavailable("its answer was lost")
        return answer


async def test_a_limit_whose_update_had_no_answer_is_taken_off(plain: Built, monkeypatch: pytest.MonkeyPatch) -> None:
    api = _Api(plain.bus, monkeypatch)
    api.lost_answers = {1}
    with pytest.raises(Unavailable, match="its answer was lost"):
        await age_limit.let_go(plain.bus, await half_ns(plain))
    assert await begin_of(plain) == 21, "it was done all the same"
    assert await limit_of(plain) == (0, False)


@pytest.mark.parametrize("lost", ["answers", "requests"])
async def test_it_is_taken_off_however_often_that_has_no_answer(
    plain: Built, monkeypatch: pytest.MonkeyPatch, lost: str
) -> None:
    monkeypatch.setattr(age_limit, "AGAIN_S", 0.01)
    api = _Api(plain.bus, monkeypatch)
    setattr(api, f"lost_{lost}", {2, 3, 4})
    assert await age_limit.let_go(plain.bus, await half_ns(plain)) == (1, 21)
    assert await limit_of(plain) == (0, False)


async def test_a_server_that_is_away_for_long_is_told_with_the_way_out(
    plain: Built, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(age_limit, "AGAIN_S", 0.01)
    monkeypatch.setattr(age_limit, "TAKE_OFF_S", 0.1)
    api = _Api(plain.bus, monkeypatch)
    api.lost_requests = set(range(2, 1000))
    with pytest.raises(Unavailable, match=r"still has the limit.*any service of Remit takes it off from"):
        await age_limit.let_go(plain.bus, await half_ns(plain))
    assert (await limit_of(plain))[1]


async def test_it_is_taken_off_when_we_are_cut_off(plain: Built, monkeypatch: pytest.MonkeyPatch) -> None:
    """At the update that sets it, while the server lets go, and at the one that takes it off."""
    monkeypatch.setattr(age_limit, "LOOK_S", 3600)
    api = _Api(plain.bus, monkeypatch)
    lettings: list[asyncio.Task[tuple[int, int]]] = []

    async def cut(_what: str, number: int) -> None:
        if number in (1, 5):
            lettings[-1].cancel()
            await asyncio.sleep(0)

    api.meanwhile = cut
    for at, updates in (("the update", 2), ("the look", 4), ("the end", 6)):
        api.is_slow = at == "the look"
        before_ns = await half_ns(plain) if api.is_slow else 10**18
        lettings.append(asyncio.create_task(age_limit.let_go(plain.bus, before_ns)))
        if api.is_slow:
            await asyncio.sleep(0.3)
            lettings[-1].cancel()
        with pytest.raises(asyncio.CancelledError):
            await lettings[-1]
        assert await limit_of(plain) == (0, False), at
        assert sum(one.startswith("STREAM.UPDATE") for one in api.calls) == updates


async def test_what_an_operator_sets_meanwhile_stays(plain: Built, monkeypatch: pytest.MonkeyPatch) -> None:
    api = _Api(plain.bus, monkeypatch)

    async def operator(_what: str, number: int) -> None:
        if number == 1:
            await plain.bus.api("STREAM.UPDATE.EVENTS", {**await plain.config(), "max_age": 7 * DAY_NS})

    api.meanwhile = operator
    await age_limit.let_go(plain.bus, await half_ns(plain))
    assert await limit_of(plain) == (7 * DAY_NS, False)


async def test_what_has_aged_since_it_was_looked_at_does_not_go(plain: Built, monkeypatch: pytest.MonkeyPatch) -> None:
    """The machine was asleep in between, say: an age is a distance from now."""
    clock = [0.0]
    monkeypatch.setattr(age_limit, "_awake_s", lambda: clock.append(clock[-1] + 3600) or clock[-1])
    with pytest.raises(Unavailable, match="have aged meanwhile"):
        await age_limit.let_go(plain.bus, await half_ns(plain))
    assert (await begin_of(plain), await limit_of(plain)) == (1, (0, False))


async def test_an_operators_shorter_limit_is_enough(plain: Built) -> None:
    await plain.bus.api("STREAM.UPDATE.EVENTS", {**await plain.config(), "max_age": 3600 * NS_PER_S})
    assert await age_limit.let_go(plain.bus, now_ns() - DAY_NS) == (1, 1)
    assert await limit_of(plain) == (3600 * NS_PER_S, False)


async def test_what_may_be_a_duplicate_yet_does_not_go(plain: Built) -> None:
    await plain.bus.api("STREAM.UPDATE.EVENTS", {**await plain.config(), "duplicate_window": 120 * NS_PER_S})
    with pytest.raises(RemitError, match="too young"):
        await age_limit.let_go(plain.bus, await half_ns(plain))
    assert (await begin_of(plain), await limit_of(plain)) == (1, (0, False))


async def test_more_that_has_gone_than_was_to_go_is_told(own: Built, monkeypatch: pytest.MonkeyPatch) -> None:
    """Somebody else's limit, in the same moment: it cannot be undone, and must not go unseen."""
    await own.live(3)
    days = (await own.write()).days
    api = _Api(own.bus, monkeypatch)

    async def operator(_what: str, number: int) -> None:
        if number == 1:
            await own.bus.api("STREAM.UPDATE.EVENTS", {**await own.config(), "max_age": 200_000_000})
            await until(lambda: asyncio.sleep(0.3, True))

    api.meanwhile = operator
    with pytest.raises(RemitError, match=r"and only messages up to \d+ were to go: has somebody limited it"):
        await let_go(own)
    assert await begin_of(own) > days[0].last_seq + 1


async def test_of_two_at_once_none_leaves_a_limit(plain: Built, monkeypatch: pytest.MonkeyPatch) -> None:
    """However their steps come between each other's; an operator's own limit outlasts it."""
    await plain.bus.api("STREAM.UPDATE.EVENTS", {**await plain.config(), "max_age": 30 * DAY_NS})
    chance = random.Random(5)
    other = await connect(plain.remit.url, "other")
    refused = 0
    before = await half_ns(plain)
    for bus in (plain.bus, other):
        api = bus.api

        async def slow(what: str, body: Any = None, api: Any = api, **more: Any) -> dict[str, Any]:
            await asyncio.sleep(chance.random() * 0.02)
            answer: dict[str, Any] = await api(what, body, **more)
            await asyncio.sleep(chance.random() * 0.02)
            return answer

        monkeypatch.setattr(bus, "api", slow)
    for _ in range(30):
        ends = await asyncio.gather(
            *(age_limit.let_go(bus, before) for bus in (plain.bus, other)), return_exceptions=True
        )
        assert [one for one in ends if isinstance(one, BaseException) and not isinstance(one, Refused)] == []
        refused += sum(isinstance(one, Refused) for one in ends)
        assert await limit_of(plain) == (30 * DAY_NS, False)
    assert 0 < refused < 30
    await other.close()


async def leave_a_note(built: Built, until_ns: int, own_ns: int = 0) -> None:
    config = await built.config()
    note = msgspec.json.encode(Note("somebody", own_ns, 10**18, until_ns)).decode()
    metadata = {**(config.get("metadata") or {}), NOTE: note}
    await built.bus.api("STREAM.UPDATE.EVENTS", {**config, "max_age": 10**18, "metadata": metadata})


@pytest.mark.parametrize("who", ["a service at its start", "the archive", "an executor at work"])
async def test_a_limit_that_was_left_behind_is_taken_off(plain: Built, remit: Stack, who: str) -> None:
    """By a `--keep-days` that was killed while it let messages go; what was there before is put back."""
    if who == "an executor at work":
        remit.start("executor")
        await until(lambda: "facts are due" in remit.log("executor"))
    await leave_a_note(plain, now_ns() - 1, own_ns=10**17)
    if who == "a service at its start":
        await ensure(plain.bus)
    elif who == "the archive":
        await plain.write()
    else:

        async def gone() -> bool:
            return await limit_of(plain) == (10**17, False)

        await until(gone, within_s=45)
        await asyncio.to_thread(remit.stop, "executor")
    assert await limit_of(plain) == (10**17, False)


async def test_while_another_one_lets_go_it_is_left_alone(plain: Built) -> None:
    """Its time is not over: nobody takes its limit off, and a second one waits."""
    await leave_a_note(plain, now_ns() + 60 * NS_PER_S)
    await ensure(plain.bus)
    assert await limit_of(plain) == (10**18, True)
    with pytest.raises(Refused, match="another one is letting messages go"):
        await age_limit.let_go(plain.bus, await half_ns(plain))
    assert await limit_of(plain) == (10**18, True)


async def test_a_note_that_is_none_changes_nothing(plain: Built) -> None:
    config = await plain.config()
    for text in ("soon", "[" * 100_000, msgspec.json.encode(Note("somebody", -5, 10**18, 1)).decode()):
        await plain.bus.api("STREAM.UPDATE.EVENTS", {**config, "max_age": 10**18, "metadata": {NOTE: text}})
        await ensure(plain.bus)
        assert await limit_of(plain) == (10**18, True)


async def test_a_limit_that_cannot_be_put_back_stops_no_service(plain: Built) -> None:
    """The server refuses it (a window for duplicates longer than the limit, say): it is logged, and stays."""
    await leave_a_note(plain, now_ns() - 1, own_ns=1)
    await ensure(plain.bus)
    assert await limit_of(plain) == (10**18, True)


KILLED = """
import asyncio, sys
from shared import age_limit
from shared.bus import connect

async def go():
    bus = await connect(sys.argv[1], "killed")
    api = bus.api

    async def told(what, body=None, **more):
        answer = await api(what, body, **more)
        if what.startswith("STREAM.UPDATE"):
            print("the limit stands", flush=True)
            await asyncio.sleep(3600)
        return answer

    bus.api = told
    await age_limit.let_go(bus, int(sys.argv[2]))

asyncio.run(go())
"""


async def test_kill_9_while_the_limit_stands(plain: Built, monkeypatch: pytest.MonkeyPatch) -> None:
    """The note stands with it, and when its time is over the limit goes."""
    argv = [sys.executable, "-c", KILLED, plain.remit.url, str(await half_ns(plain))]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = await asyncio.create_subprocess_exec(*argv, env=environment, stdout=asyncio.subprocess.PIPE)
    assert process.stdout is not None
    assert await process.stdout.readline() == b"the limit stands\n"
    process.send_signal(signal.SIGKILL)
    await process.wait()
    age, noted = await limit_of(plain)
    assert age > 0 and noted
    await ensure(plain.bus)
    assert await limit_of(plain) == (age, True), "it may be at work still, for all that anybody knows"
    config = await plain.config()
    note = msgspec.json.decode(config["metadata"][NOTE], type=Note)
    assert 0 < note.until_ns - now_ns() <= age_limit.STANDS_S * NS_PER_S
    over = msgspec.json.encode(replace(note, until_ns=now_ns())).decode()
    await plain.bus.api("STREAM.UPDATE.EVENTS", {**config, "metadata": {**config["metadata"], NOTE: over}})
    await ensure(plain.bus)
    assert await limit_of(plain) == (0, False)


# -- those who read meanwhile --------------------------------------------------------------------------------


async def test_an_executor_that_stood_still_does_not_decide_over_the_hole(own: Built) -> None:
    """Messages go that it has not read, the ends of runs among them: it ends, and begins anew where the stream does."""
    executor, gate = Executor(own.bus, own.appender, Config(own.bus)), asyncio.Event()
    await say_runs(own.appender, 1)
    hear = executor.on_event

    async def stand_still(*message: Any) -> None:
        if message[1] == 2:
            await gate.wait()
        done = hear(*message)
        if done is not None:
            await done

    executor.on_event = stand_still  # type: ignore[method-assign,assignment]
    await executor.start()
    await until(lambda: executor.engine.position == 1)
    sealer = await own.seal()
    await say_runs(own.appender, 400)  # more than is under way to it
    await own.sealed()
    await own.past(DAYS.day_of(now_ns()) + 2)  # so that the margin reaches none of them
    await own.sealed()
    await sealer.stop()
    await own.write()
    assert (await let_go(own)).first_after > 3000
    gate.set()
    with pytest.raises(Gone, match="are not in EVENTS any more"):
        await asyncio.wait_for(executor.failed(), 20)
    await executor._reader.stop()
    again = Executor(own.bus, own.appender, Config(own.bus))
    await again.start()
    await until(lambda: again.engine.position >= again._known_end)
    assert again.engine.runs == {}
    for one in (executor, again):
        one._keeper.cancel()
        one._scheduler.cancel()
    await again._reader.stop()

"""A cursor is a place in the log's own order, whatever the stamps do; chunks are cut within bounds."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.log_agent.chunks import Chunks
from services.log_agent.cursor import DockerCursor, FileCursor, Tracker, docker_cursor, engine_time, file_cursor
from services.log_agent.lines import Batch
from shared.clock import parse_ns
from shared.errors import Malformed
from shared.logs import CHUNK_BYTES_MAX, CHUNK_LINES_MAX

BASE_NS = parse_ns("2026-11-21T09:52:02.000000000Z")
CONTAINER = "0123456789ab"

Line = tuple[int, str, str]  # nanoseconds after the base, stream, text


def stamp(ns: int) -> str:
    second, rest = divmod(BASE_NS + ns, 10**9)
    del second
    return f"2026-11-21T09:52:{2 + ns // 10**9:02d}.{rest:09d}Z"


def read(log: list[Line], cursor: str | None, max_lines: int) -> tuple[list[Line], str, list[str]]:
    """Read a log as the engine filters it: line by line, by each line's own stamp."""
    previous = docker_cursor(cursor) if cursor else None
    since = engine_time(previous.start) if previous and previous.last else "0.0"
    second, _, rest = since.partition(".")
    since_ns = int(second) * 10**9 + int(rest)
    shown = [line for line in log if BASE_NS + line[0] >= since_ns]
    tracker, chunks = Tracker(CONTAINER, previous), Chunks(max_lines, 10**9)
    out: list[Line] = []
    for at in range(0, len(shown), 3):
        part = shown[at : at + 3]
        batch = Batch([stamp(ns) for ns, _, _ in part], [s for _, s, _ in part], [t for _, _, t in part], [])
        fresh = tracker.fresh(batch)
        taken = chunks.take(fresh)
        tracker.passed(taken)
        skipped = len(part) - len(fresh)
        out += part[skipped : skipped + len(taken)]
    assert tracker.anchor is None and not tracker.lost
    return out, tracker.cursor().encode(), []


# Steps between lines: mostly forward, sometimes not at all, sometimes back, as the engine's two copiers do
# it.
steps = st.lists(
    st.tuples(
        st.sampled_from([0, 1, 1, 5, 1_000_000, 700_000_000, 2_000_000_000, -3, -20_000_000]),
        st.sampled_from(["stdout", "stderr"]),
        st.sampled_from(["a", "b", ""]),
    ),
    max_size=40,
)


@given(steps, st.lists(st.tuples(st.integers(0, 40), st.integers(1, 7)), min_size=1, max_size=20))
def test_reading_on_gives_every_line_once_though_stamps_repeat_and_step_back(
    moves: list[tuple[int, str, str]], reads: list[tuple[int, int]]
) -> None:
    log: list[Line] = []
    at = 10**9
    for step, stream, text in moves:
        at = min(max(at + step, 10**9 - 10**8), 50 * 10**9)
        log.append((at, stream, text))
    got: list[Line] = []
    cursor: str | None = None
    grown = 0
    for growth, max_lines in [*reads, (len(log), 100)]:
        grown = min(grown + growth, len(log))
        lines, cursor, _ = read(log[:grown], cursor, max_lines)
        got += lines
    assert got == log


def test_cursors_survive_their_text() -> None:
    docker = DockerCursor(CONTAINER, stamp(5), stamp(7), 2, "0" * 16, stamp(1))
    assert docker_cursor(docker.encode()) == docker
    assert docker_cursor(DockerCursor(CONTAINER).encode()) == DockerCursor(CONTAINER)
    file = FileCursor(66, 2**63, 10**15, "0" * 16)
    assert file_cursor(file.encode()) == file


@given(st.text(max_size=60) | st.from_regex(r"(d0|d1|f1)\|[0-9a-f|:TZ.-]{0,80}", fullmatch=True))
def test_any_text_is_a_cursor_or_malformed(text: str) -> None:
    for decode in (docker_cursor, file_cursor):
        try:
            decode(text)
        except Malformed as error:
            assert error.field == "cursor"


def batch(*texts: str) -> Batch:
    return Batch([None] * len(texts), [""] * len(texts), list(texts), [])


def test_a_chunk_ends_at_its_lines_and_the_last_one_says_so() -> None:
    chunks = Chunks(10**6, 10**9)
    made = chunks.add(chunks.take(batch(*["x"] * (CHUNK_LINES_MAX * 2 + 1)))) + chunks.finish(cursor="c")
    assert [len(chunk.text) for chunk in made] == [CHUNK_LINES_MAX, CHUNK_LINES_MAX, 1]
    assert [(chunk.n, chunk.last, chunk.cursor) for chunk in made] == [
        (0, False, None),
        (1, False, None),
        (2, True, "c"),
    ]


def test_a_read_without_lines_has_one_chunk() -> None:
    (chunk,) = Chunks(1, 1).finish(cursor="c")
    assert (chunk.n, chunk.last, chunk.text) == (0, True, [])


@given(
    st.lists(st.sampled_from(["\x00", '"', "é", "a", "\U0001f600"]).flatmap(lambda c: st.just(c * 9000)), max_size=60)
)
def test_no_chunk_of_more_than_a_line_is_too_large_for_a_message(texts: list[str]) -> None:
    chunks = Chunks(10**6, 10**9)
    made = chunks.add(chunks.take(batch(*texts))) + chunks.finish()
    assert [text for chunk in made for text in chunk.text] == texts
    assert all(len(msgspec.json.encode(c)) <= CHUNK_BYTES_MAX + 2000 * 60 or len(c.text) == 1 for c in made)


@pytest.mark.parametrize(
    ("max_lines", "max_bytes", "taken", "truncated"),
    [(3, 100, 3, None), (2, 100, 2, "lines"), (9, 4, 2, "bytes"), (9, 1, 1, "bytes"), (9, 6, 3, None)],
)
def test_a_bound_is_met_at_a_line(max_lines: int, max_bytes: int, taken: int, truncated: str | None) -> None:
    chunks = Chunks(max_lines, max_bytes)
    assert len(chunks.take(batch("aa", "é", "cc"))) == taken
    assert chunks.truncated == truncated

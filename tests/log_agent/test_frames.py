"""The engine's bytes become the same lines, however the network cuts them."""

import random
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.log_agent.frames import FRAME_BYTES_MAX, PART_BYTES, FrameWalk, NotFrames, TtyWalk, utc
from shared.logs import LINE_BYTES_MAX

STAMP = "2026-11-21T09:52:02.315025555Z"
OTHER = "2026-11-21T09:52:03.000000001Z"


def frame(text: bytes, *, kind: int = 1, stamp: str = STAMP) -> bytes:
    payload = f"{stamp} ".encode() + text
    return struct.pack(">BxxxL", kind, len(payload)) + payload


def walked(data: bytes, walk: FrameWalk | TtyWalk | None = None) -> list[tuple[str | None, str, str]]:
    walk = walk or FrameWalk()
    out = walk.feed(data)
    rest = walk.flush()
    return list(zip(out.at + rest.at, out.stream + rest.stream, out.text + rest.text, strict=True))


def test_a_frame_is_a_line_with_its_stamp_and_stream() -> None:
    assert walked(frame(b"a\n") + frame(b"b\n", kind=2)) == [(STAMP, "stdout", "a"), (STAMP, "stderr", "b")]


def test_parts_of_a_long_line_are_joined_by_stream() -> None:
    part = b"z" * PART_BYTES
    data = frame(part) + frame(b"other\n", kind=2, stamp=OTHER) + frame(part) + frame(b"end\n")
    assert walked(data) == [(OTHER, "stderr", "other"), (STAMP, "stdout", "z" * PART_BYTES * 2 + "end")]


def test_a_full_part_is_joined_though_its_rest_has_another_stamp() -> None:
    """The journald driver stamps each part anew."""
    data = frame(b"z" * PART_BYTES) + frame(b"end\n", stamp=OTHER)
    assert [text for _, _, text in walked(data)] == ["z" * PART_BYTES + "end"]


def test_a_short_line_without_newline_ends_where_the_next_start_begins() -> None:
    assert [text for _, _, text in walked(frame(b"x") + frame(b"y\n", stamp=OTHER))] == ["x", "y"]


def test_the_last_line_without_newline_is_kept() -> None:
    assert walked(frame(b"x")) == [(STAMP, "stdout", "x")]


def test_a_line_over_the_limit_is_cut_and_says_so() -> None:
    walk = FrameWalk()
    parts = [frame(b"z" * PART_BYTES) for _ in range(10)]
    ((_, _, text),) = walked(b"".join(parts) + frame(b"\n"), walk)
    assert text == "z" * LINE_BYTES_MAX + f" [cut: {10 * PART_BYTES - LINE_BYTES_MAX} more bytes]"


@pytest.mark.parametrize("data", [b"\x09" + b"\0" * 7, struct.pack(">BxxxL", 1, FRAME_BYTES_MAX + 1)])
def test_what_is_no_frame_is_refused_before_it_fills_the_memory(data: bytes) -> None:
    with pytest.raises(NotFrames):
        FrameWalk().feed(data)


def test_an_answer_that_breaks_off_inside_a_frame_is_noted() -> None:
    walk = FrameWalk()
    assert walked(frame(b"a\n") + frame(b"b\n")[:20], walk) == [(STAMP, "stdout", "a")]
    assert "20 bytes dropped" in walk.notes[0]


def test_the_engine_s_own_word_in_the_stream_is_a_note_and_no_line() -> None:
    walk = FrameWalk()
    assert walked(struct.pack(">BxxxL", 3, 5) + b"oops\n", walk) == []
    assert walk.notes == ["the engine says: oops"]


def test_a_tty_s_long_line_loses_the_stamps_inside_it() -> None:
    line = f"{STAMP} ".encode() + b"z" * PART_BYTES + f"{STAMP} ".encode() + b"end\r\n"
    walk = TtyWalk()
    assert walked(line, walk) == [(STAMP, "stdout", "z" * PART_BYTES + "end")]
    assert walk.entries == 2


def test_a_payload_without_a_stamp_is_a_line_without_one() -> None:
    raw = struct.pack(">BxxxL", 1, 6) + b"hello\n"
    assert walked(raw) == [(None, "stdout", "hello")]


@pytest.mark.parametrize(
    ("stamp", "said"),
    [
        (b"2026-11-21T09:52:02.315025555Z ", "2026-11-21T09:52:02.315025555Z"),
        (b"2026-11-21T11:52:02.315025555+02:00 ", "2026-11-21T09:52:02.315025555Z"),
        (b"2026-11-21T09:52:02Z ", "2026-11-21T09:52:02.000000000Z"),
        (b"2026-99-99T09:52:02Z ", None),
        (b"2026-99-99T09:52:02.315025555Z ", None),
        (b"2026-11-21T24:60:60.000000000Z ", None),
        (b"0001-01-01T02:00:00+01:00 ", "0001-01-01T01:00:00.000000000Z"),
        (b"", None),
    ],
)
def test_stamps_are_told_in_utc_with_nine_digits(stamp: bytes, said: str | None) -> None:
    assert utc(stamp) == said


@given(st.binary(max_size=4000), st.randoms(use_true_random=False))
def test_any_bytes_make_lines_or_are_no_frames(data: bytes, rnd: random.Random) -> None:
    for walk in (FrameWalk(), TtyWalk()):
        try:
            walked(data, walk)
        except NotFrames:
            assert isinstance(walk, FrameWalk)


@given(
    st.lists(st.tuples(st.sampled_from([1, 2]), st.binary(max_size=60)), max_size=20),
    st.lists(st.integers(1, 40), min_size=1, max_size=5),
    st.booleans(),
)
def test_where_the_bytes_are_split_changes_nothing(
    entries: list[tuple[int, bytes]], sizes: list[int], tty: bool
) -> None:
    lines = [(kind, text.replace(b"\n", b"?") + b"\n") for kind, text in entries]
    data = b"".join(f"{STAMP} ".encode() + t if tty else frame(t, kind=k) for k, t in lines)
    kind = TtyWalk if tty else FrameWalk
    whole = walked(data, kind())
    walk = kind()
    pieces: list[str] = []
    position = turn = 0
    while position < len(data):
        size = sizes[turn % len(sizes)]
        pieces += walk.feed(data[position : position + size]).text
        position, turn = position + size, turn + 1
    pieces += walk.flush().text
    assert pieces == [text for _, _, text in whole]
    assert len(pieces) == len(lines)

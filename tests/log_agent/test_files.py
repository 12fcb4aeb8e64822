"""Files: only what the allow-list names, by its real path; each line once, over rotation and truncation."""

import os
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from services.log_agent import file_read, files, safe_open
from services.log_agent.cursor import digest
from services.log_agent.file_read import SCAN_BYTES_MIN, read_file, tail_start
from shared.allow import path_matches
from shared.clock import now, rfc3339
from shared.errors import Malformed, NotFound, Refused
from shared.logs import LINE_BYTES_MAX, LogChunk, ReadRequest

EMPTY = digest(b"")


def permits(*patterns: str) -> safe_open.Permits:
    return lambda path: any(path_matches(pattern, path) for pattern in patterns)


async def read(path: Path, *, at: str | None = None, **request: Any) -> tuple[list[str], LogChunk]:
    """Read a file below an allowed directory; `at` is the clock, by default long after the last change."""
    clock = at or rfc3339(time.time_ns() + 3600 * 10**9)
    lines: list[str] = []
    wanted = ReadRequest(source=f"file:{path}", **request)
    async for chunk in read_file(str(path), wanted, permits(f"{path.parent}/*"), clock):
        lines += chunk.text
        assert len(chunk.at) == len(chunk.stream) == len(chunk.text)
    assert chunk.last and chunk.cursor
    return lines, chunk


async def test_a_first_read_gives_the_last_lines_from_a_line_s_start(tmp_path: Path) -> None:
    path = tmp_path / "a.log"
    path.write_text("".join(f"line {i}\n" for i in range(10)))
    assert (await read(path))[0] == [f"line {i}" for i in range(10)]
    lines, last = await read(path, max_bytes=20)
    assert lines == ["line 8", "line 9"] and last.older_skipped
    lines, last = await read(path, max_lines=3)
    assert lines == ["line 7", "line 8", "line 9"] and last.older_skipped and last.truncated is None


@pytest.mark.parametrize("ending", ["", "\n"])
async def test_where_a_first_read_begins_is_counted_in_lines_and_bytes(tmp_path: Path, ending: str) -> None:
    path = tmp_path / "a.log"
    for count in (0, 1, 2, 5):
        text = "\n".join("abc"[: 1 + i % 3] for i in range(count)) + (ending if count else "")
        path.write_text(text)
        descriptor = os.open(path, os.O_RDONLY)
        try:
            for max_lines in range(1, 7):
                start = tail_start(descriptor, len(text), max_lines, 10**6)
                assert text[start:].splitlines() == text.splitlines()[-max_lines:]
            for max_bytes in range(1, len(text) + 2):
                start = tail_start(descriptor, len(text), 10**6, max_bytes)
                assert start == 0 or text[start - 1] == "\n" or len(text.splitlines()[-1]) >= max_bytes
        finally:
            os.close(descriptor)


async def test_reading_on_gives_each_line_once(tmp_path: Path) -> None:
    path = tmp_path / "a.log"
    path.write_text("a\nb\n")
    lines, last = await read(path)
    with path.open("a") as file:
        file.write("c\nd\n")
    more, last = await read(path, cursor=last.cursor, max_lines=1)
    assert last.truncated == "lines"
    rest, last = await read(path, cursor=last.cursor)
    none, again = await read(path, cursor=last.cursor)
    assert (lines, more, rest, none) == (["a", "b"], ["c"], ["d"], [])
    assert again.cursor == last.cursor


async def test_an_unfinished_line_is_left_while_it_is_being_written_and_read_when_it_rests(tmp_path: Path) -> None:
    path = tmp_path / "a.log"
    path.write_text("a\nhalf")
    lines, last = await read(path, at=now())
    assert lines == ["a"] and "unfinished" in last.notes[0]
    with path.open("a") as file:
        file.write(" line\nend")
    lines, last = await read(path, cursor=last.cursor)
    assert lines == ["half line", "end"] and last.notes == []


async def test_rotation_truncation_and_rewriting_start_again_and_are_noted(tmp_path: Path) -> None:
    path = tmp_path / "a.log"
    path.write_text("one\ntwo\n")
    _, first = await read(path)
    path.write_text("new\n")
    lines, last = await read(path, cursor=first.cursor)
    assert lines == ["new"] and "truncated" in last.notes[0]
    path.write_text("quite another file\nof more bytes\n")
    lines, last = await read(path, cursor=first.cursor)
    assert len(lines) == 2 and "rewritten" in last.notes[0]
    path.rename(tmp_path / "a.log.1")
    path.write_text("three\n")
    lines, last = await read(path, cursor=last.cursor)
    assert lines == ["three"] and "rotated" in last.notes[0]


async def test_binary_noise_and_long_lines_are_read(tmp_path: Path) -> None:
    path = tmp_path / "a.log"
    path.write_bytes(b"\x00\xff\xfe\n" + b"z" * (LINE_BYTES_MAX + 7) + b"\r\nend\r\n")
    lines, last = await read(path)
    assert lines == ["\x00\ufffd\ufffd", "z" * LINE_BYTES_MAX + " [cut: 8 more bytes]", "end"]
    assert last.cut_bytes == 8


def after_copytruncate(path: Path, offset: int) -> None:
    """What a writer that does not append leaves: nothing up to its old offset, and then its lines."""
    os.truncate(path, 0)
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(b"".join(b"ERROR %d\n" % i for i in range(50)))


@pytest.mark.parametrize("offset", [200 * 2**30, 200 * 2**30 + 777])
async def test_a_hole_is_passed_over_and_noted(tmp_path: Path, offset: int) -> None:
    path = tmp_path / "a.log"
    path.write_text("a\nb\n")
    _, first = await read(path)
    after_copytruncate(path, offset)
    for cursor in (None, first.cursor):
        lines, last = await read(path, cursor=cursor)
        assert lines == [f"ERROR {i}" for i in range(50)] and last.truncated is None
        assert any("bytes that were never written are passed over" in note for note in last.notes)
        with path.open("a") as file:
            file.write("later\n")
        assert (await read(path, cursor=last.cursor))[0] == ["later"]
        os.truncate(path, path.stat().st_size - len("later\n"))


async def test_a_hole_between_lines_ends_the_line_before_it(tmp_path: Path) -> None:
    path = tmp_path / "a.log"
    path.write_text("a\nbroken off")
    with path.open("r+b") as file:
        file.seek(2**30 + 5)
        file.write(b"b\nhalf")
    lines, last = await read(path, at=now(), cursor=f"f1|{path.stat().st_dev}:{path.stat().st_ino}|0|{EMPTY}")
    assert lines == ["a", "broken off", "b"]
    assert (await read(path, cursor=last.cursor))[0] == ["half"]


async def test_a_hole_at_the_end_is_still_to_be_written(tmp_path: Path) -> None:
    path = tmp_path / "a.log"
    path.write_text("a\n")
    os.truncate(path, 2**30)
    lines, last = await read(path)
    with path.open("r+b") as file:
        file.seek(2)
        file.write(b"b\n")
    assert (lines, (await read(path, cursor=last.cursor))[0]) == (["a"], ["b"])


async def test_without_word_of_holes_a_read_still_ends_and_the_next_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(os, "SEEK_DATA")
    path = tmp_path / "a.log"
    path.write_bytes(b"")
    _, last = await read(path)
    after_copytruncate(path, 3 * SCAN_BYTES_MIN)
    lines: list[str] = []
    for _ in range(5):
        some, last = await read(path, cursor=last.cursor, max_bytes=400)
        lines += some
    assert lines[-49:] == [f"ERROR {i}" for i in range(1, 50)]


async def test_a_line_longer_than_what_a_read_looks_at_comes_in_parts(tmp_path: Path) -> None:
    """It stops no cursor, and its first 64 KiB are all that is held of each part."""
    path = tmp_path / "a.log"
    path.write_text("a\n")
    _, last = await read(path)
    with path.open("ab") as file:
        file.write(b"b\n" + b"z" * (3 * SCAN_BYTES_MIN) + b"\nend\n")
    got: list[list[str]] = []
    truncated: list[str | None] = []
    for _ in range(5):
        some, last = await read(path, cursor=last.cursor, max_bytes=1_000)
        got.append(some)
        truncated.append(last.truncated)
    part = "z" * LINE_BYTES_MAX + f" [cut: {SCAN_BYTES_MIN - LINE_BYTES_MAX} more bytes]"
    assert got == [["b"], [part], [part], [part], ["", "end"]]
    assert truncated == ["bytes"] * 4 + [None]


async def test_a_reader_hears_that_it_is_served_though_no_line_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(file_read, "SIGN_OF_LIFE_S", 0.0)
    path = tmp_path / "a.log"
    path.write_bytes(b"z" * SCAN_BYTES_MIN + b"\nend\n")
    request = ReadRequest(source=f"file:{path}")
    chunks = [chunk async for chunk in read_file(str(path), request, permits(f"{path}"), now())]
    assert [chunk.n for chunk in chunks] == list(range(len(chunks)))
    assert chunks[0].text == [] and not chunks[0].last
    assert [text for chunk in chunks for text in chunk.text][-1] == "end"


@pytest.mark.parametrize("cursor", ["x", "d0|0123456789ab", "f1|1:2|-3|0123456789abcdef", "f1|1:2|3|short"])
async def test_a_cursor_that_is_none_is_malformed(tmp_path: Path, cursor: str) -> None:
    path = tmp_path / "a.log"
    path.write_text("a\n")
    with pytest.raises(Malformed):
        await read(path, cursor=cursor)


async def test_a_link_to_what_is_not_allowed_is_refused(tmp_path: Path) -> None:
    (tmp_path / "logs").mkdir()
    (tmp_path / "secret").write_text("secret\n")
    link = tmp_path / "logs" / "a.log"
    link.symlink_to(tmp_path / "secret")
    with pytest.raises(Refused) as caught:
        await read(link)
    assert "secret" not in caught.value.message
    with pytest.raises(Refused):
        await read(tmp_path / "logs" / ".." / "secret" / ".." / "secret")


async def test_a_link_to_what_is_allowed_is_read(tmp_path: Path) -> None:
    (tmp_path / "a.log").write_text("a\n")
    (tmp_path / "current").symlink_to("a.log")
    assert (await read(tmp_path / "current"))[0] == ["a"]


async def test_a_directory_that_is_a_link_leads_nowhere(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "a.log").write_text("a\n")
    (tmp_path / "logs").symlink_to("real")
    with pytest.raises(Refused):
        await read(tmp_path / "logs" / "a.log")


@pytest.mark.parametrize("kind", ["fifo", "directory", "device"])
async def test_only_regular_files_are_read_and_nothing_hangs(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "a.log"
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "directory":
        path.mkdir()
    else:
        path = Path("/dev/zero")
    with pytest.raises(Refused):
        await read(path)


async def test_a_file_that_is_not_there_is_not_found(tmp_path: Path) -> None:
    with pytest.raises(NotFound):
        await read(tmp_path / "none")


def test_a_race_of_renames_never_opens_what_is_not_allowed(tmp_path: Path) -> None:
    """A directory is swapped with a link to a forbidden one, over and over, while it is opened."""
    allowed, forbidden, spare = tmp_path / "logs", tmp_path / "secret", tmp_path / "spare"
    for directory, text in ((allowed, "fine"), (forbidden, "secret")):
        directory.mkdir()
        (directory / "a.log").write_text(text)
    over = threading.Event()

    def swap() -> None:
        while not over.is_set():
            allowed.rename(spare)
            allowed.symlink_to(forbidden)
            allowed.unlink()
            spare.rename(allowed)

    swapper = threading.Thread(target=swap)
    swapper.start()
    opened = refused = 0
    try:
        end = time.monotonic() + 20
        while (opened < 200 or refused < 200) and time.monotonic() < end:
            try:
                descriptor = safe_open.open_allowed(str(allowed / "a.log"), permits(f"{allowed}/*"))
            except (Refused, NotFound):
                refused += 1
                continue
            opened += 1
            text = os.read(descriptor, 100)
            os.close(descriptor)
            assert text == b"fine"
    finally:
        over.set()
        swapper.join()
    assert opened and refused


def test_what_moves_between_check_and_open_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The swap happens exactly between the two: the descriptor's own path gives it away."""
    allowed, forbidden = tmp_path / "logs", tmp_path / "secret"
    for directory in (allowed, forbidden):
        directory.mkdir()
        (directory / "a.log").write_text("x")
    really = os.open

    def late(path: str, flags: int) -> int:
        allowed.rename(tmp_path / "spare")
        allowed.symlink_to(forbidden)
        return really(path, flags)

    monkeypatch.setattr(safe_open.os, "open", late)
    with pytest.raises(Refused, match="moved while it was opened"):
        safe_open.open_allowed(str(allowed / "a.log"), permits(f"{allowed}/*"))


def test_only_what_the_globs_name_is_found(tmp_path: Path) -> None:
    for name in ("a.log", "b.txt", "x/c.log", "x/y/d.log", ".hidden.log", "x/.git/e.log"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("12")
    (tmp_path / "link.log").symlink_to("a.log")
    os.mkfifo(tmp_path / "fifo.log")

    def found(*patterns: str) -> list[str]:
        return [
            file.path.removeprefix(f"{tmp_path}/") for file in files.find(f"{tmp_path}/{p}" for p in patterns).files
        ]

    assert found("*.log") == ["a.log"]
    assert found("**/*.log") == ["a.log", "x/c.log", "x/y/d.log"]
    assert found("*/*.log", "b.txt") == ["b.txt", "x/c.log"]
    assert found("**") == ["a.log", "b.txt", "x/c.log", "x/y/d.log"]
    assert found("none/*", "none") == []


def test_a_pattern_that_leads_through_a_link_is_noted(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "logs").symlink_to("real")
    found = files.find([f"{tmp_path}/logs/*.log"])
    assert found.files == [] and "name the path that it leads to" in found.notes[0]


def test_a_search_without_end_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for i in range(30):
        (tmp_path / f"{i:02}.log").write_text("")
    monkeypatch.setattr(files, "VISITED_MAX", 20)
    assert "the search ended" in files.find([f"{tmp_path}/**"]).notes[0]
    monkeypatch.setattr(files, "FILES_MAX", 5)
    assert len(files.find([f"{tmp_path}/**"]).files) == 5


def test_a_name_that_is_no_utf_8_is_left_out(tmp_path: Path) -> None:
    (tmp_path / "a.log").write_text("")
    with open(os.fsencode(tmp_path) + b"/\xff.log", "w"):
        pass
    assert len(files.find([f"{tmp_path}/*"]).files) == 1

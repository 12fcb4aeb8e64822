"""Whatever is done to an archive is found without a NATS, by the public key alone, and between which seals it was."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner, Result

from cli.__main__ import main
from shared.archive import parquet
from shared.archive.checking import Flaw, Keys, chain_flaws
from shared.archive.days import Calendar, Manifest, Row
from shared.archive.store import Archive
from shared.proof.keys import signer
from tests.archive.built import KEY, edit, fit, manifest_of, rewrite
from tests.stack import ROOT, Stack


@pytest.fixture
def keys(lived: Stack) -> Keys:
    return Keys([signer(lived.folder / KEY).public])


def flaws(archive: Path, keys: Keys) -> list[Flaw]:
    return Archive.at(str(archive)).check(keys)[1]


def day(archive: Path, number: int | None = None) -> Manifest:
    """The day of this number; or one in the middle, with more seals than any other."""
    manifests = Archive.at(str(archive)).manifests()
    return max(manifests[1:-1], key=lambda one: len(one.seals)) if number is None else manifests[number]


def fields(of: object, **changes: object) -> dict[str, object]:
    return {**msgspec.to_builtins(of), **changes}


def seals_around(manifest: Manifest, seq: int) -> tuple[int, int]:
    """The last message up to which a seal holds before `seq`, and the first seal that covers it."""
    sizes = [one.size for one in (*manifest.seals, manifest.covered_by)]
    behind = max([manifest.first_seq - 1, *(size for size in sizes if size < seq)])
    return behind, min(size for size in sizes if size >= seq)


def test_an_archive_that_nobody_touched_is_proven(archive: Path, keys: Keys) -> None:
    assert flaws(archive, keys) == []
    assert len(day(archive).seals) >= 2  # or else "between which seals" would say little


def test_a_changed_message_is_found_between_its_seals(archive: Path, keys: Keys) -> None:
    manifest = day(archive)
    for seq in range(manifest.first_seq, manifest.last_seq + 1):
        copy = archive.with_name(f"copy-{seq}")
        shutil.copytree(archive, copy)

        def change(rows: list[Row], seq: int = seq) -> list[Row]:
            return [(row[0], row[1], row[2], row[3] + b" ", row[4]) if row[1] == seq else row for row in rows]

        rewrite(copy, manifest, change)
        (flaw,) = flaws(copy, keys)
        behind, covers = seals_around(manifest, seq)
        assert (flaw.day, flaw.what, flaw.first, flaw.last) == (manifest.day, "changed", behind + 1, covers)


@pytest.mark.parametrize("part", [0, 2])
def test_a_changed_subject_or_stamp_is_found(archive: Path, keys: Keys, part: int) -> None:
    manifest = day(archive)
    seq = manifest.first_seq + 5

    def change(rows: list[Row]) -> list[Row]:
        made = [list(row) for row in rows]
        made[5][part] = "audit.test.other" if part == 0 else made[5][part] + 1  # type: ignore[operator]
        return [tuple(row) for row in made]  # type: ignore[misc]

    rewrite(archive, manifest, change)
    assert [flaw.what for flaw in flaws(archive, keys) if flaw.first <= seq <= flaw.last] == ["changed"]


def test_a_flipped_byte_is_found_wherever_it_is(archive: Path, keys: Keys) -> None:
    """In a page, in the metadata, in the footer: the digest tells, and what can still be read says where."""
    manifest = day(archive)
    size = manifest.size_bytes
    for at in (4, size // 4, size // 2, size * 3 // 4, size - 9, size - 1):
        copy = archive.with_name(f"copy-{at}")
        shutil.copytree(archive, copy)
        path = copy / manifest.file
        data = bytearray(path.read_bytes())
        data[at] ^= 0x10
        path.write_bytes(data)
        found = flaws(copy, keys)
        assert {flaw.day for flaw in found} == {manifest.day}
        assert found[0].what == "file" and "was changed" in found[0].text


def test_a_missing_message_is_named(archive: Path, keys: Keys) -> None:
    manifest = day(archive)
    gone = manifest.first_seq + 4
    rewrite(archive, manifest, lambda rows: [row for row in rows if row[1] != gone])
    (flaw,) = flaws(archive, keys)
    assert (flaw.what, flaw.first, flaw.last) == ("missing", gone, gone)
    assert f"message {gone} is missing, between message" in flaw.text and "and the seal of" in flaw.text


def test_a_file_that_was_cut_misses_its_last_messages(archive: Path, keys: Keys) -> None:
    manifest = day(archive)
    rewrite(archive, manifest, lambda rows: rows[:-3])
    (flaw,) = flaws(archive, keys)
    assert (flaw.what, flaw.first, flaw.last) == ("missing", manifest.last_seq - 2, manifest.last_seq)


def test_messages_that_were_reordered_are_named(archive: Path, keys: Keys) -> None:
    manifest = day(archive)
    rewrite(archive, manifest, lambda rows: [*rows[:6], rows[7], rows[6], *rows[8:]])
    assert [(flaw.what, flaw.first) for flaw in flaws(archive, keys)] == [("missing", manifest.first_seq + 6)]
    rewrite(archive, manifest, lambda rows: [*rows[:6], rows[7], rows[6], *rows[8:]])  # as they were
    rewrite(archive, manifest, lambda rows: [*rows[:6], rows[2], *rows[6:]])
    assert [(flaw.what, flaw.first) for flaw in flaws(archive, keys)] == [("reordered", manifest.first_seq + 2)]


def test_messages_that_change_places_with_their_numbers_are_found(archive: Path, keys: Keys) -> None:
    manifest = day(archive)

    def exchange(rows: list[Row]) -> list[Row]:
        one, two = rows[6], rows[7]
        return [*rows[:6], (two[0], one[1], *two[2:]), (one[0], two[1], *one[2:]), *rows[8:]]

    rewrite(archive, manifest, exchange)
    (flaw,) = flaws(archive, keys)
    assert flaw.what == "changed" and flaw.first <= manifest.first_seq + 6 <= flaw.last


def test_a_message_behind_the_last_one_is_named(archive: Path, keys: Keys) -> None:
    manifest = day(archive)
    extra: Row = ("audit.test.more", manifest.last_seq + 1, 1, b"{}", None)
    rewrite(archive, manifest, lambda rows: [*rows, extra])
    assert [(flaw.what, flaw.first) for flaw in flaws(archive, keys)] == [("inserted", manifest.last_seq + 1)]


def test_a_day_without_its_file_is_missing(archive: Path, keys: Keys) -> None:
    manifest = day(archive)
    (archive / manifest.file).unlink()
    (flaw,) = flaws(archive, keys)
    assert (flaw.what, flaw.first, flaw.last) == ("missing", manifest.first_seq, manifest.last_seq)


def test_a_day_that_was_removed_is_missing_and_the_others_are_still_proven(archive: Path, keys: Keys) -> None:
    manifest = day(archive)
    (archive / manifest.file).unlink()
    (archive / "events" / f"{manifest.day}.json").unlink()
    (flaw,) = flaws(archive, keys)
    assert (flaw.what, flaw.first, flaw.last) == ("missing", manifest.first_seq, manifest.last_seq)
    assert f"messages {manifest.first_seq} to {manifest.last_seq}" in flaw.text


def test_a_first_day_that_was_removed_is_missing(archive: Path, keys: Keys) -> None:
    manifest = day(archive, 0)
    for name in (manifest.file, f"events/{manifest.day}.json"):
        (archive / name).unlink()
    assert [(flaw.what, flaw.first) for flaw in flaws(archive, keys)] == [("missing", 1)]


def test_a_day_of_another_stream_is_found(archive: Path, keys: Keys) -> None:
    edit(archive, day(archive).day, stream="2026-01-01T00:00:00Z")
    assert "stream" in {flaw.what for flaw in flaws(archive, keys)}


def test_the_seals_of_another_key_prove_nothing(archive: Path, tmp_path: Path) -> None:
    found = flaws(archive, Keys([signer(tmp_path).public]))
    assert {flaw.what for flaw in found} == {"seal"}
    assert {flaw.day for flaw in found} == {one.day for one in Archive.at(str(archive)).manifests()}


EDITS: list[tuple[str, Callable[[Manifest], dict[str, object]], str]] = [
    ("its root", lambda _: {"root": "00" * 32}, "manifest"),
    ("the tree that it begins with", lambda one: {"before": fields(one.before, hashes=[])}, "manifest"),
    ("the runs that are open at its end", lambda one: {"after": fields(one.after, open={"1": 9})}, "manifest"),
    ("its number of events", lambda one: {"events": one.events + 1}, "manifest"),
    ("the seal that covers it", lambda one: {"covered_by": fields(one.covered_by, root="00" * 32)}, "seal"),
    ("an older seal in its place", lambda one: {"covered_by": msgspec.to_builtins(one.seals[0])}, "seal"),
    ("the proof of consistency", lambda _: {"consistency": ["00" * 32]}, "changed"),
    ("what is no proof", lambda _: {"consistency": ["no hex"]}, "manifest"),
    ("its format", lambda _: {"format": 2}, "manifest"),
    ("when it begins", lambda _: {"first_at": "2026-01-01T00:00:00Z"}, "manifest"),
    ("a file that is elsewhere", lambda _: {"file": "../../etc/passwd"}, "manifest"),
    ("a digest that leads elsewhere", lambda one: leading_elsewhere(one.day), "manifest"),
    ("a hash of the tree", lambda one: {"before": fields(one.before, hashes=["AAAA"])}, "manifest"),
]  # fmt: skip


def leading_elsewhere(day: str) -> dict[str, object]:
    return {"sha256": "/../../secret", "file": f"events/{day}./../../secre.parquet"}


@pytest.mark.parametrize(("what", "change", "found"), EDITS, ids=[what for what, *_ in EDITS])
def test_a_manifest_that_was_edited_is_found(
    archive: Path, keys: Keys, what: str, change: Callable[[Manifest], dict[str, object]], found: str
) -> None:
    manifest = next(one for one in Archive.at(str(archive)).manifests()[1:] if one.covered_by.size > one.last_seq)
    edit(archive, manifest.day, **change(manifest))
    assert found in {flaw.what for flaw in flaws(archive, keys)}, what


def test_a_day_is_that_of_its_first_message() -> None:
    """A manifest under a later day would keep everything behind it from being archived until then."""
    calendar = Calendar()
    day = manifest_of("2026-11-24", "2026-11-24T09:00:00Z", 1)
    assert chain_flaws(day, None) == []
    for name, at in (
        ("2026-11-25", "2026-11-24T09:00:00Z"),
        ("2099-01-01", "2026-11-24T09:00:00Z"),
        ("2026-11-24", "x"),
    ):
        assert [flaw.what for flaw in chain_flaws(manifest_of(name, at, 1), None)] == ["manifest"], (name, at)
    back = manifest_of("2026-11-25", "2026-11-24T23:59:00Z", 2)  # the clock was set back over midnight
    assert chain_flaws(back, day) == []
    assert calendar.name(calendar.number("2026-11-25")) == "2026-11-25"


@pytest.mark.parametrize("name", ["2999-99-99", "\u0662\u0660\u0669\u0669-01-01", "9999-12-31", "2026-11-24x", "notes"])
def test_what_is_no_day_is_not_read_as_one(archive: Path, keys: Keys, name: str) -> None:
    days = Archive.at(str(archive)).days()
    (archive / "events" / f"{name}.json").write_text("{")
    assert Archive.at(str(archive)).days() == days
    assert flaws(archive, keys) == []


def test_a_manifest_that_is_none_is_named(archive: Path, keys: Keys) -> None:
    manifest = day(archive)
    (archive / "events" / f"{manifest.day}.json").write_text("{")
    assert [(flaw.day, flaw.what) for flaw in flaws(archive, keys)][:1] == [(manifest.day, "manifest")]


def foreign(path: Path, **columns: pa.Array) -> None:
    """A Parquet file of somebody's, as large as a day's may be."""
    usual = {
        "seq": pa.array([1, 2], pa.uint64()),
        "at_ns": pa.array([1, 2], pa.int64()),
        "subject": pa.array(["a.b", "a.c"], pa.string()),
        "headers": pa.array([None, b""], pa.binary()),
        "data": pa.array([b"{}", b"{}"], pa.binary()),
    }
    table = pa.table({name: array for name, array in {**usual, **columns}.items() if array is not None})
    pq.write_table(table, str(path), row_group_size=1_000_000)


MANY = parquet.GROUP_ROWS + 1
FOREIGN: list[tuple[str, dict[str, pa.Array], str]] = [
    ("another type", {"seq": pa.array(["1", "2"])}, "its column seq is string, and not uint64"),
    ("a missing column", {"data": None}, "its column data is not there, and not binary"),
    ("no subject", {"subject": pa.array(["a", None], pa.string())}, "no subject, data or number"),
    ("no number", {"seq": pa.array([1, None], pa.uint64())}, "no subject, data or number"),
    ("a stamp before 1970", {"at_ns": pa.array([1, -1], pa.int64())}, "from before 1970"),
    ("a subject that is no text", {"subject": pa.array([b"\xff", b"a"]).cast(pa.string(), safe=False)}, "utf-8"),
    (
        "too many rows at once",
        {
            "seq": pa.array(range(1, MANY + 1), pa.uint64()),
            "at_ns": pa.array([1] * MANY, pa.int64()),
            "subject": pa.array(["a"] * MANY),
            "headers": pa.array([b""] * MANY),
            "data": pa.array([b""] * MANY),
        },
        "its row group 0 has 50001 rows",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("what", "columns", "told"), FOREIGN, ids=[what for what, *_ in FOREIGN])
def test_a_file_that_is_not_ours_is_named(
    archive: Path, keys: Keys, tmp_path: Path, what: str, columns: dict[str, pa.Array], told: str
) -> None:
    """With a manifest that fits it: no traceback, and nothing is read into memory as it says."""
    manifest = day(archive, 0)
    foreign(tmp_path / "foreign.parquet", **columns)
    (archive / manifest.file).unlink()
    fit(archive, manifest.day, tmp_path / "foreign.parquet")
    (flaw,) = flaws(archive, keys)
    assert flaw.what == "changed" and told in flaw.text, what


def test_a_value_that_stands_once_in_a_file_is_once_in_memory(tmp_path: Path) -> None:
    """A small file of one large value, named by ten thousand rows: it would be ten gigabytes."""
    path, large, count = tmp_path / "bomb.parquet", b"x" * 1_000_000, 10_000
    data = pa.DictionaryArray.from_arrays(pa.array([0] * count, pa.int32()), pa.array([large], pa.binary()))
    columns = {
        "seq": pa.array(range(1, count + 1), pa.uint64()),
        "at_ns": pa.array([1] * count, pa.int64()),
        "subject": pa.array(["a"] * count),
        "headers": pa.array([b""] * count),
        "data": data,
    }
    pq.write_table(pa.table(columns), str(path), dictionary_pagesize_limit=2_000_000, store_schema=False)
    assert path.stat().st_size < 2_000_000
    script = (
        "import resource, sys; from pathlib import Path; from shared.archive import parquet\n"
        "print(sum(len(row[3]) for row in parquet.rows(Path(sys.argv[1]))))\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
    )
    done = subprocess.run([sys.executable, "-c", script, str(path)], cwd=ROOT, capture_output=True, text=True)
    total, most_kib = map(int, done.stdout.split())
    assert total == count * len(large)
    assert most_kib < 400_000


# -- as people run it ----------------------------------------------------------------------------------------


@pytest.fixture
def pem(lived: Stack, tmp_path: Path) -> str:
    path = tmp_path / "sealer.pem"
    path.write_text(signer(lived.folder / KEY).pem)
    return str(path)


def run(*argv: str) -> Result:
    return CliRunner().invoke(main, ["archive", *argv])


def test_check_needs_the_key_alone(archive: Path, pem: str) -> None:
    done = run("check", str(archive), "--key", pem)
    assert done.exit_code == 0, done.output
    assert done.stdout.startswith("proven: messages 1 to ")
    assert run("check", str(archive)).exit_code == 2


def test_check_ends_with_one_and_names_what_it_found(archive: Path, pem: str) -> None:
    manifest = day(archive)
    gone = manifest.first_seq + 4
    rewrite(archive, manifest, lambda rows: [row for row in rows if row[1] != gone])
    done = run("check", str(archive), "--key", pem)
    assert done.exit_code == 1
    assert done.stdout.startswith(f"{manifest.day}: missing: message {gone} is missing, between message")
    told = json.loads(run("check", str(archive), "--key", pem, "-o", "json").stdout)
    assert [flaw["what"] for flaw in told["flaws"]] == ["missing"]


def test_ls_lists_the_days(archive: Path) -> None:
    rows = json.loads(run("ls", str(archive), "-o", "json").stdout)
    assert [row["day"] for row in rows] == [one.day for one in Archive.at(str(archive)).manifests()]
    assert rows[0]["first_seq"] == 1 and "sha256" in rows[0]


def test_a_place_that_is_none_is_told(tmp_path: Path, pem: str) -> None:
    assert run("check", str(tmp_path / "nothing"), "--key", pem).exit_code == 6
    (tmp_path / "not mounted").mkdir()
    done = run("check", str(tmp_path / "not mounted"), "--key", pem)
    assert (done.exit_code, "proves nothing" in done.stderr) == (1, True)
    assert run("ls", "ftp://host/archive").exit_code == 2
    (tmp_path / "file").write_text("")
    done = run(str(tmp_path / "file" / "archive"), "--key", pem)
    assert done.exit_code == 1 and "cannot be made: Not a directory" in done.stderr


def test_a_file_is_written_a_row_group_at_a_time(tmp_path: Path) -> None:
    """So memory is bounded by bytes as well as by rows: a plan may have half a megabyte."""
    path, sent = tmp_path / "day.parquet", [("plan.created.1", seq, seq, bytes(500_000), None) for seq in range(1, 151)]
    writer = parquet.Writer(path)
    for row in sent:
        writer.add(row)
    writer.close(day="a day")
    assert pq.read_metadata(str(path)).num_row_groups == 3
    assert list(parquet.rows(path)) == sent
    assert parquet.told(path) == {"day": "a day"}


def test_help_teaches_where_and_how() -> None:
    done = run("--help")
    assert "remit archive check TO --key FILE" in done.stdout and "AWS_ENDPOINT_URL" in done.stdout

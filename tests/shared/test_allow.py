"""The allow-list says yes to what an entry names, and to nothing else."""

import pytest

from shared.allow import AllowEntry, allowed, check, file_patterns, path_matches
from shared.config import entries
from shared.errors import Malformed


def entry(source: str, *, host: str = "*", enabled: bool = True) -> AllowEntry:
    return check(AllowEntry(id="e1", host=host, source=source, enabled=enabled))


def test_nothing_is_allowed_until_an_entry_allows_it() -> None:
    assert not allowed([], "tower", "docker:web")
    assert not allowed([], "tower", "file:/var/log/syslog")


def test_a_bare_name_is_a_container_and_a_leading_slash_is_a_file() -> None:
    assert entry("web").source == "docker:web"
    assert entry("/var/log/*.log").source == "file:/var/log/*.log"
    assert allowed([entry("web")], "tower", "web")
    assert allowed([entry("web")], "tower", "docker:web")


def test_a_disabled_entry_allows_nothing() -> None:
    assert not allowed([entry("web", enabled=False)], "tower", "web")


def test_the_host_is_a_glob_and_case_counts() -> None:
    assert allowed([entry("web", host="gpu-*")], "gpu-1", "web")
    assert not allowed([entry("web", host="gpu-*")], "tower", "web")
    assert not allowed([entry("web", host="gpu-*")], "GPU-1", "web")


@pytest.mark.parametrize(
    ("pattern", "source", "yes"),
    [
        ("web*", "web-1", True),
        ("web*", "Web-1", False),
        ("web*", "docker:*", False),
        ("*", "docker:web/../x", False),
        ("*", "docker:", False),
        ("*", "file:/etc/passwd", False),
        ("/var/log/*", "docker:var", False),
        ("/var/log/*.log", "/var/log/a.log", True),
        ("/var/log/*.log", "/var/log/nginx/a.log", False),
        ("/var/log/**", "/var/log/nginx/a.log", True),
        ("/var/log/**", "/var/log/a.log", True),
        ("/var/log/**", "/var/log", False),
        ("/var/log/**/*.log", "/var/log/a.log", True),
        ("/var/log/**/*.log", "/var/log/x/y/a.log", True),
        ("/var/log/**/*.log", "/var/log/x/y/a.txt", False),
        ("/var/**/x/**/a.log", "/var/1/x/2/3/a.log", True),
        ("/var/**/x/**/a.log", "/var/1/2/a.log", False),
        ("/var/log/**.log", "/var/log/x/a.log", False),
        ("/var/log/**", "/var/log/../../etc/shadow", False),
        ("/var/log/**", "/var/log/./a.log", False),
        ("/var/log/**", "/var/log//a.log", False),
        ("/**", "//etc/shadow", False),
        ("/var/log/**", "/var/log/", False),
        ("/srv/app/**", "/srv/app/.env", False),
        ("/srv/app/**", "/srv/app/.git/config", False),
        ("/srv/app/.env", "/srv/app/.env", True),
        ("/srv/app/*", "/srv/app/[x].log", True),
        ("/srv/app/?.log", "/srv/app/a.log", True),
        ("/srv/app/a?b", "/srv/app/a/b", False),
        ("/srv/app/[!a]b", "/srv/app/xb", True),
        ("/srv/app/a.log", "/srv/app/a.log\n", False),
    ],
)
def test_a_pattern_matches_what_it_names(pattern: str, source: str, yes: bool) -> None:
    assert allowed([entry(pattern)], "tower", source) is yes


@pytest.mark.parametrize(
    ("source", "host", "field"),
    [
        ("", "*", "source"),
        ("file:var/log", "*", "source"),
        ("/var/log/../x", "*", "source"),
        ("/var/log/", "*", "source"),
        ("/", "*", "source"),
        ("//x", "*", "source"),
        ("a b", "*", "source"),
        ("docker:/etc", "*", "source"),
        ("/" + "x" * 5000, "*", "source"),
        ("web", "", "host"),
        ("web", "two words", "host"),
    ],
)
def test_an_entry_that_could_mean_nothing_is_refused_with_its_field(source: str, host: str, field: str) -> None:
    with pytest.raises(Malformed) as caught:
        check(AllowEntry(id="e1", host=host, source=source))
    assert caught.value.field == field


@pytest.mark.parametrize(
    "raw",
    [b"", b"7", b"{", b"\xff", b'{"id": "a"}', b'{"id": 1, "source": "x"}', b'{"a":' * 1_000 + b"1" + b"}" * 1_000],
)
def test_what_cannot_be_read_as_an_entry_allows_nothing(raw: bytes) -> None:
    assert entries({"allow.a": raw}, "allow.", AllowEntry) == {}


def test_an_id_that_no_key_can_hold_is_refused() -> None:
    with pytest.raises(Malformed):
        check(AllowEntry(id="a.b", source="web"))


def test_a_newer_writer_s_field_is_ignored() -> None:
    raw = b'{"id": "a", "source": "web", "colour": "red"}'
    [entry] = entries({"allow.a": raw}, "allow.", AllowEntry).values()
    assert check(entry).source == "docker:web"


def test_patterns_of_this_host_s_enabled_file_entries_are_listed() -> None:
    entries = [
        entry("/b/*"),
        entry("/a/*"),
        entry("/a/*"),
        entry("/c", host="other"),
        entry("/d", enabled=False),
        entry("web"),
    ]
    assert file_patterns(entries, "tower") == ["/a/*", "/b/*"]


def test_a_hostile_name_costs_no_backtracking() -> None:
    """Thirty `**` against a path of two thousand segments answers at once."""
    pattern = "/**/a" * 30 + "/b"
    assert not path_matches(pattern, "/a" * 2000)

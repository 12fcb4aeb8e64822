"""Redaction: what is taken out, what is left, and that it is linear. All secrets here are made up."""

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shared import redact as module
from shared.redact import redact, secret_kind

SECRETS = [
    # text, the part that must not survive
    ("Authorization: Bearer abcdef12345", "abcdef12345"),
    ("authorization=Basic dXNlcjpwYXNz", "dXNlcjpwYXNz"),
    ("PROXY-AUTHORIZATION: bearer XyZ", "XyZ"),
    ('curl -H "aUtHoRiZaTiOn: token t0k" http://x', "t0k"),
    ('Authorization: Digest username="u", response="6629fae4"', "6629fae4"),
    ("BEARER abcdef.ghi-jkl", "abcdef"),
    ("sent bearer abcd", "abcd"),
    ("Basic dXNlcjpwYXNzd29yZA==", "dXNlcjpwYXNzd29yZA"),
    ("password=hunter2 user=bob", "hunter2"),
    ("passwd:hunter2", "hunter2"),
    ("Password : hunter2", "hunter2"),
    ("PGPASSWORD=hunter2 psql", "hunter2"),
    ('password=hun"ter2 next', "ter2"),
    ("password=hun;ter,2", "ter,2"),
    ('password = "hunter 2 with spaces" x', "2 with spaces"),
    ("secret=hunter2", "hunter2"),
    ("client_secret: hunter2", "hunter2"),
    ("clientSecret='hunter2'", "hunter2"),
    ("?token=hunter2&user=bob", "hunter2"),
    ("password%3Dhunter2%26user%3Dbob", "hunter2"),
    ("%22password%22%3A%22hunter2%22", "hunter2"),
    ("api_key=hunter2", "hunter2"),
    ("API_KEY=hunter2", "hunter2"),
    ("X-Api-Key: hunter2", "hunter2"),
    ("apiKey: hunter2", "hunter2"),
    ("aws_secret_access_key = wJalrXUtnFEMI/K7MDENG", "wJalr"),
    ("AccountKey=hunter2==;Endpoint=x", "hunter2"),
    ("session_id=hunter2", "hunter2"),
    ("Set-Cookie: sid=hunter2; Path=/", "hunter2"),
    ("mysql --password hunter2 -u root", "hunter2"),
    ("tool --api-key='hunter2'", "hunter2"),
    ("<password>hunter2</password>", "hunter2"),
    ("CREATE USER bob IDENTIFIED BY 'hunter2'", "hunter2"),
    ("'password' => 'hunter2'", "hunter2"),
    ('{"user":"bob","password":"hunter2"}', "hunter2"),
    ('{"user":"bob","password":"hun\\"ter2","n":1}', "ter2"),
    ('{"password":["hunter2","hunter3"]}', "hunter3"),
    ('{"password":12345678}', "12345678"),
    ('{"passwords":"hunter2"}', "hunter2"),
    (r'{"msg":"{\"password\":\"hunter2\",\"a\":1}"}', "hunter2"),
    (r'{"a":"{\"b\":\"{\\\"api_key\\\":\\\"hunter2\\\"}\"}"}', "hunter2"),
    ("postgres://bob:hunter2@db:5432/x", "hunter2"),
    ("amqp://bob:hun/ter@2@mq/x", "ter@2"),
    ("https://hunter2@github.com/x", "hunter2"),
    ("redis://:hunter2@cache:6379", "hunter2"),
    ("key AKIAIOSFODNN7EXAMPLE used", "AKIA"),
    ("ghp_abcdefghijklmnopqrstuvwxyz0123456789", "ghp_"),
    ("x-ghu_abcdefghijklmnopqrstuvwxyz0123456789", "ghu_"),
    ("github_pat_11ABCDEFG0abcdefghijkl_mnop", "github_pat_"),
    ("glpat-abcdefghij0123456789", "glpat"),
    ("xoxb-123456789012-abcdefGHIJKL", "xoxb"),
    ("https://hooks.slack.com/services/T000/B000/XXXXXXXX", "XXXXXXXX"),
    ("AIzaSyA1234567890abcdefghijklmnopqrstu", "AIza"),
    ("sk_live_abcdefghijklmnop", "sk_live"),
    ("rk_test_abcdefghijklmnop", "rk_test"),
    ("jwt eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.sig-nature_x", "eyJ"),
    ("-----BEGIN RSA PRIVATE KEY-----\nMIIE\n-----END RSA PRIVATE KEY-----", "MIIE"),
    ("-----BEGIN OPENSSH PRIVATE KEY-----\nb3Blb (cut off here", "b3Blb"),
    ("key=9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822c", "9f86d"),
    ("signature: dGhpcyBpcyBhIHNpZ25hdHVyZSB2YWx1ZTE=", "dGhpcyB"),
]

HARMLESS = [
    "monkey=banana turkey: roast keyboard=us",
    "max_tokens=4096 prompt_tokens: 12 tokens=7",
    "token: expired",
    "Invalid token: unexpected end of input",
    "Failed password for root from 192.0.2.4 port 22 ssh2",
    "pam_unix(sshd:auth): authentication failure; logname= uid=0 user=root",
    "cache key=user:12 hit",
    "basic authentication failed for bob",
    "the bearer of news arrived",
    "http://localhost:8080/users/bob@example.org",
    "https://example.org/a?b=c#d",
    "password_changed=true secret_name=db",
    'password="" token=null secret=',
    "session opened for user cyrus by (uid=0)",
    "compass=north bypass: on passed=3",
    "commit 9f86d081884c7d659a2feaa0c55ad015a3bf4f1b",
    "sha256:9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
    "",
    "x",
]


@pytest.mark.parametrize(("text", "part"), SECRETS)
def test_no_part_of_a_secret_is_shown(text: str, part: str) -> None:
    assert part in text
    assert part not in redact(text)
    assert "[redacted:" in redact(text)


@pytest.mark.parametrize("text", HARMLESS)
def test_what_is_no_secret_stays_as_it_is(text: str) -> None:
    assert redact(text) == text


@pytest.mark.parametrize("text", [text for text, _ in SECRETS] + HARMLESS)
def test_redacting_twice_changes_nothing_more(text: str) -> None:
    assert redact(redact(text)) == redact(text)


def test_json_stays_json_around_the_redacted_value() -> None:
    assert redact('{"a":1,"password":"x y","b":[2]}') == '{"a":1,"password":"[redacted:password]","b":[2]}'
    nested = r'{"m":"{\"token\":\"abc\",\"n\":1}"}'
    assert redact(nested) == r'{"m":"{\"token\":\"[redacted:token]\",\"n\":1}"}'


def test_the_kind_is_named() -> None:
    assert redact("ghp_abcdefghijklmnopqrstuvwxyz") == "[redacted:github-token]"
    assert redact("password=x") == "password=[redacted:password]"


def test_every_telling_name_holds_a_stem() -> None:
    """The substring gate in front of the patterns must let each of their words through."""
    for word in (*module._SECRET_WORDS, *module._TELLING):
        assert secret_kind(word) is not None
        assert any(stem in word for stem in module._STEMS), word


def test_every_shape_is_let_through_by_its_front() -> None:
    for text, _ in SECRETS:
        for _, pattern in module._SHAPES:
            if pattern.search(text):
                assert any(front in text for front in module._FRONTS), text


N = 300
_ALPHABET = st.sampled_from([*"abcXYZ019=:;,.-_/\\\"'`@%<>[]{}() \t\n", "password", "token=", "Bearer ", "://"])


@settings(max_examples=N)
@given(st.lists(_ALPHABET, max_size=60).map("".join))
def test_any_text_is_redacted_once_and_for_all(text: str) -> None:
    once = redact(text)
    assert redact(once) == once


_VALUE = st.text("QZXVJ0123456789!#$^*()+,./;?|~", min_size=6, max_size=40)
_NAME = st.sampled_from(
    ["password", "db_password", "PASSWD", "apiKey", "api_key", "API-KEY", "client.secret", "secret"]
)
_FORM = st.sampled_from(
    [
        "{n}={v}",
        "{n}: {v}",
        '{{"{n}":"{v}"}}',
        "{n}='{v}' x=1",
        'a=1 {n}="{v}"',
        r'"{{\"{n}\":\"{v}\",\"k\":2}}"',
        "--{n} {v}",
    ]
)


@settings(max_examples=N)
@given(_NAME, _VALUE.filter(lambda v: v[0].isalnum() and v[-1].isalnum()), _FORM)
def test_a_value_after_a_telling_name_never_shows(name: str, value: str, form: str) -> None:
    if form.startswith("--"):
        name = "password"
    text = form.format(n=name, v=f"Qz{value}")
    assert f"Qz{value[:4]}" not in redact(text)
    assert value[-6:] not in redact(text).replace("[redacted:password]", "").replace("[redacted:secret]", "")


HOSTILE = [
    "a", "a=", "password=", '"', "\\", "://", "://a:", "bearer ", "-----BEGIN ", 'password="', "eyJaaaaaa.", " ",
    "--a ",
    "<a>", "token=[{", "password 'a", "SG.aaaaaaaaaaaaaaaaaa", 'pass\\"=\\"', "user:@", "authorization:", "a.", "%22",
    "://a:@", "token", "token.", "=token", "basic A", "cookie:", "secret is ", "key-", "-password ",
]  # fmt: skip


@pytest.mark.parametrize("piece", HOSTILE)
def test_a_hostile_megabyte_costs_linear_time(piece: str) -> None:
    """A quadratic pattern would need minutes; the bound is wide because the machine is shared."""
    text = (piece * (1_000_000 // len(piece))) + " password=hunter2"
    start = time.process_time()
    redact(text)
    assert time.process_time() - start < 5

"""What a process is told by its environment: a value that cannot be meant is told with the variable's name."""

import sys
from pathlib import Path
from typing import Any

import pytest

from shared import settings
from shared.bus import connect
from shared.errors import Malformed, RemitError, Unavailable
from shared.settings import Count, Seconds
from tests.stack import Stack, free_port, stack, until

CREDENTIALS = """-----BEGIN NATS USER JWT-----
eyJ
------END NATS USER JWT------
-----BEGIN USER NKEY SEED-----
SU
------END USER NKEY SEED------
"""


@pytest.mark.parametrize(
    ("kind", "text", "meant"), [(Count, "1", 1), (Count, "", 7), (Seconds, "0.5", 0.5), (Seconds, "86400", 86_400)]
)
def test_a_setting_is_read_or_its_default_holds(
    kind: Any, text: str, meant: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REMIT_SOME", text)
    assert settings.setting("SOME", kind, 7) == meant


@pytest.mark.parametrize(
    ("kind", "text"),
    [(Count, "0"), (Count, "-1"), (Count, "1.5"), (Count, "x"), (Seconds, "0"), (Seconds, "-1"), (Seconds, "nan"),
     (Seconds, "inf"), (Seconds, "1e9"), (Seconds, "soon")],
)  # fmt: skip
def test_a_setting_that_cannot_be_meant_is_named(kind: Any, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REMIT_SOME", text)
    with pytest.raises(Malformed, match=f"REMIT_SOME='{text}': Expected") as refused:
        settings.setting("SOME", kind, 7)
    assert refused.value.field == "REMIT_SOME"


async def test_credentials_without_the_package_that_reads_them_are_told_so(
    server: Stack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing of Remit needs it else; every process that was given such a file ended in a traceback."""
    monkeypatch.setitem(sys.modules, "nkeys", None)
    file = tmp_path / "remit.creds"
    file.write_text(CREDENTIALS)
    with pytest.raises(RemitError, match="pip install nkeys"):
        await connect(server.url, "test", credentials=str(file))


def test_credentials_are_a_file_that_holds_some(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("REMIT_NATS_CREDS", raising=False)
    assert settings.credentials() is None
    file = tmp_path / "remit.creds"
    monkeypatch.setenv("REMIT_NATS_CREDS", str(file))
    with pytest.raises(Malformed, match=r"REMIT_NATS_CREDS names .*remit.creds: No such file"):
        settings.credentials()
    file.write_bytes(b"\xff a password")
    with pytest.raises(Malformed, match="which holds no credentials") as refused:
        settings.credentials()
    assert "password" not in refused.value.message
    file.write_text(CREDENTIALS)
    assert settings.credentials() == str(file)


def test_a_data_directory_that_is_a_file_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "file"
    monkeypatch.setenv("REMIT_DATA_DIR", str(file))
    assert settings.data_dir() == file
    file.touch()
    with pytest.raises(Malformed, match=r"REMIT_DATA_DIR='.*' is no directory"):
        settings.data_dir()


@pytest.mark.parametrize(
    "url", ["http://127.0.0.1:4222", "nats://", "nats://127.0.0.1:99999", "nats://127.0.0.1:x", "nats://[::1", ""]
)
async def test_what_is_no_url_of_a_nats_is_told_as_that(url: str) -> None:
    with pytest.raises(Malformed, match="is no URL of a NATS"):
        await connect(url, "test")


async def test_a_wrong_url_is_told_without_its_password() -> None:
    with pytest.raises(Malformed, match=r"'nats://127\.0\.0\.1:x' is no URL") as refused:
        await connect("nats://ann:secret@127.0.0.1:x", "test")
    assert "secret" not in refused.value.message


@pytest.mark.parametrize("url", ["127.0.0.1:{port}", "tls://127.0.0.1:{port}", " nats://127.0.0.1:{port} "])
async def test_where_nothing_listens_is_no_mistake_in_the_url(url: str) -> None:
    with pytest.raises(Unavailable, match="nothing listens"):
        await connect(url.format(port=free_port()), "test")


@pytest.mark.parametrize(
    ("service", "variable", "value", "told"),
    [
        ("sealer", "REMIT_SEALER_TRUSTS", "no key", "REMIT_SEALER_TRUSTS='no key': this is no public key"),
        ("sealer", "REMIT_SEAL_EVERY_S", "-1", "REMIT_SEAL_EVERY_S='-1': Expected"),
        ("gpu_agent", "REMIT_GPU_INTERVAL_S", "0", "REMIT_GPU_INTERVAL_S='0': Expected"),
        ("gateway", "REMIT_HTTP_HEARTBEAT_S", "0", "REMIT_HTTP_HEARTBEAT_S='0': Expected"),
        ("registry", "REMIT_NATS_CREDS", "/nowhere", "REMIT_NATS_CREDS names /nowhere: No such file"),
        ("registry", "REMIT_DATA_DIR", "/proc/nowhere", "/proc/nowhere: No such file or directory"),
    ],
)
def test_a_service_says_what_it_cannot_begin_with(
    service: str, variable: str, value: str, told: str, tmp_path: Path
) -> None:
    """A line that names it, and status 1."""
    with stack(tmp_path) as made:
        made.start(service, **{variable: value})
        until(lambda: made.ended() == {service: 1}, "it ended")
        assert told in made.log(service).splitlines()[-1]


def test_a_host_is_a_subject_token_whoever_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """`up --host` tells the name by which goals and the fleet know the host."""
    monkeypatch.setenv("REMIT_HOST", "rack 7.example")
    assert settings.host_name() == "rack-7-example"
    assert settings.host_name("a b") == "a-b"
    assert settings.host_name("") == "rack-7-example"

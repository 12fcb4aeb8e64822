"""The settings of a process: the `REMIT_…` variables of its environment that more than one place reads.

A value that cannot be meant is `Malformed`, with the variable's name. An empty one is one that is not set.
"""

import os
import re
import socket
from pathlib import Path
from typing import Annotated, Any, TypeVar

import msgspec

from shared.errors import Malformed

NATS_URL_DEFAULT = "nats://127.0.0.1:4222"
HTTP_DEFAULT = "127.0.0.1:9595"
# What a file of credentials for NATS holds, as `nsc` writes it.
CREDENTIALS = ("BEGIN NATS USER JWT", "BEGIN USER NKEY SEED")

T = TypeVar("T")
Count = Annotated[int, msgspec.Meta(ge=1)]
Seconds = Annotated[float, msgspec.Meta(gt=0, le=86_400)]


def setting(name: str, kind: Any, default: T) -> T:
    """`REMIT_<NAME>` as `kind`, which may be annotated with its limits, or `default` when it is not set."""
    variable = f"REMIT_{name}"
    text = os.environ.get(variable)
    if not text:
        return default
    try:
        found: T = msgspec.convert(text, kind, strict=False)
    except msgspec.ValidationError as error:
        raise Malformed(f"{variable}={text!r}: {error}", field=variable) from error
    return found


def nats_url() -> str:
    """Where NATS is: one URL, or those of a cluster, with commas between them."""
    return os.environ.get("REMIT_NATS_URL") or NATS_URL_DEFAULT


def credentials() -> str | None:
    """The file that NATS knows this process by, or None."""
    given = os.environ.get("REMIT_NATS_CREDS")
    if not given:
        return None
    try:
        text = Path(given).read_text(errors="replace")
    except OSError as error:
        raise Malformed(f"REMIT_NATS_CREDS names {given}: {error.strerror}", field="REMIT_NATS_CREDS") from error
    if not all(words in text for words in CREDENTIALS):
        raise Malformed(f"REMIT_NATS_CREDS names {given}, which holds no credentials", field="REMIT_NATS_CREDS")
    return given


def data_dir() -> Path:
    """Where Remit keeps what is on disk: `REMIT_DATA_DIR`, or the XDG state directory."""
    if given := os.environ.get("REMIT_DATA_DIR"):
        found = Path(given)
        if found.exists() and not found.is_dir():
            raise Malformed(f"REMIT_DATA_DIR={given!r} is no directory", field="REMIT_DATA_DIR")
        return found
    state = os.environ.get("XDG_STATE_HOME") or str(Path.home() / ".local" / "state")
    return Path(state) / "remit"


def host_name(given: str | None = None) -> str:
    """This host as a subject token: as given, `REMIT_HOST`, or the machine's name; what cannot stand is replaced."""
    name = given or os.environ.get("REMIT_HOST") or socket.gethostname().split(".")[0]
    return re.sub(r"[^A-Za-z0-9_-]", "-", name)[:64] or "localhost"

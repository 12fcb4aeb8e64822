"""The few errors of Remit, named by who has to act.

*Malformed* and *Refused* are the caller's, *Unavailable* is the world's, *AlreadySaid* is nobody's:
it is how the stream says that a fact has been there all along.
"""

import re

# What `msgspec` raises of bytes that are not what they should be: no UTF-8, no JSON, another shape, nested too deeply.
UNREADABLE = (ValueError, RecursionError)


class RemitError(Exception):
    """Something that a caller can act on; its text is the whole message for a person."""

    def __init__(self, message: str, *, field: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.field = field


class Malformed(RemitError):
    """The input cannot be read as what it should be; `field` names the part at fault."""


class Refused(RemitError):
    """The input is well formed and not allowed."""


class NotFound(RemitError):
    """What was asked for does not exist."""


class Unavailable(RemitError):
    """A server did not answer; the same call may succeed later."""


class AlreadySaid(RemitError):
    """A create-only subject holds a message already. Not a failure: whoever repeats a fact gets this."""


_MISSING = re.compile(r"Object missing required field `([^`]*)`")
_AT = re.compile(r" - at `(?:key in )?\$\.?([^`]*)`$")


def malformed(error: Exception) -> Malformed:
    """msgspec's complaint with the field's path taken out of the text and named."""
    text = str(error)
    match = _AT.search(text)
    field = match.group(1) if match else ""
    if missing := _MISSING.match(text):
        field = f"{field}.{missing[1]}" if field else missing[1]
    return Malformed(_AT.sub("", text) or type(error).__name__, field=field)

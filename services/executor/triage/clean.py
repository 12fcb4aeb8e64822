"""Makes any text fit to be read: colours and control characters out, length bounded, odd code points replaced."""

import re
from typing import Final

from services.executor.triage.model import LINE_CHARS_MAX
from shared.redact import redact

CUT_MARGIN_CHARS: Final = 2_100  # longer than any secret without an end that the redaction would know
CUT_MARK: Final = " …(cut)"

_ANSI = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]{0,1000}(?:\x07|\x1b\\)?|[@-Z\\-_])|\x9b[0-?]*[ -/]*[@-~]")
# Tab and newline stay. Bidirectional overrides go too: they make a line read differently from what it says.
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u200b\u200e\u200f\u202a-\u202e\u2066-\u2069\ufeff]")
_SURROGATE = re.compile("[\ud800-\udfff]")


def clean(text: str) -> str:
    """The line without line ends, colours, control characters and lone surrogates; not yet cut."""
    text = text.rstrip("\r\n")
    if "\r" in text:  # a progress bar: what the terminal showed last is what was said
        text = text[text.rindex("\r") + 1 :]
    if "\x1b" in text or "\x9b" in text:
        text = _ANSI.sub("", text)
    if not text.isascii():
        text = _SURROGATE.sub("\ufffd", text)
    return _CONTROL.sub("", text)


def cut(text: str) -> str:
    """The front of a text over `LINE_CHARS_MAX`, redacted, and shorter than that.

    A cut may go through a secret and leave a part that no pattern knows, so what stands near the cut goes too.
    """
    return redact(text[:LINE_CHARS_MAX])[:-CUT_MARGIN_CHARS] + CUT_MARK


def shorten(text: str, chars_max: int) -> str:
    """The text's first words within `chars_max`; a word is never shown in part, for the same reason."""
    if len(text) <= chars_max:
        return text
    return text[:chars_max].rpartition(" ")[0] or "<*>"


def sample(text: str, chars_max: int) -> str:
    """At most `chars_max` characters of a line, redacted before it is cut."""
    return text if len(text) <= chars_max else redact(text)[:chars_max]


def is_noise(text: str) -> bool:
    """True for a line that is mostly bytes that could not be decoded."""
    bad = text.count("\ufffd")
    return bad > 2 and bad * 5 > len(text)

"""How deep JSON may be nested in a message of the stream.

What a decoder can take hangs on the depth of its caller's own stack, so that one process would read what another calls
unreadable, and fold another state of it. This limit is everybody's, and far below what any of them can take.
"""

import re

LEVELS_MAX = 500
SHALLOW_BYTES = 2 * LEVELS_MAX  # what opens has to close: in so few there is no room for more
# Strings are passed over: what stands in them opens nothing.
_marks = re.compile(rb'(?s)"[^"\\]*(?:\\.[^"\\]*)*"|[\[{]|[\]}]').finditer


def check_levels(data: bytes) -> None:
    """ValueError where the JSON in `data` is nested more than `LEVELS_MAX` levels deep."""
    if data.count(b"[") + data.count(b"{") <= LEVELS_MAX:
        return
    level = 0
    for mark in _marks(data):
        first = mark[0][:1]
        if first in b"[{":
            level += 1
            if level > LEVELS_MAX:
                raise ValueError(f"nested more than {LEVELS_MAX} levels deep")
        elif first != b'"':
            level -= 1

"""Says which lines belong to the event before them: stack traces and indented continuations.

Theory of operation. A line with a header of its own always starts an event. Any other line belongs to the open event
of its stream when it is indented under it, or when it is one of the few unindented lines that traces have: "Caused
by:", "During handling of …", "goroutine 12 [running]:", the final "ValueError: …". The kind of a trace is set by the
line that opens it, and only widens what may follow; an empty line inside a trace is kept open until the next line
decides. The exception is remembered as the trace goes by, because where it stands differs: last in Python, in the
deepest "Caused by" in Java, first in Go, Node and Rust.
"""

import re
from typing import Final

_EXCEPTION: Final = r"(?:[\w$]+\.)*[\w$]*(?:Exception|Error|Throwable|Failure|Interrupt|Exit|Fault)\b"
_PY_START: Final = "Traceback (most recent call last)"
_JAVA = re.compile(rf"(?:Exception in thread \"[^\"]{{0,200}}\" )?(?P<e>(?:[\w$]+\.)+{_EXCEPTION}(?:: .{{0,1000}})?)")
_NODE = re.compile(r"(?:Uncaught )?(?P<e>\w*(?:Error|Exception)(?: \[\w+\])?(?:: .{0,1000}|$))")
_NODE_AT = re.compile(r"(?:/|file://|node:|[A-Za-z]:\\)\S{1,400}:\d+$")
_RUST = re.compile(r"thread '[^']{0,200}'(?: \(\d+\))? panicked at ")
_GO = re.compile(r"(?:panic|fatal error|unexpected fault address|runtime error): ?")
_GO_FRAME = re.compile(r"[\w./*()\[\]{}$·-]{1,400}\(.{0,1000}\)$|main\.main\(|panic\(|goroutine \d+ ")
_DOTNET = re.compile(r"Unhandled [Ee]xception[.:] (?P<e>.{0,1000})")
_FRAME = re.compile(r"\s+(?:at |File \"|\.\.\. \d+ (?:more|common)|Caused by|Suppressed|\d+: |---|\||\^|~)")
_CAUSE = re.compile(r"\s*(?:Caused by|Suppressed): (?P<e>.{0,1000})")
_DOTNET_CAUSE = re.compile(r"\s+---> (?P<e>.{0,1000})")
_CHAINS: Final = (
    "Caused by: ", "Suppressed: ", "During handling of the above", "The above exception was", "goroutine ", "[signal ",
    "created by ", "exit status ", "note: run with", "note: Some details", "stack backtrace:", "Node.js v",
    "--- End of", "... ", "rax ", "runtime.",
)  # fmt: skip
_CLASS = re.compile(r"([\w$.]*[\w$])")


def opens(text: str) -> str:
    """The kind of trace that this message opens, or ""."""
    if _PY_START in text:
        return "python"
    first = text[:1]
    if first in "pfur" and _GO.match(text):
        return "go"
    if first == "t" and _RUST.match(text):
        return "rust"
    if first == "U" and _DOTNET.match(text):
        return "dotnet"
    if "panic" in text and " serving " in text:
        return "go"
    if ("Error" in text or "Exception" in text or "Throwable" in text) and first.isalpha():
        if _JAVA.match(text):
            return "java"
        if _NODE.match(text):
            return "node"
    if first in "/fn" and _NODE_AT.match(text):
        return "node"
    return ""


class Trace:
    """What is known of the trace of one open event: its kind, its exception, and whether it may go on."""

    __slots__ = ("bad", "blanks", "exception", "headed", "kind", "lines", "said")

    def __init__(self, kind: str, headed: bool, bad: bool, message: str) -> None:
        self.kind = kind
        self.headed = headed  # the first line had a header, so lines indented under it are its own
        self.bad = bad  # error or worse: an exception that follows unindented is its cause
        self.exception = ""
        self.lines = 1
        self.blanks = 0  # empty lines seen since; they belong to the trace only if it goes on
        self.said = False  # python: the final line was seen
        if kind and kind != "python":
            self._remember(message)

    def takes(self, text: str) -> bool:
        """True, and remembered, when this line (not empty, without a header) belongs to the event."""
        if not self._belongs(text):
            return False
        self.lines += 1
        self.blanks = 0
        self._remember(text)
        return True

    def _belongs(self, text: str) -> bool:
        kind, first = self.kind, text[0]
        if first in " \t":
            return kind != "" or (self.headed and not self.blanks) or _FRAME.match(text) is not None
        if text.startswith(_CHAINS) and (kind or self.headed):
            return True
        if _PY_START in text:
            if kind == "python":
                return self.blanks > 0 or not self.said
            if kind == "" and self.headed and self.bad and not self.blanks:
                self.kind = "python"
                return True
            return False
        if kind == "go":
            return _GO_FRAME.match(text) is not None or _GO.match(text) is not None
        if self.blanks:
            return kind == "node" and not self.exception and _NODE.match(text) is not None
        if kind == "python":
            return not self.said
        if kind == "rust":
            return self.lines == 1
        if kind == "node":
            return text in ("}", "]", "})") or (not self.exception and self.lines < 8)
        if self.headed and self.bad and not self.kind:
            self.kind = "java" if _JAVA.match(text) else "node" if _NODE.match(text) else ""
            return self.kind != ""
        return False

    def _remember(self, text: str) -> None:
        kind = self.kind
        if kind == "python":
            if text[0] not in " \t|" and not text.startswith((_PY_START, "During handling", "The above exception")):
                self.exception, self.said = text[:1000], True
            elif _PY_START in text:
                self.said = False
        elif kind == "java":
            found = _CAUSE.match(text) or (_JAVA.match(text) if not self.exception else None)
            if found is not None and not text.startswith("Suppressed") and "Suppressed:" not in text[:40]:
                self.exception = found["e"]
        elif kind == "dotnet":
            found = _DOTNET_CAUSE.match(text) or _DOTNET.match(text)
            if found is not None:
                self.exception = found["e"]
        elif kind == "node":
            found = _NODE.match(text) if not self.exception else None
            if found is not None:
                self.exception = found["e"]
        elif kind == "go":
            found = _GO.match(text) if not self.exception else None
            if found is not None:
                self.exception = text[:1000]
        elif kind == "rust":
            if self.lines == 2 and text[0] not in " \t" and not text.startswith(("note:", "stack")):
                self.exception = text[:1000]
        elif self.headed and text[0] in " \t":  # indented under a header: .NET's console logger, logback
            found = _CAUSE.match(text) or _DOTNET_CAUSE.match(text) or _JAVA.match(text.lstrip()[:2000])
            if found is not None:
                self.kind, self.exception = "java", found["e"]


def exception_class(exception: str) -> str:
    """`ValueError` of "app.errors.ValueError: bad value"; "" when the text does not start with a name."""
    found = _CLASS.match(exception)
    if found is None or exception[found.end() : found.end() + 1] not in ("", ":", " "):
        return ""
    name = found[1].rsplit(".", 1)[-1]
    return name if name[:1].isupper() else ""

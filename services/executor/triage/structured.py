"""Reads JSON and logfmt lines: level, time, message, logger and stack trace from the names that loggers use."""

import re
from typing import Final

import msgspec

from shared.errors import UNREADABLE

JSON_CHARS_MAX: Final = 32_768

_LEVEL = ("level", "severity", "lvl", "log.level", "levelname", "loglevel", "log_level", "@l", "priority", "s")
_MESSAGE = ("message", "msg", "@message", "event", "text", "log", "short_message", "@mt", "body", "description")
_TIME = ("time", "ts", "timestamp", "@timestamp", "@t", "t", "datetime", "date", "asctime", "timeMillis")
_LOGGER = ("logger", "logger_name", "name", "component", "module", "caller", "c", "service")
_ERROR = ("error", "err", "exception", "exc_info", "error.message", "reason")
_STACK = ("stack_trace", "stack", "stacktrace", "exception", "exc_info", "traceback", "error.stack_trace", "@x")
_LOGFMT = re.compile(r"(?<![\w.\-])([A-Za-z_@][\w.\-/@]{0,60}+)=(\"(?:[^\"\\]|\\.)*+\"|[^\s\"]*+)")
_LOGFMT_SURE = re.compile(r"(?:^|\s)(?:level|lvl|severity|msg|message)=")


class Fields(msgspec.Struct, frozen=True):
    """What a structured line says of itself; "" or None for what it does not say."""

    message: str
    level: object = None
    time: str = ""
    kind: str = ""
    logger: str = ""
    stack: str = ""


def parse_json(text: str) -> Fields | None:
    """The fields of a JSON object; None for anything else, however odd (deep, cut, not an object)."""
    if len(text) > JSON_CHARS_MAX:
        return None
    try:
        value = msgspec.json.decode(text)
    except UNREADABLE:
        return None
    if not isinstance(value, dict):
        return None
    inner = value.get("log")
    nested = inner if isinstance(inner, dict) else {}
    attr = value.get("attr")
    message = _text(value, _MESSAGE)
    error = _error(value)
    if message is None:
        message = error if error is not None else _flat(value)
    elif error is not None and error not in message:
        message = f"{message}: {error}"
    if isinstance(attr, dict) and isinstance(attr.get("error"), str):
        message = f"{message}: {attr['error']}"
    level = next((value[k] for k in _LEVEL if k in value), nested.get("level"))
    if level is None and isinstance(value.get("status"), int) and value["status"] >= 500:
        level = "error"
    time, kind = _time(value)
    stack = _text(value, _STACK) or ""
    return Fields(message, level, time, kind, _text(value, _LOGGER) or "", stack if "\n" in stack else "")


def may_be_logfmt(text: str) -> bool:
    """Whether the line has one of the pairs by which `level=… msg="…"` is known."""
    return _LOGFMT_SURE.search(text, 0, 400) is not None


def parse_logfmt(text: str) -> Fields | None:
    """The fields of what `may_be_logfmt`; None when it is none."""
    pairs: dict[str, str] = {}
    for match in _LOGFMT.finditer(text, 0, JSON_CHARS_MAX):
        value = match[2]
        if value[:1] == '"':
            value = value[1:-1].replace('\\"', '"').replace("\\n", "\n")
        pairs.setdefault(match[1], value)
    if len(pairs) < 2:
        return None
    message = next((pairs[k] for k in _MESSAGE if pairs.get(k)), None)
    error = next((pairs[k] for k in _ERROR if pairs.get(k)), None)
    if message is None:
        message = error if error is not None else text
    elif error is not None and error not in ("null", "nil", "none", "") and error not in message:
        message = f"{message}: {error}"
    level = next((pairs[k] for k in _LEVEL if k in pairs), None)
    time = next((pairs[k] for k in _TIME if k in pairs), "")
    logger = next((pairs[k] for k in _LOGGER if k in pairs), "")
    kind = ("epoch" if time[:1] == "1" and time.replace(".", "").isdigit() else "iso") if time else ""
    return Fields(message, level, time, kind, logger)


def _text(value: dict[str, object], names: tuple[str, ...]) -> str | None:
    for name in names:
        found = value.get(name)
        if isinstance(found, str) and found:
            return found
    return None


def _error(value: dict[str, object]) -> str | None:
    for name in _ERROR:
        found = value.get(name)
        if isinstance(found, dict):
            found = found.get("message") or found.get("msg") or found.get("type")
        if isinstance(found, str) and found:
            return found.strip().rsplit("\n", 1)[-1] if "Traceback" in found else found.split("\n", 1)[0]
    return None


def _flat(value: dict[str, object]) -> str:
    """An object without a message, as `key=value` in its own order: still one statement of one program."""
    return " ".join(f"{k}={v if isinstance(v, str | int | float) else type(v).__name__}" for k, v in value.items())


def _time(value: dict[str, object]) -> tuple[str, str]:
    for name in _TIME:
        found = value.get(name)
        if isinstance(found, dict):
            found = found.get("$date")
        if isinstance(found, str) and found:
            return found, "iso"
        if isinstance(found, int | float) and not isinstance(found, bool) and 1e9 < found < 4e18:
            seconds = (
                found if found < 1e11 else found / 1e3 if found < 1e14 else found / 1e6 if found < 1e17 else found / 1e9
            )
            return f"{seconds:.3f}", "epoch"
    return "", ""

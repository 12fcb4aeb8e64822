"""Turns a message into its shape: what varies from line to line becomes `<*>`.

Theory of operation. All digits are first made one digit, so that lines which differ only in numbers of the same
width are the same string and the shape comes from a dictionary; every rule below therefore sees digits as one class
and may not tell 1 from 7. On a miss the message is cut at spaces and each word is masked alone (again through a
dictionary). Names that carry digits keep their telling front: `attempt_14_0020_m_01` becomes `attempt_<*>`.
"""

import re
from typing import Final

WILDCARD: Final = "<*>"
TOKENS_MAX: Final = 64  # words after the 64th do not tell templates apart; they become one trailing wildcard
TOKEN_CHARS_MAX: Final = 200

_DIGITS_AS_ONE: Final = bytes.maketrans(b"123456789", b"000000000")

_MON = r"(?:Jan|Feb|Mar|Apr|May|Jun|Jul|Aug|Sep|Oct|Nov|Dec)"
# What spans several words: dates inside the message, and amounts with their unit and restatement
# ("2842 bytes (2.77 KB)").
_SPANS = re.compile(
    rf"(?:(?:Mon|Tue|Wed|Thu|Fri|Sat|Sun),? )?{_MON} +0{{1,2}},? 00:00:00(?: 0000)?"
    r"|0000-00-00[T ]00:00:00(?:[.,]0+)?(?:Z| ?[+-]00:?00)?"
)
# The first 0 of a number, or a < before it; written so that the search skips what is neither.
_FIRST: Final = r"(?:0(?<![\w.<]0)|<0(?<![\w.<]<0))[0.,]*+ ?"
_AMOUNT = re.compile(_FIRST + r"(?P<unit>bytes|[KMGT]i?B|B)(?: \(0[0.,]* ?[KMGT]?i?B\))?(?=[\s,;.)\]]|$)")
_DURATION = re.compile(_FIRST + r"(?i:m(?:s|secs?|illiseconds?)|s(?:ecs?|econds?)|[uµn]s)(?=[\s,;.)\]]|$)")
_USER = re.compile(
    r"\b(?P<cue>user|username|account) (?P<name>(?!unknown\b|from\b|by\b|is\b|not\b|<)[\w.@-]+)(?= |$)", re.I
)
_EMPTY = re.compile(r"(?<= )(\(\)|\[\]|\"\"|'')(?= |$)")

_URL = re.compile(r"[a-z][a-z0-9+.-]{1,15}://\S+", re.I)
_EDGE = re.compile(r"^([\"'(\[{<]*)(.*?)([\"')\]}>.,;:!?]*)$", re.S)
_IPV4 = re.compile(r"/?0{1,3}\.0{1,3}\.0{1,3}\.0{1,3}(?::0+)?(?:/0+)?")
_NUMBER = re.compile(r"[-+#~]?0(?:[0.,:/xX+-]*0)?(?:%|[a-zA-Zµ]{1,3})?")
_HEX = re.compile(r"(?:0[xX][0-9a-fA-F]+|(?=[a-fA-F]*0)[0-9a-fA-F]{6,}|[0-9a-fA-F]{16,})L?")
_UUID = re.compile(r"[0-9a-fA-F]{8}-(?:[0-9a-fA-F]{4}-){3}[0-9a-fA-F]{12}")
_PATH = re.compile(r"(?:~|\.{1,2})?/[\w.@%+~:$*-]*(?:/[\w.@%+~:$=&?,*-]*)+|/[\w.@+-]{2,}|[A-Za-z]:\\\S+|\\\\\S+")
_HOST = re.compile(
    r"(?:[a-z0-9][a-z0-9_-]*\.){2,}[a-z]{2,}(?::0+)?|(?:[a-z0-9][a-z0-9-]*\.)+[a-z]{2,}:0+"
    r"|(?=[^0]*0)(?:[A-Za-z0-9][A-Za-z0-9_-]*\.){2,}[a-z]{2,}(?::0+)?"
)
_COLONS = re.compile(
    r"(?:[0-9a-fA-F]{2}[:-]){5,7}[0-9a-fA-F]{2}"
    r"|(?=[^:]*:[^:]*:)(?=\D*0|.*::)[0-9a-fA-F:]{3,39}(?:%\w+)?"
)
_EMAIL = re.compile(r"[\w.+-]+@[\w-]+(?:\.[\w-]+)+")
_KEYED = re.compile(r"([A-Za-z_][\w.\-\[\]/]*)(=|:)(.+)", re.S)
_DIGIT_TAIL = re.compile(r"([A-Za-z][A-Za-z_.$-]*?)(0[\w.:$-]*)")
_DIGIT_RUN = re.compile(r"-?0[0.,:x]*(?:[a-f0]*0[a-f0]*)?")
_JOIN = re.compile(r"<\*>(?:[.,:/_#@x-]*<\*>)+")


def normal_bytes(text: str) -> bytes:
    """The text with every digit as 0, in UTF-8."""
    # As bytes: a tenth of what `str.translate` takes, and no digit is a part of another character in UTF-8.
    try:
        return text.encode().translate(_DIGITS_AS_ONE)
    except UnicodeEncodeError:
        return text.encode("utf-8", "surrogatepass").translate(_DIGITS_AS_ONE)


def digits_as_one(text: str) -> str:
    """The text with every digit as 0."""
    return normal_bytes(text).decode("utf-8", "surrogatepass")


def shape_of(normal: str, words: dict[str, str]) -> str:
    """The shape of a digit-normalised message; `words` is the caller's bounded dictionary of masked words."""
    if "0" in normal:
        if "00:00:00" in normal:
            normal = _SPANS.sub(WILDCARD, normal)
        if "B" in normal or "bytes" in normal:
            normal = _AMOUNT.sub(_amount, normal)
        normal = _DURATION.sub(WILDCARD, normal)
    if "ser" in normal or "ccount" in normal:
        normal = _USER.sub(r"\g<cue> <*>", normal)
    if "(" in normal or "[" in normal or "'" in normal or '"' in normal:
        normal = _EMPTY.sub(_filled, normal)
    tokens = normal.split()
    cut = len(tokens) > TOKENS_MAX
    out: list[str] = []
    for token in tokens[:TOKENS_MAX]:
        if not token.isalpha():
            masked = words.get(token)
            if masked is None:
                masked = mask_token(token)
                if len(words) < 20_000:
                    words[token] = masked
            token = masked
            if out and out[-1] == token and WILDCARD in token:
                continue  # a list of ids is one parameter, however long
        out.append(token)
    if cut:
        out.append(WILDCARD)
    return " ".join(out)


def _amount(match: re.Match[str]) -> str:
    return f"{WILDCARD} bytes" if match["unit"] == "bytes" else WILDCARD


def _filled(match: re.Match[str]) -> str:
    return f"{match[1][0]}{WILDCARD}{match[1][1]}"


def mask_token(token: str) -> str:
    """One word (digits already all 0) with its variable part as `<*>`."""
    if len(token) > TOKEN_CHARS_MAX:
        return WILDCARD
    if _URL.fullmatch(token):
        return WILDCARD
    edge = _EDGE.match(token)
    if edge is None or not edge[2]:
        return token
    front, core, back = edge.groups()
    return front + _core(core, 0) + back


def _core(core: str, depth: int) -> str:
    if core == WILDCARD or core.isalpha():
        return core
    if _whole(core):
        return WILDCARD
    keyed = _KEYED.fullmatch(core)
    if keyed is not None and depth < 3 and not keyed[3].startswith(("/", ":")) | (keyed[2] == ":" and "=" in keyed[3]):
        key, sign, value = keyed.groups()
        if not (sign == ":" and "0" in key):
            return f"{_core(key, 3) if '0' in key else key}{sign}{_parts(value, depth + 1)}"
    return _parts(core, depth)


def _parts(core: str, depth: int) -> str:
    if _whole(core):
        return WILDCARD
    for sign in (",", ";", "=", "(", ")", "[", "]", "|", "{", "}", '"', "'", "<", ">", "@", "#"):
        if sign in core and depth < 6:
            return _JOIN.sub(WILDCARD, sign.join(_core(p, depth + 1) if p else p for p in core.split(sign)))
    if "/" in core and "0" in core:
        return _JOIN.sub(WILDCARD, "/".join(_core(p, 3) if p else p for p in core.split("/")))
    if "0" not in core:
        return core
    tail = _DIGIT_TAIL.fullmatch(core)
    if tail is not None:
        front = tail[1][:-1] if tail[1].endswith("_-") else tail[1]  # a negative id is an id: blk_-12, blk_12
        return f"{front}{WILDCARD}"
    return _JOIN.sub(WILDCARD, _DIGIT_RUN.sub(WILDCARD, core))


def _whole(core: str) -> bool:
    return bool(
        _NUMBER.fullmatch(core)
        or _HEX.fullmatch(core)
        or _IPV4.fullmatch(core)
        or _HOST.fullmatch(core)
        or _PATH.fullmatch(core)
        or _UUID.fullmatch(core)
        or _COLONS.fullmatch(core)
        or _URL.fullmatch(core)
        or _EMAIL.fullmatch(core)
    )

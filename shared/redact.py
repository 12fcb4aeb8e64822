"""Takes secrets out of text before it leaves the process that read it.

Theory of operation. Three nets, in this order. (1) Whole shapes that are secrets wherever they stand: PEM blocks,
URLs with userinfo, tokens with a known front (AWS, GitHub, Slack, …), JWTs. (2) `Authorization`, `Bearer`, `Cookie`.
(3) A value after a telling name: `password=…`, `"api_key": "…"`, `--token …`, `<secret>…</secret>`, also where the
quotes are escaped because JSON was put into JSON. A name tells by its words, not by its letters: "monkey" holds no
"key", `max_tokens=4096` is a number. A value is taken whole, up to the quote that opened it or to the next space, so
that no part of it is shown; taking a little more than the secret is the right error.

Every pattern runs in linear time (possessive repetition, no nested quantifier), because log lines are hostile.
Redacting twice gives the same text.
"""

import re
from collections.abc import Callable
from functools import lru_cache
from itertools import groupby
from typing import Final

_DONE: Final = "[redacted:"


def _say(kind: str) -> str:
    return f"{_DONE}{kind}]"


_PEM_BEGIN: Final = "-----BEGIN "
_PEM_END = re.compile(r"-----END [A-Z0-9 ]{1,40}-----")

# `user:pa/ss@host` is not a valid URL but is what people write: with a colon, everything up to the last @ goes,
# unless what follows the colon is a port.
_URL_USER = re.compile(
    r"(?<=://)(?!\[redacted:)"
    r"(?:[^\s\"'<>:/@]*+:(?!\d{1,5}[/?#])[^\s\"'<>]{1,2048}(?=@)|[^\s\"'<>/?#@]{1,2048}+(?=@))"
)

_SHAPES: Final[tuple[tuple[str, re.Pattern[str]], ...]] = (
    ("aws-key", re.compile(r"(?<![A-Za-z0-9])(?:AKIA|ASIA|AGPA|AIDA|AROA|AIPA|ANPA|ANVA|ABIA|ACCA)[A-Z0-9]{12,}+")),
    ("github-token", re.compile(r"gh[pousr]_[A-Za-z0-9]{10,}+|github_pat_\w{10,}+")),
    ("gitlab-token", re.compile(r"gl(?:pat|dt|rt|cbt|ptt|ft|soat)-[\w.-]{10,}+")),
    ("slack-token", re.compile(r"xox[abdeoprs](?:\.xox[a-z])?-[\w.-]{6,}+|xapp-[\w-]{6,}+")),
    ("slack-webhook", re.compile(r"(?<=hooks\.slack\.com/)(?:services|workflows)/[\w/-]{6,}+")),
    ("google-key", re.compile(r"AIza[\w-]{20,}+|ya29\.[\w.-]{10,}+|GOCSPX-[\w-]{10,}+")),
    ("stripe-key", re.compile(r"(?<![A-Za-z0-9])[sr]k_(?:live|test)_\w{8,}+|whsec_\w{8,}+")),
    ("api-key", re.compile(r"(?<![A-Za-z0-9])sk-(?:ant-|proj-|or-)?[\w-]{16,}+")),
    ("sendgrid-key", re.compile(r"(?<![A-Za-z0-9])SG\.[\w-]{12,}\.[\w-]{12,}+")),
    ("registry-token", re.compile(r"npm_[A-Za-z0-9]{20,}+|pypi-[\w-]{20,}+|dckr_pat_[\w-]{10,}+|hf_[A-Za-z0-9]{20,}+")),
    ("vault-token", re.compile(r"hv[sbr]\.[\w-]{16,}+|dop_v1_[a-f0-9]{16,}+")),
    ("telegram-token", re.compile(r"(?<!\d)\d{8,10}:AA[\w-]{30,}+")),
    ("nkey-seed", re.compile(r"(?<![A-Za-z0-9])S[UAONXC][A-Z2-7]{40,}+")),
    ("jwt", re.compile(r"eyJ[\w-]{6,}+(?:\.[\w-]*+){1,4}")),
)

# Most text holds no secret, and a search for what each of them begins with says so ten times faster than the patterns.
_FRONTS: Final = (
    "AKIA", "ASIA", "AGPA", "AIDA", "AROA", "AIPA", "ANPA", "ANVA", "ABIA", "ACCA",
    "ghp_", "gho_", "ghu_", "ghs_", "ghr_",
    "github_pat_", "glpat-", "gldt-", "glrt-", "glcbt-", "glptt-", "glft-", "glsoat-", "xox", "xapp-", "hooks.slack",
    "AIza", "ya29", "GOCSPX-", "k_live_", "k_test_", "whsec_", "sk-", "SG.", "npm_", "pypi-", "dckr_pat_", "hf_",
    "hvs.", "hvb.", "hvr.", "dop_v1_", ":AA", "SU", "SA", "SO", "SN", "SX", "SC", "eyJ",
)  # fmt: skip
# By their first letters, so that at most places one look is enough: half of what a search for each of them takes.
_front = re.compile(
    "|".join(
        f"{re.escape(first)}(?:{'|'.join(re.escape(front[1:]) for front in fronts)})"
        for first, fronts in groupby(sorted(_FRONTS), key=lambda front: front[0])
    )
).search
# Every name that tells, and every word of the patterns below, holds one of these (a test says so).
_STEMS: Final = (
    "pass", "pw", "secret", "cred", "token", "jwt", "key", "auth", "cookie", "sess", "sig", "otp", "bearer", "hash",
    "digest", "nonce", "salt", "seed", "code", "verif", "basic", "identified",
)  # fmt: skip

_AUTHORIZATION = re.compile(
    r"(?i)(?<![A-Za-z0-9])((?:proxy[-_])?authorization\\*+[\"']?+\s{0,8}+[:=]\s{0,8}+\\*+[\"']?+)(?!\[redacted:)"
    r"((?:digest|aws4-hmac-sha256|hawk|oauth|signature)\s[^\r\n]++"
    r"|(?:(?:basic|bearer|token|negotiate|ntlm|apikey|api-key)\s{1,4}+)?[^\s\"'\\]++)"
)
_BEARER = re.compile(
    r"(?i)(?<![A-Za-z0-9])(bearer\s{1,8}+\\*+[\"']?+)(?!\[redacted:|(?:auth\w*|tokens?|scheme|realm|format|error)\b)"
    r"([A-Za-z0-9._~+/=-]{4,}+)"
)
_BASIC = re.compile(
    r"(?i)(?<![A-Za-z0-9])(basic\s{1,4}+)((?=[a-z+/]*[A-Z0-9=])(?-i:(?=[a-z+/]*[A-Z0-9]))[A-Za-z0-9+/]{8,}+={0,2})"
)
_COOKIE = re.compile(
    r"(?i)(?<![\w-])((?:set-)?cookie\\*+[\"']?+\s{0,8}+[:=]\s{0,8}+\\*+[\"']?+)(?!\[redacted:)([^\r\n\"'\\]++)"
)

_NAMED = re.compile(
    r"(?<![\w.\-])(?<!\[redacted:)(?P<name>[\w.\-]++)(?P<close>\\*+(?:[\"']|%22)|\]|)\s{0,4}(?:=>|:=|==|=|:|%3[AaDd])\s{0,4}"
)
_QUOTE = re.compile(r"\\*+(?:[\"'`]|%22)")
# A quote inside a bare value ends it only where a value can end; a backslash, only before a quote (nested JSON).
_BARE = re.compile(r"(?:[^\s\"'`\\]|\\(?![\\\"'])|[\"'`](?=\w))++")
_BARE_JSON = re.compile(r"[^\s\"',}\]\\]++")
_BARE_ENCODED = re.compile(r"[^\s\"'&%]++(?:%(?!2[26])[^\s\"'&%]*+)*+")
_FLAG = re.compile(
    r"(?<![\w-])--?(?P<name>[A-Za-z][\w-]*+)[ \t]{1,4}+(?![-\[])(?P<value>[^\s\"']++|\"[^\"]*+\"?|'[^']*+'?)"
)
_TAG = re.compile(r"<(?P<name>[\w.:\-]++)(?:\s[^<>]{0,200})?>(?P<value>[^<]++)")
_SPOKEN = re.compile(
    r"(?i)(?<![A-Za-z0-9])((?:pass(?:word|wd|phrase)|secret|identified\s{1,3}by)(?:\s{1,3}is)?\s{1,3})"
    r"(?:\"(?!\[redacted:)[^\"]{1,512}+\"|'(?!\[redacted:)[^']{1,512}+')"
)

_WORDS = re.compile(r"[A-Z]+(?=[A-Z][a-z])|[A-Z]?[a-z]+|[A-Z]+")
_SECRET_WORDS: Final = {
    "password": "password", "passwords": "password", "passwd": "password", "passphrase": "password",
    "passcode": "password",
    "pwd": "password", "pass": "password", "pw": "password", "mypassword": "password",
    "secret": "secret", "secrets": "secret", "credential": "secret", "credentials": "secret", "creds": "secret",
    "token": "token", "tokens": "token", "jwt": "token", "authtoken": "token", "accesstoken": "token",
    "apikey": "key", "privatekey": "key", "secretkey": "key", "accesskey": "key", "authkey": "key",
    "authorization": "authorization", "cookie": "cookie", "cookies": "cookie",
    "sessionid": "session", "sessid": "session", "phpsessid": "session", "jsessionid": "session",
    "sig": "signature", "otp": "password", "bearer": "token",
}  # fmt: skip
_GLUED: Final = ("password", "passwd", "passphrase", "secret", "apikey", "secretkey", "accesskey", "token")
_KEY_FRONTS: Final = frozenset(
    "api access secret private signing sign encryption encrypt auth account storage client master shared service "
    "app application aws gcp azure stripe license deploy ssh gpg pgp hmac webhook host admin".split()
)
# `password_hash`, `token_value`: still the secret. `password_changed`, `token_count`: not.
_SECRET_TAILS: Final = frozenset(
    "hash value base64 b64 text plain plaintext raw str string data md5 sha bcrypt enc".split()
)
_LONG_SECRET = re.compile(r"[A-Za-z0-9+/=_-]{24,}")
_TELLING: Final = frozenset("key keys signature hash digest session nonce salt seed auth code verifier".split())
_NO_VALUE: Final = frozenset("null none nil true false undefined empty yes no on off *** ***** ******** <*> -".split())
# Prose after a colon: "token: expired". Never granted to passwords.
_PROSE_VALUE: Final = frozenset(
    "invalid missing expired required not is was the a an unexpected expected unknown rejected refused found failed "
    "bad wrong malformed cannot could unable no has must should for from does illegal revoked".split()
)


def redact(text: str) -> str:
    """The text with every secret that is recognised replaced by `[redacted:KIND]`."""
    if len(text) < 6:
        return text
    if _PEM_BEGIN in text:
        text = _pem(text)
    if "://" in text and "@" in text:
        text = _URL_USER.sub(_say("url-credentials"), text)
    if _front(text):
        for kind, pattern in _SHAPES:
            text = pattern.sub(_say(kind), text)
    lower = text.lower()
    for stem in _STEMS:
        if stem in lower:
            return _told(text, lower)
    return text


def _told(text: str, lower: str) -> str:
    """The second and third net: what words tell."""
    if "authorization" in lower:
        text = _AUTHORIZATION.sub(_keep_front("authorization"), text)
    if "bearer" in lower:
        text = _BEARER.sub(_keep_front("token"), text)
    if "basic" in lower:
        text = _BASIC.sub(_keep_front("authorization"), text)
    if "cookie" in lower:
        text = _COOKIE.sub(_keep_front("cookie"), text)
    if "=" in text or ":" in text or "%3" in text:
        text = _named(text)
    if "-" in text:
        text = _FLAG.sub(_flag, text)
    if "</" in text:
        text = _TAG.sub(_tag, text)
    return _SPOKEN.sub(_keep_front("password"), text)


def _keep_front(kind: str) -> Callable[[re.Match[str]], str]:
    def put(match: re.Match[str]) -> str:
        return match[1] + _say(kind)

    return put


def _pem(text: str) -> str:
    out: list[str] = []
    at = 0
    while (start := text.find(_PEM_BEGIN, at)) >= 0:
        out.append(text[at:start])
        out.append(_say("pem"))
        end = _PEM_END.search(text, start)
        if end is None:  # cut off: the rest of the text is the block
            return "".join(out)
        at = end.end()
    out.append(text[at:])
    return "".join(out)


def secret_kind(name: str) -> str | None:
    """What a name says about its value: "password", "token", …, "telling" (secret if long), or None."""
    return _kind_of(name[-120:])


@lru_cache(maxsize=4096)  # a log names the same things again and again
def _kind_of(name: str) -> str | None:
    words = [w.lower() for w in _WORDS.findall(name)]
    if not words:
        return None
    while len(words) > 1 and words[-1] in _SECRET_TAILS:
        words.pop()
    last = words[-1]
    kind = _SECRET_WORDS.get(last)
    if kind is not None:
        return kind
    for glued in _GLUED:  # PGPASSWORD, clientsecret: words that nobody set apart
        if last.endswith(glued):
            return _SECRET_WORDS[glued]
    if last in ("key", "keys", "id") and len(words) > 1:
        if last == "id":
            return "session" if words[-2] == "session" else None
        if words[-2] in _KEY_FRONTS:
            return "key"
    if len(words) > 1 and last == "code" and words[-2] in ("pass", "auth"):
        return "password"
    return "telling" if last in _TELLING else None


def _named(text: str) -> str:
    out: list[str] = []
    copied = at = 0
    while (match := _NAMED.search(text, at)) is not None:
        at = match.end()
        kind = secret_kind(match["name"])
        if kind is None:
            continue
        start, end = _value(text, at, match)
        value = text[start:end]
        if _is_secret(kind, value, text[match.end("close") : at], start > at):
            out += (text[copied:start], _say("secret" if kind == "telling" else kind))
            copied = at = end
    out.append(text[copied:])
    return "".join(out)


def _value(text: str, at: int, match: re.Match[str]) -> tuple[int, int]:
    quote = _QUOTE.match(text, at)
    if quote is not None:
        start = quote.end()
        end = _closing(text, start, quote[0])
        return start, end
    if at < len(text) and text[at] in "[{" and not text.startswith(_DONE, at):
        return at, _bracket_end(text, at)
    if match["close"] == "%22" or "%3" in match[0][-5:]:
        bare = _BARE_ENCODED.match(text, at)
    elif match["close"].strip("\\") in ("'", '"'):
        bare = _BARE_JSON.match(text, at)
    else:
        bare = _BARE.match(text, at)
    return at, bare.end() if bare is not None else at


def _closing(text: str, start: int, quote: str) -> int:
    """Where the quote that opened closes; a quote with more backslashes before it belongs to the value."""
    at = start
    while (found := text.find(quote, at)) >= 0:
        slashes = found
        while slashes > start and text[slashes - 1] == "\\":
            slashes -= 1
        if (found - slashes) % 2 == 0 or quote[0] == "\\":
            return found
        at = found + len(quote)
    return len(text)


def _bracket_end(text: str, at: int) -> int:
    depth = 0
    for i in range(at, min(len(text), at + 20_000)):
        char = text[i]
        if char in "[{":
            depth += 1
        elif char in "]}":
            depth -= 1
            if depth == 0:
                return i + 1
    return len(text)


def _is_secret(kind: str, value: str, sign: str, quoted: bool) -> bool:
    if not value or value.startswith(_DONE):
        return False
    plain = value.rstrip(",;.)").lower()
    if plain in _NO_VALUE or not plain:
        return False
    if kind == "telling":
        return _LONG_SECRET.match(value) is not None and any(c.isdigit() for c in value)
    if kind == "token" and plain.isdigit() and len(plain) < 9:
        return False  # a count: `tokens=123`
    return not (kind != "password" and not quoted and sign.endswith(" ") and plain in _PROSE_VALUE)


def _flag(match: re.Match[str]) -> str:
    kind = secret_kind(match["name"])
    if kind is None or kind == "telling" or not _is_secret(kind, match["value"], "", True):
        return match[0]
    return match[0][: match.start("value") - match.start()] + _say(kind)


def _tag(match: re.Match[str]) -> str:
    kind = secret_kind(match["name"])
    if kind is None or kind == "telling" or not _is_secret(kind, match["value"].strip(), "", True):
        return match[0]
    return match[0][: match.start("value") - match.start()] + _say(kind)

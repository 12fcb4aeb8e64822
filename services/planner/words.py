"""Which keywords words name: whole words with simple inflection, case-folded.

The forms of each keyword are made once (log, logs, logged, logging) and looked up; the goal's words are never cut
down, so "terror" cannot become "error" nor "report" "port".
"""

import re
import unicodedata
from collections.abc import Iterable, Mapping

RULES_VERSION = "2"  # of this module and of `negation`

_TOKEN = re.compile(r"[^\W_]+(?:'[^\W_]+)*|[.,;:!?()\n]|--|—|–")
_VOWELS = frozenset("aeiou")
_DOUBLED = frozenset("bdgmnprt")  # map, mapping; log, logging; but not crash, exposeed

# What keyboards and phones put for an apostrophe; before NFKC, which makes a blank and an accent of U+00B4.
_APOSTROPHES = str.maketrans(dict.fromkeys("\u00b4\u0060\u2018\u2019\u02bc\u201b\u2032", "'"))
# A line that goes on in the next one, and the items of a list: a pause, no end.
_GOES_ON = re.compile(r"(?<=[,:])\s*\n|\n\s*[-*•]\s")


def forms(keyword: str) -> frozenset[str]:
    """The keyword and its simple inflections: plural, -ed, -ing, -er left out on purpose."""
    found = {keyword, keyword + "s", keyword + "'s"}
    last = keyword[-1]
    if keyword.endswith(("s", "sh", "ch", "x", "z")):
        found.add(keyword + "es")
    if last == "e":
        found |= {keyword + "d", keyword[:-1] + "ing"}
    elif last == "y" and len(keyword) > 1 and keyword[-2] not in _VOWELS:
        found |= {keyword[:-1] + "ies", keyword[:-1] + "ied", keyword + "ing"}
    else:
        found |= {keyword + "ed", keyword + "ing"}
        if last in _DOUBLED and len(keyword) > 2 and keyword[-2] in _VOWELS and keyword[-3] not in _VOWELS:
            found |= {keyword + last + "ed", keyword + last + "ing"}
    if "yz" in keyword or "iz" in keyword:  # analyze, analyse; utilization, utilisation
        found |= {form.replace("yz", "ys").replace("iz", "is") for form in set(found)}
    return frozenset(found)


def split(text: str) -> list[str]:
    """The goal's words and marks, case-folded, in order."""
    plain = unicodedata.normalize("NFKC", text.translate(_APOSTROPHES)).casefold()
    return _TOKEN.findall(_GOES_ON.sub(" , ", plain))


def matches(words: Iterable[str], keywords: Mapping[str, frozenset[str]]) -> dict[str, str]:
    """Each keyword that a word is a form of, with the first such word, in the goal's order."""
    found: dict[str, str] = {}
    for word in words:
        for keyword, its_forms in keywords.items():
            if keyword not in found and word in its_forms:
                found[keyword] = word
    return found

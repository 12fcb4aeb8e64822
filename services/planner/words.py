"""Which keywords a goal's words name: whole words with simple inflection, case-folded, negated ones left out.

The forms of each keyword are made once (log, logs, logged, logging) and looked up; the goal's words are never cut
down, so "terror" cannot become "error" nor "report" "port".

Negation. "do not touch the GPUs", "without service map", "skip the logs": a negating word silences what follows it
up to the end of its clause: a mark of punctuation, "but", or "and" before a verb of asking ("without the GPUs and
check the logs"). "no" reaches less far, up to the next preposition: "no errors in the logs" still names the logs.
"not only" negates nothing, nor does a negated negation ("don't forget the GPUs", "never skip the logs"). "instead
of" and "rather than" negate what follows; what is excluded *from* something leaves that something named.
"""

import re
import unicodedata
from collections.abc import Iterable, Mapping

RULES_VERSION = "1"

_TOKEN = re.compile(r"[^\W_]+(?:'[^\W_]+)*|[.,;:!?()\n]|--|—|–")
_VOWELS = frozenset("aeiou")
_DOUBLED = frozenset("bdgmnprt")  # map, mapping; log, logging; but not crash, exposeed

_CLAUSE_ENDS = frozenset((".", ",", ";", ":", "!", "?", "(", ")", "\n", "--", "—", "–"))
_TURNS = frozenset(("but", "instead", "then", "however", "rather", "just", "only"))
_NEGATORS = frozenset(
    ("not", "never", "without", "except", "excluding", "exclude", "skip", "skipping", "omit", "omitting",
     "avoid", "avoiding", "ignore", "ignoring", "neither", "nor", "cannot", "dont", "wont", "leave")
)  # fmt: skip
# After a negator these ask for the thing: "do not forget the GPUs".
_DROPS = frozenset(("forget", "miss", "skip", "omit", "exclude", "ignore", "avoid", "leave", "neglect"))
# "exclude errors from the GPU report": what stands behind "from" is wanted.
_TAKES_FROM = frozenset(("exclude", "excluding", "omit", "omitting", "skip", "skipping", "leave"))
_PREPOSITIONS = frozenset(("in", "on", "of", "for", "from", "at", "with", "to", "by", "about", "across", "over"))
_JOINS = frozenset(("and", "plus", "&"))
_ASKS = frozenset(
    ("check", "report", "show", "run", "inspect", "list", "scan", "look", "find", "get", "tell", "give", "verify",
     "monitor", "test", "summarize", "summarise", "review", "do", "make", "draw", "describe", "analyze", "analyse",
     "triage", "map", "include", "print", "use", "explain", "read", "write", "collect", "measure", "please")
)  # fmt: skip


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
    return _TOKEN.findall(unicodedata.normalize("NFKC", text).casefold().replace("’", "'"))


def _is_negator(word: str) -> bool:
    return word in _NEGATORS or word.endswith("n't")


def affirmed(text: str) -> tuple[list[str], list[str]]:
    """The words that stand, and the words that a negation silences, each in order."""
    words = split(text)
    stand: list[str] = []
    silenced: list[str] = []
    reach = ""  # "" none, "clause" up to the clause's end, "phrase" up to the next preposition, "from" up to "from"
    for i, word in enumerate(words):
        before = words[i - 1] if i else ""
        following = words[i + 1] if i + 1 < len(words) else ""
        if word in _CLAUSE_ENDS or (word in _DROPS and _is_negator(before)):
            reach = ""
        elif following in ("of", "than") and word in ("instead", "rather"):
            reach = "clause"
        elif _is_negator(word):
            if following in ("only", "just"):
                continue  # "not only the logs"
            # "leave" negates as "leave the GPUs alone", "leave out the map"; not as "leave a report".
            if word != "leave" or following in ("out", "the", "my", "our", "all"):
                reach = "from" if word in _TAKES_FROM and reach != "clause" else "clause"
        elif word == "no":
            reach = "phrase"
        elif (
            (word in _TURNS and before != "not")
            or (reach == "phrase" and word in _PREPOSITIONS)
            or (reach == "from" and word == "from")
            or (word in _JOINS and following in _ASKS)
        ):
            reach = ""
        elif word not in _JOINS:
            (silenced if reach else stand).append(word)
    return stand, silenced


def matches(words: Iterable[str], keywords: Mapping[str, frozenset[str]]) -> dict[str, str]:
    """Each keyword that a word is a form of, with the first such word, in the goal's order."""
    found: dict[str, str] = {}
    for word in words:
        for keyword, its_forms in keywords.items():
            if keyword not in found and word in its_forms:
                found[keyword] = word
    return found

"""Which of a goal's words stand, and which of them a negation silences.

Running what was forbidden is worse than running too little, so that a negation reaches far, and what ends it is told.

Forward. A negating word ("not", "without", "skip") or pair ("hold off", "instead of") silences what follows up to the
end of its sentence. A comma, a colon, a dash or an item of a list ends it only before a word that asks ("check the
logs") or turns ("only", "just"), "and" only before one that asks; not where the asking goes on behind "or" ("don't
check the logs, read the GPUs or map the services"). "but" ends it anywhere, a bracket what was negated inside of it.
"no" ends at the next preposition, too ("no errors in the logs"), unless it denies a deed ("no checks on GPUs").
"exclude" and its like end at "from": that something stays named. "without" and its like, where they open a sentence,
end at the verb ("without the GPUs check the logs").

Backward. "GPUs: no", "GPUs are not needed", "GPUs excluded" silence what they are said of: back to the sentence's
start, or to a part that asks for something itself ("check the logs, GPUs are not needed").

No negation at all: "not only", a negated one ("don't forget", "never skip"), and what is asked about ("why can't",
"I don't know", "check that no").
"""

from services.planner.words import split

_ENDS = frozenset((".", ";", "!", "?", "\n"))
_PAUSES = frozenset((",", ":", "--", "—", "–", "(", ")"))
_MARKS = _ENDS | _PAUSES
_TURNS = frozenset(("but", "instead", "however", "rather", "just", "only"))
_JOINS = frozenset(("and", "plus", "then"))
_PREPOSITIONS = frozenset(("in", "on", "of", "for", "from", "at", "with", "to", "by", "about", "across", "over"))
_ARTICLES = frozenset(("the", "a", "an", "any", "all", "my", "our", "this", "these", "every", "each"))
_PRONOUNS = frozenset(("i", "we", "you"))
_AUXILIARIES = frozenset(
    ("do", "does", "did", "is", "are", "was", "were", "has", "have", "had", "must", "should", "would", "could", "can",
     "may", "shall", "will", "need", "ought", "be", "been")
)  # fmt: skip
_ASKS = frozenset(
    ("check", "report", "show", "run", "inspect", "list", "scan", "look", "find", "get", "tell", "give", "verify",
     "monitor", "test", "summarize", "summarise", "review", "do", "make", "draw", "describe", "analyze", "analyse",
     "triage", "map", "include", "print", "use", "explain", "read", "write", "collect", "measure", "want", "need")
)  # fmt: skip
# What may stand before the word that asks: "and please also check".
_LEADS = _PRONOUNS | _JOINS | {"please", "pls", "kindly", "also", "now", "so", "can", "could", "would", "let's", "us"}

_ADVERBIAL = frozenset(
    ("without", "except", "minus", "sans", "excluding", "skipping", "omitting", "avoiding", "ignoring")
)  # fmt: skip
_NEGATORS = _ADVERBIAL | {
    "not", "never", "exclude", "excl", "skip", "omit", "avoid", "ignore", "disregard", "forget", "neither", "nor",
    "none", "cannot", "donot", "leave", "leaving", "refrain",
}  # fmt: skip
_APOSTROPHE_LOST = frozenset(word + "nt" for word in _AUXILIARIES | {"ca", "wo", "sha"})  # dont, mustnt, cant
# Negators where a request begins; elsewhere a finding: "why do the containers stop?"
_CALLS_OFF = frozenset(("stop", "drop", "cancel", "cease", "disable", "spare"))
_ADVERBIAL_PAIRS = frozenset(
    (("instead", "of"), ("rather", "than"), ("other", "than"), ("apart", "from"), ("w", "o"), ("w", "out"))
)  # fmt: skip
_PAIRS = _ADVERBIAL_PAIRS | {
    ("hold", "off"), ("hands", "off"), ("keep", "off"), ("stay", "off"), ("away", "from"), ("clear", "of"),
    ("exception", "of"), ("don", "t"),
    ("all", "but"), ("everything", "but"), ("anything", "but"),
}  # fmt: skip
# After a negator these ask for the thing: "do not forget the GPUs".
_DROPS = frozenset(
    ("forget", "miss", "skip", "omit", "exclude", "ignore", "avoid", "leave", "neglect", "disregard", "forgetting",
     "missing", "skipping", "omitting", "excluding", "ignoring", "avoiding", "leaving")
)  # fmt: skip
# "exclude errors from the GPU report": what stands behind "from" is wanted.
_TAKES_FROM = frozenset(("exclude", "excluding", "omit", "omitting", "skip", "skipping", "leave", "leaving"))
_HANDED_OVER = frozenset(("a", "an", "me", "us"))  # "leave a report", unlike "leave the GPUs alone"
_DEEDS = (
    _ASKS | {word + "s" for word in _ASKS} | {"checking", "touching", "reason", "point", "interest", "work", "analysis"}
)
_NOTHING_OF = frozenset(("about", "on", "with", "of", "for", "to"))  # unlike "nothing in the logs"

_UNWANTED = frozenset(
    ("excluded", "skipped", "omitted", "ignored", "avoided", "disregarded", "forbidden", "prohibited", "banned",
     "disallowed", "unwanted", "unneeded", "unnecessary", "exempt", "untouched", "aside")
)  # fmt: skip
_WANTED = frozenset(("needed", "wanted", "required", "necessary", "relevant", "allowed", "permitted", "included"))
_DUTIES = frozenset(("must", "should", "shall", "need", "may", "to"))  # unlike "can": "cannot be reached" is a finding
# Where what is said of something begins at the latest.
_BEGINS = (
    _TURNS | _PRONOUNS | _WANTED | {"yes", "ok", "please", "with", "while", "because", "since", "if", "that", "which"}
)
_STARTS = _ENDS | _BEGINS
# Words that say nothing of what is negated: "the following are not needed: GPUs".
_HOLLOW = _AUXILIARIES | _PRONOUNS | _MARKS | _JOINS | {"the", "following", "these", "please", "to", "or", "it"}
_ANNOUNCE = frozenset(("following", "these", "this", "those", "things", "tasks", "steps"))
_STATES = frozenset(("know", "understand", "sure", "certain"))
_STATED = frozenset(("does", "did", "is", "are", "was", "were", "has"))
_SENSES = frozenset(("see", "find", "reach", "connect"))
_LOOKS = frozenset(("check", "verify", "confirm", "test", "tell", "show", "report"))
_QUESTIONS = frozenset(("why", "which", "how", "is", "are"))
_TOUCHED = frozenset(("touched", "used", "involved", "included", "disturbed", "affected", "checked", "run"))


def affirmed(text: str) -> tuple[list[str], list[str]]:
    """The words that stand, and the words that a negation silences, each in order."""
    words = split(text)
    silent: dict[int, bool] = {}  # by the place of each word that names something
    reach = ""  # "" none, "sentence", "phrase", "from", "word" (the next), "predicate" (what is said), "all" (a list)
    brackets: list[str] = []
    stands_since = 0  # the sentence's start
    opening = False  # whether the negation opens its sentence, so that a verb has to follow
    said_until = 0  # the last negation that was said of what stands before it
    aside = 0  # up to there commas and turns end nothing: "do not, however, touch"
    for i, word in enumerate(words):
        before = words[i - 1] if i else ""
        following = words[i + 1] if i + 1 < len(words) else ""
        if word in _ENDS:
            reach, opening, stands_since = "", False, i + 1
        elif word == ")" and brackets:
            reach = brackets.pop()
        elif word in _PAUSES:
            if word == "(":
                brackets.append(reach)
            if reach and word == ":" and (_negates(words, i - 1) or before in _ANNOUNCE):
                reach = "all"
            elif reach == "predicate" or (reach != "all" and i > aside and _starts_anew(words, i + 1)):
                reach = ""
        elif _is_denied(words, i):
            reach = ""
        elif (before, word) in _PAIRS and words[max(0, i - 2)] != "nothing":
            reach = "sentence"
            opening = (before, word) in _ADVERBIAL_PAIRS and _opens(words, stands_since, i - 1)
        elif _negates(words, i):
            if _is_asked_about(words, i) or (following in ("only", "just") and word not in _TAKES_FROM | _ADVERBIAL):
                continue  # "not only the logs"
            start = _subject(words, i, said_until) if _is_said_of_before(words, i) else i
            if not set(words[start:i]) <= _HOLLOW:
                said_until = i + 1
                silent.update((place, True) for place in range(start, i) if place in silent)
                reach = reach or "predicate"
                continue
            if following == "," and word != "no":
                aside = words.index(",", i + 2) if "," in words[i + 2 :] else i + 1
            opening = word in _ADVERBIAL and _opens(words, stands_since, i)
            reach = _reach(words, i, reach)
        elif _is_unwanted(words, i, following) and words[stands_since] not in _QUESTIONS:
            start = _subject(words, i, said_until)
            said_until = i + 1
            silent.update((place, True) for place in range(start, i) if place in silent)
            if set(words[start:i]) <= _HOLLOW and start == stands_since:
                reach = "all" if following == ":" else "sentence"  # "excluded: GPUs"
        elif reach == "phrase" and word in _DEEDS:
            reach = "sentence"
            silent[i] = True
        elif i > aside and _ends(words, i, reach, opening):
            reach, opening = "", False
            if word in _ASKS:
                silent[i] = False
        elif word not in _JOINS:
            silent[i] = bool(reach)
            reach = "" if reach == "word" else reach
    return [words[i] for i in silent if not silent[i]], [words[i] for i in silent if silent[i]]


def _negates(words: list[str], i: int) -> bool:
    word = words[i] if i >= 0 else ""
    if word in _CALLS_OFF:
        return i == 0 or words[i - 1] in _MARKS | _TURNS | _LEADS
    if word == "leave" or word == "leaving":
        return words[i + 1 : i + 2] != ["no"] and not set(words[i + 1 : i + 2]) & _HANDED_OVER
    if word == "nothing":
        return bool(set(words[i + 1 : i + 2]) & _NOTHING_OF)
    if word == "except" and words[max(0, i - 1)] == "nothing":
        return False
    return word in _NEGATORS or word in ("no", "non") or word in _APOSTROPHE_LOST or word.endswith("n't")


def _reach(words: list[str], i: int, reach: str) -> str:
    """How far the negator at this place reaches, within one that reaches already."""
    word = words[i]
    if reach in ("sentence", "all"):
        return reach
    if word == "non":
        return "word"
    if word == "no":
        return reach or ("sentence" if words[i + 1 : i + 2] and words[i + 1] in _DEEDS else "phrase")
    return "from" if word in _TAKES_FROM else "sentence"


def _is_denied(words: list[str], i: int) -> bool:
    """A dropping word that is negated itself: "don't forget", "must not be skipped"; but "why not skip"."""
    if words[i] in _DROPS:
        at = i - 2 if i > 1 and words[i - 2 : i] == ["not", "to"] else i - 1
        return at >= 0 and _negates(words, at) and words[max(0, at - 1)] != "why"
    return words[i] in _UNWANTED and any(_negates(words, j) for j in range(max(0, i - 2), i))


def _is_asked_about(words: list[str], i: int) -> bool:
    """A negation that is the very question: "why can't", "I don't know what", "check that no GPU is hot"."""
    word = words[i]
    before = words[i - 1] if i else ""
    if word == "no":
        if words[i + 1 : i + 2] in (["idea"], ["clue"]):
            return True
        told = i > 1 and before in ("that", "whether", "if") and words[i - 2] in _LOOKS
        return (told and not _TOUCHED & set(_part(words, i))) or words[max(0, i - 3) : i : 2] == ["why", "there"]
    if word != "not" and not word.endswith(("n't", "nt")) and word != "cannot":
        return False
    if before in ("why", "or") and (before == "why" or _breaks_off(words, i)):
        return True
    if word in ("cannot", "can't", "cant") and _SENSES & set(words[i + 1 : i + 2]):
        return True
    if _STATES & set(words[i + 1 : i + 3]) and not _MARKS & set(words[i + 1 : i + 3]):
        return True
    asked = words[max(0, i - 5) : i]
    question = asked[asked.index("why") + 1 :] if "why" in asked else []
    if not question or (_MARKS | _JOINS | _TURNS) & set(question):
        return False
    verb = before if word == "not" else word.removesuffix("nt").removesuffix("n't")
    # "why does nginx not answer", "why nginx doesn't answer"; a new "do not" is no part of the question.
    return verb in _STATED or (word == "not" and question[0] in _AUXILIARIES and verb not in ("do", "please"))


def _breaks_off(words: list[str], i: int) -> bool:
    rest = words[i + 1 : i + 2]
    return not rest or rest[0] in (_MARKS | _JOINS | {"but", "thanks", "please"}) - {":", "("}


def _is_said_of_before(words: list[str], i: int) -> bool:
    """Whether the negator denies what stands before it: "GPUs: no", "GPUs are not needed", "must not be touched"."""
    rest = words[i + 1 : i + 4]
    if _breaks_off(words, i):
        return True
    if rest[0] in _WANTED or rest[:2] == ["to", "be"]:
        return True
    if rest[0] == "be":
        duty = words[i - 1] in _DUTIES or words[i].startswith(("must", "should", "shan", "need"))
        return duty and not (_UNWANTED | {"left"}) & set(rest[1:2])
    return rest[0] in ("need", "have") and "be" in rest[1:3]


def _is_unwanted(words: list[str], i: int, following: str) -> bool:
    """Whether this ends a sentence that rules out what it began with: "GPUs excluded", "are left out", "off limits"."""
    if words[i] == "left":
        return following in ("out", "alone", "aside", "untouched")
    if (words[i], following) == ("off", "limits") or words[i : i + 3] == ["out", "of", "scope"]:
        return True
    said = i > 0 and words[i - 1] in _AUXILIARIES
    return words[i] in _UNWANTED and (said or not following or following in _MARKS | _JOINS | _TURNS)


def _subject(words: list[str], i: int, least: int) -> int:
    """Where that begins of which something is said at this place, at the least behind what was said so before."""
    start = i
    while start > least and words[start - 1] in (":", ",", "?", "please", "—", "–", "--"):
        start -= 1
    while start > least and words[start - 1] not in _STARTS:
        if words[start - 1] in _PAUSES | _JOINS:
            part = start - 1
            while part and words[part - 1] not in _MARKS | _JOINS:
                part -= 1
            if _asks(words, part):
                break
        start -= 1
    return start


def _part(words: list[str], i: int) -> list[str]:
    """The words from here to the next mark."""
    end = next((j for j in range(i, len(words)) if words[j] in _MARKS), len(words))
    return words[i:end]


def _asks(words: list[str], i: int) -> bool:
    """Whether somebody asks for something here: "please check the logs", not "the map" nor "a report of"."""
    while i < len(words) and words[i] in _LEADS:
        i += 1
    if i + 1 >= len(words) or words[i] not in _ASKS:
        return False
    return words[i + 1] not in _MARKS | _JOINS | {"of", "or", "nor"}


def _starts_anew(words: list[str], i: int) -> bool:
    """Whether what begins here is asked for, though a negation came before."""
    while i < len(words) and words[i] in _JOINS:
        i += 1
    part = _part(words, i)
    if not part or tuple(part[:2]) in _PAIRS:
        return False
    if part[0] in _TURNS or part[-1] in ("only", "instead", "yes"):
        return True
    if not _asks(words, i):
        return False
    for j in range(i, len(words)):
        if words[j] in _ENDS or words[j] in _TURNS:
            break
        if words[j] in ("or", "nor") and _asks(words, j + 1):
            return False  # one list, all of it negated
    return True


def _opens(words: list[str], start: int, i: int) -> bool:
    causes = {"having", "letting", "making", "asking"} & set(words[i + 1 : i + 3])
    return not causes and set(words[start:i]) <= _LEADS


def _ends(words: list[str], i: int, reach: str, opening: bool) -> bool:
    """Whether this word ends the negation, or would end one."""
    word = words[i]
    before = words[i - 1] if i else ""
    if word in _TURNS:
        return not (i and _negates(words, i - 1))
    if reach == "all":
        return False
    if word in _JOINS:
        return reach == "predicate" or _starts_anew(words, i + 1)
    if word in _PREPOSITIONS:
        return reach in ("phrase", "predicate") or (reach == "from" and word == "from")
    if not opening or not reach or not _asks(words, i) or word not in _ASKS:
        return False
    after = words[i + 1]
    if after in _ASKS or (after in _PREPOSITIONS and word != "look"):
        return False
    if before in _ARTICLES | _PREPOSITIONS | {"than"} or _negates(words, i - 1):
        return False  # "without a look", "rather than check"
    return after in _ARTICLES or before.endswith("s")

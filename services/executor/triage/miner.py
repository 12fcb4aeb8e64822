"""Merges the shapes of one source into templates.

Theory of operation. Masking leaves a few hundred shapes; what still differs between two lines of one statement is a
plain word: a user, a domain, a state. Two shapes of equal length that differ in one word only are put together when
that place holds many different words (a place with two or three is a real distinction: "Link ok", "Link error"), and
at once when one of them is a wildcard already. Shapes that vary in several words at once are found by partition:
shapes with the same length are split by the place with the fewest words until what varies varies much.
The work is over distinct shapes, never over lines, so a source of millions of lines costs what its vocabulary costs.
"""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Final

from services.executor.triage.mask import WILDCARD

# A place with this many different words is a parameter. Chosen by measurement: docs/decisions/0004.
WORDS_MIN: Final = 5
FIRST_WORDS_MIN: Final = 12  # the first word usually is the statement's own ("cupsd startup succeeded")
CONSTANTS_MIN: Final = 2  # a template without words of its own says nothing
ROUNDS_MAX: Final = 4
PARTITION_MIN: Final = 8

Words = tuple[str, ...]


def merge_shapes(shapes: Iterable[str]) -> dict[str, str]:
    """Maps each shape to its template; deterministic, independent of the order of the shapes."""
    by_length: dict[int, set[Words]] = defaultdict(set)
    for shape in shapes:
        words = tuple(shape.split(" "))
        by_length[len(words)].add(words)
    out: dict[str, str] = {}
    for length, group in by_length.items():
        merged = _merge_group(sorted(group), length)
        for words, template in merged.items():
            out[" ".join(words)] = " ".join(template)
    return out


def _merge_group(group: Sequence[Words], length: int) -> dict[Words, Words]:
    now = {words: words for words in group}
    if length < 2 or len(group) < 2:
        return now
    for _ in range(ROUNDS_MAX):
        step = _join_once(sorted(set(now.values())), length)
        if not step:
            break
        for words, template in now.items():
            seen = template
            for _hop in range(length):
                follow = step.get(seen)
                if follow is None or follow == seen:
                    break
                seen = follow
            now[words] = seen
    step = {}
    _partition(sorted(set(now.values())), length, step)
    for words, template in now.items():
        now[words] = step.get(template, template)
    return now


def _join_once(shapes: Sequence[Words], length: int) -> dict[Words, Words]:
    """One sweep over all places; the result maps a shape to what it became."""
    step: dict[Words, Words] = {}
    alive = set(shapes)
    for place in range(length):
        buckets: dict[Words, list[Words]] = defaultdict(list)
        for words in sorted(alive):
            buckets[words[:place] + words[place + 1 :]].append(words)
        for rest, members in buckets.items():
            if len(members) < 2 or _constants(rest) < min(CONSTANTS_MIN, length - 1):
                continue
            for values, word in _mergeable([m[place] for m in members], place):
                target = (*rest[:place], word, *rest[place:])
                for member in members:
                    if member[place] in values and member != target:
                        step[member] = target
                        alive.discard(member)
                alive.add(target)
    return step


def _mergeable(values: Sequence[str], place: int) -> list[tuple[set[str], str]]:
    """Which of the words seen in one place belong together, and what stands there instead."""
    out = []
    keyed: dict[str, set[str]] = defaultdict(set)
    plain: set[str] = set()
    for value in values:
        key, sign, tail = value.partition("=")
        if sign and tail and key.replace("_", "").replace(".", "").isalnum():
            keyed[key].add(value)
        else:
            plain.add(value)
    for key, members in keyed.items():
        whole = f"{key}={WILDCARD}"
        if len(members) >= WORDS_MIN or (whole in members and len(members) > 1):
            out.append((members, whole))
    masked = {v for v in plain if WILDCARD in v}
    need = WORDS_MIN if place else FIRST_WORDS_MIN
    if len(plain) >= need or (place and _whole_among(plain)):
        out.append((plain, _common(plain)))
    elif len(masked) > 1 and any(_core(v) == WILDCARD for v in masked):
        out.append((masked, _common(masked)))
    return out


def _whole_among(values: set[str]) -> bool:
    """A wildcard and words beside it: "id 12" and "id null" are one statement; "****" is no word."""
    return any(_core(v) == WILDCARD for v in values) and all(
        WILDCARD in v or any(c.isalnum() for c in v) for v in values
    )


def _core(word: str) -> str:
    return word.strip("()[]{}\"'.,;:")


def _common(values: set[str]) -> str:
    """`<*>` with the punctuation that all values share around it."""
    first = min(values)
    front = first[: len(first) - len(first.lstrip("([{\"'<"))] if not first.startswith("<*>") else ""
    back = first[len(first.rstrip(")]}\"'.,;:")) :]
    if front and not all(v.startswith(front) for v in values):
        front = ""
    if back and not all(v.endswith(back) for v in values):
        back = ""
    return f"{front}{WILDCARD}{back}"


def _constants(words: Sequence[str]) -> int:
    return sum(1 for w in words if WILDCARD not in w and any(c.isalpha() for c in w))


def _partition(group: list[Words], length: int, step: dict[Words, Words]) -> None:
    if len(group) < PARTITION_MIN:
        return
    distinct = [len({w[i] for w in group}) for i in range(length)]
    variable = [i for i, n in enumerate(distinct) if n >= PARTITION_MIN and n * 2 > len(group)]
    fixed = [i for i, n in enumerate(distinct) if n > 1 and i not in variable]
    if fixed:
        place = min(fixed, key=lambda i: (distinct[i], i))
        parts: dict[str, list[Words]] = defaultdict(list)
        for words in group:
            parts[words[place]].append(words)
        for part in parts.values():
            _partition(part, length, step)
        return
    if not variable or 0 in variable:
        return
    template = tuple(_common({w[i] for w in group}) if i in variable else word for i, word in enumerate(group[0]))
    if _constants(template) < max(CONSTANTS_MIN, length // 3):
        return
    for words in group:
        step[words] = template


def wildcard_forms(template: str, limit: int = 400) -> list[str]:
    """The template with one or two of its words replaced by a wildcard: what it may have been called before."""
    words = template.split(" ")
    forms = []
    for i in range(len(words)):
        one = [*words[:i], WILDCARD, *words[i + 1 :]]
        forms.append(" ".join(one))
    for i in range(len(words)):
        for j in range(i + 1, len(words)):
            if len(forms) >= limit:
                return forms
            two = list(words)
            two[i] = two[j] = WILDCARD
            forms.append(" ".join(two))
    return forms

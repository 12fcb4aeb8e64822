"""Counts events by shape, and keeps within its limits.

Theory of operation. The message becomes a shape (through a dictionary: most messages differ from an earlier one in
digits only) and the shape's tally grows. When the shapes of a source outgrow `SHAPES_MAX` they are merged into
templates early, and if that does not make room the rarest harmless ones are let go, counted in the account.
"""

import re
from typing import Final

from services.executor.triage import severity, times
from services.executor.triage.clean import is_noise, sample
from services.executor.triage.closing import Account
from services.executor.triage.fold import exception_class
from services.executor.triage.mask import WILDCARD, digits_as_one, shape_of
from services.executor.triage.miner import merge_shapes
from services.executor.triage.model import EVIDENCE_MAX, SAMPLE_CHARS_SHORT, SAMPLES_CHARS_MAX, SEVERITIES, SHAPES_MAX
from services.executor.triage.naming import Event, named
from services.executor.triage.remembered import Form
from services.executor.triage.tally import Tally
from shared.redact import redact

CACHE_MAX: Final = 20_000
BUCKET_S: Final = 10
_NOISE_SHAPE: Final = "(undecodable bytes)"
_ZERO = re.compile(r"(?<![\w.])0(?:\.0+)?(?![\w.])|[=:]\"?0(?:\.0+)?(?![\w.])")
_ORDER: Final = {name: i for i, name in enumerate(SEVERITIES)}


class Counting:
    """The tallies of one source."""

    def __init__(self, account: Account, *, keep_labels: bool) -> None:
        self.bucket_shift = 0
        self.labels: dict[int, str] = {}  # event number to template; only if `keep_labels`
        self._keep_labels = keep_labels
        self._account = account
        self._tallies: dict[str, Tally] = {}
        self._literal: set[str] = set()  # shapes that are templates already
        self._shapes: dict[str, str] = {}
        self._words: dict[str, str] = {}
        self._spoken: dict[str, tuple[str | None, bool]] = {}
        self._second: tuple[str, int | None] = ("", None)
        self._hour_kind = ""  # of the last stamp that was counted out, what it says before its minute, and that hour
        self._hour = ""
        self._hour_s = 0
        self._sample_chars = 0
        self._round = 1  # a merge begins the next one: the tallies are others then

    def count(self, event: Event) -> None:
        """Takes one closed event into the account."""
        form = event.read
        if type(form) is Form and form.round == self._round and event.trace is None:
            assert form.tally is not None  # there is one in each round
            state, tally = form.state, form.tally
            tally.by_severity[state] += 1
        else:
            state, tally = self._placed(event)
            tally.by_severity[state] = tally.by_severity.get(state, 0) + 1
        self._account.by_severity[state] += 1
        tally.count += 1
        self._keep(tally, event)
        at_s = self._seconds(event)
        if at_s is not None:
            self._time(tally, at_s)

    def _placed(self, event: Event) -> tuple[str, Tally]:
        """How bad the event is, and where it counts; remembered in its form, if that says it of the next one, too."""
        form, reading, name = event.read, event.reading, named(event)
        message, state = name.message, name.severity
        if reading.literal:
            shape = message
            self._literal.add(message)
        else:
            normal = (reading.normal if message is reading.message else "") or digits_as_one(message)
            shape = self._shapes.get(normal) or self._shape(normal, message)
            if shape is _NOISE_SHAPE:
                self._account.undecodable += 1
        zero_matters = False
        if state is None:
            said, zero_matters = self._said(shape)
            if zero_matters and "0" in message and _ZERO.search(message) is not None:
                said = severity.of_words(message)
            state = said or ("info" if reading.parsed else "unknown")
        if self._keep_labels:
            self.labels[event.number] = shape
        tally = self._tallies.get(shape)
        if tally is None:
            if len(self._tallies) >= SHAPES_MAX:
                self._compact()
            tally = self._tallies[shape] = Tally()
            tally.component = reading.component
            tally.exception = exception_class(name.exception)
        by_shape = event.trace is None and not zero_matters and shape is not _NOISE_SHAPE
        if type(form) is Form and by_shape and not self._keep_labels:
            form.round, form.tally, form.state = self._round, tally, state
        return state, tally

    def templates(self) -> dict[str, Tally]:
        """All tallies merged by template."""
        self._merge()
        return self._tallies

    def _shape(self, normal: str, message: str) -> str:
        if not message.isascii() and is_noise(message):
            return _NOISE_SHAPE
        if len(self._shapes) >= CACHE_MAX:
            self._shapes.clear()
        if len(self._words) >= CACHE_MAX:
            self._words.clear()
        told = redact(message)  # before masking, which would leave the letters of a secret and hide its form
        masked = shape_of(normal if told == message else digits_as_one(told), self._words)
        shape = self._shapes[normal] = masked or "(empty message)"
        return shape

    def _said(self, shape: str) -> tuple[str | None, bool]:
        """What the words say, and whether a zero among them matters ("0 errors", "7 errors"); remembered by shape."""
        known = self._spoken.get(shape)
        if known is None:
            if len(self._spoken) >= CACHE_MAX:
                self._spoken.clear()
            said = of_zero = severity.of_words(shape.replace(WILDCARD, "7"))
            if WILDCARD in shape:
                of_zero = severity.of_words(shape.replace(WILDCARD, "0"))
            known = self._spoken[shape] = (said, said != of_zero)
        return known

    def _time(self, tally: Tally, at_s: int) -> None:
        if tally.first_s is None or tally.last_s is None:
            tally.first_s = tally.last_s = at_s
        elif at_s < tally.first_s:
            tally.first_s = at_s
        elif at_s > tally.last_s:
            tally.last_s = at_s
        bucket = (at_s // BUCKET_S) >> self.bucket_shift
        events = tally.buckets.get(bucket, 0)
        tally.buckets[bucket] = events + 1
        if events == 0 and tally.crowded():
            self.bucket_shift += 1
            for each in self._tallies.values():
                each.widen()

    def _seconds(self, event: Event) -> int | None:
        """When the event was, in whole seconds; the engine's stamp is trusted before the program's own."""
        form = event.read
        if event.at is not None:
            kind, stamp = "iso", event.at[:19]  # always UTC
        elif type(form) is Form:
            text, at = event.text, form.minute_at
            if at and text[form.stamp_from : at] == self._hour and form.kind == self._hour_kind:
                past_s = times.MINUTES.get(text[at : at + 2])
                if past_s is not None:
                    return self._hour_s + past_s + times.SECONDS[text[form.second_at : form.second_at + 2]]
            kind, stamp = form.kind, text[form.stamp_from : form.stamp_to]
        else:
            kind, stamp = form.kind, form.stamp
        if not stamp:
            return None
        # The fraction changes with every line, the second does not. In a header the zone stands behind a fraction of
        # three digits or is part of a key that is simply not shared.
        key = stamp[:19] + stamp[23:] if kind == "iso" else stamp
        known, at_s = self._second
        if key == known:
            return at_s
        minute, second = times.clock_at(kind, stamp)
        past_s = 0
        if minute:
            past_s = times.MINUTES[stamp[minute : minute + 2]] + times.SECONDS[stamp[second : second + 2]]
        if minute and stamp[:minute] == self._hour and kind == self._hour_kind:
            at_s = self._hour_s + past_s
        else:
            found = times.seconds_of(kind, event.at or stamp)
            at_s = found[0] if found is not None and self._account.on_scale(found[1]) else None
            if minute and at_s is not None:
                self._hour_kind, self._hour, self._hour_s = kind, stamp[:minute], at_s - past_s
        self._second = (key, at_s)
        return at_s

    def _keep(self, tally: Tally, event: Event) -> None:
        """Keeps the first events of a template, and its latest, as samples."""
        text = event.text
        if event.head is not None or len(text) > SAMPLE_CHARS_SHORT:
            text = event.sample()
            if len(text) > SAMPLE_CHARS_SHORT and self._sample_chars > SAMPLES_CHARS_MAX:
                text = sample(text, SAMPLE_CHARS_SHORT)
        self._sample_chars += len(text)
        kept = (text, event.at, event.stream)
        if len(tally.samples) < EVIDENCE_MAX - 1:
            tally.samples.append(kept)
            return
        if tally.latest is not None:
            self._sample_chars -= len(tally.latest[0])
        tally.latest = kept

    def _merge(self) -> None:
        self._round += 1
        merged = merge_shapes(s for s in self._tallies if s not in self._literal)
        if self._keep_labels:
            self.labels = {n: merged.get(s, s) for n, s in self.labels.items()}
        out: dict[str, Tally] = {}
        for shape, tally in self._tallies.items():
            template = merged.get(shape, shape)
            into = out.get(template)
            if into is None:
                out[template] = tally
            else:
                into.absorb(tally)
            if template != shape:
                self._account.merged(template, shape)
        self._tallies = out

    def _compact(self) -> None:
        """Makes room: merges shapes into templates, then lets the rarest harmless ones go."""
        self._merge()
        self._shapes.clear()
        if len(self._tallies) <= SHAPES_MAX // 2:
            return
        ranked = sorted(
            self._tallies.items(), key=lambda kv: (min(_ORDER[s] for s in kv[1].by_severity), -kv[1].count, kv[0])
        )
        self._tallies = dict(ranked[: SHAPES_MAX // 2])
        self._literal.intersection_update(self._tallies)
        self._sample_chars = sum(len(s[0]) for t in self._tallies.values() for s in t.evidence())
        for shape, tally in ranked[SHAPES_MAX // 2 :]:
            self._account.events_let_go += tally.count
            self._account.shapes_let_go += 1
            self._account.merged_shapes.pop(shape, None)

"""A run's events with the proof that they are the record's: what is written into one file, and how it is checked.

What `check` proves with the public key alone: each event lay in the stream at its place, with its subject, stamp and
bytes, when the seal was signed; and from the goal to the last event that the seal names none was left out, added or
moved. What it does not: that the events are true, and what was said behind the seal.
"""

from typing import Any

import msgspec

from shared.events import AuditSealed
from shared.proof.keys import fingerprint, is_signed
from shared.proof.merkle import Tree, verify_inclusion
from shared.proof.sealing import Head, Sealing, leaf_of, run_of, signed_bytes

FORMAT = "remit-bundle-1"
BUNDLE_BYTES_MAX = 1 << 30

Message = tuple[str, int, int, bytes]  # subject, sequence, stamp in nanoseconds, data


class Proven(msgspec.Struct, frozen=True):
    """One event as the stream holds it, and the way from its leaf to the seal's root."""

    seq: int
    at_ns: int
    subject: str
    data: bytes  # base64 in the file
    link: int = 0
    path: list[bytes] = []

    @property
    def message(self) -> Message:
        return self.subject, self.seq, self.at_ns, self.data


class Standing(msgspec.Struct, frozen=True):
    """Where the seal says the run stood, and the way from there to the seal's heads."""

    last: int
    is_over: bool
    index: int
    path: list[bytes]


class Bundle(msgspec.Struct, frozen=True):
    """The file: a run, its events, a seal. Without a seal it can be read and audited, and proves nothing."""

    run: int
    events: list[Proven]
    format: str = FORMAT
    seal: AuditSealed | None = None
    standing: Standing | None = None

    @property
    def messages(self) -> list[Message]:
        return [event.message for event in self.events]


class Flaw(msgspec.Struct, frozen=True):
    """What is wrong with a bundle, and at which event (0: with the seal or the file itself)."""

    event: int
    what: str  # seal, changed, missing, inserted, reordered, truncated, swapped
    text: str


class Verdict(msgspec.Struct):
    """The flaws of a bundle; where there are none, what it proves."""

    run: int
    events: int
    flaws: list[Flaw]
    proves: str = ""

    def told(self) -> dict[str, Any]:
        found: dict[str, Any] = msgspec.to_builtins(self)
        return found


class Prover:
    """Fed with the whole stream up to a seal, it makes the bundle of a run of it."""

    def __init__(self, run: int, seal: AuditSealed) -> None:
        self._run, self._seal = run, seal
        self._sealing = Sealing()
        self._leaves: list[bytes] = []
        self._links: list[tuple[Message, int]] = []

    def add(self, subject: str, seq: int, at_ns: int, data: bytes) -> None:
        if self._sealing.size >= self._seal.size:
            return
        leaf, link = self._sealing.add(subject, seq, at_ns, data)
        self._leaves.append(leaf)
        if seq == self._run or run_of(subject) == str(self._run):
            self._links.append(((subject, seq, at_ns, data), link))

    @property
    def root(self) -> str:
        return self._sealing.root.hex()

    def bundle(self) -> Bundle:
        """The bundle. ValueError when the stream is not the one that was sealed, or the seal does not name the run."""
        if self.root != self._seal.root:
            raise ValueError("the stream is not the one that was sealed: some event before the seal was changed")
        tree, size = Tree(self._leaves), self._seal.size
        events = [
            Proven(seq, at_ns, subject, data, link, tree.inclusion(seq - 1, size))
            for (subject, seq, at_ns, data), link in self._links
        ]
        heads = self._sealing.heads(self._seal.previous)
        at = next((i for i, head in enumerate(heads) if head.run == self._run), None)
        if at is None:
            raise ValueError(f"the seal of {size} does not say where run {self._run} stood")
        path = Tree([head.leaf for head in heads]).inclusion(at, len(heads))
        standing = Standing(heads[at].last, heads[at].is_over, at, path)
        return Bundle(self._run, events, seal=self._seal, standing=standing)


def read_bundle(data: bytes) -> Bundle:
    """The bundle in a file's bytes; ValueError when there is none."""
    bundle = msgspec.json.decode(data, type=Bundle)
    if bundle.format != FORMAT:
        raise ValueError(f"the file has the format {bundle.format[:40]!r}, not {FORMAT!r}")
    return bundle


def check(bundle: Bundle, public: bytes) -> Verdict:
    """Every flaw of the bundle, by the public key alone."""
    flaws: list[Flaw] = []
    verdict = Verdict(bundle.run, len(bundle.events), flaws)
    seal, standing = bundle.seal, bundle.standing
    if seal is None or standing is None:
        flaws.append(Flaw(0, "seal", "the bundle has no seal"))
        return verdict
    if seal.key != fingerprint(public) or not is_signed(public, seal.signature, signed_bytes(seal)):
        flaws.append(Flaw(0, "seal", f"the seal of {seal.size} is not signed with this key ({fingerprint(public)})"))
        return verdict
    head = Head(bundle.run, standing.last, standing.is_over)
    if not verify_inclusion(head.leaf, standing.index, seal.runs, standing.path, bytes.fromhex(seal.heads)):
        flaws.append(Flaw(0, "seal", "where the run is said to have stood is not what the seal says"))
        return verdict
    sealed = _check_places(bundle, seal, flaws)
    _check_chain(bundle, standing, sealed, flaws)
    if not flaws:
        until = f"its end, event {standing.last}" if standing.is_over else f"event {standing.last}, when it was open"
        verdict.proves = f"every event of run {bundle.run} from its goal to {until}"
        verdict.proves += f", as sealed at message {seal.size} ({seal.at})"
        if more := sum(1 for event in bundle.events if event.seq > standing.last):
            verdict.proves += f"; {more} later ones are in the record, and there may be others"
    return verdict


def _check_places(bundle: Bundle, seal: AuditSealed, flaws: list[Flaw]) -> dict[int, Proven]:
    """Each event is of this run, in order, and lies where the seal has it; those that do come back."""
    root, before = bytes.fromhex(seal.root), 0
    sealed: dict[int, Proven] = {}
    for event in bundle.events:
        if event.seq <= before:
            flaws.append(Flaw(event.seq, "reordered", f"event {event.seq} stands behind event {before}"))
        before = max(before, event.seq)
        own = run_of(event.subject)
        if own != str(bundle.run) and (own or event.seq != bundle.run):
            text = f"event {event.seq} ({event.subject}) belongs to another run than {bundle.run}"
            flaws.append(Flaw(event.seq, "swapped", text))
            continue
        leaf = leaf_of(*event.message, event.link) if 0 < event.seq < 1 << 63 and 0 <= event.at_ns < 1 << 63 else b""
        if event.seq in sealed:
            flaws.append(Flaw(event.seq, "inserted", f"event {event.seq} is there twice"))
        elif verify_inclusion(leaf, event.seq - 1, seal.size, event.path, root):
            sealed[event.seq] = event
        else:
            flaws.append(
                Flaw(event.seq, "changed", f"event {event.seq} ({event.subject}) is not what was sealed there")
            )
    return sealed


def _check_chain(bundle: Bundle, standing: Standing, sealed: dict[int, Proven], flaws: list[Flaw]) -> None:
    """From the last event that the seal names, link by link, to the goal."""
    told = {flaw.event for flaw in flaws}
    chain: set[int] = set()
    at, behind = standing.last, 0
    while at > 0 and (not behind or at < behind):
        chain.add(at)
        event = sealed.get(at)
        if event is None:
            if at in told:
                return  # it is there, and was told to be another one
            if behind:
                flaws.append(Flaw(at, "missing", f"event {at}, which comes before event {behind}, is missing"))
            else:
                last = max(sealed, default=0)
                flaws.append(Flaw(at, "truncated", f"the run goes on to event {at}; the bundle ends at event {last}"))
            return
        if at == bundle.run:
            # Nothing that was sealed is missing: what is not, and is no link of the chain, was put in.
            flaws[:] = [_put_in(flaw) if flaw.what == "changed" and flaw.event not in chain else flaw for flaw in flaws]
            return
        at, behind = event.link, at
    flaws.append(Flaw(behind, "changed", f"event {behind} does not lead back to the run's goal"))


def _put_in(flaw: Flaw) -> Flaw:
    return Flaw(flaw.event, "inserted", f"event {flaw.event} was never sealed; it was put in")

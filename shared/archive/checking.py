"""What proves a day: its leaves made anew, and every seal whose size lies in it. Pure.

Theory of operation. A day begins with the sealing as it stood before it (`Manifest.before`) and adds its messages one
by one. Where the tree is as large as a seal, its root must be the seal's. Behind the last message the root must lead,
by the consistency proof, to that of the seal which covers the day. Nobody without the sealer's key makes such a seal,
so neither the state that a day begins with nor anything else in its manifest has to be believed. (What is not sealed
is the header block: the digest of the file covers it, and that is only as good as the manifest.)
"""

from collections.abc import Iterable, Sequence

import msgspec

from shared.archive.days import Calendar, Manifest, Row, day_behind, is_whole_day
from shared.clock import parse_ns, rfc3339
from shared.events import AuditSealed
from shared.proof.keys import fingerprint, is_signed
from shared.proof.merkle import Frontier, consistency_of, verify_consistency
from shared.proof.sealing import Sealing, State, signed_bytes


class Flaw(msgspec.Struct, frozen=True):
    """What is not as it was sealed: of which day, which messages at most (0: not a matter of messages)."""

    day: str
    what: str  # changed, missing, reordered, inserted, file, manifest, seal, stream
    text: str
    first: int = 0
    last: int = 0


class Keys:
    """The public keys whose seals count, by their names."""

    def __init__(self, publics: Iterable[bytes]) -> None:
        self._keys = {fingerprint(public): public for public in publics}

    def why_not(self, seal: AuditSealed, stream: str) -> str:
        """Why this seal says nothing of this stream; "" when it does."""
        public = self._keys.get(seal.key)
        if public is None:
            return f"its key is {seal.key}, and not {' or '.join(self._keys)}"
        if not is_signed(public, seal.signature, signed_bytes(seal)):
            return f"it is not signed with key {seal.key}"
        if seal.stream != stream:
            return f"it seals the stream of {seal.stream}, and this one was made on {stream}"
        return ""


class Checker:
    """One day's messages against the seals. `seals` are those that count (`Keys.why_not`).

    `hear` each message; the first flaw ends the check of the day, as every root behind it is another one, too.
    """

    def __init__(self, day: str, before: State, seals: Sequence[AuditSealed], last_seq: int | None = None) -> None:
        self._day = day
        self._sealing = Sealing(before)
        self._last_seq = last_seq
        self._ahead = sorted((seal for seal in seals if seal.size > before.size), key=lambda seal: seal.size)[::-1]
        self.sound = before.size  # the last message up to which a seal, or the day before, agrees
        self.passed: list[AuditSealed] = []
        self.flaw: Flaw | None = None
        self._first_ns = self._last_ns = 0

    @property
    def stamps(self) -> tuple[str, str]:
        """When the first message and the last one came."""
        return rfc3339(self._first_ns), rfc3339(self._last_ns)

    @property
    def size(self) -> int:
        return self._sealing.size

    @property
    def root(self) -> str:
        return self._sealing.root.hex()

    def state(self) -> State:
        """What the next day begins with. Runs that are over are left out: an archive makes no seals."""
        self._sealing.forget(self._sealing.size)
        return self._sealing.state()

    def between(self) -> str:
        """The two seals between which the check stands, for a person."""
        behind = f"the seal of {self._ahead[-1].size}" if self._ahead else "no later seal"
        return f"between message {self.sound + 1} and {behind}"

    def hear(self, row: Row) -> Flaw | None:
        """The next message; the flaw when it is not what was sealed."""
        if self.flaw is not None:
            return self.flaw
        subject, seq, at_ns, data, _ = row
        wanted = self._sealing.size + 1
        if self._last_seq is not None and wanted > self._last_seq:
            return self._found(
                "inserted", f"message {seq} stands behind the day's last one, {self._last_seq}", seq, seq
            )
        if seq > wanted:
            gone = f"message {wanted} is" if seq == wanted + 1 else f"messages {wanted} to {seq - 1} are"
            return self._found("missing", f"{gone} missing, {self.between()}", wanted, seq - 1)
        if seq < wanted:
            text = f"message {seq} stands behind message {wanted - 1}, {self.between()}"
            return self._found("reordered", text, seq, wanted - 1)
        self._sealing.add(subject, seq, at_ns, data)
        self._first_ns, self._last_ns = self._first_ns or at_ns, at_ns
        while self._ahead and self._ahead[-1].size == seq:
            seal = self._ahead.pop()
            if self.root != seal.root:
                text = f"some message from {self.sound + 1} to {seal.size} is not what was sealed at {seal.size}"
                return self._found("changed", text, self.sound + 1, seal.size)
            self.passed.append(seal)
            if not self._ahead or self._ahead[-1].size > seq:
                self.sound = seq
        return None

    def ended(self) -> Flaw | None:
        """The day's file is at its end."""
        if self.flaw is None and self._last_seq is not None and self._sealing.size < self._last_seq:
            first, last = self._sealing.size + 1, self._last_seq
            return self._found("missing", f"messages {first} to {last} are missing, {self.between()}", first, last)
        return self.flaw

    def unreadable(self, why: str) -> Flaw:
        """The file cannot be read on."""
        text = f"{why}, behind message {self._sealing.size}, {self.between()}"
        return self._found("changed", text, self._sealing.size + 1, self._last_seq or 0)

    def covered(self, seal: AuditSealed, proof: Sequence[bytes]) -> Flaw | None:
        """Whether the seal behind the day agrees with all of it."""
        if self.flaw is not None:
            return self.flaw
        root = self._sealing.root
        if seal.size == self.size:
            agrees = seal.root == self.root
        else:
            agrees = verify_consistency(self.size, seal.size, root, bytes.fromhex(seal.root), proof)
        if not agrees:
            text = f"some message from {self.sound + 1} to {seal.size} is not what was sealed at {seal.size}"
            return self._found("changed", text, self.sound + 1, seal.size)
        return None

    def consistency(self, later: Sequence[bytes]) -> list[bytes]:
        """The proof that this day's tree is the beginning of the one with the `later` leaves."""
        state = self._sealing.state()
        return consistency_of(Frontier(state.size, state.hashes), later) if later else []

    def _found(self, what: str, text: str, first: int, last: int) -> Flaw:
        self.flaw = Flaw(self._day, what, text, first, last)
        return self.flaw


def covering(seals: Iterable[AuditSealed], last_seq: int) -> AuditSealed | None:
    """The first of the seals behind `last_seq`."""
    return min((seal for seal in seals if seal.size >= last_seq), key=lambda seal: seal.size, default=None)


def chain_flaws(manifest: Manifest, before: Manifest | None) -> list[Flaw]:
    """What is wrong with a manifest behind the one before it (None: it is the first)."""
    found: list[Flaw] = []

    def say(what: str, text: str, first: int = 0, last: int = 0) -> None:
        found.append(Flaw(manifest.day, what, text, first, last))

    begin = 1 if before is None else before.last_seq + 1
    if manifest.first_seq > begin:
        last = manifest.first_seq - 1
        say("missing", f"there is no file with messages {begin} to {last}", begin, last)
    elif manifest.first_seq < begin:
        say("inserted", f"messages {manifest.first_seq} to {begin - 1} are in an earlier file already")
    elif manifest.before != (State() if before is None else before.after):
        behind = f"the tree that {before.day} ends with" if before else "an empty tree"
        say("manifest", f"it does not begin with {behind}")
    if is_whole_day(manifest.day) and (before is None or is_whole_day(before.day)):
        day = Calendar().name(day_behind(Calendar(), before, _stamp(manifest.first_at)))
        if day != manifest.day:
            say("manifest", f"its first message belongs to {day}")
    if before is not None and manifest.stream != before.stream:
        say("stream", f"it is of the stream made on {manifest.stream}, the day before of that made on {before.stream}")
    if manifest.events != manifest.last_seq - manifest.first_seq + 1 or manifest.before.size != manifest.first_seq - 1:
        say("manifest", "its numbers do not fit each other")
    return found


def _stamp(text: str) -> int:
    """In nanoseconds; 0 of what is no time, which no message has."""
    try:
        return parse_ns(text)
    except ValueError:
        return 0


def seal_flaws(manifest: Manifest, keys: Keys) -> list[Flaw]:
    """Which seals of a manifest prove nothing, and which messages none covers."""
    found = [
        Flaw(manifest.day, "seal", f"the seal of {seal.size}: {why}")
        for seal in (*manifest.seals, manifest.covered_by)
        if (why := keys.why_not(seal, manifest.stream))
    ]
    covered = manifest.covered_by.size
    if covered < manifest.last_seq:
        text = f"its newest seal covers {covered} messages, and its last one is {manifest.last_seq}"
        found.append(Flaw(manifest.day, "seal", text, covered + 1, manifest.last_seq))
    return found

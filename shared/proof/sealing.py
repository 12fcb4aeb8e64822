"""What is sealed: how a message becomes a leaf, where each run stands, and what a seal's signature is made over. Pure.

Theory of operation. Leaf `seq - 1` of the tree is the message `seq`: its place, its stamp, its subject, the digest of
its data, and its `link`, the sequence of the message before it of the same run. So who holds a run's last message can
ask for each one before it, and none between them can be left out unseen. The seal's `heads` is the root of a second,
small tree: for each run that is open, or was closed since the seal before, the sequence of its last message. So the end
of a run cannot be left out either. A run is open from its goal to its first `run.completed` (or `goal.rejected`, before
it has a plan); what is said of it later counts for nothing by the rules, and is sealed as a message without a link.
"""

import hashlib
import struct

import msgspec

from shared.events import AuditSealed
from shared.plan import canonical
from shared.proof.merkle import EMPTY, Frontier, Tree, leaf_hash

SEALS_FILE = "seals.jsonl"  # where a sealer writes its seals down, in its data directory
_ENTRY = struct.Struct(">QQQI")
_HEAD = struct.Struct(">QQ?")
SIGNED = b"remit seal v1\n"  # a signature of this key over anything else is no seal
GOAL, PLANNED, REJECTED, OVER = "goal.submitted", "plan.created", "goal.rejected", "run.completed"


class Head(msgspec.Struct, frozen=True):
    """Where a run stood at a seal: its last message, and whether it was over."""

    run: int
    last: int
    is_over: bool

    @property
    def leaf(self) -> bytes:
        return leaf_hash(b"head" + _HEAD.pack(self.run, self.last, self.is_over))


class State(msgspec.Struct):
    """A sealing as it stood, to go on from: hashes of the full subtrees, and runs by their last message."""

    size: int = 0
    at_ns: int = 0
    hashes: list[bytes] = []
    open: dict[str, int] = {}
    planned: list[str] = []
    closed: dict[str, int] = {}


def leaf_of(subject: str, seq: int, at_ns: int, data: bytes, link: int) -> bytes:
    """The hash of a message's leaf."""
    name = subject.encode()
    return leaf_hash(_ENTRY.pack(seq, at_ns, link, len(name)) + name + hashlib.sha256(data).digest())


class Links:
    """What comes before each message in its run. Memory grows with open runs, and those closed since `forget`."""

    def __init__(self, state: State | None = None) -> None:
        state = state or State()
        self.open = dict(state.open)
        self.planned = set(state.planned)
        self.closed = dict(state.closed)

    def link(self, subject: str, seq: int) -> int:
        """The message before this one of the same run; 0 for a goal, and for what is said of no open run."""
        noun, _, rest = subject.partition(".")
        verb, _, rest = rest.partition(".")
        kind = f"{noun}.{verb}"
        if kind == GOAL:
            self.open[str(seq)] = seq
            return 0
        run = rest.partition(".")[0]
        link = self.open.get(run, 0)
        if link == 0:
            return 0
        if kind == OVER or (kind == REJECTED and run not in self.planned):
            del self.open[run]
            self.planned.discard(run)
            self.closed[run] = seq
            return link
        if kind == PLANNED:
            self.planned.add(run)
        self.open[run] = seq
        return link

    def heads(self, previous: int) -> list[Head]:
        """Where the runs stand that are open, or were closed behind message `previous`; by run."""
        heads = [Head(int(run), last, False) for run, last in self.open.items()]
        heads += [Head(int(run), last, True) for run, last in self.closed.items() if last > previous]
        return sorted(heads, key=lambda head: head.run)

    def forget(self, size: int) -> None:
        """Runs that a seal of this size has shown as over are shown no more."""
        self.closed = {run: last for run, last in self.closed.items() if last > size}


class Sealing:
    """The tree's right edge, and the links of the runs."""

    def __init__(self, state: State | None = None) -> None:
        state = state or State()
        self._tree = Frontier(state.size, state.hashes)
        self._links = Links(state)
        self.at_ns = state.at_ns

    @property
    def size(self) -> int:
        return self._tree.size

    @property
    def root(self) -> bytes:
        return self._tree.root

    def state(self) -> State:
        """What the next one begins with."""
        links = self._links
        hashes, planned = list(self._tree.hashes), sorted(links.planned)
        return State(self.size, self.at_ns, hashes, dict(links.open), planned, dict(links.closed))

    def add(self, subject: str, seq: int, at_ns: int, data: bytes) -> tuple[bytes, int]:
        """The next message's leaf and link. ValueError when it is not the next one: no seal covers a hole."""
        if seq != self._tree.size + 1:
            raise ValueError(f"message {seq} does not follow message {self._tree.size}")
        link = self._links.link(subject, seq)
        leaf = leaf_of(subject, seq, at_ns, data, link)
        self._tree.append(leaf)
        self.at_ns = at_ns
        return leaf, link

    def heads(self, previous: int) -> list[Head]:
        return self._links.heads(previous)

    def forget(self, size: int) -> None:
        self._links.forget(size)

    def seal(self, previous: int, stream: str, at: str, key: str) -> AuditSealed:
        """The seal of all so far, still unsigned."""
        heads = self.heads(previous)
        return AuditSealed(
            size=self.size,
            root=self.root.hex(),
            heads=heads_root(heads).hex(),
            runs=len(heads),
            previous=previous,
            at=at,
            stream=stream,
            key=key,
            signature="",
        )


def heads_root(heads: list[Head]) -> bytes:
    return Tree([head.leaf for head in heads]).root() if heads else EMPTY


def signed_bytes(seal: AuditSealed) -> bytes:
    """What the signature is made over: every field but itself, as canonical JSON."""
    fields = msgspec.to_builtins(seal)
    del fields["signature"]
    return SIGNED + canonical(fields)


def run_of(subject: str) -> str:
    """The run that a subject names; "" for a goal's, whose run is its own sequence."""
    parts = subject.split(".", 3)
    return "" if len(parts) < 3 or f"{parts[0]}.{parts[1]}" == GOAL else parts[2]


def closing(messages: list[tuple[str, int, int, bytes]]) -> int:
    """The message that closes a run, whose messages these are; 0 while it is open."""
    sealed_as = Links()
    for subject, seq, _, _ in messages:
        sealed_as.link(subject, seq)
    return max(sealed_as.closed.values(), default=0)

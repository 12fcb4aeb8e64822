"""The Merkle tree of RFC 9162, section 2, with SHA-256: roots, inclusion and consistency. Pure.

Names are those of the RFC: a leaf is hashed behind a zero byte, a node behind a one, so that neither can be taken for
the other. `Frontier` holds the roots of the full subtrees to the left of the next leaf: enough to go on, one hash for
each power of two at most.
"""

import hashlib
from collections.abc import Sequence

EMPTY = hashlib.sha256(b"").digest()


def leaf_hash(entry: bytes) -> bytes:
    return hashlib.sha256(b"\x00" + entry).digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    return hashlib.sha256(b"\x01" + left + right).digest()


class Frontier:
    """A tree that only grows: `append` the hash of a leaf, ask for the `root`."""

    def __init__(self, size: int = 0, hashes: Sequence[bytes] = ()) -> None:
        if len(hashes) != size.bit_count():
            raise ValueError(f"a tree of {size} leaves has {size.bit_count()} full subtrees, not {len(hashes)}")
        self.size = size
        self.hashes = list(hashes)  # the largest subtree first

    def append(self, leaf: bytes) -> None:
        size, hashes = self.size, self.hashes
        while size & 1:
            leaf = node_hash(hashes.pop(), leaf)
            size >>= 1
        hashes.append(leaf)
        self.size += 1

    @property
    def root(self) -> bytes:
        if not self.hashes:
            return EMPTY
        root = self.hashes[-1]
        for left in reversed(self.hashes[:-1]):
            root = node_hash(left, root)
        return root


class Tree:
    """A tree whose leaves are all at hand; its full subtrees are kept, so many proofs cost little more than one."""

    def __init__(self, leaves: Sequence[bytes]) -> None:
        self._levels = [list(leaves)]
        while len(level := self._levels[-1]) > 1:
            self._levels.append([node_hash(level[i], level[i + 1]) for i in range(0, len(level) - 1, 2)])

    def __len__(self) -> int:
        return len(self._levels[0])

    def root(self, size: int | None = None) -> bytes:
        """The root of the first `size` leaves (of all)."""
        size = len(self) if size is None else size
        return self._hash(0, size) if size else EMPTY

    def _hash(self, begin: int, end: int) -> bytes:
        """The root of the leaves `begin` to `end`; `begin` is a multiple of the power of two that holds them."""
        count = end - begin
        if count & (count - 1) == 0:
            height = count.bit_length() - 1
            return self._levels[height][begin >> height]
        split = begin + _split(count)
        return node_hash(self._hash(begin, split), self._hash(split, end))

    def inclusion(self, index: int, size: int) -> list[bytes]:
        """The proof that leaf `index` is in the tree of the first `size` leaves (2.1.3.1)."""
        if not 0 <= index < size <= len(self):
            raise ValueError(f"there is no leaf {index} in a tree of {size} leaves")
        path: list[bytes] = []
        begin, end = 0, size
        while end - begin > 1:
            split = begin + _split(end - begin)
            if index < split:
                path.append(self._hash(split, end))
                end = split
            else:
                path.append(self._hash(begin, split))
                begin = split
        return path[::-1]

    def consistency(self, first: int, second: int) -> list[bytes]:
        """The proof that the tree of `first` leaves is the beginning of that of `second` (2.1.4.1)."""
        if not 0 < first <= second <= len(self):
            raise ValueError(f"a tree of {first} leaves is no beginning of one of {second}")
        return self._subproof(first, 0, second, complete=True)

    def _subproof(self, first: int, begin: int, end: int, *, complete: bool) -> list[bytes]:
        if first == end - begin:
            return [] if complete else [self._hash(begin, end)]
        split = _split(end - begin)
        if first <= split:
            proof = self._subproof(first, begin, begin + split, complete=complete)
            return [*proof, self._hash(begin + split, end)]
        proof = self._subproof(first - split, begin + split, end, complete=False)
        return [*proof, self._hash(begin, begin + split)]


def consistency_of(edge: Frontier, later: Sequence[bytes]) -> list[bytes]:
    """The proof that the tree of `edge` is the beginning of the one that the `later` leaves make of it (2.1.4.1).

    The same as `Tree.consistency`, for who has only the right edge of the first tree: left of it a proof never needs
    another hash than those of its full subtrees.
    """
    first, second = edge.size, edge.size + len(later)
    if not first:
        raise ValueError("an empty tree is the beginning of every one, and there is nothing to prove")
    subtrees: dict[int, bytes] = {}
    begin = 0
    for height in reversed(range(first.bit_length())):
        if first >> height & 1:
            subtrees[begin] = edge.hashes[len(subtrees)]
            begin += 1 << height

    def root(begin: int, end: int) -> bytes:
        return subtrees[begin] if begin < first else Tree(later[begin - first : end - first]).root()

    proof: list[bytes] = []
    begin, end = 0, second
    while first != end:
        split = begin + _split(end - begin)
        if first <= split:
            proof.append(root(split, end))
            end = split
        else:
            proof.append(root(begin, split))
            begin = split
    if begin:  # or else the first tree is one full subtree, and who checks the proof knows its root
        proof.append(root(begin, end))
    return proof[::-1]


def _split(count: int) -> int:
    """The largest power of two smaller than `count`."""
    return 1 << ((count - 1).bit_length() - 1)


def verify_inclusion(leaf: bytes, index: int, size: int, proof: Sequence[bytes], root: bytes) -> bool:
    """Whether the proof leads from the leaf at `index` to the root of the tree of `size` leaves (2.1.3.2)."""
    if not 0 <= index < size:
        return False
    node, last, found = index, size - 1, leaf
    for hashed in proof:
        if last == 0:
            return False
        if node & 1 or node == last:
            found = node_hash(hashed, found)
            while not node & 1 and node:
                node, last = node >> 1, last >> 1
        else:
            found = node_hash(found, hashed)
        node, last = node >> 1, last >> 1
    return last == 0 and found == root


def verify_consistency(first: int, second: int, first_root: bytes, second_root: bytes, proof: Sequence[bytes]) -> bool:
    """Whether the proof shows the tree of `first` leaves as the beginning of that of `second` (2.1.4.2)."""
    if not 0 < first <= second:
        return False
    if first == second:
        return not proof and first_root == second_root
    path = list(proof)
    if first & (first - 1) == 0:
        path = [first_root, *path]
    if not path:
        return False
    node, last = first - 1, second - 1
    while node & 1:
        node, last = node >> 1, last >> 1
    old = new = path[0]
    for hashed in path[1:]:
        if last == 0:
            return False
        if node & 1 or node == last:
            old, new = node_hash(hashed, old), node_hash(hashed, new)
            while not node & 1 and node:
                node, last = node >> 1, last >> 1
        else:
            new = node_hash(new, hashed)
        node, last = node >> 1, last >> 1
    return last == 0 and old == first_root and new == second_root

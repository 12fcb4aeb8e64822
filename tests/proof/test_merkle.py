"""The Merkle tree against the definitions of RFC 9162, section 2, and the roots that others have published for it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.proof.merkle import EMPTY, Frontier, Tree, leaf_hash, node_hash, verify_consistency, verify_inclusion

# The test tree of the Certificate Transparency project.
ENTRIES = [
    bytes.fromhex(text)
    for text in ("", "00", "10", "2021", "3031", "40414243", "5051525354555657", "606162636465666768696a6b6c6d6e6f")
]
ROOTS = {
    0: "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
    1: "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
    2: "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
    3: "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
    4: "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    5: "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
    6: "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
    7: "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
    8: "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
}


def by_definition(leaves: list[bytes]) -> bytes:
    """MTH of section 2.1.1, as it is written there."""
    if not leaves:
        return EMPTY
    if len(leaves) == 1:
        return leaves[0]
    split = 1
    while split * 2 < len(leaves):
        split *= 2
    return node_hash(by_definition(leaves[:split]), by_definition(leaves[split:]))


@pytest.mark.parametrize("size", ROOTS)
def test_roots_are_those_that_others_have_published(size: int) -> None:
    leaves = [leaf_hash(entry) for entry in ENTRIES[:size]]
    frontier = Frontier()
    for leaf in leaves:
        frontier.append(leaf)
    assert frontier.root.hex() == ROOTS[size]
    assert Tree(leaves).root().hex() == ROOTS[size]


def test_every_proof_of_every_tree_holds_and_no_other_does() -> None:
    leaves = [leaf_hash(bytes([n])) for n in range(33)]
    tree = Tree(leaves)
    for size in range(1, len(leaves) + 1):
        root = by_definition(leaves[:size])
        assert tree.root(size) == root
        for index in range(size):
            path = tree.inclusion(index, size)
            assert verify_inclusion(leaves[index], index, size, path, root)
            assert not verify_inclusion(leaves[index], index, size, [*path, EMPTY], root)
            assert not verify_inclusion(EMPTY, index, size, path, root)
            assert not verify_inclusion(leaves[index], (index + 1) % size, size, path, root) or size == 1
            proof = tree.consistency(index + 1, size)
            assert verify_consistency(index + 1, size, tree.root(index + 1), root, proof)
            assert not verify_consistency(index + 1, size, EMPTY, root, proof)
            assert not verify_consistency(index + 1, size, tree.root(index + 1), EMPTY, proof)


@given(st.integers(0, 300), st.integers(0, 300))
def test_a_frontier_goes_on_from_what_was_kept_of_it(before: int, more: int) -> None:
    leaves = [leaf_hash(n.to_bytes(2)) for n in range(before + more)]
    first = Frontier()
    for leaf in leaves[:before]:
        first.append(leaf)
    second = Frontier(first.size, first.hashes)
    for leaf in leaves[before:]:
        second.append(leaf)
    assert second.root == Tree(leaves).root()


def test_a_frontier_of_another_size_is_refused() -> None:
    with pytest.raises(ValueError, match="full subtrees"):
        Frontier(3, [EMPTY])

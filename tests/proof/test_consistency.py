"""A consistency proof from the first tree's right edge is the one from all of its leaves."""

import pytest

from shared.proof.merkle import Frontier, Tree, consistency_of, leaf_hash, verify_consistency

LEAVES = [leaf_hash(bytes([i])) for i in range(66)]


@pytest.mark.parametrize("second", range(1, len(LEAVES)))
def test_the_edge_proves_what_all_leaves_prove(second: int) -> None:
    tree, edge = Tree(LEAVES[:second]), Frontier()
    for first in range(1, second + 1):
        edge.append(LEAVES[first - 1])
        proof = consistency_of(edge, LEAVES[first:second])
        assert proof == tree.consistency(first, second)
        assert verify_consistency(first, second, edge.root, tree.root(), proof)


def test_an_empty_tree_proves_nothing() -> None:
    with pytest.raises(ValueError, match="empty tree"):
        consistency_of(Frontier(), LEAVES)

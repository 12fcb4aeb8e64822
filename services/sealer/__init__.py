"""Seals the stream: signed heads of its Merkle tree, said in the stream and kept in a file of their own."""

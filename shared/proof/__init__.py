"""The seals of the stream: a Merkle tree over its messages, signed heads, and what can be proven with them."""

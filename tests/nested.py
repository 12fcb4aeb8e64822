"""How deep JSON has to be nested that Python's stack cannot take it, in as few bytes as do."""

import sys

# Up to 3.11 the decoder counts its levels as Python's own, from 3.14 on it may use the 8 MB of a usual stack.
LEVELS = 1_900 if sys.version_info < (3, 12) else 100_000 if sys.version_info < (3, 14) else 300_000
DEEP = "[" * LEVELS + "]" * LEVELS

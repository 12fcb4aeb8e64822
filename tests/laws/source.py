"""The checkout's own code as syntax trees."""

import ast
from pathlib import Path


def tree(path: Path) -> ast.Module:
    """The file's syntax tree."""
    return ast.parse(path.read_text(), str(path))

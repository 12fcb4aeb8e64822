"""The checkout's own code as syntax trees."""

import ast
import gc
from pathlib import Path


def tree(path: Path) -> ast.Module:
    """The file's syntax tree.

    Whatever another test has left to the garbage collection is not taken up meanwhile: a finalizer that parses, as a
    printed traceback does, makes an error of it in CPython 3.11 ("recursion depth mismatch").
    """
    gc.disable()
    try:
        return ast.parse(path.read_text(), str(path))
    finally:
        gc.enable()

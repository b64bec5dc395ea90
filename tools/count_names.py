"""Counts public functions and methods, and those whose name is one word: `python -m tools.count_names`.

A search for `read` finds everything and so nothing; `read_rows` says what of. One word stays where it is the
whole idea (`generate`, `evaluate`) or somebody else's interface (`close`, `emit`).
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

ROOMS = ("rig", "train", "export", "serve", "bots")


def public_names(tree: ast.AST) -> Iterator[str]:
    """Names of the functions and methods that others may call; what a function defines inside is its own.

    >>> list(public_names(ast.parse("class A:\\n def read(self): ...\\n def _own(self): ...")))
    ['read']
    """
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            if not node.name.startswith("_"):
                yield node.name
        elif isinstance(node, ast.ClassDef | ast.If | ast.Try | ast.With):
            yield from public_names(node)


def count_names(folder: Path) -> tuple[int, int]:
    """How many public names the files below `folder` have, and how many of them are one word."""
    found = [
        name
        for path in sorted(folder.rglob("*.py"))
        for name in public_names(ast.parse(path.read_text("utf-8")))
    ]
    return len(found), sum("_" not in name for name in found)


def main() -> None:
    """Print a line for each room, and for all."""
    root = Path(__file__).resolve().parent.parent
    counts = {room: count_names(root / room) for room in sys.argv[1:] or ROOMS}
    counts["all"] = (sum(n for n, _ in counts.values()), sum(n for _, n in counts.values()))
    for room, (names, short) in counts.items():
        print(f"{room:8}{names:6} public names, {short:4} of one word ({short / names:.1%})")


if __name__ == "__main__":
    main()

"""What the docstrings of public functions and classes lack.

    python docs/tools/docstrings.py            counts
    python docs/tools/docstrings.py --list     and every name

Public is what an API page shows: names without a leading underscore, in modules that have a page
(`sources.documented`). The site's build and tests/unit/test_docs.py refuse more than LIMITS; lower
a limit whenever the count falls, raise none.
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator

from sources import Definition, documented, public, tree_of

LIMITS = {"docstring": 0, "raises": 0, "shape": 0}
"""Public names that may lack each, at most."""

WHAT = {
    "docstring": "no docstring",
    "raises": "raises an error of its own and has no section Raises",
    "shape": "takes or returns an array or a tensor and gives no shape",
}
ARRAYS = re.compile(r"\b(Tensor|ndarray|NDArray|Floats|Ints|Flags)\b")
SHAPE = re.compile(
    r"\((?:\.\.\.|[A-Za-z0-9_ +]+),[^()]*\)|\([A-Z]\)|\((?:\.\.\.)?\)|\bshape|of the same|scalar"
)


def lacking() -> dict[str, list[str]]:
    """For each of WHAT, the public names that lack it, as module:line name."""
    found: dict[str, list[str]] = {kind: [] for kind in WHAT}
    for module, path in documented().items():
        for name, node, owner in public(tree_of(path)):
            for kind in _lacks(node, owner):
                found[kind].append(f"{module}:{node.lineno} {name}")
    return found


def counts() -> tuple[int, int]:
    """Public names, and how many of them name a source."""
    nodes = [node for path in documented().values() for _, node, _ in public(tree_of(path))]
    return len(nodes), sum("Source:" in (ast.get_docstring(node) or "") for node in nodes)


def over_limits() -> list[str]:
    """A line for each limit that is exceeded."""
    return [
        f"{len(names)} public names have {WHAT[kind]} (limit {LIMITS[kind]}): {', '.join(names)}"
        for kind, names in lacking().items()
        if len(names) > LIMITS[kind]
    ]


def _lacks(node: Definition, owner: ast.ClassDef | None) -> Iterator[str]:
    text = ast.get_docstring(node)
    if not text:
        yield "docstring"
        return
    if isinstance(node, ast.ClassDef):
        return
    if "Raises:" not in text and _raises(node):
        yield "raises"
    around = f"{text}\n{ast.get_docstring(owner) or '' if owner else ''}"
    if ARRAYS.search(_annotations(node)) and not SHAPE.search(around):
        yield "shape"


def _raises(node: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    """Whether its own body raises by name; AttributeError and such are Python's protocol."""
    for inner in ast.walk(node):
        if isinstance(inner, ast.Raise) and isinstance(inner.exc, ast.Call):
            name = ast.unparse(inner.exc.func)
            if name not in ("AttributeError", "NotImplementedError", "AssertionError"):
                return True
    return False


def _annotations(node: ast.FunctionDef | ast.AsyncFunctionDef) -> str:
    given = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
    notes = [one.annotation for one in given] + [node.returns]
    return " ".join(ast.unparse(note) for note in notes if note is not None)


def main() -> None:
    total, sourced = counts()
    print(f"{total} public functions, classes and methods; {sourced} name a source")
    for kind, names in lacking().items():
        print(f"{len(names):4} {WHAT[kind]} (limit {LIMITS[kind]})")
        if "--list" in sys.argv:
            print("".join(f"       {name}\n" for name in names), end="")


if __name__ == "__main__":
    main()

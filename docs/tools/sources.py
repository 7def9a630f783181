"""The package's sources as trees: modules, public names, docstrings. Nothing is imported."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "kronos_qlib"

UNDOCUMENTED = ("cli", "__main__", "version")
"""Packages and modules without an API page: the command line has a page of its own."""

Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef


def module_of(path: Path) -> str:
    """Dotted name of a file of the package."""
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


@cache
def documented() -> dict[str, Path]:
    """Module to file, for every module with an API page; packages without code are left out."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        below = path.relative_to(PACKAGE).with_suffix("").parts
        if below[0] in UNDOCUMENTED or any(p.startswith("_") and p != "__init__" for p in below):
            continue
        has_code = any(isinstance(node, Definition) for node in tree_of(path).body)
        if path.name != "__init__.py" or (has_code and len(below) > 1):
            found[module_of(path)] = path
    return found


def public(tree: ast.Module) -> Iterator[tuple[str, Definition, ast.ClassDef | None]]:
    """Public functions, classes and methods: qualified name, node, and the class it is in."""
    for node in tree.body:
        if isinstance(node, Definition) and not node.name.startswith("_"):
            yield node.name, node, None
            if isinstance(node, ast.ClassDef):
                for inner in node.body:
                    if isinstance(inner, Definition) and not inner.name.startswith("_"):
                        yield f"{node.name}.{inner.name}", inner, node


def home_of(name: str) -> str:
    """The module that defines a class, function or constant of that name at its top level.

    Found by name, so that pages keep working when modules move.

    Raises:
        LookupError: no module has it, or several.
    """
    homes = [module_of(path) for path in sorted(PACKAGE.rglob("*.py")) if name in _tops(path)]
    if len(homes) != 1:
        raise LookupError(f"{name} is defined in {homes or 'no module'} of the package; name one")
    return homes[0]


@cache
def _tops(path: Path) -> frozenset[str]:
    names = set()
    for node in tree_of(path).body:
        if isinstance(node, Definition):
            names.add(node.name)
        elif isinstance(node, (ast.Assign, ast.AnnAssign)):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            names.update(target.id for target in targets if isinstance(target, ast.Name))
    return frozenset(names)


def first_line(path: Path) -> str:
    """First paragraph of a module's docstring, in one line."""
    text = ast.get_docstring(tree_of(path)) or ""
    return " ".join(text.split("\n\n")[0].split())

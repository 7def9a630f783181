"""Qlib's expressions as text: what they name, and how far ahead they reach. Nothing is evaluated.

Qlib itself evaluates an expression as Python, and only after `qlib.init`.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

from kronos_qlib.errors import ConfigError, printable

FURTHEST = 10**9
"""Bars that a longer number is taken for."""
SHIFTS = ("Ref", "Delta")
"""Operators whose second argument moves their first in time; below 0, ahead."""

NODES = (
    ast.Expression,
    ast.BinOp,
    ast.UnaryOp,
    ast.BoolOp,
    ast.Compare,
    ast.Call,
    ast.Name,
    ast.Constant,
    ast.operator,
    ast.unaryop,
    ast.boolop,
    ast.cmpop,
    ast.expr_context,
)
"""What an expression may consist of, as Python's syntax tree has it."""


@dataclass(frozen=True)
class Reach:
    """Which later bars an expression reads, counted from its own bar; both 0 where it reads none.

    Of `Ref($close, -6) / Ref($close, -1) - 1` nearest is 1 and furthest 6.
    """

    nearest: int
    furthest: int

    @property
    def bars(self) -> int:
        """Bars that a label's return runs over, between the nearest and the furthest that it reads.

        Where it reads only one, from its own bar to that; 1 where it reads none.
        """
        return self.furthest - self.nearest or self.furthest or 1


def is_expression(text: str) -> bool:
    """Whether a text is arithmetic on fields and calls of operators, and no other Python."""
    try:
        tree = _parsed(text)
    except ConfigError:
        return False
    for node in ast.walk(tree):
        if not isinstance(node, NODES):
            return False
        if isinstance(node, ast.Call) and (not isinstance(node.func, ast.Name) or node.keywords):
            return False
        if isinstance(node, ast.Name) and node.id.startswith("_"):
            return False
    return True


@cache
def reach_of(expression: str) -> Reach:
    """How far ahead an expression reads. Needs no `qlib.init`.

    The furthest bar is the right end of Qlib's `get_extended_window_size`; that of nested shifts is
    exact here, where Qlib takes the largest on the way.

    Raises:
        ConfigError: the text is no expression.
    """
    ahead = sorted(shift for shift in _shifts(_parsed(expression).body, 0) if shift > 0)
    return Reach(min(ahead[0], FURTHEST), min(ahead[-1], FURTHEST)) if ahead else Reach(0, 0)


def check_no_later_bars(expression: str, what: str) -> None:
    """Refuse an expression that reads a bar after its own, or of which that cannot be told.

    Args:
        what: it is, for the error.

    Raises:
        ConfigError: names the expression and how far ahead it reads.
    """
    shown = printable(expression)[:200]
    for node in ast.walk(_parsed(expression)):
        if (
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Name)
            and node.func.id in SHIFTS
        ):
            given = [*node.args[1:2], *(one.value for one in node.keywords if one.arg == "N")]
            if not given or not _is_whole(given[0]):
                raise ConfigError(
                    f"{what}: {shown} shifts by something else than a whole number as it stands: "
                    "write Ref($close, 5), so that one can see that no later bar is read"
                )
    ahead = reach_of(expression).furthest
    if ahead:
        raise ConfigError(
            f"{what}: {shown} reads {ahead} bar{'s' if ahead > 1 else ''} after its own, which "
            "nobody knew at that close: a feature may look back alone, as Ref($close, 5) does"
        )


def _parsed(text: str) -> ast.Expression:
    # Python refuses numbers of 4,300 digits and more.
    short = re.sub(r"\d{10,}", str(FURTHEST), text.strip())
    try:
        return ast.parse(re.sub(r"\${1,2}(\w+)", r"field_\1", short), mode="eval")
    except (SyntaxError, ValueError, RecursionError, MemoryError) as problem:
        raise ConfigError(f"{printable(text)[:200]} is no expression of Qlib's") from problem


def _shifts(node: ast.AST, shift: int) -> Iterator[int]:
    """Bars ahead of each field in a tree that is itself read so many bars ahead."""
    if isinstance(node, ast.Name):
        yield shift
    elif isinstance(node, ast.Call):
        bars = 0
        if isinstance(node.func, ast.Name) and node.func.id in SHIFTS:
            named = [keyword.value for keyword in node.keywords if keyword.arg == "N"]
            bars = next((_whole(one) for one in (*node.args[1:2], *named)), 0)
            if node.func.id == "Delta":
                yield from _shifts(node.args[0], shift) if node.args else ()
        given = (*node.args, *(keyword.value for keyword in node.keywords))
        for place, argument in enumerate(given):
            yield from _shifts(argument, shift - bars if place == 0 else shift)
    else:
        for inner in ast.iter_child_nodes(node):
            yield from _shifts(inner, shift)


def _is_whole(node: ast.AST) -> bool:
    """Whether it is a whole number as it is written, with or without a sign."""
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub | ast.UAdd):
        return _is_whole(node.operand)
    return isinstance(node, ast.Constant) and type(node.value) is int


def _whole(node: ast.AST) -> int:
    """A whole number as it is written, with its sign; 0 for anything else."""
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        return -_whole(node.operand)
    return node.value if isinstance(node, ast.Constant) and type(node.value) is int else 0

"""Numbers as text: decimal commas, thousands separators, K and M. Read where the table shows which
is meant or the caller says so, else refused: "1,234" is 1234 to some vendors and 1.234 to others.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from decimal import Decimal

import numpy as np
import numpy.typing as npt

NO_NUMBER = frozenset({"", "nan", "na", "n/a", "null", "none", "<na>", "-", "--", "—"})
"""Values of a number column that say there is no number; any other word is an error."""

CURRENCIES = "$€£¥￥₹₩₽"
BLANKS = " \u00a0\u202f\u2009"
"""What stands between thousands besides comma and dot; and the Swiss apostrophe."""

SCALES = {"k": 1e3, "m": 1e6, "b": 1e9, "t": 1e12, "千": 1e3, "万": 1e4, "萬": 1e4, "亿": 1e8}
SCALES["億"] = 1e8

MARKED = re.compile(
    rf"(?P<sign>[+-]?)(?P<currency>[{CURRENCIES}]?)(?P<after>[+-]?)"
    rf"(?P<digits>\d[\d.,'\u2019{BLANKS}]*(?:e[+-]?\d+)?|[.,]\d+)"
    rf" ?(?P<scale>[kmbt千万萬亿億]?) ?(?P<unit>[{CURRENCIES}元]?)",
    re.ASCII | re.IGNORECASE,
)
GROUPED = re.compile(
    r"[1-9]\d{0,2}(?:(?P<mark>[.,'\u2019 \u00a0\u202f\u2009])\d{2,3}(?:(?P=mark)"
    r"\d{2,3})*)?(?<=\d{3})|\d+"
)
"""A whole number, in groups of three or, as in India, of two before the last three."""

POINT_OR_COMMA = re.compile(r"[+-]?[1-9]\d{0,2}[.,]\d{3}")
"""1,234 and 1.234, whose mark is a decimal one to some and a thousands separator to others."""


class NumberTextError(ValueError):
    """Text that is no number; `problem` says what is the matter, "" if there is nothing to add."""

    def __init__(self, text: str, problem: str = "") -> None:
        super().__init__(text)
        self.problem = problem


def decimal_shown_by(value: str) -> tuple[str, bool] | None:
    """The decimal mark that one value proves, "." or ",", and whether thousands prove it.

    A grouped value such as "1,234.5" or "1,234,567" shows how all numbers of a table are written;
    "12.5" shows it of its own column, and where a price shows it, of volumes.
    """
    if "," not in value and "." not in value:
        return None
    match = MARKED.fullmatch(value.strip())
    if match is None:
        return None
    digits = match["digits"]
    points, commas = digits.count("."), digits.count(",")
    if points and commas:
        mark = "." if digits.rfind(".") > digits.rfind(",") else ","
    elif points + commas > 1:
        mark = "," if points else "."
    elif POINT_OR_COMMA.fullmatch(digits):
        return None  # one to three digits, a mark, three digits: it may be either
    else:
        return ("." if points else ","), False
    return (mark, True) if _plain(digits, mark) is not None else None


def is_ambiguous(value: str) -> bool:
    """Whether a value such as "1,234" may be one number or another, by the decimal mark."""
    match = MARKED.fullmatch(value.strip())
    return match is not None and POINT_OR_COMMA.fullmatch(match["digits"]) is not None


def read_numbers(
    values: Iterable[object], decimal: str, *, scaled: bool
) -> tuple[npt.NDArray[np.float64], None] | tuple[None, tuple[int, NumberTextError]]:
    """(n,) float64 of values one by one, or the first that is no number.

    Args:
        decimal: "." or ",".
        scaled: whether K, M, B, 万 and their like may follow, as in sizes.
    """
    numbers = []
    signs = set()
    for entry, value in enumerate(values):
        try:
            number, currency = read_number(value, decimal, scaled=scaled)
        except NumberTextError as problem:
            return None, (entry, problem)
        if number == number:
            signs.add(currency)
            if len(signs) > 1:
                mixed = "other values of the column have another currency sign or none"
                return None, (entry, NumberTextError(str(value), mixed))
        numbers.append(number)
    return np.array(numbers, dtype=np.float64), None


def read_number(value: object, decimal: str, *, scaled: bool) -> tuple[float, str]:
    """A number and its currency sign, "" if it has none; NaN where the value says there is none.

    Raises:
        NumberTextError: it is no number.
    """
    is_bool = isinstance(value, (bool, np.bool_))
    if isinstance(value, (int, float, np.integer, np.floating, Decimal)) and not is_bool:
        try:
            return float(value), ""
        except (ValueError, OverflowError) as problem:
            raise NumberTextError("") from problem
    try:
        text = str(value).strip()
    except ValueError as problem:
        raise NumberTextError("") from problem
    if text.lower() in NO_NUMBER:
        return float("nan"), ""
    if "_" in text:  # float() would take "1_000"
        raise NumberTextError(text)
    if decimal == "." or "." not in text:
        try:
            return float(text), ""
        except ValueError:
            pass
    match = MARKED.fullmatch(text)
    if match is None or (match["after"] and (match["sign"] or not match["currency"])):
        percent = text.endswith(("%", "\uff05"))
        raise NumberTextError(text, "it is a percentage: convert it before" if percent else "")
    if match["scale"] and not scaled:
        raise NumberTextError(text, f"{match['scale']!r} is read after volumes and amounts only")
    digits = match["digits"]
    number = _plain(digits, decimal)
    if number is None:
        other = "," if decimal == "." else "."
        shown = _plain(digits, other) is not None
        raise NumberTextError(text, f"the column's decimal mark is {decimal!r}" if shown else "")
    minus = (match["sign"] + match["after"]).count("-") == 1
    signless = float(number) * SCALES.get(match["scale"].lower(), 1.0)
    return -signless if minus else signless, match["currency"] or match["unit"]


def _plain(digits: str, decimal: str) -> str | None:
    """Digits as float() takes them; None where the marks do not fit."""
    digits, e, power = digits.lower().partition("e")
    whole, mark, fraction = digits.partition(decimal)
    if mark and not fraction.isdigit():
        return None
    if whole and GROUPED.fullmatch(whole) is None:
        return None
    plain = re.sub(r"\D", "", whole)
    return f"{plain or '0'}.{fraction or '0'}{e}{power}"

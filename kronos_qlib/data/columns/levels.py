"""Tables whose columns have two levels, a price and a ticker, as yfinance makes them: made long."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from kronos_qlib.data.columns.spelling import COMPACT, compact
from kronos_qlib.data.files.raw import Values
from kronos_qlib.errors import some_of
from kronos_qlib.schema import PRICE_COLUMNS

Name = str | tuple[str, ...]
Column = tuple[Name, Values]

PRICES = tuple(COMPACT[name] for name in PRICE_COLUMNS)


@dataclass(frozen=True)
class FlatTable:
    """A table with one level of names, one row per ticker and time.

    columns: names and values. rows: each row's number in the source. note: what was done.
    """

    columns: Sequence[Column]
    rows: npt.NDArray[np.int64]
    note: str


def flatten_header(columns: Sequence[Column], rows: npt.NDArray[np.int64]) -> FlatTable | None:
    """A CSV file whose header has two or three rows, made long; None of any other.

    Args:
        columns: names and (n,) values. rows: (n,) their rows in the file.

    The second row holds the other level of names, the third the index's name and nothing else.
    """
    if len(rows) < 2 or len(columns) < 3:
        return None
    second, third = ([str(values[place]).strip() for _, values in columns] for place in (0, 1))
    if not _is_header(second[1:]):
        return None
    has_third = bool(third[0]) and not any(third[1:])
    if not has_third and second[0] and compact(second[0]) not in COMPACT["date"]:
        return None
    skipped = 2 if has_third else 1
    named: list[Column] = []
    for place, (name, values) in enumerate(columns):
        head = str(name).strip()
        if place == 0:
            own = head if compact(head) in COMPACT["date"] else second[0] or head
            first = third[0] if has_third else own
            named.append((first, values[skipped:]))
        else:
            named.append(((head, second[place]), values[skipped:]))
    return flatten_levels(named, rows[skipped:])


def flatten_levels(columns: Sequence[Column], rows: npt.NDArray[np.int64]) -> FlatTable | None:
    """Columns named (price, ticker) or (ticker, price), made long; None of any other names.

    A column with one name, or whose other level is empty, belongs to every ticker. A ticker's row
    without any value is no bar: that day others traded.
    """
    pairs = [name for name, _ in columns if isinstance(name, tuple)]
    if any(len(pair) != 2 for pair in pairs):
        return None
    level = _price_level(pairs)
    if level is None:
        return None
    shared: list[Column] = []
    by_ticker: dict[str, list[tuple[str, Values]]] = {}
    for name, values in columns:
        if not isinstance(name, tuple):
            shared.append((name, values))
            continue
        price, ticker = name[level].strip(), name[1 - level].strip()
        if compact(price) in COMPACT["symbol"]:
            return None  # it says itself which instrument a row is
        if ticker and price:
            by_ticker.setdefault(ticker, []).append((price, values))
        else:
            shared.append((price or ticker, values))
    if not by_ticker:
        return None
    names = list(dict.fromkeys(price for own in by_ticker.values() for price, _ in own))
    if any(len({price for price, _ in own}) < len(own) for own in by_ticker.values()):
        return None
    kept = {ticker: _has_values([values for _, values in own]) for ticker, own in by_ticker.items()}
    columns_by_name: dict[str, list[Values]] = {name: [] for name in names}
    for ticker, own in by_ticker.items():
        have = dict(own)
        for name in names:
            whole = have.get(name, np.full(len(rows), "", dtype=object))
            columns_by_name[name].append(whole[kept[ticker]])
    tickers = np.concatenate(
        [np.full(int(keep.sum()), ticker, dtype=object) for ticker, keep in kept.items()]
    )
    flat: list[Column] = [("symbol", tickers)]
    for name, values in shared:
        flat.append((name, np.concatenate([values[keep] for keep in kept.values()])))
    flat += [(name, np.concatenate(parts)) for name, parts in columns_by_name.items()]
    some = some_of(list(by_ticker), 5)
    note = f"columns of two levels are read as prices of {len(by_ticker)} instruments: {some}"
    return FlatTable(flat, np.concatenate([rows[keep] for keep in kept.values()]), note)


def _is_header(values: Sequence[str]) -> bool:
    """Whether a row of values holds names: no number, and more than half of them something."""
    return 2 * sum(map(bool, values)) > len(values) and not any(map(_is_number, values))


def _is_number(value: str) -> bool:
    try:
        float(value)
    except ValueError:
        return False
    return True


def _price_level(pairs: Sequence[tuple[str, ...]]) -> int | None:
    """Which level of the names holds open, high, low and close."""
    for level in (0, 1):
        have = {compact(pair[level]) for pair in pairs}
        if all(have & known for known in PRICES):
            return level
    return None


def _has_values(columns: Sequence[Values]) -> npt.NDArray[np.bool_]:
    there = np.zeros(len(columns[0]), dtype=bool)
    for values in columns:
        if values.dtype.kind == "O":
            there |= np.array(
                [not (value is None or value != value or value == "") for value in values]
            )
        elif values.dtype.kind in "fM":
            there |= ~np.isnan(values) if values.dtype.kind == "f" else ~np.isnat(values)
        else:
            there[:] = True
    return there

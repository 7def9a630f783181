"""Columns beside the bars: a handler's features, Alpha158's, and Qlib expressions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cache
from typing import Any

import numpy as np
import pandas as pd
from qlib.contrib.data.loader import Alpha158DL
from qlib.data import D
from qlib.data.dataset.handler import DataHandler, DataHandlerLP

from kronos_qlib.data.windows.faulty_bars import Floats
from kronos_qlib.data.windows.window import Windows
from kronos_qlib.errors import ConfigError, printable
from kronos_qlib.plugin.expressions import check_no_later_bars, is_expression
from kronos_qlib.schema import BAR_COLUMNS

FEATURE, LABEL = "feature", "label"
"""Groups of a handler's columns: what models learn from, and what they learn; Qlib's names."""


@cache
def alpha158_expressions() -> Mapping[str, str]:
    """Alpha158's columns by name, as Qlib's own handler has them."""
    expressions, names = Alpha158DL.get_feature_config()
    return dict(zip(names, expressions, strict=True))


@dataclass(frozen=True)
class HandlerColumns:
    """What each window's instrument has at its last bar, as it is known at that bar's close.

    A name is looked for among the features of the data set's handler, which its processors for
    inference have seen; then among Alpha158's; anything else is an expression, as "$pe" or
    "Mean($turnover, 20)". An expression that reads later bars is refused, also of a handler whose
    loader says how a column is made; what other code makes of later bars, `plugin.lookahead` finds.
    """

    handler: DataHandler
    freq: str = "day"

    def check(self, names: Sequence[str]) -> None:
        """
        Raises:
            ConfigError: a name is neither a column nor an expression, or reads later bars.
        """
        for name in names:
            self._expression(name)

    def of(self, windows: Windows, names: Sequence[str]) -> Floats:
        """(N, F) float32 of N windows; NaN where there is no value."""
        values = np.full((len(windows), len(names)), np.nan, dtype=np.float32)
        if not len(windows):
            return values
        index = windows.index
        expressions = self.expressions(names)
        own = [name for name in names if expressions[name] is None]
        read = {name: text for name, text in expressions.items() if text is not None}
        times = index.get_level_values("datetime")
        first, last = times.min(), times.max()
        if own:
            frame = self._frame(slice(first, last))[own].reindex(index)
            values[:, [names.index(name) for name in own]] = frame.to_numpy(dtype=np.float32)
        if read:
            instruments = sorted(index.get_level_values("instrument").unique())
            table = D.features(instruments, [*read.values()], first, last, freq=self.freq)
            table.columns = [*read]
            table = table.swaplevel().reindex(index)
            values[:, [names.index(name) for name in read]] = table.to_numpy(dtype=np.float32)
        return values

    def expressions(self, names: Sequence[str]) -> dict[str, str | None]:
        """What each name is to Qlib; None for a column of the handler.

        Raises:
            ConfigError: as of `check`.
        """
        return {name: self._expression(name) for name in names}

    def frame(self) -> pd.DataFrame:
        """The handler's features of all of its times, on (datetime, instrument)."""
        return self._frame(slice(None, None))

    def _expression(self, name: str) -> str | None:
        """What a name is to Qlib; None for a column of the handler."""
        made = self._made_by()
        if made is not None and name in made:
            if made[name] is not None:
                check_no_later_bars(str(made[name]), f"features: the handler's {name}")
            return None
        known = alpha158_expressions()
        if name in known:
            return known[name]
        if "$" in name and is_expression(name):
            check_no_later_bars(name, "features")
            return name
        if name in BAR_COLUMNS:
            raise ConfigError(
                f"features: {name!r} is in the windows already; its level, which later splits "
                f"have moved, is no column to rank by: write ${name} / Ref(${name}, 1)"
            )
        kind = type(self.handler).__name__
        near = get_close_matches(name, [*(made or ()), *known], n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise ConfigError(
            f"features: the handler {kind} has no column {printable(name)!r}; {hint}A feature is a "
            "column of the data set's handler, one of Alpha158's, or a Qlib expression, as '$pe'"
        )

    def _made_by(self) -> Mapping[str, str | None] | None:
        """The handler's features, and the expression of each where its loader says; None: none.

        A `KronosHandler` has bars for features, which the windows hold.
        """
        written = _written_in(getattr(self.handler, "data_loader", None))
        if [*written] == [*BAR_COLUMNS]:
            return None
        nested = hasattr(getattr(self.handler, "data_loader", None), "data_loader_l")
        if written and not nested and not _are_made_anew(self.handler):
            return dict(written)
        return {name: written.get(name) for name in self._columns()}

    def _columns(self) -> list[str]:
        return [str(name) for name in self._frame(slice(None, None), few=True).columns]

    def _frame(self, span: slice, *, few: bool = False) -> pd.DataFrame:
        """The handler's features on (datetime, instrument); of `few`, only its columns count."""
        how: dict[str, Any] = {"col_set": FEATURE}
        if isinstance(self.handler, DataHandlerLP):
            how["data_key"] = DataHandlerLP.DK_I
        if few:
            names = self.handler.get_cols(**how)
            return pd.DataFrame(columns=names)
        frame: pd.DataFrame = self.handler.fetch(span, **how)
        if list(frame.index.names) != ["datetime", "instrument"]:
            frame = frame.reorder_levels(["datetime", "instrument"])
        return frame


def label_written_in(handler: object) -> str | None:
    """The expression of a handler's label, the first if it has several; None: its loader has none.

    What a loader has as a table, or makes by other code, is no expression.
    """
    written = _written_in(getattr(handler, "data_loader", None), LABEL)
    return next(iter(written.values()), None)


def _written_in(loader: object, group: str = FEATURE) -> dict[str, str]:
    """Columns of a loader's group, and of those nested in it, with their expressions."""
    found: dict[str, str] = {}
    for inner in getattr(loader, "data_loader_l", ()):
        found |= _written_in(inner, group)
    groups = getattr(loader, "fields", None)
    if isinstance(groups, Mapping):
        groups = groups.get(group)
    elif group != FEATURE:  # without groups all are features
        groups = None
    if isinstance(groups, tuple) and len(groups) == 2:
        found |= dict(zip(groups[1], groups[0], strict=True))
    return found


def _are_made_anew(handler: DataHandler) -> bool:
    """Whether processors may add or rename columns, so that the loader's names are not all."""
    return bool(
        getattr(handler, "infer_processors", ()) or getattr(handler, "shared_processors", ())
    )

"""An evening's decision by weights, in the place of TopK's."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import pandas as pd
from qlib.backtest.decision import Order
from qlib.data import D

from kronos_qlib.errors import ConfigError, some_of
from kronos_qlib.plugin.orders.making import BUY, PART, SELL, Dealt, Market, closes_text
from kronos_qlib.plugin.orders.target_weights import (
    LEAST_DAYS,
    WeightConfig,
    joint_outcomes,
    target_weights,
)
from kronos_qlib.plugin.provider.reader import read_calendar

LEVEL = re.compile(r"q(0\.\d+)")
"""How a column of quantiles is named."""


def outcomes_of(table: pd.DataFrame | None, ranked: pd.Series[float]) -> pd.DataFrame:
    """(N, Q) quantiles of scored names, on instrument, columns by rising level.

    Raises:
        ConfigError: there are none, levels are not equally spaced, or a name has none.
    """
    named = {} if table is None else {name: LEVEL.fullmatch(str(name)) for name in table}
    levels = {name: float(found[1]) for name, found in named.items() if found}
    if table is None or not levels:
        raise ConfigError(
            "orders.weights needs forecasts of returns, and this model draws no paths (an alpha "
            "head, LightGBM and blends draw none): leave weights out, and TopK decides"
        )
    found = table[sorted(levels, key=lambda name: levels[name])].reindex(ranked.index)
    steps = np.diff(sorted(levels.values()))
    if len(levels) < 5 or not np.allclose(steps, steps[0]):
        raise ConfigError(
            f"orders.weights needs 5 levels or more of quantiles, equally spaced, got "
            f"{', '.join(map(str, found))}"
        )
    lacking = found.index[~np.isfinite(found.to_numpy(np.float64)).all(axis=1)]
    if len(lacking):
        raise ConfigError(f"{some_of(lacking.tolist())} has a score and no quantiles")
    return found.sort_index()


@dataclass
class WeighedMarket(Market):
    """A market whose decision is a change from the weights held to those that are best."""

    quantiles: pd.DataFrame
    """As of `outcomes_of`."""
    how: WeightConfig
    table: pd.DataFrame = field(init=False)
    """On instrument: `held`, `low`, `high`, `wanted` (shares of the book's value), `mean`, `worst`
    (forecast returns)."""

    def decide(self) -> list[Order]:
        """Orders that bring the book to its weights, in whole lots.

        Raises:
            ConfigError: there is nothing to part, a name has fewer bars than `how.days`, or no
                weights fit what is held.
        """
        names = pd.Index(sorted({*map(str, self.ranked.index), *self.held}), name="instrument")
        prices = (self.quotes["close"] / self.quotes["factor"]).reindex(names)
        owned = self.book.holdings["quantity"].reindex(names).fillna(0.0)
        money = (owned * prices).fillna(0.0)
        value = self.book.cash + float(money.sum())
        if value <= 0:
            raise ConfigError("there is neither cash nor a holding to be parted among names")
        found = joint_outcomes(self.quantiles.to_numpy(np.float64), self._past())
        tail = max(1, round(self.how.tail * len(found)))
        own = pd.DataFrame(
            {"mean": found.mean(axis=0), "worst": np.sort(found, axis=0)[:tail].mean(axis=0)},
            index=self.quantiles.index,
        )
        self.table = own.reindex(names)
        self.table.insert(0, "held", money / value)
        self._set_bounds()
        outcomes = np.zeros((len(found), len(names)))
        outcomes[:, names.get_indexer(self.quantiles.index)] = found
        self.table["wanted"] = target_weights(
            outcomes,
            *(self.table[name].to_numpy() for name in ("held", "low", "high")),
            budget=self.settings.risk_degree,
            costs=(self.settings.open_cost, self.settings.close_cost),
            how=self.how,
            least_cost=self.settings.min_cost / value,
        )
        return [*self._orders(self.table["wanted"] * value / prices - owned, owned)]

    def left_alone(self, dealt: Sequence[Dealt]) -> Iterator[list[str]]:
        """Who cannot be traded as the weights would have it, and why."""
        for name, row in self.table.iterrows():
            sure = self._is_fixed(str(name))
            if sure and (row["held"] > 0 or self.places.get(str(name), np.inf) <= 10):
                yield [str(name), f"{self.rank_text(str(name))}: {sure}"]
        for each in dealt:
            if not each.quantity:
                why = self.why_not(each.name, each.side, each)
                yield [each.name, f"{self.rank_text(each.name)}: {why}"]

    def _why(self, dealt: Dealt) -> str:
        row = self.table.loc[dealt.name]
        text = f"{self.rank_text(dealt.name)}: weight {row['held']:.1%} to {row['wanted']:.1%}"
        if np.isnan(row["mean"]):
            return text + ", for nothing is forecast of it"
        return text + (
            f"; forecast return {row['mean']:+.1%}, of the worst {self.how.tail:.0%} "
            f"{row['worst']:+.1%}"
        )

    def _set_bounds(self) -> None:
        """Between which each weight lies: what cannot be traded stays, what is not scored goes."""
        low, high = [], []
        for name, held in self.table["held"].items():
            is_held = bool(self._is_fixed(str(name)))
            is_scored = str(name) in self.places
            low.append(held if is_held else 0.0)
            high.append(held if is_held else self.how.most if is_scored else 0.0)
        self.table["low"], self.table["high"] = low, high

    def _is_fixed(self, name: str) -> str:
        """Why a weight has to stay as it is; "" where it may change."""
        if not (self.is_tradable(name, BUY) and self.is_tradable(name, SELL)):
            return self.obstacle(name)
        if name in self.book.holdings.index:
            days = int(self.book.holdings["days"][name])
            if days < self.settings.hold_thresh:
                least = self.settings.hold_thresh
                return f"held for {closes_text(days)}, and hold_thresh is {least}"
        return ""

    def _orders(self, change: pd.Series[float], owned: pd.Series[float]) -> Iterator[Order]:
        """Args: change, owned: real shares."""
        for key, shares in change.items():
            name, factor = str(key), self.factor_of(str(key))
            is_all = bool(owned[name] > 0 and self.table["wanted"][name] <= PART)
            size = float(owned[name] if is_all else abs(shares))
            if np.isnan(size) or self._is_fixed(name):
                continue
            amount = size / factor
            if not is_all:
                amount = self.exchange.round_amount_by_trade_unit(amount, factor)
            if amount * factor > PART:
                yield Order(
                    stock_id=name,
                    amount=amount,
                    start_time=self.day,
                    end_time=self.day + pd.Timedelta(days=1) - pd.Timedelta(seconds=1),
                    direction=Order.SELL if is_all or shares < 0 else Order.BUY,
                    factor=factor,
                )

    def _past(self) -> npt.NDArray[np.float64]:
        """(S, N) returns of scored names on the last days up to the evening."""
        calendar = pd.DatetimeIndex(read_calendar("day"))
        days = calendar[calendar <= self.evening][-self.how.days - 1 :]
        if len(days) <= LEAST_DAYS:
            raise ConfigError(
                f"orders.weights needs {LEAST_DAYS} days of bars before {self.evening:%Y-%m-%d} "
                f"to say how names move together, and there are {len(days) - 1}"
            )
        names = list(self.quantiles.index)
        closes = D.features(names, ["$close"], days[0], self.evening, freq="day")["$close"]
        wide = closes[closes > 0].unstack("instrument").reindex(index=days, columns=names)
        return wide.pct_change(fill_method=None).to_numpy(np.float64)[1:]

"""Orders of the next day: Qlib's TopkDropoutStrategy on the evening's book and scores."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
from qlib.backtest.decision import Order, OrderDir
from qlib.backtest.position import Position
from qlib.backtest.signal import Signal
from qlib.backtest.utils import CommonInfrastructure, LevelInfrastructure
from qlib.config import C
from qlib.contrib.strategy import TopkDropoutStrategy
from qlib.data import D

from kronos_qlib.errors import ConfigError, short_repr, some_of
from kronos_qlib.files import replacing
from kronos_qlib.markup import cause_of
from kronos_qlib.plugin.exchange import BarExchange
from kronos_qlib.plugin.orders.book import Book
from kronos_qlib.plugin.orders.coming_day import BEFORE, EveningExchange, OneStep
from kronos_qlib.plugin.orders.target_weights import WeightConfig
from kronos_qlib.plugin.provider.reader import read_calendar, read_spans
from kronos_qlib.plugin.records.backtest_record import (
    BacktestConfig,
    exchange_settings,
    strategy_settings,
)
from kronos_qlib.plugin.runs.quiet import quiet_backtest
from kronos_qlib.settings import check_number

BUY, SELL = "buy", "sell"
COLUMNS = ["instrument", "side", "quantity", "limit", "reason"]
PART = 1e-6
"""Of a share: less is rounding of adjusted amounts."""


@dataclass(frozen=True, kw_only=True)
class OrderConfig:
    """What orders need beside the strategy's settings (`BacktestConfig`)."""

    limit_distance: float | None = 0.02
    """How far from the evening's close an order's limit lies, as a fraction: above to buy, below
    to sell, never beyond `limit_threshold`. None: market orders, the column is empty."""
    tick: float = 0.01
    """Limits are whole multiples of it."""

    def __post_init__(self) -> None:
        far = self.limit_distance
        check_number(self, "tick", *() if far is None else ("limit_distance",))
        if far is not None and not 0 <= far < 1:
            raise ConfigError(f"limit_distance is a fraction from 0 to below 1, got {far!r}")
        if self.tick <= 0:
            raise ConfigError(f"tick is money above 0, got {self.tick!r}")


@dataclass(frozen=True)
class Orders:
    """What to trade on a day.

    table: by side (sells first) and rank: `instrument`, `side` ("buy", "sell"), `quantity` (real
        shares), `limit` (money a real share, NaN for a market order), `reason` (a sentence).
    left_alone: `instrument`, `reason`: names that the strategy would have traded and did not.
    """

    evening: pd.Timestamp
    """The day whose close and scores they come from."""
    day: pd.Timestamp
    """The day that they are for."""
    table: pd.DataFrame
    left_alone: pd.DataFrame
    book: Book
    """What was held when they were made."""
    settings: BacktestConfig
    notes: tuple[str, ...]
    weights: WeightConfig | None = None
    """What they were weighed by; None where TopK decided."""

    def write(self, path: Path | str) -> None:
        """`table` as CSV, atomically."""
        with replacing(Path(path)) as draft:
            self.table.to_csv(draft, index=False, float_format="%.12g", lineterminator="\n")


def make_orders(
    scores: pd.Series[float],
    book: Book,
    settings: BacktestConfig,
    *,
    evening: pd.Timestamp,
    day: pd.Timestamp | None = None,
    how: OrderConfig | None = None,
    hindsight: bool = False,
    weights: WeightConfig | None = None,
    quantiles: pd.DataFrame | None = None,
) -> Orders:
    """The orders that Qlib's backtest would give with this book and these scores.

    Qlib is open on the folder of bars (`qlib.init`). Quantities are what the backtest would deal:
    whole lots, no more than the cash and `volume_share` allow.

    Args:
        scores: of the evening, on instrument.
        evening: the day of the scores.
        day: that the orders are for; None takes the next of Qlib's calendar and its future days.
        hindsight: take prices, limits and suspensions of `day` itself, as a backtest does: for
            replays. False takes the evening's: what did not trade then is left alone, and the
            limits of the day to come are not known.
        weights: bring the book to the weights that a linear programme finds, in place of TopK's
            decision: no backtest is like it, and `topk` and `n_drop` play no part.
        quantiles: for these, of each scored name's return: a column a level ("q0.05"), as of
            `NewestScores.table`; others are passed over.

    Raises:
        ConfigError: bars are not of days; the calendar has no day after the evening; a score is
            missing or a name scored twice; a holding has no price, or is held twice in two
            spellings. Of weights: there are no quantiles, or no weights that keep the bounds.
    """
    how = how or OrderConfig()
    if settings.freq not in (None, "day", "1day"):
        raise ConfigError(f"orders are made of daily bars, and backtest.freq is {settings.freq}")
    evening, day = _days(evening, day)
    ranked = _ranked(scores, evening)
    book = _spelt_as_there(book, ranked)
    quotes = last_quotes(sorted({*ranked.index, *book.holdings.index}), evening)
    with quiet_backtest():
        facts = (ranked, book, settings, evening, day, quotes, hindsight)
        if weights is None:
            market = Market(*facts)
        else:
            from kronos_qlib.plugin.orders.weighed_market import WeighedMarket, outcomes_of

            market = WeighedMarket(*facts, outcomes_of(quantiles, ranked), weights)
        dealt = list(market.deal())
    table = pd.DataFrame(
        [market.row(each, how) for each in dealt if each.quantity], columns=COLUMNS
    )
    left = [*market.left_alone(dealt)]
    return Orders(
        evening=evening,
        day=day,
        table=table.astype({"quantity": float, "limit": float}),
        left_alone=pd.DataFrame(left, columns=["instrument", "reason"]),
        book=book,
        settings=settings,
        notes=tuple(market.notes(how)),
        weights=weights,
    )


def read_scores(path: Path | str) -> pd.Series[float]:
    """Scores on instrument, out of a CSV with the columns `instrument` and `score`.

    Raises:
        ConfigError: the file is missing, lacks a column, or a score is no number.
    """
    path = Path(path)
    try:
        # Names such as 600000 or TRUE stay what they are.
        found = pd.read_csv(path, dtype=str, keep_default_na=False, encoding="utf-8-sig")
    except (OSError, ValueError) as problem:
        raise ConfigError(f"the scores {path} cannot be read: {cause_of(problem)}") from problem
    if not {"instrument", "score"} <= set(found):
        raise ConfigError(f"{path} has no columns instrument and score: see kronos-qlib score")
    values = pd.to_numeric(found["score"], errors="coerce")
    if values.isna().any():
        place = int(values.isna().to_numpy().argmax())
        raise ConfigError(
            f"{path}, line {place + 2}: score is a number, got {short_repr(found['score'][place])}"
        )
    return pd.Series(values.to_numpy(dtype=np.float64), index=found["instrument"], name="score")


@dataclass(frozen=True)
class Dealt:
    """An order of the strategy, as the exchange deals it."""

    name: str
    side: str
    asked: float
    quantity: float
    """Real shares, as `asked`."""


@dataclass
class Market:
    """One day's decision: what the strategy wants, and what comes of it."""

    ranked: pd.Series[float]
    """Scores by falling score."""
    book: Book
    settings: BacktestConfig
    evening: pd.Timestamp
    day: pd.Timestamp
    quotes: pd.DataFrame
    hindsight: bool
    exchange: BarExchange = field(init=False)
    position: Position = field(init=False)
    held: list[str] = field(init=False)
    places: dict[str, int] = field(init=False)

    def __post_init__(self) -> None:
        self.held = list(self.book.holdings.index)
        self.places = {name: place for place, name in enumerate(self.ranked.index, start=1)}
        codes = sorted({*self.ranked.index, *self.held})
        settings = {**exchange_settings(self.settings), "freq": "day", "codes": codes}
        if self.hindsight:
            first = self.evening - BEFORE
            self.exchange = BarExchange(start_time=first, end_time=self.day, **settings)
        else:
            settings.pop("limit_threshold")
            self.exchange = EveningExchange(evening=self.evening, day=self.day, **settings)
        self.position = Position(self.book.cash, self._positions())

    def _positions(self) -> dict[str, dict[str, float]]:
        known = self.quotes["close"].notna()
        unknown = [name for name in self.held if not known.get(name, False)]
        if unknown:
            raise ConfigError(
                f"{some_of(unknown)} is held and has no bar up to {self.evening:%Y-%m-%d} in this "
                "folder: was it renamed, or is it spelt otherwise there? Correct the positions"
            )
        return {
            str(name): {
                # Qlib's amounts are of adjusted prices: real shares / factor.
                "amount": float(row["quantity"]) / float(self.quotes["factor"][name]),
                "price": float(self.quotes["close"][name]),
                "count_day": int(row["days"]),
                "weight": 0.0,
            }
            for name, row in rows_of(self.book.holdings)
        }

    def decide(self) -> list[Order]:
        """What the strategy wants."""
        common, level = CommonInfrastructure(), LevelInfrastructure()
        account = SimpleNamespace(current_position=self.position)
        common.reset_infra(trade_account=account, trade_exchange=self.exchange)
        level.reset_infra(trade_calendar=OneStep(self.evening, self.day))
        strategy = TopkDropoutStrategy(
            signal=_Scores(self.ranked.sort_index()),
            common_infra=common,
            level_infra=level,
            **strategy_settings(self.settings),
        )
        return list(strategy.generate_trade_decision().get_decision())

    def deal(self) -> Iterator[Dealt]:
        """The orders wanted, one after the other, as Qlib's executor deals them."""
        dealt: dict[str, float] = defaultdict(float)
        orders = self.decide()
        # Qlib goes through what is held as through a set: in another order in every process.
        orders = sorted(orders, key=lambda each: (each.direction == Order.BUY, self._place(each)))
        for order in orders:
            self.exchange.deal_order(order, position=self.position, dealt_order_amount=dealt)
            dealt[order.stock_id] += order.deal_amount
            factor = self.factor_of(order.stock_id)
            asked, quantity = (_shares(each * factor) for each in (order.amount, order.deal_amount))
            side = BUY if order.direction == Order.BUY else SELL
            yield Dealt(order.stock_id, side, asked, quantity)

    def row(self, dealt: Dealt, how: OrderConfig) -> list[Any]:
        """A row of the table."""
        return [
            dealt.name,
            dealt.side,
            dealt.quantity,
            self._limit(dealt, how),
            self._reason(dealt),
        ]

    def left_alone(self, dealt: Sequence[Dealt]) -> Iterator[list[str]]:
        """Who would have been traded by its rank and is not, and why."""
        traded = {each.name for each in dealt if each.quantity}
        none = {each.name: each for each in dealt if not each.quantity}
        sells, buys = self._wanted()
        for name, side in [*((name, SELL) for name in sells), *((name, BUY) for name in buys)]:
            if name not in traded:
                yield [name, f"{self.rank_text(name)}: {self.why_not(name, side, none.get(name))}"]

    def notes(self, how: OrderConfig) -> Iterator[str]:
        """What a reader of the orders must know."""
        if not self.hindsight:
            yield (
                f"made of the bars of {self.evening:%Y-%m-%d}: limits and suspensions of "
                f"{self.day:%Y-%m-%d} are not known yet"
            )
        if self.exchange.trade_w_adj_price:
            yield "the folder has no $factor: quantities are of adjusted prices, not whole lots"
        distance = self._distance(how) or 0.0
        if self.settings.risk_degree * (1 + distance) > 1:
            yield (
                f"if every purchase fills at its limit, {distance:.1%} above the close, the cash "
                "does not reach for all of them"
            )
        unscored = [name for name in self.held if name not in self.places]
        if unscored:
            yield f"held and not scored, so the first to be sold: {some_of(unscored, 5)}"

    def _wanted(self) -> tuple[list[str], list[str]]:
        """Names that TopkDropoutStrategy would sell and buy, were there nothing but ranks."""
        topk, n_drop = self.settings.topk, self.settings.n_drop
        scores = self.ranked.sort_index()
        last = scores.reindex(self.held).sort_values(ascending=False).index
        new = scores[~scores.index.isin(last)].sort_values(ascending=False).index
        if self.settings.only_tradable:
            new = new[[self.is_tradable(name, BUY) for name in new]]
        today = new[: max(0, n_drop + topk - len(last))]
        both = scores.reindex(last.union(today)).sort_values(ascending=False).index
        worst = both
        if self.settings.only_tradable:
            worst = both[[self.is_tradable(name, SELL) for name in both]]
        sells = last[last.isin(worst[-n_drop:])]
        buys = today[: max(0, len(sells) + topk - len(last))]
        return list(sells), list(buys)

    def why_not(self, name: str, side: str, dealt: Dealt | None) -> str:
        """Why a name that was to be bought or sold has no order."""
        settings = self.settings
        if not self.is_tradable(name, side):
            return self.obstacle(name)
        if side == SELL:
            days = int(self.book.holdings["days"][name])
            if days < settings.hold_thresh:
                return f"held for {closes_text(days)}, and hold_thresh is {settings.hold_thresh}"
            return "nothing of it can be sold: see cash and volume_share"
        price = self._price(name)
        if dealt is not None and not dealt.asked:
            return f"its share of the cash does not buy a lot at {price:.2f}"
        return "the cash left, or volume_share, does not reach for a lot"

    def obstacle(self, name: str) -> str:
        """Why a name cannot be traded on the day."""
        when = self.day if self.hindsight else self.evening
        if self.exchange.check_stock_suspended(name, self.day, self.day):
            return f"suspended: it has no bar of {when:%Y-%m-%d}"
        if self.hindsight:
            change = self.exchange.quote.get_data(
                name, self.day, self.day, field="$change", method="ts_data_last"
            )
            limit = self.exchange.limit_threshold
            if isinstance(limit, float) and change is not None and abs(change) >= limit:
                return f"at its limit, {change:+.1%}"
        return f"it did not trade on {when:%Y-%m-%d}"

    def is_tradable(self, name: str, side: str) -> bool:
        """Whether Qlib's exchange would take an order of that side."""
        direction = None
        if not self.settings.forbid_all_trade_at_limit:
            direction = OrderDir.BUY if side == BUY else OrderDir.SELL
        found = self.exchange.is_stock_tradable(name, self.day, self.day, direction)
        return bool(found)

    def _reason(self, dealt: Dealt) -> str:
        text = self._why(dealt)
        if dealt.quantity < dealt.asked - PART:
            text += f"; cut from {dealt.asked:g} by cash or volume_share"
        return text

    def _why(self, dealt: Dealt) -> str:
        if dealt.side == SELL:
            days = int(self.book.holdings["days"][dealt.name])
            drop = self.settings.n_drop
            lowest = "the lowest" if drop == 1 else f"among the {drop} lowest"
            text = (
                f"{self.rank_text(dealt.name)}: {lowest} of what is held and what would be bought; "
                f"held for {closes_text(days)}"
            )
        else:
            text = f"{self.rank_text(dealt.name)}: among the best that are not held"
        return text

    def rank_text(self, name: str) -> str:
        """Its place among those scored, in words."""
        place = self.places.get(name)
        return "not scored" if place is None else f"rank {place} of {len(self.places)}"

    def _place(self, order: Order) -> tuple[int, str]:
        return self.places.get(order.stock_id, len(self.places) + 1), order.stock_id

    def factor_of(self, name: str) -> float:
        """Real shares to one of Qlib's on the day."""
        if self.exchange.trade_w_adj_price:
            return 1.0
        return float(self.exchange.get_factor(name, self.day, self.day) or 1.0)

    def _price(self, name: str) -> float:
        """The evening's close of a real share."""
        return float(self.quotes["close"][name]) / float(self.quotes["factor"][name])

    def _distance(self, how: OrderConfig) -> float | None:
        """Of limits from the close, within what may be traded at all; None: market orders."""
        most = self.settings.limit_threshold
        most = C.limit_threshold if most is None else most  # the region's, None where it has none
        far = how.limit_distance
        return far if far is None or most is None else min(far, most)

    def _limit(self, dealt: Dealt, how: OrderConfig) -> float:
        far = self._distance(how)
        if far is None or not np.isfinite(self.quotes["close"].get(dealt.name, np.nan)):
            return math.nan
        ticks = self._price(dealt.name) * (1 + far if dealt.side == BUY else 1 - far) / how.tick
        # Towards the cautious side, but for what is a whole tick up to rounding.
        whole = math.floor(ticks + PART) if dealt.side == BUY else math.ceil(ticks - PART)
        return round(max(whole, 1) * how.tick, 10)


def closes_text(days: int) -> str:
    """So many closes."""
    return f"{days} close{'s' if days != 1 else ''}"


def rows_of(table: pd.DataFrame) -> Iterator[tuple[str, Any]]:
    """Each row of a table on instrument, by its name."""
    for name, row in table.iterrows():
        yield str(name), row


class _Scores(Signal):
    """A day's scores, whichever day is asked for."""

    def __init__(self, scores: pd.Series[float]) -> None:
        self._scores = scores

    def get_signal(self, start_time: Any, end_time: Any) -> pd.Series[float]:
        return self._scores


def _shares(amount: float) -> float:
    """Whole shares where only rounding parts them from it."""
    whole = round(amount)
    return float(whole) if abs(amount - whole) <= PART * max(1.0, abs(amount)) else float(amount)


def _days(evening: pd.Timestamp, day: pd.Timestamp | None) -> tuple[pd.Timestamp, pd.Timestamp]:
    evening = pd.Timestamp(evening)
    calendar = pd.DatetimeIndex(read_calendar("day", future=True))
    if evening not in calendar:
        raise ConfigError(f"{evening:%Y-%m-%d} is no day of this folder's calendar")
    later = calendar[calendar > evening]
    if day is not None:
        day = pd.Timestamp(day)
        if day <= evening:
            raise ConfigError(
                f"orders are for a day after the scores: {day:%Y-%m-%d} is not after "
                f"{evening:%Y-%m-%d}"
            )
        return evening, day
    if not len(later):
        raise ConfigError(
            f"the calendar ends on {evening:%Y-%m-%d}: give the day that the orders are for, or "
            "write the days to come into calendars/day_future.txt"
        )
    return evening, later[0]


def _ranked(scores: pd.Series[float], evening: pd.Timestamp) -> pd.Series[float]:
    if scores.index.nlevels != 1 or not scores.index.is_unique:
        raise ConfigError("scores are of one evening, each instrument once")
    if scores.empty or not np.isfinite(scores.to_numpy(dtype=np.float64)).all():
        raise ConfigError(
            f"scores of {evening:%Y-%m-%d}: expected finite numbers, one at least, got "
            f"{int((~np.isfinite(scores.to_numpy(dtype=np.float64))).sum())} of {len(scores)} that "
            "are none"
        )
    return scores.sort_index().sort_values(ascending=False, kind="stable")


def _spelt_as_there(book: Book, ranked: pd.Series[float]) -> Book:
    """The book with names as the bars have them: Qlib finds the bars of "sh600000" too, and would
    sell it as another share than SH600000."""
    known = set(map(str, ranked.index))
    if known.issuperset(book.holdings.index):
        return book
    with suppress(ConfigError):  # the folder has no market of all: the scores' names have to do
        known.update(map(str, read_spans("all") or ()))
    spelling = {name.upper(): name for name in known}
    names = [
        name if name in known else spelling.get(name.upper(), name)
        for name in map(str, book.holdings.index)
    ]
    return Book(book.cash, book.holdings.set_axis(names).rename_axis("instrument").sort_index())


def last_quotes(names: Sequence[str], evening: pd.Timestamp) -> pd.DataFrame:
    """The last known close and factor of each name, on instrument; NaN where it has none."""
    frame = D.features(list(names), ["$close", "$factor"], evening - BEFORE, evening, freq="day")
    frame = frame.set_axis(["close", "factor"], axis=1)
    last = frame[frame["close"] > 0].groupby(level="instrument").last().reindex(list(names))
    lost = last.index[last["close"].isna()]
    if len(lost):  # suspended for months
        frame = D.features(list(lost), ["$close", "$factor"], None, evening, freq="day")
        frame = frame.set_axis(["close", "factor"], axis=1)
        older = frame[frame["close"] > 0].groupby(level="instrument").last()
        last = last.combine_first(older)
    last["factor"] = last["factor"].where(last["factor"] > 0).fillna(1.0)
    return last

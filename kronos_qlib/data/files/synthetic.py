"""A market with a known answer: bars that look real, and the return that was planted in them.

Every random number of a day is symmetric about zero and enters that day's simple return without
a curve between them: a return is overnight gap plus intraday steps, never their product. Flip all
signs of a day's shocks and the market's law is the same, so apart from the planted drift neither
the mean nor the rank of any return can be predicted from the past, whatever the volatility does.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from kronos_qlib.errors import ConfigError
from kronos_qlib.schema import LONG_COLUMNS

Floats = npt.NDArray[np.float64]
Flags = npt.NDArray[np.bool_]

REVERSAL_DAYS = 5
"""Days of residual return whose opposite is the planted signal."""
VOLATILITY_DAYS = 20
"""Days of residual return that the visible volatility is measured on."""
SIGNAL_DELAY_DAYS = 2
"""What is known at a close moves the return that starts at the next close: Qlib's label."""
Z_LIMIT = 3.0
SHOCK_LIMIT = 0.3
"""Largest daily return without drift; the drift itself is held to half of it."""
MARKET_VOLATILITY = 0.009
SECTOR_VOLATILITY = 0.006
OWN_VOLATILITY = 0.017
OVERNIGHT_SHARE = 0.2
"""Share of a day's variance that falls between the last close and the open."""
SUSPENSION_DAYS = 3
DAYS_PER_BLOCK = 250
"""Days whose intraday steps are held in memory at once."""
SESSIONS = {
    "day": (),
    # When a bar closes; two sessions with a lunch break, as in Shanghai.
    "5min": (("09:35", "11:30"), ("13:05", "15:00")),
}
"""Frequencies of bars, and the first and last close of each session."""


@dataclass(frozen=True, kw_only=True)
class MarketConfig:
    """What the simulated market looks like."""

    instruments: int = 100
    """How many shares trade."""
    sectors: int = 8
    """Groups of shares that move together."""
    start: str = "2020-01-01"
    """The first bar falls on this date, or on the next weekday."""
    years: float = 3.0
    """Length in calendar years; every weekday trades."""
    effect: float = 0.1
    """Drift per z of signal, in daily volatilities: about the IC to be had. 0 is pure noise."""
    suspended_share: float = 0.003
    """Share of days on which a share does not trade and has no bar."""
    splits_per_year: float = 0.1
    """Two-for-one splits per share and year; each doubles `factor`."""
    late_share: float = 0.1
    """Share of instruments that list during the first half instead of on the first day."""
    intraday_steps: int = 24
    """Simulated prices between a bar's open and its close."""
    freq: str = "day"
    """"day", or "5min": the same law a bar, on 48 bars a day, a day's variance spread over them."""
    seed: int = 0
    """The same seed gives the same bits."""

    def __post_init__(self) -> None:
        for name, least in (("instruments", 2), ("sectors", 1), ("intraday_steps", 1), ("seed", 0)):
            if (value := getattr(self, name)) < least:
                raise ConfigError(f"market.{name} must be {least} or more, got {value}")
        for name, most in (("effect", 0.5), ("suspended_share", 0.2), ("late_share", 0.9)):
            if not 0 <= (value := getattr(self, name)) <= most:
                raise ConfigError(f"market.{name} must lie in [0, {most}], got {value}")
        if self.freq not in SESSIONS:
            raise ConfigError(f"market.freq is one of {', '.join(SESSIONS)}, got {self.freq!r}")
        if not 0 <= self.splits_per_year <= 12:
            raise ConfigError(
                f"market.splits_per_year must lie in [0, 12], got {self.splits_per_year}"
            )
        try:
            start = pd.Timestamp(self.start)
        except ValueError as problem:
            raise ConfigError(
                f"market.start must be a date like 2020-01-01, got {self.start!r}"
            ) from problem
        if pd.isna(start):
            raise ConfigError(f"market.start must be a date like 2020-01-01, got {self.start!r}")
        days = VOLATILITY_DAYS + SIGNAL_DELAY_DAYS
        if not 0.2 <= self.years <= 100:
            raise ConfigError(
                f"market.years must lie in [0.2, 100], since the planted signal needs {days} days "
                f"to begin, got {self.years}"
            )

    @property
    def bars_a_day(self) -> int:
        """Bars of a trading day: 1, or 48 of 5 minutes."""
        return max(1, len(_clock(self.freq)))


@dataclass(frozen=True)
class Market:
    """What a simulated market shows, and what it hides."""

    bars: pd.DataFrame
    """`schema.LONG_COLUMNS`, sorted by symbol and date; a suspended day has no row."""
    oracle: pd.Series[float]
    """The true expected value of `Ref($close,-2)/Ref($close,-1)-1`, on (datetime, instrument).
    Bars whose instrument has not yet traded for 20 days carry no drift and are left out."""
    sectors: pd.Series[str]
    """Symbol to sector."""


@dataclass(frozen=True)
class _Path:
    """Daily simulation, each array (days, instruments)."""

    before: Floats
    """Close of the day before; the first day's is the price at listing."""
    gap: Floats
    """Simple return from that close to the open."""
    total: Floats
    """Simple return from that close to this close, drift and gap included."""
    volatility: Floats
    """Standard deviation of the day's return, as drawn."""
    drift: Floats
    """What was planted in the return `SIGNAL_DELAY_DAYS` later; NaN where no signal is known."""


def make_market(config: MarketConfig) -> Market:
    """Simulate a market whose bars hold one planted effect, a short-term reversal.

    The return from close t+1 to close t+2 has the drift `effect x volatility x z`, where z is the
    cross-sectional z-score at close t of minus the five-day return in units of its volatility.
    Both are measured on closes up to t, after taking off each day's mean over the instruments.

    Returns:
        Bars, oracle and sectors. Prices are not rounded to ticks: rounding would plant a bounce.
    """
    rng = np.random.default_rng(config.seed)
    first = pd.Timestamp(config.start).normalize()
    last = first + pd.Timedelta(days=round(config.years * 365.25) - 1)
    dates = pd.bdate_range(first, last)
    if clock := _clock(config.freq):
        dates = pd.DatetimeIndex([date + time for date in dates for time in clock])
    symbols = [f"SYM{number:04d}" for number in range(1, config.instruments + 1)]
    sector = rng.permutation(np.arange(config.instruments) % config.sectors)

    trades = _draw_presence(config, len(dates), rng)
    path = _walk_days(config, sector, trades, rng)
    fields = _draw_bars(config, path, rng)
    fields["factor"] = _draw_factors(config, trades, rng)

    place = np.nonzero(trades.T)  # instrument-major: sorted by symbol, then date
    who, when = place
    bars = pd.DataFrame({"symbol": np.asarray(symbols)[who], "date": dates[when]})
    for name, values in fields.items():
        bars[name] = values.T[place]
    return Market(
        bars=bars[list(LONG_COLUMNS)],
        oracle=_as_oracle(path.drift, trades, dates, symbols),
        sectors=pd.Series(
            [f"sector{number}" for number in sector],
            index=pd.Index(symbols, name="instrument"),
            name="sector",
        ),
    )


def _clock(freq: str) -> list[pd.Timedelta]:
    """Times of day at which bars of minutes close; none for daily bars."""
    ranges = [
        pd.timedelta_range(f"{begin}:00", f"{end}:00", freq=freq) for begin, end in SESSIONS[freq]
    ]
    return [time for times in ranges for time in times]


def _draw_presence(config: MarketConfig, days: int, rng: np.random.Generator) -> Flags:
    """Who has a bar when: (days, instruments), drawn without a look at any price."""
    shape = (days, config.instruments)
    begins = rng.random(shape) < config.suspended_share / SUSPENSION_DAYS
    suspended = begins.copy()
    for later in range(1, SUSPENSION_DAYS):
        suspended[later:] |= begins[:-later]
    listing = np.where(
        rng.random(config.instruments) < config.late_share,
        rng.integers(1, max(2, days // 2), config.instruments),
        0,
    )
    day = np.arange(days)[:, None]
    present: Flags = (day == listing) | ((day > listing) & ~suspended)
    return present


def _draw_log_volatility(days: int, width: int, spread: float, rng: np.random.Generator) -> Floats:
    """A slow autoregression of log volatility, begun in its own stationary law."""
    memory = 0.97
    steps: Floats = rng.standard_normal((days, width)) * spread
    for day in range(1, days):
        steps[day] = memory * steps[day - 1] + np.sqrt(1 - memory**2) * steps[day]
    return steps


def _draw_fat_tailed(shape: tuple[int, int], rng: np.random.Generator) -> Floats:
    """Student t with six degrees of freedom, scaled to unit variance; symmetric."""
    shocks: Floats = rng.standard_t(6, shape) / np.sqrt(1.5)
    return shocks


def _walk_days(
    config: MarketConfig, sector: npt.NDArray[Any], trades: Flags, rng: np.random.Generator
) -> _Path:
    """Daily returns: factors, own shocks, and the drift that earlier days call for."""
    days, width = trades.shape
    market_volatility = MARKET_VOLATILITY * np.exp(_draw_log_volatility(days, 1, 0.4, rng))
    sector_volatility = SECTOR_VOLATILITY * np.exp(
        _draw_log_volatility(days, config.sectors, 0.3, rng)
    )
    usual = OWN_VOLATILITY * np.exp(rng.normal(0.0, 0.25, width))
    own_volatility = usual * np.exp(_draw_log_volatility(days, width, 0.3, rng))
    beta = rng.uniform(0.7, 1.3, width)

    def shocks(share: float) -> Floats:
        """One part of the day: every factor and every own shock scaled to `share` of variance."""
        whole: Floats = (
            beta * market_volatility * _draw_fat_tailed((days, 1), rng)
            + (sector_volatility * _draw_fat_tailed((days, config.sectors), rng))[:, sector]
            + own_volatility * _draw_fat_tailed((days, width), rng)
        )
        return whole * math.sqrt(share / config.bars_a_day)

    # Clipping is symmetric too, so it plants nothing.
    gap = np.clip(shocks(OVERNIGHT_SHARE), -SHOCK_LIMIT / 2, SHOCK_LIMIT / 2)
    within = np.clip(shocks(1 - OVERNIGHT_SHARE), -SHOCK_LIMIT / 2, SHOCK_LIMIT / 2)
    gap[~trades] = within[~trades] = 0.0
    listing = trades.argmax(axis=0)
    gap[listing, np.arange(width)] = 0.0  # the first bar opens at the listing price

    total, drift = gap + within, np.full((days, width), np.nan)
    residual = np.zeros((days, width))
    for day in range(days):
        source = day - SIGNAL_DELAY_DAYS
        if source >= 0:
            moves = trades[day] & (day > listing)
            total[day] += np.where(moves, np.nan_to_num(drift[source]), 0.0)
        residual[day] = _take_off_mean(total[day], trades[day] & (day > listing))
        if day >= VOLATILITY_DAYS:
            seasoned = trades[day] & (day - listing >= VOLATILITY_DAYS)
            recent = residual[day - VOLATILITY_DAYS + 1 : day + 1]
            drift[day] = _planted_drift(recent, seasoned, config.effect)

    after = rng.uniform(8.0, 60.0, width) * np.cumprod(1.0 + total, axis=0)
    volatility = np.sqrt(
        (beta * market_volatility) ** 2 + sector_volatility[:, sector] ** 2 + own_volatility**2
    ) / math.sqrt(config.bars_a_day)
    return _Path(
        before=after / (1.0 + total), gap=gap, total=total, volatility=volatility, drift=drift
    )


def _take_off_mean(returns: Floats, present: Flags) -> Floats:
    """Returns less their mean over those present; the absent stay at 0."""
    mean = returns[present].mean() if present.any() else 0.0
    residual: Floats = np.where(present, returns - mean, 0.0)
    return residual


def _planted_drift(recent: Floats, seasoned: Flags, effect: float) -> Floats:
    """Drift from the last 20 days of residual returns, (20, instruments); NaN if not seasoned."""
    drift = np.full(recent.shape[1], np.nan)
    volatility = np.sqrt((recent**2).mean(axis=0))
    known = seasoned & (volatility > 0)
    if known.sum() < 2:
        return drift
    signal = -recent[-REVERSAL_DAYS:].sum(axis=0)[known] / volatility[known]
    spread = signal.std()
    z = (signal - signal.mean()) / spread if spread > 0 else np.zeros_like(signal)
    planned = effect * volatility[known] * np.clip(z, -Z_LIMIT, Z_LIMIT)
    drift[known] = np.clip(planned, -SHOCK_LIMIT / 2, SHOCK_LIMIT / 2)
    return drift


def _draw_bars(config: MarketConfig, path: _Path, rng: np.random.Generator) -> dict[str, Floats]:
    """Bars from intraday prices and volumes, each field (days, instruments)."""
    days, width = path.total.shape
    steps = config.intraday_steps
    names = ("open", "high", "low", "close", "volume", "amount")
    fields = {name: np.empty((days, width)) for name in names}
    part = np.arange(1, steps + 1) / steps
    smile = 1.0 + 1.5 * (2 * part - 1) ** 2  # busy at the open and at the close
    money = _draw_money(config, path, rng)
    for begin in range(0, days, DAYS_PER_BLOCK):
        block = slice(begin, begin + DAYS_PER_BLOCK)
        gap, total = path.gap[block, :, None], path.total[block, :, None]
        count = len(gap)
        walk = rng.standard_normal((count, width, steps)).cumsum(axis=2) / np.sqrt(steps)
        bridge = walk - part * walk[:, :, -1:]
        scale = np.sqrt(1 - OVERNIGHT_SHARE) * path.volatility[block, :, None]
        moved = gap + part * (total - gap) + scale * bridge
        moved[:, :, -1:] = total  # the bridge ends there but for rounding
        moved = np.maximum(np.concatenate([gap, moved], axis=2), -0.9)  # prices stay positive
        prices = path.before[block, :, None] * (1.0 + moved)
        weights = smile * rng.exponential(1.0, (count, width, steps))
        spent = money[block, :, None] * weights / weights.sum(axis=2, keepdims=True)
        fields["open"][block] = prices[:, :, 0]
        fields["high"][block] = prices.max(axis=2)
        fields["low"][block] = prices.min(axis=2)
        fields["close"][block] = prices[:, :, -1]
        fields["volume"][block] = (spent / prices[:, :, 1:]).sum(axis=2)
        fields["amount"][block] = spent.sum(axis=2)
    return fields


def _draw_money(config: MarketConfig, path: _Path, rng: np.random.Generator) -> Floats:
    """Money traded per bar: a usual size, more when the bar is volatile or moves a lot."""
    days, width = path.total.shape
    usual = np.exp(rng.normal(np.log(5e7), 0.8, width)) / config.bars_a_day
    relative = path.volatility * math.sqrt(config.bars_a_day) / OWN_VOLATILITY
    surprise = np.abs(path.total) / path.volatility
    mood = _draw_log_volatility(days, width, 0.3, rng)
    noise = rng.normal(0.0, 0.2, (days, width))
    size: Floats = usual * relative * np.exp(0.3 * surprise + mood + noise)
    return size


def _draw_factors(config: MarketConfig, trades: Flags, rng: np.random.Generator) -> Floats:
    """Adjustment factors from 1, doubled by every split; adjusted prices do not notice."""
    splits = rng.random(trades.shape) < config.splits_per_year / 261
    splits &= np.arange(len(trades))[:, None] % config.bars_a_day == 0  # before a day's first bar
    splits &= np.arange(len(trades))[:, None] > trades.argmax(axis=0)  # listed with factor 1
    factors: Floats = 2.0 ** splits.cumsum(axis=0)
    return factors


def _as_oracle(
    drift: Floats, trades: Flags, dates: pd.DatetimeIndex, symbols: list[str]
) -> pd.Series[float]:
    when, who = np.nonzero(trades & np.isfinite(drift))
    index = pd.MultiIndex.from_arrays(
        [dates[when], np.asarray(symbols)[who]], names=["datetime", "instrument"]
    )
    return pd.Series(drift[when, who], index=index, name="oracle")

"""What a comparison finds, in sentences: order, money, and every test."""

from __future__ import annotations

import math

from kronos_qlib.evaluation.compare.comparison import Comparison, Equity, Pair
from kronos_qlib.evaluation.ranking.uncertainty import LEVEL, PROMISED, DailyMean


def run_verdicts(comparison: Comparison) -> list[str]:
    """For each run that has something tested: does it order returns, and does money come of it."""
    signals, equity = comparison.signals, comparison.equity
    found = []
    for name in map(str, comparison.table.index):
        order = signals.means.get(name) if signals is not None else None
        has_backtest = equity is not None and name in equity.net
        if order is None and not has_backtest:
            continue
        sentences = [f"{name}: {order_sentence(order)}"]
        if equity is not None and has_backtest:
            money, ratio = equity.tests.get(name), float(equity.measures["information_ratio"][name])
            sentences.append(money_sentence(ratio, money, days_per_year=equity.days_per_year))
            sentences.append(_conclusion(order, money))
        else:
            sentences.append("What it earns is not known here: it has no backtest to compare.")
        found.append(" ".join(part for part in sentences if part))
    return found


def order_sentence(order: DailyMean | None) -> str:
    """Whether a score orders returns, by the mean of its daily Rank IC."""
    if order is None:
        return "whether it orders returns is not tested."
    numbers = (
        f"Rank IC {order.mean:+.4f} a day, {LEVEL:.0%} interval {interval_text(order.interval())}"
    )
    level = f"{1 - LEVEL:.0%}"
    if not order.is_significant():
        return f"that it orders returns is not significant at {level} ({numbers})."
    wrong = "" if order.mean > 0 else " the wrong way round"
    return f"it orders returns{wrong}, significant at {level} ({numbers})."


def money_sentence(ratio: float, money: DailyMean | None, *, days_per_year: float) -> str:
    """Whether what a backtest earned over its benchmark after cost is significant.

    Args:
        ratio: information ratio, a year; NaN where the excess never varies.
        money: test of the daily excess; None where it cannot be tested.
    """
    if money is None:
        shown = "" if math.isnan(ratio) else f" (information ratio {ratio:.2f}, not tested)"
        return f"Its excess return after cost cannot be tested{shown}."
    low, high = (bound * days_per_year for bound in money.interval())
    outcome = "significant" if money.is_significant() else "not significant"
    return (
        f"Its excess return over the benchmark after cost, {money.mean * days_per_year:+.1%} a "
        f"year ({LEVEL:.0%} interval {low:+.1%} to {high:+.1%}, information ratio {ratio:.2f}, "
        f"{money.days} days), is {outcome} at {1 - LEVEL:.0%}."
        f"{coverage_sentence(money, labels=False)}"
    )


def _conclusion(order: DailyMean | None, money: DailyMean | None) -> str:
    """Whether the money comes from the order of returns; "" where one of them is not tested."""
    if order is None or money is None:
        return ""
    orders = order.is_significant() and order.mean > 0
    if money.is_significant() and money.mean < 0:
        return (
            "It orders returns, and loses more than that by its cost or its trading."
            if orders
            else "It loses against the benchmark."
        )
    if money.is_significant():
        return (
            "The money can come from its order of returns: both are significant."
            if orders
            else "The money is not shown to come from an order of returns: chance, or names that "
            "differ from the benchmark's in size, style or risk, earn such an excess too."
        )
    return (
        "It orders returns, but that money comes of it after cost is not shown."
        if orders
        else "Neither order nor excess is significant: random scores give such numbers."
    )


def money_pair_verdicts(equity: Equity) -> list[str]:
    """A sentence for every two backtests: which earned more after cost, and how significantly."""
    found = []
    for pair in equity.pairs:
        test = pair.difference
        if test is None:
            found.append(f"{pair.one} and {pair.other}: not tested, {pair.reason}.")
            continue
        ahead = test.mean >= 0
        better, worse = (pair.one, pair.other) if ahead else (pair.other, pair.one)
        low, high = sorted(
            bound * equity.days_per_year * (1 if ahead else -1) for bound in test.interval()
        )
        outcome = "significant" if pair.is_significant else "not significant"
        found.append(
            f"{better} has an excess return after cost {abs(test.mean) * equity.days_per_year:.1%} "
            f"a year above {worse}'s; the difference is {outcome} at {1 - LEVEL:.0%} ({LEVEL:.0%} "
            f"interval {low:+.1%} to {high:+.1%}; p {test.p:.2g}, {test.days} days)."
            f"{coverage_sentence(test, labels=False)}"
        )
    return found


def verdict(pair: Pair) -> str:
    """A test in a sentence."""
    test = pair.difference
    if test is None:
        return f"{pair.one} and {pair.other}: not tested, {pair.reason}."
    gap = test.mean
    better, worse = (pair.one, pair.other) if gap >= 0 else (pair.other, pair.one)
    low, high = test.interval()
    bounds = (low, high) if gap >= 0 else (-high, -low)
    outcome = "significant" if pair.is_significant else "not significant"
    return (
        f"{better} has a daily Rank IC {abs(gap):.4f} above {worse}'s; the difference is {outcome} "
        f"at {1 - LEVEL:.0%} ({LEVEL:.0%} interval {interval_text(bounds)}; p {test.p:.2g}, "
        f"{test.days} days).{coverage_sentence(test)}"
    )


def coverage_sentence(found: DailyMean, *, labels: bool = True) -> str:
    """What an interval covers where that is less than its name; else nothing.

    Args:
        labels: whether the days are of labels, which may overlap; a backtest's returns do not.
    """
    if not found.covers < PROMISED:
        return ""
    beside = " beside the labels' overlap" if labels else ""
    return (
        f" This interval is known to cover about {found.covers:.0%} at such dependence: "
        f"neighbouring days correlate by {found.phi:.2f}{beside}, and there are "
        f"{found.days}."
    )


def interval_text(bounds: tuple[float, float]) -> str:
    """Both ends of an interval with four decimals."""
    return f"{bounds[0]:.4f} to {bounds[1]:.4f}"

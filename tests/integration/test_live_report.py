"""Scores and orders in the ledger, and the report of what came of them."""

from __future__ import annotations

import datetime as dt
import itertools

import numpy as np
import pandas as pd
import pytest
from qlib.backtest import backtest
from qlib.data import D
from scipy.stats import norm

from kronos_qlib.cli.main import main
from kronos_qlib.errors import ConfigError, LedgerError
from kronos_qlib.ledger.ledger import Ledger
from kronos_qlib.plugin.live.earned import earned_table
from kronos_qlib.plugin.live.live_report import live_report
from kronos_qlib.plugin.live.recording import (
    opening_of,
    read_book,
    read_settings,
    record_orders,
    record_scores,
)
from kronos_qlib.plugin.lookahead import open_provider
from kronos_qlib.plugin.orders.book import Book
from kronos_qlib.plugin.orders.making import OrderConfig, make_orders
from kronos_qlib.plugin.records.backtest_record import BacktestConfig, qlib_config
from kronos_qlib.plugin.registry.inputs import INPUTS, counts_of, references_of
from kronos_qlib.plugin.registry.newest_scores import NewestScores
from kronos_qlib.plugin.runs.quiet import quiet_backtest

pytestmark = pytest.mark.integration

SETTINGS = {"benchmark": "BENCH", "topk": 3, "n_drop": 1, "account": 1e6, "limit_threshold": 0.095}
LEVELS = [0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95]
HORIZON = 3
COUNT = 14


@pytest.fixture(scope="module")
def days(provider):
    open_provider(provider)
    return pd.DatetimeIndex(D.calendar())[-COUNT - 6 : -5]


def names_of():
    return sorted(set(D.list_instruments(D.instruments("all"), as_list=True)) - {"BENCH"})


def scores_on(day, version="1", seed=0):
    """A model that knows the next days, beside a forecast that knows their spread."""
    names = names_of()
    label = D.features(names, ["Ref($close, -2) / Ref($close, -1) - 1"], day, day)
    label = label.droplevel("datetime").iloc[:, 0].dropna()
    noise = np.random.default_rng([seed, day.toordinal()]).normal(0, 0.004, len(label))
    score = (label + noise).rename("score").sort_values(ascending=False)
    table = score.to_frame()
    for level in LEVELS:
        table[f"q{level:g}"] = 0.02 * np.sqrt(HORIZON) * norm.ppf(level)
    before = pd.DatetimeIndex(D.calendar())[100:110]
    known = pd.Series(0.02 * np.random.default_rng(0).normal(size=500))
    spreads = references_of(known, names, before, "day")
    facts = {
        "model": {"name": "models:/mine@champion", "version": version, "run": "1f0c"},
        "bars": "bars 0123",
        "label": "Ref($close, -2) / Ref($close, -1) - 1",
        "label_bars": 1,
        "freq": "day",
        "horizon": HORIZON,
        "promised": {
            "rank_ic": {
                "mean": 0.02,
                "standard_error": 0.01,
                "days": 200,
                "cosines": 14,
                "label_days": 1,
                "phi": 0.0,
            }
        },
        "spreads": spreads,
        "counts": counts_of(spreads, score, day, "day"),
    }
    return NewestScores(
        "models:/mine@champion", version, day, table.rename_axis("instrument"), facts, (), table
    )


@pytest.fixture(scope="module")
def kept(provider, days, tmp_path_factory):
    """A ledger of COUNT days, one of them late and one said again in time."""
    folder = tmp_path_factory.mktemp("daily") / "ledger"
    settings = BacktestConfig(**SETTINGS)
    for place, (day, following) in enumerate(itertools.pairwise(days)):
        opens = dt.datetime.combine(following.date(), dt.time(1, 30), dt.timezone.utc)
        hours = 2 if place == 4 else -8
        ledger = Ledger(folder, clock=lambda at=opens + dt.timedelta(hours=hours): at)
        scores = scores_on(day)
        record_scores(ledger, scores, opens=opens)
        orders = make_orders(scores.table["score"], Book.of_cash(1e6), settings, evening=day)
        record_orders(ledger, orders, opens=opens)
        if place == 6:
            record_scores(ledger, scores_on(day, seed=9), opens=opens)
    return folder


def test_the_report_joins_what_came(kept, provider, capsys, tmp_path):
    found = live_report(kept, provider_uri=str(provider))
    by_name = {measure.name: measure for measure in found.measures}
    rank_ic = by_name["Rank IC"]
    assert rank_ic.days == COUNT - 1, "one came late"
    assert rank_ic.value > 0.5 and rank_ic.promised is not None
    assert any("Rank IC is above what was promised" in each for each in found.warnings)
    assert any(
        "came after the market opened" in note and "scores of" in note for note in found.notes
    )
    assert by_name["Rank IC less that of reversal"].value > 0.3
    assert 0.3 < by_name["Share within the 80% interval"].value <= 1
    assert by_name["CRPS less that of EWMA"].days == COUNT - 1
    # Bought at the close: the day's loss is the cost of what filled, of 95 % of the money at most.
    assert -0.0005 < by_name["Return a day after cost"].value < 0
    assert set(found.drift) == {"score", *INPUTS}
    arguments = ["ledger", "report", str(kept), "--provider-uri", str(provider)]
    assert main([*arguments, "--html", str(tmp_path / "live.html")]) == 0
    printed = capsys.readouterr().out
    assert "Live beside promised" in printed and "Rank IC of momentum" in printed
    assert "Rank IC is above" in (tmp_path / "live.html").read_text(encoding="utf-8")
    assert main([*arguments, "--markdown"]) == 0
    assert "| Rank IC " in capsys.readouterr().out
    assert main([*arguments, "--model-version", "7"]) == 2
    assert "no scores of version 7; the ledger has 1" in capsys.readouterr().err


def test_what_orders_earned_is_what_the_backtest_earned(provider, days, tmp_path):
    """The same book, the same orders: the backtest's return of the day, to the last digits."""
    open_provider(provider)
    index = pd.MultiIndex.from_product([days, names_of()], names=["datetime", "instrument"])
    pred = pd.DataFrame({"score": np.random.default_rng(1).normal(size=len(index))}, index=index)
    settings = BacktestConfig(**SETTINGS)
    config = qlib_config(settings, pred)
    config["strategy"]["kwargs"]["signal"] = pred
    with quiet_backtest():
        metrics, _ = backtest(
            strategy=config["strategy"], executor=config["executor"], **config["backtest"]
        )
    ((report, positions),) = metrics.values()
    factors = D.features(names_of(), ["$factor"])["$factor"].unstack("instrument").ffill()
    ledger = Ledger(tmp_path / "ledger")
    entries = []
    for evening, day in list(itertools.pairwise(days))[1:-1]:
        position = positions[evening]
        names = sorted(position.get_stock_list())
        quantity = [position.get_stock_amount(name) * factors.loc[evening, name] for name in names]
        count = [int(position.get_stock_count(name, "day")) for name in names]
        holdings = pd.DataFrame({"quantity": quantity, "days": count}, index=names)
        orders = make_orders(
            pred["score"].xs(evening),
            Book(position.get_cash(), holdings),
            settings,
            evening=evening,
            how=OrderConfig(limit_distance=None),
            hindsight=True,
        )
        entry = record_orders(ledger, orders, opens=None)
        assert read_settings(entry) == settings
        pd.testing.assert_frame_equal(
            read_book(entry).holdings, holdings, check_names=False, check_dtype=False
        )
        entries.append((entry, ledger.table(entry)))
        assert entry.facts["for"] == f"{day:%Y-%m-%d}"
    found = earned_table(entries, pd.DatetimeIndex(D.calendar()))
    same = report.loc[found.index]
    assert found["net_return"].to_numpy() == pytest.approx(same["return"] - same["cost"], abs=1e-9)
    assert found["cost"].to_numpy() == pytest.approx(same["cost"], abs=1e-9)
    assert found["bench"].to_numpy() == pytest.approx(same["bench"], abs=1e-9)
    assert (found["filled"] == found["orders"]).all() and found["orders"].sum() > 10


def test_an_order_beyond_its_limit_is_not_filled(provider, days, tmp_path):
    open_provider(provider)
    settings, name = BacktestConfig(**SETTINGS), names_of()[0]
    evening = days[3]
    close = D.features([name], ["$close / $factor"], evening, days[4]).droplevel("instrument")
    before, after = close.iloc[:, 0].to_numpy()
    orders = make_orders(pd.Series({name: 1.0}), Book.of_cash(1e6), settings, evening=evening)
    filled = []
    for place, limit in enumerate((after * 1.001, after * 0.999)):
        table = orders.table.assign(limit=limit)
        entry = record_orders(
            Ledger(tmp_path / str(place)),
            type(orders)(**{**vars(orders), "table": table}),
            opens=None,
        )
        filled.append(earned_table([(entry, table)], days).iloc[0])
    assert [row["filled"] for row in filled] == [1, 0]
    assert filled[1]["net_return"] == 0 and filled[1]["cost"] == 0 and before > 0


def test_a_day_that_has_not_come_is_left_out(provider, days, tmp_path):
    open_provider(provider)
    last = pd.Timestamp(D.calendar()[-1])
    orders = make_orders(
        pd.Series({names_of()[0]: 1.0}), Book.of_cash(1e6), BacktestConfig(**SETTINGS), evening=last
    )
    entry = record_orders(Ledger(tmp_path), orders, opens=None)
    assert earned_table([(entry, orders.table)], pd.DatetimeIndex(D.calendar())).empty


def test_orders_for_a_holiday_count_on_the_next_day(provider, days, tmp_path):
    """Where no exchange is named the next weekday is taken for a day of trading: orders for a
    holiday were in no figure."""
    open_provider(provider)
    holiday, following = days[4], days[5]
    names = names_of()[:4]
    orders = make_orders(
        pd.Series([4.0, 3.0, 2.0, 1.0], index=names),
        Book.of_cash(1e6),
        BacktestConfig(**SETTINGS),
        evening=days[3],
        day=holiday,
        how=OrderConfig(limit_distance=None),
    )
    entry = record_orders(Ledger(tmp_path), orders, opens=None)
    assert earned_table([(entry, orders.table)], days[days < holiday]).empty
    found = earned_table([(entry, orders.table)], days.drop(holiday))
    assert found.index.tolist() == [following] and found["filled"].iloc[0] > 0


def test_a_changed_ledger_has_no_report(kept, provider, tmp_path, capsys):
    import shutil

    folder = tmp_path / "ledger"
    shutil.copytree(kept, folder)
    assert main(["ledger", "verify", str(folder)]) == 0
    out = capsys.readouterr().out
    assert "as it was left" in out and "came after the market had opened: entries 9, 10" in out
    assert main(["ledger", "head", str(folder)]) == 0
    head = capsys.readouterr().out.strip()
    assert main(["ledger", "verify", str(folder), "--head", head]) == 0
    path = Ledger(folder).entries()[2].path
    path.write_bytes(path.read_bytes() + b" ")
    assert main(["ledger", "verify", str(folder)]) == 1
    assert "entry 3 was changed" in capsys.readouterr().out
    with pytest.raises(LedgerError, match="entry 3 was changed"):
        live_report(folder, provider_uri=str(provider))
    with pytest.raises(ConfigError, match="no ledger at"):
        live_report(tmp_path / "none", provider_uri=str(provider))
    assert main(["ledger", "head", str(tmp_path / "none")]) == 2


def test_scores_of_somebody_elses_are_refused_in_words(provider, days, tmp_path):
    table = pd.DataFrame({"instrument": ["SYM0001"], "score": [1.0]})
    Ledger(tmp_path).append("scores", days[0].date(), table, {"freq": "day"}, opens=None)
    with pytest.raises(ConfigError, match="entry 1 does not say its horizon, label and label_bars"):
        live_report(tmp_path, provider_uri=str(provider))


def test_when_an_exchange_opens():
    shanghai = opening_of(pd.Timestamp("2024-06-19"), "XSHG")
    assert shanghai == dt.datetime(2024, 6, 19, 1, 30, tzinfo=dt.timezone.utc)
    assert opening_of(pd.Timestamp("2024-06-19"), "XSHE") == shanghai
    new_york = opening_of(pd.Timestamp("2024-01-16"), "XNYS")
    assert new_york == dt.datetime(2024, 1, 16, 14, 30, tzinfo=dt.timezone.utc)
    with pytest.raises(
        ConfigError, match=r"XNYS does not open on 2024-06-19: the next .* 2024-06-20"
    ):
        opening_of(pd.Timestamp("2024-06-19"), "XNYS")
    with pytest.raises(ConfigError, match="knows no exchange"):
        opening_of(pd.Timestamp("2024-06-19"), "NOWHERE")

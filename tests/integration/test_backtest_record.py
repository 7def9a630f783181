"""BacktestRecord: the same trades as Qlib's own config, from a few settings, at any frequency."""

import numpy as np
import pandas as pd
import pytest
from qlib.data import D
from qlib.workflow.record_temp import PortAnaRecord

from kronos_qlib.errors import BarDataError, ConfigError, MissingArtifactError
from kronos_qlib.plugin.lookahead import open_provider
from kronos_qlib.plugin.provider.writer import write_provider
from kronos_qlib.plugin.records.artifacts import frequency_of
from kronos_qlib.plugin.records.backtest_record import BacktestConfig, BacktestRecord, qlib_config

pytestmark = pytest.mark.integration

SETTINGS = {"benchmark": "BENCH", "topk": 3, "n_drop": 1, "account": 1e6}


def scores_on(times, names, seed=0):
    rng = np.random.default_rng(seed)
    index = pd.MultiIndex.from_product([times, names], names=["datetime", "instrument"])
    return pd.DataFrame({"score": rng.normal(size=len(index))}, index=index)


@pytest.fixture
def market(provider):
    open_provider(provider)
    return provider


@pytest.fixture
def pred(market):
    names = sorted(D.list_instruments(D.instruments("all"), as_list=True))
    return scores_on(D.calendar()[100:140], names)


def report_of(recorder, freq="1day"):
    return recorder.load_object(f"portfolio_analysis/report_normal_{freq}.pkl")


def test_it_trades_as_qlibs_own_config_does(recorder, pred):
    recorder.save_objects(**{"pred.pkl": pred, "label.pkl": pred})
    times = pred.index.get_level_values("datetime")
    config = {
        "strategy": {
            "class": "TopkDropoutStrategy",
            "module_path": "qlib.contrib.strategy",
            "kwargs": {"signal": "<PRED>", "topk": 3, "n_drop": 1},
        },
        "backtest": {
            "start_time": times.min(),
            "end_time": times.max(),
            "account": 1e6,
            "benchmark": "BENCH",
            "exchange_kwargs": {
                "deal_price": "close",
                "limit_threshold": None,
                "open_cost": 0.0005,
                "close_cost": 0.0015,
                "min_cost": 5,
            },
        },
    }
    PortAnaRecord(recorder, config=config).generate()
    plain = report_of(recorder)
    BacktestRecord(recorder, backtest=SETTINGS).generate()
    pd.testing.assert_frame_equal(report_of(recorder), plain, check_exact=True)
    assert (plain["turnover"] > 0).sum() > 30
    assert plain.index[[0, -1]].to_list() == [times.min(), times.max()]


def test_settings_come_from_the_runs_own_task(recorder, pred):
    settings = {**SETTINGS, "hold_thresh": 5, "start_time": "2020-06-01"}
    recorder.save_objects(**{"pred.pkl": pred, "task": {"model": {}, "backtest": settings}})
    record = BacktestRecord(recorder)
    record.generate()
    report = report_of(recorder)
    assert report.index[0] == pd.Timestamp("2020-06-01")
    # Held 5 days at least: whoever is sold was bought 5 bars before or earlier.
    held = recorder.load_object("portfolio_analysis/positions_normal_1day.pkl")
    names = [set(position.get_stock_list()) for position in held.values()]
    spells = {}
    for day, now in enumerate(names):
        for name in now - (names[day - 1] if day else set()):
            spells[name] = day
        for name in (names[day - 1] - now) if day else ():
            assert day - spells[name] >= 5, name
    assert len(spells) > 3, "somebody was replaced"
    record.check(include_self=True)


def test_it_ends_where_qlib_still_knows_the_next_bar(recorder, bars, tmp_path, caplog):
    short = write_provider(bars, tmp_path / "short", benchmark="BENCH", future_bars=0).target
    open_provider(short)
    calendar = D.calendar()
    pred = scores_on(calendar[-20:], ["SYM0001", "SYM0002", "SYM0003"])
    recorder.save_objects(**{"pred.pkl": pred})
    BacktestRecord(recorder, backtest={**SETTINGS, "topk": 2}).generate()
    assert report_of(recorder).index[-1] == calendar[-2]
    assert "one bar before the last score" in caplog.text
    last = f"{calendar[-1]:%Y-%m-%d}"
    with pytest.raises(ConfigError, match=f"end_time {last} is the last bar .* one more"):
        BacktestRecord(recorder, backtest={**SETTINGS, "end_time": last}).generate()


def test_bars_of_five_minutes(recorder, make_minutes, tmp_path):
    bars = make_minutes(instruments=4, days=4)
    write_provider(bars, tmp_path / "minutes", freq="5min", benchmark="BENCH", future_bars=48)
    open_provider(tmp_path / "minutes", "5min")
    times = D.calendar(freq="5min")[50:150]
    pred = scores_on(times, [f"SH60000{number}" for number in range(4)])
    recorder.save_objects(**{"pred.pkl": pred})
    BacktestRecord(recorder, backtest={**SETTINGS, "topk": 2}).generate()
    report = report_of(recorder, "5min")
    assert report.index[[0, -1]].to_list() == [times[0], times[-1]]
    assert (report["turnover"] > 0).sum() > 50
    assert report["bench"].std() > 0
    logged = recorder.load_object("portfolio_analysis/port_analysis_5min.pkl")["risk"]
    assert np.isfinite(logged["excess_return_with_cost"]["information_ratio"])
    with pytest.raises(ConfigError, match="no bars for day"):
        qlib_config(BacktestConfig(benchmark="BENCH", freq="day"), pred)


def test_several_instruments_are_a_benchmark_by_their_mean(recorder, pred):
    recorder.save_objects(**{"pred.pkl": pred})
    names = ["SYM0001", "SYM0002"]
    BacktestRecord(recorder, backtest={**SETTINGS, "benchmark": names}).generate()
    closes = D.features(names, ["$close"])["$close"].unstack(level="instrument")
    expected = closes.pct_change(fill_method=None).mean(axis=1)
    bench = report_of(recorder)["bench"]
    assert bench.to_numpy() == pytest.approx(expected[bench.index].fillna(0), abs=1e-6)
    with pytest.raises(ConfigError, match="benchmark NOBODY has no day bars"):
        BacktestRecord(recorder, backtest={**SETTINGS, "benchmark": "NOBODY"}).generate()


def test_without_settings_or_scores_it_says_what_is_missing(recorder):
    with pytest.raises(ConfigError, match="under `task: backtest:`"):
        BacktestRecord(recorder)
    with pytest.raises(MissingArtifactError, match=r"BacktestRecord reads pred\.pkl"):
        BacktestRecord(recorder, backtest=SETTINGS).generate()


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"benchmark": None}, "benchmark is missing"),
        ({"topk": 3, "n_drop": 4}, "between 1 and topk, got 3 and 4"),
        ({"hold_thresh": 0}, "hold_thresh must be 1 or more"),
        ({"open_cost": 5}, "fraction of the money traded"),
        ({"account": 0}, "account must be above 0"),
        ({"risk_degree": 1.5}, "risk_degree must lie in"),
        ({"top_k": 3}, "did you mean 'topk'"),
    ],
)
def test_a_setting_that_cannot_work_is_named(recorder, wrong, words):
    with pytest.raises(ConfigError, match=words):
        BacktestRecord(recorder, backtest={**SETTINGS, **wrong})


def test_the_frequency_is_read_off_the_scores():
    def index(*times):
        return pd.MultiIndex.from_product([pd.DatetimeIndex(times), ["A", "B"]])

    def at(*times):
        stamps = pd.MultiIndex.set_names(index(*times), ["datetime", "instrument"])
        return frequency_of(stamps)

    assert at("2024-01-02", "2024-01-05") == "day"
    assert at("2024-01-02 09:35", "2024-01-02 09:40", "2024-01-02 13:05") == "5min"
    with pytest.raises(BarDataError, match="one moment has no frequency"):
        at("2024-01-02 09:35")
    with pytest.raises(BarDataError, match="whole minutes"):
        at("2024-01-02 09:35:00", "2024-01-02 09:35:30")

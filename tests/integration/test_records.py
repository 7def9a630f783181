"""Records in MLflow: what they leave behind, and that no run is green without its metrics."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import mlflow
import numpy as np
import pandas as pd
import pytest
from qlib.backtest.position import Position
from qlib.data import D

import kronos_qlib.plugin.records as records
from kronos_qlib.errors import ConfigError, MissingArtifactError
from kronos_qlib.evaluation.portfolio.costs import break_even_cost, cost_paid, cost_table
from kronos_qlib.evaluation.portfolio.metrics import (
    PORTFOLIO_METRICS,
    UndefinedMetricError,
    deflated_sharpe,
    portfolio_metrics,
)
from kronos_qlib.evaluation.ranking.uncertainty import daily_mean
from kronos_qlib.plugin.lookahead import open_provider
from kronos_qlib.plugin.provider.writer import write_provider
from kronos_qlib.plugin.records.backtest_record import BacktestRecord
from kronos_qlib.plugin.records.portfolio_report import (
    SEARCH_AND_COST_METRICS,
    SIGNAL_METRICS,
    PortfolioReportRecord,
    position_changes,
)
from kronos_qlib.plugin.records.run_check import RunCheckRecord, expected_metrics
from kronos_qlib.plugin.runs.about_run import BARS, KEY_METRICS, KEY_PREFIX, NOTE, WEIGHTS
from kronos_qlib.plugin.runs.run_comparison import compare_runs

pytestmark = pytest.mark.integration

WORKFLOW = Path(__file__).parents[2] / "workflows" / "workflow_lightgbm.yaml"


# Records by themselves, on a run of their own.


@pytest.fixture
def report(provider):
    open_provider(provider)
    rng = np.random.default_rng(5)
    days = D.calendar()[100:160]
    bench = rng.normal(0, 0.01, 60)
    columns = {
        "account": 1e6,
        "return": bench + rng.normal(0.001, 0.003, 60),
        "bench": bench,
        "cost": 0.0004,
        "turnover": 0.4,
    }
    return pd.DataFrame(columns, index=pd.DatetimeIndex(days, name="datetime"))


def positions_on(days, one="SYM0001", two="SYM0003"):
    """1000 shares of one name from the first day, from the sixth 500 of it and 100 of another."""
    first, later = ({one: 1000.0}, {one: 500.0, two: 100.0})
    held = [first] * 5 + [later] * (len(days) - 5)
    return {
        day: Position(1e6, {name: {"amount": n, "price": 1.0} for name, n in names.items()})
        for day, names in zip(days, held, strict=True)
    }


def save_report(recorder, report, freq="1day", names=("SYM0001", "SYM0003")):
    """What the backtest leaves, as far as we read it."""
    recorder.save_objects(
        artifact_path="portfolio_analysis",
        **{
            f"report_normal_{freq}.pkl": report,
            f"positions_normal_{freq}.pkl": positions_on(report.index, *names),
        },
    )


def read_csv(recorder, path, **how):
    return pd.read_csv(recorder.download_artifact(path), **how)


def test_the_report_record_logs_metrics_and_leaves_table_and_figure(recorder, report):
    save_report(recorder, report)
    PortfolioReportRecord(recorder, days_per_year=240).generate()
    names = (*PORTFOLIO_METRICS, *SEARCH_AND_COST_METRICS, "capacity")
    RunCheckRecord(recorder, metrics=names).generate()  # waits for the writing thread

    expected = portfolio_metrics(report, days_per_year=240)
    logged = recorder.list_metrics()
    assert {name: logged[name] for name in PORTFOLIO_METRICS} == pytest.approx(expected)
    kept = recorder.load_object("portfolio_report/portfolio_metrics.pkl")
    assert {name: kept[name] for name in names} == pytest.approx({n: logged[n] for n in names})
    daily = read_csv(recorder, "portfolio_report/daily.csv", index_col="datetime")
    assert daily["net_return"].to_numpy() == pytest.approx(report["return"] - report["cost"])
    assert daily["drawdown"].min() == pytest.approx(expected["max_drawdown"])
    assert daily["drawdown_before_cost"].min() > daily["drawdown"].min()
    for name in ("equity", "costs"):
        figure = Path(recorder.download_artifact(f"portfolio_report/{name}.png"))
        assert figure.read_bytes()[:4] == b"\x89PNG"

    assert logged["sharpe_trials"] == 1, "the run kept no signal beside its score"
    excess = report["return"] - report["cost"] - report["bench"]
    assert logged["deflated_sharpe"] == pytest.approx(deflated_sharpe(excess, 1).probability)
    assert logged["days_per_year"] == 240
    test = daily_mean(excess)
    low, high = test.interval()
    assert logged["excess_return_low"] == pytest.approx(low * 240)
    assert logged["excess_return_high"] == pytest.approx(high * 240)
    assert logged["0_key.excess_return_t"] == logged["excess_return_t"] == pytest.approx(test.t)
    assert logged["cost_paid_bp"] == pytest.approx(10)
    assert logged["break_even_cost_bp"] == pytest.approx(break_even_cost(report))
    costs = read_csv(recorder, "portfolio_report/costs.csv", index_col="cost_bp")
    assert costs.index.to_list() == [0, 5, 10, 15, 20, 30]
    expected_costs = cost_table(report, days_per_year=240)
    assert costs["sharpe"].to_numpy() == pytest.approx(expected_costs["sharpe"], rel=1e-4)
    assert costs.loc[10, "sharpe"] == pytest.approx(logged["sharpe"], rel=1e-4)


def test_a_sharpe_ratio_is_deflated_by_the_signals_kept(recorder, report, tmp_path):
    save_report(recorder, report)
    excess = report["return"] - report["cost"] - report["bench"]

    def told(**settings):
        PortfolioReportRecord(recorder, **settings).generate()
        kept = recorder.load_object("portfolio_report/portfolio_metrics.pkl")
        return kept["sharpe_trials"], kept["deflated_sharpe"]

    rng = np.random.default_rng(0)
    index = pd.MultiIndex.from_product([report.index, ["A", "B"]], names=["datetime", "instrument"])
    score = rng.normal(size=len(index))
    signals = {"score": score, "expected_return": score, "skew": score**2, "range": score + 1}
    pd.DataFrame(signals, index=index).to_parquet(tmp_path / "signals.parquet")
    recorder.save_objects(local_path=str(tmp_path / "signals.parquet"), artifact_path="signals")
    recorder.save_objects(**{"pred.pkl": pd.DataFrame({"score": score}, index=index)})
    # The score and expected_return are one trial.
    assert told() == (3, pytest.approx(deflated_sharpe(excess, 3).probability))
    said = recorder.client.get_run(recorder.id).data.tags[NOTE]
    assert "3 trials counted (the different signals kept with this run)" in said
    assert re.search(r"information ratio \S+, 60 days\), is (not )?significant at 5%", said)
    found = deflated_sharpe(excess, 50, trial_variance=0.2)
    assert told(trials=50, trial_variance=0.2) == (50, pytest.approx(found.probability))
    with pytest.raises(ConfigError, match="1 or more, got 0"):
        PortfolioReportRecord(recorder, trials=0)


def test_a_benchmark_alone_has_no_deflated_sharpe_ratio(recorder, report):
    """It scored 85 %: its rise was taken for skill."""
    save_report(recorder, report.assign(**{"return": report["bench"] + 0.0005, "cost": 0.0001}))
    with pytest.raises(UndefinedMetricError, match="from the benchmark's on every day"):
        PortfolioReportRecord(recorder).generate()


def test_capacity_is_told_from_orders_and_the_money_traded(recorder, report, bars):
    changes = position_changes(positions_on(report.index))
    first, later = report.index[[0, 5]]
    assert changes.to_dict() == {
        (first, "SYM0001"): 1000,
        (later, "SYM0001"): 500,
        (later, "SYM0003"): 100,
    }
    save_report(recorder, report)
    PortfolioReportRecord(recorder).generate()
    table = read_csv(recorder, "portfolio_report/capacity.csv", index_col="share")
    here = bars.set_index(["date", "symbol"])
    load = [
        shares * here.loc[at, "close"] / 1e6 / here.loc[at, "amount"]
        for at, shares in changes.items()
    ]
    assert table.loc[0.05, "median"] == pytest.approx(0.05 / np.median(load), rel=1e-4)
    assert table.loc[0.1, "95 %"] == pytest.approx(0.1 / np.quantile(load, 0.95), rel=1e-4)
    assert table["traded"].to_list() == ["$amount"] * 3
    assert table["unknown"].to_list() == [0, 0, 0]


def test_orders_follow_the_bars_whatever_was_held_between_them():
    """All sold and bought again; a name that comes while another is away."""
    times = pd.date_range("2024-01-01", periods=6)
    amounts = [{}, {"A": 10}, {}, {"B": 7}, {"B": 9}, {"A": 10}]
    held = [{name: {"amount": amount} for name, amount in each.items()} for each in amounts]
    changes = position_changes(
        {at: Position(position_dict=each) for at, each in zip(times, held, strict=True)}
    )
    found = [(at.day, name, shares) for (at, name), shares in changes.items()]
    assert found == [
        (2, "A", 10),
        (3, "A", 10),
        (4, "B", 7),
        (5, "B", 2),
        (6, "A", 10),
        (6, "B", 9),
    ]


def test_capacity_that_is_not_to_be_had_is_called_unknown(recorder, report, provider, tmp_path):
    """No amount: volume x close. Neither: the word, and no metric that looks like a figure."""
    folder = tmp_path / "market"
    shutil.copytree(provider, folder)
    for lost, source in (("amount", "$volume * $close"), ("volume", "unknown")):
        for path in folder.glob(f"features/*/{lost}.day.bin"):
            path.unlink()
        open_provider(folder)
        save_report(recorder, report)
        PortfolioReportRecord(recorder).generate()
        table = read_csv(recorder, "portfolio_report/capacity.csv", dtype=str)
        assert table["traded"].to_list() == [source] * 3
    assert table["median"].to_list() == ["unknown"] * 3
    assert "capacity" not in recorder.load_object("portfolio_report/portfolio_metrics.pkl")


def test_a_report_of_minutes_is_told_by_days(recorder, make_minutes, tmp_path):
    bars = make_minutes(instruments=2, days=12)
    write_provider(bars, tmp_path / "minutes", freq="5min", benchmark="BENCH")
    open_provider(tmp_path / "minutes", "5min")
    times = pd.DatetimeIndex(D.calendar(freq="5min"), name="datetime")
    rng = np.random.default_rng(2)
    columns = {
        "account": 1e6,
        "return": rng.normal(0, 0.001, len(times)),
        "bench": rng.normal(0, 0.001, len(times)),
        "cost": 0.00001,
        "turnover": 0.01,
    }
    report = pd.DataFrame(columns, index=times)
    save_report(recorder, report, freq="5min", names=("SH600000", "SH600001"))
    PortfolioReportRecord(recorder).generate()
    daily = read_csv(recorder, "portfolio_report/daily.csv", index_col="datetime")
    assert len(daily) == 12
    assert (1 + daily["return"]).prod() == pytest.approx((1 + report["return"]).prod())
    assert daily["turnover"].to_numpy() == pytest.approx(0.48)  # 48 bars a day
    kept = recorder.load_object("portfolio_report/portfolio_metrics.pkl")
    assert np.isfinite(kept["capacity"])
    RunCheckRecord(recorder, metrics=PORTFOLIO_METRICS).generate()
    with pytest.raises(MissingArtifactError, match=r"without IC, .*, 5min\.excess_return_without"):
        RunCheckRecord(recorder).generate()


def test_a_report_without_its_positions_is_incomplete(recorder, report):
    recorder.save_objects(artifact_path="portfolio_analysis", **{"report_normal_1day.pkl": report})
    with pytest.raises(MissingArtifactError, match=r"reads .*positions_normal_1day\.pkl"):
        PortfolioReportRecord(recorder).generate()


def test_the_record_knows_what_it_left(recorder, report):
    save_report(recorder, report)
    record = PortfolioReportRecord(recorder)
    with pytest.raises(FileNotFoundError):
        record.check(include_self=True)
    record.generate()
    record.check(include_self=True)


def test_a_missing_backtest_names_the_record_to_list(recorder):
    with pytest.raises(
        MissingArtifactError, match=r"has nothing in portfolio_analysis; list .*BacktestRecord"
    ):
        PortfolioReportRecord(recorder).generate()


def test_a_backtest_at_another_frequency_is_missing_too(recorder, report):
    save_report(recorder, report)
    with pytest.raises(MissingArtifactError, match=r"_30minute\.pkl, .* has .*_1day\.pkl in"):
        PortfolioReportRecord(recorder, freq="30minute").generate()
    save_report(recorder, report, freq="30minute")
    with pytest.raises(ConfigError, match="reports of 1day, 30minute: set freq to one"):
        PortfolioReportRecord(recorder).generate()


def test_a_strategy_that_never_traded_leaves_nothing(recorder, report):
    save_report(recorder, report.assign(turnover=0.0))
    with pytest.raises(UndefinedMetricError, match="traded on none of 60 days"):
        PortfolioReportRecord(recorder).generate()
    assert recorder.list_artifacts("portfolio_report") == []


def test_a_full_run_passes_its_check(recorder, report):
    save_report(recorder, report)
    recorder.log_metrics(**dict.fromkeys(expected_metrics(), 0.5))
    RunCheckRecord(recorder).generate()


def test_the_check_names_every_missing_metric(recorder, report):
    save_report(recorder, report)
    names = [name for name in expected_metrics() if name not in ("ICIR", "sharpe")]
    recorder.log_metrics(**dict.fromkeys(names, 0.5))
    with pytest.raises(MissingArtifactError, match="ends without ICIR, sharpe;"):
        RunCheckRecord(recorder).generate()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_the_check_refuses_what_is_no_finite_number(recorder, value):
    """SQLite holds infinity as the largest float, which looks finite when read back."""
    recorder.log_metrics(**dict.fromkeys(SIGNAL_METRICS, 0.5) | {"Rank IC": value})
    with pytest.raises(MissingArtifactError, match="the run logged Rank IC = "):
        RunCheckRecord(recorder, metrics=SIGNAL_METRICS).generate()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_the_check_notices_a_dead_writing_thread(recorder):
    """Qlib's thread dies at the first metric MLflow refuses; later ones vanish in silence."""
    recorder.log_metrics(IC="not a number")
    recorder.log_metrics(**dict.fromkeys(SIGNAL_METRICS, 0.5))
    with pytest.raises(MissingArtifactError, match="logging thread died"):
        RunCheckRecord(recorder, metrics=SIGNAL_METRICS).generate()


def test_costs_are_of_each_side_of_a_trade(recorder, provider):
    """Qlib's turnover is what was bought and what was sold, so 10 bp of each are 10 bp of it."""
    open_provider(provider)
    names = [f"SYM000{number}" for number in range(1, 7)]
    index = pd.MultiIndex.from_product(
        [D.calendar()[100:130], names], names=["datetime", "instrument"]
    )
    rng = np.random.default_rng(0)
    recorder.save_objects(
        **{"pred.pkl": pd.DataFrame({"score": rng.normal(size=len(index))}, index=index)}
    )
    settings = {"topk": 2, "n_drop": 1, "benchmark": "BENCH", "account": 1e6, "min_cost": 0}
    BacktestRecord(recorder, {**settings, "open_cost": 0.001, "close_cost": 0.001}).generate()
    alike = recorder.load_object("portfolio_analysis/report_normal_1day.pkl")
    assert cost_paid(alike) == pytest.approx(10)
    table = cost_table(alike, [10])
    net = alike["return"] - alike["cost"]
    assert table.loc[10, "net_return"] == pytest.approx(net.mean() * 252)
    # "return" is before cost: without it the account grows by the whole of `return` - `cost`.
    assert alike["account"].to_numpy() == pytest.approx(1e6 * (1 + net).cumprod().to_numpy())

    BacktestRecord(recorder, {**settings, "open_cost": 0.0005, "close_cost": 0.0015}).generate()
    report = recorder.load_object("portfolio_analysis/report_normal_1day.pkl")
    traded = report[report["turnover"] > 0]
    bp = traded["cost"] / traded["turnover"] * 1e4
    assert bp.iloc[0] == pytest.approx(5), "the first day only buys"
    assert 0.8 < traded["turnover"].iloc[0] <= 0.95
    # One of two names goes and another comes: half the account sold, half bought.
    later = traded["turnover"].iloc[1:]
    assert later.median() == pytest.approx(0.95, abs=0.15)
    assert 9.5 < cost_paid(report.loc[later.index]) < 10.8, "a little more is sold than bought"


# The whole workflow, through qrun in a process of its own.


def write_market(folder, *, names=20, days=220, memory=0.7):
    """A Qlib provider of random walks; `memory` carries part of a day's return into the next.

    With half this memory LightGBM's published penalties leave no split on so small a market: every
    score is the same, IC is NaN, and RunCheckRecord fails the run.

    Returns:
        The environment that fits workflow_lightgbm.yaml to it.
    """
    rng = np.random.default_rng(0)
    returns = rng.normal(0, 0.02, (days, names))
    for day in range(1, days):
        returns[day] += memory * returns[day - 1]
    walks = 20 * np.exp(returns.cumsum(axis=0))
    closes = {f"N{number:03d}": walk for number, walk in enumerate(walks.T)}
    closes["BENCHMARK"] = walks.mean(axis=1)
    calendar = [f"{day:%Y-%m-%d}" for day in pd.bdate_range("2021-01-04", periods=days + 1)]

    for name in ("calendars", "instruments"):
        (folder / name).mkdir(parents=True)
    (folder / "calendars/day.txt").write_text("\n".join(calendar[:-1]) + "\n")
    (folder / "calendars/day_future.txt").write_text("\n".join(calendar) + "\n")
    spans = [f"{name}\t{calendar[0]}\t{calendar[-2]}\n" for name in closes if name != "BENCHMARK"]
    (folder / "instruments/all.txt").write_text("".join(spans))
    for name, close in closes.items():
        opening = np.concatenate([close[:1], close[:-1]])
        volume = rng.uniform(1e6, 2e6, days)
        fields = {
            "open": opening,
            "high": np.maximum(opening, close) * 1.005,
            "low": np.minimum(opening, close) * 0.995,
            "close": close,
            "volume": volume,
            "amount": volume * close,
            "factor": np.ones(days),
            "vwap": (opening + close) / 2,
        }
        home = folder / "features" / name.lower()
        home.mkdir(parents=True)
        for field, values in fields.items():
            np.append(0, values).astype("<f4").tofile(home / f"{field}.day.bin")

    return {
        "KRONOS_PROVIDER_URI": folder.as_posix(),
        "KRONOS_START": calendar[0],
        "KRONOS_TRAIN_START": calendar[0],
        "KRONOS_TRAIN_END": calendar[129],
        "KRONOS_VALID_START": calendar[130],
        "KRONOS_VALID_END": calendar[159],
        "KRONOS_TEST_START": calendar[160],
        "KRONOS_TEST_END": calendar[days - 1],
        "KRONOS_TOPK": "4",
        "KRONOS_N_DROP": "1",
        "KRONOS_THREADS": "1",
    }


def qrun(workflow, folder, settings):
    """Run a workflow with only these KRONOS_ settings; MLflow's database lands in `folder`."""
    inherited = {k: v for k, v in os.environ.items() if not k.startswith(("KRONOS_", "MLFLOW_"))}
    return subprocess.run(
        [sys.executable, "-m", "qlib.cli.run", str(workflow)],
        cwd=folder,
        env={**inherited, "OMP_NUM_THREADS": "1", **settings},
        capture_output=True,
        text=True,
        timeout=170,
    )


@pytest.fixture(scope="module")
def market(tmp_path_factory):
    """A folder to run in, and the settings of a market whose next day can be guessed."""
    folder = tmp_path_factory.mktemp("market")
    return folder, write_market(folder / "provider")


def test_the_lightgbm_workflow_is_green_with_all_its_metrics(market):
    folder, settings = market
    done = qrun(WORKFLOW, folder, settings)
    assert done.returncode == 0, done.stderr[-4000:]

    uri = f"sqlite:///{(folder / 'mlflow.db').as_posix()}"
    row = compare_runs(["lightgbm"], tracking_uri=uri).loc["lightgbm"]
    assert row["ic"] > 0.02, "returns remember the day before; LightGBM should see it"
    assert 0.05 < row["turnover"] < 2
    client = mlflow.MlflowClient(uri)
    run = client.get_run(row["run_id"])
    logged, tags = run.data.metrics, run.data.tags
    assert set(expected_metrics()) <= set(logged)
    assert run.info.run_name == f"LGBModel Alpha158 · {folder.name}"
    assert sorted(logged)[:10] == sorted(KEY_PREFIX + name for name in KEY_METRICS)
    report = next((folder / "mlruns").glob("*/*/artifacts/signal_report/summary.md"))
    verdict = report.read_text(encoding="utf-8").split("\n\n")[1]
    assert tags[NOTE].startswith(verdict) and "Its excess return over the benchmark" in tags[NOTE]
    assert tags[BARS].startswith("frame ") and tags[WEIGHTS].startswith("trees ")
    assert not list((folder / "mlruns").glob("*/*/artifacts/comparison")), "it ran alone"
    assert "CompareRecord writes no comparison, this run stands alone" in done.stdout + done.stderr
    # The backtest reaches the very last day of the provider's calendar.
    daily = next((folder / "mlruns").glob("*/*/artifacts/portfolio_report/daily.csv"))
    assert pd.read_csv(daily)["datetime"].iloc[-1] == settings["KRONOS_TEST_END"]


def test_a_run_without_its_metrics_fails(market):
    """Take SigAnaRecord out: Qlib alone would finish, exit 0 and show a green run without IC."""
    folder, settings = market
    base = WORKFLOW.with_name("workflow_base.yaml").read_text(encoding="utf-8")
    listed = r" +- &qlib_ic.*\n( {8}.*\n)+| +- \*qlib_ic\n"
    short, cuts = re.subn(listed, "", base)
    assert cuts == 2, "of models that draw paths, and of those that do not"
    (folder / "workflow_base.yaml").write_text(short, encoding="utf-8")
    workflow = folder / "short.yaml"
    workflow.write_text(WORKFLOW.read_text(encoding="utf-8"), encoding="utf-8")

    done = qrun(workflow, folder, settings | {"KRONOS_EXPERIMENT": "short"})

    assert done.returncode != 0
    assert "ends without IC, ICIR, Rank IC, Rank ICIR" in done.stdout + done.stderr
    client = mlflow.MlflowClient(f"sqlite:///{(folder / 'mlflow.db').as_posix()}")
    experiment = client.get_experiment_by_name("short")
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.status == "FAILED"


@pytest.mark.parametrize("name", records.__all__)
def test_a_record_states_what_it_reads_and_leaves(name):
    """Alike in each, so that a new record can be copied from any."""
    kind = getattr(records, name)
    assert kind.artifact_path is None or isinstance(kind.artifact_path, str)
    assert kind.needs_extra in (None, "report", "train")
    for files in (kind.reads, kind.leaves):
        assert isinstance(files, tuple) and all(isinstance(each, str) for each in files)
    assert kind.__doc__ and kind.generate is not None

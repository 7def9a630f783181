"""Runs side by side, from real MLflow databases with made-up metrics, signals and backtests."""

import logging
import os
import pickle
import re
import sys
from pathlib import Path

import mlflow
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from qlib.workflow.recorder import MLflowRecorder

from kronos_qlib.cli.main import main
from kronos_qlib.errors import ConfigError, MissingArtifactError
from kronos_qlib.evaluation.portfolio.metrics import deflated_sharpe
from kronos_qlib.plugin.expressions import FURTHEST
from kronos_qlib.plugin.records.compare_record import CompareRecord
from kronos_qlib.plugin.runs import plain_files as plain
from kronos_qlib.plugin.runs.about_run import DAYS as DAYS_TAG
from kronos_qlib.plugin.runs.about_run import PROVIDER, UNIVERSE
from kronos_qlib.plugin.runs.plain_files import LABELS as LABELS_KEPT
from kronos_qlib.plugin.runs.plain_files import SCORES as SCORES_KEPT
from kronos_qlib.plugin.runs.plain_files import _read_parquet, task_json, write_table
from kronos_qlib.plugin.runs.run_comparison import compare, compare_runs
from kronos_qlib.plugin.runs.stored_runs import COMPARED
from kronos_qlib.plugin.runs.task_settings import settings_of
from kronos_qlib.plugin.runs.tracking import sqlite_path
from kronos_qlib.plugin.task_sections import label_bars_of

pytestmark = pytest.mark.integration

NOON = 1_700_000_000_000  # ms
VALUES = [0.05, 0.4, 0.06, 0.5, 2.5, 0.8, 0.123, -0.02, 0.27, 1.1, 0.11, 1.2, -0.08, 0.4, 1e7]
METRICS = dict(zip(COMPARED.values(), VALUES, strict=True))


def add_run(client, experiment, metrics=METRICS, *, start=NOON, seconds=90, status="FINISHED"):
    found = client.get_experiment_by_name(experiment)
    number = found.experiment_id if found else client.create_experiment(experiment)
    run_id = client.create_run(number, start_time=start).info.run_id
    for name, value in metrics.items():
        client.log_metric(run_id, name, value)
    client.set_terminated(run_id, status, end_time=start + 1000 * seconds)
    return run_id


@pytest.fixture(scope="module")
def database(tmp_path_factory):
    """An empty one for all: creating it is what takes the time."""
    uri = f"sqlite:///{(tmp_path_factory.mktemp('store') / 'mlflow.db').as_posix()}"
    mlflow.MlflowClient(uri).search_experiments()
    return uri


@pytest.fixture(scope="module")
def store(database):
    """A database where every experiment is a case of its own, and the runs worth naming."""
    uri = database
    client = mlflow.MlflowClient(uri)
    runs = {
        "old": add_run(client, "kronos", METRICS | {"IC": 0.01}, start=NOON - 10_000_000),
        "new": add_run(client, "kronos"),
        "failed": add_run(client, "kronos", {}, start=NOON + 10_000_000, status="FAILED"),
        "lightgbm": add_run(client, "lightgbm", METRICS | {"sharpe": -0.5}, seconds=12.5),
    }
    add_run(client, "unfinished", {}, status="KILLED")
    add_run(client, "partial", {name: METRICS[name] for name in METRICS if name != "Rank IC"})
    add_run(client, "signal", {name: METRICS[name] for name in list(METRICS)[:4]})
    add_run(client, "broken", METRICS | {"IC": float("nan")})
    add_run(client, "endless", METRICS | {"sharpe": float("inf")})
    return uri, runs


def test_the_latest_finished_runs_side_by_side(store):
    uri, runs = store
    table = compare_runs(["kronos", "lightgbm"], tracking_uri=uri)
    assert table.index.to_list() == ["kronos", "lightgbm"]
    assert table.columns.to_list() == [*COMPARED, "wall_seconds", "run_id"]
    assert table["run_id"].to_list() == [runs["new"], runs["lightgbm"]]
    assert table["ic"].to_list() == [0.05, 0.05]
    assert table["sharpe"].to_list() == [1.2, -0.5]
    assert table["max_drawdown"].to_list() == [-0.08, -0.08]
    assert table["wall_seconds"].to_list() == [90.0, 12.5]


def test_a_run_can_be_named(store):
    uri, runs = store
    table = compare_runs(["kronos"], tracking_uri=uri, run_ids=[runs["old"]])
    assert table.index.to_list() == ["kronos", f"kronos/{runs['old'][:8]}"]
    assert table["ic"].to_list() == [0.05, 0.01]


@pytest.mark.parametrize(
    ("experiment", "error", "words"),
    [
        ("lightgbn", ConfigError, "no MLflow experiment 'lightgbn'; did you mean 'lightgbm'"),
        ("zzz", ConfigError, "known: .*kronos, lightgbm"),
        ("unfinished", MissingArtifactError, "'unfinished' has no finished run"),
        ("partial", MissingArtifactError, "no metric Rank IC; its workflow needs SigAnaRecord"),
        ("broken", MissingArtifactError, "has IC = nan, no finite number"),
        ("endless", MissingArtifactError, "has sharpe = .*, no finite number"),
    ],
)
def test_what_cannot_be_compared_says_why(store, experiment, error, words):
    with pytest.raises(error, match=words):
        compare_runs([experiment], tracking_uri=store[0])


def test_a_run_without_a_backtest_shows_dashes_and_a_note_says_so(store, capsys):
    assert main(["compare", "--tracking-uri", store[0], "kronos", "signal"]) == 0
    printed = capsys.readouterr().out
    assert re.search(r"Sharpe ratio, after cost +1\.20 +-\n", printed)
    assert "signal logged no rank_ic.t, oracle_share, excess_return, excess_return_low, " in printed
    assert re.search(r"Information ratio, after cost +1\.10 \(not significant\) +-\n", printed)
    assert main(["compare", "--tracking-uri", store[0], "signal"]) == 0
    assert "Sharpe ratio, after cost " not in capsys.readouterr().out, "no run has it"


def test_a_run_is_named_by_a_beginning_and_found_beyond_the_first_page(store, monkeypatch):
    uri, runs = store
    search = mlflow.MlflowClient.search_runs
    monkeypatch.setattr(
        mlflow.MlflowClient,
        "search_runs",
        lambda client, *asked, **how: search(client, *asked, **{"max_results": 1, **how}),
    )
    for name in ("old", "lightgbm"):
        table = compare_runs(tracking_uri=uri, run_ids=[runs[name][:10]])
        assert table["run_id"].to_list() == [runs[name]]


def test_a_named_run_must_exist_and_have_finished(store):
    uri, runs = store
    with pytest.raises(ConfigError, match="no MLflow run 'nope'"):
        compare_runs(tracking_uri=uri, run_ids=["nope"])
    with pytest.raises(MissingArtifactError, match="is FAILED, and only finished runs"):
        compare_runs(tracking_uri=uri, run_ids=[runs["failed"]])


def test_a_wrong_path_creates_no_database(tmp_path):
    with pytest.raises(ConfigError, match=r"no MLflow database at .*none\.db"):
        compare_runs(["kronos"], tracking_uri=f"sqlite:///{(tmp_path / 'none.db').as_posix()}")
    assert list(tmp_path.iterdir()) == []


def test_a_database_path_is_read_from_its_uri():
    assert sqlite_path("sqlite:///mlflow.db").as_posix() == "mlflow.db"
    assert sqlite_path("sqlite:////data/mlflow.db").as_posix() == "/data/mlflow.db"
    assert sqlite_path("sqlite:///C:/data/mlflow.db").as_posix() == "C:/data/mlflow.db"
    assert sqlite_path("http://localhost:5000") is None


def test_the_command_prints_an_aligned_table(store, capsys):
    uri, _ = store
    assert main(["compare", "--tracking-uri", uri, "kronos", "lightgbm"]) == 0
    printed = capsys.readouterr().out.splitlines()
    lines = printed[: printed.index("")]
    assert lines[0].split() == ["kronos", "lightgbm"]
    table = {line[:34].strip(): line[34:].split() for line in lines[2:]}
    assert table["IC"] == ["0.0500", "0.0500"]
    assert table["t of Rank IC"] == ["2.50", "2.50"]
    assert any("planted effect" in line for line in printed)
    assert table["Excess return a year, after cost"] == ["12.30%", "12.30%"]
    assert table["Maximum drawdown, after cost"] == ["-8.00%", "-8.00%"]
    assert len({len(line) for line in lines}) == 1, "right edges differ"
    assert "kronos is not in the tests: run" in "".join(printed)
    assert printed[-1].endswith(f"mlflow ui --backend-store-uri {uri}")


def test_the_command_prints_markdown(store, capsys):
    assert main(["compare", "--markdown", "--tracking-uri", store[0], "lightgbm"]) == 0
    printed = capsys.readouterr().out.splitlines()
    lines = printed[: printed.index("")]
    assert lines[1].startswith("| :---") and lines[1].endswith("-: |")
    cells = [line.strip("| ").split("|") for line in lines[2:]]
    assert ["Sharpe ratio, after cost", "-0.50"] in [
        [cell.strip() for cell in row] for row in cells
    ]


@pytest.mark.parametrize(
    ("experiments", "code", "words"),
    [(["lightgbn"], 2, "did you mean"), (["partial"], 1, "no metric Rank IC"), ([], 2, "nothing")],
)
def test_an_error_is_one_line_and_an_exit_code(store, capsys, experiments, code, words):
    assert main(["compare", "--tracking-uri", store[0], *experiments]) == code
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("kronos-qlib: ") and printed.err.count("\n") == 1
    assert words in printed.err


# Runs with signals and backtests.

DAYS = pd.bdate_range("2022-07-01", periods=60, name="datetime")
INDEX = pd.MultiIndex.from_product(
    [DAYS, [f"SH60000{number}" for number in range(8)]], names=["datetime", "instrument"]
)
NOISE = np.random.default_rng(2)
LABEL = pd.Series(NOISE.normal(0, 0.02, len(INDEX)), INDEX)
MARKET = NOISE.normal(0, 0.01, len(DAYS))
SCORES = {  # a good one, one that knows nothing, and the good one's twin
    "good": LABEL * 0.5 + NOISE.normal(0, 0.02, len(INDEX)),
    "blind": pd.Series(NOISE.normal(0, 1, len(INDEX)), INDEX),
}
SCORES["twin"] = 3 * SCORES["good"] + 1
TASK = {
    "model": {"class": "KronosModel", "kwargs": {"checkpoint": "nano", "sampling": {"paths": 5}}},
    "dataset": {
        "kwargs": {
            "handler": {"kwargs": {"instruments": "all", "label": ["Ref($close, -1)"]}},
            "segments": {"test": ["2022-07-01", "2022-09-22"]},
            "lookback": 90,
        }
    },
    "backtest": {"topk": 10, "open_cost": 0.0005, "hold_thresh": 1},
}


def report_of(gain):
    net = MARKET + gain
    columns = {"return": net + 0.001, "bench": MARKET, "cost": 0.001, "turnover": 0.3}
    return pd.DataFrame({**columns, "net_return": net, "excess_return": net - MARKET}, index=DAYS)


NOISY = report_of(NOISE.normal(0.0005, 0.004, len(DAYS)))


def save_artifacts(client, run_id, folder, score, label=LABEL, task=TASK, report=None):
    folder.mkdir()
    score.to_frame("score").to_pickle(folder / "pred.pkl")
    label.astype("float32").to_frame("LABEL0").to_pickle(folder / "label.pkl")
    (folder / "task").write_bytes(pickle.dumps(task))
    if report is not None:
        (folder / "portfolio_report").mkdir()
        report.to_csv(folder / "portfolio_report" / "daily.csv")
    client.log_artifacts(run_id, folder)


@pytest.fixture(scope="module")
def signals(database, tmp_path_factory):
    """A database of runs that can be judged, and of some that cannot be judged together."""
    folder, uri = tmp_path_factory.mktemp("signals"), database
    client = mlflow.MlflowClient(uri)

    def add(name, score, report=None, **kwargs):
        client.create_experiment(name, (folder / "artifacts").as_uri())
        run_id = add_run(client, name)
        save_artifacts(client, run_id, folder / name, score, report=report, **kwargs)

    costly = TASK | {"backtest": {"topk": 10, "open_cost": 0.002, "hold_thresh": 5}}
    # Twenty more rows, as LightGBM has where Kronos has no whole window.
    add("good", SCORES["good"].iloc[20:], report_of(0.001))
    add("blind", SCORES["blind"], report_of(-0.001).iloc[5:], task=costly)
    add("twin", SCORES["twin"].swaplevel().sort_index())
    add("weekly", SCORES["good"], label=LABEL * 1.5)
    add("flat", SCORES["good"] * 0)
    later = INDEX.set_levels(DAYS + pd.Timedelta(days=365), level="datetime")
    add("later", SCORES["good"].set_axis(later), label=LABEL.set_axis(later))
    return uri


def test_signals_are_judged_on_common_rows(signals):
    found = compare(["good", "blind"], tracking_uri=signals)
    judged = found.signals
    assert judged.rows == len(INDEX) - 20 and judged.own_rows == {"good": 460, "blind": 480}
    (pair,) = judged.pairs
    assert pair.is_significant and pair.difference.mean > 0.2
    assert len(found.equity.net) == 55 and found.equity.own_days == {"good": 60, "blind": 55}
    said = " ".join(found.notes)
    assert "55 are common: good 60" in said
    # Of the common days, and not of each run's own.
    ours = report_of(0.001).iloc[5:]
    expected = ours["excess_return"].mean() * 252
    assert found.table.loc["good", "excess_return"] == pytest.approx(expected)
    bench = (1 + ours["bench"]).prod() ** (252 / 55) - 1
    assert found.equity.benchmark["annual_return"] == pytest.approx(bench)
    assert "not asked alike: bars held at least, cost to buy is not the same" in said
    assert found.settings.loc["Label", "good"] == "Ref($close, -1)"
    assert found.settings.loc["Cost to buy"].to_list() == ["0.0005", "0.002"]


def test_a_monotonous_twin_is_no_difference_and_has_no_curve(signals, capsys):
    assert main(["compare", "--tracking-uri", signals, "good", "twin"]) == 0
    printed = capsys.readouterr().out
    assert "good and twin: not tested, the two rank alike on every day." in printed
    assert "twin has no curve" in printed


@pytest.mark.parametrize(
    ("others", "words"),
    [
        (["good", "weekly"], "'good' and 'weekly' are judged by different labels: on 480 of 480"),
        (["good", "later"], "share no day and instrument .* 'later' has 8 instruments from 2023"),
    ],
)
def test_runs_that_answer_different_questions_are_refused(signals, others, words, capsys):
    with pytest.raises(ConfigError, match=words):
        compare(others, tracking_uri=signals)
    assert main(["compare", "--tracking-uri", signals, *others]) == 2
    assert capsys.readouterr().out == ""


def test_the_command_writes_a_page(signals, tmp_path, capsys):
    page = tmp_path / "new folder" / "page.html"
    asked = ["compare", "--tracking-uri", signals, "good", "blind", "--html", str(page)]
    assert main(asked) == 0
    assert f"The page is {page}" in capsys.readouterr().out
    text = page.read_text(encoding="utf-8")
    assert "good has a daily Rank IC" in text and "is significant at 5%" in text


def test_a_page_that_cannot_be_written_is_one_line(signals, tmp_path, capsys):
    (tmp_path / "taken").write_text("a file, no folder", encoding="utf-8")
    page = tmp_path / "taken" / "page.html"
    assert main(["compare", "--tracking-uri", signals, "good", "--html", str(page)]) == 1
    said = capsys.readouterr().err
    assert said.startswith("kronos-qlib: ") and "taken" in said and said.count("\n") <= 2


def keep_plain(client, run_id, folder, score, label=LABEL, task=TASK):
    """What KronosSignalRecord leaves beside the pickles in the folder."""
    for kept, values in ((SCORES_KEPT, score), (LABELS_KEPT, label)):
        table = values.to_frame(kept.plain)
        write_table(table, folder / kept.plain, (folder / kept.pickled).read_bytes())
    (folder / "task.json").write_text(task_json(task), encoding="utf-8")
    client.log_artifacts(run_id, folder)


def test_parquet_and_json_are_read_and_pickles_written_later_instead(signals, tmp_path, caplog):
    """Qlib's online update writes pred.pkl anew and knows nothing of what stands beside it."""
    client = mlflow.MlflowClient(signals)
    client.create_experiment("plain", (tmp_path / "artifacts").as_uri())
    run_id = add_run(client, "plain")
    folder = tmp_path / "plain"
    dated = TASK | {"model": {"class": "LGBModel", "kwargs": {"seed": np.int64(7)}}}
    save_artifacts(client, run_id, folder, SCORES["blind"])
    keep_plain(client, run_id, folder, SCORES["good"], task=dated)
    found = compare(["plain", "good"], tracking_uri=signals)
    assert found.signals.correlation.loc["plain", "good"] == pytest.approx(1), "Parquet is read"
    assert found.settings.loc["Model", "plain"] == "LGBModel"
    assert found.settings.loc["Seed", "plain"] == "7"

    (SCORES["blind"] * 2).to_frame("score").to_pickle(folder / "pred.pkl")
    client.log_artifact(run_id, folder / "pred.pkl")
    found = compare(["plain", "good"], tracking_uri=signals)
    assert found.signals.correlation.loc["plain", "good"] < 0.9
    assert "pred.pkl was written anew after scores.parquet" in caplog.text


@pytest.mark.parametrize(
    ("name", "data", "words"),
    [
        ("scores.parquet", b"PAR1 nothing PAR1", "scores.parquet of run .* cannot be read"),
        ("labels.parquet", b"", "labels.parquet of run .* cannot be read"),
        ("task.json", b"[" * 200_000, "task.json of run .* is no JSON"),
        ("task.json", b"\xff\xfe", "task.json of run .* is no JSON"),
        ("portfolio_report/daily.csv", b"a,b\n1,2\n", "no table of days with the columns"),
        ("portfolio_report/daily.csv", b"a" + b",b" * 9999, "more than 10,000 letters"),
        ("pred.pkl", pickle.dumps("no table"), "holds no table of scores but str"),
        ("pred.pkl", pickle.dumps(pd.Series([1.0])), "is not on datetime and instrument"),
    ],
)
def test_a_damaged_file_costs_its_run_the_tests_and_no_more(signals, tmp_path, name, data, words):
    client = mlflow.MlflowClient(signals)
    experiment = tmp_path.name
    client.create_experiment(experiment, (tmp_path / "artifacts").as_uri())
    run_id = add_run(client, experiment)
    folder = tmp_path / "files"
    save_artifacts(client, run_id, folder, SCORES["blind"], report=report_of(0.0))
    if "pickle" not in name and not name.startswith("pred"):
        keep_plain(client, run_id, folder, SCORES["blind"])
    (folder / name).write_bytes(data)
    client.log_artifacts(run_id, folder)
    found = compare([experiment, "good"], tracking_uri=signals)
    assert any(re.search(words, note) for note in found.notes), found.notes


def outside(path):
    path.symlink_to(Path(__file__).absolute())


def nowhere(path):
    path.symlink_to(path.with_name("nothing"))


def zeros(path):
    path.symlink_to("/dev/zero")


@pytest.mark.skipif(sys.platform == "win32", reason="links and pipes are for administrators there")
@pytest.mark.parametrize("put", [outside, nowhere, zeros, os.mkfifo, Path.mkdir])
@pytest.mark.parametrize("name", ["scores.parquet", "pred.pkl", "task.json"])
def test_a_link_or_a_pipe_costs_its_run_the_tests_and_no_more(signals, tmp_path, put, name):
    """MLflow's error for one file of one run ended the comparison, CompareRecord's run included."""
    client = mlflow.MlflowClient(signals)
    experiment = f"{tmp_path.name} {name} {put.__name__}"
    client.create_experiment(experiment, (tmp_path / "artifacts").as_uri())
    run_id = add_run(client, experiment)
    folder = tmp_path / "files"
    save_artifacts(client, run_id, folder, SCORES["blind"])
    keep_plain(client, run_id, folder, SCORES["blind"])
    stored = next((tmp_path / "artifacts").rglob("pred.pkl")).parent / name
    stored.unlink()
    put(stored)
    found = compare([experiment, "good"], tracking_uri=signals)
    assert any(run_id in note and "\n" not in note for note in found.notes), found.notes


@pytest.mark.parametrize("place", [0.2, 0.4, 0.6])
def test_a_changed_byte_is_no_other_score(tmp_path, place):
    """One flipped byte in the middle of scores.parquet was read as another Rank IC."""
    path = tmp_path / "scores.parquet"
    write_table(SCORES["good"].to_frame("score"), path, b"")
    data = bytearray(path.read_bytes())
    data[int(len(data) * place)] ^= 0xFF
    path.write_bytes(data)
    with pytest.raises(MissingArtifactError, match="cannot be read: it is damaged"):
        _read_parquet(path, "scores.parquet of run 1")


def test_times_of_a_zone_and_endless_scores_are_named_as_the_cause(signals, tmp_path):
    """Both were told as runs that share no day, with the same days for each."""
    client = mlflow.MlflowClient(signals)
    good = SCORES["good"]
    zoned = good.set_axis(INDEX.set_levels(DAYS.tz_localize("Asia/Shanghai"), level="datetime"))
    for name, score in {"zone": zoned, "endless scores": good * np.inf}.items():
        client.create_experiment(name, (tmp_path / "artifacts").as_uri())
        save_artifacts(client, add_run(client, name), tmp_path / name, score)
    found = compare(["zone", "good"], tracking_uri=signals)
    assert any("times of the zone Asia/Shanghai" in note for note in found.notes)
    with pytest.raises(ConfigError, match="'endless scores' has no score that is a finite number"):
        compare(["endless scores", "good"], tracking_uri=signals)


NAMES = pa.DictionaryArray.from_arrays(pa.array(np.zeros(4, "i4")), pa.array(["x" * 5000]))
TIMES = pa.array(DAYS.to_numpy()[:4])
FOUR = pa.array(np.arange(4.0))
STRANGE = {
    "lists": ([TIMES, NAMES, pa.array([[[1]]] * 4)], "list<.* in its column s"),
    "texts": ([TIMES, NAMES, pa.array(["1"] * 4)], "string in its column s"),
    "names": ([TIMES, pa.array(range(4)), FOUR], "int64 in its column instrument"),
    "times": ([pa.array(["2024"] * 4), NAMES, FOUR], "string in its column datetime"),
    "keys": ([TIMES, NAMES], "has no column beside the keys"),
}


@pytest.mark.parametrize("name", STRANGE)
def test_a_table_of_other_than_numbers_is_refused_by_its_header(name, tmp_path):
    columns, words = STRANGE[name]
    named = ["datetime", "instrument", "s"][: len(columns)]
    pq.write_table(pa.table(columns, names=named), tmp_path / "scores.parquet")
    with pytest.raises(MissingArtifactError, match=words):
        _read_parquet(tmp_path / "scores.parquet", "scores.parquet of run 1")


def test_a_long_name_in_many_rows_is_kept_once_and_columns_beside_the_first_are_not_read(tmp_path):
    """A file of some kilobytes took gigabytes: each row with a copy of its name."""
    rows = 2**20
    index = pa.array(np.zeros(rows, "i4"))
    table = pa.table(
        {
            "datetime": pa.DictionaryArray.from_arrays(index, TIMES).dictionary_decode(),
            "instrument": pa.DictionaryArray.from_arrays(index, NAMES.dictionary),
            "score": pa.array(np.zeros(rows)),
            "more": pa.DictionaryArray.from_arrays(index, pa.array(["y" * 5000])),
        }
    )
    pq.write_table(table, tmp_path / "scores.parquet")
    before = pa.total_allocated_bytes()
    found, _ = _read_parquet(tmp_path / "scores.parquet", "scores.parquet of run 1")
    assert list(found) == ["score"] and len(found) == rows
    assert pa.total_allocated_bytes() - before < 2**26


def test_more_rows_than_a_file_can_hold_honestly_are_not_read(tmp_path, monkeypatch):
    """800 KB of one number 67 million times took 3 GB and half a minute."""
    monkeypatch.setattr(plain, "PLAIN_ROWS", 1000)
    rows = pa.array(np.zeros(200_000))
    keys = {"datetime": TIMES.take(pa.array(np.zeros(200_000, "i4")))}
    names = pa.array(["A"] * 200_000)
    table = pa.table({**keys, "instrument": names, "score": rows})
    pq.write_table(table, tmp_path / "scores.parquet")
    with pytest.raises(MissingArtifactError, match=r"says that they are 200,000 rows"):
        _read_parquet(tmp_path / "scores.parquet", "scores.parquet of run 1")


def test_names_of_a_store_reach_no_terminal_as_they_are(signals, capsys):
    """The list of known experiments was printed raw, escape sequences and all."""
    client = mlflow.MlflowClient(signals)
    client.create_experiment("\x1b]0;owned\x07\u202e evil")
    assert main(["compare", "--tracking-uri", signals, "zzzz"]) == 2
    told = capsys.readouterr().err
    assert "evil" in told and told.rstrip("\n").isprintable()


@pytest.mark.parametrize("junk", [None, 1, "x", [], [1, "a"], {"kwargs": 3}, {"kwargs": {"a": []}}])
def test_settings_of_a_strange_task_are_empty_or_short(junk):
    for key in ("model", "dataset", "record", "backtest"):
        assert all(len(value) <= 300 for value in settings_of({key: junk}).values())
        label_bars_of({key: junk})
    long = {"model": {"class": "x" * 10_000 + "\ud800"}}
    shown = settings_of(long)["Model"]
    assert len(shown) == 300 and shown.encode("utf-8")


def test_runs_that_did_not_finish_are_named(store):
    found = compare(["kronos"], tracking_uri=store[0])
    failed = store[1]["failed"][:8]
    assert f"kronos: not compared, as unfinished: run {failed} is FAILED." in found.notes
    with pytest.raises(
        MissingArtifactError, match=r"no finished run \(its last run \w{8} is KILLED\)"
    ):
        compare(["unfinished"], tracking_uri=store[0])


def test_settings_are_found_in_the_records_of_an_older_workflow():
    exchange = {"open_cost": 0.1, "deal_price": "close"}
    config = {
        "strategy": {"kwargs": {"topk": 7, "n_drop": 2, "hold_thresh": 5}},
        "backtest": {"benchmark": "B", "exchange_kwargs": exchange},
    }
    found = settings_of({"record": [{"class": "PortAnaRecord", "kwargs": {"config": config}}]})
    assert {name: value for name, value in found.items() if value} == {
        "Names held": "7",
        "Replaced a bar": "2",
        "Bars held at least": "5",
        "Deal price": "close",
        "Cost to buy": "0.1",
        "Benchmark": "B",
    }
    assert set(settings_of({}).values()) == {""}


@pytest.mark.parametrize(
    ("label", "bars"),
    [
        (["Ref($close, -2) / Ref($close, -1) - 1"], 1),
        ([["Ref($close, -11)/Ref($close, -1) - 1"], ["LABEL0"]], 10),
        (["Ref($open,-6) / Ref($open,-1) - 1"], 5),
        ("Ref($open,-6) / Ref($open,-1) - 1", 5),
        ("Ref($close, -5) / $close - 1", 5),
        (None, 1),
        (f"Ref($close, -{'9' * 5000})", FURTHEST),
        (f"Ref($close, -{'9' * 100}) / Ref($close, -1) - 1", FURTHEST - 1),
    ],
)
def test_the_bars_of_a_label_are_read_off_its_expression(label, bars):
    task = {"dataset": {"kwargs": {"handler": {"kwargs": {"label": label}}}}}
    assert label_bars_of(task) == bars
    assert label_bars_of({}) == 1


# The record: the run it stands in has not finished.


@pytest.fixture
def recorder(signals, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # Qlib records `git diff` of where it stands
    before = mlflow.get_tracking_uri()
    client = mlflow.MlflowClient(signals)
    found = client.get_experiment_by_name("mine")
    number = found.experiment_id if found else None
    number = number or client.create_experiment("mine", (tmp_path / "artifacts").as_uri())
    recorder = MLflowRecorder(number, signals, "a run")
    recorder.start_run()
    yield recorder
    recorder.end_run("FINISHED")
    mlflow.set_tracking_uri(before)


def test_the_record_puts_the_running_run_beside_others(recorder, tmp_path, caplog):
    recorder.log_metrics(**METRICS)
    save_artifacts(
        recorder.client, recorder.id, tmp_path / "mine", SCORES["good"], report=report_of(0.0)
    )
    asked = ["blind", "absent", "weekly", "flat", "mine"]
    with caplog.at_level(logging.WARNING):
        CompareRecord(recorder, asked).generate()

    assert "absent is left out: no MLflow experiment 'absent'" in caplog.text
    assert "weekly is left out: 'mine' and 'weekly' are judged by different labels" in caplog.text
    assert "flat is left out: no day on which every run ranks the instruments: flat" in caplog.text
    assert "mine (before)" not in caplog.text, "the first run of an experiment has none before it"
    left = recorder.list_artifacts("comparison")
    assert sorted(left) == [
        "comparison/comparison.html",
        "comparison/comparison.md",
        "comparison/daily_rank_ic.csv",
        "comparison/table.csv",
    ]
    folder = tmp_path / "read"
    folder.mkdir()
    text = recorder.client.download_artifacts(recorder.id, "comparison", str(folder))
    table = pd.read_csv(f"{text}/table.csv", index_col="run")
    assert table.index.to_list() == ["mine", "blind"]
    assert table.loc["mine", "wall_seconds"] > 0
    daily = pd.read_csv(f"{text}/daily_rank_ic.csv", index_col=0)
    assert daily.shape == (60, 2) and daily["mine"].mean() > 0.2


def test_the_record_needs_predictions_and_writes_nothing_alone(recorder, tmp_path, caplog):
    with pytest.raises(MissingArtifactError, match=r"no pred\.pkl, which SignalRecord"):
        CompareRecord(recorder).generate()
    recorder.log_metrics(**METRICS)
    save_artifacts(recorder.client, recorder.id, tmp_path / "mine", SCORES["good"])
    for asked in ([], ["absent"]):
        caplog.clear()
        CompareRecord(recorder, asked).generate()
        (said,) = [each.getMessage() for each in caplog.records if "compare" in each.name]
        assert said.startswith("CompareRecord writes no comparison, this run stands alone: ")
        assert "\n" not in said and all(f"{name} is left out" in said for name in asked)
    assert recorder.list_artifacts("comparison") == []
    with pytest.raises(ConfigError, match="a list of names, got 'lightgbm'"):
        CompareRecord(recorder, "lightgbm")


@pytest.mark.parametrize(
    ("tag", "mine", "its"),
    [
        (PROVIDER, "/here/demo/market", "/here/us/market"),
        (UNIVERSE, "csi300", "csi500"),
        (DAYS_TAG, "2022-07-01/2022-09-22", "2013-01-02/2016-12-30"),
    ],
)
def test_runs_of_another_market_are_passed_over(
    signals, recorder, tmp_path, caplog, tag, mine, its
):
    """The latest run of an experiment hid those of this market, whatever it was run on."""
    client, experiment = mlflow.MlflowClient(signals), f"two markets by {tag.rpartition('.')[2]}"
    client.create_experiment(experiment, (tmp_path / "artifacts").as_uri())
    recorder.log_metrics(**METRICS)
    save_artifacts(client, recorder.id, tmp_path / "mine", SCORES["good"], report=report_of(0.0))
    client.set_tag(recorder.id, tag, mine)
    foreign = add_run(client, experiment, start=NOON + 10_000)
    client.set_tag(foreign, tag, its)
    CompareRecord(recorder, [experiment], html=False).generate()
    assert recorder.list_artifacts("comparison") == []
    assert "has no finished run of this market; its last is of another" in caplog.text
    same = add_run(client, experiment, start=NOON)
    client.set_tag(same, tag, mine)
    save_artifacts(client, same, tmp_path / "same", SCORES["blind"], report=report_of(-0.001))
    CompareRecord(recorder, [experiment], html=False).generate()
    (tmp_path / "read").mkdir()
    text = client.download_artifacts(recorder.id, "comparison", str(tmp_path / "read"))
    table = pd.read_csv(f"{text}/table.csv", index_col="run")
    assert table["run_id"].to_list() == [recorder.id, same]


def test_trials_are_counted_alike_and_the_benchmark_has_a_column(signals, tmp_path, capsys):
    """A column deflated by one trial stood beside one deflated by twelve."""
    client = mlflow.MlflowClient(signals)
    for name, trials in (("few", 1), ("many", 12)):
        client.create_experiment(name, (tmp_path / name).as_uri())
        run_id = add_run(client, name, METRICS | {"sharpe_trials": trials, "days_per_year": 365})
        save_artifacts(client, run_id, tmp_path / f"{name} files", SCORES["good"], report=NOISY)
    found = compare(["few", "many"], tracking_uri=signals)
    assert found.table["trials"].to_list() == [13, 13]
    expected = deflated_sharpe(NOISY["excess_return"], 13, days_per_year=365).probability
    assert found.table["deflated_sharpe"].to_list() == pytest.approx([expected] * 2)
    assert found.equity.days_per_year == 365
    assert main(["compare", "--tracking-uri", signals, "few", "many"]) == 0
    printed = capsys.readouterr().out
    assert printed.splitlines()[0].split() == ["few", "many", "benchmark"]
    assert re.search(r"Trials it is deflated by +13 +13 +-\n", printed)
    assert "365 days to a year for all" in printed and "the sum, over the runs compared" in printed
    mixed = compare(["few", "good"], tracking_uri=signals)
    assert mixed.equity.days_per_year == 365 and not any("differently" in n for n in mixed.notes)


# The runs of a stranger: after the record's, whose first must be its experiment's first.


class Harm:
    """Pickled, it makes a file when it is read."""

    def __init__(self, marker):
        self.marker = str(marker)

    def __reduce__(self):
        return open, (self.marker, "w")


@pytest.mark.parametrize("name", ["pred.pkl", "label.pkl", "task"])
def test_a_strangers_pickles_run_nothing(signals, recorder, tmp_path, capsys, caplog, name):
    """A shared store's owner ran code in whoever compared its runs."""
    client, marker, experiment = mlflow.MlflowClient(signals), tmp_path / "ran", f"harm in {name}"
    client.create_experiment(experiment, (tmp_path / "artifacts").as_uri())
    run_id = add_run(client, experiment)
    save_artifacts(client, run_id, tmp_path / "harm", SCORES["blind"], report=report_of(0.0))
    harm = {"model": Harm(marker)} if name == "task" else [Harm(marker)]
    (tmp_path / "harm" / name).write_bytes(pickle.dumps(harm))
    client.log_artifacts(run_id, tmp_path / "harm")

    found = compare([experiment, "good"], tracking_uri=signals)
    refused = [note for note in found.notes if "is a pickle that calls" in note]
    assert len(refused) == 1 and run_id in refused[0] and f"{name} of run" in refused[0]
    assert re.search(r"calls \w+\.open", refused[0])
    assert main(["compare", "--tracking-uri", signals, experiment, "good"]) == 0
    assert f"{name} of run {run_id} is a pickle that calls" in capsys.readouterr().out

    recorder.log_metrics(**METRICS)
    save_artifacts(client, recorder.id, tmp_path / "mine", SCORES["good"])
    CompareRecord(recorder, [experiment], html=False).generate()
    if name != "task":
        assert f"{experiment} is left out: {name} of run {run_id} is a pickle that" in caplog.text
    assert not marker.exists()

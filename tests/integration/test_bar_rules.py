"""The same rules at every entry point: Qlib folders, files, the console command, the predictor.

The folders are written as Qlib's own dump_bin writes them, which checks nothing.
"""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from kronos_qlib import KronosDataset, KronosModel, KronosPredictor, WindowDataset
from kronos_qlib.cli.main import main
from kronos_qlib.errors import BarDataError
from kronos_qlib.plugin.baselines import BaselineModel
from kronos_qlib.plugin.lookahead import open_provider
from kronos_qlib.plugin.provider.reader import read_table
from kronos_qlib.plugin.records.baseline_scores import baselines_at

pytestmark = pytest.mark.integration

DAYS = pd.bdate_range("2020-01-02", periods=120)
PRICES = ["open", "high", "low", "close"]
HALT = slice(80, 100)
NAMES = [f"SH60000{number}" for number in range(5)]


def walk(seed: int, times: pd.DatetimeIndex = DAYS) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    close = 20 * np.exp(np.cumsum(rng.normal(0, 0.01, len(times))))
    opened = np.concatenate(([20.0], close[:-1])) * np.exp(rng.normal(0, 0.002, len(times)))
    bars = pd.DataFrame({"open": opened, "close": close}, index=times)
    bars["high"] = bars[["open", "close"]].max(axis=1) * 1.004
    bars["low"] = bars[["open", "close"]].min(axis=1) / 1.004
    bars["volume"] = np.round(rng.uniform(1e5, 1e6, len(times)))
    return bars[[*PRICES, "volume"]]


def dump(folder: Path, frames: dict[str, pd.DataFrame]) -> Path:
    """A provider with volume and without amount, as Qlib's own scripts make it."""
    (folder / "calendars").mkdir(parents=True)
    (folder / "instruments").mkdir()
    lines = "\n".join(DAYS.strftime("%Y-%m-%d")) + "\n"
    (folder / "calendars" / "day.txt").write_text(lines, encoding="utf-8")
    members = []
    for name, bars in frames.items():
        place = folder / "features" / name.lower()
        place.mkdir(parents=True)
        start = DAYS.get_loc(bars.index[0])
        dense = bars.reindex(DAYS[start : DAYS.get_loc(bars.index[-1]) + 1])
        for field, values in dense.items():
            np.concatenate([[start], values]).astype("<f4").tofile(place / f"{field}.day.bin")
        members.append(f"{name}\t{bars.index[0]:%Y-%m-%d}\t{bars.index[-1]:%Y-%m-%d}\n")
    (folder / "instruments" / "all.txt").write_text("".join(members), encoding="utf-8")
    open_provider(folder, region="cn")
    return folder


def suspend(bars: pd.DataFrame, how: str, rows: slice = HALT) -> pd.DataFrame:
    """A share that is suspended for a month, as vendors write it."""
    bars, last = bars.copy(), bars.iloc[rows.start - 1]
    own = bars.index[rows]
    bars.loc[own, PRICES] = last["close"]
    bars.loc[own, "volume"] = 0.0
    if how == "empty volume":
        bars.loc[own, "volume"] = np.nan
    elif how == "the bar before":
        bars.loc[own, PRICES] = last[PRICES].to_numpy()
    elif how == "forward-filled":
        bars.loc[own] = last.to_numpy()
    elif how == "close only":
        bars.loc[own, PRICES[:3]] = 0.0
    elif how == "zeros":
        bars.loc[own, PRICES] = 0.0
    return bars


WAYS = ["flat", "empty volume", "the bar before", "close only", "zeros"]


def dataset(**handler) -> KronosDataset:
    config = {
        "class": "KronosHandler",
        "module_path": "kronos_qlib.plugin.dataset",
        "kwargs": {"instruments": "all", **handler},
    }
    segments = {"test": (str(DAYS[82].date()), str(DAYS[104].date()))}
    return KronosDataset(config, segments, lookback=20, horizon=2, beyond_calendar="weekdays")


def zero_shot() -> KronosModel:
    return KronosModel("nano", sampling={"paths": 2}, device="cpu", show_progress=False)


def collect(monkeypatch, *modules: str) -> list[str]:
    """What the modules of the plugin warn of: Qlib's loggers do not reach pytest."""
    said: list[str] = []
    for module in modules:
        logger = f"kronos_qlib.plugin.{module}.logger"
        monkeypatch.setattr(f"{logger}.warning", said.append, raising=False)
    return said


@pytest.mark.parametrize("direct", [True, False], ids=["files", "D.features"])
@pytest.mark.parametrize("how", [*WAYS, "forward-filled"])
def test_a_suspended_share_is_neither_scored_nor_bought(how, direct, tmp_path, monkeypatch):
    """A backtest bought such shares on a suspended day and held them for 38 days."""
    frames = {name: walk(seed) for seed, name in enumerate(NAMES)}
    frames[NAMES[0]] = suspend(frames[NAMES[0]], how)
    dump(tmp_path / "q", frames)
    said = collect(monkeypatch, "provider.reader")
    table = read_table(NAMES, direct=direct)
    rule = "repeated" if how == "forward-filled" else "untraded"
    assert table.skipped == {rule: 20} and len(table) == 5 * 120 - 20
    span = f"{NAMES[0]} 20 from {DAYS[80].date()} to {DAYS[99].date()}"
    assert any(f"20 {rule}" in line and span in line for line in said)
    if not direct or how not in ("flat", "zeros"):
        return
    windows = dataset().windows("test")
    assert windows.dropped == {"untraded": 18}
    halted = {(day, NAMES[0]) for day in DAYS[82:100]}
    for model in (zero_shot(), BaselineModel("low_volatility", bars=10)):
        scores = model.predict(dataset())
        assert not halted & set(scores.index) and len(scores) == 23 * 5 - 18
    rows = pd.MultiIndex.from_product([DAYS[82:105], NAMES], names=["datetime", "instrument"])
    known = baselines_at(rows, ["momentum", "low_volatility"]).notna().all(axis=1)
    assert set(rows[~known]) == halted


def test_bars_that_cannot_be_are_refused_or_left_out_as_told(tmp_path, monkeypatch):
    """Prices of 0 and below were scored in silence: -17.6 % for one name."""
    frames = {name: walk(seed) for seed, name in enumerate(NAMES)}
    frames[NAMES[0]].iloc[90, 1] = 1.0  # high
    frames[NAMES[1]].iloc[91, 3] = -5.0  # close
    frames[NAMES[2]].iloc[85:95, 0] = 0.0  # open, as in minute bars of some vendors
    frames[NAMES[3]].iloc[92, 4] = -1.0  # volume
    dump(tmp_path / "q", frames)
    for model in (zero_shot(), BaselineModel("reversal")):
        with pytest.raises(BarDataError) as told:
            model.predict(dataset())
        said = str(told.value)
        day = DAYS[90].date()
        assert f"{NAMES[0]} at {day}" in said and "high-below-low: open " in said
        assert "1 such bar of SH600000; 12 bars under other rules" in said
        assert "invalid='skip'" in said
    said = collect(monkeypatch, "provider.reader")
    windows = dataset(invalid="skip").windows("test")
    assert windows.dropped == {"nonpositive": 11, "high-below-low": 1, "size": 1}
    assert len(windows) == 23 * 5 - 13
    assert any("13 bars left out" in line and NAMES[0] in line for line in said)
    assert len(dataset(invalid="keep").windows("test")) == 23 * 5
    for direct in (True, False):
        with pytest.raises(BarDataError, match="high-below-low"):
            read_table(NAMES, direct=direct)


def test_suspended_bars_are_refused_or_kept_when_told(tmp_path):
    frames = {name: walk(seed) for seed, name in enumerate(NAMES[:2])}
    frames[NAMES[0]] = suspend(frames[NAMES[0]], "flat")
    dump(tmp_path / "q", frames)
    with pytest.raises(
        BarDataError, match=r"SH600000 at .*untraded.*20 such bars.*untraded='skip'"
    ):
        dataset(untraded="error").windows("test")
    kept = dataset(untraded="keep").windows("test")
    assert kept.dropped == {} and len(kept) == 23 * 2


def test_a_share_suspended_in_all_that_is_read_is_no_fault_of_the_storage(tmp_path):
    """Empty volumes of one name are a missing file's where it trades, and a halt's where not."""
    frames = {name: walk(seed) for seed, name in enumerate(NAMES[:3])}
    frames[NAMES[0]] = suspend(frames[NAMES[0]], "empty volume")
    dump(tmp_path / "q", frames)
    inside = {"first": DAYS[82], "last": DAYS[95]}
    for direct in (True, False):
        for names in (NAMES[:3], NAMES[2::-1]):
            table = read_table(names, direct=direct, **inside)
            assert table.skipped == {"untraded": 14}


def test_a_split_in_the_folder_is_logged_with_its_windows(tmp_path, monkeypatch):
    frames = {name: walk(seed) for seed, name in enumerate(NAMES)}
    frames[NAMES[4]].iloc[90:, :4] /= 10
    dump(tmp_path / "q", frames)
    said = collect(monkeypatch, "model", "baselines.past_bars_model")
    for model in (zero_shot(), BaselineModel("reversal")):
        said.clear()
        model.predict(dataset())
        # From the day of the split, 15 days to the end of the segment.
        (line,) = [line for line in said if "windows span" in line]
        assert line.startswith("15 of 115 windows span a close that moves by more than 40%")
        assert f"SH600004 at {DAYS[90].date()}" in line and "split-jumps" in line


# Files.


def write(path: Path, bars: pd.DataFrame, **columns) -> Path:
    bars.rename_axis("date").reset_index().assign(**columns).to_csv(path, index=False)
    return path


def ask(source: Path, *more: str) -> list[str]:
    out = str(source.with_name("forecast.csv"))
    quick = ["--freq", "B", "--horizon", "2", "--paths", "2", "--lookback", "50", "--overwrite"]
    return ["forecast", str(source), "--out", out, *quick, *more]


@pytest.mark.parametrize("how", WAYS)
def test_a_suspension_in_a_file_is_reported_by_every_command(how, tmp_path, capsys):
    source = write(tmp_path / "halt.csv", suspend(walk(0), how))
    assert main(["data", "check", str(source)]) == 1
    said = capsys.readouterr().out
    assert "error untraded: 20" in said and "--repair drop-untraded fixes it" in said
    target = tmp_path / "q"
    assert main(["data", "convert", str(source), str(target)]) == 1
    said = capsys.readouterr().err
    assert "untraded: --repair drop-untraded fixes it" in said
    assert "zero-sizes" not in said and not target.exists()
    assert main(["data", "convert", str(source), str(target), "--repair", "drop-untraded"]) == 0
    assert "100 times" in capsys.readouterr().out
    assert main(ask(source)) == 0
    said = capsys.readouterr().out
    assert f"20 bars of HALT did not trade and are left out, {DAYS[80].date()}" in said
    with pytest.raises(BarDataError, match=r"20 errors.*(?s:.*)untraded: repair drop-untraded"):
        WindowDataset.from_file(source, {"test": 1.0}, lookback=20, horizon=2)
    left = WindowDataset.from_file(
        source, {"test": 1.0}, lookback=20, horizon=2, repair=["drop-untraded"]
    )
    assert len(left.table) == 100


def test_a_bar_filled_forward_is_doubted_in_a_file(tmp_path, capsys):
    """Its volume says that it traded, and is another's: worth a warning, and left out of windows.

    A panel of US shares has all of two days twice.
    """
    source = write(tmp_path / "fill.csv", suspend(walk(0), "forward-filled", slice(80, 82)))
    assert main(["data", "check", str(source)]) == 0
    said = capsys.readouterr().out
    assert "warning repeated: 2" in said and "repeated: --repair drop-untraded fixes it" in said
    target = tmp_path / "q"
    assert main(["data", "convert", str(source), str(target)]) == 0
    assert "2 bars are the bar before once more" in capsys.readouterr().out
    assert main(["data", "convert", str(source), str(target), "--refuse", "repeated"]) == 1
    assert main(ask(source)) == 0
    assert "2 bars of FILL did not trade and are left out" in capsys.readouterr().out
    dataset = WindowDataset.from_file(source, {"test": 1.0}, lookback=20, horizon=2)
    assert dataset.windows("test").dropped["repeated"] == 2
    assert any("2 bars left out" in note for note in dataset.notes)


def test_a_forecast_of_a_share_that_is_still_suspended_says_where_it_begins(tmp_path, capsys):
    source = write(tmp_path / "halt.csv", suspend(walk(0), "flat", slice(110, 120)))
    assert main(ask(source)) == 0
    assert f"it last traded at {DAYS[109].date()}" in capsys.readouterr().out
    nothing = walk(0).assign(symbol="B")
    nothing[[*PRICES, "volume"]] = [5.0, 5.0, 5.0, 5.0, 0.0]
    write(source, pd.concat([walk(1).assign(symbol="A"), nothing]))
    assert main(ask(source, "--symbol", "B")) == 1
    assert "none of its 120 bars has traded" in capsys.readouterr().err


def test_a_split_in_the_lookback_is_told_by_the_forecast(tmp_path, capsys, caplog):
    """A 10:1 split 30 bars ago was forecast as "median -56 %", without a word."""
    bars = walk(0)
    bars.iloc[90:, :4] /= 10
    source = write(tmp_path / "split.csv", bars)
    assert main(ask(source)) == 0
    said = capsys.readouterr()
    assert f"{DAYS[90].date()} close " in said.out and "split-jumps" in said.out
    assert not caplog.records and "split-jumps" not in said.err, "said once"
    assert main(ask(source, "--lookback", "20")) == 0
    assert "split-jumps" not in capsys.readouterr().out, "not in what is seen"
    dataset = WindowDataset.from_file(source, {"test": 1.0}, lookback=20, horizon=2)
    assert any("split-jumps" in note and "jump" in note for note in dataset.notes)


def test_the_predictor_warns_of_a_lookback_that_looks_wrong_and_leaves_it_alone(caplog):
    predictor = make_predictor()
    sound, halted, split = walk(0), suspend(walk(1), "flat"), walk(2)
    split.iloc[90:, :4] /= 10
    sound, halted, split = (each.tail(predictor.max_context) for each in (sound, halted, split))
    days = DAYS[-predictor.max_context :]
    options = {"pred_len": 2, "freq": "B", "sample_count": 2, "verbose": False}
    with caplog.at_level(logging.WARNING):
        predictor.predict_paths([sound], [days], **options)
        assert not caplog.records
        frames = [sound, halted, split]
        predictor.predict_paths(frames, [days] * 3, keys=["AA", "BB", "CC"], **options)
    (record,) = caplog.records
    said = record.getMessage()
    assert "2 of 3 series" in said and "AA" not in said
    assert f"BB: 20 of 100 bars did not trade, {DAYS[80].date()} to {DAYS[99].date()}" in said
    assert f"CC: {DAYS[90].date()} the close jumps from" in said and "split-jumps" in said


def test_what_the_network_does_not_see_is_not_doubted(caplog):
    """A split long before the last bars that count was logged as one in the lookback."""
    predictor, split = make_predictor(), walk(2)
    split.iloc[10:, :4] /= 10
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            predictor.predict_paths([split], [DAYS], pred_len=2, freq="B", verbose=False)
    (record,) = caplog.records
    assert "the last 100 are used" in record.getMessage(), "said once: a backtest asks each day"


def make_predictor() -> KronosPredictor:
    from kronos_qlib import Kronos, KronosTokenizer

    tokenizer = KronosTokenizer.from_pretrained("nano")
    net = Kronos.from_pretrained("nano")
    return KronosPredictor(net, tokenizer, device="cpu", max_context=100)


def test_a_day_that_may_not_be_over_is_said_wherever_bars_are_read(tmp_path, capsys):
    """Conversion refused a bar of 11:05 among daily ones; check and forecast took it in silence."""
    times = DAYS[:-1].append(DAYS[-1:] + pd.Timedelta("11:05:00"))
    source = write(tmp_path / "live.csv", walk(0, times))
    assert main(["data", "check", str(source), "--no-gaps"]) == 0
    assert main(ask(source)) == 0
    dataset = WindowDataset.from_file(source, {"test": 1.0}, lookback=20, horizon=2)
    said = capsys.readouterr().out
    assert said.count("11:05:00: a daily bar has no time of day") == 2
    assert any("a daily bar has no time of day" in note for note in dataset.notes)
    assert main(["data", "convert", str(source), str(tmp_path / "qlib")]) != 0

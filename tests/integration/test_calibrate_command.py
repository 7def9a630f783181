"""`kronos-qlib calibrate`, and forecasts that take what it wrote."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from kronos_qlib.calibration.calibration import FILE, Calibration
from kronos_qlib.cli.main import main
from kronos_qlib.data.files.synthetic import MarketConfig, make_market
from kronos_qlib.inference.predictor import KronosPredictor

pytestmark = pytest.mark.integration

QUICK = ["--lookback", "40", "--horizon", "3", "--windows", "300", "--drawn", "4", "--paths", "10"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Bars of four shares, and nano's calibration on the first year of them."""
    place = tmp_path_factory.mktemp("calibrate")
    bars = make_market(MarketConfig(instruments=4, sectors=2, years=1.2, seed=7)).bars
    bars.to_csv(place / "bars.csv", index=False)
    asked = ["calibrate", str(place / "bars.csv"), "--checkpoint", "nano", *QUICK]
    assert main([*asked, "--last", "2020-12-31", "--out", str(place / "mine.json")]) == 0
    return place


def ask(folder, out, *more):
    quick = ["--horizon", "3", "--paths", "30", "--lookback", "40", "--freq", "B"]
    return [
        "forecast", str(folder / "bars.csv"), "--symbol", "SYM0001", *quick, "--out", str(out),
        *more,
    ]  # fmt: skip


def title_of(figure):
    texts = [figure.get_suptitle(), *(axes.get_title(loc="left") for axes in figure.axes)]
    return " ".join([*texts, *(axes.get_title() for axes in figure.axes)])


@pytest.fixture
def figures(monkeypatch):
    from kronos_qlib.evaluation.forecasts import candles

    drawn, draw = [], candles.candle_figure

    def keep(*arguments, **named):
        drawn.append(draw(*arguments, **named))
        return drawn[-1]

    monkeypatch.setattr(candles, "candle_figure", keep)
    return drawn


def test_a_calibration_is_a_file_that_says_what_it_was_fitted_on(folder, tmp_path, capsys):
    out = tmp_path / "again.json"
    asked = ["calibrate", str(folder / "bars.csv"), *QUICK, "--last", "2020-12-31"]
    assert main([*asked, "--out", str(out)]) == 0
    said = capsys.readouterr().out.splitlines()
    about = "300 windows of 40 + 3 bars of 4 instruments, until 2020-12-31"
    assert said[0] == f"nano calibrated on {about}"
    assert "day bars: t of " in said[1] and "paths add nothing significant (4 windows)" in said[1]
    assert said[-1] == str(out)
    assert out.read_bytes() == (folder / "mine.json").read_bytes()
    found = Calibration.load(out)
    assert found.sampling == {"temperature": 1.0, "top_k": 0.0, "top_p": 1.0, "anchor": 1.0}
    first = [*asked[:-2], "--first", "2020-09-01", "--seed", "3", "--drawn", "0"]
    assert main([*first, "--out", str(out), "--overwrite"]) == 0
    assert "no paths were drawn" in capsys.readouterr().out
    assert Calibration.load(out).until > "2021-02"


def test_a_forecast_by_a_file_is_calibrated_and_says_so(folder, tmp_path, capsys, figures):
    out = tmp_path / "f.csv"
    assert main(ask(folder, out, "--calibration", str(folder / "mine.json"))) == 0
    said = capsys.readouterr().out
    assert ", 30 paths, calibrated: median" in said.splitlines()[-2]
    assert "note: calibrated on 300 windows of 40 + 3 bars of 4 instruments, until 2020-" in said
    assert "uncalibrated" not in said
    table = pd.read_csv(out)
    assert set(table["calibration"]) == {"calibrated"}
    assert "30 paths of nano, calibrated" in title_of(figures[0])
    assert main(ask(folder, out, "--overwrite", "--calibration", "none")) == 0
    said = capsys.readouterr().out
    assert ", 30 paths, uncalibrated: median" in said and "note: uncalibrated" not in said
    raw = pd.read_csv(out)
    assert set(raw["calibration"]) == {"uncalibrated"}
    assert "30 paths of nano, uncalibrated" in title_of(figures[1])
    assert not np.allclose(raw["close_q0.95"], table["close_q0.95"])
    bars = pd.read_csv(folder / "bars.csv")
    last = bars.loc[bars["symbol"] == "SYM0001", "close"].iloc[-1]
    assert table["close"].to_numpy() == pytest.approx(last, rel=1e-4)


def test_the_printed_line_agrees_with_the_table_and_has_no_zero_below_zero(
    folder, tmp_path, capsys
):
    """The mean was printed as "-0.00%"; the band of few paths was narrower than it said."""
    out = tmp_path / "f.csv"
    for paths in ("20", "100"):
        more = ["--paths", paths, "--calibration", str(folder / "mine.json"), "--overwrite"]
        assert main(ask(folder, out, *more)) == 0
        line = capsys.readouterr().out.splitlines()[-2]
        assert "-0.00%" not in line and "mean +0.00%" in line
        bars = pd.read_csv(folder / "bars.csv")
        last = bars.loc[bars["symbol"] == "SYM0001", "close"].iloc[-1]
        low, high = pd.read_csv(out)[["close_q0.05", "close_q0.95"]].iloc[-1] / last - 1
        assert f"within {low:+.2%} and {high:+.2%}" in line


def test_a_quantile_that_few_paths_do_not_have_is_said_to_be_none(folder, tmp_path, capsys):
    """The 95 % quantile of two calibrated paths was a number between them."""
    more = ["--calibration", str(folder / "mine.json"), "--overwrite", "--paths"]
    out = tmp_path / "f.csv"
    assert main(ask(folder, out, *more, "9")) == 0
    said = capsys.readouterr().out
    assert "note: quantiles 0.05, 0.95 lie beyond the outermost of 9 paths" in said
    assert "place: draw 10 (--paths)" in said
    for paths in (["10"], ["2", "--quantiles", "0.25", "0", "1"], ["2", "--calibration", "none"]):
        assert main(ask(folder, out, *more, *paths)) == 0
        assert "lie beyond" not in capsys.readouterr().out


def test_a_folder_that_cannot_be_written_is_refused_before_the_work(
    folder, tmp_path, capsys, monkeypatch
):
    """Minutes of drawing ended in "PermissionError: .c.json.4f8cd234.lock"."""
    monkeypatch.setattr("kronos_qlib.cli.parsers.os.access", lambda *_: False)
    bars = str(folder / "bars.csv")
    for asked, name in (
        (["calibrate", bars, "--out", str(tmp_path / "c.json")], "c.json"),
        (["forecast", bars, "--out", str(tmp_path / "f.csv")], "f.csv"),
    ):
        assert main(asked) == 2
        assert f"is read-only: {name} cannot be written there" in capsys.readouterr().err


def test_what_lies_beside_the_weights_is_taken(folder, tmp_path, capsys):
    weights = KronosPredictor.from_pretrained("nano", device="cpu").save_pretrained(tmp_path / "w")
    beside = weights / "predictor" / FILE
    beside.unlink(missing_ok=True)
    asked = ask(folder, tmp_path / "f.csv", "--model", str(weights), "--overwrite")
    assert main(asked) == 0
    said = capsys.readouterr().out
    assert f"note: uncalibrated: no {FILE} lies beside the weights" in said
    assert ", 30 paths, uncalibrated: " in said
    beside.write_bytes((folder / "mine.json").read_bytes())
    assert main(asked) == 0
    assert "note: calibrated on 300 windows" in capsys.readouterr().out
    assert main([*asked, "--lookback", "22"]) == 0
    said = capsys.readouterr().out
    assert "note: uncalibrated: 22 bars were seen, and volatility takes 23" in said
    assert main([*asked, "--paths", "1"]) == 0
    assert "note: uncalibrated: one path has no spread" in capsys.readouterr().out


def test_a_file_that_does_not_fit_is_refused(folder, tmp_path, capsys):
    mine = ["--calibration", str(folder / "mine.json")]
    out = tmp_path / "f.csv"
    for more, message in (
        (["--calibration", str(folder / "no.json")], "no.json holds no calibration"),
        (["--calibration", str(folder)], "is a folder, not the file of a calibration"),
        ([*mine, "--lookback", "22"], "mine.json cannot be used: SYM0001: 22 bars were seen"),
        ([*mine, "--paths", "1"], "mine.json cannot be used: one path has no spread"),
        ([*mine, "--temperature", "0"], "mine.json cannot be used: at temperature 0"),
    ):
        assert main(ask(folder, out, *more)) == 2
        said = capsys.readouterr()
        assert message in said.err and said.err.count("\n") == 1
        assert not out.exists()


def test_what_cannot_be_calibrated_says_so_in_a_line(folder, tmp_path, capsys):
    bars, out = str(folder / "bars.csv"), str(tmp_path / "c.json")
    (tmp_path / "d.json").mkdir()
    few = ["--lookback", "40", "--last", "2020-03-20"]
    for more, code, message in (
        (["--out", str(tmp_path / "c.csv")], 2, "expected a name ending in .json"),
        (["--out", str(folder / "mine.json")], 2, "exists; name another file or say --overwrite"),
        (["--out", str(tmp_path / "no" / "c.json")], 2, "is no folder to write c.json in"),
        (["--out", str(tmp_path / "d.json"), "--overwrite"], 2, "is a folder; name a file"),
        (["--out", out, "--windows", "1"], 2, "windows must be at least 220, got 1"),
        (["--out", out, "--lookback", "10"], 2, "lookback must lie in 23 to 256"),
        (["--out", out, "--lookback", "40", "--last", "soon"], 2, "is a date or time, got 'soon'"),
        (["--out", out, *few], 1, "a calibration is fitted on 220 at least"),
        (["--out", out, "--checkpoint", "nana"], 1, "did you mean 'nano'?"),
    ):
        assert main(["calibrate", bars, *more]) == code, message
        assert message in capsys.readouterr().err
    assert not (tmp_path / "c.json").exists()

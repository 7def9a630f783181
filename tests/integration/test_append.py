"""New bars in a Qlib folder: as if all had been converted at once, and never half of a day."""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from kronos_qlib.data.files.synthetic import MarketConfig, make_market
from kronos_qlib.errors import BarDataError, ConfigError
from kronos_qlib.plugin.provider.appending import append as appending
from kronos_qlib.plugin.provider.appending.append import LOG, append_bars, read_log
from kronos_qlib.plugin.provider.appending.changed_history import ADDED, CORRECTED, REBASED
from kronos_qlib.plugin.provider.writer import write_provider
from kronos_qlib.schema import BAR_COLUMNS, PRICE_COLUMNS

pytestmark = pytest.mark.integration

CUT = 50
"""Days that are in the folder before."""


def exact(bars: pd.DataFrame) -> pd.DataFrame:
    """Numbers that float32 holds, so that what is stored is what was given."""
    numbers = [*BAR_COLUMNS, "factor"]
    return bars.assign(**{name: bars[name].astype(np.float32).astype(float) for name in numbers})


@pytest.fixture(scope="module")
def bars():
    config = MarketConfig(instruments=5, sectors=2, years=0.24, suspended_share=0.03, seed=5)
    return exact(make_market(config).bars)


@pytest.fixture(scope="module")
def days(bars):
    return pd.DatetimeIndex(np.unique(bars["date"]))


@pytest.fixture(scope="module")
def written(bars, days, tmp_path_factory):
    folder = tmp_path_factory.mktemp("written") / "part"
    write_provider(
        bars[bars["date"] < days[CUT]], folder, market="demo", benchmark="MEAN", future_bars=10
    )
    return folder


@pytest.fixture
def part(written, tmp_path):
    return Path(shutil.copytree(written, tmp_path / "part"))


def tree(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != LOG
    }


def stored(folder: Path, name: str, field: str) -> tuple[int, np.ndarray]:
    values = np.fromfile(folder / "features" / name.lower() / f"{field}.day.bin", dtype="<f4")
    return int(values[0]), values[1:]


def assert_same(folder: Path, other: Path) -> None:
    """Byte for byte; a mean's running product of float32 may differ in its last digit."""
    one, two = tree(folder), tree(other)
    assert one.keys() == two.keys()
    for name, content in one.items():
        if name.startswith("features/mean/"):
            a, b = (np.frombuffer(each, "<f4") for each in (content, two[name]))
            np.testing.assert_allclose(a, b, rtol=2e-6, atol=2e-7, err_msg=name)
        else:
            assert content == two[name], name


@pytest.mark.parametrize("step", [1, 7])
def test_appended_days_make_the_folder_of_all_bars(bars, days, part, tmp_path, step):
    write_provider(bars, tmp_path / "whole", market="demo", benchmark="MEAN", future_bars=10)
    for at in range(CUT, len(days), step):
        own = days[at : at + step]
        summary = append_bars(bars[bars["date"].isin(own)], part, benchmark="MEAN", future_bars=10)
        assert summary.times == tuple(own)
        assert not summary.changes
    assert_same(part, tmp_path / "whole")


def test_a_name_that_was_halted_on_the_first_new_day_keeps_its_places(bars, days, part, tmp_path):
    """Qlib's own dump_update wrote its bars one place early, without an error."""
    name = bars["symbol"].iloc[0]
    left = bars[~((bars["symbol"] == name) & (bars["date"] == days[CUT]))]
    write_provider(left, tmp_path / "whole", market="demo", benchmark="MEAN", future_bars=10)
    for at in range(CUT, len(days)):
        summary = append_bars(
            left[left["date"] == days[at]], part, benchmark="MEAN", future_bars=10
        )
        if at == CUT:
            assert name in summary.silent
            assert any(name in note and "renames" in note for note in summary.notes)
    assert_same(part, tmp_path / "whole")


def test_the_same_day_again_changes_nothing(bars, days, part):
    before = tree(part)
    summary = append_bars(bars[bars["date"] == days[CUT - 1]], part, benchmark="MEAN")
    assert (summary.times, summary.changes) == ((), ())
    assert tree(part) == before
    assert not (part / LOG).exists()


def test_a_day_that_comes_late_moves_what_comes_after_it(bars, days, part, tmp_path):
    late = days[CUT - 3]
    shutil.rmtree(part)
    known = bars[bars["date"] < days[CUT]]
    write_provider(
        known[known["date"] != late], part, market="demo", benchmark="MEAN", future_bars=10
    )
    write_provider(known, tmp_path / "whole", market="demo", benchmark="MEAN", future_bars=10)
    summary = append_bars(known[known["date"] == late], part, benchmark="MEAN", future_bars=10)
    assert summary.times == (late,)
    assert {change.kind for change in summary.changes} == {ADDED}
    assert any("came late" in note for note in summary.notes)
    assert_same(part, tmp_path / "whole")


def test_a_day_that_was_announced_and_is_missing_is_told(bars, days, part):
    summary = append_bars(bars[bars["date"] == days[CUT + 1]], part, benchmark="MEAN")
    assert any(f"no bars of {days[CUT]:%Y-%m-%d}" in note for note in summary.notes)


def test_a_corrected_bar_is_found_told_and_applied(bars, days, part, tmp_path):
    corrected = bars[bars["date"] < days[CUT]].copy()
    row = corrected.index[(corrected["date"] == days[CUT - 4])][2]
    corrected.loc[row, ["high", "close"]] *= 1.5
    corrected = exact(corrected)
    write_provider(corrected, tmp_path / "whole", market="demo", benchmark="MEAN", future_bars=10)
    summary = append_bars(
        corrected[corrected["date"] >= days[CUT - 6]], part, benchmark="MEAN", future_bars=10
    )
    (change,) = summary.changes
    assert (change.symbol, change.kind) == (corrected.loc[row, "symbol"], CORRECTED)
    assert change.first == change.last == days[CUT - 4]
    assert "close" in change.detail and "open" not in change.detail
    assert_same(part, tmp_path / "whole")
    (line,) = read_log(part)
    assert line["changes"][0]["symbol"] == change.symbol
    assert line["times"] == []


def on_new_base(bars: pd.DataFrame, ratio: float) -> pd.DataFrame:
    scaled = {name: bars[name] * ratio for name in (*PRICE_COLUMNS, "factor")}
    return bars.assign(**scaled, volume=bars["volume"] / ratio)


@pytest.mark.parametrize("ratio", [0.5, 2.0, 0.995])
def test_a_new_factor_brings_all_of_the_past_to_the_new_base(bars, days, part, tmp_path, ratio):
    name = bars["symbol"].iloc[0]
    is_own = bars["symbol"] == name
    new = bars.copy()
    new[is_own] = on_new_base(new[is_own], ratio)
    write_provider(new[new["date"] <= days[CUT]], tmp_path / "whole", market="demo", future_bars=10)
    came = new[new["date"].isin(days[CUT - 2 : CUT + 1])]
    summary = append_bars(came, part, benchmark="MEAN", future_bars=10)
    (change,) = summary.changes
    assert (change.symbol, change.kind) == (name, REBASED)
    assert f"x {ratio:.6g}" in change.detail
    for field in (*BAR_COLUMNS, "factor", "vwap"):
        first, values = stored(part, name, field)
        other, expected = stored(tmp_path / "whole", name, field)
        assert first == other
        np.testing.assert_allclose(values, expected, rtol=3e-7, err_msg=field)
    _, moves = stored(part, name, "change")
    _, expected = stored(tmp_path / "whole", name, "change")
    np.testing.assert_allclose(moves, expected, atol=1e-6)


def test_without_factors_one_ratio_of_all_prices_is_a_new_base(bars, days, part):
    """A feed of adjusted closes alone, after a dividend."""
    name = bars["symbol"].iloc[0]
    came = bars[bars["date"].isin(days[CUT - 5 : CUT + 1])].copy()
    is_own = came["symbol"] == name
    came.loc[is_own, list(PRICE_COLUMNS)] *= 0.97
    before = stored(part, name, "close")[1]
    summary = append_bars(came, part, benchmark="MEAN")
    assert [(each.symbol, each.kind) for each in summary.changes] == [(name, REBASED)]
    np.testing.assert_allclose(stored(part, name, "close")[1][:30], before[:30] * 0.97, rtol=1e-6)


def test_a_new_day_on_another_base_is_refused_where_nothing_tells_the_ratio(bars, days, part):
    """The false move of -8.8 % shifted that name's scores by half of their range."""
    came = bars[bars["date"] == days[CUT]].copy()
    row = came.index[0]
    came.loc[row, list(PRICE_COLUMNS)] *= 0.8
    came.loc[row, "factor"] *= 0.8
    before = tree(part)
    with pytest.raises(BarDataError, match=r"another base.*Give the bar of"):
        append_bars(came, part, benchmark="MEAN")
    assert tree(part) == before


def test_a_split_of_prices_adjusted_backward_is_no_new_base(bars, days, part):
    came = bars[bars["date"] == days[CUT]].copy()
    came["factor"] *= 2
    summary = append_bars(came, part, benchmark="MEAN")
    assert not summary.changes
    assert len([note for note in summary.notes if "factor" in note]) == len(came)


def test_a_factor_that_is_unknown_goes_on_as_it_was(bars, days, part):
    came = bars[bars["date"] == days[CUT]].assign(factor=np.nan)
    append_bars(came, part, benchmark="MEAN")
    for name in came["symbol"]:
        factors = stored(part, name, "factor")[1]
        assert factors[-1] == factors[np.isfinite(factors)][-2]


def test_volume_in_another_unit_is_refused(bars, days, part):
    came = bars[bars["date"].isin(days[CUT : CUT + 3])].copy()
    came["volume"] /= 100
    before = tree(part)
    with pytest.raises(BarDataError, match="lots of 100"):
        append_bars(came, part, benchmark="MEAN")
    assert tree(part) == before


def test_a_new_name_enters_all_and_its_copies(bars, days, part):
    came = bars[bars["date"] == days[CUT]]
    listed = came.iloc[:1].assign(symbol="NEWCO")
    (part / "instruments" / "few.txt").write_text(
        f"{came['symbol'].iloc[1]}\t{days[0]:%Y-%m-%d}\t{days[CUT - 1]:%Y-%m-%d}\n"
        f"{came['symbol'].iloc[2]}\t{days[0]:%Y-%m-%d}\t{days[20]:%Y-%m-%d}\n"
        f"{came['symbol'].iloc[3]}\t{days[0]:%Y-%m-%d}\t2099-12-31\n"
    )
    summary = append_bars(pd.concat([came, listed]), part, benchmark="MEAN")
    assert summary.entered == ("NEWCO",)
    for market in ("all", "demo"):
        text = (part / "instruments" / f"{market}.txt").read_text()
        assert f"NEWCO\t{days[CUT]:%Y-%m-%d}\t{days[CUT]:%Y-%m-%d}" in text
        assert "MEAN" not in text
    few = (part / "instruments" / "few.txt").read_text().splitlines()
    ends = [line.split("\t")[2] for line in few]
    assert ends == [f"{days[CUT]:%Y-%m-%d}", f"{days[20]:%Y-%m-%d}", "2099-12-31"]


def test_a_renamed_instrument_takes_its_past_along_and_once_only(bars, days, part):
    old = bars["symbol"].iloc[0]
    past = stored(part, old, "close")
    came = bars[bars["date"] == days[CUT]].replace({"symbol": {old: "NEWCO"}})
    summary = append_bars(came, part, benchmark="MEAN", renames={old: "newco"})
    assert summary.entered == ()
    assert not (part / "features" / old.lower()).exists()
    first, values = stored(part, "NEWCO", "close")
    assert first == past[0]
    assert np.array_equal(values[: len(past[1])], past[1], equal_nan=True)
    assert old not in (part / "instruments" / "all.txt").read_text()
    again = bars[bars["date"] == days[CUT + 1]].replace({"symbol": {old: "NEWCO"}})
    assert not append_bars(again, part, benchmark="MEAN", renames={old: "newco"}).entered
    both = bars[bars["date"] == days[CUT + 2]]
    append_bars(both, part, benchmark="MEAN")
    with pytest.raises(ConfigError, match="has bars of both"):
        append_bars(both, part, benchmark="MEAN", renames={old: "newco"})


def test_fields_of_others_stay_and_are_told(bars, days, part):
    name = bars["symbol"].iloc[0].lower()
    close = part / "features" / name / "close.day.bin"
    own = part / "features" / name / "theirs.day.bin"
    own.write_bytes(close.read_bytes())
    summary = append_bars(bars[bars["date"] == days[CUT]], part, benchmark="MEAN")
    assert any("theirs" in note for note in summary.notes)
    _, values = stored(part, name, "theirs")
    assert np.array_equal(values[:CUT], np.fromfile(close, "<f4")[1 : CUT + 1], equal_nan=True)
    assert np.isnan(values[-1])


def test_days_to_come_that_are_known_are_kept(bars, days, part):
    """A calendar of the exchange's own knows holidays, and a later guess does not."""
    past = [f"{day:%Y-%m-%d}" for day in days[:CUT]]
    ahead = [f"{day:%Y-%m-%d}" for day in days[CUT : CUT + 4] if day != days[CUT + 1]]
    file = part / "calendars" / "day_future.txt"
    file.write_text("\n".join([*past, *ahead]) + "\n")
    append_bars(bars[bars["date"] == days[CUT]], part, benchmark="MEAN", future_bars=6)
    lines = file.read_text().split()
    assert lines[: CUT + 3] == [*past, *ahead]
    assert len(lines) == CUT + 1 + 6


def test_whoever_reads_meanwhile_sees_all_of_the_day_or_none(bars, days, part, monkeypatch):
    """What is written stands elsewhere until it is whole: stopped anywhere, nothing is seen."""
    before = tree(part)
    came = bars[bars["date"] == days[CUT]]
    seen = 0
    for name in ("write_feature", "write_calendars", "extend_markets"):
        original = getattr(appending, name)

        def look(*arguments, _original=original, **others):
            nonlocal seen
            seen += 1
            assert tree(part) == before
            return _original(*arguments, **others)

        monkeypatch.setattr(appending, name, look)
    append_bars(came, part, benchmark="MEAN")
    assert seen > 50
    assert tree(part) != before
    assert [path.name for path in part.parent.iterdir()] == ["part"]


@pytest.mark.parametrize("place", ["write_feature", "write_calendars", "extend_markets"])
def test_a_full_disk_leaves_the_folder_as_it_was(bars, days, part, monkeypatch, place):
    before = tree(part)

    def full(*arguments, **others):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(appending, place, full)
    with pytest.raises(OSError, match="No space"):
        append_bars(bars[bars["date"] == days[CUT]], part, benchmark="MEAN")
    assert tree(part) == before
    assert [path.name for path in part.parent.iterdir()] == ["part"]


@pytest.mark.skipif(
    sys.platform == "win32" or not hasattr(os, "geteuid") or os.geteuid() == 0,
    reason="root writes everywhere",
)
def test_a_read_only_place_leaves_the_folder_as_it_was(bars, days, part):
    before = tree(part)
    part.parent.chmod(0o555)
    try:
        with pytest.raises(OSError):
            append_bars(bars[bars["date"] == days[CUT]], part, benchmark="MEAN")
    finally:
        part.parent.chmod(0o755)
    assert tree(part) == before


def test_a_damaged_field_is_named(bars, days, part):
    name = bars["symbol"].iloc[0].lower()
    path = part / "features" / name / "close.day.bin"
    path.write_bytes(path.read_bytes()[:-2])
    with pytest.raises(BarDataError, match=r"close\.day\.bin"):
        append_bars(bars[bars["date"] == days[CUT]], part, benchmark="MEAN")


def test_an_unknown_benchmark_and_a_bad_log_are_named(bars, days, part):
    with pytest.raises(ConfigError, match="SH000300"):
        append_bars(bars[bars["date"] == days[CUT]], part, benchmark="SH000300")
    append_bars(bars[bars["date"] == days[CUT]], part, benchmark="MEAN")
    (line,) = (part / LOG).read_text().splitlines()
    assert json.loads(line)["times"] == [f"{days[CUT]:%Y-%m-%d}"]
    (part / LOG).write_text(line + "\n[]\n")
    with pytest.raises(BarDataError, match="line 2"):
        read_log(part)

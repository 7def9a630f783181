"""Bars read straight from a provider's files, held against what Qlib itself reads."""

from __future__ import annotations

import shutil
import subprocess
import sys
import types

import numpy as np
import pandas as pd
import pytest

from kronos_qlib.data.files.synthetic import MarketConfig, make_market
from kronos_qlib.data.windows.find import windows_to_score
from kronos_qlib.errors import BarDataError, ConfigError
from kronos_qlib.plugin.lookahead import open_provider
from kronos_qlib.plugin.provider.reader import (
    STORED,
    local_folder,
    read_calendar,
    read_spans,
    read_table,
)
from kronos_qlib.plugin.provider.writer import write_provider
from kronos_qlib.schema import BAR_COLUMNS

pytestmark = pytest.mark.integration

MARKET = MarketConfig(instruments=8, sectors=2, years=1.0, suspended_share=0.05, seed=5)


@pytest.fixture(scope="module")
def daily():
    """Shares listed late, delisted early, suspended at times, and split (a factor that steps)."""
    bars = make_market(MARKET).bars
    names = sorted(bars["symbol"].unique())
    late = (bars["symbol"] == names[0]) & (bars["date"] < "2020-06-01")
    gone = (bars["symbol"] == names[1]) & (bars["date"] > "2020-09-01")
    bars = bars[~late & ~gone].reset_index(drop=True)
    split = (bars["symbol"] == names[2]) & (bars["date"] < "2020-05-04")
    bars["factor"] = np.where(split, 0.5, 1.0)
    return bars


@pytest.fixture(scope="module")
def minutes(make_minutes):
    return make_minutes(instruments=4, days=5)


@pytest.fixture(scope="module")
def folders(daily, minutes, tmp_path_factory):
    root = tmp_path_factory.mktemp("providers")
    write_provider(daily, root / "day", future_bars=20)
    write_provider(minutes, root / "5min", freq="5min", future_bars=100)
    return {"day": str(root / "day"), "5min": str(root / "5min")}


@pytest.fixture
def provider(folders):
    return open_folders(folders)


def open_folders(uri):
    open_provider(uri, region="cn")
    return uri


def same(one, other):
    np.testing.assert_array_equal(one.values, other.values)
    np.testing.assert_array_equal(one.times, other.times)
    np.testing.assert_array_equal(one.offsets, other.offsets)
    assert one.instruments == other.instruments
    assert one.skipped == other.skipped


@pytest.mark.parametrize("raw_volume", [False, True])
@pytest.mark.parametrize(
    ("freq", "first", "last"),
    [
        ("day", None, None),
        ("day", "2020-03-02", "2020-08-14"),
        ("day", "2020-03-01", "2020-03-01"),
        ("5min", None, None),
        ("5min", "2024-06-18", "2024-06-19"),
        ("5min", "2024-06-18 10:02", "2024-06-19 13:10"),
    ],
)
def test_files_hold_what_qlib_reads(provider, freq, first, last, raw_volume):
    names = sorted(read_spans("all", freq))
    how = {"first": first, "last": last, "raw_volume": raw_volume}
    if first == "2020-03-01":  # a Sunday
        with pytest.raises(BarDataError, match=r"no bars of 8 instruments .* in no time"):
            read_table(names, freq, direct=True, **how)
        with pytest.raises(BarDataError, match=r"no bars of 8 instruments .* in no time"):
            read_table(names, freq, direct=False, **how)
        return
    table = read_table(names, freq, direct=True, **how)
    assert len(table) > 100
    same(table, read_table(names, freq, direct=False, **how))
    same(table, read_table(names, freq, **how))
    if first is not None:
        assert table.times.min() >= pd.Timestamp(first)
        assert table.times.max() < pd.Timestamp(last) + pd.Timedelta(days=1)


def test_the_bars_are_those_that_were_written(provider, daily, minutes):
    for freq, bars in (("day", daily), ("5min", minutes)):
        table = read_table(sorted(read_spans("all", freq)), freq, direct=True)
        expected = bars.sort_values(["symbol", "date"])
        owners = np.array(table.instruments)[table.instrument_of(np.arange(len(table)))]
        assert list(owners) == list(expected["symbol"])
        assert list(table.times) == list(expected["date"])
        values = expected[list(BAR_COLUMNS)].to_numpy(np.float32)
        np.testing.assert_array_equal(table.values, values)


def test_prices_and_volume_are_adjusted_and_amount_is_money(provider, daily):
    """A share that split: adjusted columns go on as if it had not, raw volume tells it did."""
    name = sorted(daily["symbol"].unique())[2]
    own = daily[daily["symbol"] == name]
    adjusted, raw = (read_table([name], raw_volume=raw) for raw in (False, True))
    prices = list(BAR_COLUMNS[:4])
    np.testing.assert_allclose(adjusted.values[:, :4], own[prices], rtol=1e-6)
    np.testing.assert_allclose(adjusted.values[:, 4], own["volume"], rtol=1e-6)
    np.testing.assert_allclose(raw.values[:, 4], own["volume"] * own["factor"], rtol=1e-6)
    for table in (adjusted, raw):
        np.testing.assert_allclose(table.values[:, 5], own["amount"], rtol=1e-6)
    # Money: adjusted price x adjusted volume is what was paid, whatever the factor.
    traded = own["volume"].to_numpy() > 0
    paid = adjusted.values[traded, 5] / adjusted.values[traded, 4]
    assert (paid > 0.9 * own["low"].to_numpy()[traded]).all()
    assert (paid < 1.1 * own["high"].to_numpy()[traded]).all()


def test_an_expression_goes_through_qlib(provider):
    names = sorted(read_spans("all"))
    fields = {**STORED, "amount": "$volume * ($high + $low) / 2"}
    table = read_table(names, fields=fields)
    plain = read_table(names)
    middle = plain.values[:, 1:3].mean(axis=1)
    np.testing.assert_allclose(table.values[:, 5], plain.values[:, 4] * middle, rtol=1e-5)
    with pytest.raises(ConfigError, match=r"\$volume \* .* cannot be read from files"):
        read_table(names, fields=fields, direct=True)
    with pytest.raises(ConfigError, match="fields names open, high, low, close, volume, amount"):
        read_table(names, fields={"close": "$close"})


def test_a_provider_that_is_not_files_here_is_asked_through_qlib(provider, monkeypatch):
    """Another storage class, such as Arctic or a server's, has no files to read."""
    from qlib.data.data import FeatureD, LocalFeatureProvider

    class OtherFeatureProvider(LocalFeatureProvider):
        pass

    names = sorted(read_spans("all"))
    expected = read_table(names, direct=True)
    monkeypatch.setattr(FeatureD, "_provider", OtherFeatureProvider())
    assert local_folder() is None
    same(read_table(names), expected)
    with pytest.raises(ConfigError, match="not files on this machine"):
        read_table(names, direct=True)


def test_each_frequency_has_its_own_folder_and_universe(provider, folders):
    """Qlib remembers a market by name alone: after the daily one the 5-minute one was wrong."""
    daily, minutes = read_spans("all", "day"), read_spans("all", "5min")
    assert set(daily).isdisjoint(minutes)
    assert read_spans("all", "day") == daily
    assert str(local_folder("5min")) == str(folders["5min"])
    assert len(read_calendar("5min")) == 5 * 48
    assert read_spans(["SH600000"]) is None


def test_a_frequency_that_is_not_there_is_an_error(folders, tmp_path):
    open_folders(folders["day"])
    names = sorted(read_spans("all"))
    with pytest.raises((BarDataError, ValueError), match="1min"):
        read_table(names, "1min")


def test_delisted_names_stay_until_their_last_day(provider, daily):
    names = sorted(daily["symbol"].unique())
    spans = read_spans("all")
    assert spans[names[1]][0][1] == daily.loc[daily["symbol"] == names[1], "date"].max()
    assert spans[names[1]][0][1] < pd.Timestamp("2020-09-02")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (np.array([3.0] * 300, dtype="<f4").tobytes(), "holds 299 values.*has 26[0-9] days"),
        (np.array([0.0, 1.0], dtype="<f4").tobytes() + b"ab", "no feature file.*10 bytes"),
        (np.array([0.5, 1.0], dtype="<f4").tobytes(), "no feature file.*place 0.5"),
        (np.array([np.nan, 1.0], dtype="<f4").tobytes(), "no feature file.*place nan"),
        (np.array([-1.0, 1.0], dtype="<f4").tobytes(), "no feature file.*place -1"),
    ],
)
def test_a_damaged_file_is_named(folders, tmp_path, content, message):
    shutil.copytree(folders["day"], tmp_path / "qlib")
    path = next((tmp_path / "qlib").glob("features/*/close.day.bin"))
    path.write_bytes(content)
    open_folders(str(tmp_path / "qlib"))
    with pytest.raises(BarDataError, match=message) as told:
        read_table(sorted(read_spans("all")))
    assert str(path) in str(told.value)


def test_an_incomplete_bar_is_an_error_or_left_out_as_told(folders, tmp_path):
    shutil.copytree(folders["day"], tmp_path / "qlib")
    path = next((tmp_path / "qlib").glob("features/*/volume.day.bin"))
    name = path.parent.name.upper()
    values = np.fromfile(path, dtype="<f4")
    traded = np.flatnonzero(np.isfinite(values))[[5, 9]]
    values[traded] = np.nan
    values.tofile(path)
    open_folders(str(tmp_path / "qlib"))
    names = sorted(read_spans("all"))
    when = read_calendar()[traded[0] - 1 + int(values[0])]
    day = np.datetime_as_string(when, unit="D")
    for direct in (True, False):
        with pytest.raises(BarDataError, match=rf"{name} at {day}: volume is missing.*\(2 such"):
            read_table(names, direct=direct)
    skipped = read_table(names, incomplete="skip", direct=True)
    assert skipped.skipped == {"incomplete": 2}
    same(skipped, read_table(names, incomplete="skip", direct=False))
    own = slice(*skipped.offsets[skipped.instruments.index(name) :][:2])
    assert when not in skipped.times[own]


def test_a_column_that_some_instruments_lack_is_a_fault_of_the_storage(folders, tmp_path):
    shutil.copytree(folders["day"], tmp_path / "qlib")
    next((tmp_path / "qlib").glob("features/*/amount.day.bin")).unlink()
    open_folders(str(tmp_path / "qlib"))
    for direct in (True, False):
        with pytest.raises(BarDataError, match=r"has amount for \w+ and none for \w+"):
            read_table(sorted(read_spans("all")), direct=direct)


def test_a_name_that_is_a_device_on_windows_is_found(tmp_path, daily):
    """Qlib keeps CON in a folder of another name."""
    own = daily[daily["symbol"] == daily["symbol"].iloc[0]].assign(symbol="CON")
    write_provider(own, tmp_path / "qlib")
    open_folders(str(tmp_path / "qlib"))
    same(read_table(["CON"], direct=True), read_table(["CON"], direct=False))


@pytest.mark.parametrize("direct", [True, False])
def test_what_no_instrument_has_is_no_number(folders, tmp_path, direct):
    """A misspelt field once became zeros, and a missing factor a volume of zero."""
    shutil.copytree(folders["day"], tmp_path / "qlib")
    for path in (tmp_path / "qlib").glob("features/*/factor.day.bin"):
        path.unlink()
    open_folders(str(tmp_path / "qlib"))
    names = sorted(read_spans("all"))
    hint = r"; did you mean \$volume\?" if direct else ""
    with pytest.raises(BarDataError, match=r"no instrument has a value of \$volum" + hint):
        read_table(names, fields={**STORED, "volume": "$volum"}, direct=direct)
    with pytest.raises(BarDataError, match=r"no instrument has a value of \$factor"):
        read_table(names, raw_volume=True, direct=direct)
    expression = {**STORED, "amount": "$volume * $vwp"}
    with pytest.raises(BarDataError, match=r"no instrument has a value of .*vwp"):
        read_table(names, fields=expression)


@pytest.mark.parametrize("direct", [True, False])
def test_one_missing_factor_is_named(folders, tmp_path, direct):
    shutil.copytree(folders["day"], tmp_path / "qlib")
    path = next((tmp_path / "qlib").glob("features/*/factor.day.bin"))
    path.unlink()
    open_folders(str(tmp_path / "qlib"))
    with pytest.raises(BarDataError, match=rf"{path.parent.name.upper()} at .*factor is missing"):
        read_table(sorted(read_spans("all")), raw_volume=True, direct=direct)


def test_an_amount_made_of_volume_and_price_is_money_whatever_the_volume(folders, tmp_path):
    """Raw volume x adjusted price would be money x factor."""
    shutil.copytree(folders["5min"], tmp_path / "qlib")
    for path in (tmp_path / "qlib").glob("features/*/amount.5min.bin"):
        path.unlink()
    open_folders({"5min": str(tmp_path / "qlib")})
    names = sorted(read_spans("all", "5min"))
    adjusted, raw = (read_table(names, "5min", raw_volume=raw) for raw in (False, True))
    np.testing.assert_array_equal(adjusted.values[:, 5], raw.values[:, 5])
    assert not np.array_equal(adjusted.values[:, 4], raw.values[:, 4])


@pytest.mark.parametrize("direct", [True, False])
def test_a_name_without_bars_is_told_and_keeps_its_place(provider, direct, monkeypatch):
    """A universe of which a third was missing once looked complete."""
    said = []
    monkeypatch.setattr(
        "kronos_qlib.plugin.provider.reader.logger", types.SimpleNamespace(warning=said.append)
    )
    names = sorted(read_spans("all"))
    table = read_table([*names, "NOBODY", names[0]], direct=direct)
    assert table.instruments == (*names, "NOBODY")
    assert said == ["1 of 9 instruments have no bars: NOBODY"]
    day = pd.Timestamp("2020-05-06")
    spans = {name: [(day, day)] for name in table.instruments}
    windows = windows_to_score(table, 5, spans=spans)
    assert windows.dropped["no bar that day"] == 8 + 1 - sum(
        day in table.times[slice(*table.offsets[place : place + 2])] for place in range(8)
    )


def test_a_frequency_without_a_folder_says_which_there_are(folders):
    open_folders({"5min": folders["5min"]})
    with pytest.raises(ConfigError, match="there is no folder for freq 'day', only 5min"):
        local_folder("day")


def test_the_handler_hands_its_settings_on(provider, daily):
    """Each was once a setting that could have been ignored with no test the wiser."""
    from kronos_qlib.plugin.dataset import KronosDataset, KronosHandler

    name = sorted(daily["symbol"].unique())[2]
    plain = KronosHandler(instruments=[name]).bars.values
    raw = KronosHandler(instruments=[name], raw_volume=True)
    assert (raw.bars.values[:, 4] < plain[:, 4]).any()
    frame = raw.fetch(col_set="feature").dropna()
    np.testing.assert_allclose(frame["volume"], raw.bars.values[:, 4], rtol=1e-6)
    other = KronosHandler(instruments=[name], fields={"close": "$open"})
    np.testing.assert_array_equal(other.bars.values[:, 3], plain[:, 0])
    young = {"segments": {"test": (None, None)}, "lookback": 5, "horizon": 1, "max_age_days": 5}
    dataset = KronosDataset(KronosHandler(instruments=[name]), **young)
    assert dataset.windows("test").dropped["oldest bar too old"] > 0
    bounded = KronosHandler(instruments=[name], start_time="2020-06-01", history_days=20)
    assert bounded.bars.times.min() == np.datetime64("2020-05-12")


def test_storage_that_was_not_opened_is_an_error_that_says_so(tmp_path):
    """Inside a property Qlib's AttributeError read as if there were no such property."""
    script = (
        "from kronos_qlib.plugin.dataset import KronosHandler\n"
        "try: KronosHandler().bars\n"
        "except ValueError as bad: print(type(bad).__name__, bad)"
    )
    printed = {"capture_output": True, "text": True}
    done = subprocess.run([sys.executable, "-c", script], check=True, **printed)
    assert "ConfigError" in done.stdout
    assert "qlib.init()" in done.stdout


def test_one_minute_bars_are_read_alike(make_minutes, tmp_path):
    bars = make_minutes(instruments=2, days=2)
    first = bars["date"].dt.normalize() + pd.Timedelta(hours=9, minutes=30)
    passed = (bars["date"] - first) // pd.Timedelta(minutes=5)
    bars["date"] = first + passed * pd.Timedelta(minutes=1)  # squeezed: one bar a minute
    write_provider(bars, tmp_path / "qlib", freq="1min")
    open_folders({"1min": str(tmp_path / "qlib")})
    names = sorted(read_spans("all", "1min"))
    table = read_table(names, "1min", direct=True)
    assert len(table) == len(bars)
    same(table, read_table(names, "1min", direct=False))

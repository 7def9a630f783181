"""Members of an index by a folder's own names and days."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from kronos_qlib.errors import BarDataError, ConfigError
from kronos_qlib.plugin.provider.members import merged, plain_code, spans_in_folder, write_members

CALENDAR = np.arange("2020-01-01", "2020-12-31", dtype="datetime64[D]")
ALWAYS = (CALENDAR[0], CALENDAR[-1])
NO_EVENTS = pd.DataFrame(columns=["event_date", "event_type", "old_symbol", "new_symbol"])


def history(*rows):
    table = pd.DataFrame(rows, columns=["symbol", "opt-in", "opt-out"])
    return table.assign(**{end: pd.to_datetime(table[end]) for end in ("opt-in", "opt-out")})


def events(*rows):
    table = pd.DataFrame(rows, columns=["event_date", "event_type", "old_symbol", "new_symbol"])
    return table.assign(event_date=pd.to_datetime(table["event_date"]))


def days(*spans):
    return [tuple(np.datetime64(day) for day in span) for span in spans]


def test_a_member_leaves_on_the_day_before_its_opt_out_and_may_come_back():
    rows = history(
        ("AAA", "2010-01-01", "2020-03-02"),
        ("AAA", "2020-06-15", None),
        ("BBB", "2020-12-31", None),
        ("CCC", "2000-01-01", "2019-12-31"),
    )
    spans, absent = spans_in_folder(rows, NO_EVENTS, CALENDAR, {"AAA": ALWAYS, "CCC": ALWAYS})
    assert spans == {"AAA": days(("2020-01-01", "2020-03-01"), ("2020-06-15", "2020-12-30"))}
    assert absent == set(), "neither BBB nor CCC was a member on a day of the calendar"


def test_spans_that_touch_or_overlap_are_one():
    rows = history(
        ("AAA", "2020-01-01", "2020-02-01"),
        ("AAA", "2020-02-01", "2020-03-01"),
        ("AAA", "2020-02-15", "2020-04-01"),
    )
    spans, _ = spans_in_folder(rows, NO_EVENTS, CALENDAR, {"AAA": ALWAYS})
    assert spans == {"AAA": days(("2020-01-01", "2020-03-31"))}
    assert merged([]) == []


def test_a_member_is_one_on_days_with_bars_only_and_who_has_none_is_named():
    listed = {"AAA": (np.datetime64("2020-05-04"), np.datetime64("2020-08-31"))}
    rows = history(("AAA", "2010-01-01", None), ("BBB", "2010-01-01", None))
    spans, absent = spans_in_folder(rows, NO_EVENTS, CALENDAR, listed)
    assert spans == {"AAA": days(("2020-05-04", "2020-08-31"))}
    assert absent == {"BBB"}


def test_a_code_that_changed_is_followed_and_a_merger_is_not():
    """SH600005 was merged into SH600019: two companies, and two memberships of the history."""
    changed = events(
        ("2020-06-01", "ticker_change", "FB", "META"),
        ("2020-03-02", "ticker_change", "TF", "FB"),
        ("2020-06-01", "merger", "SH600005", "SH600019"),
    )
    rows = history(("META", "2013-12-23", None), ("SH600019", "2005-04-08", None))
    listed = dict.fromkeys(("FB", "TF", "SH600005", "SH600019"), ALWAYS)
    spans, absent = spans_in_folder(rows, changed, CALENDAR, listed)
    assert spans == {
        "FB": days(("2020-01-01", "2020-05-31")),
        "TF": days(("2020-01-01", "2020-03-01")),
        "SH600019": days(("2020-01-01", "2020-12-30")),
    }
    assert absent == set()


def test_codes_that_changed_places_end():
    swapped = events(
        ("2020-02-03", "ticker_change", "A", "B"), ("2020-02-03", "ticker_change", "B", "A")
    )
    rows = history(("A", "2019-01-01", None), ("B", "2019-01-01", None))
    spans, _ = spans_in_folder(rows, swapped, CALENDAR, {"A": ALWAYS, "B": ALWAYS})
    assert set(spans) == {"A", "B"}


@pytest.mark.parametrize(
    "name", ["SH600000", "sh600000", "600000.SH", "600000.ss", "600000.XSHG", "sh.600000", "600000"]
)
def test_a_code_is_known_in_every_spelling(name):
    assert plain_code(name) == "SH600000"
    rows = history(("SH600000", "2010-01-01", None))
    assert set(spans_in_folder(rows, NO_EVENTS, CALENDAR, {name: ALWAYS})[0]) == {name}


def test_shenzhen_and_new_york():
    assert plain_code("000001") == plain_code("000001.XSHE") == "SZ000001"
    assert plain_code("BRK-B") == plain_code("brk.b") == plain_code("BRK_B") == "BRKB"


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "calendars").mkdir()
    (tmp_path / "instruments").mkdir()
    lines = pd.bdate_range("2020-01-01", "2020-12-31").strftime("%Y-%m-%d")
    (tmp_path / "calendars" / "day.txt").write_text("\n".join(lines) + "\n")
    names = ("SH600000", "SH600004", "SZ000001", "SH600006")
    (tmp_path / "instruments" / "all.txt").write_text(
        "".join(f"{name}\t2020-01-01\t2020-12-31\n" for name in names)
    )
    return tmp_path


def test_markets_of_the_package_are_written_as_qlib_reads_them(folder):
    """SH600004 was a member of CSI300 from 2018-12-17 to 2021-06-10, SH600006 never in 2020."""
    one, other = write_members(folder, ["csi300", "csi500"])
    assert one.path.read_text() == (
        "SH600000\t2020-01-01\t2020-12-31\nSH600004\t2020-01-01\t2020-12-31\n"
        "SZ000001\t2020-01-01\t2020-12-31\n"
    )
    assert (one.members, one.by_day, len(one.absent) > 200) == (3, (3, 3), True)
    assert other.path.read_text() == "SH600006\t2020-01-01\t2020-12-31\n"
    with pytest.raises(ConfigError, match=r"csi300.txt is there already"):
        write_members(folder, ["csi300"])
    [both] = write_members(folder, ["csi300", "csi500"], name="csi800")
    assert (both.path.name, both.members) == ("csi800.txt", 4)
    again = write_members(folder, ["csi300"], overwrite=True)
    assert again == [one]


def test_what_cannot_be_written_is_refused_and_nothing_is(folder):
    before = sorted(folder.rglob("*"))
    with pytest.raises(ConfigError, match="no index 'csi1000'; known: csi300"):
        write_members(folder, ["csi300", "csi1000"])
    with pytest.raises(ConfigError, match="a market's name is small letters"):
        write_members(folder, ["csi300"], name="../evil")
    with pytest.raises(ConfigError, match="not all; got 'all'"):
        write_members(folder, ["csi300"], name="all")
    with pytest.raises(BarDataError, match=r"bars of no member of sp500.*like SH600000"):
        write_members(folder, ["csi300", "sp500"])
    with pytest.raises(ConfigError, match="has no bars of freq '5min'"):
        write_members(folder, ["csi300"], freq="5min")
    assert sorted(folder.rglob("*")) == before


def test_the_mean_of_the_members_is_of_the_days_members_alone(folder):
    """MEAN of all names beside CSI300: 12 of 17 points of an excess were the two universes'."""
    calendar = pd.bdate_range("2020-01-01", "2020-12-31")
    moves = {"SH600000": 0.01, "SH600004": -0.02, "SZ000001": 0.03, "SH600006": 0.05}
    for name, move in moves.items():
        (folder / "features" / name.lower()).mkdir(parents=True)
        closes = 10 * (1 + move) ** np.arange(len(calendar))
        if name == "SZ000001":
            closes[5] = np.nan  # suspended: its move comes with the next bar
        np.concatenate(([0], closes)).astype("<f4").tofile(
            folder / "features" / name.lower() / "close.day.bin"
        )
    write_members(folder, ["csi300"], mean="CSI300_MEAN")
    stored = {
        field: np.fromfile(folder / "features" / "csi300_mean" / f"{field}.day.bin", "<f4")
        for field in ("close", "change", "factor")
    }
    assert {len(column) for column in stored.values()} == {len(calendar) + 1}
    change = stored["change"][1:]
    assert change[0] == 0, "the first day has no close before it"
    assert change[1] == pytest.approx((0.01 - 0.02 + 0.03) / 3, rel=1e-4)
    assert change[5] == pytest.approx((0.01 - 0.02) / 2, rel=1e-3)
    assert change[6] == pytest.approx((0.01 - 0.02 + 1.03**2 - 1) / 3, rel=1e-3)
    assert stored["close"][1] == 1000
    assert stored["close"][3] == pytest.approx(1000 * (1 + 0.02 / 3) ** 2, rel=1e-5)
    with pytest.raises(ConfigError, match="csi300_mean is there already"):
        write_members(folder, ["csi500"], mean="CSI300_MEAN")
    with pytest.raises(ConfigError, match="SH600000 is an instrument of"):
        write_members(folder, ["csi500"], mean="SH600000")
    with pytest.raises(ConfigError, match="a mean is of one market"):
        write_members(folder, ["csi300", "csi500"], mean="BOTH", overwrite=True)

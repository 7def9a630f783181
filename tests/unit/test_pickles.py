"""What a stranger's pickle can do: nothing but be a table, or be refused."""

import bz2
import datetime as dt
import gzip
import io
import lzma
import pickle
import struct
from collections import OrderedDict
from decimal import Decimal
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pandas.core.indexes.base import _new_Index

from kronos_qlib.errors import MissingArtifactError, UnsafeArtifactError
from kronos_qlib.plugin.pickles import pickle_steps
from kronos_qlib.plugin.pickles.load_pickle import load_pickle
from kronos_qlib.plugin.runs.plain_files import as_table

KEPT = Path(__file__).parent / "pickles"
"""As pandas 2.2.3 and 3.1 wrote them, by protocol."""
DAYS = pd.bdate_range("2022-07-01", periods=3, name="datetime")
INDEX = pd.MultiIndex.from_product([DAYS, ["SH600000", "中"]], names=["datetime", "instrument"])
SCORE = pd.Series(np.arange(6.0) / 3, INDEX, name="score")
ZONE = DAYS.tz_localize("Asia/Shanghai")
WANTED = {
    "frame": SCORE.to_frame(),
    "series": SCORE,
    "label": SCORE.astype("float32").to_frame("LABEL0"),
    "swapped": SCORE.swaplevel().sort_index(),
    "mixed": pd.DataFrame({"a": SCORE, "n": np.arange(6), "b": SCORE * 2}),
    "categories": SCORE,
    "zone": SCORE.set_axis(INDEX.set_levels(ZONE, level=0)),
    "utc": SCORE.set_axis(INDEX.set_levels(DAYS.tz_localize("UTC"), level=0)),
    "nullable": SCORE.astype("Float64").to_frame(),
}
TASK = {
    "model": {"class": "LGBModel", "kwargs": {"x": 1.5, "n": 3}},
    "dataset": {
        "kwargs": {"segments": {"test": (dt.date(2022, 7, 1), pd.Timestamp("2022-09-30"))}}
    },
    "p": "/a/b",
    "t": pd.Timedelta("1D"),
    "set": {1, 2},
    "when": dt.datetime(2020, 1, 1, 3),
}


def read(data: bytes, folder: Path, **how):
    path = folder / "some.pkl"
    path.write_bytes(data)
    return load_pickle(path, "pred.pkl of run 1234", **how)


def assert_alike(found, wanted):
    """Equal values; the type of texts is this pandas' own."""
    assert type(found) is type(wanted)
    if isinstance(wanted, pd.Series):
        found, wanted = found.to_frame(), wanted.to_frame()
    assert list(found) == list(wanted) and found.index.names == wanted.index.names
    assert [tuple(row) for row in found.index] == [tuple(row) for row in wanted.index]
    for column in wanted:
        assert found[column].dtype == wanted[column].dtype
        assert found[column].tolist() == wanted[column].tolist()


@pytest.mark.parametrize("path", sorted(KEPT.glob("*.pkl")), ids=lambda path: path.stem)
def test_tables_of_pandas_2_and_3_are_read(path):
    kind = path.stem.split("-")[1]
    found = load_pickle(path, "a test")
    if kind == "task":
        found["p"] = found["p"].replace("\\", "/")
        assert found == TASK
    else:
        assert_alike(found, WANTED[kind])


@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("kind", WANTED)
def test_what_this_pandas_writes_is_read(kind, protocol, tmp_path):
    assert_alike(read(pickle.dumps(WANTED[kind], protocol), tmp_path), WANTED[kind])


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_any_table_comes_back(tmp_path_factory, data):
    names = data.draw(st.lists(st.text(max_size=8), min_size=1, max_size=5, unique=True))
    days = data.draw(st.integers(1, 4))
    times = pd.date_range("2024-01-01 09:35", periods=days, freq="5min")
    index = pd.MultiIndex.from_product([times, names], names=["datetime", "instrument"])
    columns = data.draw(st.lists(st.text(max_size=5), min_size=1, max_size=3, unique=True))
    rng = np.random.default_rng(data.draw(st.integers(0, 99)))
    kinds = [data.draw(st.sampled_from(["float64", "float32", "int64", "bool"])) for _ in columns]
    table = pd.DataFrame(
        {
            column: (rng.normal(size=len(index)) * 9).astype(kind)
            for column, kind in zip(columns, kinds, strict=True)
        },
        index=index,
    )
    rows = table.iloc[data.draw(st.integers(0, len(table) - 1)) :]
    protocol = data.draw(st.integers(2, 5))
    assert_alike(read(pickle.dumps(rows, protocol), tmp_path_factory.mktemp("any")), rows)


@pytest.mark.parametrize("pack", [gzip.compress, bz2.compress, lzma.compress])
def test_packed_pickles_are_none(pack, tmp_path):
    """Qlib writes none; 65 KB of gzip became 60 million lists before anything was counted."""
    with pytest.raises(MissingArtifactError, match="it is damaged, or no pickle of a table"):
        read(pack(pickle.dumps(SCORE)), tmp_path)


@pytest.mark.parametrize("protocol", [0, 1])
def test_protocols_of_text_are_not_read(protocol, tmp_path):
    """No Qlib writes them, and their steps are many."""
    with pytest.raises(MissingArtifactError):
        read(pickle.dumps(SCORE, protocol), tmp_path)


# Harm.


class Call:
    """Pickled, it calls a function when it is read."""

    def __init__(self, function, *args, state=None):
        self.function, self.args, self.state = function, args, state

    def __reduce__(self):
        return self.function, self.args, self.state


def harms(marker: Path) -> dict[str, bytes]:
    """Ways to make the file `marker`, and names that lead to such."""
    make = f"open({str(marker)!r}, 'w').close()"
    words = f"c{{}}\n{{}}\n(V{make}\ntR."
    by_name = {
        "eval": ("builtins", "eval"),
        "exec": ("builtins", "exec"),
        "python 2": ("__builtin__", "eval"),
        "pandas": ("pandas", "eval"),
        "read_pickle": ("pandas", "read_pickle"),
        "numpy": ("numpy", "load"),
        "dotted": ("pandas.core.series", "Series.__class__"),
        "pandas' os": ("pandas.io.common", "os.system"),
        "numpy's sys": ("numpy._core.multiarray", "sys"),
        "partial": ("functools", "partial"),
        "getattr": ("builtins", "getattr"),
    }
    found = {
        name: words.format(*pair).replace("\\", "\\\\").encode() for name, pair in by_name.items()
    }
    found["open"] = pickle.dumps(Call(open, str(marker), "w"))
    found["in a list"] = pickle.dumps([1, {"a": Call(open, str(marker), "w")}])
    found["in attrs"] = pickle.dumps(with_attrs(Call(open, str(marker), "w")))
    found["in an array"] = pickle.dumps(np.array([Call(open, str(marker), "w")], dtype=object))
    found["in a frame"] = pickle.dumps(pd.DataFrame({"a": [Call(open, str(marker), "w")]}))
    found["ndarray's subtype"] = pickle.dumps(Call(np.ndarray, (3,)))
    found["inst"] = f"(V{marker}\nVw\nibuiltins\nopen\n.".encode()
    found["obj"] = f"(cbuiltins\nopen\nV{marker}\nVw\no.".encode()
    found["newobj"] = b"cbuiltins\nobject\n)\x81."
    found["extension"] = b"\x82\x01."
    found["persistent"] = b"Pmine\n."
    return found


def with_attrs(value):
    table = SCORE.to_frame()
    table.attrs["more"] = value
    return table


@pytest.mark.parametrize("name", harms(Path("x")))
@pytest.mark.parametrize("any_class", [False, True])
def test_no_pickle_runs_anything(name, any_class, tmp_path):
    """A shared store's owner ran code in whoever compared runs."""
    marker = tmp_path / "ran"
    data = harms(marker)[name]
    try:
        read(data, tmp_path, any_class=any_class)
    except MissingArtifactError as refused:
        assert "pred.pkl of run 1234" in str(refused) and "\n" not in str(refused)
    else:
        assert any_class, f"{name} was read: {data!r}"
    assert not marker.exists()


def test_the_marker_shows_what_a_plain_reading_would_do(tmp_path):
    marker = tmp_path / "ran"
    pickle.loads(harms(marker)["eval"])
    assert marker.exists()


def test_the_refusal_names_what_was_called(tmp_path):
    data = pickle.dumps(Call(eval, "1"))
    with pytest.raises(UnsafeArtifactError, match=r"^pred.pkl of run 1234 .* calls builtins.eval"):
        read(data, tmp_path)


def test_of_a_live_object_in_a_task_the_class_is_told(tmp_path):
    """Qlib takes a model as an object too: its run's task is to be read all the same."""
    task = {"model": pd.DataFrame({"a": [1]}), "x": OrderedDict(a=1), "path": io.StringIO}
    found = read(pickle.dumps(task), tmp_path, any_class=True)
    assert found == {"model": "pandas.DataFrame", "x": {"a": 1}, "path": "_io.StringIO"} or (
        found["model"] == "pandas.core.frame.DataFrame"  # as pandas 2 calls it
    )
    with pytest.raises(UnsafeArtifactError, match=r"calls (_io|io)\.StringIO"):
        read(pickle.dumps(task), tmp_path)


def shared_lists(depth: int) -> bytes:
    """A list of ten times a list of ten times ...: some bytes a level, ten times the items."""
    value = [0]
    for _ in range(depth):
        value = [value] * 10
    return pickle.dumps(value)


def chunks_of_chunks(depth: int) -> bytes:
    """Arrow's texts in ten chunks, each of ten chunks, and so on, without a byte."""
    chunk = Call(pyarrow.lib.chunked_array, [])
    for _ in range(depth):
        chunk = Call(pyarrow.lib.chunked_array, [chunk] * 10)
    texts = Call(pd.arrays.ArrowStringArray, state={"_pa_array": chunk})
    return pickle.dumps(Call(_new_Index, pd.Index, {"data": texts}))


def decimal_codes() -> bytes:
    """An index whose codes are a number of a billion digits."""
    codes = np.array([Decimal("1e999999999")], dtype=object)
    parts = {"levels": [pd.Index(["a"])], "codes": [codes], "names": [None]}
    return pickle.dumps(Call(_new_Index, pd.MultiIndex, parts))


def one_row_of_many(make) -> bytes:
    """One number for an index of 67 million rows: pandas repeats it for each."""
    blob = pickle.dumps(make([1.0], index=pd.RangeIndex(1)), 4)
    lie = blob.replace(b"stop\x94K\x01", b"stop\x94J\xff\xff\xff\x03")
    assert lie != blob
    at = lie.index(b"\x95")
    return lie[:at] + lie[at + 9 :]


def many_columns() -> bytes:
    """A frame of no rows and of as many columns as its index of some bytes says."""
    table = pd.DataFrame(np.zeros((1, 3)), columns=pd.RangeIndex(3))
    blob = pickle.dumps(table, 4)
    lie = blob.replace(b"stop\x94K\x03", b"stop\x94J\xff\xff\xff\x03")
    lie = lie.replace(b"K\x00K\x03K\x01", b"K\x00J\xff\xff\xff\x03K\x01")
    assert lie.count(b"J\xff\xff\xff\x03") == 2
    at = lie.index(b"\x95")  # its frame would be of another length
    return lie[:at] + lie[at + 9 :]


HARMLESS = ("memo", "frame")
"""Only a reader that believes the numbers in them takes memory."""
BOMBS = {
    "shared lists": shared_lists(30),
    "memo": b"\x80\x04Nr\xff\xff\xff\x7f.",
    "long bytes": b"\x80\x04\x8e" + struct.pack("<Q", 2**40) + b"x.",
    "bytearray": b"\x80\x05\x96" + struct.pack("<Q", 2**40) + b"x.",
    "frame": b"\x80\x04\x95" + struct.pack("<Q", 2**50) + b"N.",
    "deep": b"]" * 100_000 + b"a" * 99_999 + b".",
    "deep key": b"}" + b")" + b"\x85" * 200_000 + b"Ns.",
    "range": pickle.dumps(pd.DataFrame(index=pd.RangeIndex(2**40))),
    "array": pickle.dumps(np.zeros(3)).replace(b"K\x03\x85", b"J\xff\xff\xff\x7f\x85"),
    "array of nothing": pickle.dumps(np.zeros(3, dtype="S1")).replace(b"S1", b"S0"),
    "cycle": b"]\x94h\x00a.",
    "set of a range": pickle.dumps(Call(set, Call(range, 2**40))),
    "frozenset of a range": pickle.dumps(Call(frozenset, Call(range, 2**40))),
    "numbers of one hash": pickle.dumps(dict.fromkeys(range(2**61 - 1, 2**72, 2**61 - 1))),
    "chunks of chunks": chunks_of_chunks(40),
    "codes that are decimals": decimal_codes(),
    "columns": many_columns(),
    "rows of a frame": one_row_of_many(pd.DataFrame),
    "rows of a series": one_row_of_many(pd.Series),
}


@pytest.mark.parametrize("name", BOMBS)
def test_a_bomb_is_refused(name, tmp_path):
    """Each is small and would be large, or would end the process."""
    import tracemalloc

    tracemalloc.start()
    try:
        if name in HARMLESS:
            assert read(BOMBS[name], tmp_path) is None
        else:
            with pytest.raises(MissingArtifactError):
                read(BOMBS[name], tmp_path)
        assert tracemalloc.get_traced_memory()[1] < 400e6
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    ("step", "steps"), [(b"]", 2**23), (b"\x8f", 2**21)], ids=["lists", "sets"]
)
def test_a_pickle_of_many_empty_containers_is_refused_before_they_fill_the_memory(
    step, steps, tmp_path, monkeypatch
):
    """On an eighth of the scale: each step of a pickle is counted by the memory that it takes."""
    import tracemalloc

    monkeypatch.setattr(pickle_steps, "MOST_STEPS", pickle_steps.MOST_STEPS // 8)
    tracemalloc.start()
    try:
        with pytest.raises(MissingArtifactError, match="it takes more steps than a table"):
            read(b"\x80\x04" + step * (steps // 8) + b".", tmp_path)
        assert tracemalloc.get_traced_memory()[1] < 400e6 / 8
    finally:
        tracemalloc.stop()


def test_a_dtype_whose_state_lies_is_no_pointer(tmp_path):
    """numpy takes a dtype's flags as told: objects without their flag are addresses in bytes."""
    array = np.array([None, None], dtype=object)
    blob = pickle.dumps(array, protocol=4)
    for lie in (blob.replace(b"K?t", b"K\x00t"), blob.replace(b"]", b"C\x10" + b"A" * 16, 1)):
        assert lie != blob
        try:
            found = read(b"\x80\x04]\x94" + lie[2:-1] + b"a.", tmp_path)
        except MissingArtifactError:
            continue
        raise AssertionError(f"read as {found!r}")


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.data())
def test_a_damaged_pickle_is_a_table_or_one_error(tmp_path_factory, data):
    whole = pickle.dumps(WANTED["mixed"], protocol=data.draw(st.sampled_from([2, 4, 5])))
    blob = bytearray(whole)
    for _ in range(data.draw(st.integers(1, 4))):
        blob[data.draw(st.integers(0, len(blob) - 1))] = data.draw(st.integers(0, 255))
    blob = blob[: data.draw(st.integers(1, len(blob)))]
    try:
        read(bytes(blob), tmp_path_factory.mktemp("damaged"))
    except MissingArtifactError as problem:
        assert "pred.pkl of run 1234" in str(problem)


@pytest.mark.parametrize("data", [b"", b"{}", b"PAR1", b"\x80\x04.", b"\x1f\x8b", b"PK\x03\x04"])
def test_what_is_no_pickle_says_so(data, tmp_path):
    with pytest.raises(MissingArtifactError, match=r"^pred.pkl of run 1234 cannot be read"):
        read(data, tmp_path)


def test_names_of_a_strange_table_cannot_write_to_the_terminal():
    """The names of an index came into the message as their writer had them, escapes and all."""
    index = pd.MultiIndex.from_tuples([(1, 2)], names=["\x1b[31m", "x" * 5000])
    with pytest.raises(MissingArtifactError) as refused:
        as_table(pd.DataFrame({"score": [1.0]}, index=index), "pred.pkl", "abc")
    assert "\x1b" not in str(refused.value) and len(str(refused.value)) < 400

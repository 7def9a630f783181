"""What becomes of each name that a pickle may call: tables, indexes, scalars and settings."""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from itertools import pairwise
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import numpy as np
import pandas as pd

from kronos_qlib.plugin.pickles.pickle_steps import (
    GETATTR,
    ZONE,
    Inert,
    Pair,
)
from kronos_qlib.plugin.pickles.pickle_values import Converter, Rule


@dataclass(frozen=True)
class HeldPosition:
    """What a backtest held after a bar: of Qlib's Position its amounts alone."""

    amounts: Mapping[str, float]

    def get_stock_list(self) -> list[str]:
        """Names that are held."""
        return list(self.amounts)

    def get_stock_amount(self, code: str) -> float:
        """Adjusted shares of a name; 0 where it is not held."""
        return self.amounts.get(code, 0.0)


def _frame(convert: Converter, given: Inert) -> pd.DataFrame:
    (columns, rows), parts = convert.blocks(_manager(given))
    convert.spend(len(columns))
    found: dict[int, Any] = {}
    for values, places in parts:
        at = convert.columns(places, len(columns))
        lines = values if getattr(values, "ndim", 1) == 2 else [values]
        for line in lines:
            _check_rows(line, rows)
        found |= dict(zip(at, lines, strict=True))
    if sorted(found) != list(range(len(columns))):
        raise ValueError("a table whose blocks are not its columns")
    table = pd.DataFrame({place: found[place] for place in sorted(found)}, index=rows)
    table.columns = columns
    return table


def _series(convert: Converter, given: Inert) -> pd.Series[Any]:
    (rows,), ((values, _),) = convert.blocks(_manager(given))
    _check_rows(values, rows)
    return pd.Series(values, index=rows, name=convert.value(given.state.get("_name")))


def _check_rows(values: Any, rows: pd.Index[Any]) -> None:
    """A value by itself pandas would repeat for every row that an index says it has."""
    if getattr(values, "ndim", 1) != 1 or len(values) != len(rows):
        raise ValueError(f"a column of other than the {len(rows):,} rows of its index")


def _manager(given: Inert) -> Any:
    state = given.state if isinstance(given.state, dict) else {}
    return state.get("_mgr", state.get("_data"))


def _backed(given: Inert) -> tuple[Any, Any]:
    """dtype and array of pandas' arrays that stand on numpy's."""
    state = given.state if given.state is not None else given.args[2]
    if isinstance(state, Mapping):
        return state.get("_dtype"), state.get("_ndarray", state.get("_codes"))
    dtype, values = state[0], state[1]
    if isinstance(dtype, Inert) and dtype.pair[1] in ("_reconstruct", "_frombuffer"):
        dtype, values = values, dtype
    return dtype, values


def _times(convert: Converter, given: Inert) -> Any:
    dtype, values = _backed(given)
    found: Any = pd.Index(convert.array(values))
    if isinstance(dtype, Inert) and dtype.pair[1] == "DatetimeTZDtype":
        zone = dtype.args[1] if len(dtype.args) > 1 else dtype.state["tz"]
        found = found.tz_localize("UTC").tz_convert(convert.value(zone))
    return found


def _pyx_backed(convert: Converter, given: Inert) -> Any:
    name = getattr(given.args[0], "pair", ("", ""))[1]
    if name == "__pyx_unpickle_NDArrayBacked" or name not in ARRAYS:
        raise ValueError("an array of no kind")
    return ARRAYS[name](convert, given)


def _categorical(convert: Converter, given: Inert) -> Any:
    dtype, codes = _backed(given)
    names = ("categories", "ordered")
    state = (
        dtype.state
        if isinstance(dtype.state, Mapping)
        else dict(zip(names, dtype.args, strict=False))
    )
    return pd.Categorical.from_codes(
        convert.places(codes), convert.index(state["categories"]), ordered=bool(state["ordered"])
    )


def _masked(convert: Converter, given: Inert) -> Any:
    state = given.state
    values = pd.array(convert.array(state["_data"]))
    if values.dtype == object:
        raise ValueError("a masked array of objects")
    values[convert.array(state["_mask"]).astype(bool)] = pd.NA
    return values


def _strings(convert: Converter, given: Inert) -> Any:
    _, values = _backed(given)
    return convert.array(values)


def _arrow_strings(convert: Converter, given: Inert) -> Any:
    state = given.state
    return _arrow(convert, state.get("_pa_array", state.get("_data")))


def _arrow(convert: Converter, given: Any) -> np.ndarray[Any, Any]:
    """Texts of an Arrow array of strings, or of its chunks."""
    if not isinstance(given, Inert):
        raise ValueError("strings without an Arrow array")
    convert.spend(1)
    if given.pair[1] == "chunked_array":
        chunks = [_arrow(convert, chunk) for chunk in given.args[0]]
        return np.concatenate(chunks) if chunks else np.empty(0, dtype=object)
    kind, length, _, offset, (mask, ends, texts), *_ = given.args[0]
    width = {"string": "<i4", "utf8": "<i4", "large_string": "<i8", "large_utf8": "<i8"}
    at = np.frombuffer(convert.raw(ends), width[kind.args[0]])[offset : offset + length + 1]
    data = convert.raw(texts) if texts is not None else b""
    at = at if length else np.zeros(1, dtype=np.int64)
    if len(at) != length + 1 or at[0] < 0 or (np.diff(at) < 0).any() or at[-1] > len(data):
        raise ValueError("strings that lie outside their data")
    found = np.empty(length, dtype=object)
    known = np.ones(length, dtype=bool)
    if mask is not None:
        bits = np.unpackbits(np.frombuffer(convert.raw(mask), np.uint8), bitorder="little")
        known = bits[offset : offset + length].astype(bool)
    for place, (start, stop) in enumerate(pairwise(at.tolist())):
        found[place] = data[start:stop].decode("utf-8") if known[place] else None
    return found


def _scalar(convert: Converter, given: Inert) -> Any:
    dtype = convert.dtype(given.args[0])
    if dtype.hasobject:
        return convert.value(given.args[1])
    return np.frombuffer(convert.raw(given.args[1]), dtype)[0]


def _timestamp(convert: Converter, given: Inert) -> Any:
    value, *rest = given.args
    unit: Any = RESOLUTIONS[rest[2] if len(rest) > 2 else 10]
    found = pd.Timestamp(np.datetime64(int(value), unit))
    zone = rest[1] if len(rest) > 1 else None
    return found if zone is None else found.tz_localize("UTC").tz_convert(convert.value(zone))


def _timedelta(convert: Converter, given: Inert) -> Any:
    value, number = given.args
    unit: Any = RESOLUTIONS[number]
    return pd.Timedelta(np.timedelta64(int(value), unit))


def _date(convert: Converter, given: Inert) -> Any:
    kind = {"date": dt.date, "time": dt.time, "datetime": dt.datetime}[given.pair[1]]
    first, *rest = given.args
    if isinstance(first, Inert | bytes):
        rest = [convert.value(zone) for zone in rest]
        return kind(convert.raw(first), *rest)
    return kind(*(convert.value(one) for one in given.args))


def _zone(convert: Converter, given: Inert) -> Any:
    name = given.args[0] if given.args else "UTC"
    if not isinstance(name, str):
        raise ValueError("a time zone without a name")
    return ZoneInfo(name)


def _position(convert: Converter, given: Inert) -> HeldPosition:
    held = convert.value(given.state["position"])
    return HeldPosition(
        {
            name: float(one["amount"])
            for name, one in held.items()
            if name not in ("cash", "now_account_value", "cash_delay")
        }
    )


def _ordered(convert: Converter, given: Inert) -> dict[Any, Any]:
    pairs = [*given.pairs]
    if given.args and isinstance(given.args[-1], list | tuple):
        pairs = [*given.args[-1], *pairs]
    return {convert.value(key): convert.value(one) for key, one in pairs}


def _items(convert: Converter, given: Inert) -> list[Any]:
    """What a set is of in protocol 3: a list, and nothing that could count for ever."""
    if not given.args:
        return []
    if len(given.args) > 1 or not isinstance(given.args[0], list):
        raise ValueError("a set of no list")
    return [convert.value(one) for one in given.args[0]]


def _unread(convert: Converter, given: Inert) -> Any:
    raise ValueError(f"{'.'.join(given.pair)} where a table or a setting is expected")


def _array(convert: Converter, given: Inert) -> Any:
    return convert.array(given)


def _index(convert: Converter, given: Inert) -> Any:
    return convert.index(given)


RESOLUTIONS = {4: "D", 5: "h", 6: "m", 7: "s", 8: "ms", 9: "us", 10: "ns"}
"""pandas' numbers of the units of times."""

ARRAYS: dict[str, Rule] = {
    "DatetimeArray": _times,
    "TimedeltaArray": _times,
    "Categorical": _categorical,
    "FloatingArray": _masked,
    "IntegerArray": _masked,
    "BooleanArray": _masked,
    "StringArray": _strings,
    "StringArrayNumpySemantics": _strings,
    "ArrowStringArray": _arrow_strings,
    "ArrowStringArrayNumpySemantics": _arrow_strings,
    "__pyx_unpickle_NDArrayBacked": _pyx_backed,
    "_new_Index": _index,
    "_new_DatetimeIndex": _index,
    "_new_TimedeltaIndex": _index,
}
"""Kinds of values of a column, by the name of their class."""


def _pairs(names: Mapping[str, Sequence[str]]) -> list[Pair]:
    return [(module, name) for module, found in names.items() for name in found]


SETTINGS: dict[Pair, Rule] = {
    ("_codecs", "encode"): lambda convert, given: convert.encoded(given),
    ("builtins", "bytearray"): lambda convert, given: convert.raw(given),
    ("builtins", "set"): lambda convert, given: set(_items(convert, given)),
    ("builtins", "frozenset"): lambda convert, given: frozenset(_items(convert, given)),
    ("builtins", "slice"): lambda convert, given: slice(*convert.value(given.args)),
    ("collections", "OrderedDict"): _ordered,
    ("datetime", "date"): _date,
    ("datetime", "datetime"): _date,
    ("datetime", "time"): _date,
    ("datetime", "timedelta"): lambda convert, given: dt.timedelta(*convert.value(given.args)),
    ("datetime", "timezone"): lambda convert, given: dt.timezone(*convert.value(given.args)),
    ("decimal", "Decimal"): lambda convert, given: Decimal(*convert.value(given.args)),
    **{
        ("pathlib", name): lambda convert, given: str(Path(*convert.value(given.args)))
        for name in ("Path", "PosixPath", "WindowsPath", "PurePosixPath", "PureWindowsPath")
    },
    ("numpy.core.multiarray", "scalar"): _scalar,
    ("numpy._core.multiarray", "scalar"): _scalar,
    ("pandas._libs.tslibs.timestamps", "_unpickle_timestamp"): _timestamp,
    ("pandas._libs.tslibs.timedeltas", "_timedelta_unpickle"): _timedelta,
    ("pandas._libs.tslibs.nattype", "_nat_unpickle"): lambda convert, given: pd.NaT,
    ("pytz", "_p"): _zone,
    ("pytz", "_UTC"): _zone,
    ZONE: _zone,
}
"""What settings are made of, beside what a pickle's own steps make: dict, list, text, number."""

CONVERTERS: dict[Pair, Rule] = {
    **SETTINGS,
    GETATTR: _unread,
    ("numpy", "ndarray"): _unread,
    ("numpy", "dtype"): _unread,
    **{
        (f"numpy.{core}.{module}", name): _array
        for core in ("core", "_core")
        for module, name in (("multiarray", "_reconstruct"), ("numeric", "_frombuffer"))
    },
    ("pandas", "Series"): _series,
    ("pandas.core.series", "Series"): _series,
    ("pandas", "DataFrame"): _frame,
    ("pandas.core.frame", "DataFrame"): _frame,
    ("pandas.core.indexes.base", "_new_Index"): _index,
    ("pandas.core.indexes.datetimes", "_new_DatetimeIndex"): _index,
    ("pandas.core.indexes.timedeltas", "_new_TimedeltaIndex"): _index,
    # Parts of a table: read where they stand, and nothing by themselves.
    **dict.fromkeys(
        _pairs(
            {
                "pandas": (
                    *("Index", "MultiIndex", "RangeIndex", "DatetimeIndex", "TimedeltaIndex"),
                    *("CategoricalIndex", "Categorical", "CategoricalDtype", "DatetimeTZDtype"),
                    *("StringDtype", "Float64Dtype", "Float32Dtype", "Int64Dtype", "Int32Dtype"),
                    *("BooleanDtype",),
                ),
                "pandas.arrays": (
                    *("DatetimeArray", "TimedeltaArray", "FloatingArray", "IntegerArray"),
                    *("BooleanArray", "StringArray", "ArrowStringArray"),
                ),
                "pandas.core.arrays.datetimes": ("DatetimeArray",),
                "pandas.core.arrays.timedeltas": ("TimedeltaArray",),
                "pandas.core.arrays.categorical": ("Categorical",),
                "pandas.core.arrays.floating": ("FloatingArray", "Float64Dtype", "Float32Dtype"),
                "pandas.core.arrays.integer": ("IntegerArray", "Int64Dtype", "Int32Dtype"),
                "pandas.core.arrays.boolean": ("BooleanArray", "BooleanDtype"),
                "pandas.core.arrays.string_": (
                    *("StringArray", "StringArrayNumpySemantics", "StringDtype"),
                ),
                "pandas.core.arrays.string_arrow": (
                    *("ArrowStringArray", "ArrowStringArrayNumpySemantics"),
                ),
                "pandas.core.dtypes.dtypes": ("CategoricalDtype", "DatetimeTZDtype"),
                "pandas.core.indexes.base": ("Index",),
                "pandas.core.indexes.multi": ("MultiIndex",),
                "pandas.core.indexes.range": ("RangeIndex",),
                "pandas.core.indexes.datetimes": ("DatetimeIndex",),
                "pandas.core.indexes.timedeltas": ("TimedeltaIndex",),
                "pandas.core.indexes.category": ("CategoricalIndex",),
                "pandas.core.internals.managers": ("BlockManager", "SingleBlockManager"),
                "pandas.core.internals.blocks": ("new_block",),
                "pandas._libs.internals": ("_unpickle_block", "BlockPlacement", "BlockManager"),
                "pandas._libs.arrays": ("__pyx_unpickle_NDArrayBacked",),
                "pandas._libs.missing": ("NA",),
                # An index's step, which its values have too.
                "pandas._libs.tslibs.offsets": (
                    *("Day", "BusinessDay", "Hour", "Minute", "Second", "Milli", "Micro", "Nano"),
                    *("Week", "MonthEnd", "MonthBegin", "BusinessMonthEnd", "BusinessMonthBegin"),
                    *("QuarterEnd", "QuarterBegin", "YearEnd", "YearBegin", "BusinessHour"),
                ),
                "pyarrow.lib": ("_restore_array", "type_for_alias", "py_buffer", "chunked_array"),
            }
        ),
        _unread,
    ),
    # Qlib's positions of a backtest: amounts of names.
    ("qlib.backtest.position", "Position"): _position,
}
"""Every name that a pickle may call, and what becomes of it."""

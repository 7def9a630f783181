"""Pickled tables and settings, read without running anything that their writer put there.

A pickle is a program: whoever writes one decides what is imported and called when it is read. Here
its steps build inert stand-ins, for names on a list and no others, and the stand-ins are then read
as data: which bytes an array has, which levels an index. Nothing of numpy's, pandas' or pyarrow's
own unpickling runs, since some of it trusts its input (a dtype's state, an array's address).

The list has what pandas 2.2 to 3 and numpy 1.24 to 2 write for a Series, a DataFrame, their indexes
and scalars, and plain containers, as Qlib writes them: in protocol 4, or another from 2 on, and not
compressed. This is the package's only module that unpickles what another process wrote:
tests/unit/test_house.py holds the others to it.
"""

from __future__ import annotations

import datetime as dt
import io
import pickle
import re
import struct
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from itertools import pairwise
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import numpy as np
import pandas as pd

from kronos_qlib.errors import MissingArtifactError, UnsafeArtifactError
from kronos_qlib.markup import one_line

LARGEST_PICKLE = 2**31
"""Bytes: 5,000 names over 10 years take 200 MB."""
MOST_STEPS = 2**24
"""Of a pickle's program, counted by the memory that they take, or two a byte where that is more: a
table has some hundreds, a backtest's positions about one a byte."""
LONGEST_RANGE = 2**26
"""Rows of an index that is written as its two ends."""
LARGEST_KEY = 2**61 - 1
"""Whole numbers from here on can share a hash by the million, and a mapping of them takes hours."""
DEEPEST = 100
"""Containers within containers."""

UNREADABLE = (
    pickle.UnpicklingError,
    EOFError,
    OSError,
    struct.error,
    ValueError,
    TypeError,
    KeyError,
    IndexError,
    AttributeError,
    ArithmeticError,
    RecursionError,
    MemoryError,
    NotImplementedError,
)
"""What bytes that are no such pickle make of the reading."""

Pair = tuple[str, str]


class Inert:
    """What a pickle says of one object: the name it calls, with what, and the state it sets."""

    pair: Pair = ("", "")
    args: tuple[Any, ...]
    state: Any
    pairs: list[tuple[Any, Any]]

    def __new__(cls, *args: Any, **kwargs: Any) -> Inert:
        made = super().__new__(cls)
        made.args, made.state, made.pairs = args, None, []
        return made

    def __init__(self, *args: Any) -> None:
        """All is done in `__new__`, which a pickle may call alone."""

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def __setitem__(self, key: Any, value: Any) -> None:
        self.pairs.append((key, value))


class _OfAnyClass(Inert):
    """For an object of which only the name is wanted: whatever is done to it, nothing comes."""

    def __call__(self, *args: Any, **kwargs: Any) -> Inert:
        return self

    def append(self, value: Any) -> None: ...

    def extend(self, values: Any) -> None: ...

    def add(self, value: Any) -> None: ...


class _Getattr(Inert):
    """`getattr(ZoneInfo, "_unpickle")`, the only one that is read."""

    def __new__(cls, *args: Any, **kwargs: Any) -> Any:
        target, name = args if len(args) == 2 else (None, None)
        if getattr(target, "pair", None) == ZONE and name == "_unpickle":
            return target
        raise _RefusedError("builtins.getattr")


@dataclass(frozen=True)
class HeldPosition:
    """What a backtest held after a bar: of Qlib's Position its amounts alone."""

    amounts: Mapping[str, float]

    def get_stock_list(self) -> list[str]:
        return list(self.amounts)

    def get_stock_amount(self, code: str) -> float:
        return self.amounts.get(code, 0.0)


class _RefusedError(Exception):
    """A name that is not on the list."""


def load_pickle(path: Path, where: str, *, any_class: bool = False) -> Any:
    """A Series, DataFrame or plain containers, from a pickle as Qlib writes them.

    Args:
        path: of the file.
        where: which file of which run, for messages.
        any_class: stand in for objects of other classes by the class's name as text. Nothing of
            them runs either way.

    Raises:
        UnsafeArtifactError: it names a class or function that is not on the list; says which.
        MissingArtifactError: it is damaged, too large, or no pickle.
    """
    try:
        data = _bytes(path)
        stand_in = _Reader(data, any_class=any_class).load()
        return _Converter(len(data), any_class=any_class).value(stand_in)
    except _RefusedError as refused:
        raise UnsafeArtifactError(
            f"{where} is a pickle that calls {_short(refused)}: only tables of pandas and numpy "
            "and plain containers are read, since anything else may run what its writer likes. "
            "Run its workflow again with KronosSignalRecord, which keeps scores, labels and task "
            "as Parquet and JSON"
        ) from None
    except _TooLargeError as problem:
        raise MissingArtifactError(f"{where} is not read: {problem}") from None
    except UNREADABLE as problem:
        raise MissingArtifactError(
            f"{where} cannot be read: it is damaged, or no pickle of a table or of plain "
            f"containers ({type(problem).__name__}: {_short(problem)})"
        ) from problem


def run_pickle(path: Path) -> Any:
    """Whatever a pickle makes, its code run as its writer meant it: for files of one's own alone.

    Callers have been told to trust it, by name, by whoever sits before the machine.
    """
    with path.open("rb") as file:
        return pickle.load(file)


class _TooLargeError(Exception):
    """More than is read, or than its file can hold honestly."""


def _bytes(path: Path) -> bytes:
    size = path.stat().st_size
    if size > LARGEST_PICKLE:
        raise _TooLargeError(f"it has {size:,} bytes, and {LARGEST_PICKLE:,} are the most")
    return path.read_bytes()


PythonUnpickler: Any = pickle._Unpickler
"""Undocumented, and with no change from Python 3.8 to 3.13."""


class _Reader(PythonUnpickler):
    """Python's own unpickler in Python, with stand-ins for every name.

    The one in C would reserve memory for the largest number that a memo is given.
    """

    def __init__(self, data: bytes, *, any_class: bool) -> None:
        super().__init__(io.BytesIO(data))
        self.dispatch = _Steps(max(MOST_STEPS, 2 * len(data)))
        self.any_class = any_class
        self.found: dict[Pair, type[Inert]] = {}

    def find_class(self, module: str, name: str) -> type[Inert]:
        pair = (ALIASES.get(module, module), name)
        if pair not in self.found:
            if pair not in CONVERTERS and not self.any_class:
                raise _RefusedError(f"{module}.{name}")
            base: type[Inert] = Inert
            if pair == GETATTR and not self.any_class:
                base = _Getattr
            elif self.any_class and pair not in SETTINGS:
                base = _OfAnyClass
            self.found[pair] = type("Inert", (base,), {"pair": pair})
        return self.found[pair]

    # Python follows a deep key with its own stack when it hashes it: such keys end the process.

    def load_setitem(self) -> None:
        _check_key(self.stack[-2])
        super().load_setitem()

    def load_setitems(self) -> None:
        _check_keys(self.stack[::2])
        super().load_setitems()

    def load_additems(self) -> None:
        _check_keys(self.stack)
        super().load_additems()

    def load_frozenset(self) -> None:
        _check_keys(self.stack)
        super().load_frozenset()


class _Steps(dict[int, Any]):
    """What Python's unpickler does for each step, for as many of them as a pickle may have."""

    def __init__(self, most: int) -> None:
        super().__init__(
            {
                getattr(pickle, name)[0]: getattr(_Reader, f"load_{name.lower()}", None)
                or PythonUnpickler.dispatch[getattr(pickle, name)[0]]
                for name in STEP_NAMES
            }
        )
        self.left = most

    def __getitem__(self, code: int) -> Any:
        self.left -= COSTS.get(code, 1)
        if self.left < 0:
            raise _TooLargeError("it takes more steps than a table or a backtest's positions do")
        if code not in self:
            raise pickle.UnpicklingError(
                f"the step {bytes([code])!r}, which protocols 2 to 5 do without"
            )
        return super().__getitem__(code)


def _check_keys(keys: Iterable[Any]) -> None:
    for key in keys:
        _check_key(key)


def _check_key(key: Any, depth: int = 0) -> None:
    if type(key) is int and abs(key) >= LARGEST_KEY:
        raise ValueError("a number as a key that others can be made to collide with")
    if isinstance(key, tuple | frozenset):
        if depth > 5:
            raise ValueError("a key of tuples within tuples")
        for part in key:
            _check_key(part, depth + 1)


class _Converter:
    """Stand-ins as values, each by a rule for its name."""

    def __init__(self, size: int, *, any_class: bool) -> None:
        # One object may be named in many places, those in many more: a file of a few hundred
        # bytes unfolds to billions. An honest one names most things once.
        self.left = 100_000 + 4 * size
        self.any_class = any_class
        self.depth = 0

    def spend(self, what: int) -> None:
        self.left -= what
        if self.left < 0:
            raise _TooLargeError("it unfolds to far more than its bytes")

    def value(self, given: Any) -> Any:
        self.spend(1)
        self.depth += 1
        if self.depth > DEEPEST:
            raise _TooLargeError(f"containers lie {DEEPEST} deep and more")
        try:
            return self._value(given)
        finally:
            self.depth -= 1

    def _value(self, given: Any) -> Any:
        if isinstance(given, Inert):
            rule = CONVERTERS.get(given.pair)
            if rule is None or (self.any_class and given.pair not in SETTINGS):
                if self.any_class:
                    return ".".join(given.pair)
                raise _RefusedError(".".join(given.pair))
            return rule(self, given)
        if isinstance(given, type) and issubclass(given, Inert):
            if given.pair == ("pandas._libs.missing", "NA"):
                return pd.NA
            if self.any_class:
                return ".".join(given.pair)
            raise _RefusedError(f"{'.'.join(given.pair)} by itself")
        if isinstance(given, dict):
            return {self.value(key): self.value(one) for key, one in given.items()}
        if isinstance(given, list | tuple | set | frozenset):
            return type(given)(self.value(one) for one in given)
        return given  # texts, numbers, bytes, None: what opcodes alone can make

    # Parts of numpy's.

    def dtype(self, given: Any) -> np.dtype[Any]:
        if not (isinstance(given, Inert) and given.pair == ("numpy", "dtype")):
            raise ValueError("an array without a numpy dtype")
        text = given.args[0]
        if not isinstance(text, str) or not DTYPE.fullmatch(text):
            raise ValueError(f"an array of dtype {text!r:.40}")
        state: tuple[Any, ...] = given.state or ()
        order = _text(state[1]) if len(state) > 1 else ""
        if text[0] in "Mm":
            unit = _text(state[8][1][0])
            if unit not in UNITS:
                raise ValueError(f"times in {unit!r:.20}")
            text = f"{text[0]}8[{unit}]"
        found = np.dtype(text)
        return (
            found.newbyteorder("<" if order == "<" else ">") if order in "<>" and order else found
        )

    def array(self, given: Any) -> np.ndarray[Any, Any]:
        """Of an array's stand-in; of a slice's, None or a list not."""
        if not isinstance(given, Inert):
            raise ValueError(f"a {type(given).__name__} instead of an array")
        if given.pair[1] == "_frombuffer":  # protocol 5
            raw, dtype, shape, order = given.args
            return self._filled(raw, self.dtype(dtype), shape, order == "F")
        if given.pair[1] != "_reconstruct" or given.pair not in CONVERTERS:
            raise ValueError(f"{'.'.join(given.pair)} instead of an array")
        state = given.state
        *_, shape, dtype, fortran, raw = state
        found = self.dtype(dtype)
        if found.hasobject:
            if not isinstance(raw, list) or len(raw) != _count(shape):
                raise ValueError("an array of objects with another number of them than its shape")
            values = np.empty(len(raw), dtype=object)
            for place, one in enumerate(raw):
                values[place] = self.value(one)
            return values.reshape(shape, order="F" if fortran else "C")
        return self._filled(raw, found, shape, bool(fortran))

    def _filled(
        self, raw: Any, dtype: np.dtype[Any], shape: Any, fortran: bool
    ) -> np.ndarray[Any, Any]:
        data = self.raw(raw)
        if dtype.hasobject or not dtype.itemsize or len(data) != _count(shape) * dtype.itemsize:
            raise ValueError(f"{len(data)} bytes for an array of {dtype} and shape {shape!r:.40}")
        flat = np.frombuffer(data, dtype) if data else np.empty(0, dtype)
        return flat.reshape(shape, order="F" if fortran else "C").copy()

    def raw(self, given: Any) -> bytes:
        if isinstance(given, Inert):
            if given.pair == ("_codecs", "encode"):  # protocol 2 has no bytes
                return self._encoded(given)
            if given.pair in (("builtins", "bytearray"), ("pyarrow.lib", "py_buffer")):
                return self.raw(given.args[0]) if given.args else b""
            raise ValueError(f"{'.'.join(given.pair)} instead of bytes")
        if isinstance(given, bytes | bytearray):
            self.spend(1 + len(given))
            return bytes(given)
        raise ValueError(f"a {type(given).__name__} instead of bytes")

    def _encoded(self, given: Inert) -> bytes:
        text, how = given.args
        if not isinstance(text, str) or how not in ("latin1", "latin-1"):
            raise ValueError("bytes as text of another encoding than latin1")
        self.spend(1 + len(text))
        return text.encode("latin1")

    # Parts of pandas'.

    def values(self, given: Any) -> Any:
        """A column's or an index's values: an array, or one of pandas' own kinds."""
        if isinstance(given, Inert):
            rule = ARRAYS.get(given.pair[1]) if given.pair in CONVERTERS else None
            return rule(self, given) if rule else self.array(given)
        if isinstance(given, list | tuple):
            return [self.value(one) for one in given]
        raise ValueError(f"a {type(given).__name__} instead of values")

    def index(self, given: Any) -> pd.Index[Any]:
        if not isinstance(given, Inert) or given.pair not in CONVERTERS:
            raise ValueError(f"a {type(given).__name__} instead of an index")
        self.spend(1)
        kind, parts = given.args
        kind = getattr(kind, "pair", ("", ""))[1]
        name = self.value(parts.get("name"))
        if kind == "MultiIndex":
            levels: Any = [self.index(level) for level in parts["levels"]]
            codes: Any = [self.places(each) for each in parts["codes"]]
            return pd.MultiIndex(
                levels=levels,
                codes=codes,
                names=self.value(list(parts["names"])),
            )
        if kind == "RangeIndex":
            ends = range(*(int(parts[end]) for end in ("start", "stop", "step")))
            if len(ends) > LONGEST_RANGE:
                raise _TooLargeError(f"its index has {len(ends):,} rows")
            self.spend(len(ends) // 1000)
            return pd.RangeIndex(ends, name=name)
        found = pd.Index(self.values(parts["data"]), name=name)
        if (zone := parts.get("tz")) is not None and isinstance(found, pd.DatetimeIndex):
            found = found.tz_localize("UTC").tz_convert(self.value(zone))
        return found

    def blocks(self, given: Any) -> tuple[list[pd.Index[Any]], list[tuple[Any, Any]]]:
        """A manager's axes, columns before rows, and its blocks: values and their places."""
        if not isinstance(given, Inert) or not given.pair[1].endswith("BlockManager"):
            raise ValueError("a table without blocks")
        if given.args:
            blocks, axes = given.args
            blocks = blocks if isinstance(blocks, list | tuple) else [blocks]
            parts = [(one.args[0], one.args[1]) for one in blocks]
        else:
            kept = given.state[3]["0.14.1"]
            axes = kept["axes"]
            parts = [(one["values"], one["mgr_locs"]) for one in kept["blocks"]]
        axes = axes if isinstance(axes, list | tuple) else [axes]
        return [self.index(axis) for axis in axes], [
            (self.values(values), places) for values, places in parts
        ]

    def columns(self, given: Any, count: int) -> list[int]:
        """Columns that a block's rows are."""
        if isinstance(given, Inert) and given.pair[1] == "BlockPlacement":
            given = given.args[0]
        if isinstance(given, Inert) and given.pair == ("builtins", "slice"):
            found = range(count)[slice(*given.args)]
            self.spend(len(found))
            return list(found)
        places: list[int] = self.places(given).tolist()
        return places

    def places(self, given: Any) -> np.ndarray[Any, Any]:
        """An array of whole numbers; of objects, one alone could take for ever to become one."""
        found = self.array(given)
        if found.dtype.kind not in "iu":
            raise ValueError(f"places as {found.dtype}")
        return found


Rule = Callable[[_Converter, Inert], Any]


def _frame(convert: _Converter, given: Inert) -> pd.DataFrame:
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


def _series(convert: _Converter, given: Inert) -> pd.Series[Any]:
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


def _times(convert: _Converter, given: Inert) -> Any:
    dtype, values = _backed(given)
    found: Any = pd.Index(convert.array(values))
    if isinstance(dtype, Inert) and dtype.pair[1] == "DatetimeTZDtype":
        zone = dtype.args[1] if len(dtype.args) > 1 else dtype.state["tz"]
        found = found.tz_localize("UTC").tz_convert(convert.value(zone))
    return found


def _pyx_backed(convert: _Converter, given: Inert) -> Any:
    name = getattr(given.args[0], "pair", ("", ""))[1]
    if name == "__pyx_unpickle_NDArrayBacked" or name not in ARRAYS:
        raise ValueError("an array of no kind")
    return ARRAYS[name](convert, given)


def _categorical(convert: _Converter, given: Inert) -> Any:
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


def _masked(convert: _Converter, given: Inert) -> Any:
    state = given.state
    values = pd.array(convert.array(state["_data"]))
    if values.dtype == object:
        raise ValueError("a masked array of objects")
    values[convert.array(state["_mask"]).astype(bool)] = pd.NA
    return values


def _strings(convert: _Converter, given: Inert) -> Any:
    _, values = _backed(given)
    return convert.array(values)


def _arrow_strings(convert: _Converter, given: Inert) -> Any:
    state = given.state
    return _arrow(convert, state.get("_pa_array", state.get("_data")))


def _arrow(convert: _Converter, given: Any) -> np.ndarray[Any, Any]:
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


def _scalar(convert: _Converter, given: Inert) -> Any:
    dtype = convert.dtype(given.args[0])
    if dtype.hasobject:
        return convert.value(given.args[1])
    return np.frombuffer(convert.raw(given.args[1]), dtype)[0]


def _timestamp(convert: _Converter, given: Inert) -> Any:
    value, *rest = given.args
    unit: Any = RESOLUTIONS[rest[2] if len(rest) > 2 else 10]
    found = pd.Timestamp(np.datetime64(int(value), unit))
    zone = rest[1] if len(rest) > 1 else None
    return found if zone is None else found.tz_localize("UTC").tz_convert(convert.value(zone))


def _timedelta(convert: _Converter, given: Inert) -> Any:
    value, number = given.args
    unit: Any = RESOLUTIONS[number]
    return pd.Timedelta(np.timedelta64(int(value), unit))


def _date(convert: _Converter, given: Inert) -> Any:
    kind = {"date": dt.date, "time": dt.time, "datetime": dt.datetime}[given.pair[1]]
    first, *rest = given.args
    if isinstance(first, Inert | bytes):
        rest = [convert.value(zone) for zone in rest]
        return kind(convert.raw(first), *rest)
    return kind(*(convert.value(one) for one in given.args))


def _zone(convert: _Converter, given: Inert) -> Any:
    name = given.args[0] if given.args else "UTC"
    if not isinstance(name, str):
        raise ValueError("a time zone without a name")
    return ZoneInfo(name)


def _position(convert: _Converter, given: Inert) -> HeldPosition:
    held = convert.value(given.state["position"])
    return HeldPosition(
        {
            name: float(one["amount"])
            for name, one in held.items()
            if name not in ("cash", "now_account_value", "cash_delay")
        }
    )


def _ordered(convert: _Converter, given: Inert) -> dict[Any, Any]:
    pairs = [*given.pairs]
    if given.args and isinstance(given.args[-1], list | tuple):
        pairs = [*given.args[-1], *pairs]
    return {convert.value(key): convert.value(one) for key, one in pairs}


def _items(convert: _Converter, given: Inert) -> list[Any]:
    """What a set is of in protocol 3: a list, and nothing that could count for ever."""
    if not given.args:
        return []
    if len(given.args) > 1 or not isinstance(given.args[0], list):
        raise ValueError("a set of no list")
    return [convert.value(one) for one in given.args[0]]


def _unread(convert: _Converter, given: Inert) -> Any:
    raise ValueError(f"{'.'.join(given.pair)} where a table or a setting is expected")


def _array(convert: _Converter, given: Inert) -> Any:
    return convert.array(given)


def _index(convert: _Converter, given: Inert) -> Any:
    return convert.index(given)


def _count(shape: Any) -> int:
    if not isinstance(shape, tuple) or not all(type(each) is int and each >= 0 for each in shape):
        raise ValueError("an array without a shape")
    count = 1
    for each in shape:
        count *= each
    return count


def _text(given: Any) -> str:
    if isinstance(given, Inert):
        given = given.args[0] if given.pair == ("_codecs", "encode") else ""
    return given.decode("ascii") if isinstance(given, bytes) else str(given)


def _short(problem: BaseException) -> str:
    return one_line(str(problem))[:200]


ZONE = ("zoneinfo", "ZoneInfo")
ALIASES = {"__builtin__": "builtins", "pathlib._local": "pathlib"}
"""Names of modules in Python 2, which protocol 2 writes, and in Python 3.13."""
GETATTR = ("builtins", "getattr")
"""The name that is no value but a way to one."""
STEP_NAMES = (
    *("PROTO", "STOP", "FRAME", "MARK", "POP", "POP_MARK", "NONE", "NEWTRUE", "NEWFALSE"),
    *("BININT", "BININT1", "BININT2", "LONG1", "LONG4", "BINFLOAT"),
    *("BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"),
    *("BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8"),
    *("EMPTY_LIST", "APPEND", "APPENDS", "EMPTY_DICT", "SETITEM", "SETITEMS"),
    *("EMPTY_SET", "ADDITEMS", "FROZENSET"),
    *("EMPTY_TUPLE", "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3"),
    *("MEMOIZE", "BINPUT", "LONG_BINPUT", "BINGET", "LONG_BINGET"),
    *("GLOBAL", "STACK_GLOBAL", "NEWOBJ", "NEWOBJ_EX", "REDUCE", "BUILD"),
)
"""What protocols 2 to 5 write. Of older ones' text, of persistent ids, extensions and buffers of
elsewhere nothing is read."""
COSTS = {
    getattr(pickle, name)[0]: cost
    for cost, names in {
        2: ("MARK", "MEMOIZE", "BINPUT", "LONG_BINPUT"),
        4: ("EMPTY_LIST", "EMPTY_DICT", "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3"),
        8: ("REDUCE", "NEWOBJ", "NEWOBJ_EX"),
        16: ("EMPTY_SET", "FROZENSET"),
        50: ("GLOBAL", "STACK_GLOBAL"),
    }.items()
    for name in names
}
"""Steps that take more memory than a number does, in some 40 bytes."""
DTYPE = re.compile(r"[<>|=]?(b1|i[1248]|u[1248]|f[248]|f16|c8|c16|O8?|M8|m8|[SU]\d{1,6})")
UNITS = ("D", "h", "m", "s", "ms", "us", "ns")
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
    ("_codecs", "encode"): lambda convert, given: convert._encoded(given),
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
                # An index's step, which its values tell too.
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

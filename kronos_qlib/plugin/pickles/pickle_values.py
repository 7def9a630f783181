"""Stand-ins of a pickle as values of numpy and pandas, each by the rule for its name."""

from __future__ import annotations

import re
from collections.abc import Callable, Container, Mapping
from typing import Any

import numpy as np
import pandas as pd

from kronos_qlib.plugin.pickles.pickle_steps import (
    Inert,
    Pair,
    RefusedError,
    TooLargeError,
)

LONGEST_RANGE = 2**26
"""Rows of an index that is written as its two ends."""
DEEPEST = 100
"""Containers within containers."""


class Converter:
    """Stand-ins as values, each by a rule for its name."""

    def __init__(
        self,
        size: int,
        rules: Mapping[Pair, Rule],
        arrays: Mapping[str, Rule],
        settings: Container[Pair],
        *,
        any_class: bool,
    ) -> None:
        """
        Args:
            size: bytes of the pickle.
            rules: what becomes of each name that a pickle may call.
            arrays: of these the kinds of values of a column, by the name of their class.
            settings: names that settings are made of.
            any_class: take the class's name for objects of classes outside `settings`.
        """
        self.rules, self.arrays, self.settings = rules, arrays, settings
        # One object may be named in many places, those in many more: a file of a few hundred
        # bytes unfolds to billions. An honest one names most things once.
        self.left = 100_000 + 4 * size
        self.any_class = any_class
        self.depth = 0

    def spend(self, what: int) -> None:
        """Count work against what a file of this size can hold.

        Raises:
            TooLargeError: it unfolds to far more.
        """
        self.left -= what
        if self.left < 0:
            raise TooLargeError("it unfolds to far more than its bytes")

    def value(self, given: Any) -> Any:
        """A stand-in, or a container of them, as a value.

        Raises:
            RefusedError: a name in it is not on the list.
            TooLargeError: it is too deep, or unfolds to too much.
        """
        self.spend(1)
        self.depth += 1
        if self.depth > DEEPEST:
            raise TooLargeError(f"containers lie {DEEPEST} deep and more")
        try:
            return self._value(given)
        finally:
            self.depth -= 1

    def _value(self, given: Any) -> Any:
        if isinstance(given, Inert):
            rule = self.rules.get(given.pair)
            if rule is None or (self.any_class and given.pair not in self.settings):
                if self.any_class:
                    return ".".join(given.pair)
                raise RefusedError(".".join(given.pair))
            return rule(self, given)
        if isinstance(given, type) and issubclass(given, Inert):
            if given.pair == ("pandas._libs.missing", "NA"):
                return pd.NA
            if self.any_class:
                return ".".join(given.pair)
            raise RefusedError(f"{'.'.join(given.pair)} by itself")
        if isinstance(given, dict):
            return {self.value(key): self.value(one) for key, one in given.items()}
        if isinstance(given, list | tuple | set | frozenset):
            return type(given)(self.value(one) for one in given)
        return given  # texts, numbers, bytes, None: what opcodes alone can make

    # Parts of numpy's.

    def dtype(self, given: Any) -> np.dtype[Any]:
        """A numpy dtype from its stand-in.

        Raises:
            ValueError: it is another thing, or a dtype that no table has.
        """
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
        """An array of any shape from its stand-in.

        Raises:
            ValueError: it is another thing, or its bytes do not fit shape and dtype.
        """
        if not isinstance(given, Inert):
            raise ValueError(f"a {type(given).__name__} instead of an array")
        if given.pair[1] == "_frombuffer":  # protocol 5
            raw, dtype, shape, order = given.args
            return self._filled(raw, self.dtype(dtype), shape, order == "F")
        if given.pair[1] != "_reconstruct" or given.pair not in self.rules:
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
        """Bytes, from themselves or a stand-in.

        Raises:
            ValueError: it is something else.
        """
        if isinstance(given, Inert):
            if given.pair == ("_codecs", "encode"):  # protocol 2 has no bytes
                return self.encoded(given)
            if given.pair in (("builtins", "bytearray"), ("pyarrow.lib", "py_buffer")):
                return self.raw(given.args[0]) if given.args else b""
            raise ValueError(f"{'.'.join(given.pair)} instead of bytes")
        if isinstance(given, bytes | bytearray):
            self.spend(1 + len(given))
            return bytes(given)
        raise ValueError(f"a {type(given).__name__} instead of bytes")

    def encoded(self, given: Inert) -> bytes:
        """Bytes that protocol 2 wrote as text.

        Raises:
            ValueError: the text has another encoding than latin1.
        """
        text, how = given.args
        if not isinstance(text, str) or how not in ("latin1", "latin-1"):
            raise ValueError("bytes as text of another encoding than latin1")
        self.spend(1 + len(text))
        return text.encode("latin1")

    # Parts of pandas'.

    def values(self, given: Any) -> Any:
        """A column's or an index's values: an array, or one of pandas' own kinds.

        Raises:
            ValueError: it is something else.
        """
        if isinstance(given, Inert):
            rule = self.arrays.get(given.pair[1]) if given.pair in self.rules else None
            return rule(self, given) if rule else self.array(given)
        if isinstance(given, list | tuple):
            return [self.value(one) for one in given]
        raise ValueError(f"a {type(given).__name__} instead of values")

    def index(self, given: Any) -> pd.Index[Any]:
        """An index from its stand-in.

        Raises:
            ValueError: it is something else.
            TooLargeError: a range has more than LONGEST_RANGE rows.
        """
        if not isinstance(given, Inert) or given.pair not in self.rules:
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
                raise TooLargeError(f"its index has {len(ends):,} rows")
            self.spend(len(ends) // 1000)
            return pd.RangeIndex(ends, name=name)
        found = pd.Index(self.values(parts["data"]), name=name)
        if (zone := parts.get("tz")) is not None and isinstance(found, pd.DatetimeIndex):
            found = found.tz_localize("UTC").tz_convert(self.value(zone))
        return found

    def blocks(self, given: Any) -> tuple[list[pd.Index[Any]], list[tuple[Any, Any]]]:
        """A manager's axes, columns before rows, and its blocks: values and their places.

        Raises:
            ValueError: it is no manager of blocks.
        """
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
        """(n,) array of whole numbers; converting one of objects could take for ever.

        Raises:
            ValueError: it is an array of something else.
        """
        found = self.array(given)
        if found.dtype.kind not in "iu":
            raise ValueError(f"places as {found.dtype}")
        return found


Rule = Callable[["Converter", Inert], Any]


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


DTYPE = re.compile(r"[<>|=]?(b1|i[1248]|u[1248]|f[248]|f16|c8|c16|O8?|M8|m8|[SU]\d{1,6})")
UNITS = ("D", "h", "m", "s", "ms", "us", "ns")

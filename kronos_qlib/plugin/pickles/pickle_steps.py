"""A pickle's steps, run to inert stand-ins: nothing that it names is imported or called."""

from __future__ import annotations

import io
import pickle
from collections.abc import Container, Iterable
from typing import Any

MOST_STEPS = 2**24
"""Of a pickle's program, counted by the memory that they take, or two a byte where that is more: a
table has some hundreds, a backtest's positions about one a byte."""
LARGEST_KEY = 2**61 - 1
"""Whole numbers from here on can share a hash by the million, and a mapping of them takes hours."""

Pair = tuple[str, str]


class Inert:
    """One object of a pickle: the name that it calls, the arguments, and the state that it sets."""

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
    """For an object of which only the name is wanted: every call on it does nothing."""

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
        raise RefusedError("builtins.getattr")


class RefusedError(Exception):
    """A name that is not on the list."""


class TooLargeError(Exception):
    """More than is read, or than its file can hold honestly."""


PythonUnpickler: Any = pickle._Unpickler
"""Undocumented, and with no change from Python 3.8 to 3.13."""


class StandInReader(PythonUnpickler):
    """Python's own unpickler in Python, with stand-ins for every name.

    The one in C would reserve memory for the largest number that a memo is given.
    """

    def __init__(
        self, data: bytes, known: Container[Pair], settings: Container[Pair], *, any_class: bool
    ) -> None:
        """
        Args:
            known: names that a pickle may call; with `any_class` it may call others too.
            settings: of `known` those that settings are made of.
        """
        super().__init__(io.BytesIO(data))
        self.dispatch = _Steps(max(MOST_STEPS, 2 * len(data)))
        self.known, self.settings = known, settings
        self.any_class = any_class
        self.found: dict[Pair, type[Inert]] = {}

    def find_class(self, module: str, name: str) -> type[Inert]:
        """The stand-in for a name; nothing is imported.

        Raises:
            RefusedError: the name is not on the list.
        """
        pair = (ALIASES.get(module, module), name)
        if pair not in self.found:
            if pair not in self.known and not self.any_class:
                raise RefusedError(f"{module}.{name}")
            base: type[Inert] = Inert
            if pair == GETATTR and not self.any_class:
                base = _Getattr
            elif self.any_class and pair not in self.settings:
                base = _OfAnyClass
            self.found[pair] = type("Inert", (base,), {"pair": pair})
        return self.found[pair]

    # Python follows a deep key with its own stack when it hashes it: such keys end the process.

    def load_setitem(self) -> None:
        """Python's step, its key checked."""
        _check_key(self.stack[-2])
        super().load_setitem()

    def load_setitems(self) -> None:
        """Python's step, its keys checked."""
        _check_keys(self.stack[::2])
        super().load_setitems()

    def load_additems(self) -> None:
        """Python's step, its members checked."""
        _check_keys(self.stack)
        super().load_additems()

    def load_frozenset(self) -> None:
        """Python's step, its members checked."""
        _check_keys(self.stack)
        super().load_frozenset()


class _Steps(dict[int, Any]):
    """What Python's unpickler does for each step, for as many of them as a pickle may have."""

    def __init__(self, most: int) -> None:
        super().__init__(
            {
                getattr(pickle, name)[0]: getattr(StandInReader, f"load_{name.lower()}", None)
                or PythonUnpickler.dispatch[getattr(pickle, name)[0]]
                for name in STEP_NAMES
            }
        )
        self.left = most

    def __getitem__(self, code: int) -> Any:
        self.left -= COSTS.get(code, 1)
        if self.left < 0:
            raise TooLargeError("it takes more steps than a table or a backtest's positions do")
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

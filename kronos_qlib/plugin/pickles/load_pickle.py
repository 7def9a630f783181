"""Pickled tables and settings, read without running anything that their writer put there.

A pickle is a program: its writer decides what is imported and called when it is read. Here
its steps build inert stand-ins, for names on a list and no others, and the stand-ins are then read
as data: which bytes an array has, which levels an index. Nothing of numpy's, pandas' or pyarrow's
own unpickling runs, since some of it trusts its input (a dtype's state, an array's address).

The list has what pandas 2.2 to 3 and numpy 1.24 to 2 write for a Series, a DataFrame, their indexes
and scalars, and plain containers, as Qlib writes them: in protocol 4, or another from 2 on, and not
compressed. `pickle_steps` reads to stand-ins, `pickle_values` and `pickle_rules` make values of
them. Nothing else in the package unpickles what another process wrote, see
tests/unit/test_house.py.
"""

from __future__ import annotations

import pickle
import struct
from pathlib import Path
from typing import Any

from kronos_qlib.errors import MissingArtifactError, UnsafeArtifactError
from kronos_qlib.markup import cause_of
from kronos_qlib.plugin.pickles.pickle_rules import ARRAYS, CONVERTERS, SETTINGS
from kronos_qlib.plugin.pickles.pickle_steps import (
    RefusedError,
    StandInReader,
    TooLargeError,
)
from kronos_qlib.plugin.pickles.pickle_values import Converter

LARGEST_PICKLE = 2**31
"""Bytes: 5,000 names over 10 years take 200 MB."""

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
        converter = Converter(len(data), CONVERTERS, ARRAYS, SETTINGS, any_class=any_class)
        stand_in = StandInReader(data, CONVERTERS, SETTINGS, any_class=any_class).load()
        return converter.value(stand_in)
    except RefusedError as refused:
        raise UnsafeArtifactError(
            f"{where} is a pickle that calls {cause_of(refused)}: only tables of pandas and numpy "
            "and plain containers are read, since anything else may run what its writer likes. "
            "Run its workflow again with KronosSignalRecord, which keeps scores, labels and task "
            "as Parquet and JSON"
        ) from None
    except TooLargeError as problem:
        raise MissingArtifactError(f"{where} is not read: {problem}") from None
    except UNREADABLE as problem:
        raise MissingArtifactError(
            f"{where} cannot be read: it is damaged, or no pickle of a table or of plain "
            f"containers ({type(problem).__name__}: {cause_of(problem)})"
        ) from problem


def run_pickle(path: Path) -> Any:
    """Unpickle a file, which runs what its writer put there: only for files of the user's own.

    Called where the user said --trust.
    """
    with path.open("rb") as file:
        return pickle.load(file)


def _bytes(path: Path) -> bytes:
    size = path.stat().st_size
    if size > LARGEST_PICKLE:
        raise TooLargeError(f"it has {size:,} bytes, and {LARGEST_PICKLE:,} are the most")
    return path.read_bytes()

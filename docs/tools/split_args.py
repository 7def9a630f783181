"""A griffe extension: an entry of several names, `start_time, end_time: …`, is one for each."""

from __future__ import annotations

import re
from typing import Any

from griffe import Extension, Object

ENTRY = re.compile(
    r"^(?P<indent> {4,12})(?P<names>\w+(?:, \w+)+):(?P<rest>.*(?:\n(?P=indent) .*)*)", re.M
)


def split(text: str) -> str:
    """A docstring whose entries have one name each; other lines as they are."""

    def each(entry: re.Match[str]) -> str:
        names = entry["names"].split(", ")
        return "\n".join(f"{entry['indent']}{name}:{entry['rest']}" for name in names)

    return ENTRY.sub(each, text)


class SplitArgs(Extension):
    """Applied to every object before its docstring is parsed."""

    def on_object(self, *, obj: Object, **_: Any) -> None:
        if obj.docstring is not None and "Args:" in obj.docstring.value:
            obj.docstring.value = split(obj.docstring.value)

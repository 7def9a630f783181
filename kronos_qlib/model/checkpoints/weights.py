"""Weights in a safetensors file: held against a network before a byte of them is read.

The format: 8 bytes, the length of a JSON header; the header, which gives every tensor's type, shape
and place; the tensors' bytes, one after another. Source: github.com/huggingface/safetensors.
"""

from __future__ import annotations

import io
import json
import math
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from kronos_qlib.errors import CheckpointError, printable, short_repr, some_of
from kronos_qlib.model.layers import Rotary
from kronos_qlib.model.quantizer import BinarySphericalQuantizer
from kronos_qlib.strict_json import MOST_BYTES, is_file, parse_object

METADATA = "__metadata__"
TYPES: Mapping[str, torch.dtype] = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8,
    "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip
NAMES = {kind: name for name, kind in TYPES.items()}
FLOATS = ("F64", "F32", "F16", "BF16")
"""What a weight may be in a file; in the network it is float32."""
File = io.FileIO | io.BytesIO
MOST_DIMENSIONS = 8
MEBIBYTE = 2**20


class _Unfilled(TorchFunctionMode):
    MAKERS = (torch.empty, torch.zeros, torch.ones, torch.randn)
    FILLERS = (torch.Tensor.normal_, nn.init.normal_)

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        given = dict(kwargs or {})
        if func in self.MAKERS:
            return func(*args, **{**given, "device": "meta"})
        if func in self.FILLERS:
            target = args[0] if args else given["tensor"]
            if target.is_meta:
                return target
        return func(*args, **given)


@contextmanager
def shapes_alone() -> Iterator[None]:
    """Within, a network's weights are made on the meta device: no memory, no random number.

    `torch.device("meta")` would do the same, but `arange` and `normal_` have no kernel there, and
    what stands in for them imports torch's compiler: 1.5 s, most of what loading nano would cost.
    """
    with _Unfilled():
        yield


def all_finite(values: Tensor) -> bool:
    """Whether no number of a tensor (...) is NaN or infinite; a sum costs a third of `isfinite`."""
    # Finite numbers may have a sum that overflows.
    return math.isfinite(float(values.sum())) or bool(torch.isfinite(values).all())


@dataclass(frozen=True)
class Entry:
    """The header's entry of one tensor."""

    kind: str
    """Its type, a key of `TYPES`."""
    shape: tuple[int, ...]
    begin: int
    """Of its bytes, counted from the end of the header."""
    end: int


@dataclass(frozen=True)
class Header:
    """The header: every tensor's place, and entries of text."""

    tensors: Mapping[str, Entry]
    texts: Mapping[str, str]
    start: int
    """Where in the file the tensors begin."""

    @property
    def values(self) -> int:
        """Numbers in all tensors together."""
        return sum(math.prod(entry.shape) for entry in self.tensors.values())


@contextmanager
def opened(path: Path) -> Iterator[tuple[File, Header]]:
    """The file of a network's weights, and its header, checked against the file's size.

    Raises:
        CheckpointError: it cannot be read, or is no whole safetensors file; names it.
    """
    try:
        if not is_file(path):
            raise OSError("there is no such file")
        file = path.open("rb", buffering=0)  # whose place is the system's own
    except OSError as broken:
        raise CheckpointError(
            f"{printable(str(path))} cannot be read as safetensors: {broken}"
        ) from broken
    with file:
        yield file, read_header(file, path)


def read_header(file: File, source: Path | str) -> Header:
    """The header alone, in which nothing contradicts itself or the size of the file.

    Raises:
        CheckpointError: it contradicts itself or the file; names the source.
    """
    try:
        size = file.seek(0, os.SEEK_END)
        file.seek(0)
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or not 2 <= length <= size - 8:
            raise ValueError(f"a header of {length} bytes in a file of {size}")
        if length > MOST_BYTES:
            raise ValueError(f"its header has {length} bytes, at most {MOST_BYTES} are read")
        values = parse_object(file.read(length))
        texts = values.pop(METADATA, {})
        if not isinstance(texts, dict) or not all(isinstance(text, str) for text in texts.values()):
            raise ValueError(f"{METADATA} must map names to texts, got {short_repr(texts)}")
        tensors = {name: _entry(name, value) for name, value in values.items()}
        _check_places(tensors, size - 8 - length)
        _check_written(file, size)
    except (OSError, ValueError) as broken:
        raise CheckpointError(
            f"{source} cannot be read as safetensors: {broken}; fetch or save it again"
        ) from broken
    return Header(tensors, texts, 8 + length)


def _entry(name: str, value: Any) -> Entry:
    if not isinstance(value, dict) or value.keys() != {"dtype", "shape", "data_offsets"}:
        raise ValueError(
            f"{printable(name)} needs dtype, shape and data_offsets, got {short_repr(value)}"
        )
    kind, shape, places = value["dtype"], value["shape"], value["data_offsets"]
    if not isinstance(kind, str) or kind not in TYPES:
        raise ValueError(
            f"{printable(name)} has the type {short_repr(kind)}, known: {', '.join(TYPES)}"
        )
    if not _are_sizes(shape) or len(shape) > MOST_DIMENSIONS:
        raise ValueError(f"the shape of {printable(name)} is {short_repr(shape)}")
    if not _are_sizes(places) or len(places) != 2:
        raise ValueError(f"the data_offsets of {printable(name)} are {short_repr(places)}")
    begin, end = places
    needed = math.prod(shape) * TYPES[kind].itemsize
    if end - begin != needed:
        raise ValueError(
            f"{printable(name)} of shape {tuple(shape)} in {kind} needs {needed} bytes and has "
            f"{end - begin}"
        )
    return Entry(kind, tuple(shape), begin, end)


def _are_sizes(values: Any) -> bool:
    return isinstance(values, list) and all(type(one) is int and one >= 0 for one in values)


def _check_places(tensors: Mapping[str, Entry], size: int) -> None:
    """Tensors lie one after another and fill the file."""
    reached = 0
    for name, entry in sorted(tensors.items(), key=lambda item: (item[1].begin, item[1].end)):
        if entry.begin != reached:
            raise ValueError(
                f"{printable(name)} begins at byte {entry.begin}, the tensor before ends at "
                f"{reached}"
            )
        reached = entry.end
    if reached != size:
        raise ValueError(f"its tensors take {reached} bytes, it holds {size}: it is not whole")


def _check_written(file: File, size: int) -> None:
    """Refuse a file most of which was never written: nothing, at the price of all its memory."""
    if not hasattr(os, "SEEK_HOLE") or size < MEBIBYTE or isinstance(file, io.BytesIO):
        return
    descriptor, place, empty = file.fileno(), 0, 0
    while place < size and empty <= size // 2:
        hole = os.lseek(descriptor, place, os.SEEK_HOLE)
        try:
            place = os.lseek(descriptor, hole, os.SEEK_DATA) if hole < size else size
        except OSError:  # no data after the hole
            place = size
        empty += place - hole
    if empty > size // 2:
        raise ValueError("most of it was never written (a sparse file)")


def fill(net: nn.Module, file: File, header: Header, source: Path | str) -> None:
    """Give a network, on the meta device or not, the weights of a file.

    Whatever floating type they have in the file, they are float32 after it.

    Raises:
        CheckpointError: a tensor is missing, unknown or of another shape or type, is not finite,
            or is a buffer of another value than follows from the sizes. Nothing is read, nor the
            network changed, before all tensors fit.
    """
    check_fit(net, header.tensors, source)
    found = {name: _read(file, header, name, source) for name in header.tensors}
    for name, exact in _constants(net).items():
        found[name] = _checked(found[name], exact, header.tensors[name].kind, name, source)
    is_empty = any(weight.is_meta for weight in net.state_dict().values())
    net.load_state_dict(found, strict=True, assign=is_empty)


def fill_from_bytes(net: nn.Module, data: bytes, source: str) -> None:
    """`fill` from what `to_bytes` returned."""
    file = io.BytesIO(data)
    fill(net, file, read_header(file, source), source)


def check_fit(net: nn.Module, tensors: Mapping[str, Entry], source: Path | str) -> None:
    """Refuse tensors that are not the network's.

    Raises:
        CheckpointError: names the file and the first tensors that do not fit.
    """
    own = net.state_dict()
    missing = [printable(name) for name in sorted(own.keys() - tensors.keys())]
    unknown = [printable(name) for name in sorted(tensors.keys() - own.keys())]
    misfits = []
    for name in sorted(own.keys() & tensors.keys()):
        entry, wanted = tensors[name], own[name]
        if entry.shape != wanted.shape:
            misfits.append(
                f"{name} is {short_repr(entry.shape)} in the file and {tuple(wanted.shape)} by "
                "config.json"
            )
        elif wanted.is_floating_point() and entry.kind not in FLOATS:
            misfits.append(f"{name} is {entry.kind}, expected one of {', '.join(FLOATS)}")
        elif not wanted.is_floating_point() and TYPES[entry.kind] != wanted.dtype:
            misfits.append(f"{name} is {entry.kind}, expected {NAMES.get(wanted.dtype)}")
    problems = [f"lacks {some_of(missing)}"] if missing else []
    problems += [f"has unknown {some_of(unknown)}"] if unknown else []
    problems += [some_of(misfits)] if misfits else []
    if problems:
        raise CheckpointError(
            f"{source} does not fit the network: {'; '.join(problems)}. Is config.json beside it "
            "the one it was saved with?"
        )


def _read(file: File, header: Header, name: str, source: Path | str) -> Tensor:
    """One tensor, floats as finite float32."""
    entry = header.tensors[name]
    tensor = torch.empty(entry.shape, dtype=TYPES[entry.kind], device="cpu")
    try:
        file.seek(header.start + entry.begin)
        got = _read_into(file, tensor)
    except OSError as broken:
        raise CheckpointError(f"{source} cannot be read: {broken}") from broken
    if got != entry.end - entry.begin:
        raise CheckpointError(f"{source} became shorter while it was read, at {name}")
    if entry.kind not in FLOATS:
        return tensor
    tensor = tensor.float()
    if not all_finite(tensor):
        wrong = int((~torch.isfinite(tensor)).sum())
        raise CheckpointError(
            f"{name} in {source} has {wrong} of {tensor.numel()} numbers that are not finite: "
            "its training diverged or the file is damaged; take another checkpoint"
        )
    return tensor


def _read_into(file: File, tensor: Tensor) -> int:
    """How many bytes came: all that fit, or what the file still has."""
    target = tensor.reshape(-1).view(torch.uint8).numpy().data
    place = 0
    while place < len(target):  # at most 2 GiB come at once
        got = file.readinto(target[place:])
        if not got:
            break
        place += got
    return place


def _constants(net: nn.Module) -> dict[str, Tensor]:
    """Buffers whose values follow from the sizes, by their full names."""
    return {
        f"{path}.{name}": exact
        for path, part in net.named_modules()
        if isinstance(part, (Rotary, BinarySphericalQuantizer))
        for name, exact in part.constants().items()
    }


def _checked(found: Tensor, exact: Tensor, kind: str, name: str, source: Path | str) -> Tensor:
    """The file's own value where it is exact enough; ours where a narrow type rounded it."""
    is_narrow = kind in ("F16", "BF16")
    share = 1e-2 if is_narrow else 1e-5 if kind in FLOATS else 0.0
    least = 1e-6 if is_narrow else 0.0  # float16 has no digits left for the lowest frequencies
    if not torch.allclose(found.double(), exact.double(), rtol=share, atol=least):
        raise CheckpointError(
            f"{name} in {source} is not what follows from the sizes ({some_of(_numbers(exact))}), "
            f"but {some_of(_numbers(found))}: this is another architecture, or the file is damaged"
        )
    return exact if is_narrow else found


def _numbers(values: Tensor) -> list[str]:
    return [f"{value:.6g}" for value in values.flatten().tolist()]


def to_bytes(net: nn.Module, texts: Mapping[str, str] | None = None) -> bytes:
    """The weights as a safetensors file, on CPU whatever device the network is on.

    Equal weights and texts give equal bytes; the library writes its texts in any order.

    Args:
        texts: entries of the header beside the tensors.

    Raises:
        CheckpointError: a tensor has a number type that no checkpoint holds.
    """
    tensors = {name: value.detach().cpu().contiguous() for name, value in net.state_dict().items()}
    # Widest types first, so that all lie at places that their types can be read from.
    order = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))
    header: dict[str, Any] = {METADATA: dict(sorted(texts.items()))} if texts else {}
    reached = 0
    for name in order:
        begin, value = reached, tensors[name]
        reached += value.numel() * value.element_size()
        if value.dtype not in NAMES:
            raise CheckpointError(f"{name} is {value.dtype}, which no checkpoint holds")
        header[name] = {
            "dtype": NAMES[value.dtype],
            "shape": list(value.shape),
            "data_offsets": [begin, reached],
        }
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    parts: list[bytes | memoryview] = [len(text).to_bytes(8, "little"), text]
    for name in order:
        parts.append(tensors[name].reshape(-1).view(torch.uint8).numpy().data)
    return b"".join(parts)

"""The published checkpoints: their names, sizes and pins, and how a copy in a folder is known."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kronos_qlib.errors import CheckpointError
from kronos_qlib.model.checkpoints.weights import opened
from kronos_qlib.strict_json import is_file, read_object

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"
TOKENIZER_VARIABLE = "KRONOS_TOKENIZER"
"""Environment variable: the tokenizer of a predictor whose folder has none."""
OURS = "kronos_qlib."
"""Start of the entries that this package writes into a weights file's header."""


@dataclass(frozen=True)
class HubModel:
    """A published pair: two Hub repositories, and the revisions we have a reason to trust."""

    predictor: str
    tokenizer: str
    max_context: int
    predictor_revision: str | None = None
    tokenizer_revision: str | None = None


_TOKENIZER_BASE_REVISION = "0e0117387f39004a9016484a186a908917e22426"

ALIASES: Mapping[str, HubModel] = {
    "mini": HubModel("NeoQuasar/Kronos-mini", "NeoQuasar/Kronos-Tokenizer-2k", 2048),
    "small": HubModel(
        "NeoQuasar/Kronos-small",
        "NeoQuasar/Kronos-Tokenizer-base",
        512,
        predictor_revision="901c26c1332695a2a8f243eb2f37243a37bea320",
        tokenizer_revision=_TOKENIZER_BASE_REVISION,
    ),
    "base": HubModel(
        "NeoQuasar/Kronos-base",
        "NeoQuasar/Kronos-Tokenizer-base",
        512,
        tokenizer_revision=_TOKENIZER_BASE_REVISION,
    ),
}


_PREDICTOR = {"s1_bits": 10, "s2_bits": 10, "learn_te": True}
_DROPOUTS = ("ffn_dropout_p", "attn_dropout_p", "resid_dropout_p", "token_dropout_p")
TOKENIZER_SIZES: Mapping[str, Any] = {
    "d_in": 6, "d_model": 256, "n_heads": 4, "ff_dim": 512, "n_enc_layers": 4, "n_dec_layers": 4,
    "ffn_dropout_p": 0.0, "attn_dropout_p": 0.0, "resid_dropout_p": 0.0, "s1_bits": 10,
    "s2_bits": 10, "beta": 0.05, "gamma0": 1.0, "gamma": 1.1, "zeta": 0.05, "group_size": 4,
}  # fmt: skip


def _shape(layers: int, width: int, heads: int, ff: int, *dropouts: float) -> dict[str, Any]:
    sizes = {"n_layers": layers, "d_model": width, "n_heads": heads, "ff_dim": ff}
    return {**_PREDICTOR, **sizes, **dict(zip(_DROPOUTS, dropouts, strict=True))}


SHAPES: Mapping[str, dict[str, Any]] = {
    "mini": _shape(4, 256, 4, 512, 0.2, 0.0, 0.2, 0.0),
    "small": _shape(8, 512, 8, 1024, 0.25, 0.1, 0.25, 0.1),
    "base": _shape(12, 832, 16, 2048, 0.2, 0.0, 0.2, 0.0),
}
"""Sizes of the published predictors, to train new ones; a checkpoint's own come from its file."""

UNPUBLISHED: Mapping[str, dict[str, Any]] = {
    "large": _shape(18, 1664, 32, 3072, 0.2, 0.0, 0.2, 0.0)
}
"""The paper's largest predictor, 499.2 M parameters, whose weights were not given out: its sizes,
for `from_scratch`, with base's dropout."""

PUBLISHED_BYTES: Mapping[str, int] = {
    "NeoQuasar/Kronos-mini": 16_432_128,
    "NeoQuasar/Kronos-small": 98_965_504,
    "NeoQuasar/Kronos-base": 409_242_368,
    "NeoQuasar/Kronos-Tokenizer-2k": 15_832_168,
    "NeoQuasar/Kronos-Tokenizer-base": 15_832_168,
}
"""Bytes of each published network's weights: 4 a number of these sizes."""

_SIZES = ("n_layers", "d_model", "n_heads", "ff_dim", "s1_bits", "s2_bits")


def published_in(folder: Path) -> HubModel | None:
    """The published pair whose predictor is in a folder, recognised by its sizes.

    A file that this package has written is not a published one. Weights of these sizes that were
    trained elsewhere are taken for published too, which decides defaults only.
    """
    try:
        if not is_file(folder / CONFIG_FILE):
            return None
        values = read_object(folder / CONFIG_FILE)
        with opened(folder / WEIGHTS_FILE) as (_, header):
            is_ours = any(key.startswith(OURS) for key in header.texts)
    except (CheckpointError, OSError):
        return None  # loading it raises the error
    if is_ours:
        return None
    for alias, shape in SHAPES.items():
        if all(values.get(key) == shape[key] for key in _SIZES):
            return ALIASES[alias]
    return None


def tokenizer_named(folder: Path) -> str | None:
    """The Hub repository of a published tokenizer whose folder has its name.

    Two published tokenizers have the same sizes, so only the name distinguishes copies of them. A
    folder of the Hub's cache is `models--owner--name/snapshots/revision`.
    """
    for model in ALIASES.values():
        owner, name = model.tokenizer.split("/")
        parts = folder.absolute().parts
        if parts[-1] == name or f"models--{owner}--{name}" in parts[-3:]:
            return model.tokenizer
    return None


def tokenizer_beside(folder: Path) -> str | Path | None:
    """The tokenizer of a predictor whose folder has none; None where the folder is another.

    Returns:
        What the environment variable KRONOS_TOKENIZER names; else the folder beside it that has
        the name of the published tokenizer for a predictor of these sizes; None for a folder
        without a predictor, or with one of other sizes.

    Raises:
        CheckpointError: the sizes are published ones, and there is no such folder.
    """
    try:
        is_predictor = "n_layers" in read_object(folder / CONFIG_FILE)
    except CheckpointError:
        is_predictor = False  # a folder of both halves, or what is refused where it is loaded
    if not is_predictor:
        return None
    if named := os.environ.get(TOKENIZER_VARIABLE):
        return named
    model = published_in(folder)
    if model is None:
        return None
    beside = folder.absolute().parent / model.tokenizer.split("/")[1]
    if not is_file(beside / CONFIG_FILE):
        raise CheckpointError(
            f"{folder} holds a predictor of the sizes of {model.predictor} and no tokenizer, and "
            f"there is no {beside.name} beside it. Put {model.tokenizer} there, or name it: "
            f"`tokenizer` in Python and in workflows, --tokenizer, or the environment variable "
            f"{TOKENIZER_VARIABLE}"
        )
    return beside

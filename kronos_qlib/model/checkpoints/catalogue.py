"""The checkpoints that have a short name: what they are, and whether they are here already."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from kronos_qlib.model.checkpoints.pretrained import (
    ALIASES,
    BUNDLED,
    CONFIG_FILE,
    CONTEXT_KEY,
    SHAPES,
    WEIGHTS_FILE,
)
from kronos_qlib.model.checkpoints.weights import opened, shapes_alone
from kronos_qlib.model.transformer import Kronos


@dataclass(frozen=True)
class KnownModel:
    """A pair of predictor and tokenizer that an alias stands for."""

    alias: str
    predictor: str
    """Hub repository; the alias itself for the bundled one."""
    tokenizer: str
    parameters: int
    """Of the predictor."""
    max_context: int
    """Bars that it sees at once."""
    revision: str | None
    """Pinned one of the predictor's repository; None takes the newest."""
    folder: Path | None
    """Where the predictor's files are on this machine; None if a half is still to be fetched."""

    @property
    def state(self) -> str:
        """ "bundled", "cached" (both halves, in the Hub's cache) or "available" (from the Hub)."""
        if self.alias == BUNDLED:
            return "bundled"
        return "available" if self.folder is None else "cached"


def known_models() -> list[KnownModel]:
    """The bundled checkpoint and the published ones, without asking the network."""
    return [_bundled(), *(_published(alias) for alias in ALIASES)]


def _bundled() -> KnownModel:
    folder = Path(str(files("kronos_qlib"))) / "assets" / BUNDLED / "predictor"
    with opened(folder / WEIGHTS_FILE) as (_, header):
        context = int(header.texts[CONTEXT_KEY])
    return KnownModel(BUNDLED, BUNDLED, BUNDLED, header.values, context, None, folder)


def _published(alias: str) -> KnownModel:
    model = ALIASES[alias]
    with shapes_alone():
        parameters = sum(each.numel() for each in Kronos(**SHAPES[alias]).parameters())
    folder = _cached(model.predictor, model.predictor_revision)
    if _cached(model.tokenizer, model.tokenizer_revision) is None:
        folder = None
    return KnownModel(
        alias,
        model.predictor,
        model.tokenizer,
        parameters,
        model.max_context,
        model.predictor_revision,
        folder,
    )


def _cached(repo: str, revision: str | None) -> Path | None:
    """The folder of a repository in the Hub's cache, if both files of a network are there."""
    from huggingface_hub import try_to_load_from_cache

    found = [
        try_to_load_from_cache(repo, file, revision=revision)
        for file in (CONFIG_FILE, WEIGHTS_FILE)
    ]
    # It answers with an object of its own for a file that is known not to exist.
    paths = [Path(path) for path in found if isinstance(path, str)]
    return paths[0].parent if len(paths) == len(found) else None

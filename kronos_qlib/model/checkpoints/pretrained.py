"""Load and save checkpoints: aliases, pinned revisions, folders, the Hub. Safetensors only."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from difflib import get_close_matches
from importlib.resources import files
from pathlib import Path
from typing import Any, TypeVar

from torch import nn

from kronos_qlib.errors import (
    CheckpointConfigError,
    CheckpointError,
    ConfigError,
    printable,
    short_repr,
    some_of,
)
from kronos_qlib.files import replacing
from kronos_qlib.model.checkpoints import weights
from kronos_qlib.model.checkpoints.hub import fetch
from kronos_qlib.model.checkpoints.published import (
    ALIASES,
    CONFIG_FILE,
    PUBLISHED_BYTES,
    SHAPES,
    TOKENIZER_SIZES,
    UNPUBLISHED,
    WEIGHTS_FILE,
    HubModel,
    published_in,
    tokenizer_beside,
    tokenizer_named,
)
from kronos_qlib.model.sizes import PredictorConfig, TokenizerConfig
from kronos_qlib.settings import from_mapping
from kronos_qlib.strict_json import is_file, read_object

__all__ = [
    "ALIASES",
    "BUNDLED",
    "CONFIG_FILE",
    "CONTEXT_KEY",
    "SHAPES",
    "WEIGHTS_FILE",
    "HubModel",
    "Origin",
]

logger = logging.getLogger(__name__)

PARTNER_KEY = "kronos_qlib.tokenizer"
"""Header entry of a predictor's file: the fingerprint of the tokenizer it was trained with."""
CONTEXT_KEY = "kronos_qlib.max_context"
"""Header entry of a predictor's file: the most bars it has seen at once in training."""
MAX_CONTEXT = 2**20
PART_KEY = "kronos_qlib.part."
"""Start of the header entry of a part that is not the published one: what follows is the argument
that takes it, the value its class' name."""

BUNDLED = "nano"
"""The alias of the checkpoint that ships inside the package."""


@dataclass(frozen=True)
class Origin:
    """Where a loaded network came from, and which tokenizer belongs to it."""

    name: str
    """Alias, Hub id or folder."""
    repo: str | None = None
    """Hub repository that it came from; of a folder, the one that it is taken for a copy of."""
    partner: str | None = None
    """Fingerprint of the tokenizer that a predictor was trained with, if its file has one."""
    max_context: int | None = None
    """Bars that a predictor attends to: the number in its file, or the published one."""
    folder: Path | None = None
    """Where its two files lie, in the Hub's cache for one from there."""


class Checkpointed(nn.Module):
    """What tokenizer and predictor have in common: a config, and where their weights came from."""

    config: TokenizerConfig | PredictorConfig
    origin: Origin | None = None
    """None for new weights."""

    @property
    def s1_bits(self) -> int:
        """Ids of s1 lie in [0, 2**s1_bits)."""
        return self.config.s1_bits

    @property
    def s2_bits(self) -> int:
        """Ids of s2 lie in [0, 2**s2_bits)."""
        return self.config.s2_bits

    @property
    def replaced(self) -> dict[str, str]:
        """Class names of the parts that are not the published ones, by the arguments for them."""
        return {}


Net = TypeVar("Net", bound=Checkpointed)
Config = TypeVar("Config", TokenizerConfig, PredictorConfig)


@dataclass(frozen=True)
class _Place:
    """The two files of one network, and where they came from."""

    config: Path
    weights: Path
    name: str
    repo: str | None = None


@dataclass(frozen=True)
class _OnHub:
    """One network in a repository, yet to be fetched or found in the Hub's cache."""

    role: str
    name: str
    repo: str
    revision: str | None

    def fetch(self) -> _Place:
        paths = []
        for file in (CONFIG_FILE, WEIGHTS_FILE):
            try:
                paths.append(fetch(self.repo, file, self.revision))
            except Exception as cause:  # the hub client's errors share no base, httpx's among them
                raise CheckpointError(
                    f"cannot get {file} of the {self.role} {self.repo} at revision "
                    f"{self.revision or 'main'} from the Hugging Face Hub ({type(cause).__name__}: "
                    f"{_first_line(cause)}). Check the name and the network, or download the "
                    f"repository elsewhere and pass its folder; offline, the bundled {BUNDLED!r} "
                    "always works"
                ) from cause
        return _Place(paths[0], paths[1], self.name, self.repo)


def load(
    kind: type[Net],
    config_kind: type[Config],
    role: str,
    name_or_path: str | Path,
    revision: str | None,
    **parts: object,
) -> Net:
    """Build a network from its files, strictly, in evaluation mode.

    Args:
        role: "tokenizer" or "predictor": which half of an alias or of a folder that holds both.
        revision: a Hub revision; an alias brings its pinned one.
        parts: replaceable parts by the network's arguments; None is the published one.

    Nothing is built before sizes and tensors are within bounds, and nothing is allocated before
    they agree.

    Raises:
        CheckpointError: a file is missing, unreadable, does not fit the network, or holds numbers
            that are not finite; for an unknown key or a bad value of the configuration a
            `CheckpointConfigError`, which is a ConfigError too.
    """
    place = _locate(role, name_or_path, revision)
    config = _read_config(config_kind, role, place.config)
    with weights.opened(place.weights) as (file, header):
        if config.blocks > len(header.tensors):
            raise CheckpointError(
                f"{place.config} has {config.blocks} layers, {place.weights} only "
                f"{len(header.tensors)} tensors: they do not belong together"
            )
        with weights.shapes_alone():
            net = kind(**asdict(config), **parts)
        _check_parts(net, header.texts, place)
        weights.fill(net, file, header, place.weights)
    # A network is built in training mode; left so, it would drop out while forecasting (fault 1).
    net.eval()
    net.origin = _origin_of(place, header.texts)
    return net


def sizes_of(name_or_path: str | Path, role: str) -> dict[str, Any]:
    """Sizes of a network of its own, as keyword arguments: an alias, or a folder with a config.

    Raises:
        CheckpointError: there is no such alias or folder.
        ConfigError: `config.json` has an unknown key or a bad value.
    """
    name = str(name_or_path)
    if name in (known := {**SHAPES, **UNPUBLISHED}):
        return dict(known[name] if role == "predictor" else TOKENIZER_SIZES)
    folder = Path(str(files("kronos_qlib"))) / "assets" / BUNDLED
    if name != BUNDLED:
        folder = folder_of(name_or_path)
        if role == "tokenizer" and (beside := tokenizer_beside(folder)) is not None:
            return sizes_of(beside, role)
    path = next((each for each in (folder, folder / role) if is_file(each / CONFIG_FILE)), None)
    if path is None:
        raise CheckpointError(
            f"no sizes of a {role} at {short_repr(name)}; give a folder with {CONFIG_FILE}, or one "
            f"of {', '.join((BUNDLED, *known))}"
        )
    kind: Any = PredictorConfig if role == "predictor" else TokenizerConfig
    found: dict[str, Any] = asdict(_read_config(kind, role, path / CONFIG_FILE))
    return found


def check_there(role: str, name_or_path: str | Path, revision: str | None = None) -> int:
    """Refuse a name that means no checkpoint, without reading weights or asking the Hub.

    Returns:
        Bytes of its weights: those of its file, or of a published network's numbers; 0 for what is
        on the Hub and nowhere else known.

    Raises:
        CheckpointError: it is no alias, no Hub id and no folder with the two files of a network.
        ConfigError: a revision goes with what has none.
    """
    found = _known(role, name_or_path, revision)
    if isinstance(found, _Place):
        return found.weights.stat().st_size
    return PUBLISHED_BYTES.get(found.repo, 0)


def is_published(name_or_path: str | Path) -> bool:
    """Whether these are weights from the Hub or a copy of them in a folder, see `published_in`."""
    if str(name_or_path) == BUNDLED:
        return False
    folder = folder_of(name_or_path)
    return not folder.is_dir() or published_in(_half(folder, "predictor")) is not None


def save(
    net: Checkpointed,
    path: str | Path,
    header: Mapping[str, str] | None = None,
) -> Path:
    """Write a network's two files: on a full disk the old ones stay, both.

    Args:
        header: entries for the weights file's own header, beside those of replaced parts.
    """
    parts = {PART_KEY + name: kind for name, kind in net.replaced.items()}
    return replace_files(
        path, asdict(net.config), weights.to_bytes(net, {**(header or {}), **parts})
    )


def replace_files(path: str | Path, config: Mapping[str, Any], data: bytes) -> Path:
    """Write a checkpoint's two files beside their places, and move them when both are whole."""
    folder = Path(path)
    with (
        replacing(folder / CONFIG_FILE) as settings,
        replacing(folder / WEIGHTS_FILE) as draft,
    ):
        settings.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8", newline="\n")
        draft.write_bytes(data)
    return folder


def fingerprint(net: nn.Module) -> str:
    """A short digest: the same tensors and replaced parts, the same digest, on any device."""
    digest = hashlib.sha256()
    for name, kind in sorted(getattr(net, "replaced", {}).items()):
        digest.update(f"{name}={kind};".encode())
    for name, value in sorted(net.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.detach().cpu().float().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def check_pair(predictor: Checkpointed, tokenizer: Checkpointed) -> None:
    """Refuse a tokenizer that the predictor was not trained with, as far as can be known.

    The sizes must agree. Two published tokenizers have the same sizes (fault 13), so the names
    count too where both came from the Hub, and the fingerprint where the predictor's file has one.

    Raises:
        CheckpointError: they do not belong together.
    """
    theirs = (tokenizer.s1_bits, tokenizer.s2_bits)
    ours = (predictor.s1_bits, predictor.s2_bits)
    if theirs != ours:
        raise CheckpointError(
            f"the predictor reads tokens of {ours[0]} + {ours[1]} bits and the tokenizer writes "
            f"{theirs[0]} + {theirs[1]}; load the two halves of one checkpoint"
        )
    if predictor.origin is None:
        return
    from_where = tokenizer.origin or Origin("memory")
    for model in ALIASES.values():
        got = from_where.repo
        if predictor.origin.repo == model.predictor and got and got != model.tokenizer:
            raise CheckpointError(
                f"{model.predictor} was trained with {model.tokenizer}, not with {got}; the sizes "
                "agree but the codes do not"
            )
    expected = predictor.origin.partner
    if expected and fingerprint(tokenizer) != expected:
        raise CheckpointError(
            f"the predictor from {predictor.origin.name} was trained with another tokenizer than "
            f"the one from {from_where.name}: its weights have another fingerprint than the "
            "predictor's file records"
        )


def folder_of(path: str | Path) -> Path:
    """The folder meant, "~" spelled out.

    Raises:
        CheckpointError: it is no path, or "~" of someone unknown.
    """
    try:
        return Path(path).expanduser()
    except (TypeError, RuntimeError) as problem:
        raise CheckpointError(
            f"{short_repr(path)} is no folder of a checkpoint: {problem}"
        ) from problem


def _locate(role: str, name_or_path: str | Path, revision: str | None) -> _Place:
    found = _known(role, name_or_path, revision)
    return found.fetch() if isinstance(found, _OnHub) else found


def _known(role: str, name_or_path: str | Path, revision: str | None) -> _Place | _OnHub:
    try:
        return _find(role, name_or_path, revision)
    except OSError as problem:  # no right to look, or a name too long for a file
        raise CheckpointError(
            f"no {role} at {short_repr(str(name_or_path))}: {problem}"
        ) from problem


def _find(role: str, name_or_path: str | Path, revision: str | None) -> _Place | _OnHub:
    name = str(name_or_path)
    is_alias = isinstance(name_or_path, str) and name in (BUNDLED, *ALIASES)
    if revision is not None and (name == BUNDLED or (not is_alias and Path(name).is_dir())):
        raise ConfigError(
            f"revision {revision!r} goes with a Hub id; {name} is "
            f"{'bundled with the package' if name == BUNDLED else 'a folder'} and has none"
        )
    if is_alias:
        if name == BUNDLED:
            folder = Path(str(files("kronos_qlib"))) / "assets" / BUNDLED
            return _in_folder(role, folder, BUNDLED)
        model = ALIASES[name]
        repo = getattr(model, role)
        return _OnHub(role, name, repo, revision or getattr(model, f"{role}_revision"))
    folder = folder_of(name_or_path)
    if folder.is_dir():
        beside = tokenizer_beside(folder) if role == "tokenizer" else None
        if beside is None:
            return _in_folder(role, folder, str(folder))
        logger.info("%s: its tokenizer is taken from %s", folder, beside)
        if folder_of(beside).is_dir():
            return _in_folder(role, folder_of(beside), str(beside))
        return _find(role, beside, None)
    parts = name.split("/")
    if len(parts) == 2 and all(parts) and not name.startswith((".", "~")):
        return _OnHub(role, name, name, revision or _pinned(name, role))
    near = get_close_matches(name, (BUNDLED, *ALIASES), n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    raise CheckpointError(
        f"no {role} at {short_repr(name)}: it is no folder, no alias "
        f"({', '.join((BUNDLED, *ALIASES))}) and no Hub id of the form owner/name{hint}"
    )


def _pinned(repo: str, role: str) -> str | None:
    for model in ALIASES.values():
        if getattr(model, role) == repo and getattr(model, f"{role}_revision"):
            return str(getattr(model, f"{role}_revision"))
    return None


def _in_folder(role: str, folder: Path, name: str) -> _Place:
    folder = _half(folder, role)
    config, weights = folder / CONFIG_FILE, folder / WEIGHTS_FILE
    for path in (config, weights):
        if not path.is_file():
            found = sorted(item.name for item in folder.iterdir()) if folder.is_dir() else []
            is_there = os.path.lexists(path)
            what = "is no file but a folder, a pipe or a broken link" if is_there else "is missing"
            raise CheckpointError(
                f"{path} {what}; the folder of a {role} holds {CONFIG_FILE} and {WEIGHTS_FILE} "
                f"(safetensors only, no pickles), this one holds "
                f"{some_of([printable(one) for one in found]) or 'nothing'}"
            )
    copied = published_in(folder) if role == "predictor" and name != BUNDLED else None
    repo = copied.predictor if copied else None
    return _Place(config, weights, name, tokenizer_named(folder) if role == "tokenizer" else repo)


def _half(folder: Path, role: str) -> Path:
    """The folder of one half, in a folder that may hold both."""
    if not (folder / CONFIG_FILE).exists() and (folder / role).is_dir():
        return folder / role
    return folder


def _read_config(kind: type[Config], role: str, path: Path) -> Config:
    values = read_object(path)
    other = "predictor" if role == "tokenizer" else "tokenizer"
    mark = "n_layers" if role == "tokenizer" else "n_enc_layers"
    if mark in values:
        raise CheckpointConfigError(f"{path} describes a {other}, a {role} was asked for")
    try:
        return from_mapping(kind, values, where=str(path))
    except ConfigError as bad:
        raise CheckpointConfigError(str(bad)) from bad


def _check_parts(net: Checkpointed, header: Mapping[str, str], place: _Place) -> None:
    saved = {
        key.removeprefix(PART_KEY): value
        for key, value in header.items()
        if key.startswith(PART_KEY)
    }
    for name in sorted(saved.keys() | net.replaced.keys()):
        theirs, ours = saved.get(name), net.replaced.get(name)
        if theirs != ours:
            name, theirs = printable(name), theirs and printable(theirs)
            advice = (
                f"pass {name}={theirs}(...) to from_pretrained" if theirs else f"leave {name} out"
            )
            raise CheckpointError(
                f"{place.weights} was saved with {theirs or 'the published part'} as {name}, not "
                f"with {ours or 'the published part'}; {advice}"
            )


def _origin_of(place: _Place, header: Mapping[str, str]) -> Origin:
    given = header.get(CONTEXT_KEY)
    published = [model.max_context for model in ALIASES.values() if model.predictor == place.repo]
    context = published[0] if published else None
    if given is not None:
        is_whole = given.isascii() and given.isdigit() and len(given) < 10
        context = int(given) if is_whole else 0
        if not 1 <= context <= MAX_CONTEXT:
            raise CheckpointError(
                f"{CONTEXT_KEY} in the header of {place.weights} must be a whole number from 1 to "
                f"{MAX_CONTEXT}, got {short_repr(given)}"
            )
    return Origin(place.name, place.repo, header.get(PARTNER_KEY), context, place.config.parent)


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else "no message"

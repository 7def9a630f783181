"""The checkpoints that the owner allows, and those of them that are in memory."""

from __future__ import annotations

import threading
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from kronos_qlib.errors import CheckpointError, ConfigError, KronosError, some_of
from kronos_qlib.markup import one_line
from kronos_qlib.webui.schemas import ModelInfo, Models

if TYPE_CHECKING:
    from kronos_qlib.inference.predictor import KronosPredictor

DEFAULT = "nano"
MOST_HELD = 2
"""Predictors in memory; another one takes the place of the one that was used least recently."""
LOCAL = "local/"
"""How the names of the owner's own checkpoints begin, so that none hides a published one."""


@dataclass(frozen=True)
class Held:
    """A predictor in memory, and what its answers say of it."""

    predictor: KronosPredictor
    name: str
    revision: str | None
    digest: str
    """Fingerprint of both halves."""


class HeldModels:
    """Loads by name, and only what is listed.

    Args:
        folder: whose own folders are checkpoints too; None: only the bundled and published ones.
        device: a torch device; None as found.
    """

    def __init__(self, folder: Path | None = None, device: str | None = None) -> None:
        self.folder = folder
        self.device = device
        self._held: OrderedDict[str, Held] = OrderedDict()
        self._loading: set[str] = set()
        self._broken: dict[str, str] = {}
        self._lock = threading.Lock()

    def is_ready(self) -> Literal["loading", "ready", "failed"]:
        """ "ready", "loading" or "failed", of the default one."""
        with self._lock:
            if DEFAULT in self._held:
                return "ready"
            return "failed" if DEFAULT in self._broken else "loading"

    def known(self) -> Models:
        """All that may be asked for. Asks no network and imports torch."""
        from kronos_qlib.model.checkpoints.catalogue import known_models

        infos = [
            ModelInfo(
                name=each.alias,
                kind="bundled" if each.state == "bundled" else "hub",
                parameters=each.parameters,
                max_context=each.max_context,
                revision=each.revision,
                state="to fetch" if each.state == "available" else "here",
                device=None,
            )
            for each in known_models()
        ]
        infos += [
            ModelInfo(
                name=name,
                kind="folder",
                parameters=None,
                max_context=None,
                revision=None,
                state="here",
                device=None,
            )
            for name in self._own()
        ]
        with self._lock:
            for info in infos:
                if info.name in self._held:
                    predictor = self._held[info.name].predictor
                    info.state, info.device = "loaded", str(predictor.device)
                    info.max_context = predictor.max_context
                    info.parameters = sum(one.numel() for one in predictor.model.parameters())
                elif info.name in self._loading:
                    info.state = "loading"
                elif info.name in self._broken:
                    info.state, info.problem = "broken", self._broken[info.name]
        return Models(models=infos, default=DEFAULT)

    def check(self, name: str) -> None:
        """Refuse a name that is not listed.

        Raises:
            ConfigError: it is none of those; says which there are.
        """
        self._place(name)

    def get(self, name: str) -> Held:
        """The predictor of a listed name, loaded if it is not in memory: for one worker at a time.

        Raises:
            ConfigError: the name is not listed.
            CheckpointError: it cannot be loaded, or the Hub is out of reach.
        """
        with self._lock:
            if name in self._held:
                self._held.move_to_end(name)
                return self._held[name]
            self._loading.add(name)
        try:
            held = self._load(name)
        except KronosError as problem:
            with self._lock:
                self._broken[name] = one_line(str(problem))
            raise
        finally:
            with self._lock:
                self._loading.discard(name)
        with self._lock:
            self._broken.pop(name, None)
            self._held[name] = held
            while len(self._held) > MOST_HELD:
                self._held.popitem(last=False)
        return held

    def _load(self, name: str) -> Held:
        place = self._place(name)
        from kronos_qlib.inference.calibrating import checkpoint_of
        from kronos_qlib.inference.predictor import KronosPredictor
        from kronos_qlib.model.checkpoints.published import ALIASES

        predictor = KronosPredictor.from_pretrained(place, device=self.device)
        revision = ALIASES[name].predictor_revision if name in ALIASES else None
        return Held(predictor, name, revision, checkpoint_of(predictor))

    def _place(self, name: str) -> str | Path:
        """What to load for a name, which is looked up and never made a path of."""
        from kronos_qlib.model.checkpoints.published import ALIASES

        own = self._own()
        if name == DEFAULT or name in ALIASES:
            return name
        if name in own:
            return own[name]
        raise ConfigError(
            f"no checkpoint {name!r} is allowed here; there are "
            f"{some_of([DEFAULT, *ALIASES, *own], 12)}"
        )

    def _own(self) -> dict[str, Path]:
        """The owner's checkpoints by name."""
        if self.folder is None:
            return {}
        try:
            inside = sorted(self.folder.iterdir())
        except OSError as problem:
            raise CheckpointError(f"the folder of checkpoints cannot be read: {problem}") from None
        return {
            LOCAL + each.name: each
            for each in inside
            if not each.name.startswith(".")
            and any((each / place).is_file() for place in ("config.json", "predictor/config.json"))
        }

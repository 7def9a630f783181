"""A model that other processes are sent whole: no checkpoint, no file beside it, no GPU.

A pickle of a KronosModel holds what training changed and takes the rest from its checkpoint, which
another machine may not have. Here its networks go along, and what lies beside their weights.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from kronos_qlib.plugin.baselines import GRUModel
from kronos_qlib.plugin.blend import BlendModel
from kronos_qlib.plugin.model import KronosModel
from kronos_qlib.signals.signal_settings import SignalsConfig

if TYPE_CHECKING:
    from torch.nn import Module


@dataclass(frozen=True)
class _Networks:
    """What a KronosModel has loaded, on a CPU."""

    net: Any
    tokenizer: Any
    head: Any
    calibration: Any
    contexts_folder: str | None
    sectors: Mapping[str, str] | None


@dataclass(frozen=True)
class ShippedModel:
    """Any Qlib model with what it has loaded, members of blends too; made by `of`, and pickled."""

    model: Any
    networks: tuple[Any, ...]
    """Of each of its `leaves`."""

    @classmethod
    def of(cls, model: Any) -> ShippedModel:
        """
        Raises:
            CheckpointError: weights cannot be had.
        """
        networks = tuple(_networks_of(one) for one in leaves(model))
        return cls(_without_backend(model), networks)

    def open(self) -> Any:
        """The model, ready to score."""
        for one, own in zip(leaves(self.model), self.networks, strict=True):
            if isinstance(own, _Networks):
                one.use_networks(own.net, own.tokenizer, own.head)
                one.predictor.calibration = own.calibration
                one._contexts_folder = own.contexts_folder
                if own.sectors is not None:
                    one.signal_settings = _with_sectors(one.signal_settings, own.sectors)
            elif own is not None:
                one._net = own
            if hasattr(one, "show_progress"):
                one.show_progress = False  # the job has a bar, of blocks
        return self.model


def leaves(model: Any) -> Iterator[Any]:
    """The model, or the members of a blend and of blends in it, in their order."""
    if isinstance(model, BlendModel):
        for member in model.members.values():
            yield from leaves(member)
    else:
        yield model


def _networks_of(model: Any) -> Any:
    if isinstance(model, GRUModel):
        return _on_cpu(model.net)
    if not isinstance(model, KronosModel):
        return None
    from kronos_qlib.pipeline.calibrated_paths import shipped_calibration

    predictor, head, folder = model.predictor, model.head, model.contexts_folder
    calibration = predictor.calibration or shipped_calibration(predictor).calibration
    return _Networks(
        _on_cpu(predictor.model),
        _on_cpu(predictor.tokenizer),
        None if head is None else _on_cpu(head),
        calibration,
        None if folder is None else str(folder),
        None if model.signal_settings.sectors is None else model.sectors(),
    )


def _with_sectors(settings: SignalsConfig, of: Mapping[str, str]) -> SignalsConfig:
    """The settings with sectors that were read from a file, which a worker may not have."""
    assert settings.sectors is not None
    return replace(settings, sectors=replace(settings.sectors, file=None, of=dict(of)))


def _on_cpu(net: Module) -> Module:
    """The network, or a copy where it lies on a GPU."""
    if all(weight.device.type == "cpu" for weight in net.parameters()):
        return net
    return copy.deepcopy(net).to("cpu")


def _without_backend(model: Any) -> Any:
    """A worker scores by itself: the model without the setting that would ask others to."""
    if isinstance(model, KronosModel) and model.backend is not None:
        model = copy.copy(model)
        model.backend = None
    elif isinstance(model, BlendModel):
        model = copy.copy(model)
        model.members = {name: _without_backend(one) for name, one in model.members.items()}
    return model


def settings_of_kronos(model: KronosModel) -> Mapping[str, str]:
    """What decides a KronosModel's scores beside its weights and windows, as text by name."""
    signals = replace(model.signal_settings, keep=None)
    kept = model.signal_settings.keep
    return {
        "sampling": repr(model.sampling),
        "signals": repr(signals),
        "signals kept": "" if kept is None else ", ".join(kept),
        "seed": str(model.seed),
        "dtype": model.dtype,
        "memory_mb": str(model.memory_mb),
        "max_context": str(model.predictor.max_context),
        "calibration": repr(model.kept_calibration or model.calibration),
    }

"""What a run keeps of its model in plain files, so that it is rebuilt without unpickling anything.

A model is its settings (the run's task.json) and what fitting left: safetensors of Kronos, the
text of a LightGBM booster, the coefficients of a linear model. Models of other classes are kept by
Qlib's pickle alone.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from qlib.config import C

from kronos_qlib.calibration.calibration import FILE as CALIBRATION_FILE
from kronos_qlib.calibration.calibration import Calibration
from kronos_qlib.errors import MissingArtifactError, printable
from kronos_qlib.markup import cause_of
from kronos_qlib.plugin.baselines import BaselineModel, GRUModel
from kronos_qlib.plugin.blend import BlendModel
from kronos_qlib.plugin.model import FIT, KronosModel

FOLDER = "weights"
"""Where a run keeps them."""
STATE = f"{FOLDER}/state.json"
"""Which files there are, and of what; and where the run's bars were."""
PARTS = ("tokenizer", "predictor", "gru", "alpha")


@dataclass(frozen=True)
class KeptModel:
    """What fitting left of a model.

    state, files: for `restore`; a state of None is of a class that is not kept in plain files, and
        `model` then is the model itself.
    """

    state: Mapping[str, Any] | None
    files: Mapping[str, bytes]
    model: Any = None


def write_model(model: object, folder: Path) -> None:
    """Write what fitting left of a model, and where its bars were, for `restore`.

    Of a RollingModel what its newest roll left, and which days each roll is of.

    Args:
        folder: that becomes the run's top; the files go into `weights` of it.
    """
    from kronos_qlib.plugin.rolling.rolling_model import RollingModel

    rolls = model.described() if isinstance(model, RollingModel) else None
    kept = model.newest if isinstance(model, RollingModel) else kept_model(model)
    files = dict(kept.files)
    state = {
        "model": None if kept.state is None else dict(kept.state),
        **({} if rolls is None else {"rolls": rolls}),
        "provider_uri": {str(freq): str(uri) for freq, uri in C.provider_uri.items()},
        "region": str(C.region),
    }
    (folder / FOLDER).mkdir()
    for name, data in files.items():
        (folder / FOLDER / name).write_bytes(data)
    (folder / STATE).write_text(json.dumps(state, indent=1), encoding="utf-8")


def kept_model(model: Any) -> KeptModel:
    """What fitting left of a model, in memory."""
    files: dict[str, bytes] = {}
    state = _state_of(model, "", files)
    return KeptModel(state, files, model if state is None else None)


def _state_of(model: Any, prefix: str, files: dict[str, bytes]) -> dict[str, Any] | None:
    """The state of a model; None for a class that is not kept here."""
    kind = type(model).__name__
    state: dict[str, Any] = {"class": kind}
    if type(model) in (KronosModel, GRUModel):
        state["weights"] = {}
        for part, data in model.trained_weights.items():
            files[f"{prefix}{part}.safetensors"] = data
            state["weights"][part] = f"{prefix}{part}.safetensors"
    if type(model) is KronosModel:
        state["fingerprints"] = dict(model.fingerprints)
        if model.calibration == FIT and model.kept_calibration is not None:
            state["calibration"] = f"{prefix}{CALIBRATION_FILE}"
            files[state["calibration"]] = _calibration_bytes(model.kept_calibration)
    elif type(model) is BlendModel:
        state["members"] = [
            _state_of(member, f"{prefix}{place}_", files)
            for place, member in enumerate(model.members.values())
        ]
        if None in state["members"]:
            return None
    elif is_lightgbm(model) and getattr(model, "model", None) is not None:
        files[f"{prefix}lightgbm.txt"] = model.model.model_to_string().encode()
        state["booster"] = f"{prefix}lightgbm.txt"
    elif kind == "LinearModel" and getattr(model, "coef_", None) is not None:
        # Python writes a float in as many digits as bring back its very bits.
        for name, value in (("coef", model.coef_), ("intercept", model.intercept_)):
            state[name] = np.asarray(value, dtype=np.float64).tolist()
            state[f"{name}_type"] = str(getattr(value, "dtype", "float"))
    elif type(model) not in (GRUModel, BaselineModel):
        return None
    return state


def is_lightgbm(model: object) -> bool:
    """Whether it is Qlib's model of LightGBM: by its name, since LightGBM may not be installed."""
    return type(model).__name__ == "LGBModel"


def needs_state(model: object) -> bool:
    """Whether a model that was made from its settings lacks what fitting leaves."""
    if isinstance(model, BlendModel):
        return any(map(needs_state, model.members.values()))
    if isinstance(model, KronosModel):
        return not model.training.is_zero_shot or model.calibration == FIT
    if isinstance(model, GRUModel):
        return model.weights is None
    return not isinstance(model, BaselineModel)


def restore(model: Any, state: Mapping[str, Any], read: Mapping[str, bytes]) -> None:
    """Give a model that was made from its settings what fitting had left.

    Args:
        state: of the model, as `write_model` has it.
        read: the files of the folder by name.

    Raises:
        MissingArtifactError: the state is of another class, or a file is not there.
    """
    kind = type(model).__name__
    try:
        if state["class"] != kind:
            raise MissingArtifactError(
                f"{STATE} is of a {printable(str(state['class']))}, the run's task of a {kind}"
            )
        if isinstance(model, (KronosModel, GRUModel)):
            kept = dict(state["weights"])
            model.trained_weights = {part: read[kept[part]] for part in PARTS if part in kept}
        if isinstance(model, KronosModel):
            model.fingerprints = {
                str(part): str(digest) for part, digest in state["fingerprints"].items()
            }
            if "calibration" in state:
                model.kept_calibration = _calibration_from(read[state["calibration"]])
        elif isinstance(model, BlendModel):
            for member, its in zip(model.members.values(), state["members"], strict=True):
                restore(member, its, read)
        elif kind == "LGBModel":
            import lightgbm

            model.model = lightgbm.Booster(model_str=read[state["booster"]].decode())
        elif kind == "LinearModel":
            model.coef_ = _numbers(state, "coef")
            model.intercept_ = _numbers(state, "intercept")
    except (KeyError, TypeError, ValueError, AttributeError) as problem:
        raise MissingArtifactError(
            f"{STATE} does not hold a {kind}: {type(problem).__name__} {cause_of(problem)}"
        ) from problem


def _calibration_bytes(calibration: Calibration) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        calibration.save(Path(folder, CALIBRATION_FILE))
        return Path(folder, CALIBRATION_FILE).read_bytes()


def _calibration_from(data: bytes) -> Calibration:
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, CALIBRATION_FILE).write_bytes(data)
        return Calibration.load(Path(folder, CALIBRATION_FILE))


def _numbers(state: Mapping[str, Any], name: str) -> Any:
    """Numbers of the type they had: of a float of numpy's, products would have another."""
    kind = state[f"{name}_type"]
    if kind == "float":
        return float(state[name])
    values = np.asarray(state[name], dtype=np.float64)
    return values.astype(np.float32 if kind == "float32" else np.float64)[()]

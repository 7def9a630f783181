"""How MLflow loads a registered model: `mlflow.pyfunc.load_model("models:/NAME@champion")`.

    model.predict(pd.DataFrame([{"provider_uri": "data/mine", "day": "2024-06-18"}]))

gives a table of instrument and score by falling score. `day` may be left out for the newest.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd

from kronos_qlib.errors import ConfigError


class RegisteredScorer:
    """A registered model in MLflow's words.

    Args:
        folder: as `model_folder` describes it.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def predict(self, model_input: pd.DataFrame, params: dict[str, Any] | None = None) -> Any:
        """The scores of one day.

        Args:
            model_input: one row, with the columns `provider_uri` (the folder of bars) and `day`;
                either may be missing: the model's own bars, and their newest day.

        Returns:
            (names, 2): instrument, score.

        Raises:
            ConfigError: more than one row, or other columns.
            Otherwise as `score_newest`.
        """
        from kronos_qlib.plugin.registry.model_folder import source_of_folder
        from kronos_qlib.plugin.runs.newest_day import open_day, score_opened

        strange = sorted(set(map(str, model_input.columns)) - {"provider_uri", "day"})
        if len(model_input) != 1 or strange:
            raise ConfigError(
                "predict takes a table of one row with the columns provider_uri and day, got "
                f"{len(model_input)} rows and {', '.join(strange) or 'no other column'}"
            )
        asked: dict[str, Any] = {
            str(name): str(value) for name, value in model_input.iloc[0].dropna().items()
        }
        # Whoever loads it by MLflow has run its loader already.
        source = source_of_folder(self.folder, "this model", trust=True)
        return score_opened(open_day(source, **asked)).table[["instrument", "score"]]


def _load_pyfunc(path: str) -> RegisteredScorer:
    """What MLflow calls, with the folder's place."""
    return RegisteredScorer(Path(path))

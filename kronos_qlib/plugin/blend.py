"""BlendModel: the ranks of several Qlib models as one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from qlib.log import get_module_logger
from qlib.model.base import Model
from qlib.model.trainer import auto_filter_kwargs
from qlib.utils import init_instance_by_config

from kronos_qlib.data.windows.segments import Segment
from kronos_qlib.errors import BarDataError, ConfigError
from kronos_qlib.plugin.qlib_internals import logged_under

logger = get_module_logger(__name__)

MODEL_KEYS = ("class", "module_path", "kwargs")


class BlendModel(Model):
    """The weighted mean of the day's percentile ranks that several models give.

    A blend of ranks asks of no model that its scores be returns. Only rows that every member
    scored are scored; the log counts the others.

    Args:
        members: configs of Qlib models (`class`, `module_path`, `kwargs`), each with an optional
            `name` (its class by default) and an optional `dataset`, the config of a data set of its
            own; without one it is given the blend's.
        weights: one a member, above 0; None weighs all alike.
    """

    _datasets: dict[str, Any] | None = None

    def __init__(
        self, members: Sequence[Mapping[str, Any]], weights: Sequence[float] | None = None
    ) -> None:
        super().__init__()
        if len(members) < 2:
            raise ConfigError(f"a blend has two members or more, got {len(members)}")
        weights = [1.0] * len(members) if weights is None else list(weights)
        if len(weights) != len(members) or not all(0 < weight < np.inf for weight in weights):
            raise ConfigError(
                f"weights of a blend are one above 0 for each of its {len(members)} members, got "
                f"{weights}"
            )
        self.members: dict[str, Model] = {}
        self.dataset_configs: dict[str, Mapping[str, Any]] = {}
        for member in members:
            config = {key: value for key, value in member.items() if key in MODEL_KEYS}
            strange = sorted(set(member) - {*MODEL_KEYS, "name", "dataset"})
            if strange or "class" not in config:
                raise ConfigError(
                    "a member of a blend has class, module_path, kwargs, name and dataset, got "
                    f"{', '.join(map(str, member))}"
                )
            name = str(member.get("name", member["class"]))
            if name in self.members or name == "score":
                raise ConfigError(f"two members of a blend are called {name!r}; give them names")
            self.members[name] = init_instance_by_config(config, accept_types=Model)
            if "dataset" in member:
                self.dataset_configs[name] = member["dataset"]
        self.weights = dict(zip(self.members, map(float, weights), strict=True))

    def fit(self, dataset: Any, reweighter: object = None) -> None:
        """Fit each member on its data set; what it logs is under its name in MLflow."""
        for name, model in self.members.items():
            logger.info(f"blend: fitting {name}")
            with logged_under(name):
                fit = auto_filter_kwargs(model.fit)
                fit(self.dataset_of(name, dataset), reweighter=reweighter)

    def predict(self, dataset: Any, segment: Segment = "test") -> pd.Series:
        """The blend's score.

        Returns:
            "score" on (datetime, instrument), in (0, 1]: a weighted mean of percentiles.

        Raises:
            BarDataError: no row was scored by every member.
        """
        return self.signals(dataset, segment)["score"]

    def signals(self, dataset: Any, segment: Segment = "test") -> pd.DataFrame:
        """The blend's score, and each member's own under its name.

        Returns:
            On (datetime, instrument), the rows that every member scored: "score", then a column a
            member, in the member's own unit.

        Raises:
            BarDataError: no row was scored by every member.
        """
        parts = {}
        for name, model in self.members.items():
            scores = model.predict(self.dataset_of(name, dataset), segment)
            if isinstance(scores, pd.DataFrame):
                scores = scores.iloc[:, 0]
            parts[name] = scores.dropna()
        frame = pd.concat(parts, axis=1, join="inner").sort_index()
        left_out = {name: len(scores) - len(frame) for name, scores in parts.items()}
        logger.info(
            f"blend: {len(frame)} rows; left out, for not all members scored them: "
            + ", ".join(f"{count} of {name}" for name, count in left_out.items())
        )
        if frame.empty:
            raise BarDataError(f"no row of the segment {segment!r} was scored by every member")
        ranks = frame.groupby(level="datetime").rank(pct=True)
        weights = pd.Series(self.weights)
        frame.insert(0, "score", (ranks * weights).sum(axis=1) / weights.sum())
        return frame

    def dataset_of(self, name: str, dataset: Any) -> Any:
        """The data set that a member is given: its own, made once, or the blend's `dataset`."""
        if name not in self.dataset_configs:
            return dataset
        if self._datasets is None:
            self._datasets = {}
        if name not in self._datasets:
            self._datasets[name] = init_instance_by_config(self.dataset_configs[name])
        return self._datasets[name]

"""BlendModel: the ranks of several Qlib models as one."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from qlib.log import get_module_logger
from qlib.model.base import Model
from qlib.model.trainer import auto_filter_kwargs
from qlib.utils import init_instance_by_config

from kronos_qlib.data.windows.segments import Segment
from kronos_qlib.errors import ConfigError, NothingToScoreError
from kronos_qlib.plugin.baselines import GRUModel
from kronos_qlib.plugin.dataset import source_of
from kronos_qlib.plugin.expressions import reach_of
from kronos_qlib.plugin.model import KronosModel
from kronos_qlib.plugin.provider.handler_columns import label_written_in
from kronos_qlib.plugin.qlib_internals import logged_under, metrics_dropped
from kronos_qlib.plugin.residual import ResidualConfig, residual_source, scores_out_of_fold
from kronos_qlib.settings import from_mapping
from kronos_qlib.training.stage_settings import AlphaConfig

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
        residual: fields of `ResidualConfig`: the other members, each a `KronosModel` with an alpha
            head or a `GRUModel`, are not trained on the label but on what the member `of` leaves of
            its ranks, by scores of models that have not learned of those days.
    """

    _datasets: dict[str, Any] | None = None
    # Of a pickle that is older than the settings.
    residual: ResidualConfig | None = None

    def __init__(
        self,
        members: Sequence[Mapping[str, Any]],
        weights: Sequence[float] | None = None,
        residual: Mapping[str, Any] | None = None,
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
        self.model_configs: dict[str, Mapping[str, Any]] = {}
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
            self.model_configs[name] = config
            if "dataset" in member:
                self.dataset_configs[name] = member["dataset"]
        self.weights = dict(zip(self.members, map(float, weights), strict=True))
        self.residual = None
        if residual is not None:
            self.residual = from_mapping(ResidualConfig, residual, where="residual")
            self._check_residual(self.residual)

    def fit(self, dataset: Any, reweighter: object = None) -> None:
        """Fit each member on its data set; what it logs is under its name in MLflow.

        Raises:
            ConfigError: residuals are asked for, and a data set has no windows or no table.
        """
        self.fit_members(
            dataset, lambda model, data: auto_filter_kwargs(model.fit)(data, reweighter=reweighter)
        )

    def fit_members(self, dataset: Any, how: Callable[[Any, Any], None]) -> None:
        """As `fit`, each member by a function of the member and its data set.

        Raises:
            ConfigError: as of `fit`.
        """
        residual = self.residual
        order = [*self.members]
        if residual is not None:  # which the others learn from
            order.sort(key=lambda name: name != residual.of)
        scores = None
        for name in order:
            model, data = self.members[name], self.dataset_of(name, dataset)
            logger.info(f"blend: fitting {name}")
            with logged_under(name):
                if residual is not None and name != residual.of:
                    if scores is None:
                        scores = self._scores_to_leave(residual, dataset)
                    data = residual_source(source_of(data, reader=name), scores)
                how(model, data)

    def _scores_to_leave(self, residual: ResidualConfig, dataset: Any) -> pd.Series:
        """Of the member that the others are to complete, out of fold.

        Purged by the label of whichever member looks farthest ahead.
        """
        config = self.model_configs[residual.of]
        own = self.dataset_of(residual.of, dataset)
        ahead = [
            source_of(self.dataset_of(name, dataset), reader=name).label.ahead
            for name in self.members
            if name != residual.of
        ]
        if (label := label_written_in(getattr(own, "handler", None))) is not None:
            ahead.append(reach_of(label).furthest)
        with metrics_dropped():  # of models that are made to score a fold, and forgotten
            return scores_out_of_fold(
                lambda: init_instance_by_config(config, accept_types=Model),
                self.members[residual.of],
                own,
                residual.folds,
                max(ahead),
            )

    def _check_residual(self, residual: ResidualConfig) -> None:
        if residual.of not in self.members:
            raise ConfigError(
                f"residual.of {residual.of!r} is no member of the blend: {', '.join(self.members)}"
            )
        for name, model in self.members.items():
            if name == residual.of:
                if isinstance(model, GRUModel | KronosModel):
                    raise ConfigError(
                        f"residual.of is a model of tables, as LightGBM, that is made anew for "
                        f"each fold; {name} is a {type(model).__name__}, of windows"
                    )
                continue
            alpha = None
            if isinstance(model, GRUModel | KronosModel):
                how = model.training
                alpha = how if isinstance(how, AlphaConfig) else how.alpha
            if alpha is None:
                raise ConfigError(
                    f"residual: {name} would learn what {residual.of} leaves, and a "
                    f"{type(model).__name__} cannot: take a KronosModel with training.alpha, or a "
                    "GRUModel"
                )
            if alpha.horizons is not None:
                raise ConfigError(
                    f"residual: {name} has horizons {list(alpha.horizons)}, and what "
                    f"{residual.of} leaves is of the label that it learned alone: leave them out"
                )

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
            raise NothingToScoreError(
                f"no row of the segment {segment!r} was scored by every member"
            )
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

    def has_dataset(self, name: str) -> bool:
        """Whether a member's own data set has been made, or given."""
        return name in (self._datasets or {})

    def use_datasets(self, datasets: Mapping[str, Any]) -> None:
        """Give members that have a data set of their own these, by their names, in its place."""
        self._datasets = dict(datasets)

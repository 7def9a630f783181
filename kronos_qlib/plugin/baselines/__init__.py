"""Rivals of Kronos as Qlib models, so that one workflow and one report serve them all."""

from kronos_qlib.plugin.baselines.gru_model import GRUModel
from kronos_qlib.plugin.baselines.past_bars_model import BaselineModel

__all__ = ["BaselineModel", "GRUModel"]

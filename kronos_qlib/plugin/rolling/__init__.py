"""A model that is trained again as time goes on: over a past segment, or for the evening's day."""

from kronos_qlib.plugin.rolling.rolling_model import RollingModel

__all__ = ["RollingModel"]

"""Kronos, the foundation model for candlesticks, as a Qlib model and signal generator.

The public names are imported when first used, so that `import kronos_qlib` costs nothing:
torch, qlib and matplotlib load with the first name that needs them.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from kronos_qlib.version import __version__

if TYPE_CHECKING:
    from kronos_qlib.data.windows.window_dataset import WindowDataset
    from kronos_qlib.inference.predictor import KronosPredictor
    from kronos_qlib.inference.streaming.streaming_predictor import StreamingPredictor
    from kronos_qlib.model.tokenizer import KronosTokenizer
    from kronos_qlib.model.transformer import Kronos
    from kronos_qlib.plugin.dataset import KronosDataset
    from kronos_qlib.plugin.model import KronosModel

__all__ = [
    "Kronos",
    "KronosDataset",
    "KronosModel",
    "KronosPredictor",
    "KronosTokenizer",
    "StreamingPredictor",
    "WindowDataset",
    "__version__",
]

_HOME = {
    "Kronos": "kronos_qlib.model.transformer",
    "KronosDataset": "kronos_qlib.plugin.dataset",
    "KronosModel": "kronos_qlib.plugin.model",
    "KronosPredictor": "kronos_qlib.inference.predictor",
    "KronosTokenizer": "kronos_qlib.model.tokenizer",
    "StreamingPredictor": "kronos_qlib.inference.streaming.streaming_predictor",
    "WindowDataset": "kronos_qlib.data.windows.window_dataset",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

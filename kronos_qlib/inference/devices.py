"""Where and in which number type the network runs."""

from __future__ import annotations

import torch

from kronos_qlib.errors import ConfigError

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def pick_device(device: str | torch.device | None) -> torch.device:
    """The device that was asked for; for None or "auto" CUDA, then Apple's GPU, then the CPU.

    Raises:
        ConfigError: this machine has no such device.
    """
    if device is not None and device != "auto":
        try:
            chosen = torch.device(device)
        except RuntimeError as unknown:
            raise ConfigError(f"no device is called {device!r}; try 'auto' or 'cpu'") from unknown
        if (chosen.type == "cuda" and not torch.cuda.is_available()) or (
            chosen.type == "mps" and not torch.backends.mps.is_available()
        ):
            raise ConfigError(
                f"this machine has no device {device!r}; set device to 'auto' or 'cpu'"
            )
        return chosen
    if torch.cuda.is_available():
        return torch.device("cuda")
    if torch.backends.mps.is_available():
        return torch.device("mps")
    return torch.device("cpu")


def pick_dtype(dtype: str | torch.dtype) -> torch.dtype:
    """The number type of weights and activations.

    Raises:
        ConfigError: it is neither float32 nor bfloat16.
    """
    chosen = DTYPES.get(dtype) if isinstance(dtype, str) else dtype
    if chosen is None or chosen not in DTYPES.values():
        raise ConfigError(f"dtype must be one of {', '.join(DTYPES)}, got {dtype!r}")
    return chosen

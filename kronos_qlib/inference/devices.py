"""Where and in which number type the network runs."""

from __future__ import annotations

import torch

from kronos_qlib.errors import ConfigError
from kronos_qlib.inference.products.int8_product import can_multiply_int8

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "int8": torch.int8}


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


def pick_dtype(dtype: str | torch.dtype, device: torch.device) -> torch.dtype:
    """The number type of weights and activations.

    Raises:
        ConfigError: it is none of these, or this machine has no int8 products.
    """
    chosen = DTYPES.get(dtype) if isinstance(dtype, str) else dtype
    if chosen is None or chosen not in DTYPES.values():
        raise ConfigError(f"dtype must be one of {', '.join(DTYPES)}, got {dtype!r}")
    if chosen == torch.int8 and device.type != "cpu":
        raise ConfigError(f"dtype int8 is for a CPU, the device is {device}; take 'bfloat16'")
    if chosen == torch.int8 and not can_multiply_int8():
        raise ConfigError(
            "dtype int8 needs a CPU with AVX-512 VNNI and a torch with oneDNN, one of which is "
            "missing here; take 'bfloat16' or 'float32'"
        )
    return chosen

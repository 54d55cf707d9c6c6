"""Torch devices by name."""

from __future__ import annotations

import torch

from rsd_policy.errors import RSDError, SetupError


def parse_device(name: str | torch.device) -> torch.device:
    """Torch device by name.

    Raises:
        RSDError: unknown name.
        SetupError: a GPU that is not there.
    """
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise RSDError(f"device: expected 'cpu' or 'cuda[:n]', got '{name}'") from error
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise SetupError(
            f"device '{name}': torch {torch.__version__} sees {torch.cuda.device_count()} CUDA GPUs; use device 'cpu'"
        )
    return device

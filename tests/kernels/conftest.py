"""Where the kernels are tested: on a GPU, or on a CPU in Triton's interpreter (TRITON_INTERPRET=1 and `triton`)."""

from __future__ import annotations

import os

import pytest
import torch

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"


@pytest.fixture
def device() -> torch.device:
    """Skips where kernels cannot run."""
    pytest.importorskip("triton")
    if torch.cuda.is_available() and not INTERPRETED:
        return torch.device("cuda")
    if not INTERPRETED:
        pytest.skip("needs a CUDA GPU, or TRITON_INTERPRET=1")
    return torch.device("cpu")

"""Both backbones in fused kernels give the hidden states of their plain form."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from rsd_policy import load_policy
from rsd_policy.backbones.base import Backbone
from rsd_policy.kernels import fused
from tests.backbones.openvla.random_checkpoint import write_checkpoint
from tests.policies import random_observation, small_policy

pytest.importorskip("triton")


def hidden(backbone: Backbone, device: torch.device, exit_layer: int) -> tuple[Tensor, Tensor]:
    """What the draft reads and what the main head reads, of two observations."""
    rng = np.random.default_rng(0)
    staged = backbone.stage([random_observation(rng, "pick up the bowl") for _ in range(2)])
    inputs = backbone.prepare({name: torch.from_numpy(array).to(device) for name, array in staged.items()})
    x = backbone.forward_layers(backbone.embed(inputs), 0, exit_layer)
    before = x.clone()
    early, late = backbone.exit_hidden(x), backbone.late_hidden(x, exit_layer)
    assert torch.equal(x, before), "the draft's input was overwritten by the layers behind it"
    return early, late


@torch.inference_mode()
@pytest.mark.parametrize("name", ["mini", "openvla", "openvla, causal"])
def test_fused_hidden_states_equal_plain_ones(device: torch.device, name: str, tmp_path: Path) -> None:
    torch.backends.cudnn.allow_tf32 = False  # convolutions of either layout of images then agree
    if name == "mini":
        backbone: Backbone = small_policy().to(device).backbone
        k = 2
    else:
        path = write_checkpoint(tmp_path, oft=name == "openvla")
        reference = load_policy(path, device)
        for module in reference.reference.modules():  # type: ignore[union-attr]
            module.float()
        backbone, k = reference.backbone, 1
    expected = hidden(backbone, device, k)
    with fused():
        given = hidden(backbone, device, k)
    for one, other in zip(given, expected, strict=True):
        assert one.shape == other.shape
        assert float((one - other).norm() / other.norm()) < 1e-5

"""Fewer bytes per weight than a checkpoint has."""

from __future__ import annotations

import torch

from rsd_policy.backbones.openvla.backbone import OpenVLABackbone
from rsd_policy.backbones.openvla.fp8 import quantise_linears
from rsd_policy.checkpoints.policy import Policy
from rsd_policy.errors import CheckpointError, SetupError

LEAST_CAPABILITY = (8, 9)
"""Of a GPU with fp8 products: Ada (4090) and Hopper."""


def in_fp8(policy: Policy) -> Policy:
    """Quantise the language model of an OpenVLA policy to fp8, in place; returns the policy.

    Hidden states then deviate more from float32's than in bfloat16 (docs/performance.md). What a gate was calibrated on
    holds no longer, so the policy loses its gate: calibrate it again.

    Args:
        policy: on a GPU, before an engine is made for it.

    Raises:
        CheckpointError: the backbone is not OpenVLA's.
        SetupError: no GPU with fp8 products.
    """
    backbone = policy.backbone
    if not isinstance(backbone, OpenVLABackbone):
        raise CheckpointError(f"policy '{policy.name}': expected an OpenVLA backbone for fp8, got '{policy.kind}'")
    stack = backbone.language_model.model
    device = stack.embed_tokens.weight.device
    found = torch.cuda.get_device_capability(device) if device.type == "cuda" else None
    if found is None or found < LEAST_CAPABILITY:
        raise SetupError(
            f"fp8: expected a policy on a GPU of compute capability 8.9 or more, got it on {device}"
            + (f" of {found[0]}.{found[1]}" if found else "")
            + "; use bfloat16"
        )
    quantise_linears(stack.layers)
    policy.drop_gate()
    return policy

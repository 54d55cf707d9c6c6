"""A policy of OpenVLA-OFT's shape with random weights, drawn on the device itself, and observations for it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np
import torch
from torch import nn

from rsd_policy.backbones.openvla.backbone import Layout, OpenVLABackbone
from rsd_policy.backbones.openvla.config import LlamaConfig, OpenVLAConfig
from rsd_policy.backbones.openvla.loading import allocate
from rsd_policy.backbones.openvla.preprocessing import ImagePreprocessing
from rsd_policy.backbones.openvla.reference import L1Policy
from rsd_policy.backbones.openvla.tokenizer import PromptTokenizer
from rsd_policy.backbones.openvla.units import Quantiles, Units
from rsd_policy.backbones.openvla.vision import TowerConfig, VisionConfig
from rsd_policy.checkpoints.manifest import DEFAULT_ACCEPTANCE
from rsd_policy.checkpoints.policy import Heads, Policy
from rsd_policy.codec import RFSQCodec
from rsd_policy.heads import DeviationPredictor, RFSQDraftModel, RFSQHead
from rsd_policy.observation import ACTION_DIM, PROPRIO_DIM, Observation

HORIZON = 8
"""T of the published checkpoints."""


@dataclass(frozen=True)
class Sizes:
    """What is built. The defaults are those of the public OpenVLA-OFT checkpoints, with heads of the default size."""

    exit_layer: int
    llama: LlamaConfig = field(default_factory=lambda: LlamaConfig(vocab_size=32064))  # 32000 and padding
    vision: VisionConfig = field(default_factory=VisionConfig)
    head_width: int = 1024
    head_layers: int = 8


def tiny_sizes(exit_layer: int) -> Sizes:
    """Two layers of everything, for a dry run on a CPU."""
    towers = (TowerConfig(16, 2, 2, 32, 4, True, True), TowerConfig(16, 2, 2, 32, attention_pool=True))
    llama = LlamaConfig(128, 32, 64, num_hidden_layers=2, num_attention_heads=2)
    return Sizes(exit_layer, llama, VisionConfig(*towers), head_width=32, head_layers=1)


class PromptOfLength(PromptTokenizer):
    """Ids of a prompt with as many tokens as asked for, whatever the instruction."""

    def __init__(self, tokens: int, vocabulary_size: int, bos_token: int) -> None:
        self._ids = (bos_token, *np.random.default_rng(0).integers(3, vocabulary_size, tokens).tolist())

    def __call__(self, instruction: str) -> tuple[int, ...]:
        """The start token and `tokens` more."""
        return self._ids


def build(sizes: Sizes, device: torch.device, dtype: torch.dtype, prompt_tokens: int) -> tuple[Policy, L1Policy]:
    """A policy with heads of ours and the published one with its own, on the same backbone."""
    config = OpenVLAConfig(sizes.llama, sizes.vision, norm_stats={})
    tokenizer = PromptOfLength(prompt_tokens, sizes.llama.vocab_size, sizes.llama.bos_token_id)
    units = Units(_unit_range(ACTION_DIM), _unit_range(PROPRIO_DIM))
    layout = Layout(parallel=True, proprio=True, horizon=HORIZON)

    def published() -> L1Policy:
        return L1Policy(OpenVLABackbone(config, layout, ImagePreprocessing(), tokenizer, units))

    reference = cast("L1Policy", _random(published, device, dtype))
    backbone = reference.backbone
    shape: dict[str, int] = {"hidden_size": backbone.hidden_size, "horizon": HORIZON, "slots": backbone.slots}
    head_sizes: dict[str, Any] = {**shape, "width": sizes.head_width, "num_layers": sizes.head_layers}
    head = cast("RFSQHead", _random(lambda: RFSQHead(**head_sizes), device, dtype))
    draft = cast("RFSQDraftModel", _random(lambda: RFSQDraftModel(**head_sizes), device, dtype))
    deviation = _random(lambda: DeviationPredictor(**shape, levels=draft.levels), device, torch.float32)
    manifest = {"architecture": {"backbone": "openvla"}, "acceptance": DEFAULT_ACCEPTANCE, "gate": None}
    heads = Heads(head, draft, RFSQCodec(torch.ones(ACTION_DIM)), sizes.exit_layer)
    return Policy("random", backbone, manifest, heads, deviation=cast("DeviationPredictor", deviation)), reference


def _unit_range(size: int) -> Quantiles:
    return Quantiles(-np.ones(size), np.ones(size), np.ones(size, dtype=np.bool_))


def _random(make: Callable[[], nn.Module], device: torch.device, dtype: torch.dtype) -> nn.Module:
    """Allocated and filled on the device: 15 GB of weights never pass through the host."""
    module = allocate(make, device, dtype)
    for name, parameter in module.named_parameters():
        if parameter.ndim >= 2:
            nn.init.normal_(parameter, std=0.02)
        else:
            nn.init.constant_(parameter, 0.0 if name.endswith("bias") else 1.0)
    return module


def parameters(policy: Policy, reference: L1Policy) -> dict[str, int]:
    """Numbers of parameters that are run, per part; a checkpoint's last vision blocks, which are not, are not in."""
    backbone = reference.backbone
    parts: dict[str, nn.Module] = {
        "vision": backbone.vision_backbone,
        "projector": backbone.projector,
        "language_model": backbone.language_model,
        "proprio_projector": cast("nn.Module", backbone.proprio_projector),
        "head": policy.head,
        "draft": policy.draft,
        "l1_head": reference.action_head,
    }
    return {name: sum(p.numel() for p in module.parameters()) for name, module in parts.items()}


def observations(count: int) -> list[Observation]:
    """Noise in LIBERO's 256 x 256 px on top of a different shade each, and random states."""
    rng = np.random.default_rng(1)

    def frame() -> np.ndarray[Any, np.dtype[np.uint8]]:
        shade = np.linspace(rng.integers(0, 120), rng.integers(130, 250), 256)[:, None, None]
        return np.clip(shade + rng.normal(0, 20, (256, 256, 3)), 0, 255).astype(np.uint8)

    return [
        Observation(
            {"agentview": frame(), "wrist": frame()},
            rng.uniform(-1, 1, PROPRIO_DIM).astype(np.float32),
            "pick up the bowl and place it on the plate",
        )
        for _ in range(count)
    ]

"""Small untrained policies with real modules, for tests of what does not depend on training."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from rsd_policy import Observation
from rsd_policy.backbones.mini import MiniConfig
from rsd_policy.checkpoints.loading import Policy, build_policy
from rsd_policy.observation import STATES

WORDS = ("bowl", "pick", "plate", "the", "up")
SCALE = [1.0, 1.0, 1.0, 0.5, 0.5, 0.5, 1.0]
"""Half-range of the codec per degree of freedom, action units."""


def calibrated_gate(threshold: float, alpha: float = 0.1) -> dict[str, object]:
    """Manifest entry of a gate with one threshold, as if calibration had shown that it keeps alpha."""
    rates = {"skip_rate": 0.5, "deviation_rate": 0.0, "chunk_deviation_rate": 0.0, "bound": alpha / 2}
    columns = {name: [value] for name, value in ({"threshold": threshold} | rates).items()}
    return {
        "alpha": alpha,
        "confidence": 0.95,
        "steps": 8,
        "thresholds": [{"alpha": alpha, "threshold": threshold} | rates],
        "curve": columns | {"confidence": 0.95},
        "calibration": {"calibrating_episodes": 80},
    }


def small_manifest(choice: str = "mean", state: str = "axis_angle", **changes: object) -> dict[str, Any]:
    """Manifest of a 4-layer backbone of width 32; `choice`: of the coarse digits; `state`: form of the robot's."""
    config = MiniConfig(
        width=32,
        num_layers=4,
        num_heads=2,
        image_size=32,
        stem_channels=(8, 16),
        grids=(2, 1),
        text_width=24,
        exit_readers=1,
        state=state,
        vocabulary=WORDS,
    )
    return {
        "format_version": 2,
        "architecture": {
            "backbone": "mini",
            "mini": config.to_manifest(),
            "head": {"width": 16, "num_layers": 1, "choice": choice},
            "draft": {"width": 16, "num_layers": 0, "choice": choice},
            "deviation": {"width": 16},
        },
        "codec": {"scale": SCALE, "limit": SCALE, "bins": [9, 3, 3, 3, 3, 3, 3, 3]},
        "proprio": {"mean": [0.0] * STATES[state], "std": [1.0] * STATES[state]},
        "exit_layer": 2,
        "acceptance": {"threshold": 0.7, "tolerance": [0.1] * 6},
        "gate": calibrated_gate(threshold=0.5),
        "accuracy": {},
        "provenance": {},
        "files": {},
        **changes,
    }


def small_policy(seed: int = 0, choice: str = "mean", **changes: object) -> Policy:
    """A policy whose every weight is random: zero-initialised residual branches would make all layers the identity."""
    torch.manual_seed(seed)
    policy = build_policy("small", small_manifest(choice, **changes))
    for module in policy.modules().values():
        for parameter in module.parameters():
            if parameter.ndim >= 2:
                torch.nn.init.normal_(parameter, std=0.3)
    return policy


def random_observation(rng: np.random.Generator, instruction: str = "Pick up the bowl") -> Observation:
    """Noise images of 64x48 pixels and a random state."""
    images = {name: rng.integers(0, 256, (64, 48, 3), dtype=np.uint8) for name in ("agentview", "wrist")}
    return Observation(images, rng.normal(size=8).astype(np.float32), instruction)

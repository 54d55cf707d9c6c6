"""Residual speculative decoding for vision-language-action policies.

The names below are the public API. They are loaded on first use, so that ROS nodes which only move messages do not pay
for importing torch.
"""

from __future__ import annotations

import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

# torch's CPU threads wait for each other some hundred times per inference and spin meanwhile, by default for long: when
# another process, such as a simulation, wants the same cores, they spin their time slices away. Measured on two cores
# with the first mini, ms a chunk on an idle machine / beside busy processes: default 59 / over 1000, never spinning
# 103 / 200, this 74 / 280.
# The variable is read when torch is loaded, hence set here.
os.environ.setdefault("GOMP_SPINCOUNT", "10000")

__version__ = "0.2.0"

if TYPE_CHECKING:
    from rsd_policy.checkpoints.loading import Policy, load_policy
    from rsd_policy.engine.inference import RSDInferenceEngine
    from rsd_policy.observation import ActionChunk, ChunkStats, Observation

_HOME = {
    "ActionChunk": "rsd_policy.observation",
    "ChunkStats": "rsd_policy.observation",
    "Observation": "rsd_policy.observation",
    "Policy": "rsd_policy.checkpoints.loading",
    "RSDInferenceEngine": "rsd_policy.engine.inference",
    "load_policy": "rsd_policy.checkpoints.loading",
}

__all__ = ["ActionChunk", "ChunkStats", "Observation", "Policy", "RSDInferenceEngine", "load_policy"]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(_HOME[name]), name)
    raise AttributeError(f"module 'rsd_policy' has no attribute '{name}'")

"""DAgger: a policy drives, the expert labels what the policy visits and takes over now and then.

The expert's actions in states that the policy itself reaches are what a policy trained on perfect demonstrations
lacks (Ross et al., 2011). A policy that acts in chunks needs whole chunks as labels: the expert drives the chunks in
between, from where the policy has ended up.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from rsd_policy.checkpoints.loading import load_policy
from rsd_policy.engine.inference import RSDInferenceEngine
from sim_bridge.libero_env import LiberoEnv

POLICY_SHARE = 0.75
"""Probability that the policy drives a chunk of its part: it drives four in a row on average, so its errors add up."""

LATEST = 0.8
"""The policy's part ends at the latest after this share of the task's step limit; its end is drawn evenly."""


class PolicyPilot:
    """Lets a policy drive most chunks of an episode's first part.

    Args:
        engine: of the policy.
        seed: draws who drives, and how long.
        max_steps: the task's step limit.
    """

    def __init__(self, engine: RSDInferenceEngine, seed: int, max_steps: int) -> None:
        self._engine = engine
        self.name = f"{engine.policy.name} {engine.policy.manifest['manifest_sha256'][:12]}"
        self._rng = np.random.default_rng([seed, 1])
        self.chunk_steps = engine.policy.horizon
        chunks = int(LATEST * max_steps) // self.chunk_steps
        self.last_step = self.chunk_steps * int(self._rng.integers(1, chunks + 1))
        engine.reset()

    def chunk(self, env: LiberoEnv) -> NDArray[np.float32] | None:
        """[chunk_steps, 7] of the policy, or None to leave a chunk to the expert."""
        if self._rng.random() >= POLICY_SHARE:
            return None
        return self._engine.infer(env.observe()).actions


@dataclass(frozen=True)
class PolicySource:
    """A pilot's policy, for worker processes (`sim_bridge.collection.PilotSource`).

    Attributes:
        checkpoint: name or directory, see `load_policy`. device: torch's name of it.
    """

    checkpoint: str
    device: str

    def load(self) -> Callable[[int, int], PolicyPilot]:
        """Load the policy, to run as evaluation runs it. Returns (seed, step limit) -> pilot."""
        engine = RSDInferenceEngine(load_policy(self.checkpoint, self.device), mode="baseline", device=self.device)
        return partial(PolicyPilot, engine)

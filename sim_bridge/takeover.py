"""DAgger's first part: a policy drives, then the expert takes over from where the policy ended up.

The expert's actions from states that the policy itself reaches are what a policy trained on perfect demonstrations
lacks (Ross et al., 2011).
"""

from __future__ import annotations

import numpy as np

from rsd_policy.checkpoints.loading import load_policy
from rsd_policy.engine.inference import RSDInferenceEngine
from sim_bridge.drive import Prefix
from sim_bridge.libero_env import LiberoEnv

LONGEST_PREFIX = 70
"""Control steps; a policy that imitates the expert has nearly solved a libero_spatial task by then."""


class PolicyPrefix:
    """Lets a policy drive a random number of steps.

    Args:
        checkpoint: name or directory, see `load_policy`.
        device: torch device of the policy.
    """

    def __init__(self, checkpoint: str, device: str) -> None:
        self._engine = RSDInferenceEngine(load_policy(checkpoint), mode="baseline", device=device)

    def for_seed(self, seed: int) -> Prefix:
        """The prefix of one episode; its length is drawn from the seed."""
        length = int(np.random.default_rng([seed, 1]).integers(1, LONGEST_PREFIX + 1))

        def prefix(env: LiberoEnv) -> bool:
            self._engine.reset()
            step = 0
            while step < length:
                actions = self._engine.infer(env.observe()).actions[: length - step]
                for i, action in enumerate(actions):
                    if env.step(action, render=i == len(actions) - 1):
                        return True
                    step += 1
            return False

        return prefix

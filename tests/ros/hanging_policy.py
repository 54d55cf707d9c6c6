"""A policy_node whose second inference of an episode never ends, for the tests; it dies with its supervisor."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator

from rsd_policy import Observation, RSDInferenceEngine, load_policy
from rsd_policy.nodes.inference_worker import Engine
from rsd_policy.nodes.policy_node import PolicyNode
from rsd_policy.nodes.runtime import run_node
from rsd_policy.observation import ActionChunk


class HangingEngine(RSDInferenceEngine):
    inferences = 0

    def reset(self) -> None:
        super().reset()
        self.inferences = 0

    def stream(self, observation: Observation) -> Iterator[ActionChunk]:
        self.inferences += 1
        while self.inferences == 2:
            time.sleep(60)
        yield from super().stream(observation)


class HangingPolicy(PolicyNode):
    def _make_engine(self) -> Engine:
        return HangingEngine(load_policy(self._policy))


if __name__ == "__main__":
    sys.exit(run_node(HangingPolicy))

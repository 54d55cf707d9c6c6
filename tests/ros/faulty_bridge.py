"""A sim_bridge whose simulation breaks on demand, for the tests: the seed of a reset chooses how."""

from __future__ import annotations

import sys

import mujoco
import numpy as np
from numpy.typing import NDArray
from rsd_msgs.srv import ResetEpisode

from rsd_policy.nodes.runtime import run_node
from sim_bridge.nodes.bridge_node import BridgeNode

EXPLODE = 1001
"""The second control step starts with joint velocities that no integrator survives."""

BREAK = 1002
"""The reset raises what nobody expects, as a lost graphics driver does."""


class FaultyBridge(BridgeNode):
    def _begin(self, request: ResetEpisode.Request) -> None:
        if request.seed == BREAK:
            raise RuntimeError("the graphics driver is gone")
        super()._begin(request)

    def _step(self, values: NDArray[np.float32], *, rendered: bool, due: bool) -> None:
        if self._status.seed == EXPLODE and self._status.step == 1:
            assert self._env is not None
            self._env.sim.data.qvel[:] = 1e12
        super()._step(values, rendered=rendered, due=due)


if __name__ == "__main__":
    mujoco.set_mju_user_warning(print)  # instead of writing MUJOCO_LOG.TXT where the tests run
    sys.exit(run_node(FaultyBridge))

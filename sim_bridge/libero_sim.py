"""robosuite's simulation of a LIBERO task, made faster without changing a bit of it.

Three things of robosuite 1.4 are replaced. Measured on one CPU core, for libero_spatial:

- *One physics pass per substep.* robosuite computes the forward dynamics three times in each 2 ms substep: before the
  controller, inside it, and in `mj_step`. MuJoCo offers the two halves apart: `mj_step1` gives the controller positions
  and velocities, `mj_step2` goes on from there with the torques. States, sensor values and contacts are bit-identical
  (tests/sim_bridge/test_libero_exactness.py); a control step takes about half the time.
- *Reset without loading the model again.* What an episode changes in the model is put back instead (1-7 s -> 30 ms).
- *Rendering on demand* (render_on_demand.py).
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from functools import cache
from typing import Any

import mujoco
import numpy as np
from numpy.typing import NDArray

from rsd_policy.errors import SimulationError
from sim_bridge.looks import VARIED
from sim_bridge.render_on_demand import RenderOnDemand

_CHANGED_BY_EPISODES = ("body_pos", "body_quat", "site_rgba", *VARIED)
"""Fields of the model that LIBERO writes (fixtures are placed by moving bodies, a lit burner is a visible site), and
those of its looks."""

_UNSTABLE = (mujoco.mjtWarning.mjWARN_BADQPOS, mujoco.mjtWarning.mjWARN_BADQVEL, mujoco.mjtWarning.mjWARN_BADQACC)


class ExactFastSimulation(RenderOnDemand):
    """Mixin placed before a LIBERO problem class (a robosuite environment)."""

    _loaded: dict[str, NDArray[Any]]
    _samplers: list[Any]

    def __init__(self, bddl_file: str, **options: Any) -> None:
        super().__init__(bddl_file, hard_reset=False, **options)
        self._samplers = list(self.object_property_initializers)
        for name, observable in self._observables.items():
            # poses of objects are taken from `sim` by who may know them; as observations they cost a tenth of a step
            if not name.startswith("robot0_") and observable.modality != "image":
                observable.set_enabled(False)
                observable.set_active(False)

    def _initialize_sim(self, xml_string: str | None = None) -> None:
        super()._initialize_sim(xml_string)
        self._loaded = {name: getattr(self.sim.model, name).copy() for name in _CHANGED_BY_EPISODES}

    def place(self) -> dict[str, Any]:
        """Reset as the first reset of a fresh environment does, drawing from numpy's global generator.

        Returns:
            robosuite's observations.

        Raises:
            SimulationError: no draw left room for every object.
        """
        from robosuite.utils.errors import RandomizationError

        for robot in self.robots:
            # the gripper ramps its command; the ramp lives in the gripper's model, not in the simulation
            robot.gripper.current_action = np.zeros(robot.gripper.dof)
        for attempt in range(100):
            for name, values in self._loaded.items():
                getattr(self.sim.model, name)[:] = values
            # robosuite's own reset loads the model, which appends the samplers of drawers and knobs once more, and
            # their number shifts every random draw after them: the first reset of a fresh environment has each twice
            self.object_property_initializers = self._samplers * (attempt + 2)
            try:
                observations: dict[str, Any] = super().reset()
                return observations
            except RandomizationError:
                continue
        raise SimulationError("placement: expected room for every object, found none in 100 draws; use another seed")

    def step(self, action: NDArray[np.float64]) -> tuple[dict[str, Any], float, bool, dict[str, Any]]:
        """One control step: robosuite's, with one physics pass per substep.

        Args:
            action: [7], OSC_POSE deltas and gripper.

        Returns:
            observations, reward, whether the goal is fulfilled, an empty dict.

        Raises:
            SimulationError: the physics became unstable; MuJoCo has put everything back to its model's defaults.
        """
        model, data = self.sim.model._model, self.sim.data._data
        unstable = _instabilities(data)
        self.timestep += 1
        with _no_forward(self.sim):
            for substep in range(int(self.control_timestep / self.model_timestep)):
                mujoco.mj_step1(model, data)
                self._pre_action(action, substep == 0)
                mujoco.mj_step2(model, data)
                self._update_observables()
        self.cur_time += self.control_timestep
        reward, _, info = self._post_action(action)
        if _instabilities(data) != unstable:
            raise SimulationError("physics: expected a stable simulation, MuJoCo reports infinite or huge values")
        # robosuite leaves the poses of bodies 2 ms behind the joints; whoever plans from them wants those of now.
        # A forward pass changes neither the joints nor the solver's warm start, so the next step is the same
        self.sim.forward()
        return self._get_observations(), reward, reward > 0, info


def _instabilities(data: Any) -> tuple[int, ...]:
    return tuple(int(data.warning[kind].number) for kind in _UNSTABLE)


@contextlib.contextmanager
def _no_forward(sim: Any) -> Iterator[None]:
    """Make `sim.forward()` do nothing meanwhile: the controller calls it on a state that is already computed."""
    sim.forward = lambda: None
    try:
        yield
    finally:
        del sim.forward


@cache
def simulation_class(problem: type) -> type:
    """The fast subclass of a LIBERO problem class. It keeps the name, which LIBERO compares with the task file's."""
    return type(problem)(problem.__name__, (ExactFastSimulation, problem), {})

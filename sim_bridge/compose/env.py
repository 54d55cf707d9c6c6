"""A composed task as an environment: random placements that are stable, in reach, and like no shipped state."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from rsd_policy.errors import SimulationError
from sim_bridge.compose.layout import WORKSPACE
from sim_bridge.compose.task import MAX_STEPS, SUITE, compose
from sim_bridge.compose.wording import Reference, instruction
from sim_bridge.expert.scene import Scene
from sim_bridge.held_out import APART, distance_to_shipped
from sim_bridge.libero_assets import TaskSpec
from sim_bridge.libero_env import ARM_START_STD, LiberoEnv

DRAWS = 40
"""Placements tried per seed."""

REACH = (0.30, 0.80)
"""Horizontal distances from the robot's base between which what is moved stands, m."""

GAP, DROP, TRIES = 0.01, 0.005, 200
"""Room between things, height from which they are dropped, m; and draws of a place for each."""

TURN, TURNED = 0.8, 0.5
"""Largest turn of an object from how LIBERO sets it down, rad, and how often there is one."""

SLID, TIPPED, ROLLS = 0.03, 0.5, 0.03
"""An object that stands so far off in the plane (m), or so turned (rad), from how it was put, slid or fell when it was
dropped onto the table; one that moves so fast (m/s) after the wait steps still does."""


class ComposedEnv(LiberoEnv):
    """Composed task `number`. Its `instruction` says what is meant in the present placement: read it after `reset`.

    Args:
        number: of the task.
        image_size, render: as for `LiberoEnv`.
    """

    def __init__(self, number: int, *, image_size: int = 256, render: bool = True) -> None:
        self.composed = compose(number)
        self._folder = tempfile.TemporaryDirectory(prefix="rsd_policy-composed-")
        definition = Path(self._folder.name) / f"{SUITE}_{number:06d}.bddl"
        definition.write_text(self.composed.definition, encoding="utf-8")
        spec = TaskSpec(SUITE, number, definition.stem, "", definition, definition.with_suffix(".pruned_init"))
        self._open(spec, np.empty((0, 0)), MAX_STEPS, image_size=image_size, render=render)

    def reset(self, init_state: int | None = None, seed: int = 0, *, looks: bool = False) -> None:
        """Start an episode from a random placement; there are no canonical ones.

        Raises:
            SimulationError: an initial state was asked for, or no placement among `DRAWS` was usable.
        """
        rng = np.random.default_rng([self.task, int(seed)])
        for _ in range(DRAWS):
            super().reset(init_state, seed=int(rng.integers(2**32)), looks=looks)
            if self._usable():
                try:
                    self.instruction = instruction(self.composed.goal, self._reference(rng), rng)
                    return
                except SimulationError:
                    continue  # two things alike, and nothing tells them apart
        self._steps = None
        raise SimulationError(f"composed task {self.task}, seed {seed}: expected a usable placement, found none")

    def _randomize(self) -> NDArray[np.float64]:
        raw = self.raw
        self._spread()
        raw.sim.forward()
        self._put = {name: self._pose(name) for name in raw.objects_dict}
        state: NDArray[np.float64] = raw.sim.get_state().flatten()
        joints = 1 + np.asarray(raw.robots[0]._ref_joint_pos_indexes)  # after the time
        state[joints] += np.random.normal(0.0, ARM_START_STD, len(joints))
        return state

    def _spread(self) -> None:
        """Give everything that may stand anywhere a place of its own, drawing from numpy's global generator.

        LIBERO's sampler takes everything, from a ramekin to a cabinet, for 25 mm wide, and drops it from 7 cm.
        """
        raw, task = self.raw, self.composed
        scene = Scene(raw)
        table = scene.support_height(float("inf"))
        points = {name: scene.points(name) - scene.position(name) for name in raw.objects_dict}
        radius = {name: float(np.linalg.norm(p[:, :2], axis=1).max()) for name, p in points.items()}
        placed = (*raw.fixtures_dict, *task.layout.settled, *task.layout.fixed)
        standing = [scene.points(name)[:, :2] for name in placed]
        low_x, low_y, high_x, high_y = WORKSPACE[task.scene.problem]
        for name in sorted(set(points) - set(placed), key=lambda name: (-radius[name], name)):
            others = cKDTree(np.concatenate(standing)) if standing else None
            for _ in range(TRIES):
                place = np.random.uniform((low_x, low_y), (high_x, high_y))
                if others is None or others.query(place)[0] - radius[name] > GAP:
                    break
            standing.append(points[name][:, :2] + place)
            joint = raw.objects_dict[name].joints[-1]
            pose = raw.sim.data.get_joint_qpos(joint).copy()
            yaw = np.random.uniform(-TURN, TURN) if np.random.random() < TURNED else 0.0
            pose[:3] = *place, table - float(points[name][:, 2].min()) + DROP
            pose[3:] = _about_z(yaw, pose[3:])
            raw.sim.data.set_joint_qpos(joint, pose)

    def _pose(self, name: str) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Position [3], m, and rotation [3, 3] of an object or fixture."""
        data, body = self.sim.data, self.raw.obj_body_id[name]
        return data.body_xpos[body].copy(), data.body_xmat[body].reshape(3, 3).copy()

    def _usable(self) -> bool:
        raw = self.raw
        if raw._check_success() or not all(self._stands(name) for name in raw.objects_dict):
            return False
        loose = [raw.get_object(name) for name in raw.objects_dict if name not in self.composed.layout.settled]
        fixtures = [raw.get_object(name) for name in raw.fixtures_dict]
        if any(raw.check_contact(thing, fixture) for thing in loose for fixture in fixtures):
            return False  # a stove is so flat that LIBERO's sampler puts a pan onto its knob
        positions = {name: self._pose(name)[0] for name in raw.objects_dict}
        base = raw.sim.data.body_xpos[raw.sim.model.body_name2id(raw.robots[0].robot_model.root_body)]
        for state in self.composed.goal.states:
            for name in state[1:]:
                if name in positions:
                    away = float(np.linalg.norm((positions[name] - base)[:2]))
                    if not REACH[0] < away < REACH[1]:
                        return False
        return distance_to_shipped(self.composed.scene.problem, positions) > APART

    def _stands(self, name: str) -> bool:
        """An object stands where it was put, upright and still."""
        (place, rotation), (before, upright) = self._pose(name), self._put[name]
        cosine = (np.trace(upright.T @ rotation) - 1.0) / 2.0
        speed = float(np.linalg.norm(self.sim.data.cvel[self.raw.obj_body_id[name]][3:]))
        slid = float(np.linalg.norm((place - before)[:2]))
        return slid < SLID and float(cosine) > np.cos(TIPPED) and speed < ROLLS

    def _reference(self, rng: np.random.Generator) -> Reference:
        raw = self.raw
        positions = {name: self._pose(name)[0] for name in (*raw.objects_dict, *raw.fixtures_dict)}
        categories = {**self.composed.scene.fixtures, **self.composed.layout.objects}
        return Reference(categories, positions, self.composed.layout.settled, rng)

    def close(self) -> None:
        """Free the simulation and the task's definition."""
        super().close()
        self._folder.cleanup()


def _about_z(angle: float, quaternion: NDArray[np.float64]) -> NDArray[np.float64]:
    """A quaternion (wxyz) turned about the vertical."""
    w, x, y, z = quaternion
    c, s = np.cos(angle / 2), np.sin(angle / 2)
    return np.array([c * w - s * z, c * x - s * y, c * y + s * x, c * z + s * w])


def open_task(suite: str, task: int) -> LiberoEnv:
    """The environment of a LIBERO task, or of composed task number `task` where the suite is `SUITE`."""
    return ComposedEnv(task) if suite == SUITE else LiberoEnv(suite, task)

"""ScriptedExpert: pick and place from privileged state, through the action that a policy has."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from sim_bridge.expert import grasp as grasping
from sim_bridge.expert.grasp import Grasp
from sim_bridge.expert.heights import HeightMap, along
from sim_bridge.expert.scene import Goal, Scene

if TYPE_CHECKING:
    from sim_bridge.libero_env import LiberoEnv

Array = NDArray[np.float64]

METRES_PER_UNIT = 0.05
RADIANS_PER_UNIT = 0.5
"""What +-1 of a translation or rotation command means (robosuite's OSC_POSE)."""

GAIN = 1.8
TURN_GAIN = 0.8
LEAD = 0.08
"""Command / error, and how far ahead the hand's motion is extrapolated to get the error, s. Measured with a stretched
arm: without the lead the hand drifts 2 cm past its goal; gains of 3 or a lead of 0.15 s do not settle."""

LEAN_FROM, LEAN_RATE, MAX_LEAN = 0.66, 2.5, 0.3
"""The hand leans outwards from this distance to the robot's base on (m), at this rate (rad/m), at most so far (rad)."""

OPEN, CLOSE = -1.0, 1.0

SLOPE = 0.7
"""Rise over run that the hand can do while it travels at full speed."""

MARGIN = 0.015
"""Height kept above obstacles in transit, m."""

ALIGNED = 0.012
"""Horizontal distance within which the hand may go down to the grasp, or the object down to its place, m."""

FINGERS_STOPPED = 0.03
"""Speed below which the fingers count as stopped, m/s; they close at 0.1 m/s."""

MAX_CLOSE_STEPS = 16
"""The fingers need 8 steps from fully open to fully closed; without a grip after this many the attempt failed."""

LOST_STEPS = 3
"""Control steps without contact at both fingers after which an object counts as dropped."""


class ScriptedExpert:
    """Pick and place for tasks whose goal is to put an object on or in something.

    Each action is a function of the simulation's present state and of the phase, so that the expert goes on sensibly
    after a disturbance. Phases: "approach" (down to the grasp), "close", "carry" (lift, transport, lower), "release",
    "retreat".

    Args:
        env: the environment to read; the expert never steps it.
        max_attempts: grasps to try before giving up; then `failed` is True and the actions open the gripper.
    """

    def __init__(self, env: LiberoEnv, *, max_attempts: int = 1) -> None:
        if max_attempts < 1:
            raise ValueError(f"max_attempts: expected at least 1, got {max_attempts}")
        self._env = env
        self._max_attempts = max_attempts
        self.failed = False
        self.phase = "approach"
        self._scene: Scene | None = None

    def reset(self) -> None:
        """Look at the scene anew and choose the phase that fits it: at the start of an episode, or at any moment of it.

        Raises:
            SimulationError: the task is not a pick-and-place task.
        """
        self._scene = Scene(self._env.raw)
        self._goal: Goal = self._scene.open_goal()
        self._attempt = 0
        self.failed = False
        if self._scene.held(self._goal.target):
            self._start_carry(self._scene)
        else:
            self._start_approach(self._scene)

    def act(self) -> NDArray[np.float32]:
        """The next action for the present state: float32 [7] in [-1, 1]."""
        if self._scene is None:
            self.reset()
        assert self._scene is not None
        self._scene.refresh()
        action = getattr(self, f"_{self.phase}")(self._scene)
        return np.clip(action, -1.0, 1.0).astype(np.float32)

    # -- approach: to the grasp, above everything until aligned

    def _start_approach(self, scene: Scene) -> None:
        target = self._goal.target
        points, obstacles, position = scene.points(target), scene.obstacle_points(target), scene.position(target)
        grasps = grasping.candidates(position, points, obstacles)
        self._grasp: Grasp = grasps[self._attempt % len(grasps)]
        base = scene.support_height(float(points[:, 2].min()) + 0.01)
        self._hand_map = HeightMap(np.concatenate([points, obstacles]), base).grown(grasping.FINGER_OUTER + 0.006)
        self._target_top = float(points[:, 2].max())
        self.phase = "approach"

    def _approach(self, scene: Scene) -> Array:
        hand = scene.hand_position()
        site = scene.position(self._goal.target) + self._grasp.offset
        turn = _turn(scene, self._grasp.angle)
        distance = float(np.linalg.norm(site[:2] - hand[:2]))
        # once the fingers are astride, a small drift must not send the hand up again
        astride = hand[2] - grasping.TIP_BELOW < self._target_top
        aligned = distance < ALIGNED * (1.5 if astride else 1.0) and np.linalg.norm(turn) < (0.3 if astride else 0.15)
        if aligned and abs(hand[2] - site[2]) < 0.010 and distance < 0.008 and np.linalg.norm(turn) < 0.1:
            self.phase, self._count, self._grip, self._hold = "close", 0, 0, site
            return self._close(scene)
        path, s = along(hand[:2], site[:2])
        required = self._hand_map.at(path) + grasping.TIP_BELOW + MARGIN
        if aligned:
            required[:] = site[2]
        ahead = _ahead(scene)
        return _command(site[:2] - ahead[:2], ahead[2], required, s, turn, OPEN)

    # -- close: hold still until both fingers grip

    def _close(self, scene: Scene) -> Array:
        self._count += 1
        # a finger that still moves has only touched the object, and would slip off when it is lifted
        if scene.held(self._goal.target) and scene.finger_speed() < FINGERS_STOPPED:
            self._grip += 1
        if self._grip >= 2:
            self._start_carry(scene)
            return self._carry(scene)
        if self._count > MAX_CLOSE_STEPS:
            return self._next_attempt(scene)
        # the hand arrives moving and would drift off without a command
        error = GAIN * (self._hold - _ahead(scene)) / METRES_PER_UNIT
        turn = TURN_GAIN * _turn(scene, self._grasp.angle) / RADIANS_PER_UNIT
        return _action(error, turn, CLOSE)

    # -- carry: lift, transport and lower, keeping the object-to-hand offset

    def _start_carry(self, scene: Scene) -> None:
        target = self._goal.target
        points, obstacles, position = scene.points(target), scene.obstacle_points(target), scene.position(target)
        base = scene.support_height(float(points[:, 2].min()) + 0.01)
        heights = HeightMap(obstacles, base)
        radius = float(np.linalg.norm(points[:, :2] - position[:2], axis=1).max())
        self._object_map = heights.grown(radius + 0.006)
        self._hand_map = heights.grown(0.05)
        self._below = float(position[2] - points[:, 2].min())
        self._angle = _finger_angle(scene.hand_rotation())
        self._lost = 0
        self._place_height = self._find_place_height(scene)
        self.phase = "carry"

    def _find_place_height(self, scene: Scene) -> float:
        """Height of the object's origin when it has arrived, m."""
        goal = self._goal
        place = scene.place_position(goal)
        container = scene.points(goal.place_body)
        if goal.predicate == "on":
            inner = container[np.linalg.norm(container[:, :2] - place[:2], axis=1) < 0.03]
            floor = float(inner[:, 2].max()) if len(inner) else float(place[2])
            # aim 8 mm too deep: the object must touch
            return floor + self._below - 0.008
        floor = float(container[:, 2].min())
        hand_above = float(scene.hand_position()[2] - scene.position(goal.target)[2])
        palm_limit = float(container[:, 2].max()) - grasping.PALM_ABOVE + 0.01 - hand_above
        return max(floor + self._below + 0.02, palm_limit)

    def _carry(self, scene: Scene) -> Array:
        hand = scene.hand_position()
        position = scene.position(self._goal.target)
        self._lost = 0 if scene.held(self._goal.target) else self._lost + 1
        if self._lost >= LOST_STEPS:
            return self._next_attempt(scene)
        place = scene.place_position(self._goal)
        error = place[:2] - position[:2]
        distance = float(np.linalg.norm(error))
        turn = _turn(scene, self._angle)
        if distance < 0.02 and position[2] < self._place_height + 0.012 and self._goal.predicate == "in":
            self.phase, self._count = "release", 0
            return self._release(scene)
        if distance < 0.02 and position[2] < self._place_height + 0.004:
            self.phase, self._count = "release", 0
            return self._release(scene)
        path, s = along(position[:2], place[:2])
        above = hand - position
        required = np.maximum(
            self._object_map.at(path) + self._below + MARGIN,
            self._hand_map.at(path + above[:2]) + grasping.TIP_BELOW + MARGIN - above[2],
        )
        if distance < ALIGNED * 1.5:
            required[:] = self._place_height
        lead = _ahead(scene) - hand
        return _command(error - lead[:2], position[2] + lead[2], required, s, turn, CLOSE)

    # -- release and retreat

    def _release(self, scene: Scene) -> Array:
        self._count += 1
        if self._count > 4 and not scene.held(self._goal.target):
            self.phase, self._count = "retreat", 0
        return _action(np.zeros(3), np.zeros(3), OPEN)

    def _retreat(self, scene: Scene) -> Array:
        self._count += 1
        if self._count > 10:
            return self._next_attempt(scene)
        return _action(np.array([0.0, 0.0, 1.0]), np.zeros(3), OPEN)

    def _next_attempt(self, scene: Scene) -> Array:
        self._attempt += 1
        if self._attempt >= self._max_attempts:
            self.failed = True
            self.phase = "retreat"
            self._count = 0
            return _action(np.zeros(3), np.zeros(3), OPEN)
        self._start_approach(scene)
        return self._approach(scene)


def _ahead(scene: Scene) -> Array:
    """[3], where the hand will be in a moment if it goes on as it does."""
    return scene.hand_position() + LEAD * scene.hand_velocity()


def _action(translation: Array, rotation: Array, gripper: float) -> Array:
    return np.concatenate([translation, rotation, [gripper]])


def _command(error: Array, height: float, required: Array, s: Array, turn: Array, gripper: float) -> Array:
    """Go towards `error` (horizontal, [2], m) as fast as the heights allow.

    Args:
        height: present height, m.
        required: [N], height needed at each point of the way, m. s: [N], how far ahead the point is, m.
        turn: [3], rotation still to do, rad.
    """
    wanted = float(required.max())
    lacking = float(np.max(required - SLOPE * s)) - height
    go = np.clip(1.0 - (lacking - 0.005) / 0.02, 0.0, 1.0)
    planar = GAIN * error / METRES_PER_UNIT
    planar = go * planar / max(1.0, float(np.abs(planar).max()))
    vertical = GAIN * (wanted - height) / METRES_PER_UNIT
    rotation = TURN_GAIN * turn / RADIANS_PER_UNIT
    rotation = rotation / max(1.0, float(np.abs(rotation).max()))
    return _action(np.append(planar, vertical), rotation, gripper)


def _finger_angle(rotation: Array) -> float:
    """Direction of the fingers' opening in the horizontal plane, rad."""
    return float(np.arctan2(rotation[1, 0], rotation[0, 0]))


def _turn(scene: Scene, angle: float) -> Array:
    """Rotation vector [3] (world frame, rad) that turns the hand downwards with its fingers opening along `angle`.

    Far from the robot the hand leans outwards, which brings the wrist nearer: with a vertical hand the far side of the
    table is at the arm's full stretch, a singularity where the hand drifts and the elbow runs into its limit.
    """
    rotation = scene.hand_rotation()
    reach = scene.hand_position()[:2] - scene.base_position()[:2]
    distance = float(np.linalg.norm(reach))
    lean = float(np.clip(LEAN_RATE * (distance - LEAN_FROM), 0.0, MAX_LEAN))
    fingers = np.array([np.cos(angle), np.sin(angle), 0.0])
    # leaning along the fingers' opening would put one finger lower than the other
    lean *= 1.0 - abs(float(fingers[:2] @ reach)) / distance
    down = np.append(np.sin(lean) * reach / distance, -np.cos(lean))
    fingers -= fingers @ down * down
    fingers /= np.linalg.norm(fingers)
    wanted = np.stack([fingers, np.cross(down, fingers), down], axis=1)
    difference = wanted @ rotation.T
    vector = np.array(
        [
            difference[2, 1] - difference[1, 2],
            difference[0, 2] - difference[2, 0],
            difference[1, 0] - difference[0, 1],
        ]
    )
    sine, cosine = np.linalg.norm(vector) / 2, (np.trace(difference) - 1) / 2
    if sine < 1e-6:
        return np.zeros(3)
    return vector / (2 * sine) * float(np.arctan2(sine, cosine))

"""Commands that move the hand: towards a goal as fast as the obstacles allow, fingers down."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from sim_bridge.expert.scene import Scene

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

STRETCHED_FROM, STRETCHED_TO = -0.5, -0.1
"""Elbow angles between which turning gives way to moving, rad."""

OPEN, CLOSE = -1.0, 1.0

SLOPE = 0.7
"""Rise over run that the hand can do while it travels at full speed."""

CLEAR = 0.035
"""Height kept above obstacles by what the hand carries, and by a hand that pushes, m: with 15 mm, a policy that
imitates it, 10 to 20 mm lower, struck the edges."""

HEADROOM = 0.045
"""The same for an open hand on its way to a grasp, m: one that has just let something go leaves it straight upwards
until its tips are 20 mm clear, one that arrives comes down from there. A policy that imitates it is up to 10 mm off."""

YIELD = (0.005, 0.025)
"""Heights lacking from which on the hand moves sideways more slowly, and not at all, m."""


def ahead(scene: Scene) -> Array:
    """[3], where the hand will be in a moment if it goes on as it does."""
    return scene.hand_position() + LEAD * scene.hand_velocity()


def action(translation: Array, rotation: Array, gripper: float) -> Array:
    """[7] in the units of OSC_POSE, not clipped."""
    return np.concatenate([translation, rotation, [gripper]])


def hold(scene: Scene, goal: Array, turn: Array, gripper: float) -> Array:
    """[7], keep the hand at `goal` ([3], m), turning by `turn` ([3], rad).

    Even a hand that is there needs it: it arrives moving and would drift off without a command.
    """
    return action(GAIN * (goal - ahead(scene)) / METRES_PER_UNIT, TURN_GAIN * turn / RADIANS_PER_UNIT, gripper)


def travel(error: Array, height: float, required: Array, s: Array, turn: Array, gripper: float) -> Array:
    """[7], go towards `error` (horizontal, [2], m) as fast as the heights allow.

    Args:
        height: present height, m.
        required: [N], height needed at each point of the way, m. s: [N], how far ahead the point is, m.
        turn: [3], rotation still to do, rad.
    """
    wanted = float(required.max())
    planar = GAIN * error / METRES_PER_UNIT
    planar = _free(float(np.max(required - SLOPE * s)) - height) * planar / max(1.0, float(np.abs(planar).max()))
    vertical = GAIN * (wanted - height) / METRES_PER_UNIT
    rotation = TURN_GAIN * turn / RADIANS_PER_UNIT
    # fingers around something that was let go would turn it, or push it over
    rotation = _free(float(required[0]) - height) * rotation / max(1.0, float(np.abs(rotation).max()))
    return action(np.append(planar, vertical), rotation, gripper)


def _free(lacking: float) -> float:
    """Share of its speed that a hand keeps which is so much (m) too low."""
    return float(np.clip((YIELD[1] - lacking) / (YIELD[1] - YIELD[0]), 0.0, 1.0))


STRAIGHT, BENT = -0.09, -0.7
"""Elbow angles, rad: stretched to its limit, and bent enough to move freely again."""

FOLDED, UNFOLDED = -2.95, -2.8
"""The same at its other limit of -3.07: folded onto it close to the base, and open enough."""

JAMMED_SPEED, JAMMED_COMMAND, JAMMED_STEPS = 0.1, 0.3, 5
"""An arm at a limit is jammed when the hand is slower than this times the command, m/s, though told to move at least so
much for so many control steps. A free hand moves at 0.26 m/s; the wrist alone, folding, moves it at 0.08 m/s."""


class JamDetector:
    """Tells when the arm does not move because its elbow is at a limit: no force at the hand bends a straight one, and
    a folded one yields to none that would fold it further."""

    def __init__(self) -> None:
        self._steps = 0
        self._bending = False
        self._unfolding = False

    def jammed(self, scene: Scene, command: Array) -> bool:
        """The arm needs `free` instead of the command ([7])."""
        told = min(1.0, float(np.abs(command[:3]).max()))
        slow = float(np.linalg.norm(scene.hand_velocity())) < JAMMED_SPEED * told
        elbow = scene.elbow()
        stuck = (elbow > STRAIGHT or elbow < FOLDED) and slow and told > JAMMED_COMMAND
        self._steps = self._steps + 1 if stuck else 0
        jammed = self._steps >= JAMMED_STEPS
        self._bending = (jammed and elbow > STRAIGHT) or (self._bending and elbow > BENT)
        self._unfolding = (jammed and elbow < FOLDED) or (self._unfolding and elbow < UNFOLDED)
        return self._bending or self._unfolding


def free(scene: Scene, gripper: float) -> Array:
    """[7], frees a jammed arm. Turning the fingers towards the base bends a straight elbow, which forces at the hand do
    not; a folded one opens as the hand moves away from the base. Rising folds it further: the shoulder is above."""
    reach = scene.hand_position()[:2] - scene.base_position()[:2]
    outwards = reach / np.linalg.norm(reach)
    if scene.elbow() < BENT:
        return action(np.append(outwards, 0.0), np.zeros(3), gripper)
    return action(np.array([0.0, 0.0, 0.4]), np.array([-outwards[1], outwards[0], 0.0]), gripper)


def finger_angle(rotation: Array) -> float:
    """Direction of the fingers' opening in the horizontal plane, rad."""
    return float(np.arctan2(rotation[1, 0], rotation[0, 0]))


def turn_to(scene: Scene, angle: float) -> Array:
    """Rotation vector [3] (world frame, rad) that turns the hand downwards with its fingers opening along `angle`.

    Far from the robot the hand leans outwards, which brings the wrist nearer: with a vertical hand the far side of the
    table is at the arm's full stretch, a singularity where the hand drifts and the elbow runs into its limit.
    """
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
    return turning_share(scene) * rotation_vector(wanted @ scene.hand_rotation().T)


def turning_share(scene: Scene) -> float:
    """Share of a rotation to command now: less of it the straighter the elbow.

    Turning a hand outwards at full stretch pushes it out further, as strongly as the command to come back pulls.
    """
    return float(np.clip((STRETCHED_TO - scene.elbow()) / (STRETCHED_TO - STRETCHED_FROM), 0.2, 1.0))


def rotation_vector(matrix: Array) -> Array:
    """[3, 3] rotation -> [3] axis times angle, rad; angles near pi lose precision."""
    vector = np.array([matrix[2, 1] - matrix[1, 2], matrix[0, 2] - matrix[2, 0], matrix[1, 0] - matrix[0, 1]])
    sine, cosine = np.linalg.norm(vector) / 2, (np.trace(matrix) - 1) / 2
    if sine < 1e-6:
        return np.zeros(3)
    return vector / (2 * sine) * float(np.arctan2(sine, cosine))

"""Open a drawer: grip the bar of its handle with a level hand, one finger above and one below, and pull."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from sim_bridge.expert.motion import (
    CLOSE,
    GAIN,
    METRES_PER_UNIT,
    OPEN,
    RADIANS_PER_UNIT,
    TURN_GAIN,
    action,
    ahead,
    rotation_vector,
    turning_share,
)
from sim_bridge.expert.pick_place import FINGERS_OPEN
from sim_bridge.expert.scene import Goal, Scene

Array = NDArray[np.float64]

BEFORE = 0.12
"""Distance in front of the handle at which the hand lines up, m."""

GRIPPED = 0.025
"""Distance between fingers that hold the bar (0.016 m thick), m."""

PULL = 0.06
"""How far ahead of the hand the pull aims, m."""


RISE = 0.05
"""A hand lower than this below the handle's height approaches it more slowly, m; from twice this on it only rises."""

TOWARDS, FREE = 0.44, 0.1
"""A hand whose palm points towards the drawer by more than this (cosine) is still level from opening it; nearer to the
handle than FREE, m, it is still around the bar."""


class OpenDrawer:
    """Pulls the drawer of the region `goal.target` open.

    Phases follow from the state: "approach" (lines up in front of the handle, turning level), "advance", "close",
    "pull".
    """

    def __init__(self, scene: Scene, goal: Goal) -> None:
        self.goal = goal
        self.misses = 0
        self.phase = "approach"

    def act(self, scene: Scene) -> Array:
        """[7], the action for the present state."""
        bar, outwards = scene.handle(self.goal.target)
        hand, opening = scene.hand_position(), scene.finger_opening()
        # of the two level poses the one that the wrist reaches by a quarter turn from its rest
        fingers = np.array([0.0, 0.0, -np.sign(outwards[1] + 1e-9)])
        wanted = np.stack([fingers, np.cross(-outwards, fingers), -outwards], axis=1)
        turn = rotation_vector(wanted @ scene.hand_rotation().T)
        offset = hand - bar
        before = float(offset @ outwards)
        aside = float(np.linalg.norm(offset - before * outwards))
        level = float(np.linalg.norm(turn))
        there = abs(before) < 0.03 and aside < 0.03 and level < 0.4
        gripper, goal = OPEN, bar + BEFORE * outwards
        if there and opening < GRIPPED:
            self.phase, gripper, goal = "pull", CLOSE, bar + (before + PULL) * outwards
        elif (there and opening < FINGERS_OPEN) or (abs(before) < 0.012 and aside < 0.02 and level < 0.2):
            self.phase, gripper, goal = "close", CLOSE, bar
        elif aside < (0.03 if before < 0.8 * BEFORE else 0.015) and level < 0.2 and opening > FINGERS_OPEN:
            self.phase, goal = "advance", bar
        else:
            self.phase = "approach"
        error = GAIN * (goal - ahead(scene)) / METRES_PER_UNIT
        rotation = TURN_GAIN * turn / RADIANS_PER_UNIT
        if self.phase == "approach":
            # a hand that has just set something down beside the drawer rises first
            risen = np.clip(2.0 - (goal[2] - hand[2]) / RISE, 0.0, 1.0)
            error[:2], rotation = risen * error[:2], risen * turning_share(scene) * rotation
        return action(
            error / max(1.0, float(np.abs(error).max())), rotation / max(1.0, float(np.abs(rotation).max())), gripper
        )

    def lowered(self, scene: Scene) -> bool:
        """An open drawer may be let go at once."""
        return True


def withdrawing(scene: Scene, region: str) -> bool:
    """The hand is level: it must leave the handle and turn its palm down before it does anything else."""
    return bool(-scene.hand_rotation()[:, 2] @ scene.handle(region)[1] > TOWARDS)


def withdraw(scene: Scene, region: str) -> Array:
    """[7], straight back from the handle; then the shortest turn that brings the palm down, going towards the base.

    On the spot the turn would stretch the arm.
    """
    palm = scene.hand_rotation()[:, 2]
    bar, _ = scene.handle(region)
    hand, base = scene.hand_position(), scene.base_position()
    if float(np.linalg.norm(hand - bar)) < FREE:
        return action(-palm, np.zeros(3), OPEN)
    axis = np.cross(palm, [0.0, 0.0, -1.0])
    turn = TURN_GAIN * axis / max(1e-6, float(np.linalg.norm(axis))) * np.arccos(-palm[2]) / RADIANS_PER_UNIT
    inwards = np.append((base - hand)[:2], 0.0)
    return action(inwards / float(np.linalg.norm(inwards)), turn / max(1.0, float(np.abs(turn).max())), OPEN)

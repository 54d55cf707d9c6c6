"""Turn a knob: grip its ridge from above and turn the hand."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from sim_bridge.expert import grasp as grasping
from sim_bridge.expert.heights import HeightMap, along
from sim_bridge.expert.motion import CLOSE, HEADROOM, OPEN, ahead, finger_angle, hold, travel, turn_to
from sim_bridge.expert.pick_place import ALIGNED, FINGERS_OPEN
from sim_bridge.expert.scene import Goal, Scene

Array = NDArray[np.float64]

RIDGE_DEPTH = 0.022
"""How far the site goes below the top of the ridge, m."""

EMPTY = 0.01
"""Distance between the fingers below which there is no ridge between them, m."""

SLACK = 0.01
"""Fingers nearer together than the ridge's width and this grip it, m; contacts flicker while it turns."""

LEAD_ANGLE = 0.5
"""How far ahead of the ridge the hand is told to turn, rad: the knob's spring and friction hold it back."""


class TurnKnob:
    """Turns the first joint of `goal.target` in its positive direction, or back where it is to be turned off.

    Phases follow from the state as in `PickPlace`: "approach" (open, above the ridge, then down), "close", "turn".
    """

    def __init__(self, scene: Scene, goal: Goal) -> None:
        self.goal = goal
        self.misses = 0
        self.phase = "approach"
        self._lead = LEAD_ANGLE if goal.predicate == "turnon" else -LEAD_ANGLE
        obstacles = scene.obstacle_points(None)
        base = scene.support_height(float(scene.knob(goal.target)[0][2]))
        self._hand_map = HeightMap(obstacles, base).grown(grasping.FINGER_OUTER + 0.006)

    def act(self, scene: Scene) -> Array:
        """[7], the action for the present state."""
        anchor, ridge, width, top = scene.knob(self.goal.target)
        site = np.append(anchor[:2], top - RIDGE_DEPTH)
        hand = scene.hand_position()
        # of the two ways to hold the ridge the one that needs less turning
        fingers = finger_angle(scene.hand_rotation())
        across = ridge + np.pi / 2 + np.pi * round((fingers - ridge - np.pi / 2) / np.pi)
        turn = turn_to(scene, across)
        distance = float(np.linalg.norm(site[:2] - hand[:2]))
        opening = scene.finger_opening()
        low = hand[2] - grasping.TIP_BELOW < top
        there = distance < 0.015 and abs(hand[2] - site[2]) < 0.015 and np.linalg.norm(turn) < 0.35
        gripping = EMPTY < opening < width + SLACK
        if there and gripping:
            self.phase = "turn"
            return hold(scene, site, turn + np.array([0.0, 0.0, self._lead]), CLOSE)
        precise = distance < 0.008 and abs(hand[2] - site[2]) < 0.008 and np.linalg.norm(turn) < 0.1
        if precise or (there and EMPTY < opening < FINGERS_OPEN):
            self.phase = "close"
            return hold(scene, site, turn, CLOSE)
        self.phase = "approach"
        path, s = along(hand[:2], site[:2])
        required = self._hand_map.at(path) + grasping.TIP_BELOW + HEADROOM
        aligned = distance < ALIGNED * (1.5 if low else 1.0) and np.linalg.norm(turn) < (0.3 if low else 0.15)
        if aligned and opening > FINGERS_OPEN:
            required[:] = site[2]
        planned = ahead(scene)
        return travel(site[:2] - planned[:2], planned[2], required, s, turn, OPEN)

    def lowered(self, scene: Scene) -> bool:
        """A knob may be let go as soon as its goal is fulfilled."""
        return True

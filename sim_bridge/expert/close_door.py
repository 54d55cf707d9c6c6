"""Close a hinged door: push its outer side with the tips of closed fingers."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from sim_bridge.expert import grasp as grasping
from sim_bridge.expert.heights import HeightMap, along
from sim_bridge.expert.motion import CLEAR, CLOSE, GAIN, METRES_PER_UNIT, OPEN, action, ahead, travel, turn_to
from sim_bridge.expert.pick_place import ALIGNED
from sim_bridge.expert.scene import Goal, Scene

Array = NDArray[np.float64]

ARM = 0.65
"""Share of the panel's length at which it is pushed: nearer to the edge is its handle."""

BELOW_TOP = 0.017
"""How far the site goes below the door's top, m: the palm is 31 mm above the site, and a policy that imitates it, up to
10 mm lower, pushed with the palm where this was 25 mm."""

BEFORE = 0.06
"""Distance from the outer side at which the hand comes down, m."""

PUSH = 0.05
"""How far ahead of the hand the push aims, m."""

FINGERS_CLOSED = 0.02
"""Distance between the fingers below which they push as one, m."""

INWARDS, FREE = 0.35, 0.12
"""A hand whose palm points in through the opening by more than this (cosine) has put something inside; nearer to the
opening than FREE, m, it is still around that."""


class CloseDoor:
    """Pushes the door of the fixture `goal.target` shut.

    Phases follow from the state: "leave" (back out of the opening), "approach" (fingers closed, down beside the outer
    side) and "push".
    """

    def __init__(self, scene: Scene, goal: Goal) -> None:
        self.goal = goal
        self.misses = 0
        self.phase = "approach"

    def act(self, scene: Scene) -> Array:
        """[7], the action for the present state."""
        door = scene.door(self.goal.target)
        hand, palm = scene.hand_position(), scene.hand_rotation()[:, 2]
        if -float(palm @ door.front) > INWARDS and float((hand - door.hinge) @ door.front) < FREE:
            self.phase = "leave"
            return action(-palm, np.zeros(3), OPEN)
        spot = door.hinge + ARM * door.length * door.along
        spot[2] = door.top - BELOW_TOP
        turn = turn_to(scene, np.pi / 2)
        offset = hand - spot
        before = float(offset @ door.outwards) - door.face
        aside = float(np.linalg.norm(offset - (before + door.face) * door.outwards))
        closed = scene.finger_opening() < FINGERS_CLOSED
        pushing = self.phase == "push"
        if closed and -0.02 < before < BEFORE + 0.03 and aside < (0.04 if pushing else 0.015):
            self.phase = "push"
            aim = spot + (door.face + before - PUSH) * door.outwards
            return action(GAIN * (aim - ahead(scene)) / METRES_PER_UNIT, turn, CLOSE)
        self.phase = "approach"
        ready = spot + (door.face + BEFORE) * door.outwards
        path, s = along(hand[:2], ready[:2])
        obstacles = scene.obstacle_points(None)
        heights = HeightMap(obstacles, scene.support_height(float(spot[2]))).grown(grasping.FINGER_OUTER + 0.006)
        required = heights.at(path) + grasping.TIP_BELOW + CLEAR
        if float(np.linalg.norm(ready[:2] - hand[:2])) < ALIGNED * 1.5 and closed:
            required[:] = ready[2]
        planned = ahead(scene)
        return travel(ready[:2] - planned[:2], planned[2], required, s, turn, CLOSE)

    def lowered(self, scene: Scene) -> bool:
        """A closed door may be left at once."""
        return True

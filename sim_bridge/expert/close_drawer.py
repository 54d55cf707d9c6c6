"""Close a drawer: push the bar of its handle with closed fingers and a hand that leans back."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from sim_bridge.expert import grasp as grasping
from sim_bridge.expert.heights import HeightMap, along
from sim_bridge.expert.motion import (
    CLEAR,
    CLOSE,
    GAIN,
    METRES_PER_UNIT,
    RADIANS_PER_UNIT,
    TURN_GAIN,
    action,
    ahead,
    rotation_vector,
    travel,
)
from sim_bridge.expert.pick_place import ALIGNED
from sim_bridge.expert.scene import Goal, Scene

Array = NDArray[np.float64]

LEAN = np.deg2rad(45)
"""The palm is turned so far towards the drawer: an upright hand meets the handles above before the drawer is shut."""

BEFORE = 0.06
"""Distance in front of the bar at which the hand comes down, m."""

PUSH = 0.05
"""How far ahead of the hand the push aims, m."""

FINGERS_CLOSED = 0.02
"""Distance between the fingers below which they push as one, m."""

BEGIN_TO_PUSH, PUSH_ON = 0.012, 0.03
"""How far off its way, m, a hand before the bar begins to push, and goes on pushing."""

ALONG_BAR = (0.0, 0.03, -0.03)
"""Places on the bar that may be pushed, from its middle, m, best first."""

ROOM = 0.16
"""Distance from other objects from which on the hand has room, m."""

IN_DRAWER = 0.05
"""What lies farther than this behind the bar is in the drawer, m."""


class CloseDrawer:
    """Pushes the drawer of the region `goal.target` shut.

    Phases follow from the state: "approach" (fingers closed, above the place in front of the handle, then down) and
    "push".
    """

    def __init__(self, scene: Scene, goal: Goal) -> None:
        self.goal = goal
        self.misses = 0
        self.phase = "approach"
        bar, outwards = scene.handle(goal.target)
        sideways = np.array([-outwards[1], outwards[0], 0.0])
        places = [bar + shift * sideways for shift in ALONG_BAR]
        offsets = [scene.hand_position() - place for place in places]
        if any(self._in_front(offset, outwards, PUSH_ON) for offset in offsets):
            # a hand that is at the bar stays where it pushes: how much room there is changes as the drawer closes
            chosen = int(np.argmin([np.linalg.norm(offset) for offset in offsets]))
        else:
            chosen = int(np.argmax([round(self._room(scene, place, outwards), 2) for place in places]))
        self._shift = ALONG_BAR[chosen]

    @staticmethod
    def _in_front(offset: Array, outwards: Array, aside: float) -> bool:
        """A hand at `offset` [3] from a place on the bar, m, would push it: less than `aside`, m, off its way."""
        before = float(offset @ outwards)
        return -0.03 < before < BEFORE + 0.03 and float(np.linalg.norm(offset - before * outwards)) < aside

    @staticmethod
    def _room(scene: Scene, place: Array, outwards: Array) -> float:
        """Distance of a place on the bar from the nearest object outside the drawer, at most ROOM, m."""
        offsets = [position - place for position in scene.object_positions()]
        outside = [offset for offset in offsets if float(offset @ outwards) > -IN_DRAWER]
        return min([ROOM, *(float(np.linalg.norm(offset[:2])) for offset in outside)])

    def act(self, scene: Scene) -> Array:
        """[7], the action for the present state."""
        bar, outwards = scene.handle(self.goal.target)
        sideways = np.array([-outwards[1], outwards[0], 0.0])
        bar = bar + self._shift * sideways
        hand = scene.hand_position()
        palm = np.array([0.0, 0.0, -np.cos(LEAN)]) - np.sin(LEAN) * outwards
        # of the two ways to hold the fingers level the one that the wrist reaches by a quarter turn from its rest
        fingers = sideways * np.sign(sideways[0] + 1e-9)
        wanted = np.stack([fingers, np.cross(palm, fingers), palm], axis=1)
        turn = rotation_vector(wanted @ scene.hand_rotation().T)
        offset = hand - bar
        leaning = float(np.linalg.norm(turn))
        closed = scene.finger_opening() < FINGERS_CLOSED
        before = float(offset @ outwards)
        aside = PUSH_ON if self.phase == "push" else BEGIN_TO_PUSH
        if closed and self._in_front(offset, outwards, aside) and leaning < 0.4:
            self.phase = "push"
            error = GAIN * (bar + (before - PUSH) * outwards - ahead(scene)) / METRES_PER_UNIT
            rotation = TURN_GAIN * turn / RADIANS_PER_UNIT
            return action(error, rotation, CLOSE)
        self.phase = "approach"
        ready = bar + BEFORE * outwards
        path, s = along(hand[:2], ready[:2])
        obstacles = scene.obstacle_points(None)
        heights = HeightMap(obstacles, scene.support_height(float(bar[2]))).grown(grasping.FINGER_OUTER + 0.006)
        required = heights.at(path) + grasping.TIP_BELOW + CLEAR
        high = hand[2] > float(heights.at(path[:1])[0])
        aligned = float(np.linalg.norm(ready[:2] - hand[:2])) < ALIGNED * 1.5
        if aligned and closed and leaning < 0.3:
            required[:] = bar[2]
        elif not high and not aligned:
            # beside other things it rises as it is before it leans
            turn = np.zeros(3)
        planned = ahead(scene)
        return travel(ready[:2] - planned[:2], planned[2], required, s, turn, CLOSE)

    def lowered(self, scene: Scene) -> bool:
        """A closed drawer may be left at once."""
        return True

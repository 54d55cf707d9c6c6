"""The room behind a hinged door: where something that goes in can stand."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from sim_bridge.expert.scene import Goal, Scene

Array = NDArray[np.float64]

STRIP = 0.03
"""Half width of the strips in which its walls and its floor are looked for, m."""

FROM_HINGE = 0.01
"""The place is so far off the middle, away from the hinge, m: the hand is wider than the mug, and the door has its
hinge and its thickness where it stands open."""


class Chamber:
    """The inside of a fixture, around the region `goal.place`.

    Attributes:
        forwards: [3], level, in through the opening. across: [3], level, away from the door's hinge.
        opening: its place along `forwards`, m. middle: of what goes in, along `across`, m. floor: its height, m.
    """

    def __init__(self, scene: Scene, goal: Goal) -> None:
        door = scene.door(goal.place)
        centre = scene.place_position(goal)
        self.forwards = -door.front
        across = np.array([-door.front[1], door.front[0], 0.0])
        self.across = across * np.sign(float((centre - door.hinge) @ across))
        offsets = scene.place_points(goal) - centre
        deep, wide, high = offsets @ self.forwards, offsets @ self.across, offsets[:, 2]
        walls = (np.abs(deep) < STRIP) & (np.abs(high) < STRIP)
        middle = float(wide[walls & (wide < 0)].max() + wide[walls & (wide > 0)].min()) / 2
        under = (np.abs(deep) < STRIP) & (np.abs(wide - middle) < STRIP) & (high < 0)
        self.floor = float(centre[2] + high[under].max())
        self.middle = float(centre @ self.across) + middle + FROM_HINGE
        self.opening = float(door.hinge @ self.forwards)

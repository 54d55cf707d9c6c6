"""Set an object aside that an open drawer would cover: the hand could not reach it there."""

from __future__ import annotations

import itertools

import numpy as np
from numpy.typing import NDArray

from sim_bridge.expert import grasp as grasping
from sim_bridge.expert.drawer_room import EDGE
from sim_bridge.expert.pick_place import PickPlace
from sim_bridge.expert.scene import Goal, Scene

Array = NDArray[np.float64]

SHIFTS = np.array(
    sorted(itertools.product(np.arange(-8, 9) * 0.02, repeat=2), key=lambda shift: float(np.hypot(*shift)))
)
"""Where an object may be set aside, m from where it stands, nearest first."""

ROOM = 0.01
"""Room that an object set aside is to have, and the open hand at it, m."""


def in_the_way(scene: Scene, goal: Goal) -> bool:
    """With the drawer `goal.place` open, the hand has no room for any grasp of `goal.target`."""
    target = goal.target
    best = grasping.candidates(scene.position(target), scene.points(target), _obstacles_when_open(scene, goal))[0]
    return best.clearance < grasping.CLEARANCE


def _obstacles_when_open(scene: Scene, goal: Goal) -> Array:
    """[N, 3], points on everything solid but the robot and `goal.target`, and on the drawer where it would be open."""
    drawer = scene.place_points(goal) + scene.drawer_travel(goal.place)
    return np.concatenate([scene.obstacle_points(goal.target), drawer])


class SetAside(PickPlace):
    """Moves `goal.target` to the nearest place on the table where the open drawer `goal.place` leaves the hand room.

    Never away from the robot's base: an arm that is stretched out cannot turn the hand level for the drawer.
    """

    def _find_place(self, scene: Scene) -> tuple[Array, float]:
        target = self.goal.target
        points, position = scene.points(target), scene.position(target)
        floor = scene.support_height(float(points[:, 2].min()) + 0.01)
        height = floor + self._below - 0.008
        lowered = points + np.array([0.0, 0.0, height - position[2]])
        obstacles = _obstacles_when_open(scene, self.goal)
        standing = obstacles[(obstacles[:, 2] > floor + EDGE) & (obstacles[:, 2] < lowered[:, 2].max()), :2]
        radius = float(np.linalg.norm(points[:, :2] - position[:2], axis=1).max())
        above = scene.hand_position() - position
        base = scene.base_position()[:2]
        reach = np.linalg.norm(position[:2] + SHIFTS - base, axis=1)
        best, best_room = SHIFTS[0], -np.inf
        for shift in SHIFTS[reach <= reach[0] + 1e-6]:
            centre = np.append(position[:2] + shift, height)
            around = float(np.linalg.norm(standing - centre[:2], axis=1).min(initial=1.0)) - radius
            if around <= best_room:
                continue
            now = grasping.clearance(centre + above, self._angle, obstacles)
            moved = lowered + np.append(shift, 0.0)
            later = grasping.candidates(centre, moved, obstacles)[0].clearance
            room = min(around, now, later, ROOM)
            if room > best_room:
                best, best_room = shift, room
            if best_room >= ROOM:
                break
        return position[:2] + best - scene.place_position(self.goal)[:2], height

"""Set an object aside that an open drawer would cover: the hand could not reach it there."""

from __future__ import annotations

import itertools

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from sim_bridge.expert import grasp as grasping
from sim_bridge.expert.drawer_room import EDGE, REACH
from sim_bridge.expert.pick_place import PickPlace
from sim_bridge.expert.scene import Goal, Scene

Array = NDArray[np.float64]

SHIFTS = np.array(
    sorted(itertools.product(np.arange(-22, 23) * 0.01, repeat=2), key=lambda shift: float(np.hypot(*shift)))
)
"""Where an object may be set aside, m from where it stands, nearest first."""

ROOM = 0.02
"""More room than this makes no place better, for the object set aside or for the open hand at it, m."""

EFFORT = 0.03
"""Room that is worth a metre of way, m: on the way, the place that was chosen stays the best one."""

SLACK = 0.02
"""How much further from the base than the object a place may be, m: an object that has been carried a little beyond its
place, when the question is asked again, still goes there."""


def in_the_way(scene: Scene, goal: Goal) -> bool:
    """With the drawer `goal.place` open, the hand has no room for any grasp of `goal.target`."""
    target = goal.target
    grasps = grasping.candidates(scene.position(target), scene.points(target), _obstacles_when_open(scene, goal))
    return all(grasp.clearance < grasping.CLEARANCE for grasp in grasps)


def _obstacles_when_open(scene: Scene, goal: Goal) -> Array:
    """[N, 3], points on everything solid but the robot and `goal.target`, and on the drawer where it would be open."""
    drawer = scene.place_points(goal) + scene.drawer_travel(goal.place)
    return np.concatenate([scene.obstacle_points(goal.target), drawer])


class SetAside(PickPlace):
    """Moves `goal.target` to where the open drawer `goal.place` leaves it and the hand most room on the table.

    Not to the nearest place with just enough of it: that may be in a gap which some placements leave and others do not,
    so that like scenes would have unlike places, and a policy that learns from them puts the object in between.
    Never further from the robot's base than `SLACK`: an arm that is stretched out cannot turn the hand level for the
    drawer.
    """

    def _find_place(self, scene: Scene) -> tuple[Array, float]:
        target = self.goal.target
        points, position = scene.points(target), scene.position(target)
        floor = scene.support_height(float(points[:, 2].min()) + 0.01)
        height = floor + self._below - 0.008
        obstacles = _obstacles_when_open(scene, self.goal)
        top = float(points[:, 2].max()) + height - position[2]
        standing = obstacles[(obstacles[:, 2] > floor + EDGE) & (obstacles[:, 2] < top), :2]
        radius = float(np.linalg.norm(points[:, :2] - position[:2], axis=1).max())
        above = scene.hand_position() - position
        base = scene.base_position()[:2]
        places = position[:2] + SHIFTS
        reach = np.linalg.norm(places - base, axis=1)
        # The cheap question for all places at once, the grasps only where its answer leaves hope.
        rooms = cKDTree(standing).query(places)[0] - radius if len(standing) else np.ones(len(places))
        grasps = grasping.candidates(position, points, np.empty((0, 3)))
        best, best_score = SHIFTS[0], -np.inf
        for index in np.flatnonzero(reach <= reach[0] + SLACK):
            shift, centre = SHIFTS[index], np.append(places[index], height)
            cost = EFFORT * float(np.hypot(*shift))
            room = min(float(rooms[index]), ROOM)
            if room - cost <= best_score:
                continue
            near = obstacles[np.linalg.norm(obstacles[:, :2] - centre[:2], axis=1) < REACH]
            room = min(room, grasping.clearance(centre + above, self._angle, near))
            if room - cost <= best_score:
                continue
            room = min(room, max(grasping.clearance(centre + grasp.offset, grasp.angle, near) for grasp in grasps))
            if room - cost > best_score:
                best, best_score = shift, room - cost
        return position[:2] + best - scene.place_position(self.goal)[:2], height

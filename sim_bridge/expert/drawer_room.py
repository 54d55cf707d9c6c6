"""Where there is room for an object: in an open drawer, or beside what already stands on the table."""

from __future__ import annotations

import itertools

import numpy as np
from numpy.typing import NDArray

from sim_bridge.expert import grasp as grasping
from sim_bridge.expert.grasp import Grasp
from sim_bridge.expert.scene import Goal, Scene

Array = NDArray[np.float64]

SHIFTS = np.array(
    sorted(itertools.product(np.arange(-4, 5) * 0.01, repeat=2), key=lambda shift: float(np.hypot(*shift)))
)
"""Places around the middle of the drawer, m, nearest first."""

ENOUGH = 0.012
"""More room than this makes no place better, m."""

EFFORT = 0.1
"""Room in a drawer that is worth a metre of way: on the way, the place that was chosen stays the best one."""

FOOT = 0.03
"""What is no higher than this over the drawer's floor is no obstacle: a bowl is narrow at its foot, m."""

EDGE = 0.008
"""What is no higher than this over the table is no obstacle, m."""

REACH = 0.2
"""Obstacles within this distance of the middle count, m."""


def place_in_drawer(scene: Scene, goal: Goal, floor: float, site: Array, angle: float) -> Array:
    """[2], where the held object has most room, m from the drawer's middle, the drawer standing as it does now.

    Between the front of the drawer and the handles of the drawers above there is hardly more room than a bowl needs.

    Args:
        floor: height of the drawer's floor, m.
        site: [3], the hand when it lets go: in the plane relative to the object's origin, and its height, m.
        angle: of the fingers' opening, rad.
    """
    centres = scene.place_position(goal)[:2] + SHIFTS
    position, points = scene.position(goal.target), scene.points(goal.target)
    radius = float(np.linalg.norm(points[:, :2] - position[:2], axis=1).max())
    obstacles = scene.obstacle_points(goal.target)
    near = np.linalg.norm(obstacles[:, :2] - centres[0], axis=1) < REACH
    obstacles = obstacles[near & (obstacles[:, 2] > floor + FOOT)]
    rooms = []
    for centre in centres:
        around = float(np.linalg.norm(obstacles[:, :2] - centre, axis=1).min(initial=1.0)) - radius
        hand = grasping.clearance(np.append(centre + site[:2], site[2]), angle, obstacles)
        way = float(np.linalg.norm(centre - position[:2]))
        rooms.append(round(min(ENOUGH, around, hand) - EFFORT * way, 3))
    return np.array(SHIFTS[int(np.argmax(rooms))])


def place_on_table(scene: Scene, goal: Goal, floor: float, half: float) -> Array:
    """[2], where in a region of the table the held object has room, m from the region's middle.

    Args:
        floor: height of the table, m. half: half the extent of the part of the region that may be used, m.
    """
    shifts = SHIFTS[np.abs(SHIFTS).max(axis=1) <= half + 1e-6]
    position, points, obstacles = (
        scene.position(goal.target),
        scene.points(goal.target),
        scene.obstacle_points(goal.target),
    )
    radius = float(np.linalg.norm(points[:, :2] - position[:2], axis=1).max())
    obstacles = obstacles[obstacles[:, 2] > floor + EDGE, :2]
    centre = scene.place_position(goal)[:2]
    rooms = [float(np.linalg.norm(obstacles - centre - shift, axis=1).min(initial=1.0)) - radius for shift in shifts]
    return np.array(shifts[int(np.argmax(np.round(np.minimum(rooms, ENOUGH), 3)))])


def suited_to_drawer(grasps: list[Grasp], outwards: Array) -> list[Grasp]:
    """The same grasps; of those with room, the ones whose fingers open across the drawer's way come first.

    The hand is wide along its fingers' opening, and a drawer has least room along its way.
    """

    def unsuited(grasp: Grasp) -> tuple[bool, float]:
        along_way = abs(float(np.cos(grasp.angle) * outwards[0] + np.sin(grasp.angle) * outwards[1]))
        return grasp.clearance < grasping.CLEARANCE, round(along_way, 2)

    return sorted(grasps, key=unsuited)

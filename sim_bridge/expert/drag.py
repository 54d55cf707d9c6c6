"""Drag a flat object across the table: press closed fingers onto its middle and move them."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from sim_bridge.expert import grasp as grasping
from sim_bridge.expert.heights import HeightMap, along
from sim_bridge.expert.motion import CLEAR, CLOSE, GAIN, METRES_PER_UNIT, action, ahead, finger_angle, travel, turn_to
from sim_bridge.expert.pick_place import ALIGNED
from sim_bridge.expert.scene import Goal, Scene

Array = NDArray[np.float64]

FLAT = 0.025
"""An object of no more than this height cannot be gripped at its rim, m."""

FINGERS_CLOSED = 0.02
"""Distance between the fingers below which they press as one, m."""

PRESS = 0.25
"""Downward command while dragging: the fingers' friction on the object is twice the object's on the table."""

SPEED = 0.8
"""Largest horizontal command while dragging; faster fingers slip."""

ANGLES = tuple(np.deg2rad((90, 45, 135, 0)))
"""Directions of the fingers' opening, best first: the hand rests at 90 degrees."""

TURNED = 0.2
"""A hand comes down when it is nearer than this to that direction, rad."""

ROOM = 0.01
"""Room that the hand needs over the object to come down there with its fingers in one of these directions, m. The palm
reaches 104 mm along them and 32 across."""

ON_SPOT = 0.05
"""Fingers within this distance of the object's middle drag it, m; farther off they are put down anew."""


class Drag:
    """Moves `goal.target` to a region of the table without lifting it.

    Phases follow from the state: "approach" (fingers closed, above the middle, then down) and "drag" (along x or y
    first, whichever keeps the object farther from others).
    """

    def __init__(self, scene: Scene, goal: Goal) -> None:
        self.goal = goal
        self.misses = 0
        self.phase = "approach"
        self._angle = self._free_angle(scene)

    def _free_angle(self, scene: Scene) -> float:
        """In which direction the fingers may open over the object: the first with room, or the present one."""
        target = self.goal.target
        hand, position = scene.hand_position(), scene.position(target)
        if float(np.linalg.norm(position[:2] - hand[:2])) < ON_SPOT and hand[2] < position[2] + 2 * FLAT:
            now = finger_angle(scene.hand_rotation())
            return min(ANGLES, key=lambda angle: abs(np.sin(now - angle)))
        obstacles = scene.obstacle_points(target)
        site = np.append(position[:2], float(scene.points(target)[:, 2].max()) + grasping.TIP_BELOW)
        rooms = [min(ROOM, grasping.clearance(site, angle, obstacles)) for angle in ANGLES]
        return ANGLES[int(np.argmax(np.round(rooms, 3)))]

    def act(self, scene: Scene) -> Array:
        """[7], the action for the present state."""
        target = self.goal.target
        hand, position, points = scene.hand_position(), scene.position(target), scene.points(target)
        middle = points[np.linalg.norm(points[:, :2] - position[:2], axis=1) < 0.02]
        floor = float(middle[:, 2].max())
        error = position[:2] - hand[:2]
        distance = float(np.linalg.norm(error))
        turn = turn_to(scene, self._angle)
        closed = scene.finger_opening() < FINGERS_CLOSED
        tips = hand[2] - grasping.TIP_BELOW
        down = tips < floor + (0.02 if self.phase == "drag" else 0.006)
        # fingers that press already go on, also where an expert that has just been restarted finds them
        if closed and down and distance < ON_SPOT:
            self.phase = "drag"
            velocity = scene.hand_velocity()[:2]
            command = GAIN * (self._waypoint(scene, position[:2]) - position[:2] - 0.08 * velocity) / METRES_PER_UNIT
            command *= SPEED / max(SPEED, float(np.abs(command).max()))
            # a stretched arm that draws the hand in lifts it: it would slide over the object without moving it
            lifted = max(0.0, float(tips) - floor)
            return action(np.append(command, -PRESS - GAIN * lifted / METRES_PER_UNIT), turn, CLOSE)
        self.phase = "approach"
        obstacles = np.concatenate([points, scene.obstacle_points(target)])
        heights = HeightMap(obstacles, scene.support_height(floor))
        path, s = along(hand[:2], position[:2])
        fingers = heights.grown(0.05).at(path) + grasping.TIP_BELOW
        palm = heights.grown(grasping.PALM_HALF[0]).at(path) - grasping.PALM_ABOVE
        required = np.maximum(fingers, palm) + CLEAR
        if distance < ALIGNED and closed and float(np.linalg.norm(turn)) < TURNED:
            required[:] = floor + grasping.TIP_BELOW - 0.01
        planned = ahead(scene)
        return travel(position[:2] - planned[:2], planned[2], required, s, turn, CLOSE)

    def _waypoint(self, scene: Scene, xy: Array) -> Array:
        """[2], where to drag the object's middle next: straight on, or to a corner of the way that is more free."""
        place = scene.place_position(self.goal)[:2]
        corners = [place, np.array([xy[0], place[1]]), np.array([place[0], xy[1]])]
        return max(corners, key=lambda corner: round(self._room(scene, xy, corner, place), 2))

    def _room(self, scene: Scene, xy: Array, corner: Array, place: Array) -> float:
        """Distance of the way over a corner from other movable objects, at most 0.12 m."""
        way = np.concatenate([along(xy, corner)[0], along(corner, place)[0]])
        return min(0.12, min(scene.nearest_other(self.goal.target, point) for point in way))

    def lowered(self, scene: Scene) -> bool:
        """It never leaves the table."""
        return True

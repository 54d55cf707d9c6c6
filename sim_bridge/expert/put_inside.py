"""Put a mug through a door: grip it by its handle with a hand that leans forwards, so that it fits under the roof."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from sim_bridge.expert import grasp as grasping
from sim_bridge.expert.chamber import Chamber
from sim_bridge.expert.grasp import Grasp
from sim_bridge.expert.heights import along
from sim_bridge.expert.motion import CLEAR, CLOSE, HEADROOM, OPEN, action, ahead, hold, rotation_vector, travel
from sim_bridge.expert.pick_place import ALIGNED, FINGERS_OPEN, PickPlace
from sim_bridge.expert.scene import Scene

Array = NDArray[np.float64]

LEAN = np.deg2rad(45)
"""The palm is turned so far from downwards to forwards: an upright hand would meet the roof."""

RIM = 0.012
"""A mug's handle begins so far below its top, m."""

BAR = 0.01
"""The outermost part of a handle is so thick, m: its bar."""

PAST_BAR = 0.004
"""How far past the bar's middle the site goes, m: the pads reach 12 mm back from the site and 4 mm ahead."""

BEFORE = 0.1
"""Distance before the handle, along the palm's direction, at which the hand lines up, m."""

NEAR, BESIDE = 0.08, 0.06
"""A hand that is not lined up, nearer to the handle than this, along and across the palm's direction, backs out, m."""

AT_HANDLE, LEANING = 0.03, 0.4
"""A hand so near to where it would grip the handle (m), turned by less than this from it (rad), holds the handle."""

OVER_FLOOR, ENOUGH, TOO_MUCH = 0.020, 0.010, 0.030
"""Height over the floor inside at which the mug goes in, m; and the heights from which and up to which it does."""

IN_FRONT = 0.03
"""Distance of the mug from the opening where it is lined up in front of it, m."""

LEFT_OUT = 0.008
"""The end of the handle is set down so far before the opening, m: the hand, which hardly fits through it, stays
outside, and the door pushes the mug in."""

STRIDE = 0.04
"""How far ahead of the mug the way in aims, m."""

PAST_EDGE = 0.02
"""A hand so far past the open door's free edge, m, is beside the door: it pushes the door open where it is too wide.
Before that it would meet the edge, which does not give way."""

BESIDE_EDGE, TOO_NEAR = 0.02, 0.01
"""Room that the hand aims at on its way past that edge, and that it needs at least, m."""


class PutInside(PickPlace):
    """Puts the mug `goal.target` into the region `goal.place` behind a door that stands open.

    Phases as in `PickPlace`. The hand comes to the handle along the palm's direction; the mug is lined up in front of
    the opening, goes straight in and is set down in the middle. A mug that is held elsewhere is set down first.
    """

    def _palm(self) -> Array:
        """[3], out of the palm when the hand leans as wanted."""
        return np.sin(LEAN) * self._forwards - np.array([0.0, 0.0, np.cos(LEAN)])

    def _turn(self, scene: Scene) -> Array:
        # of the two ways to hold the fingers level the one that, at the door, is nearer to the wrist's rest
        side = np.sign(scene.door(self.goal.place).front[1] + 1e-9)
        fingers = side * np.array([-self._forwards[1], self._forwards[0], 0.0])
        palm = self._palm()
        wanted = np.stack([fingers, np.cross(palm, fingers), palm], axis=1)
        return rotation_vector(wanted @ scene.hand_rotation().T)

    # -- approach: above everything to a place before the handle, then along the palm's direction

    def _choose_grasp(self, scene: Scene) -> None:
        super()._choose_grasp(scene)
        target = self.goal.target
        bar, self._forwards = handle(scene.points(target))
        site = bar + PAST_BAR * self._palm()
        angle = float(np.arctan2(self._forwards[0], -self._forwards[1]) % np.pi)
        room = grasping.clearance(site, angle, scene.obstacle_points(target))
        self._grasp = Grasp(site - scene.position(target), angle, room)

    def _approach(self, scene: Scene) -> Array:
        hand = scene.hand_position()
        site = scene.position(self.goal.target) + self._grasp.offset
        palm, turn = self._palm(), self._turn(scene)
        before = float((site - hand) @ palm)
        aside = float(np.linalg.norm(site - hand - before * palm))
        near = before < NEAR
        lined_up = aside < ALIGNED * (1.5 if near else 1.0) and np.linalg.norm(turn) < (0.3 if near else 0.15)
        if lined_up and before < BEFORE + 0.03 and scene.finger_opening() > FINGERS_OPEN:
            return hold(scene, site, turn, OPEN)
        if near and aside < BESIDE:
            return action(-palm, np.zeros(3), OPEN)
        ready = site - BEFORE * palm
        path, s = along(hand[:2], ready[:2])
        required = self._hand_map.at(path) + grasping.TIP_BELOW + HEADROOM
        if float(np.linalg.norm(ready[:2] - hand[:2])) < ALIGNED:
            required[:] = ready[2]
        planned = ahead(scene)
        return travel(ready[:2] - planned[:2], planned[2], required, s, turn, OPEN)

    # -- carry: past the door's free edge, in front of the opening, in, and down

    def _find_place(self, scene: Scene) -> tuple[Array, float]:
        target = self.goal.target
        points, position = scene.points(target), scene.position(target)
        bar, self._forwards = handle(points)
        away = float(np.linalg.norm(bar - scene.hand_position()))
        self._by_handle = away < AT_HANDLE and float(np.linalg.norm(self._turn(scene))) < LEANING
        place = scene.place_position(self.goal)[:2]
        if not self._by_handle:
            floor = scene.support_height(float(points[:, 2].min()) + 0.01)
            return position[:2] - place, floor + self._below - 0.008
        self._chamber = Chamber(scene, self.goal)
        self._forwards = self._chamber.forwards
        return np.zeros(2), self._chamber.floor + self._below

    def _left(self, scene: Scene) -> tuple[float, float, float]:
        """How far the mug still has to go forwards and across the opening, m; its bottom over the floor inside, m."""
        points, chamber = scene.points(self.goal.target), self._chamber
        wide = points @ chamber.across
        forwards = chamber.opening - LEFT_OUT - float((points @ chamber.forwards).min())
        across = chamber.middle - float(wide.max() + wide.min()) / 2
        return forwards, across, float(points[:, 2].min()) - chamber.floor

    def _arrived(self, scene: Scene) -> bool:
        if not self._by_handle:
            return super()._arrived(scene)
        forwards, across, above = self._left(scene)
        return abs(forwards) < ALIGNED and abs(across) < 0.02 and above < 0.006

    def lowered(self, scene: Scene) -> bool:
        """The mug stands inside: its goal is fulfilled as soon as half of it is through the opening."""
        return self.phase in ("carry", "release") and self._arrived(scene)

    def _carry(self, scene: Scene) -> Array:
        if not self._by_handle:
            return super()._carry(scene)
        hand, chamber, turn = scene.hand_position(), self._chamber, self._turn(scene)
        forwards, across, above = self._left(scene)
        in_front = chamber.opening - float((scene.points(self.goal.target) @ chamber.forwards).max())
        if forwards < 0.01:
            error = forwards * chamber.forwards + across * chamber.across
            return hold(scene, hand + error - np.array([0.0, 0.0, above + 0.008]), turn, CLOSE)
        lined_up = abs(across) < 0.015 and np.linalg.norm(turn) < 0.2 and ENOUGH < above < TOO_MUCH
        if lined_up or (in_front < 0.0 and abs(across) < 0.03):
            error = min(forwards, STRIDE) * chamber.forwards + across * chamber.across
            return hold(scene, hand + error + np.array([0.0, 0.0, OVER_FLOOR - above]), turn, CLOSE)
        return self._line_up(scene, in_front - IN_FRONT, across, above, turn)

    def _line_up(self, scene: Scene, forwards: float, across: float, above: float, turn: Array) -> Array:
        """[7], carry the mug so far forwards and across, m, round the open door's free edge and never onto the door."""
        hand, chamber, door = scene.hand_position(), self._chamber, scene.door(self.goal.place)
        edge = door.hinge + door.length * door.along - hand
        before = float(edge @ chamber.forwards) + PAST_EDGE
        clear = float(edge @ chamber.across) + grasping.PALM_HALF[0] + BESIDE_EDGE
        if before > 0.0 or above > TOO_MUCH:
            across = max(across, clear)
        if before > 0.0 and clear > BESIDE_EDGE - TOO_NEAR:
            forwards = min(forwards, before - 2 * PAST_EDGE)
        error = (forwards * chamber.forwards + across * chamber.across)[:2]
        position = scene.position(self.goal.target)
        path, s = along(position[:2], position[:2] + error)
        grip = hand - position
        required = np.maximum(
            self._object_map.at(path) + self._below + CLEAR,
            self._hand_map.at(path + grip[:2]) + grasping.TIP_BELOW + CLEAR - grip[2],
        )
        if float(np.linalg.norm(error)) < ALIGNED * 1.5:
            required[:] = 0.0
        required = np.maximum(required, self._place_height + OVER_FLOOR)
        lead = ahead(scene) - hand
        return travel(error - lead[:2], position[2] + lead[2], required, s, turn, CLOSE)


def handle(points: Array) -> tuple[Array, Array]:
    """Middle of the bar of a mug's handle [3], m, and the level direction from there to the mug's middle [3].

    Args:
        points: [N, 3] on the mug, which stands upright.
    """
    rim = points[points[:, 2] > points[:, 2].max() - RIM, :2]
    centre = (rim.max(axis=0) + rim.min(axis=0)) / 2
    reach = np.linalg.norm(points[:, :2] - centre, axis=1)
    bar = points[reach > reach.max() - BAR]
    middle = (bar.max(axis=0) + bar.min(axis=0)) / 2
    inwards = np.append(centre - middle[:2], 0.0)
    return middle, inwards / float(np.linalg.norm(inwards))

"""Pick an object up and put it on or into something."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from sim_bridge.expert import grasp as grasping
from sim_bridge.expert.drawer_room import place_in_drawer, place_on_table, suited_to_drawer
from sim_bridge.expert.grasp import Grasp
from sim_bridge.expert.heights import HeightMap, along, overhang
from sim_bridge.expert.motion import CLEAR, CLOSE, HEADROOM, OPEN, action, ahead, finger_angle, hold, travel, turn_to
from sim_bridge.expert.scene import Goal, Scene

Array = NDArray[np.float64]

ALIGNED = 0.012
"""Horizontal distance within which the hand may go down to the grasp, or the object down to its place, m."""

BEGIN_TO_CLOSE, GO_ON_CLOSING = (0.012, 0.010, 0.15), (0.02, 0.018, 0.3)
"""Distances from the grasp in the plane and in height (m) and rotation to it (rad) within which fingers begin to close,
and close on. A policy that imitates it is up to 10 mm off: at a narrower threshold it opened its fingers again."""

FINGERS_STOPPED = 0.03
"""Speed below which the fingers count as stopped, m/s; they close at 0.1 m/s."""

FINGERS_OPEN = 0.07
"""Distance between the fingers from which on they count as open, m; at most 0.08."""

FINGERS_EMPTY = 0.001
"""Distance between the fingers below which there is nothing between them, m; a bowl's rim leaves 0.003."""

STALLED_STEPS = 4
"""Control steps that the fingers may stand still without a grip before the attempt counts as missed."""

GRIP_STEPS = 3
"""Control steps of a grip before the hand lifts: a finger that has only touched the object would slip off."""

LOST_STEPS = 3
"""Control steps without contact at both fingers after which an object counts as dropped."""

MOVED, ROTATED = 0.01, 0.15
"""An object displaced (m) or turned (rad) so much since its grasp was chosen needs another grasp."""

CENTRED = 0.025
"""Closing fingers may move an object so far, m: a hand inwards of a rim pulls the rim to its middle."""

SHARED_MARGIN, SHARED_ROOM = 0.015, 0.08
"""How far inside its border an object goes in a region that two objects share; and the distance to other objects from
which on a side of it is free, m."""

ASIDE_MARGIN, ASIDE_AT_MOST = 0.026, 0.07
"""How far inside its border an object goes in a container that two share, and how far off the middle at most, m."""

REGION_BELOW = 0.04
"""Regions of a table lie up to 0.027 m below its top (in the living room); no other support is so near above, m."""

LOW = 0.018
"""Height above the place's up to which an object is set down rather than dropped, m; 8 mm of it are aimed too deep."""

OVERHANG_GAP, OVERHANG_LEAD = 0.004, 0.02
"""Distance in the plane that a lifted object keeps from what hangs over it, m; and how far ahead the hand aims while it
drags the object out from under it, m."""

MISSES_PER_GRASP = 2
"""Times that a grasp is tried before the next best one: most misses are a disturbance's fault, not the grasp's."""


class PickPlace:
    """Picks `goal.target` up and puts it at `goal.place`.

    The phase follows from what can be seen at each step, so that the skill can take over in any state and its actions
    are labels for states that something else has reached: a gripped object is carried ("carry"), at its place it is let
    go ("release"); a hand at the grasp closes ("close"), any other hand goes there, open ("approach"). Memory spans a
    few steps (contacts flicker), and the choice of the grasp after a miss.
    """

    def __init__(self, scene: Scene, goal: Goal) -> None:
        self.goal = goal
        self.misses = 0
        self.phase = "approach"
        self._reopen = False
        self._stalled = 0
        self._grip = 0
        self._lost = 0
        self._misses_here = 0
        if self._gripped(scene):
            self._start_carry(scene)
        else:
            self._choose_grasp(scene)

    @property
    def grasp(self) -> Grasp:
        """The grasp that the hand goes to."""
        return self._grasp

    def act(self, scene: Scene) -> Array:
        """[7], the action for the present state."""
        self._update_phase(scene)
        return {"approach": self._approach, "close": self._close, "carry": self._carry, "release": self._release}[
            self.phase
        ](scene)

    def _gripped(self, scene: Scene) -> bool:
        return scene.held(self.goal.target) and scene.finger_speed() < FINGERS_STOPPED

    def _update_phase(self, scene: Scene) -> None:
        held = scene.held(self.goal.target)
        self._grip = self._grip + 1 if self._gripped(scene) else 0
        self._lost = 0 if held else self._lost + 1
        if self.phase in ("carry", "release"):
            if self._lost < LOST_STEPS:
                if self.phase == "carry" and self._arrived(scene):
                    self.phase = "release"
                elif self.phase == "release" and self._grip >= GRIP_STEPS and not self._arrived(scene):
                    self.phase = "carry"
                return
            self._miss(scene)
        elif self._grip >= GRIP_STEPS and not self._reopen:
            self._start_carry(scene)
            return
        elif self._grip == 0 and self._displaced(scene):
            self._misses_here = 0
            self._choose_grasp(scene)
        self._approach_or_close(scene)

    def _approach_or_close(self, scene: Scene) -> None:
        opening = scene.finger_opening()
        self._reopen = self._reopen and opening < FINGERS_OPEN
        # fingers that something else has begun to close go on: a policy's chunk may have ended there
        closing = opening < FINGERS_OPEN or scene.fingers_closing() > FINGERS_STOPPED
        if self._reopen or not self._at_grasp(scene, closing=closing):
            self.phase, self._stalled = "approach", 0
            return
        blocked = opening < FINGERS_OPEN and scene.finger_speed() < FINGERS_STOPPED and self._grip == 0
        self._stalled = self._stalled + 1 if blocked else 0
        if opening < FINGERS_EMPTY or self._stalled > STALLED_STEPS:
            self._miss(scene)
            return
        self.phase = "close"

    def _miss(self, scene: Scene) -> None:
        self.misses += 1
        self._misses_here += 1
        self._reopen = True
        self._stalled = 0
        self.phase = "approach"
        self._choose_grasp(scene)

    # -- approach: to the grasp, above everything until aligned, fingers open

    def _choose_grasp(self, scene: Scene) -> None:
        target = self.goal.target
        points, obstacles, position = scene.points(target), scene.obstacle_points(target), scene.position(target)
        grasps = grasping.candidates(position, points, obstacles)
        if scene.is_drawer(self.goal.place):
            grasps = suited_to_drawer(grasps, scene.handle(self.goal.place)[1])
        self._grasp = grasps[self._misses_here // MISSES_PER_GRASP % len(grasps)]
        self._pose = position, scene.rotation(target)
        base = scene.support_height(float(points[:, 2].min()) + 0.01)
        self._hand_map = HeightMap(np.concatenate([points, obstacles]), base).grown(grasping.FINGER_OUTER + 0.006)
        self._target_top = float(points[:, 2].max())

    def _displaced(self, scene: Scene) -> bool:
        position, rotation = self._pose
        moved = float(np.linalg.norm(scene.position(self.goal.target) - position))
        cosine = (np.trace(rotation.T @ scene.rotation(self.goal.target)) - 1) / 2
        return moved > (CENTRED if self.phase == "close" else MOVED) or bool(cosine < np.cos(ROTATED))

    def _at_grasp(self, scene: Scene, *, closing: bool) -> bool:
        """The hand is where it should close; fingers that already do so may push it off a little."""
        error = scene.position(self.goal.target) + self._grasp.offset - scene.hand_position()
        turn = float(np.linalg.norm(self._turn(scene)))
        distance, height = float(np.linalg.norm(error[:2])), abs(float(error[2]))
        allowed = GO_ON_CLOSING if closing or self.phase == "close" else BEGIN_TO_CLOSE
        return distance < allowed[0] and height < allowed[1] and turn < allowed[2]

    def _turn(self, scene: Scene) -> Array:
        """[3], rotation still to do to the grasp, rad."""
        return turn_to(scene, self._grasp.angle)

    def _approach(self, scene: Scene) -> Array:
        hand = scene.hand_position()
        site = scene.position(self.goal.target) + self._grasp.offset
        turn = self._turn(scene)
        distance = float(np.linalg.norm(site[:2] - hand[:2]))
        # once the fingers are astride, a small drift must not send the hand up again
        astride = hand[2] - grasping.TIP_BELOW < self._target_top
        aligned = distance < ALIGNED * (1.5 if astride else 1.0) and np.linalg.norm(turn) < (0.3 if astride else 0.15)
        path, s = along(hand[:2], site[:2])
        required = self._hand_map.at(path) + grasping.TIP_BELOW + HEADROOM
        if aligned and scene.finger_opening() > FINGERS_OPEN:
            required[:] = site[2]
        planned = ahead(scene)
        return travel(site[:2] - planned[:2], planned[2], required, s, turn, OPEN)

    # -- close: hold still until both fingers grip

    def _close(self, scene: Scene) -> Array:
        site = scene.position(self.goal.target) + self._grasp.offset
        return hold(scene, site, self._turn(scene), CLOSE)

    # -- carry: lift, transport and lower, keeping the object-to-hand offset

    def _start_carry(self, scene: Scene) -> None:
        target = self.goal.target
        points, obstacles, position = scene.points(target), scene.obstacle_points(target), scene.position(target)
        base = scene.support_height(float(points[:, 2].min()) + 0.01)
        heights = HeightMap(obstacles, base)
        radius = float(np.linalg.norm(points[:, :2] - position[:2], axis=1).max())
        self._object_map = heights.grown(radius + 0.006)
        self._hand_map = heights.grown(0.05)
        self._below = float(position[2] - points[:, 2].min())
        self._grip_height = float(position[2])
        self._overhang = overhang(points, obstacles, OVERHANG_GAP + OVERHANG_LEAD)
        self._angle = finger_angle(scene.hand_rotation())
        self._shift, self._place_height = self._find_place(scene)
        self._lost = 0
        self._misses_here = 0
        self.phase = "carry"

    def _find_place(self, scene: Scene) -> tuple[Array, float]:
        """Where the object's origin is to arrive: place in the plane [2], m, relative to the goal's; and height, m."""
        goal = self.goal
        place = scene.place_position(goal)
        container = scene.place_points(goal)
        near = container[np.linalg.norm(container[:, :2] - place[:2], axis=1) < 0.03]
        if goal.predicate == "on":
            floor = float(near[:, 2].max()) if len(near) else scene.support_height(float(place[2]) + REGION_BELOW)
            # aim 8 mm too deep: the object must touch
            return self._spot(scene), floor + self._below - 0.008
        inside = near[near[:, 2] < place[2]]
        floor = float(inside[:, 2].max()) if len(inside) else float(container[:, 2].min())
        above = scene.hand_position() - scene.position(goal.target)
        palm_limit = float(container[:, 2].max()) - grasping.PALM_ABOVE + 0.01 - float(above[2])
        height = max(floor + self._below + 0.02, palm_limit)
        if not scene.is_drawer(goal.place):
            return self._share_inside(scene), height
        return place_in_drawer(scene, goal, floor, above + np.array([0.0, 0.0, height]), self._angle), height

    def _spot(self, scene: Scene) -> Array:
        """[2], where in a region the object goes, m from its centre: two that share it take a side each."""
        half = scene.place_half_size(self.goal)
        if not self.goal.shared and scene.on_table(self.goal):
            place = scene.place_position(self.goal)
            floor = scene.support_height(float(place[2]) + REGION_BELOW)
            return place_on_table(scene, self.goal, floor, max(0.0, half - SHARED_MARGIN))
        if not self.goal.shared or self.goal.predicate != "on" or half < SHARED_MARGIN:
            return np.zeros(2)
        sides = [np.array([half - SHARED_MARGIN, 0.0]), np.array([SHARED_MARGIN - half, 0.0])]
        centre = scene.place_position(self.goal)[:2]
        return max(sides, key=lambda side: min(SHARED_ROOM, scene.nearest_other(self.goal.target, centre + side)))

    def _share_inside(self, scene: Scene) -> Array:
        """[2], where in a container the object goes, m from its middle. Two that share it and would not stand in it one
        on the other take a side each, along the container's longer axis."""
        goal = self.goal
        extent = scene.place_extent(goal)
        heights = [float(np.ptp(scene.points(name)[:, 2])) for name in scene.sharing(goal)]
        if not goal.shared or 1.5 * max(heights) < 2 * extent[2]:
            return np.zeros(2)
        centre = scene.place_position(goal)[:2]
        axes = [axis for axis in (1, 0) if extent[axis] > 0.8 * extent[:2].max()]
        away = min(ASIDE_AT_MOST, float(extent[:2].max()) - ASIDE_MARGIN)
        sides = [sign * away * np.eye(2)[axis] for axis in axes for sign in (1.0, -1.0)]
        return max(sides, key=lambda side: min(2 * away, round(scene.nearest_other(goal.target, centre + side), 2)))

    def _place(self, scene: Scene) -> Array:
        """[2], where the object's origin is to go, m."""
        return scene.place_position(self.goal)[:2] + self._shift

    def _arrived(self, scene: Scene) -> bool:
        error = self._place(scene) - scene.position(self.goal.target)[:2]
        low = self._place_height + (0.012 if self.goal.predicate == "in" else 0.004)
        return float(np.linalg.norm(error)) < 0.02 and scene.position(self.goal.target)[2] < low

    def lowered(self, scene: Scene) -> bool:
        """The object is so low over its place that it may be let go as soon as its goal is fulfilled.

        Never before it is carried: its place is planned then. A hand that closes on an object may hold it earlier.
        """
        if self.phase not in ("carry", "release"):
            return False
        return bool(scene.position(self.goal.target)[2] < self._place_height + LOW)

    def _carry(self, scene: Scene) -> Array:
        hand = scene.hand_position()
        position = scene.position(self.goal.target)
        turn = turn_to(scene, self._angle)
        if (out := self._way_out(scene)) is not None:
            # a bowl at the back of a drawer is partly under the cabinet's top: it would be knocked out of the fingers
            goal = np.append(position[:2] + out, self._grip_height)
            return hold(scene, goal + hand - position, turn, CLOSE)
        place = self._place(scene)
        error = place - position[:2]
        path, s = along(position[:2], place)
        above = hand - position
        required = np.maximum(
            self._object_map.at(path) + self._below + CLEAR,
            self._hand_map.at(path + above[:2]) + grasping.TIP_BELOW + CLEAR - above[2],
        )
        if float(np.linalg.norm(error)) < ALIGNED * 1.5:
            required[:] = self._place_height
        lead = ahead(scene) - hand
        return travel(error - lead[:2], position[2] + lead[2], required, s, turn, CLOSE)

    def _way_out(self, scene: Scene) -> Array | None:
        """[2], how far to move the object aside before it can be lifted, m; None when nothing hangs over it."""
        if not len(self._overhang):
            return None
        points, position = scene.points(self.goal.target), scene.position(self.goal.target)
        above = overhang(points, self._overhang, OVERHANG_GAP)
        if not len(above):
            return None
        away = position[:2] - above[:, :2].mean(axis=0)
        return OVERHANG_LEAD * away / max(1e-6, float(np.linalg.norm(away)))

    # -- release: let go without moving

    def _release(self, scene: Scene) -> Array:
        return action(np.zeros(3), np.zeros(3), OPEN)

"""What the scripted expert reads of the simulation: hand, collision shapes as points, contacts, goal."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import mujoco
import numpy as np
from numpy.typing import NDArray

from rsd_policy.errors import SimulationError

Array = NDArray[np.float64]

POINT_SPACING = 0.008
"""Distance between the points that stand for a collision shape, m: finer than a finger is wide (0.022 m)."""

ELBOW_JOINT = 3
"""Index of the Panda's elbow among its joints."""

HANDLE_THICKNESS = 0.016
"""Points so far behind the front of a drawer belong to its handle's bar, m."""

SUPPORT_HALF_SIZE = 0.4
"""A shape at least this large (half size, m) in two directions is a table or a floor, not an obstacle."""


ORDER = ("open", "turnon", "on", "in", "turnoff", "close")
"""Predicates that the expert can fulfil, in the order in which it does."""


@dataclass(frozen=True)
class Goal:
    """One thing that a task asks for.

    Attributes:
        predicate: one of `ORDER`, or "aside": the target is to leave room for opening the drawer of the region `place`.
        target: name of the object to move; of the fixture to turn on or off, or whose door to close; of the region of
            the drawer to open or close.
        place: name of the object, or of the region (a site), to move it to; "" where nothing is moved.
        shared: another object is to go to the same place.
    """

    predicate: str
    target: str
    place: str
    shared: bool = False


@dataclass(frozen=True)
class Door:
    """A hinged door as it stands now; directions are level unit vectors [3].

    Attributes:
        hinge: [3], a point on the hinge's axis, m.
        along: from the hinge to the free edge.
        outwards: out of the panel's outer side.
        front: the same, were the door closed.
        length: of the panel, m. face: distance of its outer side from the hinge's axis, m. top: its height, m.
    """

    hinge: Array
    along: Array
    outwards: Array
    front: Array
    length: float
    face: float
    top: float


class Scene:
    """Privileged view of one simulation. Build a new one after each reset (robosuite replaces the model).

    All positions are in the simulator's world frame, m.
    """

    def __init__(self, raw: Any) -> None:
        self._raw = raw
        self._model = raw.sim.model._model
        self._live = raw.sim.data._data
        self._data = mujoco.MjData(self._model)
        model = self._model
        self._hand_site = int(raw.robots[0].eef_site_id)
        self._base = int(model.body(raw.robots[0].robot_model.root_body).id)
        gripper = raw.robots[0].gripper.important_geoms
        self._fingers = [
            frozenset(self._geom_id(name) for name in gripper[side]) for side in ("left_finger", "right_finger")
        ]
        robot_root = model.body_rootid[model.site_bodyid[self._hand_site]]
        solid = np.flatnonzero((model.geom_contype | model.geom_conaffinity) != 0)
        root = model.body_rootid[model.geom_bodyid]
        self._points: dict[int, list[tuple[int, Array]]] = {}
        self._supports: list[int] = []
        for geom in solid:
            half = model.geom_aabb[geom, 3:]
            if root[geom] == robot_root or self._is_mount(int(geom)):
                continue
            if model.geom_type[geom] == mujoco.mjtGeom.mjGEOM_PLANE or np.sum(half > SUPPORT_HALF_SIZE) >= 2:
                self._supports.append(int(geom))
                continue
            self._points.setdefault(int(root[geom]), []).append((int(geom), _surface_points(model.geom_aabb[geom])))

        self.refresh()

    def views(self, raw: Any) -> bool:
        """This is a view of that simulation as it is loaded now."""
        return bool(raw.sim.model._model is self._model and raw.sim.data._data is self._live)

    def refresh(self) -> None:
        """Look at the present joint positions and velocities.

        After a step, MuJoCo's poses and contacts are those of the last substep's beginning. Here they are computed
        anew, aside from the simulation, so that they depend on the joint positions and velocities alone: an expert
        that sees a copy of the state (over ROS) acts bit by bit as one inside the simulation.
        """
        self._data.qpos[:] = self._live.qpos
        self._data.qvel[:] = self._live.qvel
        mujoco.mj_kinematics(self._model, self._data)
        mujoco.mj_comPos(self._model, self._data)
        mujoco.mj_comVel(self._model, self._data)
        mujoco.mj_collision(self._model, self._data)

    def _geom_id(self, name: str) -> int:
        return int(mujoco.mj_name2id(self._model, mujoco.mjtObj.mjOBJ_GEOM, name))

    def _is_mount(self, geom: int) -> bool:
        body = mujoco.mj_id2name(self._model, mujoco.mjtObj.mjOBJ_BODY, self._model.geom_bodyid[geom]) or ""
        return body.startswith(("robot0", "gripper0", "mount0"))

    def _root(self, name: str) -> int:
        """Root body of an object, or of the object that a region belongs to."""
        site = self._raw.object_sites_dict.get(name)
        return int(self._model.body_rootid[self._raw.obj_body_id[name if site is None else site.parent_name]])

    def hand_position(self) -> Array:
        """[3], the gripper site: between the finger pads, 4 mm above their tips."""
        return self._data.site_xpos[self._hand_site].copy()

    def hand_velocity(self) -> Array:
        """[3], linear velocity of the gripper site, m/s."""
        twist = np.zeros(6)
        mujoco.mj_objectVelocity(self._model, self._data, mujoco.mjtObj.mjOBJ_SITE, self._hand_site, twist, 0)
        return twist[3:]

    def base_position(self) -> Array:
        """[3], origin of the robot's base."""
        return self._data.xpos[self._base].copy()

    def elbow(self) -> float:
        """Angle of the elbow, rad: negative, straight at its limit of -0.07."""
        return float(self._data.qpos[self._raw.robots[0]._ref_joint_pos_indexes[ELBOW_JOINT]])

    def finger_speed(self) -> float:
        """Speed of the faster finger, m/s."""
        return float(np.abs(self._data.qvel[self._raw.robots[0]._ref_gripper_joint_vel_indexes]).max())

    def finger_opening(self) -> float:
        """Distance between the finger pads, m."""
        joints = self._data.qpos[self._raw.robots[0]._ref_gripper_joint_pos_indexes]
        return float(np.abs(joints).sum())

    def fingers_closing(self) -> float:
        """Speed at which the distance between the finger pads shrinks, m/s; negative while they open."""
        robot = self._raw.robots[0]
        joints = self._data.qpos[robot._ref_gripper_joint_pos_indexes]
        return float(-np.sign(joints) @ self._data.qvel[robot._ref_gripper_joint_vel_indexes])

    def hand_rotation(self) -> Array:
        """[3, 3], columns in the world frame: the fingers' opening direction, across it, out of the palm."""
        return self._data.site_xmat[self._hand_site].reshape(3, 3).copy()

    def position(self, name: str) -> Array:
        """[3], origin of an object's body."""
        return self._data.xpos[self._raw.obj_body_id[name]].copy()

    def rotation(self, name: str) -> Array:
        """[3, 3], orientation of an object's body in the world frame."""
        return self._data.xmat[self._raw.obj_body_id[name]].reshape(3, 3).copy()

    def place_position(self, goal: Goal) -> Array:
        """[3], origin of the goal's object or centre of its region."""
        if goal.place in self._raw.obj_body_id:
            return self.position(goal.place)
        return np.array(self._data.site(goal.place).xpos)

    def place_points(self, goal: Goal) -> Array:
        """[N, 3], points on what holds the place: an object, or the part of it (a drawer) that the region belongs to;
        none for a region of the table."""
        if goal.place in self._raw.obj_body_id:
            return self.points(goal.place)
        model = self._model
        part = int(model.site_bodyid[model.site(goal.place).id])
        root = int(model.body_rootid[part])
        held = [entry for entry in self._points.get(root, []) if self._belongs(int(model.geom_bodyid[entry[0]]), part)]
        return self._placed(held)

    def _belongs(self, body: int, part: int) -> bool:
        """`body` is `part` or hangs on it; the world holds everything and counts for nothing."""
        while body > 0 and body != part:
            body = int(self._model.body_parentid[body])
        return body > 0

    def on_table(self, goal: Goal) -> bool:
        """The place is a region of the table itself."""
        site = self._raw.object_sites_dict.get(goal.place)
        return site is not None and site.parent_name is None

    def place_half_size(self, goal: Goal) -> float:
        """Half the extent of a region in its own x, m; 0 for an object: it has one right place."""
        site = self._raw.object_sites_dict.get(goal.place)
        return 0.0 if site is None else float(np.asarray(site.size, dtype=np.float64)[0])

    def place_extent(self, goal: Goal) -> Array:
        """[3], half the extents of the goal's region along the world's axes, m; 0 for an object."""
        site = self._raw.object_sites_dict.get(goal.place)
        if site is None:
            return np.zeros(3)
        extent: Array = np.abs(self._data.site(goal.place).xmat.reshape(3, 3)) @ np.asarray(site.size, dtype=np.float64)
        return extent

    def sharing(self, goal: Goal) -> list[str]:
        """Names of all objects that are to go to the goal's place."""
        return [
            state[1] for state in self._raw.parsed_problem["goal_state"] if len(state) == 3 and state[2] == goal.place
        ]

    def nearest_other(self, target: str, xy: Array) -> float:
        """Distance (m) in the plane from a place to the nearest movable object but `target`."""
        others = [self.position(name)[:2] for name in self._raw.objects_dict if name != target]
        return min((float(np.linalg.norm(other - xy)) for other in others), default=float("inf"))

    def object_positions(self) -> list[Array]:
        """[3] each, origins of all movable objects."""
        return [self.position(name) for name in self._raw.objects_dict]

    def points(self, name: str) -> Array:
        """[N, 3], points on the collision shapes of an object."""
        return self._world_points(self._root(name))

    def _world_points(self, root: int) -> Array:
        return self._placed(self._points[root])

    def _placed(self, shapes: list[tuple[int, Array]]) -> Array:
        data = self._data
        parts = [p @ data.geom_xmat[geom].reshape(3, 3).T + data.geom_xpos[geom] for geom, p in shapes]
        return np.concatenate(parts) if parts else np.zeros((0, 3))

    def obstacle_points(self, target: str | None) -> Array:
        """[N, 3], points on everything solid but the robot, the tables and `target`."""
        skip = None if target is None else self._root(target)
        parts = [self._world_points(root) for root in self._points if root != skip]
        return np.concatenate(parts) if parts else np.zeros((0, 3))

    def support_height(self, below: float) -> float:
        """Top of the highest table or floor that is not above `below`, m."""
        tops = []
        for geom in self._supports:
            half = np.abs(self._data.geom_xmat[geom].reshape(3, 3)) @ self._model.geom_aabb[geom, 3:]
            plane = self._model.geom_type[geom] == mujoco.mjtGeom.mjGEOM_PLANE
            tops.append(float(self._data.geom_xpos[geom][2]) + (0.0 if plane else float(half[2])))
        lower = [top for top in tops if top <= below]
        return max(lower) if lower else min(tops, default=below)

    def knob(self, name: str) -> tuple[Array, float, float, float]:
        """Of a fixture's first joint: its axis' place [3], m; direction of the turning part's ridge in the plane, rad
        (one of its two ends); the ridge's width and the height of its top, m."""
        joint = self._model.joint(self._raw.get_object(name).joints[0])
        part = int(self._model.jnt_bodyid[joint.id])
        points = self._placed(
            [entry for entry in self._points[self._root(name)] if self._model.geom_bodyid[entry[0]] == part]
        )
        top, low = float(points[:, 2].max()), float(points[:, 2].min())
        ridge = points[points[:, 2] > (top + low) / 2, :2]
        across, direction = np.linalg.eigh(np.cov(ridge.T))[1].T
        width = float(np.ptp(ridge @ across))
        return self._data.xanchor[joint.id].copy(), float(np.arctan2(direction[1], direction[0])), width, top

    def held(self, name: str) -> bool:
        """Both fingers touch the object."""
        root = self._root(name)
        model, data = self._model, self._data
        touching = [False, False]
        for first, second in data.contact.geom[: data.ncon]:
            for finger, other in ((first, second), (second, first)):
                if model.body_rootid[model.geom_bodyid[other]] == root:
                    for side in (0, 1):
                        touching[side] |= int(finger) in self._fingers[side]
        return touching[0] and touching[1]

    def goals(self) -> list[tuple[Goal, bool]]:
        """The task's goals in the order in which they are to be reached, and whether each is fulfilled now.

        Raises:
            SimulationError: the task asks for something that the expert cannot do.
        """
        result = []
        for state in self._raw.parsed_problem["goal_state"]:
            if state[0] not in ORDER:
                raise SimulationError(f"scripted expert: expected goals {', '.join(ORDER)}, got {state}; see `--list`")
            goal, fulfilled = self._goal(*state), bool(self._raw._eval_predicate(state))
            result.append((goal, fulfilled))
            if goal.predicate == "in" and self.is_drawer(goal.place):
                # nothing goes into a closed drawer
                opened = bool(self._raw._eval_predicate(["open", goal.place])) or fulfilled
                result.append((Goal("open", goal.place, ""), opened))
        # what goes on the table goes first: the hand that sets it down would hit what already stands beside its place
        return sorted(result, key=lambda entry: (ORDER.index(entry[0].predicate), not self.on_table(entry[0])))

    def is_drawer(self, region: str) -> bool:
        """The region is the inside of a drawer."""
        site = self._raw.object_sites_dict.get(region)
        joints = (site.joints if site is not None else None) or []
        return any(self._model.joint(joint).type[0] == mujoco.mjtJoint.mjJNT_SLIDE for joint in joints)

    def handle(self, region: str) -> tuple[Array, Array]:
        """Of the drawer of a region: the middle of its handle's bar [3], m, and the direction it opens in [3]."""
        joint = self._model.joint(self._raw.object_sites_dict[region].joints[0])
        outwards = self._data.xaxis[joint.id] * np.sign(joint.range.sum())
        part = int(self._model.jnt_bodyid[joint.id])
        shapes = self._points[int(self._model.body_rootid[part])]
        points = self._placed([entry for entry in shapes if self._model.geom_bodyid[entry[0]] == part])
        reach = points @ outwards
        bar = points[reach > reach.max() - HANDLE_THICKNESS]
        return (bar.max(axis=0) + bar.min(axis=0)) / 2, outwards

    def has_door(self, name: str) -> bool:
        """A fixture, or the one that a region belongs to, has a hinged door."""
        return self._door_joint(name) is not None

    def door(self, name: str) -> Door:
        """The door of a fixture, or of the one that a region belongs to."""
        joint = self._door_joint(name)
        assert joint is not None, name
        part = int(self._model.jnt_bodyid[joint.id])
        shapes = [entry for entry in self._points[self._root(name)] if self._model.geom_bodyid[entry[0]] == part]
        panel = self._placed([max(shapes, key=lambda entry: float(self._model.geom_aabb[entry[0], 3:].prod()))])
        hinge, axis = self._data.xanchor[joint.id].copy(), self._data.xaxis[joint.id]
        closed = joint.range[int(np.argmin(np.abs(joint.range)))]
        left = float(closed - self._data.qpos[joint.qposadr[0]])
        shut = -np.sign(joint.range.sum()) * axis
        spread = np.linalg.eigh(np.cov(panel[:, :2].T))[1][:, 1]
        along = np.append(spread * np.sign(spread @ (panel.mean(axis=0) - hinge)[:2]), 0.0)
        outwards = np.cross(along, shut)
        front = np.cos(left) * outwards + np.sin(left) * np.cross(axis, outwards)
        offsets = panel - hinge
        length, face = float((offsets @ along).max()), float((offsets @ outwards).max())
        return Door(hinge, along, outwards, front, length, face, float(panel[:, 2].max()))

    def _door_joint(self, name: str) -> Any:
        site = self._raw.object_sites_dict.get(name)
        fixture = self._raw.fixtures_dict.get(name if site is None else site.parent_name)
        # a knob turns on a hinge, too, but is not closed
        if fixture is None or not fixture.object_properties.get("articulation", {}).get("default_close_ranges"):
            return None
        joints = [self._model.joint(joint) for joint in fixture.joints]
        return next((joint for joint in joints if joint.type[0] == mujoco.mjtJoint.mjJNT_HINGE), None)

    def drawer_travel(self, region: str) -> Array:
        """[3], how far the drawer of a region may still be pulled out, m."""
        joint = self._model.joint(self._raw.object_sites_dict[region].joints[0])
        end = joint.range[int(np.argmax(np.abs(joint.range)))]
        left: Array = self._data.xaxis[joint.id] * (end - self._data.qpos[joint.qposadr[0]])
        return left

    def _goal(self, predicate: str, target: str, place: str = "") -> Goal:
        if place and target not in self._raw.objects_dict:
            raise SimulationError(f"scripted expert: expected a movable object as target, got '{target}'")
        hinged = predicate == "close" and self.has_door(target)
        if predicate in ("open", "close") and not (hinged or self.is_drawer(target)):
            raise SimulationError(
                f"scripted expert: expected a drawer to {predicate}, or a door to close, got '{target}'; see `--list`"
            )
        sharing = [state for state in self._raw.parsed_problem["goal_state"] if place and state[-1] == place]
        return Goal(predicate, target, place, len(sharing) > 1)


def _surface_points(aabb: Array) -> Array:
    """Points on the surface of a box given as centre and half sizes [6], at most POINT_SPACING apart. [N, 3]."""
    centre, half = aabb[:3], aabb[3:]
    axes = [np.linspace(-h, h, max(2, int(np.ceil(2 * h / POINT_SPACING)) + 1)) for h in half]
    grid = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, 3)
    outside = np.any(np.isclose(np.abs(grid), half), axis=1)
    return grid[outside] + centre

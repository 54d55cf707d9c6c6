"""Frames of the simulated robot for TF: base, hand and cameras in the world, as the simulation has them.

TF travels as tf2_msgs/TFMessage, which comes with every ROS installation and not with the wheels: without it /tf is not
published, and nothing else is missing.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import mujoco
import numpy as np
from builtin_interfaces.msg import Time
from geometry_msgs.msg import TransformStamped
from numpy.typing import NDArray
from rclpy.node import Node
from rclpy.publisher import Publisher

from rsd_policy.nodes.messages import ACTION_FRAME, WORLD_FRAME
from sim_bridge.libero_env import CAMERAS, LiberoEnv

TFMessage: Any = import_module("tf2_msgs.msg").TFMessage if find_spec("tf2_msgs") else None

HAND_FRAME = "robot0_hand"
"""The frame whose pose eef_pose is."""

_HAND_CAMERA = "wrist"
_OPTICAL = np.diag([1.0, -1.0, -1.0])
"""MuJoCo's cameras look along -z with y up, optical frames (REP 103) along z with y down."""


@dataclass(frozen=True)
class Frame:
    """Pose of a frame in its parent.

    Attributes:
        position: [3], m.
        quaternion_xyzw: [4], scalar last.
    """

    parent: str
    child: str
    position: NDArray[np.float64]
    quaternion_xyzw: NDArray[np.float64]


def frames(env: LiberoEnv) -> list[Frame]:
    """world -> base, world -> hand, world -> agentview_optical_frame, hand -> wrist_optical_frame, of this moment."""
    data, model = env.sim.data, env.sim.model
    base = model.body_name2id(ACTION_FRAME)
    robot = env.robot_state()
    hand, rotation = robot.eef_position, _matrix(robot.eef_quaternion_xyzw)
    found = [
        Frame(WORLD_FRAME, ACTION_FRAME, np.array(data.body_xpos[base]), _quaternion(data.body_xmat[base])),
        Frame(WORLD_FRAME, HAND_FRAME, hand, robot.eef_quaternion_xyzw),
    ]
    for name, camera_name in CAMERAS.items():
        camera = model.camera_name2id(camera_name)
        position, axes = np.array(data.cam_xpos[camera]), data.cam_xmat[camera].reshape(3, 3) @ _OPTICAL
        parent = WORLD_FRAME
        if name == _HAND_CAMERA:
            parent, position, axes = HAND_FRAME, rotation.T @ (position - hand), rotation.T @ axes
        found.append(Frame(parent, f"{name}_optical_frame", position, _quaternion(axes)))
    return found


class FramePublisher:
    """Publishes /tf, where tf2_msgs is installed."""

    def __init__(self, node: Node) -> None:
        self._publisher: Publisher | None = None
        if TFMessage is not None:
            self._publisher = node.create_publisher(TFMessage, "/tf", 100)  # as tf2_ros does

    def message(self, stamp: Time, env: LiberoEnv) -> tuple[Publisher, object] | None:
        """What to publish where for a moment, or None where nobody could read it."""
        if self._publisher is None:
            return None
        return self._publisher, TFMessage(transforms=[_transform(frame, stamp) for frame in frames(env)])


def _transform(frame: Frame, stamp: Time) -> TransformStamped:
    msg = TransformStamped(child_frame_id=frame.child)
    msg.header.stamp, msg.header.frame_id = stamp, frame.parent
    p, q = msg.transform.translation, msg.transform.rotation
    p.x, p.y, p.z = (float(value) for value in frame.position)
    q.x, q.y, q.z, q.w = (float(value) for value in frame.quaternion_xyzw)
    return msg


def _quaternion(matrix: NDArray[np.float64]) -> NDArray[np.float64]:
    """Rotation matrix, [3, 3] or [9] -> [4], scalar last."""
    wxyz = np.empty(4)
    mujoco.mju_mat2Quat(wxyz, np.asarray(matrix, dtype=np.float64).ravel())
    return np.roll(wxyz, -1)


def _matrix(quaternion_xyzw: NDArray[np.float64]) -> NDArray[np.float64]:
    matrix = np.empty(9)
    mujoco.mju_quat2Mat(matrix, np.roll(np.asarray(quaternion_xyzw, dtype=np.float64), 1))
    return matrix.reshape(3, 3)

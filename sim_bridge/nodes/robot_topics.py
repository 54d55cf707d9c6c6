"""The topics with which the simulated robot looks like a real one: cameras, pose, joints, clock."""

from __future__ import annotations

import math

import numpy as np
from builtin_interfaces.msg import Time
from geometry_msgs.msg import PoseStamped
from numpy.typing import NDArray
from rclpy.node import Node
from rclpy.publisher import Publisher
from rosgraph_msgs.msg import Clock
from sensor_msgs.msg import CameraInfo, Image, JointState
from std_msgs.msg import Float64MultiArray

from rsd_policy.nodes.messages import ARM_JOINTS, GRIPPER_JOINTS, WORLD_FRAME, image_to_msg
from rsd_policy.nodes.runtime import COMMANDS, LOCKSTEP_INPUT
from sim_bridge.libero_env import CAMERAS, LiberoEnv, RobotState
from sim_bridge.nodes.robot_frames import FramePublisher


class RobotTopics:
    """Publishers of one robot. The messages of the latest stamp are kept, so that they can be sent again.

    Beside each camera's mirrored images, which policies read, its unmirrored ones are published for people, once
    somebody listens: no pinhole camera with positive focal lengths sees a mirrored world, and RViz overlays need one.
    """

    def __init__(self, node: Node, *, privileged: bool) -> None:
        self._cameras = {
            name: (
                node.create_publisher(Image, f"{name}/image_raw", LOCKSTEP_INPUT),
                node.create_publisher(CameraInfo, f"{name}/camera_info", LOCKSTEP_INPUT),
            )
            for name in CAMERAS
        }
        self._unmirrored = {
            name: (
                node.create_publisher(Image, f"{name}/unmirrored/image_raw", LOCKSTEP_INPUT),
                node.create_publisher(CameraInfo, f"{name}/unmirrored/camera_info", LOCKSTEP_INPUT),
            )
            for name in CAMERAS
        }
        self._frames = FramePublisher(node)
        self._env: LiberoEnv | None = None
        self._pose = node.create_publisher(PoseStamped, "eef_pose", LOCKSTEP_INPUT)
        self._joints = node.create_publisher(JointState, "joint_states", LOCKSTEP_INPUT)
        self._clock = node.create_publisher(Clock, "/clock", LOCKSTEP_INPUT)
        self._state = node.create_publisher(Float64MultiArray, "sim_state", COMMANDS) if privileged else None
        self._infos: dict[str, CameraInfo] = {}
        self._latest: list[tuple[Publisher, object]] = []

    def use(self, env: LiberoEnv) -> None:
        """Take the intrinsics of the cameras, and from now on the frames, from an environment."""
        self._env = env
        self._infos = {name: camera_info(env, name) for name in CAMERAS} if env.render else {}

    def publish(
        self,
        stamp: Time,
        robot: RobotState,
        images: dict[str, NDArray[np.uint8]],
        privileged: tuple[int, int, NDArray[np.float64]] | None,
    ) -> None:
        """Publish one moment, everything with the same stamp.

        Args:
            stamp: simulation time.
            robot: state of the arm.
            images: camera -> uint8 [H, W, 3]; empty when this moment was not rendered.
            privileged: episode, step and state of the simulation, for the scripted expert.
        """
        latest: list[tuple[Publisher, object]] = [(self._clock, Clock(clock=stamp))]
        for name, image in images.items():
            info = self._infos[name]
            info.header.stamp = stamp
            image_publisher, info_publisher = self._cameras[name]
            latest.append((image_publisher, image_to_msg(image, stamp, info.header.frame_id)))
            latest.append((info_publisher, info))
            image_publisher, info_publisher = self._unmirrored[name]
            if image_publisher.get_subscription_count() or info_publisher.get_subscription_count():
                latest.append((image_publisher, image_to_msg(image[:, ::-1], stamp, info.header.frame_id)))
                latest.append((info_publisher, unmirrored(info)))
        latest.append((self._pose, _pose(robot, stamp)))
        latest.append((self._joints, _joints(robot, stamp)))
        transforms = self._frames.message(stamp, self._env) if self._env is not None else None
        if transforms is not None:
            latest.append(transforms)
        if self._state is not None and privileged is not None:
            episode, step, state = privileged
            # a MultiArray has no header: the first two numbers say which moment it is
            latest.append((self._state, Float64MultiArray(data=[float(episode), float(step), *state.tolist()])))
        self._latest = latest
        self.publish_again()

    def publish_again(self) -> None:
        """Publish the latest moment once more."""
        for publisher, message in self._latest:
            publisher.publish(message)


def camera_info(env: LiberoEnv, name: str) -> CameraInfo:
    """Intrinsics of a camera, for the image as it is published.

    The frames that published LIBERO policies read are MuJoCo's, which start at the bottom row, turned by 180 degrees.
    Against the world such a frame is mirrored left to right. A pinhole camera says that with a negative fx: with
    X right, Y down, Z forward in the optical frame, u = fx X / Z + cx. There is no other way to say it: frames are
    related by rotations, which keep left and right, and so does a K with positive fx and fy.
    """
    model = env.sim.model
    fovy = math.radians(float(model.cam_fovy[model.camera_name2id(CAMERAS[name])]))
    size = env.image_size
    focal = 0.5 * size / math.tan(0.5 * fovy)
    centre = 0.5 * (size - 1)  # pixel centres have integer coordinates
    info = CameraInfo(width=size, height=size, distortion_model="plumb_bob", d=[0.0] * 5)
    info.header.frame_id = f"{name}_optical_frame"
    info.k = [-focal, 0.0, centre, 0.0, focal, centre, 0.0, 0.0, 1.0]
    info.r = [1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0]
    info.p = [-focal, 0.0, centre, 0.0, 0.0, focal, centre, 0.0, 0.0, 0.0, 1.0, 0.0]
    return info


def unmirrored(info: CameraInfo) -> CameraInfo:
    """Intrinsics for the same frame flipped left to right, in the same optical frame: fx is positive."""
    k, p = list(info.k), list(info.p)
    k[0], p[0] = -k[0], -p[0]
    k[2] = p[2] = info.width - 1 - k[2]
    return CameraInfo(
        header=info.header,
        width=info.width,
        height=info.height,
        distortion_model=info.distortion_model,
        d=info.d,
        k=k,
        r=info.r,
        p=p,
    )


def _pose(robot: RobotState, stamp: Time) -> PoseStamped:
    msg = PoseStamped()
    msg.header.stamp = stamp
    msg.header.frame_id = WORLD_FRAME
    p, q = msg.pose.position, msg.pose.orientation
    p.x, p.y, p.z = (float(v) for v in robot.eef_position)
    q.x, q.y, q.z, q.w = (float(v) for v in robot.eef_quaternion_xyzw)
    return msg


def _joints(robot: RobotState, stamp: Time) -> JointState:
    msg = JointState(name=[*ARM_JOINTS, *GRIPPER_JOINTS])
    msg.header.stamp = stamp
    msg.position = [float(v) for v in (*robot.joint_positions, *robot.gripper_qpos)]
    return msg

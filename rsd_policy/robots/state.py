"""The eight numbers of the state, out of a pose and joint positions as a contract describes them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rsd_policy.errors import ObservationError
from rsd_policy.observation import proprio_from_pose
from rsd_policy.robots.contract import AS_PUBLISHED, EefPose, Gripper

IDENTITY = (0.0, 0.0, 0.0, 1.0)


def compose_state(pose: Any, joints: Any, eef: EefPose, gripper: Gripper) -> NDArray[np.float32]:
    """The state float32 [8] of `rsd_policy.observation.proprio_from_pose`.

    Args:
        pose: geometry_msgs/PoseStamped.
        joints: sensor_msgs/JointState.
        eef, gripper: what they mean.

    Raises:
        ObservationError: another frame, a joint that is not there, or no unit quaternion.
    """
    if eef.frame and pose.header.frame_id != eef.frame:
        raise ObservationError(
            f"{eef.topic}: expected frame_id '{eef.frame}', got '{pose.header.frame_id}'; the policy knows positions "
            "in one frame only (state.pose.frame and base_translation in the contract)"
        )
    p, q = pose.pose.position, pose.pose.orientation
    return place_state([p.x, p.y, p.z], [q.x, q.y, q.z, q.w], fingers(joints, gripper), eef)


def place_state(
    position: Sequence[float], quaternion: Sequence[float], finger_positions: Sequence[float], eef: EefPose
) -> NDArray[np.float32]:
    """The state float32 [8] of a pose that is put into the frame of the training.

    Args:
        position: [3], m, and quaternion (x, y, z, w): as the robot says them.
        finger_positions: [2], m, with the training's signs.
        eef: what the pose means.

    Raises:
        ObservationError: no unit quaternion.
    """
    # The identity is left out, not multiplied by: the bits of a simulation's state stay as they are.
    if eef.base_rotation != IDENTITY:
        position = rotate(eef.base_rotation, position)
        quaternion = multiply(eef.base_rotation, quaternion)
    if any(eef.base_translation):
        position = [a + b for a, b in zip(eef.base_translation, position, strict=True)]
    if eef.tool_rotation != IDENTITY:
        quaternion = multiply(quaternion, eef.tool_rotation)
    if eef.toward != AS_PUBLISHED and float(np.dot(eef.toward, quaternion)) < 0.0:
        quaternion = [-value for value in quaternion]
    return proprio_from_pose(position, quaternion, finger_positions)


def fingers(joints: Any, gripper: Gripper) -> list[float]:
    """The two finger positions, m.

    Raises:
        ObservationError: a joint is not in the message.
    """
    positions = dict(zip(joints.name, joints.position, strict=False))
    missing = [name for name in gripper.joints if name not in positions]
    if missing:
        raise ObservationError(
            f"{gripper.topic}: expected positions of {', '.join(gripper.joints)}, got {', '.join(positions) or 'none'}"
        )
    return scale_fingers([float(positions[name]) for name in gripper.joints], gripper)


def scale_fingers(values: Sequence[float], gripper: Gripper) -> list[float]:
    """The two finger positions, m, of two published numbers, or of one, which is the width."""
    if len(values) == 1:
        values = [values[0] / 2.0] * 2
    return [scale * value for scale, value in zip(gripper.scale, values, strict=True)]


def multiply(a: Sequence[float], b: Sequence[float]) -> list[float]:
    """Hamilton product of quaternions (x, y, z, w): the rotation b, then a."""
    ax, ay, az, aw = a
    bx, by, bz, bw = b
    return [
        aw * bx + ax * bw + ay * bz - az * by,
        aw * by - ax * bz + ay * bw + az * bx,
        aw * bz + ax * by - ay * bx + az * bw,
        aw * bw - ax * bx - ay * by - az * bz,
    ]


def rotate(quaternion: Sequence[float], vector: Sequence[float]) -> list[float]:
    """A vector turned by a unit quaternion (x, y, z, w)."""
    x, y, z, w = quaternion
    turned = multiply(multiply(quaternion, [*vector, 0.0]), [-x, -y, -z, w])
    return turned[:3]


def stamp_of(msg: Any) -> int:
    """The stamp of a message's header (or of a CompressedVideo), ns."""
    stamp = msg.header.stamp if hasattr(msg, "header") else msg.timestamp
    nanoseconds = stamp.nanosec if hasattr(stamp, "nanosec") else stamp.nsec
    return int(stamp.sec) * 1_000_000_000 + int(nanoseconds)


FIELDS = ("x", "y", "z", "axis-angle x", "axis-angle y", "axis-angle z", "finger 1", "finger 2")
FAR = (4.0, 4.0, 4.0, 6.0, 6.0, 6.0, 4.0, 4.0)
"""Standard deviations from the mean of the training beyond which a number is not from there.

The scripted expert's own episodes (tasks of three suites) come as far as 2.1 in position, 4.5 in rotation and 1.5 at
the fingers; the base frame for LIBERO's world is 4.4 in x at the start of an episode.
"""

ONE_SIDED = 1.2
"""A number whose mean is this many standard deviations away from 0 has a sign in training."""

CAUSES = {
    0: "is it in another frame (state.pose.base_translation)?",
    3: "is it the other quaternion of the same rotation (state.pose.toward), or another tool frame?",
    6: "does the finger's sign or unit differ (state.gripper.scale)?",
}


def unlike_training(state: ArrayLike, mean: ArrayLike, std: ArrayLike) -> list[str]:
    """What in a state a policy has not seen in training: one sentence per number, empty when all is well.

    Args:
        state: [8].
        mean, std: [8], of the training's states.
    """
    values, means, stds = (np.asarray(a, dtype=np.float64) for a in (state, mean, std))
    stds = np.maximum(stds, 1e-6)
    found = []
    for i, name in enumerate(FIELDS):
        distance = (values[i] - means[i]) / stds[i]
        # the signs: a finger that is counted the other way stays within a few deviations
        flipped = abs(means[i]) > ONE_SIDED * stds[i] and values[i] * means[i] < 0 and abs(values[i]) > 0.5 * stds[i]
        if abs(distance) > FAR[i] or flipped:
            cause = CAUSES[max(first for first in CAUSES if first <= i)]
            found.append(
                f"state {name} = {values[i]:.4g}: {abs(distance):.1f} standard deviations from the training's mean "
                f"{means[i]:.4g}{', with the other sign' if flipped else ''}; {cause}"
            )
    return found

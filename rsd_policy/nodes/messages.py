"""Between ROS messages and the ROS-free types: stamps, images, chunks."""

from __future__ import annotations

import numpy as np
from builtin_interfaces.msg import Time
from numpy.typing import ArrayLike, NDArray
from rsd_msgs.msg import ActionChunk as ActionChunkMsg
from sensor_msgs.msg import Image

from rsd_policy.errors import ActionError
from rsd_policy.observation import ActionChunk, ChunkStats

NANOSECONDS = 1_000_000_000

ARM_JOINTS = tuple(f"panda_joint{i}" for i in range(1, 8))
GRIPPER_JOINTS = ("panda_finger_joint1", "panda_finger_joint2")
"""Joint names of the Franka Panda, as its ROS drivers publish them."""

WORLD_FRAME = "world"
"""robosuite's world frame: the frame of eef_pose. Its axes are those of the robot's base."""

ACTION_FRAME = "robot0_base"
"""Frame of the actions: OSC_POSE moves along the axes of the robot's base."""


def to_nanoseconds(stamp: Time) -> int:
    """A stamp as one integer, which can be compared and used as a key."""
    return int(stamp.sec) * NANOSECONDS + int(stamp.nanosec)


def to_stamp(nanoseconds: int) -> Time:
    sec, nanosec = divmod(nanoseconds, NANOSECONDS)
    return Time(sec=sec, nanosec=nanosec)


def to_seconds(stamp: Time) -> float:
    return to_nanoseconds(stamp) / NANOSECONDS


def image_to_msg(image: NDArray[np.uint8], stamp: Time, frame_id: str) -> Image:
    """Wrap uint8 [H, W, 3] RGB."""
    msg = Image()
    msg.header.stamp = stamp
    msg.header.frame_id = frame_id
    msg.height, msg.width = image.shape[:2]
    msg.encoding = "rgb8"
    msg.step = 3 * msg.width
    # bytes are taken over in 0.005 ms; an ndarray would be converted element by element in 10-18 ms
    msg.data = image.tobytes()
    return msg


def chunk_to_msg(chunk: ActionChunk, stamp: Time, episode: int, mode: str, policy_sha256: str = "") -> ActionChunkMsg:
    """Wrap a chunk; `stamp` is that of its observation, `policy_sha256` the digest of the policy's checkpoint."""
    stats = chunk.stats
    msg = ActionChunkMsg()
    msg.header.stamp = stamp
    msg.header.frame_id = ACTION_FRAME
    msg.episode = episode
    msg.horizon, msg.dof = chunk.actions.shape
    msg.actions = _floats(chunk.actions)
    msg.verified = chunk.verified or chunk.skipped
    msg.accepted = bool(chunk.accepted)
    msg.skipped = chunk.skipped
    msg.audited = stats.audited
    msg.levels = chunk.levels
    msg.mode = mode
    msg.policy_sha256 = policy_sha256
    msg.first_action_ms = stats.first_action_ms
    msg.inference_ms = stats.total_ms
    msg.stage_names = list(stats.stage_ms)
    msg.stage_ms = [float(ms) for ms in stats.stage_ms.values()]
    msg.token_agreement = [float(share) for share in stats.token_agreement]
    msg.max_deviation = [] if stats.max_deviation is None else _floats(stats.max_deviation)
    msg.audit_deviated = bool(stats.audit_deviated)
    return msg


def actions_from_msg(msg: ActionChunkMsg) -> NDArray[np.float32]:
    """The actions of a chunk, float32 [horizon, dof].

    Raises:
        ActionError: their number is not horizon x dof.
    """
    if len(msg.actions) != msg.horizon * msg.dof:
        raise ActionError(
            f"action_chunk: expected {msg.horizon} x {msg.dof} values as announced, got {len(msg.actions)}"
        )
    return np.array(msg.actions, dtype=np.float32).reshape(msg.horizon, msg.dof)


def chunk_from_msg(msg: ActionChunkMsg) -> ActionChunk:
    """The inverse of `chunk_to_msg`, without the tokens, which do not travel."""
    compared = len(msg.token_agreement) > 0
    return ActionChunk(
        actions=actions_from_msg(msg),
        verified=msg.verified and not msg.skipped,
        accepted=msg.accepted if compared else None,
        skipped=msg.skipped,
        levels=msg.levels,
        stats=ChunkStats(
            stage_ms=dict(zip(msg.stage_names, msg.stage_ms, strict=True)),
            first_action_ms=msg.first_action_ms,
            total_ms=msg.inference_ms,
            token_agreement=tuple(msg.token_agreement),
            max_deviation=np.array(msg.max_deviation, dtype=np.float32) if msg.max_deviation else None,
            audited=msg.audited,
            audit_deviated=msg.audit_deviated if msg.audited else None,
        ),
    )


def _floats(values: ArrayLike) -> list[float]:
    flat: list[float] = np.asarray(values, dtype=np.float32).ravel().tolist()
    return flat

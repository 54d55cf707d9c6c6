"""What goes into a message comes out of it bit for bit, after a real serialisation."""

from __future__ import annotations

import numpy as np
import pytest
from geometry_msgs.msg import PoseStamped
from rclpy.serialization import deserialize_message, serialize_message
from rsd_msgs.msg import ActionChunk as ActionChunkMsg
from sensor_msgs.msg import Image, JointState

from rsd_policy.errors import ActionError, ObservationError
from rsd_policy.nodes.messages import (
    GRIPPER_JOINTS,
    WORLD_FRAME,
    actions_from_msg,
    chunk_from_msg,
    chunk_to_msg,
    image_to_msg,
    to_nanoseconds,
    to_stamp,
)
from rsd_policy.observation import ActionChunk, ChunkStats, proprio_from_pose
from rsd_policy.robots.contract import IMAGE, load_contract
from rsd_policy.robots.images import decode_image
from rsd_policy.robots.state import compose_state

ROBOT = load_contract()
RNG = np.random.default_rng(0)


def travel(msg):
    return deserialize_message(serialize_message(msg), type(msg))


def test_an_image_arrives_as_it_was_sent():
    image = RNG.integers(0, 256, (48, 64, 3), dtype=np.uint8)
    received = decode_image(travel(image_to_msg(image, to_stamp(5), "frame")), IMAGE, "camera")
    assert received.dtype == np.uint8
    assert np.array_equal(received, image)


def test_a_view_with_strides_is_sent_as_it_looks():
    image = RNG.integers(0, 256, (20, 20, 3), dtype=np.uint8)[::-1, ::2]
    assert np.array_equal(decode_image(travel(image_to_msg(image, to_stamp(0), "")), IMAGE, "camera"), image)


def test_bgr_and_padded_rows_of_real_cameras_are_read():
    image = RNG.integers(0, 256, (4, 5, 3), dtype=np.uint8)
    msg = image_to_msg(image, to_stamp(0), "")
    msg.encoding, msg.step = "bgr8", 16
    msg.data = np.pad(image[..., ::-1].reshape(4, 15), ((0, 0), (0, 1))).tobytes()
    assert np.array_equal(decode_image(travel(msg), IMAGE, "camera"), image)


def test_an_unknown_encoding_is_refused_with_the_topic_in_the_message():
    msg = image_to_msg(np.zeros((4, 4, 3), np.uint8), to_stamp(0), "")
    msg.encoding = "16UC1"
    with pytest.raises(ObservationError, match=r"wrist/image_raw: '16UC1' is a depth image"):
        decode_image(msg, IMAGE, "wrist/image_raw")


@pytest.mark.parametrize("change", [{"height": 5}, {"width": 5}, {"step": 11}, {"data": b""}])
def test_an_image_whose_data_do_not_fit_its_header_is_refused(change):
    msg = image_to_msg(np.zeros((4, 4, 3), np.uint8), to_stamp(0), "")
    for name, value in change.items():
        setattr(msg, name, value)
    with pytest.raises(ObservationError, match="camera: expected"):
        decode_image(msg, IMAGE, "camera")
    with pytest.raises(ObservationError, match="camera: expected"):
        decode_image(Image(encoding="rgb8"), IMAGE, "camera")


def test_the_state_of_the_robot_is_bit_equal_to_that_of_the_in_process_loop():
    position, quaternion, fingers = RNG.normal(size=3), RNG.normal(size=4), RNG.normal(size=2) / 50
    quaternion /= np.linalg.norm(quaternion)
    pose = PoseStamped()
    pose.header.frame_id = WORLD_FRAME
    p, q = pose.pose.position, pose.pose.orientation
    p.x, p.y, p.z = position
    q.x, q.y, q.z, q.w = quaternion
    joints = JointState(name=["a", *GRIPPER_JOINTS], position=[0.5, *fingers])
    received = compose_state(travel(pose), travel(joints), ROBOT.pose, ROBOT.gripper)
    assert received.tobytes() == proprio_from_pose(position, quaternion, fingers).tobytes()


def test_a_missing_finger_is_named():
    in_world = PoseStamped()
    in_world.header.frame_id = WORLD_FRAME
    with pytest.raises(ObservationError, match="panda_finger_joint2, got panda_finger_joint1"):
        compose_state(in_world, JointState(name=GRIPPER_JOINTS[:1], position=[0.0]), ROBOT.pose, ROBOT.gripper)


CHUNKS = {
    "verified": ActionChunk(
        actions=RNG.normal(size=(8, 7)).astype(np.float32),
        accepted=False,
        levels=8,
        stats=ChunkStats({"vision": 1.5, "head": 2.25}, 3.5, 7.25, (0.5, 0.25, 1.0), np.ones(7, np.float32)),
    ),
    "baseline": ActionChunk(actions=np.zeros((8, 7), np.float32), levels=8, stats=ChunkStats({}, 4.0, 4.0)),
    "provisional": ActionChunk(actions=np.zeros((8, 7), np.float32), verified=False, levels=3),
    "skipped": ActionChunk(actions=np.zeros((8, 7), np.float32), verified=False, skipped=True, levels=3),
    "audited": ActionChunk(
        actions=np.zeros((8, 7), np.float32),
        verified=False,
        accepted=True,
        skipped=True,
        levels=3,
        stats=ChunkStats({}, 4.0, 4.0, (1.0,), np.zeros(7, np.float32), audited=True, audit_deviated=False),
    ),
    "expert": ActionChunk(actions=np.zeros((1, 7), np.float32)),
}


@pytest.mark.parametrize("name", CHUNKS)
def test_a_chunk_says_the_same_after_its_journey(name):
    chunk = CHUNKS[name]
    msg = travel(chunk_to_msg(chunk, to_stamp(1_250_000_000), 7, "gated"))
    assert (to_nanoseconds(msg.header.stamp), msg.episode, msg.mode) == (1_250_000_000, 7, "gated")
    # on the wire, `verified` means final: the executor in lockstep waits for that
    assert msg.verified == (name != "provisional")
    received = chunk_from_msg(msg)
    assert received.actions.tobytes() == chunk.actions.tobytes()
    for field in ("verified", "accepted", "skipped", "levels"):
        assert getattr(received, field) == getattr(chunk, field), field
    for field in ("stage_ms", "first_action_ms", "total_ms", "token_agreement", "audited", "audit_deviated"):
        assert getattr(received.stats, field) == getattr(chunk.stats, field), field
    if chunk.stats.max_deviation is None:
        assert received.stats.max_deviation is None
    else:
        assert np.array_equal(received.stats.max_deviation, chunk.stats.max_deviation)


def test_a_chunk_that_is_shorter_than_it_says_is_refused():
    with pytest.raises(ActionError, match="expected 8 x 7 values as announced, got 55"):
        actions_from_msg(ActionChunkMsg(horizon=8, dof=7, actions=[0.0] * 55))


@pytest.mark.parametrize("nanoseconds", [0, 1, 999_999_999, 1_000_000_000, 1_795_366_191_186_915_250])
def test_stamps_keep_every_nanosecond(nanoseconds):
    assert to_nanoseconds(to_stamp(nanoseconds)) == nanoseconds

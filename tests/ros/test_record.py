"""record_node in front of a robot: every message as it was sent, and a bag that survives how the recorder ends."""

from __future__ import annotations

import json
import signal

import numpy as np
import pytest
from geometry_msgs.msg import PoseStamped
from rclpy.serialization import deserialize_message
from sensor_msgs.msg import Image, JointState
from std_msgs.msg import String

from rsd_policy.bags.playback import Playback, read_recorded
from rsd_policy.bags.reader import Bag
from rsd_policy.nodes.messages import GRIPPER_JOINTS, WORLD_FRAME, image_to_msg, to_stamp
from rsd_policy.nodes.runtime import LATCHED, LOCKSTEP_INPUT
from rsd_policy.robots.contract import load_contract

CONTRACT = load_contract()
MOMENTS = 12


class Robot:
    """Publishes what the contract names."""

    def __init__(self, probe):
        self.probe = probe
        node = probe.node
        self.instruction = node.create_publisher(String, "instruction", LATCHED)
        self.instruction.publish(String(data="pick up the bowl"))
        self.publishers = {
            "/agentview/image_raw": node.create_publisher(Image, "agentview/image_raw", LOCKSTEP_INPUT),
            "/wrist/image_raw": node.create_publisher(Image, "wrist/image_raw", LOCKSTEP_INPUT),
            "/eef_pose": node.create_publisher(PoseStamped, "eef_pose", LOCKSTEP_INPUT),
            "/joint_states": node.create_publisher(JointState, "joint_states", LOCKSTEP_INPUT),
        }

    def wait_for_recorder(self):
        everything = [*self.publishers.values(), self.instruction]
        self.probe.spin_until(
            lambda: all(p.get_subscription_count() == 1 for p in everything), 30, "a subscription of record_node"
        )

    def move(self):
        """Send some moments; returns topic -> messages."""
        rng = np.random.default_rng(1)
        sent = {topic: [] for topic in self.publishers}
        for i in range(MOMENTS):
            stamp = to_stamp(1_000_000_000 + i * 50_000_000)
            pixels = rng.integers(0, 256, (256, 256, 3), dtype=np.uint8)
            pose = PoseStamped()
            pose.header.stamp, pose.header.frame_id = stamp, WORLD_FRAME
            pose.pose.orientation.x, pose.pose.orientation.w = 1.0, 0.0
            joints = JointState(name=list(GRIPPER_JOINTS), position=[0.04, -0.04])
            joints.header.stamp = stamp
            image = image_to_msg(pixels, stamp, "camera")
            for topic, message in zip(self.publishers, (image, image, pose, joints), strict=True):
                self.publishers[topic].publish(message)
                sent[topic].append(message)
            self.probe.spin_for(0.02)
        return sent


@pytest.fixture
def recorder(probe, start, tmp_path):
    """Robot, bag, and the process that records; one after the other in one domain."""
    robot = Robot(probe)
    bag = tmp_path / "bag"
    start("rsd_policy.nodes.record_node", "record_node", out=str(bag), provenance=json.dumps({"who": "a test"}))
    robot.wait_for_recorder()
    process = probe.processes[-1].popen
    yield robot, bag, process
    process.kill()
    process.wait()
    for publisher in [*robot.publishers.values(), robot.instruction]:
        probe.node.destroy_publisher(publisher)


def raw(path):
    with Bag(path) as bag:
        found = {}
        for record in bag.messages([topic for topic in bag.topics if topic != "/rsd_provenance"]):
            found.setdefault(record.topic, []).append(record.raw)
        return found, bag.damage


def test_ctrl_c_leaves_a_whole_bag_with_every_message_that_was_sent(recorder):
    robot, path, process = recorder
    sent = robot.move()
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=20) == 0
    found, damage = raw(path)
    assert damage == []
    for topic, messages in sent.items():
        assert [deserialize_message(data, type(messages[0])) for data in found[topic]] == messages
    with Bag(path) as bag:
        playback = Playback(bag, CONTRACT, read_recorded(bag, CONTRACT), period_s=0.0)
        shown = list(playback.observations())
    assert len(shown) == MOMENTS
    assert shown[0].task.instruction == "pick up the bowl", "published before the recorder was there"
    assert playback.recorded.provenance == {"who": "a test"}


def test_sigkill_leaves_a_bag_that_can_be_read(recorder):
    robot, path, process = recorder
    sent = robot.move()
    robot.probe.spin_for(1.5)  # what is older than a second is on the disk
    robot.publishers["/eef_pose"].publish(PoseStamped())
    robot.probe.spin_for(0.3)
    process.kill()
    process.wait()
    assert not (path / "metadata.yaml").exists()
    found, damage = raw(path)
    assert len(damage) == 1
    for topic, messages in sent.items():
        read = [deserialize_message(data, type(messages[0])) for data in found[topic]]
        assert read[: len(messages)] == messages, topic
    with Bag(path) as bag:
        assert read_recorded(bag, CONTRACT).provenance == {"who": "a test"}

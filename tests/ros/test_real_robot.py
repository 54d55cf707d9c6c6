"""policy_node in front of a robot that is no simulation: JPEG cameras, stamps apart, no episode, no clock."""

from __future__ import annotations

import json

import numpy as np
import pytest
from rsd_msgs.msg import ActionChunk

from rsd_policy import RSDInferenceEngine, load_policy
from rsd_policy.bags.playback import Playback, read_recorded
from rsd_policy.bags.reader import Bag
from rsd_policy.commands.replay import main
from rsd_policy.nodes.messages import actions_from_msg, to_nanoseconds
from rsd_policy.robots.contract import load_contract
from tests.bags.synthetic import START, Row, joints, jpeg, pose, recorded, string
from tests.ros.probe import ACTIVATE, CONFIGURE

CONTRACT = """
robot: cell
cameras:
  agentview: {topic: /front/compressed, type: sensor_msgs/msg/CompressedImage, operations: [rotate_180]}
  wrist: {topic: /hand/compressed, type: sensor_msgs/msg/CompressedImage, operations: [{crop: [8, 0, 32, 32]}]}
state:
  pose: {topic: /arm/pose, frame: world, toward: [1, 0, 0, 0]}
  gripper: {topic: /arm/joints, joints: [panda_finger_joint1, panda_finger_joint2], scale: [1, -1]}
  check: "off"
instruction: {topic: /task}
alignment: {how: nearest, tolerance: 0.02, wait: 0.03}
action: {frame: base, translation: 0.05, rotation: 0.5}
"""
MS = 1_000_000
MOMENTS = 8


def cell() -> list[Row]:
    """Two cameras at 5 Hz that are 7 ms apart, pose and joints at 100 Hz; everything arrives 4 ms after its stamp."""
    rng = np.random.default_rng(4)
    rows = [Row("/task", "std_msgs/msg/String", START - 50 * MS, string("pick up the bowl"))]
    for i in range(MOMENTS):
        for topic, delay in (("/front/compressed", 0), ("/hand/compressed", 7 * MS)):
            stamp = START + i * 200 * MS + delay
            pixels = rng.integers(0, 256, (32, 48, 3), dtype=np.uint8)
            rows.append(Row(topic, "sensor_msgs/msg/CompressedImage", stamp + 4 * MS, jpeg(pixels, stamp)))
    for i in range(-2, MOMENTS * 20):
        stamp = START + i * 10 * MS + 3 * MS
        turn = [-0.9999, 0.0, 0.0, 0.0141]  # the other sign of what LIBERO has
        where = pose([0.001 * i, 0.0, 1.0], np.asarray(turn) / np.linalg.norm(turn), stamp)
        rows.append(Row("/arm/pose", "geometry_msgs/msg/PoseStamped", stamp + 4 * MS, where))
        rows.append(Row("/arm/joints", "sensor_msgs/msg/JointState", stamp + 4 * MS + 1, joints([0.03, 0.03], stamp)))
    return sorted(rows, key=lambda row: row.time)


@pytest.fixture(scope="module")
def robot(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cell")
    (folder / "cell.yaml").write_text(CONTRACT)
    return str(folder / "cell.yaml"), recorded(folder / "bag", cell())


def test_policy_node_alone_answers_it_with_the_bits_of_a_replay(probe, start, robot, untrained):
    name, path = robot
    contract = load_contract(name)
    with Bag(path) as bag:
        playback = Playback(bag, contract, read_recorded(bag, contract), period_s=0.0)
        shown = {s.stamp: s.observation for s in playback.observations()}
    assert len(shown) >= MOMENTS - 1
    chunks = probe.record(ActionChunk, "action_chunk")
    start("rsd_policy.nodes.policy_node", "policy_node", policy=str(untrained), clock="realtime", robot=name)
    assert probe.transition("policy_node", CONFIGURE)
    assert probe.transition("policy_node", ACTIVATE)
    start("rsd_policy.nodes.play_node", "play_node", bag=str(path), robot=name, clock=False, rate=0.5)
    probe.spin_until(lambda: sum(chunk.verified for chunk in chunks) >= 3, 60, "answers to the robot's cameras")
    final = {to_nanoseconds(chunk.header.stamp): chunk for chunk in chunks if chunk.verified}
    engine = RSDInferenceEngine(load_policy(untrained), mode="speculative")
    for stamp, chunk in final.items():
        assert actions_from_msg(chunk).tobytes() == engine.infer(shown[stamp]).actions.tobytes()


def test_a_replay_over_ros_of_nearest_stamps_is_that_in_process(robot, untrained, tmp_path):
    """Neighbours are shown as well, or the node would wait for something nearer."""
    name, path = robot
    arguments = [str(path), "--robot", name, "--policy", str(untrained), "--period", "0.4"]
    assert main([*arguments, "--no-ros", "--out", str(tmp_path / "engine")]) == 0
    assert main([*arguments, "--against", str(tmp_path / "engine"), "--out", str(tmp_path / "node")]) == 0
    found = json.loads((tmp_path / "node" / "replay.json").read_text())
    assert found["bit_equal"] and found["compared"] == 4

"""Bags become demonstrations: what was done, step by step, in the units of actions, with the hand's sign proven."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from rsd_policy.commands.import_bags import main
from rsd_policy.errors import RSDError
from rsd_policy.robots.contract import load_contract
from sim_bridge.demonstrations import read_demonstrations
from tests.bags.synthetic import INSTRUCTION, PERIOD, START, Row, header, image, joints, make, pose, recorded, string

STEPS = 40
STEP = np.array([0.005, 0.0, 0.0])
TURN = Rotation.from_rotvec([0.0, 0.0, 0.02])
"""What the hand moves and turns per step."""


def drive(*, grip: float = 1.0, idle: int = 6) -> list[Row]:
    """A hand that moves 5 mm along x and turns about z per step, stands still for some steps, and closes at step 20."""
    rows = [Row("/instruction", "std_msgs/msg/String", START - 1, string(INSTRUCTION))]
    position, rotation, width = np.array([-0.2, 0.0, 1.0]), Rotation.from_quat([1.0, 0.0, 0.0, 0.0]), 0.04
    for i in range(STEPS + 1):
        stamp, time = START + i * PERIOD, START + i * PERIOD + 1_000_000
        for camera in ("agentview", "wrist"):
            pixels = np.full((16, 16, 3), i, np.uint8)
            rows.append(Row(f"/{camera}/image_raw", "sensor_msgs/msg/Image", time, image(pixels, stamp)))
        rows.append(
            Row("/eef_pose", "geometry_msgs/msg/PoseStamped", time + 1, pose(position, rotation.as_quat(), stamp))
        )
        rows.append(Row("/joint_states", "sensor_msgs/msg/JointState", time + 2, joints([width, -width], stamp)))
        moves = i >= idle
        closed = i >= 20
        values = np.array([0.1 * moves, 0, 0, 0, 0, 0.04 * moves, grip if closed else -grip], np.float32)
        message = make("rsd_msgs/msg/Action", header=header(stamp), values=values, episode=0, step=i, remaining=0)
        rows.append(Row("/action", "rsd_msgs/msg/Action", time + 3, message))
        if moves:
            position, rotation = position + STEP, TURN * rotation
        width = max(0.005, width - 0.005) if closed else width
    return rows


@pytest.fixture
def imported(tmp_path):
    def run(rows, *arguments):
        bag = recorded(tmp_path / "bag", rows)
        out = tmp_path / "demos"
        assert main([str(bag), "--out", str(out), "--image-size", "16", *arguments]) == 0
        return next(read_demonstrations(out)), out

    return run


@pytest.mark.parametrize("source", ["commands", "state"])
def test_commands_and_differences_of_the_state_say_the_same(imported, source):
    demonstration, out = imported(drive(), "--actions", source)
    assert demonstration.instruction == INSTRUCTION and demonstration.suite == "libero_sim"
    assert len(demonstration.actions) == STEPS - 6, "the steps in which nothing moves are left out"
    assert np.allclose(demonstration.actions[:, :6], [0.1, 0, 0, 0, 0, 0.04], atol=1e-4)
    closes = int(np.argmax(demonstration.actions[:, 6] > 0))
    assert abs(closes - (20 - 6)) <= 2
    assert np.all(demonstration.actions[:closes, 6] == -1) and np.all(demonstration.actions[closes:, 6] == 1)
    assert (out / "gripper.png").read_bytes().startswith(b"\x89PNG")


def test_a_frame_belongs_to_the_action_that_follows_it(imported):
    """A label that is one frame late teaches the past."""
    demonstration, _ = imported(drive())
    assert demonstration.images[:, 0, 0, 0, 0].tolist() == list(range(6, STEPS))
    assert demonstration.frame_steps.tolist() == list(range(STEPS - 6))
    assert np.allclose(demonstration.proprio[:, 0], -0.2 + 0.005 * np.arange(STEPS - 6), atol=1e-5)


def test_a_gripper_whose_sign_is_the_other_way_round_is_refused_and_mended_by_the_contract(imported, tmp_path):
    with pytest.raises(RSDError, match=r"the hand moved against the gripper's command in 1 of 1 .* action\.gripper"):
        imported(drive(grip=-1.0))
    assert (tmp_path / "demos" / "gripper.png").exists()
    text = load_contract().text.replace("  frame: robot0_base\n", "  frame: robot0_base\n  gripper: positive opens\n")
    contract = tmp_path / "opens.yaml"
    contract.write_text(text)
    assert main([str(tmp_path / "bag"), "--out", str(tmp_path / "again"), "--robot", str(contract)]) == 0


def test_two_instructions_are_two_tasks(tmp_path):
    first, second = drive(), drive()
    second[0] = Row("/instruction", "std_msgs/msg/String", START - 1, string("pick up the plate"))
    for name, rows in (("a", first), ("b", second)):
        recorded(tmp_path / "bags" / name, rows)
    assert main([str(tmp_path / "bags"), "--out", str(tmp_path / "demos")]) == 0
    found = sorted((d.task, d.instruction) for d in read_demonstrations(tmp_path / "demos"))
    assert found == [(0, INSTRUCTION), (1, "pick up the plate")]


def test_a_bag_without_commands_says_what_to_do(imported):
    rows = [row for row in drive() if row.topic != "/action"]
    with pytest.raises(RSDError, match="holds no commands on 'action'; give --actions state"):
        imported(rows, "--actions", "commands")

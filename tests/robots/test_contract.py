"""A contract that is wrong or incomplete is refused with the line and the fix."""

from __future__ import annotations

from pathlib import Path

import pytest

from rsd_policy.errors import ArgumentError
from rsd_policy.robots.contract import AS_PUBLISHED, load_contract
from rsd_policy.share import shared_path

FOLDER = shared_path("config/robots")
TEMPLATE = (FOLDER / "template.yaml").read_text()


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.yaml")), ids=lambda p: p.stem)
def test_every_contract_that_comes_with_the_package_can_be_read(path):
    contract = load_contract(str(path))
    assert [camera.name for camera in contract.cameras] == ["agentview", "wrist"]
    assert contract.text == path.read_text()


def test_the_simulation_keeps_the_quaternion_as_published():
    assert load_contract("libero_sim").pose.toward == AS_PUBLISHED


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        ("topic: /eef_pose", "topc: /eef_pose", r"pose\.topic: missing"),
        ("  check: refuse", "  chek: refuse", r"state\.chek: unknown; did you mean 'check'\?"),
        ("how: nearest", "how: nearst", r"alignment\.how: expected one of exact, nearest \(did you mean nearest\?\)"),
        ("tolerance: 0.034", "tolerance: yes", r"alignment\.tolerance: expected a number 0\.\.10 s, got True"),
        ("tolerance: 0.034", "tolerance: 0", r"alignment\.tolerance: expected more than 0 s"),
        ("how: nearest", "how: exact\n  stamps: arrival", r"stamps: given twice"),
        ("reference: agentview", "reference: top", r"reference: expected one of agentview, wrist"),
        ("- rotate_180", "- rotate", r"cameras\.agentview\.operations: expected rotate_180"),
        ("[80, 0, 480, 480]}  #", "[80, 0, 480]}  #", r"operations: expected"),
        ("scale: [1.0, -1.0]", "scale: [1.0, 0.0]", r"gripper\.scale: expected two numbers other than 0"),
        ("joints: [finger_joint1, finger_joint2]", "joints: []", r"gripper\.joints: expected the two fingers"),
        ("base_rotation: [0.0, 0.0, 0.0, 1.0]", "base_rotation: [0.0, 0.0, 0.0, 2.0]", r"expected a unit quaternion"),
        ("type: sensor_msgs/msg/Image", "type: sensor_msgs/Image", r"cameras\.agentview\.type: expected one of"),
        ("robot: my_robot", "robot: [", r"no YAML"),
        ("robot: my_robot", "robot: 7", r"robot: expected a text, got 7"),
    ],
)
def test_a_mistake_is_named_with_its_line_and_the_fix(tmp_path, before, after, message):
    assert before in TEMPLATE
    text = TEMPLATE.replace(before, after, 1)
    path = tmp_path / "robot.yaml"
    path.write_text(text)
    with pytest.raises(ArgumentError, match=message) as caught:
        load_contract(str(path))
    place, _, line = str(caught.value).partition(": ")[0].rpartition(":")
    assert Path(place) == path and 1 <= int(line) <= len(text.splitlines()) + 1


def test_the_line_is_that_of_the_mistake(tmp_path):
    path = tmp_path / "robot.yaml"
    path.write_text(TEMPLATE.replace("  check: refuse", "  check: maybe"))
    number = next(i for i, line in enumerate(path.read_text().splitlines(), 1) if "check: maybe" in line)
    with pytest.raises(ArgumentError, match=rf"robot\.yaml:{number}: state\.check: expected one of refuse, warn, off"):
        load_contract(str(path))


def test_an_unknown_robot_names_the_known_ones():
    with pytest.raises(ArgumentError, match="expected one of franka, libero_sim"):
        load_contract("panda")


def test_an_empty_file_says_where_to_begin(tmp_path):
    path = tmp_path / "robot.yaml"
    path.write_text("# nothing yet\n")
    with pytest.raises(ArgumentError, match=r"copy config/robots/template\.yaml"):
        load_contract(str(path))

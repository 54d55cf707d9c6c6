"""LeRobot datasets become the demonstrations that bags become: every look, state and action where it was."""

from __future__ import annotations

import json

import numpy as np
import pytest

from rsd_policy.commands.import_bags import main
from rsd_policy.errors import ArgumentError, BagError, RSDError
from rsd_policy.robots.contract import load_contract
from sim_bridge.demonstrations import read_demonstrations
from tests.training.lerobot_datasets import EPISODES, IDLE, LENGTH, TASKS, drive, level, write_dataset

SECTION = """
lerobot:
  cameras: {agentview: observation.images.front, wrist: observation.images.wrist}
  state: {position: [x, y, z], orientation: [3, 4, 5], rotation: axis_angle, fingers: [6, f2]}
  action: {columns: [0, 1, 2, 3, 4, 5, 6]}
"""
LAYOUTS = [("v2.1", True), ("v2.1", False), ("v3.0", True), ("v3.0", False)]


@pytest.fixture
def contract(tmp_path):
    def write(section=SECTION, old="", new=""):
        path = tmp_path / "robot.yaml"
        path.write_text((load_contract().text + section).replace(old, new))
        return str(path)

    return write


def imported(tmp_path, contract, *arguments):
    out = tmp_path / "demos"
    command = [str(tmp_path / "set"), "--out", str(out), "--image-size", "32", "--robot", contract, *arguments]
    assert main(command) == 0
    return sorted(read_demonstrations(out), key=lambda demonstration: demonstration.task)


@pytest.mark.parametrize(("version", "video"), LAYOUTS)
def test_every_row_of_a_dataset_comes_out_as_it_was(tmp_path, contract, version, video):
    """A v3.0 file holds many episodes: a frame of the neighbour, or one row off, teaches another episode's past."""
    write_dataset(tmp_path / "set", version, video=video)
    found = imported(tmp_path, contract())
    states, actions = drive()
    assert [demonstration.instruction for demonstration in found] == list(TASKS) and len(found) == EPISODES
    for episode, demonstration in enumerate(found):
        assert demonstration.frame_steps.tolist() == list(range(LENGTH - IDLE))
        assert np.array_equal(demonstration.actions, actions[IDLE:])
        assert np.allclose(demonstration.proprio, states[IDLE:], atol=1e-6)
        greys = demonstration.images.reshape(LENGTH - IDLE, -1).astype(float)
        expected = np.array([level(episode, row) for row in range(IDLE, LENGTH)])[:, None]
        assert np.abs(greys - expected).max() <= (1 if video else 0), "the next frame's grey is 4 away"
    assert (tmp_path / "demos" / "gripper.png").read_bytes().startswith(b"\x89PNG")


def test_differences_of_the_states_say_what_the_recorded_actions_say(tmp_path, contract):
    write_dataset(tmp_path / "set", "v3.0", video=False)
    for demonstration in imported(tmp_path, contract(), "--actions", "state"):
        assert np.allclose(demonstration.actions[:, :6], [0.1, 0, 0, 0, 0, 0.04], atol=1e-4)
        assert len(demonstration.actions) == LENGTH - IDLE - 1, "what followed the last state is not known"


@pytest.mark.parametrize("rotation", ["quaternion_xyzw", "quaternion_wxyz", "euler_xyz"])
def test_each_way_to_say_a_rotation_gives_the_same_state(rotation):
    from scipy.spatial.transform import Rotation

    from rsd_policy.training.lerobot_demonstrations import _quaternions

    turn = Rotation.from_rotvec([0.3, -1.2, 0.5])
    x, y, z, w = turn.as_quat()
    # roll about x first, then pitch, then yaw, all about fixed axes (REP 103)
    roll, pitch = np.arctan2(2 * (w * x + y * z), 1 - 2 * (x * x + y * y)), np.arcsin(2 * (w * y - z * x))
    yaw = np.arctan2(2 * (w * z + x * y), 1 - 2 * (y * y + z * z))
    said = {"quaternion_xyzw": [x, y, z, w], "quaternion_wxyz": [w, x, y, z], "euler_xyz": [roll, pitch, yaw]}
    found = Rotation.from_quat(_quaternions(np.array([said[rotation]]), rotation)[0])
    assert (found * turn.inv()).magnitude() < 1e-9


def test_a_gripper_that_opens_with_the_value_said_to_close_is_refused_and_mended_by_the_contract(tmp_path, contract):
    write_dataset(tmp_path / "set", "v2.1", video=False, grip=-1.0)
    with pytest.raises(RSDError, match=r"moved against the gripper's command .* correct lerobot\.action\.gripper"):
        imported(tmp_path, contract())
    mended = contract(old="5, 6]}", new="5, 6], gripper: [1, -1]}")
    assert np.array_equal(imported(tmp_path, mended)[0].actions, drive()[1][IDLE:])


@pytest.mark.parametrize("version", ["v2.1", "v3.0"])
def test_a_video_that_ends_early_is_refused(tmp_path, contract, version):
    write_dataset(tmp_path / "set", version, video=True, drop=1)
    with pytest.raises(BagError, match=rf"expected {LENGTH} frames of episode . .* none for row {LENGTH - 1}"):
        imported(tmp_path, contract())


@pytest.mark.parametrize("version", ["v2.1", "v3.0"])
def test_a_file_that_ends_early_is_refused_whichever_it_is(tmp_path, contract, version):
    write_dataset(tmp_path / "set", version, video=True)
    path = contract()
    files = [file for file in (tmp_path / "set").rglob("*") if file.is_file()]
    assert {file.suffix for file in files} >= {".json", ".parquet", ".mp4"}
    for number, file in enumerate(files):
        whole = file.read_bytes()
        # of a list of lines the last one in part, of anything else the half
        file.write_bytes(whole[:-5] if file.suffix == ".jsonl" else whole[: len(whole) // 2])
        with pytest.raises(BagError):
            main([str(tmp_path / "set"), "--out", str(tmp_path / str(number)), "--robot", path])
        file.write_bytes(whole)


@pytest.mark.parametrize(
    ("old", "new", "error"),
    [
        ("images.front", "images.top", "has no feature 'observation.images.top', but observation.state, action"),
        ("[x, y, z]", "[x, y, height]", r"has no column 'height': it has 8 columns \(x, y, z"),
        ("[6, f2]", "[6, 8]", "has no column 8: it has 8 columns"),
        (
            "frame: robot0_base",
            "frame: robot0_base\n  period: 0.1",
            "20 rows per second, .* control step, which lasts 0.1 s",
        ),
    ],
)
def test_a_contract_that_does_not_fit_the_dataset_says_what_the_dataset_has(tmp_path, contract, old, new, error):
    write_dataset(tmp_path / "set", "v3.0", video=False)
    with pytest.raises(RSDError, match=error):
        imported(tmp_path, contract(old=old, new=new))


@pytest.mark.parametrize(
    ("old", "new", "error"),
    [
        ("[3, 4, 5]", "[3, 4, 5, 6]", r"lerobot\.state\.orientation: expected 3 different columns"),
        ("axis_angle", "matrix", r"lerobot\.state\.rotation: expected one of axis_angle, quaternion_xyzw"),
        ("wrist: observation.images.wrist", "hand: observation.images.wrist", r"lerobot\.cameras\.wrist: missing"),
        ("action: {", "action: {gripper: [1, 1], ", r"lerobot\.action\.gripper: expected two numbers that differ"),
    ],
)
def test_a_wrong_section_is_refused_with_its_line(contract, old, new, error):
    with pytest.raises(ArgumentError, match=rf"robot\.yaml:\d+: {error}"):
        load_contract(contract(old=old, new=new))


def test_a_contract_without_the_section_and_a_dataset_of_another_version_are_refused(tmp_path, contract):
    write_dataset(tmp_path / "set", "v2.1", video=False)
    with pytest.raises(RSDError, match="contract 'libero_sim' has no section 'lerobot'"):
        imported(tmp_path, contract(section=""))
    path = tmp_path / "set" / "meta" / "info.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"codebase_version": "v1.6"}))
    with pytest.raises(BagError, match=r"expected codebase_version v2\.1 or v3\.0, got v1\.6"):
        imported(tmp_path, contract())

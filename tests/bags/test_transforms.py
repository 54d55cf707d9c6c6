"""A robot whose pose is in TF only: the state is the one that a published pose would have given."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from rsd_policy.bags.playback import Playback, Recorded
from rsd_policy.bags.reader import Bag
from rsd_policy.commands.import_bags import main as import_main
from rsd_policy.commands.play import main as play_main
from rsd_policy.commands.replay import parse
from rsd_policy.commands.robot import main as robot_main
from rsd_policy.errors import ArgumentError, BagError
from rsd_policy.robots.contract import load_contract
from tests.bags.synthetic import PERIOD, START, Row, header, make, recorded, robot

MOMENTS = 6
TFM = "tf2_msgs/msg/TFMessage"


class Pose:
    """A 4x4 matrix: another way to compute what quaternions compute in the code."""

    def __init__(self, position, rotvec):
        self.matrix = np.eye(4)
        self.matrix[:3, :3] = Rotation.from_rotvec(rotvec).as_matrix()
        self.matrix[:3, 3] = position


TABLE, BASE, TIP = (
    Pose([0.2, -0.1, 0.7], [0.0, 0.0, 0.4]),
    Pose([-0.6, 0.0, 0.9], [0.0, 0.1, -0.3]),
    Pose([0, 0, 0.1], [0.0, 0.0, 0.785]),
)


def shoulder(i):
    return Pose([0.0, 0.0, 0.3], [0.0, 0.1 * i, 0.0])


def wrist(i):
    return Pose([0.4, 0.01 * i, 0.0], [3.0, 0.0, 0.05 * i])


def transform(parent, child, pose, stamp):
    x, y, z, w = Rotation.from_matrix(pose.matrix[:3, :3]).as_quat()
    t = make("geometry_msgs/msg/Vector3", **dict(zip("xyz", pose.matrix[:3, 3].tolist(), strict=True)))
    q = make("geometry_msgs/msg/Quaternion", x=float(x), y=float(y), z=float(z), w=float(w))
    inner = make("geometry_msgs/msg/Transform", translation=t, rotation=q)
    return make(
        "geometry_msgs/msg/TransformStamped", header=header(stamp, parent), child_frame_id=child, transform=inner
    )


def tf(topic, time, *transforms):
    return Row(topic, TFM, time, make(TFM, transforms=list(transforms)))


def rows(*, static=True, late_wrist=0):
    """The synthetic robot with TF for its pose; `late_wrist`: moments by which the wrist's stamps lag behind."""
    found = [row for row in robot(MOMENTS, foreign=False) if row.topic != "/eef_pose"]
    if static:
        fixed = [("world", "table", TABLE), ("/world", "base", BASE), ("wrist", "hand", TIP)]
        found += [tf("/tf_static", START - 2, *(transform(*link, START - 2) for link in fixed))]
    for i in range(MOMENTS):
        stamp, time = START + i * PERIOD, START + i * PERIOD + 1_000_000
        # two publishers, and one more that has nothing to do with the hand
        found += [tf("/tf", time + 1, transform("base", "shoulder", shoulder(i), stamp))]
        found += [tf("/tf", time + 2, transform("world", "cup", TABLE, stamp + 7))]
        behind = stamp - late_wrist * PERIOD
        found += [tf("/tf", time + 3, transform("shoulder", "wrist", wrist(i - late_wrist), behind))]
    return found


@pytest.fixture
def contract(tmp_path):
    def write(base="table", tool="hand", extra=""):
        path = tmp_path / "robot.yaml"
        pose = f"pose: {{tf: {{base: {base}, tool: {tool}}}{extra}}}"
        path.write_text(load_contract().text.replace("pose: {topic: eef_pose, frame: world}", pose))
        return str(path)

    return write


def shown(path, robot_path):
    with Bag(path) as bag:
        playback = Playback(bag, load_contract(robot_path), Recorded(), "pick up the bowl", period_s=0.0)
        return list(playback.observations()), playback


def test_the_state_is_the_pose_of_the_tool_in_the_base_whatever_branches_they_hang_on(tmp_path, contract):
    """Branches: the table hangs on the world, and so does the arm, so that half of the way goes down the tree."""
    found, _ = shown(recorded(tmp_path / "bag", rows()), contract())
    assert [moment.stamp for moment in found] == [START + i * PERIOD for i in range(MOMENTS)]
    for i, moment in enumerate(found):
        arm = BASE.matrix @ shoulder(i).matrix @ wrist(i).matrix @ TIP.matrix
        expected = np.linalg.inv(TABLE.matrix) @ arm
        assert np.allclose(moment.observation.proprio[:3], expected[:3, 3], atol=1e-6)
        turn = Rotation.from_rotvec(moment.observation.proprio[3:6]).as_matrix()
        assert np.allclose(turn, expected[:3, :3], atol=1e-6)


def test_a_pose_is_as_old_as_the_oldest_transform_in_it(tmp_path, contract):
    """With the newest one's stamp an arm whose wrist lags would be shown where it never was."""
    found, playback = shown(recorded(tmp_path / "bag", rows(late_wrist=2)), contract())
    assert [moment.stamp for moment in found] == [START + i * PERIOD for i in range(MOMENTS - 2)]
    assert not playback.refused


@pytest.mark.parametrize(
    ("base", "tool", "static", "error"),
    [
        ("table", "claw", True, "have no frame claw .*; they have base, cup, hand, shoulder, table, world, wrist"),
        ("cup", "wrist", False, "do not connect cup and wrist"),
        ("table", "base", True, "nothing between table and base moves"),
    ],
)
def test_frames_that_give_no_pose_are_named(tmp_path, contract, base, tool, static, error):
    bag = recorded(tmp_path / "bag", rows(static=static))
    assert shown(bag, contract(base, tool))[0] == []
    with pytest.raises(BagError, match=error):
        import_main([str(bag), "--out", str(tmp_path / "demos"), "--robot", contract(base, tool)])


def test_robot_check_finds_transforms(tmp_path, contract, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    bag = recorded(tmp_path / "bag", rows())
    assert robot_main(["check", contract(), str(bag)]) == 0
    said = capsys.readouterr().out
    assert "/tf" in said and "1 transforms" in said and f"{MOMENTS} of {MOMENTS}" in said


def test_a_graph_that_runs_says_that_it_needs_a_published_pose(tmp_path, contract):
    for run in (lambda: parse(["bag", "--robot", contract()]), lambda: play_main(["bag", "--robot", contract()])):
        with pytest.raises(ArgumentError, match=r"state\.pose\.tf is read from recordings only"):
            run()
    assert parse(["bag", "--robot", contract(), "--no-ros"]).no_ros


def test_a_pose_from_two_sources_is_refused_with_its_line(contract):
    with pytest.raises(ArgumentError, match=r"robot\.yaml:\d+: state\.pose\.topic: state\.pose\.tf says it already"):
        load_contract(contract(extra=", topic: eef_pose"))

"""A replay says the same twice, and says where something else is said."""

from __future__ import annotations

import json
import re
from xml.etree import ElementTree

import numpy as np
import pytest

from rsd_policy.bags.playback import Playback, read_recorded
from rsd_policy.bags.reader import Bag
from rsd_policy.commands.replay import main
from rsd_policy.errors import ArgumentError, BagError
from rsd_policy.exit_status import DONE, OUTSIDE_TOLERANCE
from rsd_policy.robots.contract import load_contract
from tests.bags.synthetic import PERIOD, START, Row, chunk_row, header, make, recorded, robot, ros1


def content(out):
    return json.loads((out / "replay.json").read_text())


def test_the_same_policy_says_bit_for_bit_what_was_recorded(answered, policy, replay):
    status, out = replay(answered, "--policy", policy)
    assert status == DONE
    found = content(out)
    assert (found["observations"], found["compared"], found["bit_equal"]) == (3, 3, True)
    assert found["against"] == "recorded" and found["recorded_mode"] == ["speculative"] == [found["mode"]]


def test_two_replays_are_bit_equal(answered, policy, replay):
    _, first = replay(answered, "--policy", policy)
    status, second = replay(answered, "--policy", policy, "--against", first, out="again")
    assert status == DONE and content(second)["bit_equal"]
    assert content(first)["answers"][2]["actions"] == content(second)["answers"][2]["actions"]


def test_a_gain_of_one_percent_fails_and_names_field_stamp_and_step(answered, with_gain, replay, capsys):
    status, out = replay(answered, "--policy", with_gain)
    assert status == OUTSIDE_TOLERANCE
    found = content(out)
    assert {name for name, value in found["largest"].items() if value > 0} == {"dz"}
    where = rf"observation at {START * 1e-9:.3f} s, step 0, dz: "
    assert re.match(where + r".* mm, expected .* mm", found["first_difference"])
    printed = capsys.readouterr().out.replace("\n", " ")
    assert "OUTSIDE" in printed and "dz" in printed


def test_junit_has_a_failure_per_answer_outside_the_tolerance(answered, with_gain, replay):
    _, out = replay(answered, "--policy", with_gain)
    suite = ElementTree.parse(out / "junit.xml").getroot()
    failures = suite.findall("testcase/failure")
    assert suite.get("tests") == "3" and int(suite.get("failures")) == len(failures) > 0
    assert "dz" in failures[0].get("message")


def test_the_page_needs_nothing_but_itself(answered, with_gain, replay):
    _, out = replay(answered, "--policy", with_gain)
    page = (out / "replay.html").read_text()
    assert not re.findall(r"(?:src|href)\s*=(?!'data:)", page)
    assert page.count("<figure>") == 3 and page.count("class=camera") == 6
    assert "dz" in page and "OUTSIDE" in page


def test_a_tolerance_of_the_contract_lets_the_gain_pass(answered, with_gain, replay, tmp_path):
    text = load_contract().text.replace("mm: 0.0", "mm: 5.0")
    robot_file = tmp_path / "tolerant.yaml"
    robot_file.write_text(text)
    status, out = replay(answered, "--policy", with_gain, "--robot", robot_file)
    found = content(out)
    assert status == DONE and found["within_tolerance"] and not found["bit_equal"]


def test_another_mode_is_compared_on_the_same_observations(answered, policy, replay):
    status, out = replay(answered, "--policy", policy, "--mode", "speculative", "--against", "baseline")
    assert status == DONE and content(out)["bit_equal"], "speculative's final chunk is baseline's"
    assert content(out)["acceptance_rate"] is not None


def test_a_bag_without_answers_is_replayed_once_per_period_and_compared_with_nothing(policy, replay, tmp_path):
    bag = recorded(tmp_path / "bag", robot(9))
    status, out = replay(bag, "--policy", policy, "--period", "0.2")
    found = content(out)
    assert status == DONE and found["against"] is None and found["observations"] == 3
    status, out = replay(bag, "--policy", policy, "--period", "0")
    assert content(out)["observations"] == 9


def test_recorded_chunks_without_their_observation_are_counted(answered, policy, replay, tmp_path):
    rows = robot()
    rows.append(chunk_row(START, np.zeros((8, 7), np.float32)))
    rows.append(chunk_row(START + 7, np.zeros((8, 7), np.float32)))
    _, out = replay(recorded(tmp_path / "bag", rows), "--policy", policy)
    assert content(out)["without_observation"] == [START + 7]
    assert content(out)["observations"] == 1


def test_a_draft_in_the_bag_is_no_answer(policy, replay, tmp_path):
    rows = [*robot(), chunk_row(START, np.zeros((8, 7), np.float32), verified=False)]
    _, out = replay(recorded(tmp_path / "bag", rows), "--policy", policy)
    assert content(out)["against"] is None


def test_a_bag_that_loops_starts_the_policy_anew(policy, replay, tmp_path):
    first, second = robot(4), robot(4)
    later = [type(row)(row.topic, row.type, row.time + 10**10, row.message) for row in second]
    # a second apart and older: as a looped bag, or a simulation that was reset
    first = [type(row)(row.topic, row.type, row.time, row.message) for row in robot(4, start=START + 5 * 10**9)]
    _, out = replay(recorded(tmp_path / "bag", first + later), "--policy", policy, "--period", "0")
    assert content(out)["observations"] == 8


def test_without_an_instruction_nothing_is_answered(policy, replay, tmp_path):
    bag = recorded(tmp_path / "bag", [row for row in robot() if row.topic != "/instruction"])
    with pytest.raises(ArgumentError, match="--instruction"):
        replay(bag, "--policy", policy)
    status, out = replay(bag, "--policy", policy, "--instruction", "pick up the plate")
    assert status == DONE and content(out)["answers"][0]["instruction"] == "pick up the plate"


def test_stamps_that_never_match_say_what_was_looked_for(policy, replay, tmp_path):
    rows = [row for row in robot() if row.topic != "/wrist/image_raw"]
    rows += [row for row in robot(start=START + 3_000_000) if row.topic == "/wrist/image_raw"]
    with pytest.raises(BagError, match=r"no moment had all of agentview, wrist, pose, joints.*rsd robot check"):
        replay(recorded(tmp_path / "bag", rows), "--policy", policy)


def test_what_a_bag_is_compared_with_has_to_be_there(answered, policy, replay, tmp_path):
    bag = recorded(tmp_path / "bag", robot())
    for against, reason in {"recorded": "no chunks", "commands": "no commands", "nonsense": "expected"}.items():
        with pytest.raises(ArgumentError, match=reason):
            replay(bag, "--policy", policy, "--against", against)


def test_what_a_node_cannot_be_shown_is_refused_before_one_is_started(tmp_path):
    contract = tmp_path / "video.yaml"
    camera = "{topic: hand, type: foxglove_msgs/msg/CompressedVideo}"
    text = load_contract().text.replace("{topic: wrist/image_raw}", camera)
    contract.write_text(text)
    with pytest.raises(ArgumentError, match="ROS 1 is not what ROS 2 has on the wire; replay it with --no-ros"):
        main([str(ros1(tmp_path / "one", robot(1)))])
    with pytest.raises(ArgumentError, match="an image of hand needs all the images before it; replay it with --no-ros"):
        main([str(recorded(tmp_path / "two", robot(1))), "--robot", str(contract)])


def test_what_the_scripted_expert_did_is_answered_by_a_policy(policy, replay, tmp_path):
    rows = [*robot(2), chunk_row(START, np.zeros((1, 7), np.float32), mode="expert")]
    _, out = replay(recorded(tmp_path / "bag", rows), "--policy", policy)
    assert content(out)["mode"] == "speculative" and content(out)["compared"] == 1


def test_an_operators_velocity_commands_are_compared_in_the_units_of_actions(policy, replay, tmp_path):
    """0.5 m/s for 0.05 s is 25 mm, which is half an action unit of 50 mm; a twist says nothing about the gripper."""
    rows = robot(4)
    for i in range(20):
        stamp = START + i * PERIOD
        vectors = [make("geometry_msgs/msg/Vector3", x=x, y=0.0, z=z) for x, z in ((0.5, 0.0), (0.0, -0.2))]
        twist = make("geometry_msgs/msg/Twist", linear=vectors[0], angular=vectors[1])
        message = make("geometry_msgs/msg/TwistStamped", header=header(stamp), twist=twist)
        rows.append(Row("/teleop", "geometry_msgs/msg/TwistStamped", stamp + 2_000_000, message))
    contract = tmp_path / "teleop.yaml"
    more = "commands: /teleop, commands_type: geometry_msgs/msg/TwistStamped, period: 0.05, frame: robot0_base"
    lines = "".join(f"  {entry}\n" for entry in more.split(", "))
    contract.write_text(load_contract().text.replace("  frame: robot0_base\n", lines))
    bag = recorded(tmp_path / "bag", sorted(rows, key=lambda row: row.time))
    _, out = replay(bag, "--policy", policy, "--robot", contract, "--period", "0", "--against", "commands")
    answer = content(out)["answers"][0]
    assert np.allclose(np.array(answer["expected"], dtype=float)[:, [0, 5]], [0.5, -0.02])
    assert len(answer["expected"]) == 8 and answer["gripper"] == 0


def command(stamp, value):
    values = np.full(7, value, np.float32)
    message = make("rsd_msgs/msg/Action", header=header(stamp), values=values, episode=0, step=0, remaining=0)
    return Row("/action", "rsd_msgs/msg/Action", stamp, message)


def test_what_was_executed_before_an_observation_is_told_to_the_policy(tmp_path):
    """In mode gated it decides what may be skipped: a replay that guesses it skips other chunks."""
    rows = [*robot(3), command(START, 0.1), command(START + PERIOD, 0.2)]
    contract = load_contract()
    with Bag(recorded(tmp_path / "bag", sorted(rows, key=lambda row: row.time))) as bag:
        playback = Playback(bag, contract, read_recorded(bag, contract), period_s=0.0)
        executed = [None if s.executed is None else float(s.executed[0]) for s in playback.observations()]
    assert executed == [None, pytest.approx(0.1), pytest.approx(0.2)], "not the one that answers the observation"
    assert read_long_before(tmp_path) is None


def read_long_before(folder):
    with Bag(recorded(folder / "late", [*robot(1), command(START - 2 * 10**9, 0.3)])) as bag:
        return read_recorded(bag, load_contract()).executed(START)

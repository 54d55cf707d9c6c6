"""`rsd robot check` says what is missing, odd or unlike the training, and shows what the policy would see."""

from __future__ import annotations

import pytest

from rsd_policy.commands.robot import main
from rsd_policy.exit_status import DONE, OUTSIDE_TOLERANCE
from tests.bags.synthetic import PERIOD, START, recorded, robot


@pytest.fixture
def check(tmp_path, policy, capsys):
    def run(rows, contract="libero_sim"):
        bag = recorded(tmp_path / "bag", rows)
        picture = tmp_path / "seen.png"
        status = main(["check", contract, str(bag), "--policy", str(policy), "--out", str(picture)])
        return status, " ".join(capsys.readouterr().out.split()), picture

    return run


def shifted(rows, topic, ns):
    """The rows with one topic's stamps moved."""
    late = {(row.topic, row.time - ns): row.message for row in robot(6, start=START + ns)}
    return [
        type(row)(row.topic, row.type, row.time, late[topic, row.time]) if row.topic == topic else row for row in rows
    ]


def test_a_sound_bag_is_shown_and_called_sound(check):
    status, printed, picture = check(robot(21))
    assert status == DONE
    assert "21 of 21 images of agentview became an observation" in printed
    assert "rgb8 32x32" in printed and "20.0" in printed and "+1.0 ms" in printed
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_a_missing_topic_is_named_with_those_of_its_type(check):
    status, printed, picture = check([row for row in robot() if row.topic != "/wrist/image_raw"])
    assert status == OUTSIDE_TOLERANCE
    assert "not in the bag; of this type: /agentview/image_raw" in printed
    assert not picture.exists()


def test_stamps_of_zero_and_stamps_that_go_back_are_counted(check):
    zero = robot(1, start=0)
    rows = robot(4) + [type(row)(row.topic, row.type, row.time + START + 4 * PERIOD, row.message) for row in zero]
    status, printed, _ = check(rows)
    assert status == OUTSIDE_TOLERANCE
    assert "1 stamps are 0 (alignment.stamps: arrival); 1 stamps go back" in printed


def test_one_topic_with_another_clock_is_said_to_match_nothing(check):
    status, printed, _ = check(shifted(robot(6), "/wrist/image_raw", -(10**10)))
    assert status == OUTSIDE_TOLERANCE
    assert "some topics are stamped by another clock than others" in printed
    assert "0 of 6 images of agentview became an observation" in printed

"""Conventions of the state that fail silently: each is seen, and each can be put right in the contract."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from rsd_policy.errors import ObservationError
from rsd_policy.observation import Observation, proprio_from_pose
from rsd_policy.robots.contract import EefPose, Gripper, load_contract
from rsd_policy.robots.state import compose_state, unlike_training
from rsd_policy.robots.state_check import StateCheck

MEAN = [-0.0567, 0.0330, 0.7708, 3.0045, -0.2239, -0.0121, 0.0247, -0.0245]
STD = [0.1180, 0.1452, 0.3628, 0.3327, 0.7715, 0.2241, 0.0155, 0.0158]
"""Of the shipped mini's training."""

POSITION, QUATERNION, FINGERS = [-0.1, 0.05, 1.1], [0.999, 0.02, 0.0, -0.04], [0.039, -0.039]
"""A state as LIBERO publishes it: the hand points down, and w is negative."""
QUATERNION = (np.asarray(QUATERNION) / np.linalg.norm(QUATERNION)).tolist()
BASE = [-0.66, 0.0, 0.912]


def pose(position=POSITION, quaternion=QUATERNION, frame="base"):
    p = SimpleNamespace(**dict(zip("xyz", position, strict=True)))
    q = SimpleNamespace(**dict(zip("xyzw", quaternion, strict=True)))
    return SimpleNamespace(header=SimpleNamespace(frame_id=frame), pose=SimpleNamespace(position=p, orientation=q))


def joints(values=FINGERS, names=("f1", "f2")):
    return SimpleNamespace(name=list(names), position=list(values))


EEF, HAND = EefPose("eef_pose"), Gripper("joints", ("f1", "f2"))
EXPECTED = proprio_from_pose(POSITION, QUATERNION, FINGERS)


def test_a_contract_without_corrections_changes_no_bit():
    assert compose_state(pose(), joints(), EEF, HAND).tobytes() == EXPECTED.tobytes()


def test_a_state_of_the_training_is_like_the_training():
    assert unlike_training(EXPECTED, MEAN, STD) == []


@pytest.mark.parametrize(
    ("changed", "field", "correction"),
    [
        ({"pose": pose(quaternion=[-v for v in QUATERNION])}, "axis-angle x", {"toward": (1.0, 0.0, 0.0, 0.0)}),
        (
            {"pose": pose(position=(np.asarray(POSITION) - BASE).tolist(), frame="base")},
            "state x",
            {"base_translation": tuple(BASE)},
        ),
        ({"joints": joints([0.039, 0.039])}, "finger 2", {"scale": (1.0, -1.0)}),
        ({"joints": joints([0.01, 0.01])}, "finger 2", {"scale": (1.0, -1.0)}),
        ({"joints": joints([39.0, 39.0])}, "finger 1", {"scale": (0.001, -0.001)}),
    ],
    ids=["folded quaternion", "base frame", "finger's sign", "finger's sign, nearly closed", "millimetres"],
)
def test_a_silent_convention_is_named_with_its_field_and_put_right_by_the_contract(changed, field, correction):
    messages = {"pose": pose(), "joints": joints()} | changed
    odd = unlike_training(compose_state(messages["pose"], messages["joints"], EEF, HAND), MEAN, STD)
    assert odd and any(field in sentence for sentence in odd)
    hand = replace(HAND, **{k: v for k, v in correction.items() if k == "scale"})
    eef = replace(EEF, **{k: v for k, v in correction.items() if k != "scale"})
    assert unlike_training(compose_state(messages["pose"], messages["joints"], eef, hand), MEAN, STD) == []


def test_base_and_tool_rotations_are_those_of_scipy():
    base, tool, hand = Rotation.random(3, random_state=1)
    eef = replace(
        EEF,
        base_translation=tuple(BASE),
        base_rotation=tuple(base.as_quat()),
        tool_rotation=tuple(tool.as_quat()),
        toward=tuple((base * hand * tool).as_quat()),
    )
    state = compose_state(pose(quaternion=hand.as_quat()), joints(), eef, HAND)
    assert np.allclose(state[:3], base.apply(POSITION) + BASE, atol=1e-6)
    assert np.allclose(Rotation.from_rotvec(state[3:6]).as_matrix(), (base * hand * tool).as_matrix(), atol=1e-6)


def test_a_width_is_half_of_it_at_each_finger():
    hand = Gripper("joints", ("width",), (1.0, -1.0))
    state = compose_state(pose(), joints([0.06], ["width"]), EEF, hand)
    assert np.allclose(state[6:], [0.03, -0.03])


def test_another_frame_than_the_contract_names_is_refused():
    with pytest.raises(ObservationError, match="expected frame_id 'world', got 'base'"):
        compose_state(pose(), joints(), replace(EEF, frame="world"), HAND)


def observation(state):
    return Observation({"agentview": np.zeros((4, 4, 3), np.uint8)}, state, "pick up the bowl")


def test_the_first_state_decides_and_later_ones_are_warned_of():
    """An arm that leaves the training's states in the middle of a task is not stopped dead by a statistic."""
    check = StateCheck(replace(load_contract(), state_check="refuse"), (MEAN, STD))
    odd = EXPECTED + np.float32([0, 0, 0, -6, 0, 0, 0, 0])
    with pytest.raises(ObservationError, match=r"not trained on states like this one.*state\.check: warn"):
        check.check(observation(odd), context=1)
    assert check.check(observation(EXPECTED), context=1) == []
    assert check.check(observation(odd), context=1)
    with pytest.raises(ObservationError):
        check.check(observation(odd), context=2)


@pytest.mark.parametrize(("mode", "warned"), [("warn", True), ("off", False)])
def test_a_contract_can_override_the_refusal(mode, warned):
    check = StateCheck(replace(load_contract(), state_check=mode), (MEAN, STD))
    odd = EXPECTED + np.float32([0, 0, 0, -6, 0, 0, 0, 0])
    assert bool(check.check(observation(odd), context=1)) == warned

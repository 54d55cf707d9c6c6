"""Observations and the robot state: a broken one is refused before anything is computed from it."""

from __future__ import annotations

import numpy as np
import pytest

from rsd_policy import Observation
from rsd_policy.errors import ObservationError
from rsd_policy.observation import proprio_from_pose

IMAGE = np.zeros((8, 8, 3), np.uint8)
STATE = np.zeros(8, np.float32)
NAN = float("nan")


@pytest.mark.parametrize(
    "quaternion", [[0, 0, 0, NAN], [NAN, 0, 0, 1], [0, 0, 0, 0], [0.5, 0.5, 0.5, 5.0], [0, 0, 0, float("inf")]]
)
def test_quaternion_that_is_no_rotation_is_refused_and_not_read_as_no_rotation(quaternion: list[float]) -> None:
    with pytest.raises(ObservationError, match="unit quaternion"):
        proprio_from_pose([0, 0, 0], quaternion, [0, 0])


def test_axis_angle_is_not_flipped_to_the_positive_half() -> None:
    half = np.sin(0.1)
    state = proprio_from_pose([0.1, 0.2, 0.3], [half, 0, 0, -np.cos(0.1)], [0.04, -0.04])
    np.testing.assert_allclose(state, [0.1, 0.2, 0.3, 2 * np.pi - 0.2, 0, 0, 0.04, -0.04], rtol=1e-6)
    np.testing.assert_allclose(proprio_from_pose([0, 0, 0], [0, 0, 0, 1], [0, 0]), np.zeros(8))


@pytest.mark.parametrize(
    ("images", "proprio", "instruction", "message"),
    [
        ({}, STATE, "go", "no image"),
        ({"wrist": IMAGE.astype(np.float32)}, STATE, "go", "uint8"),
        ([IMAGE], STATE, "go", "mapping of at least one camera .* got list"),
        ({"wrist": IMAGE.tolist()}, STATE, "go", "'wrist': expected a numpy array, got list"),
        ({"wrist": IMAGE[..., :1]}, STATE, "go", r"'wrist': expected uint8 \[H, W, 3\].* got uint8 \[8, 8, 1\]"),
        ({"wrist": np.zeros((8, 8, 4), np.uint8)}, STATE, "go", r"got uint8 \[8, 8, 4\]"),
        ({"wrist": IMAGE[..., 0]}, STATE, "go", r"got uint8 \[8, 8\]"),
        ({"wrist": IMAGE[:0]}, STATE, "go", r"at least 1, got uint8 \[0, 8, 3\]"),
        ({"wrist": IMAGE}, STATE[:7], "go", r"\[8\]"),
        ({"wrist": IMAGE}, np.full(8, NAN), "go", "proprio: expected finite numbers, got .*nan"),
        ({"wrist": IMAGE}, np.full(8, 1e300), "go", "finite"),
        ({"wrist": IMAGE}, np.array(["0"] * 8), "go", "8 real numbers"),
        ({"wrist": IMAGE}, None, "go", "8 real numbers"),
        ({"wrist": IMAGE}, STATE, "", "empty"),
        ({"wrist": IMAGE}, STATE, " \n", "empty"),
        ({"wrist": IMAGE}, STATE, b"go", "expected a str, got bytes"),
        ({"wrist": IMAGE}, STATE, "x" * 10_000, "at most 1000 characters, got 10000"),
    ],
)
def test_malformed_observation_is_refused(images: dict, proprio: np.ndarray, instruction: str, message: str) -> None:
    with pytest.raises(ObservationError, match=message):
        Observation(images, proprio, instruction)


@pytest.mark.parametrize("stamp", [NAN, float("inf")])
def test_stamp_that_is_no_time_is_refused(stamp: float) -> None:
    with pytest.raises(ObservationError, match="stamp"):
        Observation({"wrist": IMAGE}, STATE, "go", stamp)


def test_state_is_kept_as_float32_whatever_real_type_came() -> None:
    for state in (list(range(8)), np.arange(8), np.arange(8.0)):
        kept = Observation({"wrist": IMAGE}, state, "go").proprio
        assert kept.dtype == np.float32 and kept.tolist() == list(range(8))

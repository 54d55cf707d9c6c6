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
        ({"wrist": IMAGE[..., :1]}, STATE, "go", "wrist"),
        ({"wrist": IMAGE}, STATE[:7], "go", r"\[8\]"),
        ({"wrist": IMAGE}, np.full(8, NAN), "go", "finite"),
        ({"wrist": IMAGE}, STATE, "  ", "empty"),
        ({"wrist": IMAGE}, STATE, "go " * 4000, "characters"),
    ],
)
def test_malformed_observation_is_refused(images: dict, proprio: np.ndarray, instruction: str, message: str) -> None:
    with pytest.raises(ObservationError, match=message):
        Observation(images, proprio, instruction)

"""The robot's state as `mini` reads it: equal states give equal chunks, older checkpoints keep their form."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from rsd_policy.checkpoints.loading import build_policy, load_policy, save_policy
from rsd_policy.engine.inference import RSDInferenceEngine
from rsd_policy.errors import ObservationError
from rsd_policy.observation import Observation, pose_from_base, proprio_from_pose
from tests.policies import random_observation, small_manifest, small_policy

FINGERS = (0.021, -0.019)
BASE = (-0.66, 0.0, 0.912)


def observed(rng: np.random.Generator, quaternion: np.ndarray) -> Observation:
    images = random_observation(np.random.default_rng(3)).images
    position = rng.uniform(-0.3, 0.3, 3)
    return Observation(
        images,
        proprio_from_pose(position, quaternion, FINGERS),
        "pick up the bowl",
        pose=pose_from_base(position, quaternion, FINGERS, BASE),
    )


def quaternions(count: int) -> np.ndarray:
    """Of any rotation, those of a downward hand near a half turn among them: w passes 0 there, and axis-angle jumps."""
    values = np.random.default_rng(0).normal(size=(count, 4))
    values[::2] = [1.0, 0.0, 0.0, 0.0] + 0.05 * values[::2]
    return values / np.linalg.norm(values, axis=1, keepdims=True)


@pytest.mark.parametrize("mode", ["baseline", "speculative", "gated"])
def test_both_quaternions_of_a_rotation_give_equal_chunks_bit_by_bit(mode: str) -> None:
    """The form before turned q and -q into two states, of which a policy had seen one: another driver of the same arm
    made it fail."""
    for state, same in (("rotation_6d", True), ("axis_angle", False)):
        engine = RSDInferenceEngine(small_policy(state=state), mode=mode)
        equal = []
        for seed, quaternion in enumerate(quaternions(6)):
            chunks = []
            for sign in (1.0, -1.0):
                engine.reset()
                chunks.append(engine.infer(observed(np.random.default_rng(seed), sign * quaternion)))
            equal.append(np.array_equal(chunks[0].actions, chunks[1].actions))
            assert not same or np.array_equal(chunks[0].tokens, chunks[1].tokens)
        assert all(equal) if same else not all(equal)


def test_the_state_is_relative_to_the_base_and_its_rotation_that_of_the_quaternion() -> None:
    from scipy.spatial.transform import Rotation

    for quaternion in quaternions(20):
        pose = pose_from_base((0.1, 0.2, 1.0), quaternion, FINGERS, BASE)
        assert np.array_equal(pose, pose_from_base((0.1, 0.2, 1.0), -quaternion, FINGERS, BASE))
        matrix = Rotation.from_quat(quaternion).as_matrix()
        assert np.allclose(pose[3:9], matrix[:, :2].T.ravel(), atol=1e-6)
        assert np.allclose(pose[:3], (0.76, 0.2, 0.088), atol=1e-6)
        assert pose[9] == np.float32(0.04) == pose_from_base((0, 0, 0), quaternion, (0.021, 0.019))[9]


def test_a_checkpoint_keeps_its_form_and_an_older_one_its_own(tmp_path: Path) -> None:
    observation = observed(np.random.default_rng(1), quaternions(1)[0])
    for state, width in (("rotation_6d", 10), ("axis_angle", 8)):
        policy = small_policy(state=state)
        save_policy(tmp_path / state, policy)
        again = load_policy(tmp_path / state)
        assert again.mini.config.state == state and again.mini.proprio_mean.shape == (width,)
        staged = again.mini.stage([observation])["proprio"][0]
        assert np.array_equal(staged, observation.pose if width == 10 else observation.proprio)
    before = small_manifest()
    del before["architecture"]["mini"]["state"]
    assert build_policy("older", before).mini.config.state == "axis_angle"


def test_a_state_without_the_base_is_refused_by_whom_needs_it() -> None:
    observation = random_observation(np.random.default_rng(0))
    with pytest.raises(ObservationError, match="pose relative to the robot's base"):
        small_policy(state="rotation_6d").mini.stage([observation])
    with pytest.raises(ObservationError, match=r"pose: expected 10 real numbers, shape \[10\], got .* \[8\]"):
        Observation(observation.images, observation.proprio, "pick", pose=observation.proprio)
    staged = small_policy().mini.stage([observation])["proprio"]
    assert np.array_equal(staged[0], observation.proprio), "the older form does not need it"

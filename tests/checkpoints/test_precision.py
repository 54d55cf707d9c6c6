"""fp8 is refused where it cannot run, and where it can it stays close and voids the gate."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from rsd_policy import RSDInferenceEngine, load_policy
from rsd_policy.checkpoints.precision import LEAST_CAPABILITY, in_fp8
from rsd_policy.errors import CheckpointError, SetupError
from tests.backbones.openvla.random_checkpoint import write_checkpoint
from tests.policies import random_observation, small_policy


def test_fp8_of_another_backbone_or_without_a_gpu_is_refused(tmp_path: Path) -> None:
    policy = small_policy()
    with pytest.raises(CheckpointError, match="got 'mini'"):
        in_fp8(policy)
    assert policy.deviation is not None
    with pytest.raises(SetupError, match=r"8\.9 or more, got it on cpu"):
        in_fp8(load_policy(write_checkpoint(tmp_path), "cpu"))


@pytest.mark.skipif(
    not torch.cuda.is_available() or torch.cuda.get_device_capability() < LEAST_CAPABILITY,
    reason="needs a GPU with fp8 products",
)
def test_fp8_actions_are_close_to_bfloat16s_with_and_without_graphs(tmp_path: Path) -> None:
    path = write_checkpoint(tmp_path)
    observation = random_observation(np.random.default_rng(0))
    expected = RSDInferenceEngine(load_policy(path, "cuda"), "baseline", "cuda").infer(observation).actions[:, :6]
    policy = in_fp8(load_policy(path, "cuda"))
    assert policy.manifest["gate"] is None
    for graphs in (True, False):
        chunk = RSDInferenceEngine(policy, "baseline", "cuda", cuda_graphs=graphs).infer(observation)
        given = chunk.actions[:, :6]
        error = np.linalg.norm(given - expected) / np.linalg.norm(expected - expected.mean())
        assert 0 < error < 0.5

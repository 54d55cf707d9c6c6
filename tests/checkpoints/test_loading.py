"""Checkpoints: what was saved is what is loaded; anything altered is refused before it is read."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from rsd_policy import RSDInferenceEngine, load_policy
from rsd_policy.checkpoints.loading import build_policy, save_policy
from rsd_policy.checkpoints.manifest import manifest_digest, sha256
from rsd_policy.errors import CheckpointError
from tests.policies import random_observation, small_manifest, small_policy


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    directory = tmp_path / "small"
    save_policy(directory, small_policy())
    return directory


def weight_file(directory: Path) -> Path:
    return next(directory.glob("*.safetensors"))


def test_loaded_policy_acts_as_the_saved_one(checkpoint: Path) -> None:
    saved = small_policy()
    for module in saved.modules().values():  # files hold float16
        for tensor in module.state_dict().values():
            tensor.copy_(tensor.half().float())
    observation = random_observation(np.random.default_rng(0))
    expected = RSDInferenceEngine(saved, "baseline").infer(observation)
    chunk = RSDInferenceEngine(load_policy(checkpoint), "baseline").infer(observation)
    assert np.array_equal(chunk.actions, expected.actions)


def test_heads_of_a_manifest_without_a_choice_take_the_arg_max() -> None:
    manifest = small_manifest()
    for part in ("head", "draft"):
        assert manifest["architecture"][part].pop("choice") == "mean"
    policy = build_policy("old", manifest)
    assert policy.head.choice == policy.draft.choice == "mode"


def test_altered_byte_is_refused(checkpoint: Path) -> None:
    path = weight_file(checkpoint)
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="altered"):
        load_policy(checkpoint)


def test_truncated_file_is_refused(checkpoint: Path) -> None:
    path = weight_file(checkpoint)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match="truncated"):
        load_policy(checkpoint)


def test_missing_file_is_refused(checkpoint: Path) -> None:
    weight_file(checkpoint).unlink()
    with pytest.raises(CheckpointError, match="missing"):
        load_policy(checkpoint)


def edit_manifest(directory: Path, **changes: object) -> None:
    path = directory / "manifest.json"
    manifest = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({**manifest, "manifest_sha256": manifest_digest(manifest)}))


def test_altered_manifest_is_refused(checkpoint: Path) -> None:
    path = checkpoint / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["codec"]["scale"][0] = 0.5
    path.write_text(json.dumps(manifest))
    with pytest.raises(CheckpointError, match="altered"):
        load_policy(checkpoint)


def test_file_names_cannot_leave_the_directory(checkpoint: Path) -> None:
    outside = checkpoint.parent / "outside.safetensors"
    save_file({"x": torch.zeros(1)}, outside)
    edit_manifest(checkpoint, files={"../outside.safetensors": sha256(outside)})
    with pytest.raises(CheckpointError, match="leaves"):
        load_policy(checkpoint)


def test_wrong_names_and_shapes_are_listed(checkpoint: Path) -> None:
    path = weight_file(checkpoint)
    tensors = load_file(path)
    tensors["head.surplus"] = tensors.pop("head.position")
    tensors["draft.position"] = tensors["draft.position"][:3].clone()
    save_file(tensors, path)
    edit_manifest(checkpoint, files={path.name: sha256(path)})
    with pytest.raises(CheckpointError, match=r"missing \['position'\]; unexpected \['surplus'\]"):
        load_policy(checkpoint)


def test_nan_weights_are_refused(checkpoint: Path) -> None:
    path = weight_file(checkpoint)
    tensors = load_file(path)
    tensors["backbone.slot"][0, 0] = float("nan")
    save_file(tensors, path)
    edit_manifest(checkpoint, files={path.name: sha256(path)})
    with pytest.raises(CheckpointError, match="NaN"):
        load_policy(checkpoint)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format_version": 99}, "format version 2, got 99"),
        ({"architecture": {"backbone": "openvla"}}, "architecture.openvla"),
        ({"architecture": {"backbone": "llama"}}, "expected backbone 'mini' or 'openvla', got 'llama'"),
        ({"exit_layer": 4}, "exit_layer"),
    ],
)
def test_another_format_or_architecture_is_refused(checkpoint: Path, changes: dict, message: str) -> None:
    edit_manifest(checkpoint, **changes)
    with pytest.raises(CheckpointError, match=message):
        load_policy(checkpoint)


def test_unknown_name_says_what_is_shipped(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"manifest\.json"):
        load_policy(tmp_path)


def test_a_checkpoint_is_never_overwritten(checkpoint: Path) -> None:
    with pytest.raises(CheckpointError, match="another directory"):
        save_policy(checkpoint, small_policy())

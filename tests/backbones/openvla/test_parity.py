"""Hidden states and actions equal the original implementation's on small random checkpoints (README.md beside)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from rsd_policy.backbones.openvla.backbone import OpenVLAInputs
from rsd_policy.backbones.openvla.checkpoint import OpenVLAPolicy, load_openvla
from rsd_policy.backbones.openvla.reference import TokenPolicy
from tests.backbones.openvla.random_checkpoint import FIXTURES
from tests.backbones.openvla.synthetic import noise

BAR = 1e-4
"""Largest difference allowed, float32."""

INSTRUCTIONS = ("Pick up the black bowl", "open the drawer, then put the bowl in it!", "é 中 wörld  two  spaces")

OFT = np.load(FIXTURES / "reference_oft.npz")
OPENVLA = np.load(FIXTURES / "reference_openvla.npz")

Checkpoint = Callable[..., Path]


def embedded(policy: OpenVLAPolicy, case: str, instruction: str) -> Tensor:
    """The case's random pixels and state, as the original was given them, embedded."""
    backbone = policy.backbone
    views = len(backbone.images.cameras)
    pixels = torch.from_numpy(noise(f"pixels {case}", (1, 6 * views, 224, 224)) * 2).view(1, views, 6, 224, 224)
    state = None
    if backbone.units.proprio is not None:
        raw = noise(f"state {case}", (8,)).astype(np.float64) * 2
        state = torch.from_numpy(backbone.units.proprio.normalise(raw))[None]
    return backbone.embed(OpenVLAInputs(pixels, torch.tensor([backbone.tokenizer(instruction)]), state))


def hidden(policy: OpenVLAPolicy, x: Tensor, stop: int) -> NDArray[np.float32]:
    """Hidden states of the action after `stop` layers, without the batch."""
    return policy.backbone.action_hidden(policy.backbone.forward_layers(x, 0, stop))[0].numpy()


def check_oft(policy: OpenVLAPolicy, case: str) -> None:
    with torch.inference_mode():
        x = embedded(policy, case, INSTRUCTIONS[0])
        assert x.shape[1] == OFT[f"{case}/length"]
        # Every fifth of the 56 slots is in the fixture.
        np.testing.assert_allclose(hidden(policy, x, 1)[::5], OFT[f"{case}/hidden_layer1"], atol=BAR, rtol=0)
        np.testing.assert_allclose(hidden(policy, x, 2)[::5], OFT[f"{case}/hidden"], atol=BAR, rtol=0)
        normalised = policy.reference.normalised_actions(x)
    actions = policy.backbone.units.action.unnormalise(normalised)[0]
    np.testing.assert_allclose(actions, OFT[f"{case}/actions"], atol=BAR, rtol=0)
    np.testing.assert_allclose(policy.reference.from_embedded(x)[0], OFT[f"{case}/executed"], atol=BAR, rtol=0)


@pytest.mark.parametrize("proprio", [False, True])
@pytest.mark.parametrize("images", [1, 2])
def test_oft_equals_the_original(checkpoint: Checkpoint, images: int, proprio: bool) -> None:
    policy = load_openvla(checkpoint(proprio=proprio), cameras=("agentview", "wrist")[:images])
    check_oft(policy, f"oft_images{images}_proprio{int(proprio)}")


def test_unmerged_adapter_equals_the_original_merged(adapter_checkpoint: Path) -> None:
    check_oft(load_openvla(adapter_checkpoint), "lora")


@pytest.mark.parametrize("i", range(len(INSTRUCTIONS)))
def test_prompt_tokens_equal_the_original(checkpoint: Checkpoint, i: int) -> None:
    tokenizer = load_openvla(checkpoint()).backbone.tokenizer
    assert tokenizer(INSTRUCTIONS[i]) == (*OFT[f"prompt{i}/ids"], 29871)


@pytest.mark.parametrize("i", range(len(INSTRUCTIONS)))
def test_openvla_equals_the_original(checkpoint: Checkpoint, i: int) -> None:
    policy = load_openvla(checkpoint(oft=False))
    case = f"openvla{i}"
    assert isinstance(policy.reference, TokenPolicy)
    with torch.inference_mode():
        x = embedded(policy, case, INSTRUCTIONS[i])
        assert x.shape[1] == OPENVLA[f"{case}/length"]
        np.testing.assert_allclose(hidden(policy, x, 1)[0], OPENVLA[f"{case}/hidden_layer1"], atol=BAR, rtol=0)
        np.testing.assert_allclose(hidden(policy, x, 2)[0], OPENVLA[f"{case}/hidden"], atol=BAR, rtol=0)
        np.testing.assert_array_equal(policy.reference.decode_tokens(x)[0], OPENVLA[f"{case}/tokens"])
        normalised = policy.reference.normalised_actions(x)
    actions = policy.backbone.units.action.unnormalise(normalised)[0, 0]
    np.testing.assert_allclose(actions, OPENVLA[f"{case}/actions"], atol=BAR, rtol=0)

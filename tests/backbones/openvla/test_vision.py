"""Vision towers and projector: against timm's on small random weights, and the names of the public checkpoints."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from rsd_policy.backbones.openvla.projector import FusedProjector
from rsd_policy.backbones.openvla.vision import DinoSigLIPVision, TowerConfig, VisionConfig, unused_parameters
from rsd_policy.errors import CheckpointError, ObservationError
from tests.backbones.openvla.random_checkpoint import reference_shapes
from tests.backbones.openvla.synthetic import noise, weight

FIXTURES = Path(__file__).parent / "fixtures"
SMALL = VisionConfig(
    dino=TowerConfig(32, 4, 2, 128, registers=4, class_token=True, layer_scale=True),
    siglip=TowerConfig(48, 4, 3, int(48 * 3.7362), attention_pool=True),
)
BAR = 1e-4


@pytest.fixture(scope="module")
def vision() -> DinoSigLIPVision:
    model = DinoSigLIPVision(SMALL).eval()
    shapes = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    model.load_state_dict({name: torch.from_numpy(weight(name, shape)) for name, shape in shapes.items()})
    return model


@pytest.fixture(scope="module")
def pixels() -> torch.Tensor:
    return torch.from_numpy(noise("pixels", (2, 2, 6, 224, 224)))


def test_features_are_timms(vision: DinoSigLIPVision, pixels: torch.Tensor) -> None:
    expected = np.load(FIXTURES / "vision.npz")
    with torch.inference_mode():
        patches = vision(pixels)
    assert patches.shape == (2, 2 * 256, 32 + 48)
    sampled = patches.view(2, 2, 256, 80)[:, :, ::32].numpy()
    assert np.abs(sampled[..., :32] - expected["featurizer"]).max() < BAR
    assert np.abs(sampled[..., 32:] - expected["fused_featurizer"]).max() < BAR
    assert expected["featurizer"].std() > 0.5  # a bar of 1e-4 says something about values of this size
    assert expected["fused_featurizer"].std() > 0.5


def test_images_do_not_influence_each_other(vision: DinoSigLIPVision, pixels: torch.Tensor) -> None:
    with torch.inference_mode():
        together = vision(pixels)
        apart = torch.cat([vision(pixels[:, i : i + 1]) for i in range(2)], dim=1)
    torch.testing.assert_close(together, apart, atol=1e-5, rtol=0)


def test_names_are_those_of_the_public_checkpoints() -> None:
    prefix = "vision_backbone."
    public = {
        name.removeprefix(prefix): tuple(shape)
        for name, shape in reference_shapes("public", "model").items()
        if name.startswith(prefix)
    }
    assert len(public) == 685
    with torch.device("meta"):
        state = DinoSigLIPVision().state_dict()
    used = {name: tuple(value.shape) for name, value in state.items()}
    unused = unused_parameters(VisionConfig())
    assert not used.keys() & unused.keys()
    assert used | unused == public


def test_unused_parameters_are_what_lies_behind_the_features(vision: DinoSigLIPVision) -> None:
    names = unused_parameters(SMALL)
    assert names["featurizer.norm.weight"] == (32,)
    assert names["fused_featurizer.attn_pool.mlp.fc1.weight"] == (179, 48)
    assert {name for name in names if name.startswith("featurizer.blocks.")} == {
        name.replace("blocks.0.", "blocks.3.")
        for name in vision.state_dict()
        if name.startswith("featurizer.blocks.0.")
    }
    assert not any(name.startswith("featurizer.attn_pool") for name in names)


def test_pixels_of_another_shape_are_refused(vision: DinoSigLIPVision) -> None:
    with pytest.raises(ObservationError, match=r"\[batch, images, 6, 224, 224\], got \[1, 6, 224, 224\]"):
        vision(torch.zeros(1, 6, 224, 224))
    with pytest.raises(ObservationError, match=r"got \[1, 2, 3, 224, 224\]"):
        vision(torch.zeros(1, 2, 3, 224, 224))


def test_pixels_are_cast_to_the_weights_dtype(vision: DinoSigLIPVision, pixels: torch.Tensor) -> None:
    half = DinoSigLIPVision(SMALL).eval()
    half.load_state_dict(vision.state_dict())
    half.to(torch.bfloat16)
    with torch.inference_mode():
        exact, rounded = vision(pixels[:1, :1]), half(pixels[:1, :1])
    assert rounded.dtype == torch.bfloat16
    assert (rounded.float() - exact).abs().mean() < 0.05 * exact.abs().mean()


def test_config_from_json() -> None:
    assert VisionConfig.from_json({}) == VisionConfig()
    entry = {"dino": {"width": 8, "depth": 2, "heads": 2, "mlp_width": 16, "registers": 1}}
    assert VisionConfig.from_json(entry).dino == TowerConfig(8, 2, 2, 16, registers=1)
    for wrong in (
        {"dinov2": {}},
        {"dino": {"width": 8}},
        {"dino": {"width": 9, "depth": 2, "heads": 2, "mlp_width": 8}},
    ):
        with pytest.raises(CheckpointError, match=r"vision (tower|sizes)"):
            VisionConfig.from_json(wrong)


def test_projector_is_its_formula() -> None:
    projector = FusedProjector(vision_width=10, hidden_size=6).eval()
    state = projector.state_dict()
    shapes = {name: tuple(value.shape) for name, value in state.items()}
    assert shapes == {
        "fc1.weight": (40, 10), "fc1.bias": (40,), "fc2.weight": (6, 40), "fc2.bias": (6,),
        "fc3.weight": (6, 6), "fc3.bias": (6,),
    }  # fmt: skip
    x = torch.from_numpy(noise("patches", (2, 3, 10))).double()
    hidden = x
    for layer in ("fc1", "fc2", "fc3"):
        if layer != "fc1":
            hidden = hidden * (1 + torch.erf(hidden / 2**0.5)) / 2
        hidden = hidden @ state[f"{layer}.weight"].double().T + state[f"{layer}.bias"].double()
    torch.testing.assert_close(projector(x.float()).double(), hidden, atol=1e-6, rtol=0)

"""Pixels against TensorFlow's: every step in every value, by hashes of what TensorFlow made of the same images."""

from __future__ import annotations

import hashlib
import io
import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import simplejpeg
import torch
from numpy.typing import NDArray
from PIL import Image, features

from rsd_policy.backbones.openvla.preprocessing import (
    ImagePreprocessing,
    PixelNormalisation,
)
from rsd_policy.backbones.openvla.preprocessing_jpeg import QUALITY, inverse_scale, jpeg_round_trip
from rsd_policy.backbones.openvla.preprocessing_resample import center_crop, lanczos_resize, lanczos_taps
from rsd_policy.errors import CheckpointError, ObservationError
from rsd_policy.observation import Observation
from tests.backbones.openvla.synthetic import images

FIXTURES = Path(__file__).parent / "fixtures"
FRAMES = ("frame_agentview", "frame_wrist")
NAMES = (*FRAMES, "gradient", "noise", "stripes", "vga", "odd", "blocks", "tiny")
CPU = torch.device("cpu")


def picture(name: str) -> NDArray[np.uint8]:
    if name in FRAMES:
        return np.ascontiguousarray(cv2.imread(str(FIXTURES / f"{name}.png"))[..., ::-1])
    return images()[name]


def tensor(image: NDArray[np.uint8]) -> torch.Tensor:
    return torch.from_numpy(image)[None]


def observation(**cameras: NDArray[np.uint8]) -> Observation:
    return Observation(images=cameras, proprio=np.zeros(8, np.float32), instruction="pick up the bowl")


@pytest.mark.parametrize("name", NAMES)
def test_every_step_is_tensorflows(name: str) -> None:
    expected = json.loads((FIXTURES / "pixels.json").read_text())[name]
    decoded = jpeg_round_trip(tensor(picture(name)))
    resized = lanczos_resize(decoded, 224)
    cropped = center_crop(resized, 0.9)
    assert resized.shape == cropped.shape == (1, 224, 224, 3)
    stages = {"jpeg": decoded, "resized": resized, "cropped": cropped}
    assert {stage: hashlib.sha256(pixels.numpy().tobytes()).hexdigest() for stage, pixels in stages.items()} == expected


@pytest.mark.parametrize("name", NAMES)
def test_the_jpeg_round_trip_is_libjpeg_turbos(name: str) -> None:
    """Coded with the accurate DCT (Pillow's default) and decoded with the fast one, as TensorFlow does: a second
    opinion that can be asked of any picture, where TensorFlow's is a hash of these."""
    assert features.check_feature("libjpeg_turbo")
    file = io.BytesIO()
    Image.fromarray(picture(name)).save(file, "jpeg", quality=QUALITY, subsampling="4:2:0")
    decoded = simplejpeg.decode_jpeg(file.getvalue(), fastdct=True, fastupsample=False)
    assert np.array_equal(jpeg_round_trip(tensor(picture(name)))[0].numpy(), decoded)


def test_normalisation_is_torchvisions() -> None:
    expected = np.load(FIXTURES / "vision.npz")["normalised"]
    pixels = ImagePreprocessing().normalise(tensor(images()["blocks"]))[0]
    assert pixels.dtype == torch.float32
    assert np.abs(pixels[:, ::16, ::16].numpy() - expected).max() < 1e-6


def test_steps_make_up_the_whole() -> None:
    frames = {"agentview": picture("frame_agentview"), "wrist": picture("odd")}
    preprocessing = ImagePreprocessing()
    pixels = preprocessing([observation(**frames)] * 2, CPU)
    assert pixels.shape == (2, 2, 6, 224, 224)
    for i, frame in enumerate(frames.values()):
        steps = preprocessing.normalise(center_crop(lanczos_resize(jpeg_round_trip(tensor(frame)), 224), 0.9))
        for b in range(2):
            assert torch.equal(pixels[b, i], steps[0])


def test_options_leave_steps_out() -> None:
    frame = picture("frame_wrist")
    for jpeg in (False, True):
        for crop in (False, True):
            preprocessing = ImagePreprocessing(("wrist",), jpeg=jpeg, center_crop=crop)
            expected = tensor(frame)
            expected = lanczos_resize(jpeg_round_trip(expected) if jpeg else expected, 224)
            expected = preprocessing.normalise(center_crop(expected, 0.9) if crop else expected)
            assert torch.equal(preprocessing([observation(wrist=frame)], CPU)[:, 0], expected)


def test_jpeg_cannot_be_left_out_for_speed() -> None:
    """Why there is no path without it: on camera frames it is worth more than the bar of 1/255."""
    with_jpeg, without = (
        center_crop(lanczos_resize(frames, 224), 0.9).float()
        for frames in (jpeg_round_trip(tensor(picture("frame_agentview"))), tensor(picture("frame_agentview")))
    )
    assert (with_jpeg - without).abs().mean() > 1.0


def test_flat_images_stay_flat() -> None:
    for level in range(0, 256, 5):
        grey = torch.full((1, 40, 30, 3), level, dtype=torch.uint8)
        assert torch.equal(
            center_crop(lanczos_resize(grey, 224), 0.9), torch.full((1, 224, 224, 3), level, dtype=torch.uint8)
        )


@pytest.mark.parametrize("source", [8, 100, 224, 256, 480])
def test_lanczos_weights_against_the_formula(source: int) -> None:
    indices, weights = lanczos_taps(source, 224)
    centre = (np.arange(224) + 0.5) * source / 224
    x = (np.arange(source)[None] + 0.5 - centre[:, None]) / max(source / 224, 1)
    exact = np.where(np.abs(x) < 3, np.sinc(x) * np.sinc(x / 3), 0)
    dense = np.zeros((224, source))
    np.add.at(dense, (np.arange(224)[:, None], indices), weights)
    np.testing.assert_allclose(dense, exact / exact.sum(axis=1, keepdims=True), atol=2e-5)


def test_dequantisation_factors_are_libjpegs() -> None:
    """First row of T.81's 14-bit scale factors, with steps of 4096: 16384, 22725, 21407, ... unrounded by the shift."""
    factors = inverse_scale(np.full((8, 8), 4096.0))
    assert factors[0].tolist() == [16384, 22725, 21407, 19266, 16384, 12873, 8867, 4520]
    assert factors[7].tolist() == [4520, 6270, 5906, 5315, 4520, 3552, 2446, 1247]


def test_missing_camera_is_named_before_any_compute() -> None:
    good, bad = observation(agentview=picture("odd"), wrist=picture("odd")), observation(agentview=picture("odd"))
    with pytest.raises(ObservationError, match=r"missing camera\(s\) \['wrist'\].*got \['agentview'\]"):
        ImagePreprocessing()([good, bad], CPU)


@pytest.mark.parametrize(
    ("frame", "got"),
    [
        (np.zeros((64, 64, 3), np.float32), r"got float32 \[64, 64, 3\]"),
        (np.zeros((64, 64, 4), np.uint8), r"got uint8 \[64, 64, 4\]"),
        (np.zeros((64, 64), np.uint8), r"got uint8 \[64, 64\]"),
        (np.zeros((7, 64, 3), np.uint8), r"at least 8 x 8 px, got 7 x 64"),
    ],
)
def test_malformed_frames_are_refused(frame: NDArray[np.generic], got: str) -> None:
    cameras = {"agentview": picture("odd")}
    seen = observation(**cameras)
    object.__setattr__(seen, "images", {"agentview": frame})  # an observation changed after it was checked
    with pytest.raises(ObservationError, match=f"'agentview': expected .*{got}"):
        ImagePreprocessing(("agentview",))([seen], CPU)


def test_frames_without_batch_are_refused() -> None:
    with pytest.raises(ObservationError, match=r"\[N, H, W, 3\], got torch.uint8 \[64, 64, 3\]"):
        ImagePreprocessing().pixels(torch.zeros(64, 64, 3, dtype=torch.uint8))
    with pytest.raises(ObservationError, match=r"got torch.float32 \[64, 64, 3\]"):
        ImagePreprocessing().pixels(torch.zeros(1, 64, 64, 3))


def test_normalisation_from_the_checkpoint() -> None:
    published = {
        "input_sizes": [[3, 224, 224], [3, 224, 224]],
        "means": [[0.485, 0.456, 0.406], [0.5, 0.5, 0.5]],
        "stds": [[0.229, 0.224, 0.225], [0.5, 0.5, 0.5]],
        "tvf_normalize_params": [
            {
                "inplace": False,
                "mean": [0.484375, 0.455078125, 0.40625],
                "std": [0.228515625, 0.2236328125, 0.224609375],
            },
            {"inplace": False, "mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]},
        ],
    }
    assert PixelNormalisation.from_processor_config(published) == PixelNormalisation()
    del published["tvf_normalize_params"]
    assert PixelNormalisation.from_processor_config(published).means[0] == (0.485, 0.456, 0.406)
    for wrong, message in (
        ({}, "got keys"),
        (published | {"input_sizes": [[3, 384, 384]] * 2}, "384"),
        (published | {"means": [[0.5, 0.5, 0.5]]}, "2 towers x 3 channels"),
        (published | {"stds": [[0.0, 0.1, 0.1], [0.5, 0.5, 0.5]]}, "positive"),
    ):
        with pytest.raises(CheckpointError, match=message):
            PixelNormalisation.from_processor_config(wrong)

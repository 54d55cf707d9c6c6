"""OpenVLA's preprocessing in fused kernels equals its plain form, and so TensorFlow, in every bit."""

from __future__ import annotations

import pytest
import torch

from rsd_policy.backbones.openvla.preprocessing import ImagePreprocessing
from rsd_policy.backbones.openvla.preprocessing_jpeg import fused_constants, jpeg_round_trip
from rsd_policy.kernels import fused

pytest.importorskip("triton")


def frames(count: int, height: int, width: int) -> torch.Tensor:
    """Noise on shades, so that blocks are neither flat nor saturated throughout."""
    torch.manual_seed(height * width)
    shade = torch.linspace(-30, 285, width).expand(count, height, width)[..., None]
    return (shade + 40 * torch.randn(count, height, width, 3)).clamp(0, 255).to(torch.uint8)


@pytest.mark.parametrize("height, width", [(16, 16), (37, 29), (24, 41), (9, 50)])
def test_jpeg_round_trip_of_sizes_that_are_no_whole_blocks(device: torch.device, height: int, width: int) -> None:
    from rsd_policy.kernels import pixels

    given = frames(2, height, width)
    constants = pixels.JpegConstants(*fused_constants(device))
    assert torch.equal(pixels.jpeg_round_trip(given.to(device), constants).cpu(), jpeg_round_trip(given))


@pytest.mark.parametrize(
    "jpeg, crop, height, width", [(True, True, 40, 60), (False, True, 224, 224), (True, False, 300, 17)]
)
def test_pixels_equal_those_of_the_plain_form_on_the_cpu(
    device: torch.device, jpeg: bool, crop: bool, height: int, width: int
) -> None:
    images = ImagePreprocessing(jpeg=jpeg, center_crop=crop)
    given = frames(1, height, width)
    with fused():
        pixels = images.pixels(given.to(device)).cpu()
    assert torch.equal(pixels, images.pixels(given))

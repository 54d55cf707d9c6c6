"""Pixels as OpenVLA and OpenVLA-OFT see them, without TensorFlow.

    frame uint8 [H, W, 3] -> JPEG round trip -> Lanczos3 to 224 x 224 (aspect ratio not kept) -> uint8
        -> centre crop of 90 % of the area, bilinear back to 224 x 224 -> uint8
        -> two normalised copies on 6 channels: DINOv2 (ImageNet mean and std), then SigLIP (0.5, 0.5)

Frames are upright: the reference turns LIBERO's by 180 degrees first, here the simulator's bridge has done it.

Sources: `resize_image_for_policy`, `center_crop_image` (experiments/robot/openvla_utils.py of moojink/openvla-oft), the
same steps in openvla/openvla's LIBERO evaluation, and TensorFlow's own kernels for the arithmetic of each step.

There is one path, in PyTorch, for CPU and GPU. Measured on the CPU against TensorFlow 2.21 with eight 256x256 LIBERO
frames of both cameras and seven synthetic images from 61x83 to 480x640: equal in every value after every step.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rsd_policy import kernels
from rsd_policy.backbones.openvla.preprocessing_jpeg import fused_constants, jpeg_round_trip
from rsd_policy.backbones.openvla.preprocessing_resample import (
    UINT8_STEP,
    center_crop,
    lanczos_resize,
    positions_on,
    taps_on,
)
from rsd_policy.errors import CheckpointError, ObservationError
from rsd_policy.observation import Observation

IMAGE_SIZE = 224
"""Side of the towers' input, px."""

CROP_AREA = 0.9
"""Part of the area that the centre crop keeps: the mean of the random crops in training."""

MIN_FRAME_SIZE = 8
"""Smallest side of a frame, px: one JPEG block."""


@dataclass(frozen=True)
class PixelNormalisation:
    """Mean and standard deviation per tower and colour channel, DINOv2 first, of pixels in [0, 1].

    The defaults are those of the published checkpoints' `preprocessor_config.json`: ImageNet's, rounded to bfloat16
    (the file was written under a bfloat16 default; the rounding is what the models were trained with).
    """

    means: tuple[tuple[float, ...], ...] = ((0.484375, 0.455078125, 0.40625), (0.5, 0.5, 0.5))
    stds: tuple[tuple[float, ...], ...] = ((0.228515625, 0.2236328125, 0.224609375), (0.5, 0.5, 0.5))

    def __post_init__(self) -> None:
        for name, values in (("means", self.means), ("stds", self.stds)):
            if [len(tower) for tower in values] != [3, 3]:
                raise CheckpointError(f"pixel {name}: expected 2 towers x 3 channels, got {values}")
        if not all(std > 0 for tower in self.stds for std in tower):
            raise CheckpointError(f"pixel stds: expected positive numbers, got {self.stds}")

    @classmethod
    def from_processor_config(cls, entry: Mapping[str, Any]) -> PixelNormalisation:
        """Read a checkpoint's `preprocessor_config.json`.

        `tvf_normalize_params` wins over `means` and `stds`, as in the reference's processor.

        Raises:
            CheckpointError: neither is there, or the input is not two towers of 224 x 224.
        """
        sizes = entry.get("input_sizes", [[3, IMAGE_SIZE, IMAGE_SIZE]] * 2)
        if [list(size) for size in sizes] != [[3, IMAGE_SIZE, IMAGE_SIZE]] * 2:
            raise CheckpointError(
                f"preprocessor_config.json, input_sizes: expected [3, {IMAGE_SIZE}, {IMAGE_SIZE}] twice, got {sizes}"
            )
        try:
            if "tvf_normalize_params" in entry:
                params = entry["tvf_normalize_params"]
                means, stds = [p["mean"] for p in params], [p["std"] for p in params]
            else:
                means, stds = entry["means"], entry["stds"]
        except (KeyError, TypeError) as error:
            raise CheckpointError(
                "preprocessor_config.json: expected tvf_normalize_params (mean, std per tower) or means and stds, "
                f"got keys {sorted(entry)}"
            ) from error
        return cls(*(tuple(tuple(map(float, tower)) for tower in values) for values in (means, stds)))


@functools.cache
def _constants_on(normalisation: PixelNormalisation, device: torch.device) -> tuple[Tensor, Tensor]:
    """Means and standard deviations, each [1, 2, 3, 1, 1]; kept, because a CUDA graph must not copy from the host."""
    means, stds = (
        torch.tensor(values, dtype=torch.float32, device=device).view(1, 2, 3, 1, 1)
        for values in (normalisation.means, normalisation.stds)
    )
    return means, stds


@dataclass(frozen=True)
class ImagePreprocessing:
    """Observations -> the vision towers' pixels.

    Attributes:
        cameras: names in `Observation.images`, in the order of the checkpoint's views. OpenVLA-OFT on LIBERO: third
            person, then wrist; OpenVLA: third person only.
        jpeg: apply the JPEG round trip, as LIBERO evaluations do. Without it, the result on LIBERO frames is off by 0.9
            to 1.5 of 255 on average and 33 at most.
        center_crop: crop 90 % of the area; right for checkpoints trained with random crops, as all published ones for
            LIBERO are.
        normalisation: see `PixelNormalisation`.
    """

    cameras: tuple[str, ...] = ("agentview", "wrist")
    jpeg: bool = True
    center_crop: bool = True
    normalisation: PixelNormalisation = field(default_factory=PixelNormalisation)

    def __call__(self, observations: Sequence[Observation], device: torch.device) -> Tensor:
        """Check every frame, then compute on `device`.

        Returns:
            float32 [B, cameras, 6, 224, 224], normalised.

        Raises:
            ObservationError: a camera is missing or a frame is not uint8 [H, W, 3]; nothing was computed.
        """
        frames = [frame for observation in observations for frame in self.frames(observation)]
        by_shape: dict[tuple[int, ...], list[int]] = {}
        for index, frame in enumerate(frames):
            by_shape.setdefault(frame.shape, []).append(index)
        pixels = torch.empty(len(frames), 6, IMAGE_SIZE, IMAGE_SIZE, device=device)
        for indices in by_shape.values():
            batch = torch.from_numpy(np.stack([frames[i] for i in indices])).to(device)
            pixels[indices] = self.pixels(batch)
        return pixels.view(len(observations), len(self.cameras), 6, IMAGE_SIZE, IMAGE_SIZE)

    def frames(self, observation: Observation) -> list[NDArray[np.uint8]]:
        """The frames of `cameras`, in that order.

        Raises:
            ObservationError: a camera is missing or a frame is not uint8 [H, W, 3].
        """
        missing = [name for name in self.cameras if name not in observation.images]
        if missing:
            raise ObservationError(
                f"missing camera(s) {missing}: expected {list(self.cameras)}, got {sorted(observation.images)}"
            )
        frames = [observation.images[name] for name in self.cameras]
        for name, frame in zip(self.cameras, frames, strict=True):
            check_frame(name, frame.shape, frame.dtype)
        return frames

    def pixels(self, frames: Tensor) -> Tensor:
        """Frames of one size, uint8 [N, H, W, 3] RGB -> float32 [N, 6, 224, 224] on the same device.

        Raises:
            ObservationError: another dtype or shape.
        """
        if frames.ndim != 4:
            raise ObservationError(f"frames: expected uint8 [N, H, W, 3], got {frames.dtype} {list(frames.shape)}")
        check_frame("frames", frames.shape[1:], frames.dtype)
        if kernels.enabled():
            return self._fused_pixels(frames)
        if self.jpeg:
            frames = jpeg_round_trip(frames)
        frames = lanczos_resize(frames, IMAGE_SIZE)
        if self.center_crop:
            frames = center_crop(frames, CROP_AREA)
        return self.normalise(frames)

    def _fused_pixels(self, frames: Tensor) -> Tensor:
        """`pixels` in fused kernels."""
        from rsd_policy.kernels import pixels

        device = frames.device
        if self.jpeg:
            frames = pixels.jpeg_round_trip(frames, pixels.JpegConstants(*fused_constants(device)))
        height, width = frames.shape[1:3]
        if (height, width) != (IMAGE_SIZE, IMAGE_SIZE):
            frames = pixels.resize(frames, *(taps_on(side, IMAGE_SIZE, device) for side in (height, width)))
        crop = positions_on(IMAGE_SIZE, CROP_AREA, device) if self.center_crop else None
        return pixels.crop_and_normalise(frames, crop, UINT8_STEP, *_constants_on(self.normalisation, device))

    def normalise(self, frames: Tensor) -> Tensor:
        """uint8 [N, S, S, 3] -> float32 [N, 6, S, S]: (x / 255 - mean) / std for DINOv2, then for SigLIP."""
        means, stds = _constants_on(self.normalisation, frames.device)
        unit = frames.permute(0, 3, 1, 2).to(torch.float32) / 255
        return ((unit[:, None] - means) / stds).flatten(1, 2)


def check_frame(name: str, shape: Sequence[int], dtype: object) -> None:
    """Refuse what is not uint8 [H, W, 3] with sides of at least `MIN_FRAME_SIZE` px.

    Raises:
        ObservationError: says what was expected and what came.
    """
    if str(dtype).removeprefix("torch.") != "uint8" or len(shape) != 3 or shape[2] != 3:
        raise ObservationError(f"image '{name}': expected uint8 [H, W, 3] (RGB), got {dtype} {list(shape)}")
    if min(shape[:2]) < MIN_FRAME_SIZE:
        raise ObservationError(
            f"image '{name}': expected at least {MIN_FRAME_SIZE} x {MIN_FRAME_SIZE} px, got {shape[0]} x {shape[1]}"
        )

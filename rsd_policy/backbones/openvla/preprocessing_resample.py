"""TensorFlow's two image resizings, bit for bit: antialiased Lanczos3 and bilinear crop-and-resize.

Every sum and product below is one float32 operation in the order of TensorFlow's CPU kernels (ScaleAndTranslate,
CropAndResize), so that values next to a rounding boundary fall to the same side. Eager PyTorch rounds each of them; a
compiler that fuses multiply and add does not, and may move single pixels by one level.
"""

from __future__ import annotations

import ctypes
import functools

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

LANCZOS_RADIUS = 3

ONE, HALF, PI = np.float32(1), np.float32(0.5), np.float32(np.pi)

UINT8_STEP = (ONE / np.float32(255)).item()
"""float32's 1 / 255."""


def sine(x: NDArray[np.float32]) -> NDArray[np.float32]:
    """`sinf` of the C library, which TensorFlow calls, too.

    It is not correctly rounded: between 256 and 224 px that shows in the weights of 11 of the 224 outputs, and moves
    about 1 of 450 000 pixel values by one level. (glibc has computed it in the same way since 2.28.)
    """
    sinf = ctypes.CDLL("libm.so.6").sinf
    sinf.argtypes, sinf.restype = [ctypes.c_float], ctypes.c_float
    return np.vectorize(sinf, otypes=[np.float32])(x)


def lanczos3(x: NDArray[np.float32]) -> NDArray[np.float32]:
    """The kernel sinc(x) sinc(x / 3) for x >= 0, zero beyond 3."""
    radius = np.float32(LANCZOS_RADIUS)
    inside = np.where(x <= np.float32(1e-3), ONE, x)
    angle = PI * inside
    weights = radius * sine(angle) * sine(angle / radius) / (PI * PI * inside * inside)
    return np.where(x <= np.float32(1e-3), ONE, np.where(x > radius, np.float32(0), weights)).astype(np.float32)


def lanczos_taps(source: int, target: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """What `tf.image.resize(..., method="lanczos3", antialias=True)` adds up along one axis.

    Output i samples at (i + 0.5) source / target; when shrinking, the kernel is stretched by that factor.

    Returns:
        Indices [target, taps] into the source and their weights [target, taps]; unused taps have weight 0.
    """
    inverse_scale = np.float32(1.0 / np.float64(np.float32(target) / np.float32(source)))
    stretch = max(inverse_scale, ONE)
    reach = np.float32(LANCZOS_RADIUS) * stretch
    centre = (np.arange(target, dtype=np.float32) + HALF) * inverse_scale
    first = np.clip(np.ceil(centre - reach - HALF).astype(np.int64), 0, source - 1)
    last = np.clip(np.floor(centre + reach - HALF).astype(np.int64), 0, source - 1)
    indices = first[:, None] + np.arange((last - first).max() + 1)
    distance = np.abs((indices.astype(np.float32) + HALF - centre[:, None]) * (ONE / stretch))
    weights = np.where(indices <= last[:, None], lanczos3(distance), np.float32(0))
    total = np.zeros(target, dtype=np.float32)
    for tap in weights.T:  # one by one: the order of a float32 sum shows in its last bit
        total = total + tap
    return np.minimum(indices, source - 1), weights * (ONE / total)[:, None]


def crop_positions(size: int, area: float) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float32]]:
    """Where `tf.image.crop_and_resize` samples along one axis for a centred square of that part of the area.

    Output i samples at low (size - 1) + i (high - low), with low and high = (1 -+ sqrt(area)) / 2.

    Returns:
        Index below, index above and the part of the way between them, each [size].
    """
    side = np.sqrt(np.float32(area))
    low = (ONE - side) / np.float32(2)
    last = np.float32(size - 1)
    at = low * last + np.arange(size, dtype=np.float32) * (((low + side) - low) * last / last)
    below = np.floor(at)
    return below.astype(np.int64), np.ceil(at).astype(np.int64), at - below


@functools.cache
def taps_on(source: int, target: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """`lanczos_taps` on a device; kept, because a CUDA graph must not copy from the host."""
    indices, weights = lanczos_taps(source, target)
    return torch.from_numpy(indices).to(device), torch.from_numpy(weights).to(device)


@functools.cache
def positions_on(size: int, area: float, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """`crop_positions` on a device; kept as well."""
    below, above, fraction = (torch.from_numpy(array).to(device) for array in crop_positions(size, area))
    return below, above, fraction


def lanczos_resize(frames: Tensor, size: int) -> Tensor:
    """Resize to size x size as `tf.image.resize(lanczos3, antialias=True)`, rounded (ties to even) and clipped.

    Args:
        frames: uint8 [N, H, W, 3]. A frame of that size already is returned as it is.

    Returns:
        uint8 [N, size, size, 3].
    """
    height, width = frames.shape[1:3]
    if (height, width) == (size, size):
        return frames
    x = frames.to(torch.float32)
    for axis, side in ((1, height), (2, width)):
        indices, weights = taps_on(side, size, frames.device)
        shape = [-1 if i == axis else 1 for i in range(4)]
        total = torch.zeros((), device=frames.device)
        for tap in range(indices.shape[1]):
            total = total + weights[:, tap].view(shape) * x.index_select(axis, indices[:, tap])
        x = total
    return x.round().clamp(0, 255).to(torch.uint8)


def center_crop(frames: Tensor, area: float) -> Tensor:
    """Crop the centre of square frames and resize back, as `tf.image.crop_and_resize` (bilinear).

    TensorFlow converts uint8 to float by x / 255 and back by floor(255.5 x): values between two levels go down.

    Args:
        frames: uint8 [N, S, S, 3].
        area: part of the area that is kept.

    Returns:
        uint8 [N, S, S, 3].
    """
    below, above, fraction = positions_on(frames.shape[1], area, frames.device)
    x = frames.to(torch.float32) * UINT8_STEP
    upper, lower = x.index_select(1, below), x.index_select(1, above)
    along = fraction.view(1, 1, -1, 1)
    upper = _between(upper.index_select(2, below), upper.index_select(2, above), along)
    lower = _between(lower.index_select(2, below), lower.index_select(2, above), along)
    x = _between(upper, lower, fraction.view(1, -1, 1, 1))
    return (x.clamp(0, 1) * 255.5).floor().clamp(0, 255).to(torch.uint8)


def _between(a: Tensor, b: Tensor, fraction: Tensor) -> Tensor:
    return a + (b - a) * fraction

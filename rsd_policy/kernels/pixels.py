"""OpenVLA's image preprocessing in five kernels in place of some hundred and fifty, equal in every bit.

The JPEG arithmetic is integers in float64, exact in any order of summation. The resizings are float32 operations that
must round one by one, so the compiler may not fuse a product with a sum (`enable_fp_fusion=False`).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor


class JpegConstants(NamedTuple):
    """float64 matrices of preprocessing_jpeg.py: `rounded` and `products` padded to [8, 8], tables [2, 8, 8]."""

    forward: Tensor
    direct: Tensor
    rounded: Tensor
    products: Tensor
    steps: Tensor
    inverse: Tensor


@triton.jit
def _product(a, b):
    """Matrix product of two [8, 8]."""
    return tl.sum(a[:, :, None] * b[None, :, :], 1)


@triton.jit
def _matrix(at, TRANSPOSED: tl.constexpr):
    row, column = tl.arange(0, 8)[:, None], tl.arange(0, 8)[None, :]
    return tl.load(at + (column * 8 + row if TRANSPOSED else row * 8 + column))


@triton.jit
def _coded(x, forward, direct, rounded, products, steps, inverse):
    """Forward DCT, quantisation and inverse DCT of one block [8, 8] of 0 .. 255 (float64)."""
    x = tl.floor((_product(x - 128.0, _matrix(forward, True)) + 1024.0) / 2048.0)
    x = tl.floor((_product(_matrix(forward, False), x) + 16384.0) / 32768.0)
    divisor = 8.0 * _matrix(steps, False)
    level = tl.floor((tl.abs(x) + tl.floor(divisor / 2.0)) / divisor) * _matrix(inverse, False)
    x = tl.where(x < 0.0, -level, level)
    shifted = tl.floor(_product(_matrix(products, False), x) / 256.0)
    x = _product(_matrix(direct, False), x) + _product(_matrix(rounded, False), shifted)
    shifted = tl.floor(_product(x, _matrix(products, True)) / 256.0)
    x = _product(x, _matrix(direct, True)) + _product(shifted, _matrix(rounded, True))
    return tl.minimum(tl.maximum(tl.floor(x / 32.0) + 128.0, 0.0), 255.0)


@triton.jit
def _rgb(frames, row, column, width):
    """Three channels, int32, of pixels of one frame."""
    at = frames + (row * width + column) * 3
    return tl.load(at).to(tl.int32), tl.load(at + 1).to(tl.int32), tl.load(at + 2).to(tl.int32)


@triton.jit
def _chroma(red, green, blue, RED: tl.constexpr):
    if RED:  # noqa: SIM108 - decided when the kernel is compiled
        value = red * 32768 - green * 27439 - blue * 5329
    else:
        value = blue * 32768 - red * 11059 - green * 21709
    return (value + 8421375) >> 16  # 128 and a half, less one


@triton.jit
def _code_luma(
    frames, luma, height, width, forward, direct, rounded, products, steps, inverse
):  # fmt: skip
    """One block of one frame; pixels beyond the edge repeat it."""
    image = tl.program_id(0).to(tl.int64) * height * width
    row, column = tl.program_id(1) * 8 + tl.arange(0, 8)[:, None], tl.program_id(2) * 8 + tl.arange(0, 8)[None, :]
    there = (row < height) & (column < width)
    red, green, blue = _rgb(frames + image * 3, tl.minimum(row, height - 1), tl.minimum(column, width - 1), width)
    value = (red * 19595 + green * 38470 + blue * 7471 + 32768) >> 16
    value = _coded(value.to(tl.float64), forward, direct, rounded, products, steps, inverse)
    tl.store(luma + image + row * width + column, value.to(tl.uint8), mask=there)


@triton.jit
def _code_chroma(
    frames, chroma, height, width, count, forward, direct, rounded, products, steps, inverse, RED: tl.constexpr
):  # fmt: skip
    """One block of a chroma plane of half the frame's size."""
    image = tl.program_id(0).to(tl.int64)
    half_height, half_width = (height + 1) // 2, (width + 1) // 2
    row, column = tl.program_id(1) * 8 + tl.arange(0, 8)[:, None], tl.program_id(2) * 8 + tl.arange(0, 8)[None, :]
    there = (row < half_height) & (column < half_width)
    frame = frames + image * height * width * 3
    upper = 2 * tl.minimum(row, half_height - 1)
    lower = tl.minimum(upper + 1, height - 1)
    left, right = tl.minimum(2 * column, width - 1), tl.minimum(2 * column + 1, width - 1)
    total = column % 2 + 1
    red, green, blue = _rgb(frame, upper, left, width)
    total += _chroma(red, green, blue, RED)
    red, green, blue = _rgb(frame, upper, right, width)
    total += _chroma(red, green, blue, RED)
    red, green, blue = _rgb(frame, lower, left, width)
    total += _chroma(red, green, blue, RED)
    red, green, blue = _rgb(frame, lower, right, width)
    total += _chroma(red, green, blue, RED)
    value = _coded((total >> 2).to(tl.float64), forward, direct, rounded, products, steps, inverse)
    plane = chroma + ((1 if RED else 0) * count + image) * half_height * half_width
    tl.store(plane + row * half_width + column, value.to(tl.uint8), mask=there)


@triton.jit
def _doubled(plane, row, column, there, half_height, half_width):
    """A chroma plane at full size: 3/4 of the nearer and 1/4 of the farther value in both directions."""
    r, c = row // 2, column // 2
    far_r = tl.minimum(tl.maximum(tl.where(row % 2 == 0, r - 1, r + 1), 0), half_height - 1)
    far_c = tl.minimum(tl.maximum(tl.where(column % 2 == 0, c - 1, c + 1), 0), half_width - 1)
    near_near = tl.load(plane + r * half_width + c, mask=there, other=0).to(tl.int32)
    far_near = tl.load(plane + far_r * half_width + c, mask=there, other=0).to(tl.int32)
    near_far = tl.load(plane + r * half_width + far_c, mask=there, other=0).to(tl.int32)
    far_far = tl.load(plane + far_r * half_width + far_c, mask=there, other=0).to(tl.int32)
    total = 3 * (3 * near_near + far_near) + 3 * near_far + far_far
    return ((total + tl.where(column % 2 == 0, 8, 7)) >> 4) - 128


@triton.jit
def _clipped(value):
    return tl.minimum(tl.maximum(value, 0), 255).to(tl.uint8)


@triton.jit
def _to_rgb(luma, chroma, frames, height, width, count, BLOCK: tl.constexpr):
    image = tl.program_id(0).to(tl.int64)
    pixel = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    there = pixel < height * width
    row, column = pixel // width, pixel % width
    half_height, half_width = (height + 1) // 2, (width + 1) // 2
    half = half_height * half_width
    cb = _doubled(chroma + image * half, row, column, there, half_height, half_width)
    cr = _doubled(chroma + (count + image) * half, row, column, there, half_height, half_width)
    y = tl.load(luma + image * height * width + pixel, mask=there, other=0).to(tl.int32)
    at = frames + (image * height * width + pixel) * 3
    tl.store(at, _clipped(y + ((cr * 91881 + 32768) >> 16)), mask=there)
    tl.store(at + 1, _clipped(y + ((32768 - cb * 22554 - cr * 46802) >> 16)), mask=there)
    tl.store(at + 2, _clipped(y + ((cb * 116130 + 32768) >> 16)), mask=there)


def jpeg_round_trip(frames: Tensor, constants: JpegConstants) -> Tensor:
    """`preprocessing_jpeg.jpeg_round_trip` of uint8 [N, H, W, 3]."""
    frames = frames.contiguous()
    count, height, width, _ = frames.shape
    half = (height + 1) // 2, (width + 1) // 2
    luma = torch.empty(count, height, width, dtype=torch.uint8, device=frames.device)
    chroma = torch.empty(2, count, *half, dtype=torch.uint8, device=frames.device)
    matrices = constants[:4]
    grid = (count, triton.cdiv(height, 8), triton.cdiv(width, 8))
    tables = constants.steps[0], constants.inverse[0]
    _code_luma[grid](frames, luma, height, width, *matrices, *tables, num_warps=1)
    grid = (count, triton.cdiv(half[0], 8), triton.cdiv(half[1], 8))
    tables = constants.steps[1], constants.inverse[1]
    for red in (False, True):
        _code_chroma[grid](frames, chroma, height, width, count, *matrices, *tables, RED=red, num_warps=1)
    out = torch.empty_like(frames)
    block = 256
    _to_rgb[(count, triton.cdiv(height * width, block))](
        luma, chroma, out, height, width, count, BLOCK=block, num_warps=4
    )
    return out


@triton.jit
def _rounded(value):
    """To the nearest integer, ties to even."""
    below = tl.floor(value)
    away = value - below
    up = (away > 0.5) | ((away == 0.5) & (below - 2.0 * tl.floor(below / 2.0) == 1.0))
    return below + tl.where(up, 1.0, 0.0)


@triton.jit
def _weigh_taps(
    source, indices, weights, out, outputs, inputs, inner, total,
    taps: tl.constexpr, LAST: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    """Along one axis: out[a, o, b] = sum_t weights[o, t] source[a, indices[o, t], b], added in the order of t."""
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    there = at < total
    b, o, a = at % inner, at // inner % outputs, at // (inner * outputs)
    value = tl.zeros((BLOCK,), tl.float32)
    for t in range(taps):
        i = tl.load(indices + o * taps + t, mask=there, other=0)
        w = tl.load(weights + o * taps + t, mask=there, other=0.0)
        value += w * tl.load(source + (a * inputs + i) * inner + b, mask=there, other=0).to(tl.float32)
    if LAST:
        value = tl.minimum(tl.maximum(_rounded(value), 0.0), 255.0)
    tl.store(out + at, value.to(out.dtype.element_ty), mask=there)


def resize(frames: Tensor, rows: tuple[Tensor, Tensor], columns: tuple[Tensor, Tensor]) -> Tensor:
    """`preprocessing_resample.lanczos_resize` of uint8 [N, H, W, 3]; indices and weights [outputs, taps] per axis."""
    count, height, width, colours = frames.shape
    sizes = [len(indices) for indices, _ in (rows, columns)]
    between = torch.empty(count, sizes[0], width, colours, dtype=torch.float32, device=frames.device)
    out = torch.empty(count, *sizes, colours, dtype=torch.uint8, device=frames.device)
    block = 256
    for source, target, taps, inputs, inner in (
        (frames, between, rows, height, width * colours),
        (between, out, columns, width, colours),
    ):
        indices, weights = taps
        total = target.numel()
        _weigh_taps[(triton.cdiv(total, block),)](
            source, indices.contiguous(), weights.contiguous(), target, len(indices), inputs, inner, total,
            indices.shape[1], LAST=target is out, BLOCK=block, num_warps=4, enable_fp_fusion=False,
        )  # fmt: skip
    return out


@triton.jit
def _between(a, b, fraction):
    return a + (b - a) * fraction


@triton.jit
def _crop_and_normalise(
    frames, below, above, fraction, means, stds, out, size, step, total, CROP: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    """One pixel value of one frame, bilinear at its place in the crop, normalised for both towers."""
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    there = at < total
    area = size * size
    column, row, colour, image = at % size, at // size % size, at // area % 3, at // (3 * area)
    frame = frames + image.to(tl.int64) * area * 3 + colour
    if CROP:
        up, down = tl.load(below + row, mask=there, other=0), tl.load(above + row, mask=there, other=0)
        left, right = tl.load(below + column, mask=there, other=0), tl.load(above + column, mask=there, other=0)
        along = tl.load(fraction + column, mask=there, other=0.0)
        upper = _between(
            tl.load(frame + (up * size + left) * 3, mask=there, other=0).to(tl.float32) * step,
            tl.load(frame + (up * size + right) * 3, mask=there, other=0).to(tl.float32) * step,
            along,
        )
        lower = _between(
            tl.load(frame + (down * size + left) * 3, mask=there, other=0).to(tl.float32) * step,
            tl.load(frame + (down * size + right) * 3, mask=there, other=0).to(tl.float32) * step,
            along,
        )
        value = _between(upper, lower, tl.load(fraction + row, mask=there, other=0.0))
        value = tl.minimum(tl.maximum(value, 0.0), 1.0) * 255.5
        value = tl.minimum(tl.floor(value), 255.0)
    else:
        value = tl.load(frame + (row * size + column) * 3, mask=there, other=0).to(tl.float32)
    value = tl.math.div_rn(value, 255.0)
    for tower in tl.static_range(2):
        mean = tl.load(means + tower * 3 + colour, mask=there, other=0.0)
        std = tl.load(stds + tower * 3 + colour, mask=there, other=1.0)
        target = out + (image.to(tl.int64) * 6 + tower * 3 + colour) * area + row * size + column
        tl.store(target, tl.math.div_rn(value - mean, std), mask=there)


def crop_and_normalise(
    frames: Tensor, crop: tuple[Tensor, Tensor, Tensor] | None, step: float, means: Tensor, stds: Tensor
) -> Tensor:
    """`center_crop`, then `ImagePreprocessing.normalise`.

    Args:
        frames: uint8 [N, S, S, 3].
        crop: index below, index above and the way between them, each [S]; None: no crop.
        step: float32's 1 / 255.
        means, stds: float32, 6 values, DINOv2's first.

    Returns:
        float32 [N, 6, S, S].
    """
    count, size = frames.shape[:2]
    out = torch.empty(count, 6, size, size, dtype=torch.float32, device=frames.device)
    total, block = frames.numel(), 256
    _crop_and_normalise[(triton.cdiv(total, block),)](
        frames.contiguous(), *(crop or (means, means, means)), means, stds, out, size, step, total,
        CROP=crop is not None, BLOCK=block, num_warps=4, enable_fp_fusion=False,
    )  # fmt: skip
    return out

"""What mini's convolutional stems read, and what lies between their convolutions, one kernel each."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor, nn


@triton.jit
def _gelu_of_group_norm(
    x, gain, shift, out, channels, pixels, eps, EACH: tl.constexpr, CHANNELS: tl.constexpr, PIXELS: tl.constexpr
):  # fmt: skip
    """One group of one image, channels last; EACH channels a group."""
    image, group = tl.program_id(0).to(tl.int64), tl.program_id(1)
    pixel, channel = tl.arange(0, PIXELS), tl.arange(0, CHANNELS)
    there = (pixel < pixels)[:, None] & (channel < EACH)[None, :]
    at = (image * pixels + pixel[:, None]) * channels + group * EACH + channel[None, :]
    value = tl.load(x + at, mask=there, other=0.0).to(tl.float32)
    count = pixels * EACH
    away = tl.where(there, value - tl.sum(tl.sum(value, 1), 0) / count, 0.0)
    scale = tl.rsqrt(tl.sum(tl.sum(away * away, 1), 0) / count + eps)
    c = group * EACH + channel
    g = tl.load(gain + c, mask=channel < EACH, other=0.0).to(tl.float32)
    s = tl.load(shift + c, mask=channel < EACH, other=0.0).to(tl.float32)
    y = away * scale * g[None, :] + s[None, :]
    y = 0.5 * y * (1.0 + tl.erf(y * 0.7071067811865476))
    tl.store(out + at, y.to(out.dtype.element_ty), mask=there)


def gelu_of_group_norm(x: Tensor, norm: nn.GroupNorm) -> Tensor:
    """gelu(norm(x)) of images [N, C, H, W] of some thousand pixels; the result is channels last."""
    x = x.contiguous(memory_format=torch.channels_last)
    out = torch.empty_like(x)
    images, channels, height, width = x.shape
    each = channels // norm.num_groups
    _gelu_of_group_norm[(images, norm.num_groups)](
        x, norm.weight, norm.bias, out, channels, height * width, norm.eps,
        EACH=each, CHANNELS=triton.next_power_of_2(each), PIXELS=triton.next_power_of_2(height * width), num_warps=8,
    )  # fmt: skip
    return out


@triton.jit
def _halve(frames, out, total, width, BLOCK: tl.constexpr):
    """A value of the result is the mean of 2 x 2 values of its colour, halves up; `width` is the result's."""
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    there = at < total
    colour, column, row = at % 3, at // 3 % width, at // (3 * width)  # rows of all images, one below the other
    source = frames + (2 * row * 2 * width + 2 * column) * 3 + colour
    value = tl.load(source, mask=there, other=0).to(tl.int32) + tl.load(source + 3, mask=there, other=0)
    value += tl.load(source + 6 * width, mask=there, other=0)
    value += tl.load(source + 6 * width + 3, mask=there, other=0)
    tl.store(out + at, ((value + 2) >> 2).to(tl.uint8), mask=there)


def halved(images: Tensor) -> Tensor:
    """`mini.halved` of uint8 [..., 2 H, 2 W, 3]."""
    *batch, height, width, colours = images.shape
    out = torch.empty(*batch, height // 2, width // 2, colours, dtype=torch.uint8, device=images.device)
    block = 1024
    _halve[(triton.cdiv(out.numel(), block),)](images.contiguous(), out, out.numel(), width // 2, BLOCK=block)
    return out

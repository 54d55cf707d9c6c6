"""Residual, LayerScale and LayerNorm of a vision tower in one kernel."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor, nn


@triton.jit
def _add_norm(
    x, branch, factor, gain, shift, out, normed, width, eps, SCALED: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)
    there = column < width
    at = row * width + column
    added = tl.load(branch + at, mask=there, other=0.0).to(tl.float32)
    if SCALED:
        added *= tl.load(factor + column, mask=there, other=0.0).to(tl.float32)
    total = (tl.load(x + at, mask=there, other=0.0).to(tl.float32) + added).to(out.dtype.element_ty)
    tl.store(out + at, total, mask=there)
    value = total.to(tl.float32)
    away = tl.where(there, value - tl.sum(value, 0) / width, 0.0)
    y = away * tl.rsqrt(tl.sum(away * away, 0) / width + eps)
    y = y * tl.load(gain + column, mask=there, other=0.0).to(tl.float32)
    y += tl.load(shift + column, mask=there, other=0.0).to(tl.float32)
    tl.store(normed + at, y.to(normed.dtype.element_ty), mask=there)


def add_norm(x: Tensor, branch: Tensor, factor: Tensor | None, norm: nn.LayerNorm) -> tuple[Tensor, Tensor]:
    """The residual stream after a branch, and its norm, which the next branch reads.

    Args:
        x, branch: [..., width], contiguous.
        factor: [width], LayerScale's; None for a tower without.
        norm: over the width.

    Returns:
        x + factor * branch and norm of it.
    """
    out, normed = torch.empty_like(x), torch.empty_like(x)
    width = x.shape[-1]
    _add_norm[(x.numel() // width,)](
        x, branch, norm.weight if factor is None else factor, norm.weight, norm.bias, out, normed, width, norm.eps,
        SCALED=factor is not None, BLOCK=triton.next_power_of_2(width), num_warps=4,
    )  # fmt: skip
    return out, normed

"""What lies between the matrix products of a Llama layer, one kernel each; with fp8 outputs for fp8 products."""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

FP8_MAX = tl.constexpr(448.0)
"""Largest float8_e4m3fn."""


class Quantised(NamedTuple):
    """Rows in fp8: values float8_e4m3fn [rows, width] times scale float32 [rows, 1]."""

    values: Tensor
    scale: Tensor


@triton.jit
def _store_row(y, out, scales, row, at, there, QUANTISE: tl.constexpr):
    """A row as it is, or scaled so that its largest magnitude is fp8's largest."""
    if QUANTISE:
        scale = tl.maximum(tl.max(tl.abs(tl.where(there, y, 0.0)), 0), 1e-12) / FP8_MAX
        tl.store(scales + row, scale)
        y = y / scale
    tl.store(out + at, y.to(out.dtype.element_ty), mask=there)


@triton.jit
def _rms_norm(
    x, branch, row_scales, column_scales, weight, out, scales, width, eps,
    ADD: tl.constexpr, NORM: tl.constexpr, QUANTISE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)
    there = column < width
    value = tl.load(x + row * width + column, mask=there, other=0.0).to(tl.float32)
    if ADD:
        added = tl.load(branch + row * width + column, mask=there, other=0.0).to(tl.float32)
        added *= tl.load(row_scales + row) * tl.load(column_scales + column, mask=there, other=0.0)
        value = (value + added).to(x.dtype.element_ty).to(tl.float32)
        tl.store(x + row * width + column, value.to(x.dtype.element_ty), mask=there)
    if not NORM:
        return
    normed = value * tl.rsqrt(tl.sum(value * value, 0) / width + eps)
    normed = normed.to(x.dtype.element_ty).to(tl.float32)  # the reference rounds here
    y = normed * tl.load(weight + column, mask=there, other=0.0).to(tl.float32)
    _store_row(y, out, scales, row, row * width + column, there, QUANTISE)


@triton.jit
def _silu_times(gate_up, out, scales, width, QUANTISE: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    there = column < width
    gate = tl.load(gate_up + row * 2 * width + column, mask=there, other=0.0).to(tl.float32)
    up = tl.load(gate_up + row * 2 * width + width + column, mask=there, other=0.0).to(tl.float32)
    y = gate / (1.0 + tl.exp(-gate)) * up
    _store_row(y, out, scales, row, row * width + column, there, QUANTISE)


@triton.jit
def _quantise(x, out, scales, width, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)
    there = column < width
    value = tl.load(x + row * width + column, mask=there, other=0.0).to(tl.float32)
    _store_row(value, out, scales, row, row * width + column, there, True)


@triton.jit
def _rotate(qkv, cos, sin, length, head_width, HEADS: tl.constexpr, HALF: tl.constexpr):
    """Rotates the queries (program 0 of the second axis) or the keys (program 1) of one token in place."""
    token = tl.program_id(0).to(tl.int64)
    width = HEADS * head_width
    d = tl.arange(0, HALF)
    low_at = qkv + token * 3 * width + tl.program_id(1) * width + tl.arange(0, HEADS)[:, None] * head_width + d[None, :]
    low, high = tl.load(low_at).to(tl.float32), tl.load(low_at + HALF).to(tl.float32)
    angle = (token % length) * head_width + d
    c, s = tl.load(cos + angle).to(tl.float32)[None, :], tl.load(sin + angle).to(tl.float32)[None, :]
    tl.store(low_at, (low * c - high * s).to(qkv.dtype.element_ty))
    tl.store(low_at + HALF, (high * c + low * s).to(qkv.dtype.element_ty))


class Unscaled(NamedTuple):
    """An fp8 product before its scales: product [rows, outputs] times rows [rows, 1] times outputs [outputs, 1]."""

    product: Tensor
    rows: Tensor
    outputs: Tensor


def rms_norm(
    x: Tensor, weight: Tensor, eps: float, *, quantised: bool = False, add: Unscaled | None = None
) -> Tensor | Quantised:
    """x / sqrt(mean(x^2) + eps) * weight of rows [rows, width]; with `add`, that is added to x in place first."""
    rows, width = x.shape
    out, scales = _outputs(x, rows, width, quantised)
    _rms_norm[(rows,)](
        x, *(add or (x, x, x)), weight, out, scales, width, eps,
        ADD=add is not None, NORM=True, QUANTISE=quantised, BLOCK=triton.next_power_of_2(width), num_warps=8,
    )  # fmt: skip
    return Quantised(out, scales) if quantised else out


def add_scaled(x: Tensor, add: Unscaled) -> None:
    """Add an fp8 product to rows [rows, width] in place."""
    rows, width = x.shape
    _rms_norm[(rows,)](
        x, *add, x, x, x, width, 0.0,
        ADD=True, NORM=False, QUANTISE=False, BLOCK=triton.next_power_of_2(width), num_warps=8,
    )  # fmt: skip


def silu_times(gate_up: Tensor, *, quantised: bool = False) -> Tensor | Quantised:
    """silu(gate) * up of rows [rows, 2 * width], gate first."""
    rows, width = gate_up.shape[0], gate_up.shape[1] // 2
    out, scales = _outputs(gate_up, rows, width, quantised)
    block = triton.next_power_of_2(width) if quantised else min(2048, triton.next_power_of_2(width))
    grid = (rows, 1 if quantised else triton.cdiv(width, block))
    _silu_times[grid](gate_up, out, scales, width, QUANTISE=quantised, BLOCK=block, num_warps=8)
    return Quantised(out, scales) if quantised else out


def quantise(x: Tensor) -> Quantised:
    """Rows [rows, width] in fp8."""
    rows, width = x.shape
    out, scales = _outputs(x, rows, width, True)
    _quantise[(rows,)](x, out, scales, width, BLOCK=triton.next_power_of_2(width), num_warps=8)
    return Quantised(out, scales)


def rotate(qkv: Tensor, cos: Tensor, sin: Tensor, heads: int) -> None:
    """Rotary positions, in place.

    Args:
        qkv: [B, S, 3 * heads * head_width], contiguous; heads and half of head_width are powers of two.
        cos, sin: [S or more, head_width].
    """
    batch, length, width = qkv.shape
    head_width = width // (3 * heads)
    _rotate[(batch * length, 2)](qkv, cos, sin, length, head_width, HEADS=heads, HALF=head_width // 2, num_warps=4)


def _outputs(like: Tensor, rows: int, width: int, quantised: bool) -> tuple[Tensor, Tensor]:
    dtype = torch.float8_e4m3fn if quantised else like.dtype
    out = torch.empty(rows, width, dtype=dtype, device=like.device)
    return out, torch.empty(rows, 1, dtype=torch.float32, device=like.device) if quantised else out

"""Pre-norm transformer layers over short sequences in five kernels each: mini's layers and those of the heads.

Such a layer has 93 tokens of width 320: PyTorch launches eleven kernels of which none fills the GPU, and all of them
wait for each other. Here a norm, a product, its bias, GELU and the residual are one kernel.

Products of float32 are computed in three products of TF32 (tf32x3), which is as exact as float32 to its last bits.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor, nn
from torch.nn import functional

from rsd_policy.kernels.vision import add_norm

CUBLAS_INPUTS = 512
"""bf16 products of at least so many inputs go to cuBLAS, which beats the kernel below though the norm is then a kernel
of its own: 56 rows on an H200, microseconds: 1024 -> 3072 with norm 7 against 10, 4096 -> 1024 10 against 24."""


class Affine(NamedTuple):
    """Weight [outputs, inputs] and bias [outputs] of a linear layer."""

    weight: Tensor
    bias: Tensor

    @classmethod
    def of(cls, layer: nn.Linear) -> Affine:
        """Of a linear layer with a bias."""
        return cls(layer.weight, layer.bias)


@triton.jit
def _linear(
    x, gain, shift, weight, bias, residual, out, rows, eps, inputs: tl.constexpr, outputs: tl.constexpr,
    NORM: tl.constexpr, GELU: tl.constexpr, ADD: tl.constexpr, PRECISION: tl.constexpr,
    ROWS: tl.constexpr, OUTPUTS: tl.constexpr, INPUTS: tl.constexpr,
):  # fmt: skip
    """out[r, o] = [residual[r, o] +] [gelu] (sum_i [norm] x[r, i] weight[o, i] + bias[o]) for a tile of r and o."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    column = tl.program_id(1) * OUTPUTS + tl.arange(0, OUTPUTS)
    row_there, column_there = row < rows, column < outputs
    inner = tl.arange(0, INPUTS)
    x_rows = x + row[:, None].to(tl.int64) * inputs
    if NORM:
        total = tl.zeros((ROWS,), tl.float32)
        squares = tl.zeros((ROWS,), tl.float32)
        for start in range(0, inputs, INPUTS):
            there = row_there[:, None] & (start + inner < inputs)[None, :]
            part = tl.load(x_rows + (start + inner)[None, :], mask=there, other=0.0).to(tl.float32)
            total += tl.sum(part, 1)
            squares += tl.sum(part * part, 1)
        mean = total / inputs
        scale = tl.rsqrt(tl.maximum(squares / inputs - mean * mean, 0.0) + eps)
    product = tl.zeros((ROWS, OUTPUTS), tl.float32)
    for start in range(0, inputs, INPUTS):
        i = start + inner
        i_there = i < inputs
        part = tl.load(x_rows + i[None, :], mask=row_there[:, None] & i_there[None, :], other=0.0)
        w_there = i_there[:, None] & column_there[None, :]
        w = tl.load(weight + column[None, :].to(tl.int64) * inputs + i[:, None], mask=w_there, other=0.0)
        if NORM:
            g = tl.load(gain + i, mask=i_there, other=0.0).to(tl.float32)
            s = tl.load(shift + i, mask=i_there, other=0.0).to(tl.float32)
            part = (part.to(tl.float32) - mean[:, None]) * scale[:, None] * g[None, :] + s[None, :]
        product = tl.dot(part.to(w.dtype), w, product, input_precision=PRECISION)
    product += tl.load(bias + column, mask=column_there, other=0.0).to(tl.float32)[None, :]
    if GELU:
        product = 0.5 * product * (1.0 + tl.erf(product * 0.7071067811865476))
    target = row[:, None].to(tl.int64) * outputs + column[None, :]
    there = row_there[:, None] & column_there[None, :]
    if ADD:
        product += tl.load(residual + target, mask=there, other=0.0).to(tl.float32)
    tl.store(out + target, product.to(out.dtype.element_ty), mask=there)


def linear(
    x: Tensor,
    layer: Affine,
    *,
    norm: nn.LayerNorm | None = None,
    gelu: bool = False,
    residual: Tensor | None = None,
) -> Tensor:
    """[residual +] [gelu] (layer([norm] x)).

    Args:
        x: [..., inputs]; made contiguous.
        layer: of x's dtype.
        norm: over the inputs.
        gelu: exact, by the error function.
        residual: [..., outputs].

    Returns:
        [..., outputs] in the weights' dtype.
    """
    weight, bias = layer
    outputs, inputs = weight.shape
    if weight.dtype == torch.bfloat16 and inputs >= CUBLAS_INPUTS:
        normed = x if norm is None else functional.layer_norm(x, (inputs,), norm.weight, norm.bias, norm.eps)
        product = functional.linear(normed, weight, bias)
        product = functional.gelu(product) if gelu else product
        return product if residual is None else residual + product
    flat = x.reshape(-1, inputs).contiguous()
    rows = len(flat)
    out = torch.empty(rows, outputs, dtype=weight.dtype, device=x.device)
    gain, shift, eps = (weight, weight, 0.0) if norm is None else (norm.weight, norm.bias, norm.eps)
    tile_rows, tile_outputs, tile_inputs, warps = _tiles(rows, outputs, inputs, weight.element_size())
    grid = (triton.cdiv(rows, tile_rows), triton.cdiv(outputs, tile_outputs))
    _linear[grid](
        flat, gain, shift, weight, bias, out if residual is None else residual.contiguous(), out,
        rows, eps, inputs, outputs,
        NORM=norm is not None, GELU=gelu, ADD=residual is not None, PRECISION=_precision(weight.dtype),
        ROWS=tile_rows, OUTPUTS=tile_outputs, INPUTS=tile_inputs, num_warps=warps, num_stages=4,
    )  # fmt: skip
    return out.view(*x.shape[:-1], outputs)


def _tiles(rows: int, outputs: int, inputs: int, element_bytes: int) -> tuple[int, int, int, int]:
    """Rows, outputs and inputs of a tile, and its warps: small ones, so that a hundred rows make work for a whole GPU.

    The fastest of some seventy on an H200 for mini's products (float32, 93 rows, microseconds): 320 -> 960 with norm
    6.7, 320 -> 320 4.7, 320 -> 1280 with norm and GELU 7.1, 1280 -> 320 11.9; cuBLAS without norm and GELU: 8.1, 9.2,
    8.2, 16.8.
    """
    wide = max(16, triton.next_power_of_2(outputs))
    deep = max(16, triton.next_power_of_2(inputs))
    if rows > 512:
        return 64, min(64, wide), min(deep, 256 // element_bytes), 4
    if rows > 16 and outputs > 512:
        return 16, 64, min(deep, 256 // element_bytes), 8
    return 16, min(32, wide), min(deep, (256 if inputs < 1024 else 512) // element_bytes), 4


def _precision(dtype: torch.dtype) -> str:
    return "tf32x3" if dtype == torch.float32 else "tf32"


@triton.jit
def _attention(
    q, k, v, keep, out, queries, keys, heads, head_width, scale,
    q_batch, q_row, q_head, k_batch, k_row, k_head, v_batch, v_row, v_head,
    MASKED: tl.constexpr, PRECISION: tl.constexpr, QUERIES: tl.constexpr, KEYS: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """Softmax attention of a tile of queries of one head to all keys at once."""
    batch = (tl.program_id(0) // heads).to(tl.int64)
    head = (tl.program_id(0) % heads).to(tl.int64)
    query = tl.program_id(1) * QUERIES + tl.arange(0, QUERIES)
    key, d = tl.arange(0, KEYS), tl.arange(0, WIDTH)
    d_there, key_there, query_there = d < head_width, key < keys, query < queries
    q_at = q + batch * q_batch + head * q_head + query[:, None] * q_row + d[None, :]
    k_at = k + batch * k_batch + head * k_head + key[None, :] * k_row + d[:, None]
    v_at = v + batch * v_batch + head * v_head + key[:, None] * v_row + d[None, :]
    q_tile = tl.load(q_at, mask=query_there[:, None] & d_there[None, :], other=0.0)
    k_tile = tl.load(k_at, mask=d_there[:, None] & key_there[None, :], other=0.0)
    v_tile = tl.load(v_at, mask=key_there[:, None] & d_there[None, :], other=0.0)
    scores = tl.dot(q_tile, k_tile, input_precision=PRECISION) * scale
    seen = key_there
    if MASKED:
        seen = key_there & (tl.load(keep + batch * keys + key, mask=key_there, other=0) != 0)
    scores = tl.where(seen[None, :], scores, float("-inf"))
    weights = tl.exp(scores - tl.max(scores, 1)[:, None])
    total = tl.sum(weights, 1)
    attended = tl.dot(weights.to(v_tile.dtype), v_tile, input_precision=PRECISION) / total[:, None]
    target = out + ((batch * queries + query[:, None]) * heads + head) * head_width + d[None, :]
    tl.store(target, attended.to(out.dtype.element_ty), mask=query_there[:, None] & d_there[None, :])


def attention(q: Tensor, k: Tensor, v: Tensor, keep: Tensor | None = None) -> Tensor:
    """Softmax attention for at most a few hundred keys.

    Args:
        q: [B, queries, heads, head_width], any strides but the last, which is 1.
        k, v: [B, keys, heads, head_width].
        keep: bool [B, keys], contiguous; keys to attend to, at least one. None: all.

    Returns:
        [B, queries, heads * head_width].
    """
    batch, queries, heads, width = q.shape
    keys = k.shape[1]
    out = torch.empty(batch, queries, heads * width, dtype=q.dtype, device=q.device)
    tile = 16
    _attention[(batch * heads, triton.cdiv(queries, tile))](
        q, k, v, q if keep is None else keep.view(torch.uint8), out, queries, keys, heads, width, width**-0.5,
        *q.stride()[:3], *k.stride()[:3], *v.stride()[:3],
        MASKED=keep is not None, PRECISION=_precision(q.dtype), QUERIES=tile,
        KEYS=max(16, triton.next_power_of_2(keys)), WIDTH=max(16, triton.next_power_of_2(width)), num_warps=4,
    )  # fmt: skip
    return out


class Layer(NamedTuple):
    """Weights of a pre-norm layer: x + out(attention(qkv(norm1(x)))), then x + down(gelu(up(norm2(x))))."""

    heads: int
    norm1: nn.LayerNorm
    qkv: Affine
    out: Affine
    norm2: nn.LayerNorm
    up: Affine
    down: Affine


def transformer_layer(x: Tensor, layer: Layer, only_last: int | None = None, keep: Tensor | None = None) -> Tensor:
    """One pre-norm layer.

    Args:
        x: [B, S, width].
        layer: weights.
        only_last: compute the outputs of this many last positions alone, which attend to all of them.
        keep: bool [B, S], positions that are attended to; None: all.

    Returns:
        [B, S, width], or [B, only_last, width].
    """
    batch, length, width = x.shape
    qkv = linear(x, layer.qkv, norm=layer.norm1).view(batch, length, 3, layer.heads, width // layer.heads)
    q, k, v = qkv.unbind(2)
    if only_last is not None:
        q, x = q[:, -only_last:], x[:, -only_last:]
    attended = attention(q, k, v, keep)
    if layer.up.weight.dtype == torch.bfloat16 and width >= CUBLAS_INPUTS:
        branch = functional.linear(attended, *layer.out)
        x, normed = add_norm(x.contiguous(), branch, None, layer.norm2)
        return x + functional.linear(gelu_of_product(normed, layer.up.weight, layer.up.bias), *layer.down)
    return feed_forward(linear(attended, layer.out, residual=x), layer.norm2, layer.up, layer.down)


def gelu_of_product(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """gelu(x weight^T + bias) of bf16 [..., inputs] with GELU in cuBLAS's epilogue.

    That is the approximation by tanh, at most 5e-4 off where bf16 rounds by up to 4e-3: hidden states of the 7B are no
    further from float32's with it than with the error function (docs/performance.md).
    """
    product = torch._addmm_activation(bias, x.flatten(0, -2), weight.t(), use_gelu=True)
    return product.view(*x.shape[:-1], len(weight))


def feed_forward(x: Tensor, norm: nn.LayerNorm, up: Affine, down: Affine) -> Tensor:
    """x + down(gelu(up(norm(x))))."""
    return linear(linear(x, up, norm=norm, gelu=True), down, residual=x)

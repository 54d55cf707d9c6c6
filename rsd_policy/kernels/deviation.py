"""DeviationPredictor in one kernel: some forty of PyTorch's take 0.08 ms on a GPU, as long as two of mini's layers.

`predictor` below is a `rsd_policy.heads.DeviationPredictor`, which imports this file.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from rsd_policy.kernels.transformer import Affine, linear
from rsd_policy.observation import ACTION_DIM, GRIPPER


@triton.jit
def _erf_gelu(x):
    return 0.5 * x * (1.0 + tl.erf(x * 0.7071067811865476))


@triton.jit
def _log1p_exp(x):
    """ln(1 + e^x) without overflow."""
    return tl.maximum(x, 0.0) + tl.log(1.0 + tl.exp(-tl.abs(x)))


@triton.jit
def _matrix(weight, ROWS: tl.constexpr, COLUMNS: tl.constexpr, columns: tl.constexpr):
    """[ROWS, COLUMNS] of a row-major matrix with `columns` columns; what is beyond them is 0."""
    row, column = tl.arange(0, ROWS)[:, None], tl.arange(0, COLUMNS)[None, :]
    return tl.load(weight + row * columns + column, mask=column < columns, other=0.0)


@triton.jit
def _apply(x, weight):
    """x [T, I] times weight [O, I] transposed, in float32."""
    return tl.sum(x[:, None, :] * weight[None, :, :], 2)


@triton.jit
def _probability(
    slots, margins, actions, last_action, first, known_w, known_b, step, context_w, context_b,
    norm_w, norm_b, up_w, up_b, out_w, out_b, doubt_w, doubt_b, probability, batch, eps,
    T: tl.constexpr, EACH: tl.constexpr, LEVELS: tl.constexpr, D: tl.constexpr, GRIP: tl.constexpr,
    W: tl.constexpr, KNOWN: tl.constexpr, MEAN: tl.constexpr,
):  # fmt: skip
    """One chunk. Rows are its T steps, columns the predictor's width or what it knows of a step."""
    b = tl.program_id(0).to(tl.int64)
    t, w, k = tl.arange(0, T), tl.arange(0, W), tl.arange(0, KNOWN)
    known_columns: tl.constexpr = (LEVELS + 2) * D + 1
    # Known of a step: doubts of all levels, actions, their changes, and whether the chunk is the first.
    level, dof = k // D, k % D
    at = ((level[None, :] * batch + b) * T + t[:, None]) * D + dof[None, :]
    is_doubt = (k < LEVELS * D)[None, :]
    margin = tl.load(margins + at, mask=is_doubt & (t >= 0)[:, None], other=0.0)
    doubt = _log1p_exp(-margin)
    now_at = (b * T + t[:, None]) * D + dof[None, :]
    is_action = ((level == LEVELS) | (level == LEVELS + 1))[None, :]
    now = tl.load(actions + now_at, mask=is_action & (t >= 0)[:, None], other=0.0)
    before = tl.load(actions + now_at - D, mask=is_action & (t > 0)[:, None], other=0.0)
    is_first = tl.load(first + b) != 0
    last = tl.load(last_action + b * D + dof, mask=level == LEVELS + 1, other=0.0)
    opening = tl.where(is_first, now, last[None, :] + tl.zeros_like(now))
    before = tl.where((t == 0)[:, None], opening, before)
    flag = (k == known_columns - 1)[None, :] & (t >= 0)[:, None]
    known = tl.where(is_doubt, doubt, tl.where((level == LEVELS)[None, :], now, now - before))
    known = tl.where(is_doubt | is_action, known, tl.where(flag & is_first, 1.0, 0.0))
    x = _apply(known, _matrix(known_w, W, KNOWN, known_columns)) + tl.load(known_b + w)[None, :]
    # Hidden states of the step's slots, projected already, in their mean.
    features = tl.zeros((T, W), tl.float32)
    for each in tl.static_range(EACH):
        features += tl.load(slots + ((b * T + t[:, None]) * EACH + each) * W + w[None, :])
    x = _erf_gelu(features / EACH + x + tl.load(step + t[:, None] * W + w[None, :]))
    mean = tl.sum(x, 0) / T
    context = tl.sum(_matrix(context_w, W, W, W) * mean[None, :], 1) + tl.load(context_b + w)
    x += context[None, :]
    away = x - tl.sum(x, 1)[:, None] / W
    x = away * tl.rsqrt(tl.sum(away * away, 1) / W + eps)[:, None]
    x = x * tl.load(norm_w + w)[None, :] + tl.load(norm_b + w)[None, :]
    x = _erf_gelu(_apply(x, _matrix(up_w, W, W, W)) + tl.load(up_b + w)[None, :])
    z = tl.sum(x * tl.load(out_w + w)[None, :], 1) + tl.load(out_b) + tl.load(doubt_b)
    if MEAN:
        for index in tl.static_range(LEVELS):
            arm = is_doubt & ((level == index) & (dof != GRIP))[None, :]
            grip = is_doubt & ((level == index) & (dof == GRIP))[None, :]
            z += tl.load(doubt_w + index) * tl.max(tl.where(arm, doubt, 0.0), 1)
            z += tl.load(doubt_w + LEVELS + index) * tl.sum(tl.where(grip, doubt, 0.0), 1)
    else:
        weights = tl.load(doubt_w + k, mask=k < LEVELS * D, other=0.0)
        z += tl.sum(tl.where(is_doubt, doubt, 0.0) * weights[None, :], 1)
    logs = -_log1p_exp(-z)
    earlier = (tl.arange(0, T)[:, None] <= t[None, :]) & (t >= 0)[None, :]
    tl.store(probability + b * T + t, tl.exp(tl.sum(tl.where(earlier, logs[:, None], 0.0), 0)))


def fits(predictor: Any) -> bool:
    """Whether the kernel can hold it: steps and width must be powers of two, the width small."""
    width = predictor.step.shape[-1]
    return all(size & (size - 1) == 0 for size in (predictor.horizon, width)) and 16 <= width <= 64


def probability(
    predictor: Any, hidden: Tensor, margins: Tensor, actions: Tensor, last_action: Tensor, first: Tensor
) -> Tensor:
    """`DeviationPredictor.forward`; `hidden` [B, slots, hidden_size] is rounded and normed already."""
    batch, slots = hidden.shape[:2]
    width, levels = predictor.step.shape[-1], predictor.levels
    projected = linear(hidden, Affine.of(predictor.project))
    norm, up, _, out = predictor.out
    probability = torch.empty(batch, predictor.horizon, dtype=torch.float32, device=hidden.device)
    _probability[(batch,)](
        projected, margins.float().contiguous(), actions.contiguous(), last_action.contiguous(),
        first.view(torch.uint8),
        predictor.known.weight, predictor.known.bias, predictor.step, predictor.context.weight, predictor.context.bias,
        norm.weight, norm.bias, up.weight, up.bias, out.weight, out.bias, predictor.doubt.weight, predictor.doubt.bias,
        probability, batch, norm.eps,
        T=predictor.horizon, EACH=slots // predictor.horizon, LEVELS=levels, D=ACTION_DIM, GRIP=GRIPPER,
        W=width, KNOWN=triton.next_power_of_2((levels + 2) * ACTION_DIM + 1), MEAN=predictor.choice == "mean",
        num_warps=8,
    )  # fmt: skip
    return probability

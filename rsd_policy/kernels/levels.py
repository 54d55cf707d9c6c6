"""Digits of residual levels from a head's logits, and the actions that they name, one kernel each."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from rsd_policy.codec.rfsq import RFSQCodec
from rsd_policy.observation import ACTION_DIM, GRIPPER


@triton.jit
def _choose(
    hidden, weight, bias, embedding, context, tokens, margins,
    inputs: tl.constexpr, classes: tl.constexpr, width: tl.constexpr,
    INPUTS: tl.constexpr, CLASSES: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """One position: logits, the likeliest digit, its lead over the next, and the digit's embedding into the context."""
    row = tl.program_id(0).to(tl.int64)
    digit, i = tl.arange(0, CLASSES), tl.arange(0, INPUTS)
    digit_there = digit < classes
    logits = tl.load(bias + digit, mask=digit_there, other=0.0).to(tl.float32)
    for start in range(0, inputs, INPUTS):
        i_there = start + i < inputs
        h = tl.load(hidden + row * inputs + start + i, mask=i_there, other=0.0).to(tl.float32)
        w_there = digit_there[:, None] & i_there[None, :]
        w = tl.load(weight + digit[:, None] * inputs + (start + i)[None, :], mask=w_there, other=0.0).to(tl.float32)
        logits += tl.sum(w * h[None, :], 1)
    # A maximum would pass over NaN, which must reach the finite check.
    broken = tl.sum(tl.where(digit_there, logits, 0.0) * 0.0, 0)
    logits = tl.where(digit_there, logits, float("-inf"))
    best = tl.max(logits, 0)
    chosen = tl.min(tl.where(logits == best, digit, CLASSES - 1), 0)
    runner_up = tl.max(tl.where(digit == chosen, float("-inf"), logits), 0)
    tl.store(tokens + row, chosen.to(tl.int64))
    tl.store(margins + row, best - runner_up + broken)
    for start in range(0, width, WIDTH):
        c = start + tl.arange(0, WIDTH)
        c_there = c < width
        at = context + row * width + c
        there = tl.load(at, mask=c_there, other=0.0).to(tl.float32)
        added = tl.load(embedding + chosen * width + c, mask=c_there, other=0.0).to(tl.float32)
        tl.store(at, (there + added).to(context.dtype.element_ty), mask=c_there)


def choose(
    hidden: Tensor, weight: Tensor, bias: Tensor, embedding: Tensor, context: Tensor, tokens: Tensor, margins: Tensor
) -> None:
    """The likeliest digit of one level at each position.

    Args:
        hidden: [..., inputs], what the level's last product reads.
        weight, bias: [classes, inputs], [classes].
        embedding: [classes or more, width] of the digits.
        context: [..., width], contiguous; the chosen digits' embeddings are added to it.
        tokens: int64 [...], written.
        margins: float32 [...], written: log-probability of the digit minus that of the runner-up.
    """
    classes, inputs = weight.shape
    width = context.shape[-1]
    _choose[(tokens.numel(),)](
        hidden, weight, bias, embedding, context, tokens, margins, inputs, classes, width,
        INPUTS=min(256, triton.next_power_of_2(inputs)), CLASSES=max(2, triton.next_power_of_2(classes)),
        WIDTH=min(1024, triton.next_power_of_2(width)), num_warps=4,
    )  # fmt: skip


@triton.jit
def _mean_digits(
    logits0, logits1, logits2, features, embedding, context, tokens, margins, positions, least,
    width: tl.constexpr, embedded: tl.constexpr,
    BINS0: tl.constexpr, BINS1: tl.constexpr, BINS2: tl.constexpr, DOF: tl.constexpr, GRIP: tl.constexpr,
    CELLS: tl.constexpr, CONTEXT: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """One position: joint distribution of three levels, the cell of its mean (gripper: the likeliest), its spread."""
    row = tl.program_id(0).to(tl.int64)
    cell = tl.arange(0, CELLS)
    there = cell < BINS0 * BINS1 * BINS2
    first, second = cell // (BINS1 * BINS2), cell // BINS2
    log_p = _log_softmax(logits0 + row * BINS0, cell * 0, first, there, BINS0)
    log_p += _log_softmax(logits1 + row * BINS0 * BINS1, first, second % BINS1, there, BINS1)
    log_p += _log_softmax(logits2 + row * BINS0 * BINS1 * BINS2, second, cell % BINS2, there, BINS2)
    p = tl.where(there, tl.exp(log_p), 0.0)
    at = cell.to(tl.float32)
    mean = tl.sum(p * at, 0)
    away = at - mean
    spread = tl.sqrt(tl.sum(p * away * away, 0)) + least
    # Halves go to the even neighbour, as torch.round's do.
    below = tl.floor(mean)
    up = (mean - below > 0.5) | ((mean - below == 0.5) & (below % 2.0 == 1.0))
    number = (below + tl.where(up, 1.0, 0.0)).to(tl.int32)
    likeliest = tl.min(tl.where(p == tl.max(p, 0), cell, CELLS - 1), 0)
    number = tl.where(row % DOF == GRIP, likeliest, number)
    number = tl.minimum(tl.maximum(number, 0), BINS0 * BINS1 * BINS2 - 1)  # of NaN, which the margins report
    digit0, digit1, digit2 = number // (BINS1 * BINS2), number // BINS2 % BINS1, number % BINS2
    tl.store(tokens + row, digit0.to(tl.int64))
    tl.store(tokens + positions + row, digit1.to(tl.int64))
    tl.store(tokens + 2 * positions + row, digit2.to(tl.int64))
    tl.store(margins + row, -tl.log(spread / BINS2 / BINS1))
    tl.store(margins + positions + row, -tl.log(spread / BINS2))
    tl.store(margins + 2 * positions + row, -tl.log(spread))
    if CONTEXT:
        for start in range(0, width, WIDTH):
            c = start + tl.arange(0, WIDTH)
            c_there = c < width
            # Rounded after each addition, as when one level follows the other.
            x = tl.load(features + row * width + c, mask=c_there, other=0.0)
            e = tl.load(embedding + digit0 * width + c, mask=c_there, other=0.0)
            x = (x.to(tl.float32) + e.to(tl.float32)).to(context.dtype.element_ty)
            e = tl.load(embedding + (embedded + digit1) * width + c, mask=c_there, other=0.0)
            x = (x.to(tl.float32) + e.to(tl.float32)).to(context.dtype.element_ty)
            e = tl.load(embedding + (2 * embedded + digit2) * width + c, mask=c_there, other=0.0)
            tl.store(context + row * width + c, (x.to(tl.float32) + e.to(tl.float32)).to(x.dtype), mask=c_there)


@triton.jit
def _log_softmax(logits, group, member, there, BINS: tl.constexpr):
    """Log-softmax over groups of BINS logits, taken at one member of each group."""
    largest = tl.load(logits + group * BINS, mask=there, other=0.0).to(tl.float32)
    for other in tl.static_range(1, BINS):
        largest = tl.maximum(largest, tl.load(logits + group * BINS + other, mask=there, other=0.0).to(tl.float32))
    total = tl.zeros_like(largest)
    for other in tl.static_range(BINS):
        total += tl.exp(tl.load(logits + group * BINS + other, mask=there, other=0.0).to(tl.float32) - largest)
    own = tl.load(logits + group * BINS + member, mask=there, other=0.0).to(tl.float32)
    return own - largest - tl.log(total)


def mean_digits(
    logits: tuple[Tensor, Tensor, Tensor],
    features: Tensor,
    embedding: Tensor,
    tokens: Tensor,
    margins: Tensor,
    least_spread: float,
    *,
    follow: bool,
) -> Tensor:
    """Digits of three coarse levels by the mean of their joint distribution, see `RFSQHead._mean_digits`.

    Args:
        logits: of a level given the digits of those before it: [B, P, b0], [B, P, b0, b1], [B, P, b0, b1, b2].
        features: [B, P, width], P = T*7 positions.
        embedding: [levels, bins, width] of the digits.
        tokens: int64 [3, B, P], contiguous, written.
        margins: float32 [3, B, P], contiguous, written.
        least_spread: added to the standard deviation, cells.
        follow: whether levels follow, which need a context.

    Returns:
        [B, P, width], features plus the embeddings of the digits; uninitialised unless `follow`.
    """
    bins = tuple(int(level.shape[-1]) for level in logits)
    context = torch.empty_like(features)
    width = features.shape[-1]
    positions = tokens[0].numel()
    _mean_digits[(positions,)](
        *(level.contiguous() for level in logits), features.contiguous(), embedding, context, tokens, margins,
        positions, least_spread, width, embedding.shape[1],
        BINS0=bins[0], BINS1=bins[1], BINS2=bins[2], DOF=ACTION_DIM, GRIP=GRIPPER,
        CELLS=triton.next_power_of_2(bins[0] * bins[1] * bins[2]), CONTEXT=follow,
        WIDTH=min(1024, triton.next_power_of_2(width)), num_warps=1,
    )  # fmt: skip
    return context


@triton.jit
def _decode(
    tokens, places, half, limit, widths, actions, positions, levels: tl.constexpr,
    DOF: tl.constexpr, GRIP: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Number of the cell that the digits name, times its width, within the limit; the gripper is the number's sign."""
    position = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    there = position < positions
    dof = position % DOF
    last = tl.load(places + levels - 1)
    number = tl.zeros((BLOCK,), tl.int64)
    for level in range(levels):
        digit = tl.load(tokens + level * positions + position, mask=there, other=0) - tl.load(half + level)
        number += digit * (tl.load(places + level) // last)
    bound = tl.load(limit + dof)
    action = number.to(tl.float64) * tl.load(widths + (levels - 1) * DOF + dof)
    action = tl.minimum(tl.maximum(action, -bound), bound)
    action = tl.where(dof == GRIP, tl.where(number > 0, 1.0, -1.0).to(tl.float64), action)
    tl.store(actions + position, action.to(tl.float32), mask=there)


def decode(codec: RFSQCodec, tokens: Tensor) -> Tensor:
    """`RFSQCodec.decode` for tokens int64 [l, B, T, 7] -> float32 [B, T, 7], equal in every bit."""
    limit, widths, places, half, _ = codec.constants_on(tokens.device)
    actions = torch.empty(tokens.shape[1:], dtype=torch.float32, device=tokens.device)
    positions, block = actions.numel(), 128
    _decode[(triton.cdiv(positions, block),)](
        tokens.contiguous(), places, half, limit, widths, actions, positions, len(tokens),
        DOF=ACTION_DIM, GRIP=GRIPPER, BLOCK=block, num_warps=4,
    )  # fmt: skip
    return actions

"""Bits a chunk that an entropy coder would need, estimated the same way for every codec.

A symbol is an integer 0 .. cells-1 per position (step or coefficient) and degree of freedom. It is coded digit by digit
in base 3, coarse to fine, each digit given the digits before it, by frequencies counted on the fitting half of the
episodes; the cost is the cross-entropy on the other half. The estimate is an upper bound, as fine digits are seldom
seen twice; it is the same bound for all.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

BASE = 3
PRIOR = 1.5
"""Pseudo-counts of a digit's distribution before anything was counted."""

CONTEXT_DIGITS = 3
"""Digits of the position before that a symbol may be conditioned on (27 cells)."""


def cross_entropy(
    fit: NDArray[np.int64], test: NDArray[np.int64], cells: NDArray[np.int64], given_previous: bool
) -> float:
    """Bits a chunk.

    Args:
        fit: [M, T, D] and test: [N, T, D], symbols.
        cells: [T, D], number of values of each symbol.
        given_previous: condition on the coarse digits of the position before, same degree of freedom.
    """
    total = 0.0
    for d in range(fit.shape[2]):
        depth = [max(1, math.ceil(math.log(int(n)) / math.log(BASE) - 1e-9)) if n > 1 else 0 for n in cells[:, d]]
        for t in range(fit.shape[1]):
            if depth[t] == 0:
                continue
            contexts = None
            if given_previous and t > 0 and depth[t - 1] > 0:
                shift = BASE ** max(0, depth[t - 1] - CONTEXT_DIGITS)
                contexts = fit[:, t - 1, d] // shift, test[:, t - 1, d] // shift
            total += _bits(fit[:, t, d], test[:, t, d], int(cells[t, d]), depth[t], contexts)
    return total


def _bits(
    fit: NDArray[np.int64],
    test: NDArray[np.int64],
    cells: int,
    depth: int,
    contexts: tuple[NDArray[np.int64], NDArray[np.int64]] | None,
) -> float:
    """Mean bits of one symbol: digits by smoothed frequencies, those of the context resting on those without it."""
    bits = np.zeros(len(test))
    for level in range(depth):
        unit = BASE ** (depth - 1 - level)
        parent, child = test // (unit * BASE), test // unit
        # How many of the digit's values name an existing cell: the others have probability 0 and cost nothing.
        possible = np.clip((cells - 1) // unit - parent * BASE + 1, 1, BASE)
        alone = _smoothed(fit // unit, fit // (unit * BASE), child, parent, 1.0 / possible, PRIOR)
        if contexts is None:
            bits -= np.log2(alone)
            continue
        before, now = contexts
        offset = BASE ** (CONTEXT_DIGITS + depth + 2)
        bits -= np.log2(
            _smoothed(
                fit // unit + before * offset,
                fit // (unit * BASE) + before * offset,
                child + now * offset,
                parent + now * offset,
                alone,
                PRIOR,
            )
        )
    return float(bits.mean())


def _smoothed(
    fit_child: NDArray[np.int64],
    fit_parent: NDArray[np.int64],
    child: NDArray[np.int64],
    parent: NDArray[np.int64],
    prior: NDArray[np.float64],
    weight: float,
) -> NDArray[np.float64]:
    """(count(child) + weight * prior) / (count(parent) + weight) for each test symbol."""
    return (_count(fit_child, child) + weight * prior) / (_count(fit_parent, parent) + weight)


def _count(keys: NDArray[np.int64], wanted: NDArray[np.int64]) -> NDArray[np.int64]:
    values, counts = np.unique(keys, return_counts=True)
    place = np.searchsorted(values, wanted).clip(max=len(values) - 1)
    return np.where(values[place] == wanted, counts[place], 0)

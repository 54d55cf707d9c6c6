"""The alternative to the shipped codec: residual levels of three bins after an orthonormal DCT over the horizon."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from scipy.fft import dct, idct

HEADROOM = 1.25
"""Range of a coefficient over its largest magnitude in the fitting half."""


class DCTLevels:
    """Encoder and decoder with bits where they pay.

    All coefficients share one cell width per level, the best allocation for the squared error at high rates; a
    coefficient takes part in a level once the cell is smaller than its range, so high frequencies have no digits, and
    cost no bits, in the coarse levels.

    Args:
        chunks: [M, T, D] to fit the ranges to, in units of the limit.
        levels: residual levels.
        bins: cells that each splits the one before it into, odd.
    """

    def __init__(self, chunks: NDArray[np.float64], levels: int = 8, bins: int = 3) -> None:
        self.levels, self.bins, self.half = levels, bins, bins // 2
        self.range = HEADROOM * np.abs(dct(chunks, axis=1, norm="ortho")).max(axis=0)
        top = math.sqrt(chunks.shape[1])
        self.widths = 2.0 * top / bins ** np.arange(1.0, levels + 1)
        self.active = self.range[None] > self.widths[:, None, None] / 2.0
        """[levels, T, D], where a digit carries information."""

    def encode(self, chunks: NDArray[np.float64]) -> NDArray[np.int64]:
        """[N, T, D] in units of the limit -> digits [levels, N, T, D], 0 .. bins - 1."""
        rest = np.clip(dct(chunks, axis=1, norm="ortho"), -self.range, self.range)
        tokens = []
        for width, active in zip(self.widths, self.active, strict=True):
            digit = np.clip(np.round(rest / width), -self.half, self.half) * active
            rest = rest - digit * width
            tokens.append(digit.astype(np.int64) + self.half)
        return np.stack(tokens)

    def decode(self, tokens: NDArray[np.int64]) -> NDArray[np.float64]:
        """Digits of a prefix of levels -> [N, T, D] in units of the limit."""
        coefficients = np.tensordot(self.widths[: len(tokens)], tokens - self.half, axes=1)
        decoded: NDArray[np.float64] = idct(coefficients, axis=1, norm="ortho")
        return decoded

"""The codecs that the study compares: RFSQ as shipped, its peers, and transforms that were considered in front of it.

Each function fits on one set of chunks and returns points of (bits, error) measured on another. All see actions divided
by the same limits, have the gripper exact at one bit a step, and count bits for a whole chunk of T = 8 steps.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.fft import dct, idct
from scipy.interpolate import BSpline

from benchmarks.codec.coder import Symbols, coded_bits
from benchmarks.codec.dct_levels import DCTLevels
from rsd_policy.codec import RFSQCodec
from rsd_policy.codec.measure import ChunkError, chunk_error
from rsd_policy.observation import GRIPPER

ROUNDING_STEPS = tuple(2.0 * 10 ** (-k / 6) for k in range(30))
"""Steps of scale-and-round in units of the limit: 2 down to 3e-5."""

CODED_STEPS = 25
"""So many of the steps, from the coarsest on, are entropy coded: they reach beyond the bits of L0-L7."""

RANGE_MARGINS = (1.0, 1.5)
"""Range of a coefficient's fixed-rate code over the largest in the fitting half."""


def prefix_name(used: int) -> str:
    """L0, L0-L1, ..."""
    return "L0" if used == 1 else f"L0-L{used - 1}"


@dataclass(frozen=True)
class Point:
    """One setting of one codec.

    Attributes:
        codec, setting: names.
        bits: at a fixed rate, log2 of the number of values of each symbol.
        coded: bits with the entropy coder of codec_coder; None for a setting that is compared at a fixed rate only.
        error: on the measured half.
    """

    codec: str
    setting: str
    bits: float
    coded: float | None
    error: ChunkError


@dataclass(frozen=True)
class Setting:
    """A point before its symbols are coded; without symbols it is not to be."""

    point: Point
    symbols: Symbols | None


def coded(settings: list[Setting]) -> list[Point]:
    """Points of one codec, its symbols coded by one coder for all settings."""
    rates = [setting.symbols for setting in settings if setting.symbols is not None]
    bits = iter(coded_bits(rates) if rates else [])
    return [
        setting.point
        if setting.symbols is None
        # The gripper is not among the symbols: one bit a step.
        else replace(setting.point, coded=next(bits) + setting.symbols.test.shape[1])
        for setting in settings
    ]


@dataclass(frozen=True)
class Halves:
    """Chunks [M, 8, 7] to fit on and to measure on, action units, and the limits of the fit, [6]."""

    fit: NDArray[np.float64]
    test: NDArray[np.float64]
    limit: NDArray[np.float64]

    @classmethod
    def of(cls, fit: NDArray[np.float32], test: NDArray[np.float32]) -> Halves:
        """Limits are those that RFSQCodec.fit chooses."""
        limit = RFSQCodec.fit(torch.from_numpy(fit)).limit.numpy()[:GRIPPER]
        return cls(fit.astype(np.float64), test.astype(np.float64), limit)

    def unit(self, chunks: NDArray[np.float64]) -> NDArray[np.float64]:
        """Arm actions in units of the limit, saturated at 1."""
        return np.clip(chunks[..., :GRIPPER] / self.limit, -1.0, 1.0)

    def point(self, codec: str, setting: str, cells: NDArray[np.int64], decoded: NDArray[np.float64]) -> Point:
        """Measure what symbols of `cells` [T, D] values each decode to, in units of the limit."""
        actions = np.clip(decoded, -1.0, 1.0) * self.limit
        error = chunk_error(actions, self.test[..., :GRIPPER])
        return Point(codec, setting, float(np.log2(cells).sum()) + self.test.shape[1], None, error)


def rfsq(halves: Halves, bins: tuple[int, ...], name: str) -> list[Setting]:
    """RFSQCodec with bins of each level, one point per prefix of levels."""
    codec = RFSQCodec.fit(torch.from_numpy(halves.fit), bins)
    tokens = [codec.encode(torch.from_numpy(half)).numpy()[..., :GRIPPER] for half in (halves.fit, halves.test)]
    decoded = codec.encode(torch.from_numpy(halves.test))
    settings = []
    for used in range(1, codec.levels + 1):
        weights = (codec.places[:used] // codec.places[used - 1]).numpy()
        fit, test = (np.tensordot(weights, half[:used], axes=1) for half in tokens)
        actions = codec.decode(decoded[:used]).numpy()[..., :GRIPPER] / halves.limit
        cells = np.full(fit.shape[1:], codec.cells[used - 1])
        # Cells beyond that of the limit exist in the grid, but no action is encoded there.
        step = np.broadcast_to(codec.widths[used - 1, :GRIPPER].numpy() / halves.limit, cells.shape)
        unused = np.maximum(0, (cells - 1) // 2 - np.round(1.0 / step).astype(np.int64))
        symbols = Symbols(fit - unused, test - unused, cells - 2 * unused, step)
        settings.append(Setting(halves.point(name, prefix_name(used), cells, actions), symbols))
    return settings


def uniform(halves: Halves, counts: tuple[int, ...]) -> list[Setting]:
    """Uniform binning of each value over its range, decoded to the middle of the bin (OpenVLA: 256 bins).

    OpenVLA's range ends at the 1 % and 99 % quantiles and cuts off the rest; here it ends at the limit and errs less.
    """
    settings = []
    for count in counts:
        fit, test = (
            np.clip(np.floor((halves.unit(half) + 1.0) / 2.0 * count), 0, count - 1).astype(np.int64)
            for half in (halves.fit, halves.test)
        )
        cells = np.full(fit.shape[1:], count)
        symbols = Symbols(fit, test, cells, np.full(cells.shape, 2.0 / count))
        settings.append(Setting(halves.point("uniform bins", f"{count}", cells, symbols.values(test)), symbols))
    return settings


def dct_rounding(halves: Halves) -> list[Setting]:
    """Orthonormal DCT-II over the horizon, scale and round (the idea of FAST, Pertsch et al., 2025)."""
    fit, test = (dct(halves.unit(half), axis=1, norm="ortho") for half in (halves.fit, halves.test))

    def inverse(coefficients: NDArray[np.float64]) -> NDArray[np.float64]:
        chunks: NDArray[np.float64] = idct(coefficients, axis=1, norm="ortho")
        return chunks

    settings = [Setting(point, None) for point in _rounded(halves, "DCT + rounding", fit, test, inverse)]
    for step in ROUNDING_STEPS[:CODED_STEPS]:
        # No coefficient of a chunk within the limits is larger: nothing is cut off.
        half = np.full(fit.shape[1:], np.round(np.sqrt(fit.shape[1]) / step)).astype(np.int64)
        codes = [np.round(x / step).astype(np.int64) for x in (fit, test)]
        symbols = Symbols(codes[0] + half, codes[1] + half, 2 * half + 1, np.full(half.shape, step))
        point = halves.point("DCT + rounding", f"step {step:.2g}", symbols.cells, inverse(codes[1] * step))
        settings.append(Setting(point, symbols))
    return settings


def spline_rounding(halves: Halves, controls: int) -> list[Point]:
    """Cubic B-spline with `controls` control points fitted to the horizon by least squares, scale and round."""
    steps = halves.fit.shape[1]
    inner = np.linspace(0.0, 1.0, controls - 2)
    knots = np.concatenate([[0.0] * 3, inner, [1.0] * 3])
    basis = BSpline.design_matrix(np.linspace(0.0, 1.0, steps), knots, 3).toarray()
    solve = np.linalg.pinv(basis)
    fit, test = (np.einsum("kt,ntd->nkd", solve, halves.unit(half)) for half in (halves.fit, halves.test))
    return _rounded(halves, f"B-spline {controls} + rounding", fit, test, lambda c: np.einsum("tk,nkd->ntd", basis, c))


def dct_rfsq(halves: Halves) -> list[Point]:
    """DCTLevels, one point per prefix of levels."""
    codec = DCTLevels(halves.unit(halves.fit))
    tokens = codec.encode(halves.unit(halves.test))
    points = []
    for used in range(1, codec.levels + 1):
        # Digits that carry nothing are left out of the number: a coefficient has bins ** (its active levels) values.
        cells = codec.bins ** codec.active[:used].sum(axis=0)
        points.append(halves.point("DCT + RFSQ", prefix_name(used), cells, codec.decode(tokens[:used])))
    return points


def _rounded(
    halves: Halves,
    name: str,
    fit: NDArray[np.float64],
    test: NDArray[np.float64],
    inverse: Callable[[NDArray[np.float64]], NDArray[np.float64]],
) -> list[Point]:
    """Scale-and-round at each step; the fixed-rate code of a coefficient covers its range in the fitting half."""
    points = []
    for step in ROUNDING_STEPS:
        for margin in RANGE_MARGINS:
            half = np.round(np.abs(fit).max(axis=0) * margin / step)
            codes = np.clip(np.round(test / step), -half, half)
            cells = (2 * half + 1).astype(np.int64)
            setting = f"step {step:.2g}, range x{margin}"
            points.append(halves.point(name, setting, cells, inverse(codes * step)))
    return points

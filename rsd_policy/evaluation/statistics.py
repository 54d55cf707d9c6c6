"""Intervals and paired tests for success counts, and summaries of latencies."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

SIGNIFICANCE = 0.05
"""`compare`'s one decision rule: two success rates differ where `mcnemar_exact` is below this."""


def wilson_interval(successes: int, trials: int) -> tuple[float, float]:
    """95 % Wilson score interval of a binomial proportion (Wilson 1927). No trials: (0, 1), nothing is known.

    Raises:
        ValueError: scipy's, unless 0 <= successes <= trials.
    """
    from scipy.stats import binomtest  # over a second: not at every start

    if successes == trials == 0:
        return 0.0, 1.0
    interval = binomtest(successes, trials).proportion_ci(0.95, method="wilson")
    return float(interval.low), float(interval.high)


def latency_summary(values_ms: Sequence[float]) -> dict[str, float] | None:
    """Mean, p50, p95 and p99 (linear interpolation) in ms, or None when nothing was measured."""
    if not len(values_ms):
        return None
    values = np.asarray(values_ms, dtype=np.float64)
    p50, p95, p99 = np.percentile(values, [50, 95, 99])
    return {"mean": float(values.mean()), "p50": float(p50), "p95": float(p95), "p99": float(p99)}


def mcnemar_exact(only_a: int, only_b: int) -> float:
    """Exact two-sided McNemar test: p value of `only_a` against `only_b` discordant pairs under equal rates."""
    from scipy.stats import binomtest

    discordant = only_a + only_b
    return float(binomtest(only_a, discordant).pvalue) if discordant else 1.0


def paired_difference_interval(both: int, only_a: int, only_b: int, neither: int) -> tuple[float, float]:
    """95 % interval of the success rate of B minus that of A over the same episodes.

    Newcombe (1998), "Improved confidence intervals for the difference between binomial proportions based on paired
    data", method 10: Wilson limits of both rates, joined with their correlation (continuity-corrected when positive).

    It says how large a difference may be. It is approximate, and near 0 it is not the exact test's inversion: whether
    there is a difference is decided by `mcnemar_exact` alone (of 200 pairs, 5 against 0: 0.3 to 5.7 points, p = 0.06).
    """
    n = both + only_a + only_b + neither
    if n == 0:
        return -1.0, 1.0
    p_a, p_b = (both + only_a) / n, (both + only_b) / n
    low_a, high_a = wilson_interval(both + only_a, n)
    low_b, high_b = wilson_interval(both + only_b, n)
    margins = (both + only_a) * (only_b + neither) * (both + only_b) * (only_a + neither)
    phi = 0.0
    if margins:
        numerator: float = both * neither - only_a * only_b
        if numerator > 0:
            numerator = max(numerator - n / 2, 0)
        phi = numerator / math.sqrt(margins)
    difference = p_b - p_a

    def reach(towards_b: float, towards_a: float) -> float:
        return math.sqrt(max(0.0, towards_b**2 - 2 * phi * towards_b * towards_a + towards_a**2))

    low = difference - reach(p_b - low_b, high_a - p_a)
    high = difference + reach(high_b - p_b, p_a - low_a)
    return max(-1.0, low), min(1.0, high)


MIN_PAIRS = 5
"""A bootstrap over fewer pairs sees next to none of their variation: its interval would pretend precision."""


@dataclass(frozen=True)
class Ratio:
    """A ratio of means with its 95 % interval; the limits are None when there are fewer than `MIN_PAIRS`."""

    value: float
    low: float | None
    high: float | None


def paired_ratio(
    numerator: Sequence[ArrayLike], denominator: Sequence[ArrayLike], *, resamples: int = 2000, seed: int = 0
) -> Ratio | None:
    """Mean over all numerators / mean over all denominators, with a percentile bootstrap over the pairs.

    Pairs are resampled, not single values: values of one episode hang together.

    Args:
        numerator, denominator: for each pair (episode) its values, e.g. the latencies of its chunks.

    Returns:
        None when either side holds no value.
    """
    sums = np.array(
        [[np.sum(n), np.size(n), np.sum(d), np.size(d)] for n, d in zip(numerator, denominator, strict=True)]
    )
    if not len(sums) or not sums[:, 1].sum() or not sums[:, 3].sum():
        return None

    def ratio(total: NDArray[np.float64]) -> NDArray[np.float64]:
        return (total[..., 0] / total[..., 1]) / (total[..., 2] / total[..., 3])

    value = float(ratio(sums.sum(axis=0)))
    if len(sums) < MIN_PAIRS:
        return Ratio(value, None, None)
    picks = np.random.default_rng(seed).integers(0, len(sums), size=(resamples, len(sums)))
    totals = sums[picks].sum(axis=1)
    usable = totals[(totals[:, 1] > 0) & (totals[:, 3] > 0)]
    low, high = np.percentile(ratio(usable), [2.5, 97.5])
    return Ratio(value, float(low), float(high))


def mean_interval(values: Sequence[ArrayLike], *, resamples: int = 2000, seed: int = 0) -> tuple[float, float, float]:
    """Mean over all values with its 95 % interval, a percentile bootstrap over the groups, which are resampled whole.

    Args:
        values: for each group (episode) its values, at least one; values of one episode hang together.

    Returns:
        mean, low, high; the limits are nan when there are fewer than `MIN_PAIRS` groups.
    """
    sums = np.array([[np.sum(group), np.size(group)] for group in values], dtype=np.float64)
    mean = float(sums[:, 0].sum() / sums[:, 1].sum())
    if len(sums) < MIN_PAIRS:
        return mean, math.nan, math.nan
    picks = np.random.default_rng(seed).integers(0, len(sums), size=(resamples, len(sums)))
    totals = sums[picks].sum(axis=1)
    low, high = np.percentile(totals[:, 0] / totals[:, 1], [2.5, 97.5])
    return mean, float(low), float(high)

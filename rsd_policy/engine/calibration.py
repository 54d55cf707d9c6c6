"""Choosing the gate's threshold so that it keeps its promise, with a stated confidence.

Promise: among episodes in which the gate skips at all, draw one at random and one of its skipped chunks at random; the
probability that this chunk's draft deviates from the main head's by more than the tolerance is at most alpha. With
probability at least `confidence` over the draw of the calibration episodes, the chosen threshold keeps it.

*Dependent chunks.* Chunks of one episode look alike, so an episode is the unit. Let s_i and d_i be the numbers of
skipped and of skipped-and-deviating chunks of episode i at some threshold, and Y_i = d_i / s_i: the expectation of what
one random skipped chunk of the episode would show, with less variance than drawing that one chunk. Episodes are
independent; they need not be alike (the tasks are visited in equal numbers, not drawn), see below.

*One threshold.* H: the rate exceeds alpha. For eta in (0, 1] the product over episodes with s_i > 0

    W(eta) = prod_i (1 - eta (Y_i - alpha))

has expectation at most 1 under H: the factors are independent, and by the inequality of the arithmetic and the
geometric mean a product of expectations whose mean is at most 1 is at most 1. So has its average over a fixed set of
eta, and by Markov's inequality 1 / W is a p-value (betting: Waudby-Smith and Ramdas, 2024). It holds for every number
of episodes and, unlike a binomial bound on one chunk per episode, gains from the small variance of Y_i.

*Many thresholds.* The rate among skipped chunks is not monotone in the threshold, so a search for the best threshold on
the same data needs a correction. Learn-then-Test's fixed-sequence testing (Angelopoulos et al., 2021): the thresholds
are ordered from strict to lenient before the calibration data are looked at, each is tested at level 1 - confidence,
and the first failure ends the sequence. The probability that any threshold passed before is a wrong one is then at most
1 - confidence.

What the promise does not cover: states that the rollouts did not visit. The engine audits for that.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rsd_policy.errors import CheckpointError

CONFIDENCE = 0.95

ETAS = np.array([0.25, 0.5, 0.75, 1.0])
"""Stakes over which W is averaged. The best one is (alpha - rate) / Var(Y), at most 1: small ones suit rates close to
alpha and large variance, large ones little data."""

FIRST_SKIP_RATE = 0.2
"""The sequence starts where this fraction of the eligible chunks is skipped. A stricter start would test thresholds at
which too few episodes skip to prove anything, and its failure would end the sequence."""

_BISECTIONS = 22


@dataclass(frozen=True)
class Chunks:
    """Recorded chunks as the gate sees them.

    Attributes:
        episode: int [N], which episode each belongs to (any numbers).
        score: float [N], the predictor's probability at the calibrated number of steps.
        eligible: bool [N], the gate's rules do not demand a verification.
        deviates: bool [N], the draft is outside the tolerance of the main head.
    """

    episode: NDArray[np.int64]
    score: NDArray[np.float64]
    eligible: NDArray[np.bool_]
    deviates: NDArray[np.bool_]

    def per_episode(self, thresholds: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Skipped, and skipped and deviating chunks, each [episodes, G], for thresholds [G]."""
        order = np.argsort(self.episode, kind="stable")
        starts = np.flatnonzero(np.diff(self.episode[order], prepend=self.episode.min(initial=0) - 1))
        skips = (self.eligible[:, None] & (self.score[:, None] >= thresholds))[order]
        skipped = np.add.reduceat(skips, starts, axis=0, dtype=np.float64)
        deviated = np.add.reduceat(skips & self.deviates[order, None], starts, axis=0, dtype=np.float64)
        return skipped, deviated


@dataclass(frozen=True)
class Curve:
    """What each threshold does, from strict to lenient; lists of equal length.

    Attributes:
        threshold: least score that is let through.
        skip_rate: skipped of all chunks, eligible or not.
        deviation_rate: deviating of skipped chunks, averaged over episodes as the promise counts; 0 without skips.
        chunk_deviation_rate: the same with every skipped chunk counted once, as the audit counts.
        bound: upper bound of the promise's rate at the confidence, for this threshold alone.
        confidence: of the bounds, and of every threshold chosen by `choose`.
    """

    threshold: list[float]
    skip_rate: list[float]
    deviation_rate: list[float]
    chunk_deviation_rate: list[float]
    bound: list[float]
    confidence: float

    @classmethod
    def measure(cls, chunks: Chunks, thresholds: NDArray[np.float64], confidence: float = CONFIDENCE) -> Curve:
        """Curve of calibration chunks at thresholds that were chosen without looking at them, strict first."""
        skipped, deviated = chunks.per_episode(thresholds)
        active = np.maximum((skipped > 0).sum(axis=0), 1)
        rates = np.divide(deviated, skipped, out=np.zeros_like(skipped), where=skipped > 0)
        return cls(
            threshold=thresholds.tolist(),
            skip_rate=(skipped.sum(axis=0) / max(len(chunks.score), 1)).tolist(),
            deviation_rate=(rates.sum(axis=0) / active).tolist(),
            chunk_deviation_rate=(deviated.sum(axis=0) / np.maximum(skipped.sum(axis=0), 1)).tolist(),
            bound=upper_bounds(skipped, deviated, confidence).tolist(),
            confidence=confidence,
        )

    @classmethod
    def from_manifest(cls, entry: dict[str, Any]) -> Curve:
        """Rebuild a curve from `to_manifest`'s values.

        Raises:
            CheckpointError: an entry is missing or misnamed, or the lists differ in length.
        """
        try:
            curve = cls(**entry)
            lengths = {len(column) for column in (curve.threshold, curve.skip_rate, curve.deviation_rate, curve.bound)}
        except TypeError as error:
            raise CheckpointError(f"manifest entry gate.curve: {error}; run `rsd calibrate` again") from error
        if len(lengths) != 1:
            raise CheckpointError(f"manifest entry gate.curve: expected lists of one length, got {sorted(lengths)}")
        return curve

    def to_manifest(self) -> dict[str, Any]:
        """Values as JSON-serialisable types."""
        return asdict(self)

    def choose(self, alpha: float) -> int | None:
        """Index of the most lenient threshold reached by fixed-sequence testing, or None when the first one fails.

        For an alpha that was not chosen by looking at this curve, the promise holds with the curve's confidence.
        """
        fails = np.flatnonzero(np.asarray(self.bound) > alpha)
        passed = int(fails[0]) if len(fails) else len(self.bound)
        return passed - 1 if passed else None


def upper_bounds(
    skipped: NDArray[np.float64], deviated: NDArray[np.float64], confidence: float = CONFIDENCE
) -> NDArray[np.float64]:
    """Smallest alpha at which the test rejects, per threshold; 1 where nothing can be said.

    Args:
        skipped, deviated: [episodes, ...], counts per episode.

    Returns:
        float64 [...].
    """
    active = skipped > 0
    rates = np.divide(deviated, skipped, out=np.zeros_like(skipped, dtype=np.float64), where=active)
    low = np.zeros(skipped.shape[1:])
    high = np.ones(skipped.shape[1:])
    for _ in range(_BISECTIONS):  # W grows with alpha for every eta, so the rejected alphas are an interval up to 1
        middle = (low + high) / 2
        rejected = _log_wealth(rates, active, middle) >= -np.log(1.0 - confidence)
        low, high = np.where(rejected, low, middle), np.where(rejected, middle, high)
    return high


def _log_wealth(
    rates: NDArray[np.float64], active: NDArray[np.bool_], alpha: NDArray[np.float64]
) -> NDArray[np.float64]:
    """ln of the average of W over ETAS."""
    excess = rates - alpha
    per_eta = np.stack([np.where(active, np.log1p(-eta * excess), 0.0).sum(axis=0) for eta in ETAS])
    largest = per_eta.max(axis=0)
    return np.asarray(largest + np.log(np.exp(per_eta - largest).mean(axis=0)))


def thresholds_from(scores: NDArray[np.float64], count: int = 81) -> NDArray[np.float64]:
    """Thresholds [count], strict first, at equally spaced skip rates from FIRST_SKIP_RATE to 1.

    Args:
        scores: of eligible chunks of episodes that are not used for calibration.
    """
    return np.quantile(scores, 1.0 - np.linspace(FIRST_SKIP_RATE, 1.0, count))


def episodes_needed(alpha: float, confidence: float = CONFIDENCE) -> int:
    """Least number of episodes with a skip that can prove a rate of at most alpha, when not one chunk deviates."""
    count = 1
    while upper_bounds(np.ones((count, 1)), np.zeros((count, 1)), confidence)[0] > alpha:
        count += 1
    return count

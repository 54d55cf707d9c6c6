"""The gate: may this draft run unverified? And the audit that watches whether the gate keeps its word."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rsd_policy.engine.calibration import Curve
from rsd_policy.errors import CheckpointError, RSDError
from rsd_policy.observation import GRIPPER


@dataclass(frozen=True)
class Gate:
    """Threshold on the predicted probability that the draft is within tolerance of the main head.

    Attributes:
        threshold: least probability at which a draft is let through; 0 lets every draft through.
        alpha: promised bound on P(deviation > tolerance | skipped); see `engine.calibration`.
        steps: length of the prefix that the probability is about. Fewer executed steps keep the promise for each state
            alone, as a prefix of a chunk within tolerance is within tolerance. They do not keep it for an episode: who
            looks again sooner visits other states, at which the calibration did not look. The audit is there for that.
        start_gripper: what the hand was told before an episode's first chunk, where the calibration knew it; with None
            the first chunk always verifies.
        gripper_rule: a predicted change of the gripper always verifies: opening and closing the hand decide a task.
    """

    threshold: float
    alpha: float
    steps: int
    start_gripper: float | None = None
    gripper_rule: bool = True

    @classmethod
    def from_manifest(cls, entry: dict[str, Any] | None, alpha: float | None = None) -> Gate:
        """Gate of a checkpoint.

        Args:
            entry: the manifest's entry `gate`.
            alpha: promise to keep; default: the checkpoint's.

        Raises:
            CheckpointError: the checkpoint was never calibrated, or not for this alpha.
            RSDError: alpha is not in (0, 1).
        """
        if alpha is not None and not 0.0 < alpha < 1.0:
            raise RSDError(f"alpha: expected a probability between 0 and 1, got {alpha}")
        if not entry or "curve" not in entry:
            raise CheckpointError(
                "mode 'gated' needs a calibrated gate and this checkpoint has none; "
                "calibrate it with `rsd calibrate`, or use mode 'speculative'"
            )
        wanted = float(entry["alpha"]) if alpha is None else alpha
        curve = Curve.from_manifest(entry["curve"])
        index = curve.choose(wanted)
        if index is None:
            raise CheckpointError(
                f"gate: no threshold keeps alpha = {wanted:g} with confidence {curve.confidence:g}: the strictest one "
                f"tested is bounded by {curve.bound[0]:.3f} only; choose a larger alpha, calibrate with more episodes "
                "(`rsd calibrate`), or use mode 'speculative'"
            )
        return cls(curve.threshold[index], wanted, int(entry["steps"]), entry.get("start_gripper"))

    def eligible(self, draft_actions: NDArray[np.float32], last_action: NDArray[np.float32] | None) -> bool:
        """The gripper rule does not demand a verification.

        Args:
            draft_actions: [T, 7].
            last_action: [7], the last executed command; None before the first.
        """
        if not self.gripper_rule:
            return True
        before = self.start_gripper if last_action is None else last_action[GRIPPER]
        return before is not None and bool((draft_actions[: self.steps, GRIPPER] == before).all())

    def lets_through(self, probability: NDArray[np.float32]) -> bool:
        """The predicted probability [T] of DeviationPredictor reaches the threshold."""
        return float(probability[self.steps - 1]) >= self.threshold


class Audit:
    """Verifies every n-th skipped chunk after the fact and trips when the deviation rate has risen above alpha.

    For each of some rates p above alpha a CUSUM of the likelihood ratio of p against alpha is kept,

        C_p <- max(C_p, 1) * (p / alpha if deviated else (1 - p) / (1 - alpha)),

    and the audit trips when their average reaches `patience`. While the rate is at most alpha, whatever the past, the
    expected number of checks before a false alarm is at least `patience` (an e-detector: Shin, Ramdas and Rinaldo,
    2022). Since no C_p falls behind a fresh start, a long good past does not delay the notice of a shift; `notices_in`
    says how soon it comes. A bound on the rate of all checks so far would have neither property: looked at after every
    check it trips in the end though the promise is kept, and the past outvotes the present.

    Args:
        alpha: promised bound; 1 promises nothing and never trips.
        every: skipped chunks per check.
    """

    patience = 500.0
    odds = (1.5, 2.0, 3.0, 5.0, 9.0)
    """Alternatives p, as multiples of alpha's odds."""

    def __init__(self, alpha: float, every: int) -> None:
        self.alpha = alpha
        self.every = every
        self.skipped = 0
        self.checked = 0
        self.deviated = 0
        self.tripped = False
        self._if_deviated, self._if_kept = _likelihood_ratios(alpha)
        self._cusum = np.ones(len(self.odds))

    def due(self) -> bool:
        """Count one skipped chunk; True when it is to be verified."""
        self.skipped += 1
        return self.skipped % self.every == 0

    def record(self, deviated: bool) -> None:
        """Add the outcome of one verification."""
        self.checked += 1
        self.deviated += int(deviated)
        self._cusum = np.maximum(self._cusum, 1.0) * (self._if_deviated if deviated else self._if_kept)
        self.tripped = self.tripped or bool(self._cusum.mean() >= self.patience)

    @classmethod
    def notices_in(cls, alpha: float, rate: float, every: int, power: float = 0.95) -> int:
        """Skipped chunks after which the audit has tripped with probability `power`, once deviations have `rate`.

        Exact for the checks since the shift alone, hence an upper bound for the CUSUM, which is never below them.

        Raises:
            RSDError: the rate is too close to alpha (or below it) for any alternative to gain on it.
        """
        from scipy.stats import binom  # a second of every start, for a table of the documentation

        if_deviated, if_kept = (np.log(ratios) for ratios in _likelihood_ratios(alpha))
        if not (rate <= 1.0 and (rate * if_deviated + (1.0 - rate) * if_kept).max() > 0.0):
            raise RSDError(f"rate: expected one clearly above alpha = {alpha:g} and at most 1, got {rate:g}")
        checks = 1
        while True:
            deviated = np.arange(checks + 1)[:, None]
            sums = deviated * if_deviated + (checks - deviated) * if_kept
            average = np.exp(np.minimum(sums, 700.0)).mean(axis=1)  # cut where exp would overflow, far above patience
            enough = np.flatnonzero(average >= cls.patience)  # average grows with the count: all from the first on
            if len(enough) and binom.sf(enough[0] - 1, checks, rate) >= power:
                return checks * every
            checks += 1


def _likelihood_ratios(alpha: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """p / alpha and (1 - p) / (1 - alpha) per alternative p; 1 for alpha = 1, under which no p is above it."""
    odds = np.asarray(Audit.odds)
    # with odds(p) = k odds(alpha): p = k alpha / (1 - alpha + k alpha)
    total = 1.0 - alpha + odds * alpha
    return odds / total, 1.0 / total

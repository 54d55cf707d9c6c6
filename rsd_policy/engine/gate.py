"""The gate: may this draft run unverified? And the audit that watches whether the gate keeps its word.

The gate knows only what is known at the early exit: the draft's tokens, their margins, and the chunk before.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import beta

from rsd_policy.codec.rfsq import GRIPPER
from rsd_policy.errors import CheckpointError


@dataclass(frozen=True)
class Gate:
    """Calibrated threshold on the draft's confidence.

    Attributes:
        threshold: least score at which a draft is let through.
        alpha: promised bound on P(deviation > tolerance | skipped).
    """

    threshold: float
    alpha: float

    @classmethod
    def from_manifest(cls, entry: dict[str, Any] | None) -> Gate:
        """Gate of a checkpoint.

        Raises:
            CheckpointError: the checkpoint was never calibrated.
        """
        if not entry or entry.get("threshold") is None:
            raise CheckpointError(
                "mode 'gated' needs a calibrated gate and this checkpoint has none; use mode 'speculative'"
            )
        return cls(threshold=float(entry["threshold"]), alpha=float(entry["alpha"]))

    def lets_through(
        self,
        margins: NDArray[np.float32],
        draft_actions: NDArray[np.float32],
        last_gripper: float | None,
        steps: int,
    ) -> bool:
        """Decide for one draft.

        Opening and closing the hand decide a task, so a predicted change of the gripper always verifies; so does the
        first chunk of an episode (`last_gripper` None).

        Args:
            margins: [l, T, 7], see RFSQHead.forward.
            draft_actions: [T, 7].
            last_gripper: gripper command of the last executed step.
            steps: how many steps of the chunk will be executed.
        """
        gripper = draft_actions[:steps, GRIPPER]
        if last_gripper is None or bool((gripper != last_gripper).any()):
            return False
        return gate_score(margins, steps) >= self.threshold


def gate_score(margins: NDArray[np.float32], steps: int) -> float:
    """Confidence of a draft: mean over arm degrees of freedom and steps of the level-0..2 margins, each cut at 4.

    Cut, because a few very sure digits (a still axis has margins above 10) must not outvote one that is in doubt.
    """
    return float(np.minimum(margins[:, :steps, :GRIPPER], 4.0).mean())


class Audit:
    """Counts how often verified-afterwards skips deviated, and trips when the promise is broken.

    It trips when the one-sided lower 95 % Clopper-Pearson bound of the deviation rate exceeds alpha: from then on the
    data contradict the calibration, whatever the number of checks so far.
    """

    confidence = 0.95

    def __init__(self, alpha: float, every: int) -> None:
        self.alpha = alpha
        self.every = every
        self.skipped = 0
        self.checked = 0
        self.deviated = 0

    def due(self) -> bool:
        """Count one skipped chunk; True when it is to be verified."""
        self.skipped += 1
        return self.skipped % self.every == 0

    def record(self, deviated: bool) -> None:
        """Add the outcome of one verification."""
        self.checked += 1
        self.deviated += int(deviated)

    @property
    def tripped(self) -> bool:
        """The observed rate exceeds alpha with the stated confidence."""
        if self.deviated == 0:
            return False
        lower = beta.ppf(1.0 - self.confidence, self.deviated, self.checked - self.deviated + 1)
        return bool(lower > self.alpha)

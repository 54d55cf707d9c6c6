"""Between the model's normalised numbers and the robot's units.

Formulas: `normalize_proprio` (experiments/robot/openvla_utils.py), `_unnormalize_actions` and `predict_action`
(modeling_prismatic.py) and `process_action` (run_libero_eval.py) of moojink/openvla-oft.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rsd_policy.errors import CheckpointError
from rsd_policy.observation import ACTION_DIM, PROPRIO_DIM

EPSILON = 1e-8
"""Added to every range, as the reference does; OpenVLA's own code does not, which changes nothing that can be seen."""


@dataclass(frozen=True)
class Quantiles:
    """1 % and 99 % quantiles per dimension of a training set; dimensions with mask False are left as they are."""

    q01: NDArray[np.float64]
    q99: NDArray[np.float64]
    mask: NDArray[np.bool_]

    @classmethod
    def from_statistics(cls, statistics: dict[str, Any], key: str, kind: str, size: int) -> Quantiles:
        """Statistics of a dataset.

        Args:
            statistics: `norm_stats` of the checkpoint.
            key: dataset.
            kind: "action" or "proprio".
            size: expected number of dimensions.

        Raises:
            CheckpointError: an entry is missing, of another length or not finite.
        """
        where = f"norm_stats['{key}']['{kind}']"
        try:
            entry = statistics[key][kind]
            q01, q99 = (np.asarray(entry[name], dtype=np.float64) for name in ("q01", "q99"))
            mask = np.asarray(entry.get("mask", [True] * len(q01)), dtype=np.bool_)
        except (KeyError, TypeError, ValueError) as error:
            raise CheckpointError(f"{where}: expected lists q01 and q99 of {size} numbers: {error}") from error
        shapes = [values.shape for values in (q01, q99, mask)]
        if shapes != [(size,)] * 3:
            raise CheckpointError(
                f"{where}: expected {size} values in q01, q99 and mask, got {shapes}; these are of another robot"
            )
        if not np.all(np.isfinite(q01) & np.isfinite(q99) & (q99 >= q01)):
            raise CheckpointError(f"{where}: expected finite q01 <= q99, got {q01.tolist()} and {q99.tolist()}")
        return cls(q01, q99, mask)

    def normalise(self, values: NDArray[Any]) -> NDArray[np.float32]:
        """To [-1, 1], clipped: 2 (x - q01) / (q99 - q01 + eps) - 1."""
        scaled = 2 * (values - self.q01) / (self.q99 - self.q01 + EPSILON) - 1
        return np.clip(np.where(self.mask, scaled, values), -1.0, 1.0).astype(np.float32)

    def unnormalise(self, values: NDArray[Any]) -> NDArray[np.float64]:
        """From [-1, 1]: (x + 1) / 2 (q99 - q01 + eps) + q01."""
        scaled = 0.5 * (values + 1) * (self.q99 - self.q01 + EPSILON) + self.q01
        return np.where(self.mask, scaled, values)


@dataclass(frozen=True)
class Units:
    """Units of one dataset: actions to OSC_POSE units, proprioceptive state to the model's input.

    Attributes:
        action: of the seven degrees of freedom.
        proprio: of the state; None where the model reads none.
    """

    action: Quantiles
    proprio: Quantiles | None

    @classmethod
    def from_statistics(cls, statistics: dict[str, Any], key: str, with_proprio: bool) -> Units:
        """Statistics of a dataset; errors as `Quantiles.from_statistics`."""
        action = Quantiles.from_statistics(statistics, key, "action", ACTION_DIM)
        proprio = Quantiles.from_statistics(statistics, key, "proprio", PROPRIO_DIM) if with_proprio else None
        return cls(action, proprio)

    def actions(self, normalised: NDArray[Any]) -> NDArray[np.float32]:
        """Model output [..., 7] -> actions ready for LIBERO's `env.step`.

        The model's gripper is 1 open, 0 closed, as in its training data; LIBERO's is -1 open, +1 close. The reference
        makes it binary: -sign(2 g - 1).

        Returns:
            float32 [..., 7]: OSC_POSE units (1 is 0.05 m or 0.5 rad per step), not clipped.
        """
        actions = self.action.unnormalise(normalised)
        actions[..., -1] = -np.sign(2 * actions[..., -1] - 1)
        return actions.astype(np.float32)


def token_values(tokens: NDArray[np.int64], vocabulary_size: int, bins: int) -> NDArray[np.float64]:
    """Centres of the bins that action tokens stand for.

    The last ids of the vocabulary count bins downwards: id = vocabulary_size - 1 - bin. There are bins - 1 centres
    between bins edges on [-1, 1]. Other ids give the nearest bin, as in the reference.

    Args:
        tokens: ids.
        vocabulary_size: without the padding rows of the embedding.
        bins: edges.

    Returns:
        float64 in [-1, 1], of the shape of `tokens`.
    """
    edges = np.linspace(-1.0, 1.0, bins)
    centres = (edges[:-1] + edges[1:]) / 2
    return centres[np.clip(vocabulary_size - tokens - 1, 0, bins - 2)]

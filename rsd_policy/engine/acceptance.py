"""The accept/reject rule: does the draft name the same motion as the main head?"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rsd_policy.observation import GRIPPER


@dataclass(frozen=True)
class Acceptance:
    """Parameters of the rule.

    Attributes:
        threshold: least fraction of equal L0-L2 tokens over the executed steps (0.7 in the original project), of those
            that carry something.
        tolerance: [6], largest deviation per step and degree of freedom in action units. 5 mm and 0.05 rad are 0.1
            units of robosuite's OSC_POSE controller as LIBERO sets it up (1 is 0.05 m and 0.5 rad).
        carries: bool [levels, 7], `RFSQCodec.carries`: a digit that is the same for every action agrees whatever the
            draft says, so it does not count.
    """

    threshold: float
    tolerance: NDArray[np.float32]
    carries: NDArray[np.bool_]


@dataclass(frozen=True)
class Comparison:
    """Outcome of comparing a draft with the final chunk.

    Attributes:
        accepted: the rule holds over the executed steps.
        token_agreement: per draft level, fraction of equal tokens over the executed steps, of those that carry
            something.
        max_deviation: [7], largest |draft - final| over the executed steps, action units.
        accepted_steps: how many leading steps are within tolerance, 0 .. executed steps.
        within_tolerance: all executed steps are; this deviation part of the rule is what the gate promises.
    """

    accepted: bool
    token_agreement: tuple[float, ...]
    max_deviation: NDArray[np.float32]
    accepted_steps: int
    within_tolerance: bool


def compare(
    draft_tokens: NDArray[np.int64],
    draft_actions: NDArray[np.float32],
    final_tokens: NDArray[np.int64],
    final_actions: NDArray[np.float32],
    steps: int,
    rule: Acceptance,
) -> Comparison:
    """Apply the rule over the first `steps` steps.

    accepted  <=>  mean[l, t, d: carries[l, d]](draft == final) >= threshold,
                   and every step is within tolerance (`steps_within`)

    Args:
        draft_tokens: [l, T, 7]; final_tokens: [L, T, 7] with L >= l.
        draft_actions, final_actions: [T, 7], decoded.
    """
    coarse = len(draft_tokens)
    counts = np.broadcast_to(rule.carries[:coarse, None, :], (coarse, steps, rule.carries.shape[1]))
    equal = (draft_tokens[:, :steps] == final_tokens[:coarse, :steps]) & counts
    accepted_steps = min(int(steps_within(draft_actions, final_actions, rule.tolerance)), steps)
    within = accepted_steps == steps
    return Comparison(
        accepted=within and bool(equal.sum() / counts.sum() >= rule.threshold),
        token_agreement=tuple((equal.sum(axis=(1, 2)) / counts.sum(axis=(1, 2))).tolist()),
        max_deviation=np.abs(draft_actions[:steps] - final_actions[:steps]).max(axis=0),
        accepted_steps=accepted_steps,
        within_tolerance=within,
    )


def steps_within(
    draft_actions: NDArray[np.float32], final_actions: NDArray[np.float32], tolerance: NDArray[np.float32]
) -> NDArray[np.int64]:
    """Number of leading steps at which |draft - final| <= tolerance for each arm degree of freedom and the gripper
    command is the same.

    Args:
        draft_actions, final_actions: [..., T, 7].
        tolerance: [6].

    Returns:
        int64 [...], 0 .. T.
    """
    arm = np.abs(draft_actions[..., :GRIPPER] - final_actions[..., :GRIPPER]) <= tolerance
    within = arm.all(axis=-1) & (draft_actions[..., GRIPPER] == final_actions[..., GRIPPER])
    return np.cumprod(within, axis=-1, dtype=np.int64).sum(axis=-1)

"""Accuracy on held-out demonstrations and the threshold of the gate."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rsd_policy.backbones.mini import MiniInputs
from rsd_policy.checkpoints.loading import Policy
from rsd_policy.codec.rfsq import GRIPPER
from rsd_policy.engine.gate import gate_score
from rsd_policy.errors import RSDError
from rsd_policy.training.dataset import Demonstrations


@dataclass(frozen=True)
class Predictions:
    """Greedy predictions over demonstration frames, as the engine would make them.

    Attributes:
        main_tokens: [8, N, T, 7]; draft_tokens: [3, N, T, 7]; true_tokens: [8, N, T, 7].
        main_actions, draft_actions, true_actions: [N, T, 7], action units.
        margins: [3, N, T, 7] of the draft.
        mask: [N, T], which labels are valid.
        teacher_forced: [8], the main head's accuracy per level given the true digits before.
        draft_teacher_forced: [3], the same of the draft.
    """

    main_tokens: NDArray[np.int64]
    draft_tokens: NDArray[np.int64]
    true_tokens: NDArray[np.int64]
    main_actions: NDArray[np.float32]
    draft_actions: NDArray[np.float32]
    true_actions: NDArray[np.float32]
    margins: NDArray[np.float32]
    mask: NDArray[np.bool_]
    teacher_forced: NDArray[np.float64]
    draft_teacher_forced: NDArray[np.float64]


@dataclass(frozen=True)
class HiddenBatch:
    """What both heads read for B frames, with the labels.

    Attributes:
        early, late: [B, slots, hidden_size], action slots after layer k-1 and after the last layer.
        actions: float32 [B, T, 7], true chunks.
        mask: bool [B, T], which steps of them are valid.
    """

    early: Tensor
    late: Tensor
    actions: Tensor
    mask: Tensor


def predict(policy: Policy, data: Demonstrations, device: torch.device, batch_size: int = 256) -> Predictions:
    """Run both heads over all frames of `data` (on a CPU expect about 20 frames a second)."""
    policy = policy.to(device)
    return predict_hidden(policy, _hidden(policy, data, device, batch_size))


def _hidden(
    policy: Policy, data: Demonstrations, device: torch.device, batch_size: int
) -> Iterator[HiddenBatch]:
    backbone = policy.backbone
    for start in range(0, len(data), batch_size):
        batch = data.slice(start, start + batch_size).to(device)
        x = backbone.embed(MiniInputs(batch.images, batch.proprio, batch.words))
        x = backbone.forward_layers(x, 0, policy.exit_layer)
        early = backbone.action_hidden(x)
        x = backbone.forward_layers(x, policy.exit_layer, backbone.num_layers)
        yield HiddenBatch(early, backbone.action_hidden(x), batch.actions, batch.mask)


@torch.inference_mode()
def predict_hidden(policy: Policy, batches: Iterable[HiddenBatch]) -> Predictions:
    """Run both heads over hidden states on the policy's device.

    Raises:
        RSDError: no batch.
    """
    parts: dict[str, list[NDArray[Any]]] = {}
    hits = np.zeros((2, policy.codec.levels))
    count = 0.0
    for batch in batches:
        true = policy.codec.encode(batch.actions)
        draft, margins = policy.draft(batch.early)
        main, _ = policy.head(batch.late)
        valid = batch.mask[None, :, :, None]
        for row, (head, hidden) in enumerate(((policy.head, batch.late), (policy.draft, batch.early))):
            guess = head.teacher_forced_logits(hidden, true).argmax(-1)
            hit = ((guess == true[: len(guess)]) * valid).sum(dim=(1, 2, 3)).double().cpu().numpy()
            hits[row, : len(guess)] += hit
        count += float(batch.mask.sum()) * true.shape[-1]
        entry = {
            "main_tokens": main,
            "draft_tokens": draft,
            "true_tokens": true,
            "main_actions": policy.codec.decode(main),
            "draft_actions": policy.codec.decode(draft),
            "true_actions": policy.codec.decode(true),
            "margins": margins.float(),
            "mask": batch.mask,
        }
        for key, value in entry.items():
            parts.setdefault(key, []).append(value.cpu().numpy())
    if not parts:
        raise RSDError("validation: expected at least one held-out frame, got none; hold out more episodes")
    stacked = {k: np.concatenate(v, axis=1 if v[0].ndim == 4 else 0) for k, v in parts.items()}
    draft_levels = len(stacked["draft_tokens"])
    return Predictions(
        **stacked, teacher_forced=hits[0] / count, draft_teacher_forced=hits[1, :draft_levels] / count
    )


def accuracy(predictions: Predictions) -> dict[str, Any]:
    """Figures for the manifest, all over valid steps of held-out demonstrations."""
    p = predictions
    valid = p.mask
    agree = (p.draft_tokens == p.main_tokens[: len(p.draft_tokens)])[:, valid].mean(axis=(1, 2))
    return {
        "frames": len(valid),
        "head_teacher_forced_per_level": _round(p.teacher_forced),
        "draft_teacher_forced_per_level": _round(p.draft_teacher_forced),
        "draft_equals_head_per_level": _round(agree),
        "head_mean_abs_action_error": round(float(np.abs(p.main_actions - p.true_actions)[valid].mean()), 5),
        "draft_mean_abs_action_error": round(float(np.abs(p.draft_actions - p.true_actions)[valid].mean()), 5),
    }


def calibrate_gate(predictions: Predictions, tolerance: NDArray[np.float32], alpha: float) -> dict[str, Any]:
    """Lowest threshold whose skipped chunks deviate from the main head's at a rate of at most alpha.

    With n skipped chunks of which d deviate, the bound used is (d + 1) / (n + 1) <= alpha, the conformal risk control
    correction for one more, exchangeable chunk (Angelopoulos et al., 2022). Calibration frames are held-out
    demonstrations, not rollouts: the guarantee is for such frames, which is why the engine audits online.

    Args:
        tolerance: [6], action units.

    Returns:
        Manifest entry; its threshold is None when no threshold keeps the promise.
    """
    steps = predictions.mask.shape[1]
    deviation = np.abs(predictions.draft_actions - predictions.main_actions)
    bad = (deviation[..., :GRIPPER] > tolerance).any(axis=(1, 2)) | (deviation[..., GRIPPER] > 0).any(axis=1)
    # The gate never skips a chunk whose gripper changes, so such chunks are not its population.
    gripper = predictions.draft_actions[..., GRIPPER]
    eligible = (gripper == gripper[:, :1]).all(axis=1)
    scores = np.array([gate_score(predictions.margins[:, i], steps) for i in np.flatnonzero(eligible)])
    order = np.argsort(-scores)
    deviated = np.cumsum(bad[eligible][order])
    skipped = np.arange(1, len(order) + 1)
    holds = np.flatnonzero((deviated + 1) / (skipped + 1) <= alpha)
    entry: dict[str, Any] = {
        "score": "draft_margin",
        "alpha": alpha,
        "threshold": None,
        "calibration": {"source": "held-out demonstrations", "frames": len(bad), "deviating": int(bad.sum())},
    }
    if len(holds):
        last = int(holds[-1])
        entry["threshold"] = float(scores[order][last])
        entry["calibration"] |= {
            "skipped": last + 1,
            "skipped_deviating": int(deviated[last]),
            "skip_rate": round((last + 1) / len(bad), 4),
        }
    return entry


def _round(values: NDArray[np.float64]) -> list[float]:
    return [round(float(value), 4) for value in values]

"""Accuracy on held-out demonstrations."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rsd_policy.backbones.base import hidden_states
from rsd_policy.backbones.mini import MiniInputs
from rsd_policy.checkpoints.loading import Policy
from rsd_policy.errors import RSDError
from rsd_policy.observation import GRIPPER
from rsd_policy.training.mini.dataset import Demonstrations


@dataclass(frozen=True)
class Predictions:
    """Predictions over demonstration frames, as the engine would make them.

    Attributes:
        main_tokens: [8, N, T, 7]; draft_tokens: [3, N, T, 7]; true_tokens: [8, N, T, 7].
        main_actions, draft_actions, true_actions: [N, T, 7], action units.
        margins: [3, N, T, 7] of the draft.
        mask: [N, T], which labels are valid.
        teacher_forced: [8], the main head's accuracy per level given the true digits before, over digits that carry
            something.
        draft_teacher_forced: [3], the same of the draft.
        carries: bool [8, 7], `RFSQCodec.carries`: which digits carry something.
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
    carries: NDArray[np.bool_]


@dataclass(frozen=True)
class HiddenBatch:
    """What both heads read for B frames, with the labels.

    Attributes:
        early, late: [B, slots, hidden_size], what the draft reads after layer k-1, and the action slots after the last.
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


def _hidden(policy: Policy, data: Demonstrations, device: torch.device, batch_size: int) -> Iterator[HiddenBatch]:
    backbone = policy.mini
    for start in range(0, len(data), batch_size):
        batch = data.part(start, start + batch_size).to(device)
        inputs = MiniInputs(batch.images, batch.proprio, batch.words())
        early, late = hidden_states(backbone, inputs, policy.exit_layer)
        yield HiddenBatch(early, late, batch.actions, batch.mask)


@torch.inference_mode()
def predict_hidden(policy: Policy, batches: Iterable[HiddenBatch]) -> Predictions:
    """Run both heads over hidden states on the policy's device.

    Raises:
        RSDError: no batch.
    """
    parts: dict[str, list[NDArray[Any]]] = {}
    hits = np.zeros((2, policy.codec.levels))
    steps = 0.0
    carries = policy.codec.carries
    for batch in batches:
        true = policy.codec.encode(batch.actions)
        draft, margins = policy.draft(batch.early)
        main, _ = policy.head(batch.late)
        valid = batch.mask[None, :, :, None] & carries.to(batch.mask.device)[:, None, None, :]
        for row, (head, hidden) in enumerate(((policy.head, batch.late), (policy.draft, batch.early))):
            guess = head.teacher_forced_logits(hidden, true).argmax(-1)
            hit = ((guess == true[: len(guess)]) & valid[: len(guess)]).sum(dim=(1, 2, 3)).double().cpu().numpy()
            hits[row, : len(guess)] += hit
        steps += float(batch.mask.sum())
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
    count = steps * carries.sum(dim=1).double().numpy()
    teacher_forced, draft_teacher_forced = hits / count
    return Predictions(
        **stacked,
        teacher_forced=teacher_forced,
        draft_teacher_forced=draft_teacher_forced[:draft_levels],
        carries=carries.numpy(),
    )


def accuracy(predictions: Predictions, tolerance: Sequence[float]) -> dict[str, Any]:
    """Figures for the manifest, all over valid steps of held-out demonstrations, but for the last: over whole chunks.

    Args:
        tolerance: [6], largest deviation of a draft that is accepted, action units.
    """
    p = predictions
    valid = p.mask
    deviation = np.abs(p.draft_actions - p.main_actions)
    close = (deviation[..., :GRIPPER] <= np.asarray(tolerance)).all(axis=(1, 2)) & (deviation[..., GRIPPER] == 0).all(1)
    levels = len(p.draft_tokens)
    counts = valid[None, :, :, None] & p.carries[:levels, None, None, :]
    agree = ((p.draft_tokens == p.main_tokens[:levels]) & counts).sum(axis=(1, 2, 3)) / counts.sum(axis=(1, 2, 3))
    return {
        "frames": len(valid),
        "head_teacher_forced_per_level": _round(p.teacher_forced),
        "draft_teacher_forced_per_level": _round(p.draft_teacher_forced),
        "draft_equals_head_per_level": _round(agree),
        "head_mean_abs_action_error": round(float(np.abs(p.main_actions - p.true_actions)[valid].mean()), 5),
        "draft_mean_abs_action_error": round(float(np.abs(p.draft_actions - p.true_actions)[valid].mean()), 5),
        "draft_chunks_within_tolerance": round(float(close.mean()), 4),
    }


def _round(values: NDArray[np.float64]) -> list[float]:
    return [round(float(value), 4) for value in values]

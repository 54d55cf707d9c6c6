"""Residual finite scalar quantisation (RFSQ) of action chunks with constant, fitted conditioning.

Each degree of freedom d has a fitted half-range s_d. Level l splits what the levels before it left over into `bins`
equal cells of width

    w[l, d] = 2 * s_d / bins ** (l + 1)

and keeps the signed cell number q[l] = clip(round(r[l] / w[l]), -(bins - 1) / 2, (bins - 1) / 2) with
r[0] = clip(a, -s, s) and r[l + 1] = r[l] - q[l] * w[l]. The sum of q[l] * w[l] over any prefix of levels is the centre
of the cell that the prefix names, so every prefix decodes. The widths are constants of the model, never statistics of
the sample: tokens alone decode exactly. (Finite scalar quantisation: Mentzer et al., 2023; the pitfall of
per-sample statistics: docs/rsd.md.)

The gripper is binary: it is encoded as -1 or +1 like the others and decoded to its sign.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from rsd_policy.errors import ActionError, CheckpointError
from rsd_policy.observation import ACTION_DIM

GRIPPER = ACTION_DIM - 1
"""Index of the gripper in an action."""


class RFSQCodec:
    """Encoder and decoder between actions and residual levels.

    Args:
        scale: [7], half-range per degree of freedom in action units; actions beyond it saturate. The gripper's is 1.
        levels: number of residual levels.
        bins: cells per level, odd, so that zero motion is a cell centre. Three bins make all eight levels carry motion
            (27 cells after 3 levels, 6561 after 8); seven would leave five levels of noise (docs/rsd.md).
    """

    def __init__(self, scale: Tensor, levels: int = 8, bins: int = 3) -> None:
        scale = torch.as_tensor(scale, dtype=torch.float64).cpu()
        if scale.shape != (ACTION_DIM,) or not bool((torch.isfinite(scale) & (scale > 0)).all()):
            raise CheckpointError(f"codec scale: expected {ACTION_DIM} positive numbers, got {scale.tolist()}")
        if bins < 3 or bins % 2 == 0:
            raise CheckpointError(f"codec bins: expected an odd number of at least 3, got {bins}")
        self.scale = scale
        self.levels = levels
        self.bins = bins
        self.half = (bins - 1) // 2
        powers = torch.tensor([float(bins) ** -(level + 1) for level in range(levels)], dtype=torch.float64)
        self.widths = 2.0 * powers[:, None] * scale[None, :]
        """[levels, 7] cell width per level and degree of freedom, action units."""
        self._widths_on: dict[torch.device, Tensor] = {}

    @classmethod
    def fit(cls, actions: Tensor, levels: int = 8, bins: int = 3) -> RFSQCodec:
        """Choose the half-ranges from data.

        Args:
            actions: [N, 7] demonstrated actions in [-1, 1].

        Returns:
            A codec whose half-range per degree of freedom is the 99.9 % quantile of |action| (at least 0.02, so that a
            degree of freedom that never moves still has cells; at most 1, the limit of the robot profile).
        """
        if actions.ndim != 2 or actions.shape[1] != ACTION_DIM or len(actions) == 0:
            raise ActionError(f"codec fit: expected actions [N, {ACTION_DIM}], got {list(actions.shape)}")
        magnitude = actions.detach().to(torch.float64).abs()
        # kthvalue and not quantile: the latter refuses inputs beyond 16 M elements.
        rank = max(1, math.ceil(0.999 * len(magnitude)))
        scale = magnitude.kthvalue(rank, dim=0).values.clamp(0.02, 1.0)
        scale[GRIPPER] = 1.0
        return cls(scale, levels, bins)

    def encode(self, actions: Tensor) -> Tensor:
        """Tokens of actions.

        Args:
            actions: [..., T, 7], action units.

        Returns:
            int64 [levels, ..., T, 7] with values 0 .. bins - 1 (cell number plus half).

        Raises:
            ActionError: the last dimension is not 7 or a value is not finite.
        """
        if actions.shape[-1] != ACTION_DIM:
            raise ActionError(f"codec encode: expected actions [..., {ACTION_DIM}], got {list(actions.shape)}")
        if not bool(torch.isfinite(actions).all()):
            raise ActionError("codec encode: expected finite actions, got NaN or infinity")
        widths = self._widths(actions.device)
        scale = self.scale.to(actions.device)
        residual = actions.to(torch.float64)
        residual[..., GRIPPER] = torch.where(residual[..., GRIPPER] > 0, 1.0, -1.0)
        residual = torch.minimum(torch.maximum(residual, -scale), scale)
        tokens = []
        for width in widths:
            digit = torch.round(residual / width).clamp(-self.half, self.half)
            residual = residual - digit * width
            tokens.append(digit.to(torch.int64) + self.half)
        return torch.stack(tokens)

    def decode(self, tokens: Tensor) -> Tensor:
        """Actions of a prefix of levels.

        Args:
            tokens: int64 [l, ..., T, 7] with 1 <= l <= levels.

        Returns:
            float32 [..., T, 7]; the gripper is exactly -1 or +1.
        """
        used = len(tokens)
        if not 1 <= used <= self.levels or tokens.shape[-1] != ACTION_DIM:
            raise ActionError(
                f"codec decode: expected tokens [1..{self.levels}, ..., {ACTION_DIM}], got {list(tokens.shape)}"
            )
        widths = self._widths(tokens.device)[:used]
        shape = (used,) + (1,) * (tokens.ndim - 2) + (ACTION_DIM,)
        actions = ((tokens - self.half) * widths.view(shape)).sum(dim=0)
        actions[..., GRIPPER] = torch.where(actions[..., GRIPPER] > 0, 1.0, -1.0)
        return actions.to(torch.float32)

    def to_manifest(self) -> dict[str, Any]:
        """Constants as JSON-serialisable values; `from_manifest` rebuilds an identical codec."""
        return {"scale": self.scale.tolist(), "levels": self.levels, "bins": self.bins}

    @classmethod
    def from_manifest(cls, entry: dict[str, Any]) -> RFSQCodec:
        """Rebuild a codec from `to_manifest`'s values."""
        try:
            return cls(torch.tensor(entry["scale"], dtype=torch.float64), int(entry["levels"]), int(entry["bins"]))
        except (KeyError, TypeError, ValueError) as error:
            raise CheckpointError(f"manifest entry 'codec': expected scale, levels and bins, got {entry}") from error

    def _widths(self, device: torch.device) -> Tensor:
        if device not in self._widths_on:
            self._widths_on[device] = self.widths.to(device)
        return self._widths_on[device]

"""Residual finite scalar quantisation (RFSQ) of action chunks with constant, fitted conditioning.

Each degree of freedom d has a fitted limit m_d and a grid of half-range s_d >= m_d. Level l splits what the levels
before it left over into `bins` equal cells of width

    w[l, d] = 2 * s_d / bins ** (l + 1)

`bins` is odd, so cells nest: the digits q[0], q[1], ... in -(bins - 1) / 2 .. (bins - 1) / 2 are the balanced digits in
base `bins` of one integer n, the number of the finest cell, and an action is n * w[levels - 1, d]. The sum of
q[l] * w[l, d] over any prefix of levels is the centre of the cell which that prefix names, so every prefix decodes. The
widths are constants of the model, never statistics of the sample: tokens alone decode exactly. (Finite scalar
quantisation: Mentzer et al., 2023; the study behind bins and grid: docs/codec.md.)

A grid that ends at the limit (s = m) wastes nothing on values in between; one with s = m / (1 - bins^-2) makes the
limits centres of cells from L1 on, so that an axis at full speed, as a quarter of all translations are, is exact and
its finer digits are 0. `fit` takes for each degree of freedom the one that errs less on the data.

The gripper is binary and has a treatment of its own: one bit per step, carried by L0 (lowest cell: open, highest:
close); its other digits are always 0 and carry nothing.
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

FINEST = 2**23
"""Most cells of a degree of freedom: float32 must tell the centres apart for decoded actions to encode back."""

LEAST_LIMIT = 0.02
"""Action units; the limit of a degree of freedom that never moves in the data, so that it still has cells."""


HEADROOM = 1.5
"""Limit over the largest magnitude in the data: between two sets of 30 episodes of the same tasks the largest rotation
differed up to 1.43 times, and what a limit cuts off is an error that no finer level removes (docs/codec.md)."""


class RFSQCodec:
    """Encoder and decoder between actions and residual levels.

    Args:
        scale: [7], half-range s of the grid per degree of freedom, action units. The gripper's is not used.
        levels: number of residual levels.
        bins: cells per level, odd, so that zero motion is a cell centre.
        limit: [7], largest magnitude m that is encoded or decoded, at most the scale; None: the scale itself.

    Raises:
        CheckpointError: constants that are not of this form.
    """

    def __init__(self, scale: Tensor, levels: int = 8, bins: int = 3, limit: Tensor | None = None) -> None:
        if levels < 1:
            raise CheckpointError(f"codec levels: expected at least 1, got {levels}")
        if bins < 3 or bins % 2 == 0 or bins**levels > FINEST:
            raise CheckpointError(
                f"codec bins: expected an odd number of at least 3 with bins ** levels <= {FINEST}, "
                f"got {bins} and {levels} levels"
            )
        self.scale = _constants("scale", scale)
        self.limit = self.scale.clone() if limit is None else _constants("limit", limit)
        if not bool((self.limit <= self.scale).all()):
            raise CheckpointError(f"codec limit: expected at most {self.scale.tolist()}, got {self.limit.tolist()}")
        self.levels = levels
        self.bins = bins
        self.half = (bins - 1) // 2
        powers = torch.tensor([float(bins) ** -(level + 1) for level in range(levels)], dtype=torch.float64)
        self.widths = 2.0 * powers[:, None] * self.scale[None, :]
        """[levels, 7] cell width per level and degree of freedom, action units."""
        self.places = torch.tensor([bins ** (levels - 1 - level) for level in range(levels)])
        """[levels], what a digit counts for in the number of the finest cell."""
        self._copies: dict[torch.device, tuple[Tensor, Tensor, Tensor]] = {}
        self.carries = torch.ones(levels, ACTION_DIM, dtype=torch.bool)
        """[levels, 7], False where a digit is the same for every action: the gripper's from L1 on."""
        self.carries[1:, GRIPPER] = False

    @classmethod
    def fit(cls, actions: Tensor, levels: int = 8, bins: int = 3) -> RFSQCodec:
        """Choose limits and grid from data.

        Args:
            actions: [..., 7] demonstrated actions or chunks of them, at least one, in [-1, 1].

        Returns:
            A codec whose limit per degree of freedom is 1.5 times the largest |action| (at least 0.02, at most 1, the
            limit of the robot profile), on whichever of the two grids has the smaller mean log RMS error over levels.
        """
        if actions.ndim < 2 or actions.shape[-1] != ACTION_DIM or actions.numel() == 0:
            raise ActionError(f"codec fit: expected actions [..., {ACTION_DIM}], got {list(actions.shape)}")
        if not bool(torch.isfinite(actions).all()):
            raise ActionError("codec fit: expected finite actions, got NaN or infinity")
        largest = actions.detach().cpu().to(torch.float64).flatten(0, -2).abs().amax(dim=0)
        limit = (HEADROOM * largest).clamp(LEAST_LIMIT, 1.0)
        limit[GRIPPER] = 1.0
        # L1 has cells of width 2 s / bins^2; its outermost centre is s minus half of that.
        grids = [limit, limit / (1.0 - float(bins) ** -2)]
        errors = torch.stack([cls(grid, levels, bins, limit)._log_error(actions) for grid in grids])
        return cls(torch.where(errors[0] <= errors[1], grids[0], grids[1]), levels, bins, limit)

    def encode(self, actions: Tensor) -> Tensor:
        """Tokens of actions.

        Args:
            actions: [..., T, 7], action units. Magnitudes beyond the limit saturate at it; a gripper above 0 closes.

        Returns:
            int64 [levels, ..., T, 7] with values 0 .. bins - 1 (digit plus half).

        Raises:
            ActionError: the last dimension is not 7 or a value is not finite.
        """
        if actions.ndim < 1 or actions.shape[-1] != ACTION_DIM:
            raise ActionError(f"codec encode: expected actions [..., {ACTION_DIM}], got {list(actions.shape)}")
        if not bool(torch.isfinite(actions).all()):
            raise ActionError("codec encode: expected finite actions, got NaN or infinity")
        limit, widths, places = self._constants_on(actions.device)
        outermost = (self.bins**self.levels - 1) // 2
        clipped = torch.minimum(torch.maximum(actions.to(torch.float64), -limit), limit)
        number = torch.round(clipped / widths[-1]).to(torch.int64).clamp(-outermost, outermost)
        # Ordinary digits of the shifted number are the balanced digits plus half.
        stacked = (number + outermost) // places.view((self.levels,) + (1,) * number.ndim) % self.bins
        stacked[..., GRIPPER] = self.half
        stacked[0, ..., GRIPPER] = torch.where(actions[..., GRIPPER] > 0, self.bins - 1, 0)
        return stacked

    def decode(self, tokens: Tensor) -> Tensor:
        """Actions of a prefix of levels.

        Args:
            tokens: int64 [l, ..., T, 7] with 1 <= l <= levels and values 0 .. bins - 1.

        Returns:
            float32 [..., T, 7], the centres of the cells, no magnitude beyond the limit; the gripper is exactly -1 or
            +1. The same on every device, for the digits are added as integers.

        Raises:
            ActionError: another number of levels or degrees of freedom.
        """
        used = len(tokens)
        if not 1 <= used <= self.levels or tokens.shape[-1] != ACTION_DIM:
            raise ActionError(
                f"codec decode: expected tokens [1..{self.levels}, ..., {ACTION_DIM}], got {list(tokens.shape)}"
            )
        limit, widths, places = self._constants_on(tokens.device)
        weights = places[self.levels - used :].view((used,) + (1,) * (tokens.ndim - 1))
        number = ((tokens - self.half) * weights).sum(dim=0)
        actions = torch.minimum(torch.maximum(number * widths[used - 1], -limit), limit)
        actions[..., GRIPPER] = torch.where(number[..., GRIPPER] > 0, 1.0, -1.0)
        return actions.to(torch.float32)

    def bits(self, horizon: int) -> list[float]:
        """Bits of a chunk at a fixed rate, for each prefix of levels: log2(bins) a digit, one a gripper command."""
        per_level = (ACTION_DIM - 1) * math.log2(self.bins)
        return [horizon * (1.0 + per_level * used) for used in range(1, self.levels + 1)]

    def _constants_on(self, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
        """limit [7], widths [levels, 7] and places [levels] on a device, copied once: a copy per chunk stalls a GPU."""
        if device not in self._copies:
            self._copies[device] = self.limit.to(device), self.widths.to(device), self.places.to(device)
        return self._copies[device]

    def _log_error(self, actions: Tensor) -> Tensor:
        """[7], mean over prefixes of levels of the log of the RMS error."""
        flat = actions.detach().cpu().to(torch.float64).reshape(-1, ACTION_DIM)
        tokens = self.encode(flat)
        logs = []
        for used in range(1, self.levels + 1):
            squared = (self.decode(tokens[:used]) - flat).square().mean(dim=0)
            logs.append(torch.log(squared + torch.finfo(torch.float32).tiny) / 2)
        return torch.stack(logs).mean(dim=0)

    def to_manifest(self) -> dict[str, Any]:
        """Constants as JSON-serialisable values; `from_manifest` rebuilds an identical codec."""
        return {
            "scale": self.scale.tolist(),
            "limit": self.limit.tolist(),
            "levels": self.levels,
            "bins": self.bins,
        }

    @classmethod
    def from_manifest(cls, entry: dict[str, Any]) -> RFSQCodec:
        """Rebuild a codec from `to_manifest`'s values; an entry without `limit` has the scale for it.

        Raises:
            CheckpointError: an entry is missing or not of its form.
        """
        try:
            scale = torch.tensor(entry["scale"], dtype=torch.float64)
            limit = torch.tensor(entry.get("limit", entry["scale"]), dtype=torch.float64)
            levels, bins = int(entry["levels"]), int(entry["bins"])
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise CheckpointError(f"manifest entry 'codec': expected scale, levels and bins, got {entry}") from error
        return cls(scale, levels, bins, limit)


def _constants(name: str, values: Tensor) -> Tensor:
    """float64 [7] on the CPU, checked."""
    constants = torch.as_tensor(values, dtype=torch.float64).cpu()
    if constants.shape != (ACTION_DIM,) or not bool((torch.isfinite(constants) & (constants > 0)).all()):
        raise CheckpointError(f"codec {name}: expected {ACTION_DIM} positive numbers, got {constants.tolist()}")
    return constants

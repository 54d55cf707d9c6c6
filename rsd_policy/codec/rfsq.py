"""Residual finite scalar quantisation (RFSQ) of action chunks with constant, fitted conditioning.

Each degree of freedom d has a fitted limit m_d and a grid of half-range s_d >= m_d. Level l splits what the levels
before it left over into B_l equal cells of width

    w[l, d] = 2 * s_d / (B_0 B_1 ... B_l)

Every B_l is odd, so cells nest: the digits q[l] in -(B_l - 1) / 2 .. (B_l - 1) / 2 are the balanced digits in the mixed
base B_0, B_1, ... of one integer n, the number of the finest cell, and an action is n * w[levels - 1, d]. The sum of
q[l] * w[l, d] over any prefix of levels is the centre of the cell which that prefix names, so every prefix decodes. The
widths are constants of the model, never statistics of the sample: tokens alone decode exactly. (Finite scalar
quantisation: Mentzer et al., 2023; the study behind bins and grid: docs/codec.md.)

A grid that ends at the limit (s = m) wastes nothing on values in between; one with s = m / (1 - 1 / B_0) makes the
limits centres of cells, so that an axis at full speed, as a quarter of all translations are, is exact from L0 on and
its finer digits are 0. `fit` takes for each degree of freedom the one that errs less on the data.

The gripper is binary and has a treatment of its own: one bit per step, carried by L0 (lowest cell: open, highest:
close); its other digits are always 0 and carry nothing.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from rsd_policy.errors import ActionError, CheckpointError
from rsd_policy.observation import ACTION_DIM, GRIPPER

FINEST = 2**23
"""Most cells of a degree of freedom: float32 must tell the centres apart for decoded actions to encode back."""

LEAST_LIMIT = 0.02
"""Action units; the limit of a degree of freedom that never moves in the data, so that it still has cells."""

BINS = (9, 3, 3, 3, 3, 3, 3, 3)
"""Cells of L0 to L7. Nine at first, so that L0 alone errs no more than its peers at equal coded bits and the draft's
L0-L2 have an error of their own of at most a seventh of the tolerance (docs/codec.md)."""

HEADROOM = 1.5
"""Limit over the largest magnitude in the data: between two sets of 30 episodes of the same tasks the largest rotation
differed up to 1.43 times, and what a limit cuts off is an error that no finer level removes (docs/codec.md)."""


class RFSQCodec:
    """Encoder and decoder between actions and residual levels.

    Args:
        scale: [7], half-range s of the grid per degree of freedom, action units. The gripper's is not used.
        bins: cells of each residual level, odd, so that zero motion is a cell centre.
        limit: [7], largest magnitude m that is encoded or decoded, at most the scale; None: the scale itself.

    Raises:
        CheckpointError: constants that are not of this form.
    """

    def __init__(self, scale: Tensor, bins: Sequence[int] = BINS, limit: Tensor | None = None) -> None:
        self.bins = tuple(bins)
        if not self.bins or any(count < 3 or count % 2 == 0 for count in self.bins) or math.prod(self.bins) > FINEST:
            raise CheckpointError(
                "codec bins: expected one odd number of at least 3 for each level, with a product of at most "
                f"{FINEST}, got {list(self.bins)}"
            )
        self.scale = _constants("scale", scale)
        self.limit = self.scale.clone() if limit is None else _constants("limit", limit)
        if not bool((self.limit <= self.scale).all()):
            raise CheckpointError(f"codec limit: expected at most {self.scale.tolist()}, got {self.limit.tolist()}")
        self.levels = len(self.bins)
        self.cells = tuple(accumulate(self.bins, operator.mul))
        """Cells of a degree of freedom that each prefix of levels tells apart."""
        self.widths = 2.0 * self.scale[None, :] / torch.tensor(self.cells, dtype=torch.float64)[:, None]
        """[levels, 7] cell width per level and degree of freedom, action units."""
        self.places = torch.tensor([self.cells[-1] // count for count in self.cells])
        """[levels], what a digit counts for in the number of the finest cell."""
        self.half = torch.tensor([(count - 1) // 2 for count in self.bins])
        """[levels], the token of a digit 0."""
        self._copies: dict[torch.device, tuple[Tensor, ...]] = {}
        self.carries = torch.ones(self.levels, ACTION_DIM, dtype=torch.bool)
        """[levels, 7], False where a digit is the same for every action: the gripper's from L1 on."""
        self.carries[1:, GRIPPER] = False

    @classmethod
    def fit(cls, actions: Tensor, bins: Sequence[int] = BINS) -> RFSQCodec:
        """Choose limits and grid from data.

        Args:
            actions: [..., 7] demonstrated actions or chunks of them, at least one, in [-1, 1].
            bins: cells of each level, see the class.

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
        # L0 has cells of width 2 s / B_0; its outermost centre is s minus half of that.
        plain = cls(limit, bins)
        wide = cls(limit / (1.0 - 1.0 / plain.bins[0]), bins, limit)
        better = plain._log_error(actions) <= wide._log_error(actions)
        return cls(torch.where(better, plain.scale, wide.scale), bins, limit)

    def encode(self, actions: Tensor) -> Tensor:
        """Tokens of actions.

        Args:
            actions: [..., T, 7], action units. Magnitudes beyond the limit saturate at it; a gripper above 0 closes.

        Returns:
            int64 [levels, ..., T, 7] with values 0 .. B_l - 1 (digit plus half).

        Raises:
            ActionError: the last dimension is not 7 or a value is not finite.
        """
        if actions.ndim < 1 or actions.shape[-1] != ACTION_DIM:
            raise ActionError(f"codec encode: expected actions [..., {ACTION_DIM}], got {list(actions.shape)}")
        if not bool(torch.isfinite(actions).all()):
            raise ActionError("codec encode: expected finite actions, got NaN or infinity")
        limit, widths, places, half, bins = self.constants_on(actions.device)
        outermost = (self.cells[-1] - 1) // 2
        clipped = torch.minimum(torch.maximum(actions.to(torch.float64), -limit), limit)
        number = torch.round(clipped / widths[-1]).to(torch.int64).clamp(-outermost, outermost)
        # Ordinary digits of the shifted number are the balanced digits plus half.
        each = (self.levels,) + (1,) * number.ndim
        stacked = (number + outermost) // places.view(each) % bins.view(each)
        stacked[..., GRIPPER] = half.view(each[:-1])
        stacked[0, ..., GRIPPER] = torch.where(actions[..., GRIPPER] > 0, self.bins[0] - 1, 0)
        return stacked

    def decode(self, tokens: Tensor) -> Tensor:
        """Actions of a prefix of levels.

        Args:
            tokens: int64 [l, ..., T, 7] with 1 <= l <= levels and values 0 .. B_l - 1.

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
        limit, widths, places, half, _ = self.constants_on(tokens.device)
        each = (used,) + (1,) * (tokens.ndim - 1)
        weights = places[:used] // places[used - 1]
        number = ((tokens - half[:used].view(each)) * weights.view(each)).sum(dim=0)
        actions = torch.minimum(torch.maximum(number * widths[used - 1], -limit), limit)
        actions[..., GRIPPER] = torch.where(number[..., GRIPPER] > 0, 1.0, -1.0)
        return actions.to(torch.float32)

    def bits(self, horizon: int) -> list[float]:
        """Bits of a chunk at a fixed rate, for each prefix of levels: log2(B_l) a digit, one a gripper command."""
        return [horizon * (1.0 + (ACTION_DIM - 1) * math.log2(cells)) for cells in self.cells]

    def constants_on(self, device: torch.device) -> tuple[Tensor, ...]:
        """limit [7], widths [levels, 7], places, half and bins [levels], copied once: a copy a chunk stalls a GPU."""
        if device not in self._copies:
            constants = self.limit, self.widths, self.places, self.half, torch.tensor(self.bins)
            self._copies[device] = tuple(constant.to(device) for constant in constants)
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
        return {"scale": self.scale.tolist(), "limit": self.limit.tolist(), "bins": list(self.bins)}

    @classmethod
    def from_manifest(cls, entry: dict[str, Any]) -> RFSQCodec:
        """Rebuild a codec from `to_manifest`'s values.

        Raises:
            CheckpointError: an entry is missing or not of its form.
        """
        try:
            scale, limit = (torch.tensor(entry[name], dtype=torch.float64) for name in ("scale", "limit"))
            bins = tuple(int(count) for count in entry["bins"])
        except (KeyError, TypeError, ValueError) as error:
            raise CheckpointError(
                f"manifest entry 'codec': expected scale, limit and the bins of each level, got {entry}"
            ) from error
        return cls(scale, bins, limit)


def _constants(name: str, values: Tensor) -> Tensor:
    """float64 [7] on the CPU, checked."""
    constants = torch.as_tensor(values, dtype=torch.float64).cpu()
    if constants.shape != (ACTION_DIM,) or not bool((torch.isfinite(constants) & (constants > 0)).all()):
        raise CheckpointError(f"codec {name}: expected {ACTION_DIM} positive numbers, got {constants.tolist()}")
    return constants

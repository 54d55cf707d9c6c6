"""What a codec loses, in millimetres and radians."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from rsd_policy.codec.rfsq import RFSQCodec
from rsd_policy.libero import MM_PER_UNIT, RAD_PER_UNIT


@dataclass(frozen=True)
class ChunkError:
    """Absolute errors per step and axis over all chunks; mm over dx, dy, dz and rad over droll, dpitch, dyaw."""

    mean_mm: float
    rms_mm: float
    p95_mm: float
    max_mm: float
    mean_rad: float
    rms_rad: float
    p95_rad: float
    max_rad: float

    @property
    def rms_units(self) -> float:
        """RMS over all six axes, action units."""
        return float(np.hypot(self.rms_mm / MM_PER_UNIT, self.rms_rad / RAD_PER_UNIT) / np.sqrt(2.0))


def chunk_error(decoded: NDArray[np.floating], actions: NDArray[np.floating]) -> ChunkError:
    """Compare decoded with true actions.

    Args:
        decoded, actions: [..., 6 or 7] in action units; a gripper is left out.
    """
    difference = np.abs(decoded.astype(np.float64) - actions.astype(np.float64))
    mm, rad = difference[..., :3] * MM_PER_UNIT, difference[..., 3:6] * RAD_PER_UNIT
    return ChunkError(*_summary(mm), *_summary(rad))


def errors_per_level(codec: RFSQCodec, chunks: NDArray[np.float32]) -> list[ChunkError]:
    """Error of each prefix of levels.

    Args:
        chunks: [M, T, 7], action units.
    """
    tokens = codec.encode(torch.from_numpy(chunks))
    return [chunk_error(codec.decode(tokens[:used]).numpy(), chunks) for used in range(1, codec.levels + 1)]


def _summary(values: NDArray[np.float64]) -> tuple[float, float, float, float]:
    return (
        float(values.mean()),
        float(np.sqrt((values**2).mean())),
        float(np.quantile(values, 0.95)),
        float(values.max()),
    )

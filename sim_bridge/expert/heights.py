"""Height maps: how high something must be to pass over the obstacles."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import maximum_filter
from scipy.spatial.distance import cdist

Array = NDArray[np.float64]

CELL = 0.01
"""Edge of a map cell, m."""

HALF_EXTENT = 0.8
"""The map covers +-this around the robot's workspace (world origin), m."""


class HeightMap:
    """Top of the obstacles over a square around the world origin; `base` where there is none."""

    def __init__(self, points: Array, base: float) -> None:
        cells = 2 * round(HALF_EXTENT / CELL) + 1
        self.base = base
        self._grid = np.full((cells, cells), base)
        index = np.rint((points[:, :2] + HALF_EXTENT) / CELL).astype(int)
        inside = np.all((index >= 0) & (index < cells), axis=1)
        np.maximum.at(self._grid, (index[inside, 0], index[inside, 1]), points[inside, 2])

    def grown(self, radius: float) -> HeightMap:
        """The same map for a body of that radius (m): each cell holds the highest top that the body would be above."""
        reach = int(np.ceil(radius / CELL))
        offset = np.arange(-reach, reach + 1) * CELL
        disc = offset[:, None] ** 2 + offset[None, :] ** 2 <= (radius + CELL / 2) ** 2
        other = HeightMap(np.zeros((0, 3)), self.base)
        other._grid = maximum_filter(self._grid, footprint=disc, mode="nearest")
        return other

    def at(self, xy: Array) -> Array:
        """[N, 2] -> [N], heights in m."""
        last = self._grid.shape[0] - 1
        index = np.clip(np.rint((xy + HALF_EXTENT) / CELL).astype(int), 0, last)
        return self._grid[index[:, 0], index[:, 1]]


def along(start: Array, end: Array) -> tuple[Array, Array]:
    """Points of the straight line between two places in the plane, a cell apart: ([N, 2], distance from start [N])."""
    length = float(np.linalg.norm(end - start))
    s = np.append(np.arange(0.0, length, CELL), length)
    direction = (end - start) / max(length, 1e-9)
    return start + s[:, None] * direction, s


def overhang(points: Array, obstacles: Array, gap: float) -> Array:
    """Points of the obstacles that an object would hit if it were lifted straight up. [K, 3].

    Args:
        points: [N, 3] on the object. obstacles: [M, 3] on everything else.
        gap: obstacles so near to the object in the plane are still over it, m.

    What stands beside the object, as a drawer's wall does, is not over it, even if it is higher.
    """
    floor = points[:, 2].min() + CELL
    centre = (points[:, :2].max(axis=0) + points[:, :2].min(axis=0)) / 2
    radius = np.linalg.norm(points[:, :2] - centre, axis=1).max() + gap + CELL
    near = obstacles[(np.linalg.norm(obstacles[:, :2] - centre, axis=1) < radius) & (obstacles[:, 2] > floor)]
    if not len(near):
        return near
    below = cdist(near[:, :2], points[:, :2]) < gap + CELL / 2
    # the object may lie tilted: its own height there counts
    top = np.where(below, points[:, 2], -np.inf).max(axis=1)
    column = cdist(near[:, :2], near[:, :2]) < CELL
    lowest = np.where(column, near[:, 2], np.inf).min(axis=1)
    return near[below.any(axis=1) & (lowest > top)]

"""Error over bits for every codec of the study."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib

from benchmarks.codec.peers import Point

matplotlib.use("Agg")
from matplotlib import pyplot as plt

LEAST_MM, LEAST_RAD = 3e-3, 2e-5
"""Below, no robot arm follows: the axes end there."""

STYLE: dict[str, dict[str, Any]] = {
    "RFSQ": {"color": "black", "marker": "o", "linewidth": 2},
    "DCT + RFSQ": {"color": "tab:green", "marker": "s"},
    "DCT + rounding": {"color": "tab:blue", "marker": "."},
    "uniform bins": {"color": "tab:orange", "marker": "x"},
    "ResidualFSQ, steps": {"color": "tab:red", "marker": "v"},
    "ResidualFSQ, learned": {"color": "tab:pink", "marker": "^"},
}
"""Codecs that are drawn; the rest are in the JSON only."""


def plot(points: Sequence[Point], rates: Mapping[str, str], path: Path) -> None:
    """Two rows (mm, rad) of one panel per rate.

    Args:
        rates: attribute of a point -> title of the panel.
    """
    figure, axes = plt.subplots(2, len(rates), figsize=(5 * len(rates), 8), sharex="col", layout="constrained")
    for row, (error, unit, least) in enumerate((("rms_mm", "mm", LEAST_MM), ("rms_rad", "rad", LEAST_RAD))):
        for column, (rate, title) in enumerate(rates.items()):
            panel = axes[row][column]
            for name, style in STYLE.items():
                own = sorted(
                    (bits, getattr(p.error, error))
                    for p in points
                    if p.codec == name and (bits := getattr(p, rate)) is not None
                )
                best = [(x, y) for i, (x, y) in enumerate(own) if all(y < z for _, z in own[:i])]
                if best:
                    panel.plot(*zip(*best, strict=True), label=name, markersize=5, **style)
            panel.set_yscale("log")
            panel.set_ylim(bottom=least)
            panel.grid(alpha=0.3)
            panel.set_ylabel(f"RMS error a step, {unit}")
            if row == 0:
                panel.set_title(title)
            else:
                panel.set_xlabel("bits a chunk of 8 steps")
    axes[0][0].legend()
    figure.savefig(path, dpi=110)
    plt.close(figure)
